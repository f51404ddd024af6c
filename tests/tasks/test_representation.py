"""Representation autoencoders through the mains: a frozen encoder's run, its decoder, and a flow on its tokens."""

import copy
import dataclasses
import inspect
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small
from flax import nnx
from runs import config_of, exit_code, task_of
from safetensors.numpy import save_file

from flowjax import data, evaluate, sample, train
from flowjax.calibration.store import model_hash
from flowjax.models import RepresentationAutoencoder, ViT
from flowjax.objectives import Assembled
from flowjax.recipe import (
    WEIGHTS,
    Autoencoder,
    EncoderRecipe,
    Recipe,
    Request,
    Run,
    codec,
    export_run,
    import_dinov2,
    load_run,
)
from flowjax.tasks import make_task
from flowjax.training import make_mesh
from flowjax.weights import write

pytestmark = [
    pytest.mark.standard_promotion,
    pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning"),
]
STEPS = 30


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An untrained classifier's run."""
    folder = tmp_path_factory.mktemp("encoder")
    small.write_encoder(folder)
    return folder


def arguments(encoder, workdir, *more):
    return ("--config=rae:smoke", f"--workdir={workdir}", f"--config.encoder.options.workdir={encoder}", *more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, encoder):
    """The workdir of a short run, whose discriminator learns from step 10 on and is heard from step 20 on."""
    workdir = tmp_path_factory.mktemp("run")
    given = [f"train.steps={STEPS}", "train.checkpoint_every=15", "train.sample_every=15", "train.batch=16"]
    given += ["objective.options.discriminator_start=10", "objective.options.start=20"]
    given += ["optimizer.autoencoder.options.rate=1e-2"]
    with jax.numpy_dtype_promotion("standard"):
        assert exit_code(train, *arguments(encoder, workdir, *(f"--config.{option}" for option in given))) == 0
    return workdir


def test_the_encoder_is_an_argument_and_not_a_part(encoder):
    task = task_of(config_of(*arguments(encoder, "unused")[::2]))
    parts = task.networks()
    assert set(parts) == {"autoencoder", "discriminator"}
    assert isinstance(task.objective, Assembled)
    shapes = nnx.eval_shape(lambda: parts["autoencoder"].build(nnx.Rngs(0)))
    assert type(shapes).__name__ == "ViTDecoder"
    frozen = task.objective.frozen["encoder"]
    assert model_hash(frozen) == task.recipe.runs["encoder"]["model"] == model_hash(load_run(encoder)[0]["network"])
    whole = task.recipe.build_network(nnx.Rngs(0))
    assert isinstance(whole, RepresentationAutoencoder)
    assert task.recipe.latent_shape(whole) == (2, 2, 16)


@pytest.mark.slow
def test_reconstruction_improves_and_the_encoder_keeps_its_bits(trained, encoder, tmp_path):
    small.write_encoder(tmp_path / "again")
    assert (encoder / "weights.safetensors").read_bytes() == (tmp_path / "again" / "weights.safetensors").read_bytes()
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    error = np.array([row["reconstruction"] for row in rows])
    assert error[-5:].mean() < 0.8 * error[:3].mean()
    for name, first in (("discriminator", 10), ("gradient_norm/discriminator", 10), ("lambda", 20)):
        values = np.array([row[name] for row in rows])
        assert (values[:first] == 0).all(), name
        assert (values[first:] > 0).all(), name
    with ocp.CheckpointManager(trained / "checkpoints") as manager:
        found = manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    assert not [name for name in found if ".encoder." in name or "registers" in name]
    networks, recipe = load_run(trained)
    assert set(networks) == {"autoencoder"}
    jax.tree.map(np.testing.assert_array_equal, networks["autoencoder"].encoder, load_run(encoder)[0]["network"])
    assert recipe.runs["encoder"]["model"] == model_hash(load_run(encoder)[0]["network"])


@pytest.mark.slow
def test_it_is_measured_like_any_autoencoder(trained):
    networks, recipe = load_run(trained)
    assert isinstance(recipe, Autoencoder)
    source = data.of_run(recipe, trained)
    numbers = recipe.assess(networks, source, Request(num=50, batch=16))
    assert "kl" not in numbers  # there is no posterior
    x = np.asarray(source.take(50).x, np.float64)
    vit, decoder = networks["autoencoder"].encoder, networks["autoencoder"].decoder
    z = vit.encode(jnp.asarray(x / 16, jnp.float32))
    y = np.clip(np.asarray(decoder(z)) / 2 + 0.5, -np.inf, np.inf) * 16
    np.testing.assert_allclose(numbers["psnr"], 20 * np.log10(16 / np.sqrt(((x - y) ** 2).mean())), rtol=1e-4)
    np.testing.assert_allclose([numbers["latent_mean"], numbers["latent_std"]], [0, 1], atol=1e-4)
    assert exit_code(evaluate, f"--workdir={trained}", "--num=40") == 0
    assert (trained / "samples.png").stat().st_size > 0


@pytest.mark.slow
def test_exported_it_stands_alone(trained, tmp_path):
    networks, recipe = load_run(trained)
    export_run(networks, recipe, tmp_path / "model")
    again, copy = load_run(tmp_path / "model")
    assert not copy.runs
    assert copy.network["name"] == "representation_autoencoder"
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((networks, again)))


@pytest.mark.slow
def test_another_encoder_in_its_place_is_refused(trained, encoder, tmp_path, capsys):
    moved = tmp_path / "run"
    shutil.copytree(trained, moved)
    recipe = json.loads((moved / "recipe.json").read_text())
    recipe["runs"]["encoder"]["workdir"] = "../encoder"
    (moved / "recipe.json").write_text(json.dumps(recipe))
    small.write_encoder(tmp_path / "encoder", seed=1)
    assert exit_code(evaluate, f"--workdir={moved}", "--num=40") == 2
    assert "was made with the run 'encoder'" in capsys.readouterr().err
    given = arguments(tmp_path / "encoder", moved, "--allow_config_change=False")
    assert exit_code(train, *given, "--config.train.steps=40") == 2
    config = json.loads((moved / "config.json").read_text())
    config["encoder"]["options"]["workdir"] = str(tmp_path / "encoder")
    (moved / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    flags = [
        f"--config.{name}={value}" for name, value in _flat(config) if name.startswith(("train", "objective.options"))
    ]
    flags += ["--config.optimizer.autoencoder.options.rate=1e-2"]
    assert exit_code(train, *arguments(tmp_path / "encoder", moved, *flags)) == 2
    assert "began with a frozen encoder whose weights have the hash" in capsys.readouterr().err


def _flat(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


@pytest.mark.slow
def test_a_flow_on_its_tokens_makes_images(trained, tmp_path):
    workdir = tmp_path / "flow"
    network = "dit(image_shape=(2,2,16), patch=1, width=8, depth=1, heads=1, num_classes=10)"
    given = ["--config=digits:smoke", f"--workdir={workdir}", f"--config.codec=run(workdir='{trained}')"]
    assert exit_code(train, *given, f"--config.network={network}") == 0
    networks, recipe = load_run(workdir)
    assert isinstance(recipe, Recipe)
    assert recipe.state_shape == (2, 2, 16)
    assert set(networks) == {"network", "codec"}
    out = tmp_path / "samples.npz"
    assert exit_code(sample, f"--workdir={workdir}", "--num=4", f"--out={out}") == 0
    assert np.load(out)["x"].shape == (4, 8, 8, 1)
    export_run(networks, recipe, tmp_path / "model")
    again = tmp_path / "again.npz"
    assert exit_code(sample, f"--workdir={tmp_path / 'model'}", "--num=4", f"--out={again}") == 0
    np.testing.assert_allclose(np.load(again)["x"], np.load(out)["x"], rtol=1e-4, atol=1e-4)


def test_latents_belong_to_the_options_of_the_encoder(encoder, tmp_path):
    """Which no array tells: another mean of its images is another function of the same weights."""
    task, folder = task_of(config_of(arguments(encoder, "x")[0], arguments(encoder, "x")[2])), tmp_path / "decoder"
    folder.mkdir()
    task.save(folder)
    write(folder / WEIGHTS, {"autoencoder": task.recipe.stored()["autoencoder"](nnx.Rngs(0))})
    loaded = Run(workdir=str(folder)).load(make_mesh())
    source = task.source.take(20)
    first = np.asarray(codec.latents(loaded, source, make_mesh()).x)
    runs = copy.deepcopy(loaded.recipe.runs)
    runs["encoder"]["recipe"]["network"]["options"]["mean"] = (0.7,)
    other = dataclasses.replace(loaded, recipe=dataclasses.replace(loaded.recipe, runs=runs))
    with pytest.raises(ValueError, match="does not hold the latents that its name says; remove it"):
        codec.latents(other, source, make_mesh())
    [folder] = (folder / "latents").iterdir()
    record = json.loads((folder / "metadata.json").read_text())
    del record["runs"]  # as older versions wrote it
    (folder / "metadata.json").write_text(json.dumps(record))
    np.testing.assert_array_equal(codec.latents(loaded, source, make_mesh()).x, first)


def test_what_does_not_fit_is_refused_before_anything_is_written(encoder, tmp_path, capsys):
    image = {"name": "image", "options": {"image_shape": (8, 8, 1), "dim": 8, "channels": 4}}
    small.write_encoder(tmp_path / "readout", network={"name": "readout", "options": {"encoder": image, "outputs": 10}})
    larger = {"name": "vit", "options": {**small.VIT, "image_shape": (16, 16, 1)}}
    small.write_encoder(tmp_path / "larger", network=larger, shape=(16, 16, 1))
    small.write_encoder(tmp_path / "scaled", shift=0.0)
    own = f"run(workdir='{encoder}')"
    at = lambda name: [f"--config.encoder.options.workdir={tmp_path / name}"]  # noqa: E731 - the last one counts
    for flags, message in (
        (
            ["--config.encoder.name="],
            "'representation_autoencoding' is for a decoder behind a frozen encoder: name its run",
        ),
        (["--config.objective=autoencoding(start=1)"], "trains an encoder too, and config.encoder is frozen"),
        (at("readout"), "a Readout, has no encode: an encoder makes tokens"),
        (at("larger"), "the shape of its examples is (16, 16, 1)"),
        (at("scaled"), "must have images normalised to [-1, 1]"),
        (at("none"), "is not the workdir of a training run"),
        (["--config.encoder.options.which=best"], "leave which, average and dtype out"),
        (["--config.network.options.latent=8"], "the network does not decode latents of shape (2, 2, 16)"),
        (["--config.network=autoencoder(image_shape=(8,8,1))"], "the network does not"),
        (["--config.discriminator=none"], "config.discriminator is none, and the objective has adversary=hinge"),
        (
            ["--config.objective.options.start=0", "--config.objective.options.discriminator_start=1"],
            "is behind start=0",
        ),
        ([f"--config.task.options.extractor=run(workdir='{tmp_path / 'readout'}')"], "has no features(images)"),
        ([f"--config.task.options.extractor=run(workdir='{tmp_path / 'larger'}')"], "the extractor"),
        (
            [f"--config.task.options.extractor=run(workdir='{tmp_path / 'scaled'}')"],
            "scaled must have images normalised to [-1, 1]",
        ),
    ):
        assert exit_code(train, *arguments(encoder, tmp_path / "run", *flags)) == 2, flags
        err = capsys.readouterr().err
        assert message in err, (flags, err)
        assert err.count("\n") == 1
        assert not (tmp_path / "run").exists()
    plain = ["--config=autoencoder:smoke", f"--workdir={tmp_path / 'run'}", f"--config.task.options.extractor={own}"]
    assert exit_code(train, *plain) == 2
    assert "extractor is for distances of features, which count nothing with" in capsys.readouterr().err


def test_another_run_may_measure_features(encoder, tmp_path):
    small.write_encoder(tmp_path / "other", seed=7)
    flag = f"--config.task.options.extractor=run(workdir='{tmp_path / 'other'}')"
    task = task_of(config_of(arguments(encoder, "x")[0], arguments(encoder, "x")[2], flag))
    other = load_run(tmp_path / "other")[0]["network"]
    jax.tree.map(np.testing.assert_array_equal, task.objective.objective.extractor, other)
    task.save(tmp_path)
    assert json.loads((tmp_path / "extractor.json").read_text())["model"] == model_hash(other)
    task.check(tmp_path)
    (tmp_path / "extractor.json").write_text(json.dumps({"model": "0" * 12}))
    with pytest.raises(ValueError, match="began with a feature extractor whose weights have the hash 000000000000"):
        task.check(tmp_path)


def test_features_are_those_of_images_in_the_range_that_they_are_made_for(encoder):
    """Of an autoencoder with an encoder of its own, which itself takes data of any scale."""
    network = "--config.network=autoencoder(image_shape=(8,8,1), channels=8, multipliers=(1,2), groups=4)"
    config = config_of(
        "--config=autoencoder:smoke",
        network,
        "--config.objective=autoencoding(adversary=None, perceptual_weight=0.5)",
        "--config.discriminator=none",
        f"--config.task.options.extractor=run(workdir='{encoder}')",
    )
    source = data.digits()
    for changes, right in (({}, True), ({"shift": 5.0, "scale": 6.0, "low": None, "high": None}, False)):
        changed = dataclasses.replace(source, **changes)
        if right:
            make_task(config, changed, make_mesh(), jax.random.key(0))
            continue
        with pytest.raises(ValueError, match=r"the data must have images normalised to \[-1, 1\].*None") as error:
            make_task(config, changed, make_mesh(), jax.random.key(0))
        assert "\n" not in str(error.value)


def test_published_weights_become_a_run(tmp_path, monkeypatch, capsys):
    tiny = {"patch": 2, "width": 8, "depth": 1, "heads": 2, "registers": 4, "table": 3, "mean": (0.5,), "std": (0.5,)}
    monkeypatch.setattr(ViT, "size", staticmethod(lambda name: tiny))
    rng, prefix = np.random.default_rng(0), "encoder.layer.0."
    sizes = {f"{prefix}attention.attention.{name}": (8, 8) for name in ("query", "key", "value")}
    sizes |= {f"{prefix}attention.output.dense": (8, 8), f"{prefix}mlp.fc1": (32, 8), f"{prefix}mlp.fc2": (8, 32)}
    sizes |= {"embeddings.patch_embeddings.projection": (8, 1, 2, 2)}
    weights = {f"{name}.weight": size for name, size in sizes.items()}
    weights |= {f"{name}.bias": size[:1] for name, size in sizes.items()}
    weights |= {f"{prefix}{name}": (8,) for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
    weights |= {f"{prefix}layer_scale{i}.lambda1": (8,) for i in (1, 2)}
    weights |= {"embeddings.cls_token": (1, 1, 8), "embeddings.register_tokens": (1, 4, 8)}
    weights |= {"embeddings.position_embeddings": (1, 10, 8)}
    save_file({n: rng.normal(size=s).astype(np.float32) for n, s in weights.items()}, tmp_path / "model.safetensors")
    folder = tmp_path / "run"
    import_dinov2(tmp_path / "model.safetensors", folder, image_shape=(8, 8, 1), resize=4)
    networks, recipe = load_run(folder)
    assert isinstance(recipe, EncoderRecipe)
    assert jax.eval_shape(ViT.encode, networks["network"], jnp.zeros((1, 8, 8, 1))).shape == (1, 2, 2, 8)
    task = task_of(
        config_of(
            "--config=rae:smoke", f"--config.encoder=run(workdir='{folder}')", "--config.network.options.latent=8"
        )
    )
    assert task.recipe.latent_shape(task.recipe.build_network(nnx.Rngs(0))) == (2, 2, 8)
    assert exit_code(evaluate, f"--workdir={folder}") == 2
    assert "an encoder is measured by what stands on it" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match="export to another folder"):
        import_dinov2(tmp_path / "model.safetensors", folder, image_shape=(8, 8, 1), resize=4)
    for shape in (256, (8, 8), (8, 8, 0)):
        with pytest.raises(ValueError, match="image_shape must"):  # without the types that tests check
            inspect.unwrap(import_dinov2)(tmp_path / "model.safetensors", tmp_path / "other", image_shape=shape)
    with pytest.raises(FileNotFoundError, match="the weights none are not there"):
        import_dinov2(tmp_path / "none", tmp_path / "other", image_shape=(8, 8, 1), resize=4)

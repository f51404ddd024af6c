"""Flows on the latents of an autoencoder: encoded once, sampled in pixels."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax import _cli, calibrate, data, evaluate, sample, train
from flowjax.recipe import Autoencoder, Recipe, Run, codec, export_run, load_run
from flowjax.training import make_mesh

pytestmark = pytest.mark.standard_promotion


def run(main, *arguments):
    """Runs a main in this process: exit code."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["main", *map(str, arguments)])
    return exit_.value.code


def write_autoencoder(folder, source, shape, seed=0, **changes):
    """A model with random weights whose latents have neither mean 0 nor deviation 1."""
    options = dict(image_shape=shape, channels=2, multipliers=(1, 1), groups=1, latent=3)
    recipe = Autoencoder(
        network={"name": "autoencoder", "options": options},
        data={"name": "digits", "options": {}},
        shape=shape,
        num_classes=None,
        **{name: getattr(source, name) for name in ("shift", "scale", "low", "high")} | changes,
    )
    network = recipe.build_network(nnx.Rngs(seed))
    network.encoder.unembed.bias[...] += 3.0
    export_run({"autoencoder": network}, recipe, folder)
    return folder


@pytest.fixture
def autoencoder(tmp_path):
    return write_autoencoder(tmp_path / "autoencoder", data.load("digits"), (8, 8, 1))


NETWORK = "dit(image_shape=(4,4,3), patch=2, width=8, depth=1, heads=1, num_classes=10)"


def arguments(folder, workdir):
    return [
        "--config=digits:smoke",
        f"--workdir={workdir}",
        f"--config.codec=run(workdir='{folder}')",
        f"--config.network={NETWORK}",
    ]


def test_latents_are_cached_normalised_and_belong_to_codec_and_data(autoencoder, monkeypatch):
    loaded, source = Run(workdir=str(autoencoder)).load(make_mesh()), data.load("digits")
    source = dataclasses.replace(source.take(100), shift=0.0, scale=1.0)  # the codec's own scale counts
    seen = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda network, x: seen.append(len(x)) or encode(network, x))
    first = codec.latents(loaded, source, make_mesh())
    assert sum(seen) == 128  # two blocks of 64
    z = np.asarray(loaded.networks["autoencoder"].encode(jnp.asarray((source.x - 8) / 8))[0])
    np.testing.assert_allclose(first.x, z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([first.shift, first.scale], [z.mean(), z.std()], rtol=1e-4)
    np.testing.assert_array_equal(first.cond, source.cond)
    assert (first.low, first.high, first.num_classes) == (None, None, 10)

    again = codec.latents(loaded, dataclasses.replace(source, cond=(source.cond + 1) % 10), make_mesh())
    assert sum(seen) == 128
    np.testing.assert_array_equal(again.x, first.x)
    assert not np.array_equal(again.cond, first.cond)  # labels are not part of the cache

    other = dataclasses.replace(source, x=source.x + np.float32(1e-3))
    codec.latents(loaded, other, make_mesh())
    assert sum(seen) == 256
    assert len(list((autoencoder / "latents").iterdir())) == 2


def test_a_folder_that_holds_something_else_is_refused(autoencoder):
    loaded, source = Run(workdir=str(autoencoder)).load(make_mesh()), data.load("digits").take(20)
    codec.latents(loaded, source, make_mesh())
    [folder] = (autoencoder / "latents").iterdir()
    record = json.loads((folder / "metadata.json").read_text())
    for spoiled in (json.dumps(record | {"codec": "0" * 12}), json.dumps(record | {"size": 19}), "", "[]"):
        (folder / "metadata.json").write_text(spoiled)
        with pytest.raises(ValueError, match="does not hold the latents that its name says; remove it"):
            codec.latents(loaded, source, make_mesh())
    shutil.rmtree(folder)
    codec.latents(loaded, source, make_mesh())


def test_an_interrupted_encoding_leaves_nothing_that_counts(autoencoder, monkeypatch):
    loaded, source = Run(workdir=str(autoencoder)).load(make_mesh()), data.load("digits").take(100)
    encode, calls = codec.encode, []

    def broken(network, x):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(network, x)

    monkeypatch.setattr(codec, "encode", broken)
    with pytest.raises(KeyboardInterrupt):
        codec.latents(loaded, source, make_mesh())
    assert not [path for path in (autoencoder / "latents").iterdir() if not path.name.startswith(".")]
    assert len(codec.latents(loaded, source, make_mesh()).x) == 100


def test_the_hash_of_a_set_on_disk_reads_some_of_it():
    x = np.random.default_rng(0).random((600, 2)).astype(np.float32)
    read = []
    records = data.Records(x.shape, x.dtype, lambda row: read.append(row) or x[row])
    assert codec.hash_of(records) == codec.hash_of(data.Records(x.shape, x.dtype, lambda row: x[row]))
    assert len(set(read)) == 256
    assert {0, 599} <= set(read)
    assert codec.hash_of(records) != codec.hash_of(data.Records(x.shape, x.dtype, lambda row: x[row] + 1))
    assert codec.hash_of(x) != codec.hash_of(x[::-1])


@pytest.mark.slow
def test_a_flow_on_latents_is_trained_sampled_measured_and_exported_in_pixels(autoencoder, tmp_path, monkeypatch):
    workdir = tmp_path / "flow"
    assert run(train, *arguments(autoencoder, workdir)) == 0
    report = json.loads((workdir / "report.json").read_text())
    assert any(name.startswith(("FD", "accuracy")) for name in report)
    networks, recipe = load_run(workdir)
    [cached] = (autoencoder / "latents").iterdir()
    known = json.loads((cached / "metadata.json").read_text())
    assert recipe.codec == {"shape": (4, 4, 3), "shift": known["shift"], "scale": known["scale"]}
    assert (recipe.shape, recipe.low, recipe.high, recipe.state_shape) == ((8, 8, 1), 0.0, 16.0, (4, 4, 3))
    assert recipe.runs["codec"]["workdir"] == "../autoencoder"
    assert set(networks) == {"network", "codec"}

    out = tmp_path / "samples.npz"
    assert run(sample, f"--workdir={workdir}", "--num=10", f"--out={out}") == 0
    x = np.load(out)["x"]
    assert x.shape == (10, 8, 8, 1)
    assert out.with_suffix(".png").exists()
    # By hand: the flow's endpoint in latents, out of their scale, decoded, out of the scale of the data.
    flow, times = recipe.flow(networks["network"]), fj.times.uniform(recipe.steps)
    noise_key, _ = jax.random.split(jax.random.key(0))
    z = fj.solve(recipe.field(flow), fj.solvers.Heun(), fj.noise(noise_key, (10, 4, 4, 3)), times, cond=np.arange(10)).x
    expected = networks["codec"].decode(z * known["scale"] + known["shift"]) * 8 + 8
    np.testing.assert_allclose(x, expected, rtol=2e-3, atol=2e-3)

    assert run(evaluate, f"--workdir={workdir}", "--num=40", "--steps=2") == 0
    export_run(networks, recipe, tmp_path / "model")
    shutil.rmtree(autoencoder)
    shutil.rmtree(workdir)
    assert run(sample, f"--workdir={tmp_path / 'model'}", "--num=10", f"--out={tmp_path / 'again.npz'}") == 0
    np.testing.assert_allclose(np.load(tmp_path / "again.npz")["x"], x, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_students_and_adapters_of_a_flow_on_latents_make_pixels(autoencoder, tmp_path, capsys):
    """At a rate of nothing both still answer as the flow that they stand on."""
    flow = tmp_path / "flow"
    assert run(train, *arguments(autoencoder, flow)) == 0
    still = ["--config.optimizer.options.rate=1e-12", "--config.train.steps=1"]
    made = {}
    for name, label in (("distill", "teacher"), ("adapters", "base")):
        given = [f"--config={name}:smoke", f"--config.{label}.options.workdir={flow}", *still]
        assert run(train, *given, f"--workdir={tmp_path / name}") == 0, capsys.readouterr().err
        _, recipe = load_run(tmp_path / name)
        assert (recipe.codec, recipe.runs["codec"]["workdir"]) == (Recipe.load(flow).codec, "../autoencoder")
    for name in ("flow", "distill", "adapters"):
        out = tmp_path / f"{name}.npz"
        assert run(sample, f"--workdir={tmp_path / name}", "--num=4", "--steps=2", "--guidance=1", f"--out={out}") == 0
        made[name] = np.load(out)["x"]
        assert made[name].shape == (4, 8, 8, 1)
    np.testing.assert_allclose(made["distill"], made["flow"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(made["adapters"], made["flow"], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_what_needs_the_codec_says_so(autoencoder, tmp_path, capsys):
    workdir = tmp_path / "flow"
    assert run(train, *arguments(autoencoder, workdir)) == 0
    flow, recipe = fj.load(workdir)
    with pytest.raises(ValueError, match="this flow makes latents: pass codec="):
        recipe.generate(flow, 2, key=jax.random.key(0))
    capsys.readouterr()
    assert run(calibrate, f"--workdir={workdir}", "--what=schedule") == 2
    assert "calibrations are for flows on the data itself" in capsys.readouterr().err
    with pytest.raises(ValueError, match="autoencoder of examples of another shape or scale"):
        dataclasses.replace(recipe, scale=1.0)
    for change in ({"shape": (4, 4, 3)}, {**recipe.codec, "scale": 0.0}, {**recipe.codec, "shape": (4.5,)}):
        with pytest.raises(ValueError, match="codec"):
            dataclasses.replace(recipe, codec=change)
    with pytest.raises(ValueError, match="needs the run 'codec'"):
        dataclasses.replace(recipe, runs={})

    # Another autoencoder in the same place: neither used nor trained on with.
    shutil.rmtree(autoencoder)
    write_autoencoder(autoencoder, data.load("digits"), (8, 8, 1), seed=1)
    capsys.readouterr()
    assert run(sample, f"--workdir={workdir}", f"--out={tmp_path / 'x.npz'}") == 2
    assert "was made with the run 'codec'" in capsys.readouterr().err
    assert run(train, *arguments(autoencoder, workdir)) == 2
    assert "began with a codec whose weights have the hash" in capsys.readouterr().err


def refusal(capsys, tmp_path, *more):
    assert run(train, *more) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "flow").exists()
    return err


def test_codecs_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, capsys, autoencoder):
    source = data.load("digits")
    other_shape = write_autoencoder(tmp_path / "shape", source, (16, 16, 1))
    other_range = write_autoencoder(tmp_path / "range", source, (8, 8, 1), low=0.0, high=255.0)
    for folder, message in (
        (other_shape, "its shape of the examples is (16, 16, 1), that of the data (8, 8, 1)"),
        (other_range, "its range of the values is (0.0, 255.0), that of the data (0.0, 16.0)"),
        (tmp_path / "none", "is not the workdir of a training run"),
    ):
        assert message in refusal(capsys, tmp_path, *arguments(folder, tmp_path / "flow"))
        assert not (folder / "latents").exists()
    wrong = arguments(autoencoder, tmp_path / "flow")
    assert "run has no option workdr; did you mean workdir?" in refusal(
        capsys, tmp_path, *wrong, "--config.codec=run(workdr=x)"
    )
    assert "name the trained run" in refusal(capsys, tmp_path, *wrong, "--config.codec=run(workdir='')")
    for option in ("which=best", "dtype=bfloat16"):
        assert "leave which, average and dtype out" in refusal(
            capsys, tmp_path, *wrong, f"--config.codec.options.{option}"
        )
    assert "does not take samples of shape (4, 4, 3)" in refusal(
        capsys, tmp_path, *wrong[:-1], "--config.network.options.width=8"
    )
    assert "batches are latents here" in refusal(capsys, tmp_path, *wrong, "--config.data.augment.flip=True")
    assert not (autoencoder / "latents").exists()


def test_another_kind_of_run_is_no_codec(tmp_path, capsys):
    flow = tmp_path / "other"
    recipe = Recipe(
        network={"name": "mlp", "options": {"dim": 2, "width": 8, "depth": 1}},
        path={"name": "linear", "options": {}},
        prediction="velocity",
        data={"name": "toy2d", "options": {"law": "spiral"}},
        shape=(2,),
        shift=0.0,
        scale=1.0,
        low=None,
        high=None,
        num_classes=None,
        solver={"name": "heun", "options": {}},
        steps=2,
    )
    export_run({"network": recipe.build_network(nnx.Rngs(0))}, recipe, flow)
    err = refusal(capsys, tmp_path, *arguments(flow, tmp_path / "flow"))
    assert "is a run of the kind flow, and an autoencoder is needed" in err

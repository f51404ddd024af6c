"""Codecs beside an autoencoder, and what all of them can be asked for."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from runs import config_of, exit_code, task_of
from small import network as filled

import flowjax as fj
from flowjax import data, sample, train
from flowjax.data import Batches
from flowjax.recipe import WEIGHTS, Autoencoder, Base, Recipe, Request, Run, export_run, load_run
from flowjax.recipe.codec import latents
from flowjax.recipe.codecs import Codec
from flowjax.recipe.decoding import Elements
from flowjax.training import make_mesh

pytestmark = pytest.mark.standard_promotion
DIT = "dit(image_shape=({}), patch=2, width=8, depth=1, heads=1, num_classes=10)"


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """Random weights; latents far from mean 0 and deviation 1, another one for each entry."""
    folder, source = tmp_path_factory.mktemp("run") / "autoencoder", data.load("digits")
    options = dict(
        image_shape=(8, 8, 1), channels=2, multipliers=(1, 1), blocks=1, groups=1, latent=3, latent_scale=0.25
    )
    recipe = Autoencoder(
        network={"name": "kl_autoencoder", "options": options},
        data={"name": "digits", "options": {}},
        shape=(8, 8, 1),
        num_classes=None,
        **{name: getattr(source, name) for name in ("shift", "scale", "low", "high")},
    )
    network = recipe.build_network(nnx.Rngs(0))
    network.encoder.mix.bias[...] = jnp.arange(6.0)
    export_run({"autoencoder": network}, recipe, folder)
    return folder


def task(codec, shape, *more):
    return task_of(
        config_of("--config=digits:smoke", f"--config.codec={codec}", f"--config.network={DIT.format(shape)}", *more)
    )


def written(task, folder):
    """The workdir of a run that has been trained for no step."""
    folder.mkdir()
    task.save(folder)
    fj.weights.write(folder / WEIGHTS, filled(task.recipe))
    return load_run(folder)


def states(recipe, networks, num):
    """Where the flow ends, before anything is decoded."""
    field, solver, grid, _ = recipe.prepared(networks, Request(num=num))
    key, _ = jax.random.split(jax.random.key(0))
    noise = fj.noise(key, (num, *recipe.state_shape))
    return fj.solve(field, solver, noise, grid, cond=np.arange(num) % 10).x


def refused(message, codec, shape="4,4,3"):
    with pytest.raises(ValueError, match=message) as error:
        task(codec, shape)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_flow_with_the_codec_identity_is_one_without(tmp_path):
    own, plain = task("identity", "8,8,1"), task("none", "8,8,1")
    for step in (0, 3):
        first, second = (Batches(t.training, 8).batch(step) for t in (own, plain))
        np.testing.assert_array_equal(first["x1"], second["x1"])
        np.testing.assert_array_equal(first["cond"], second["cond"])
    made = []
    for name, one in (("own", own), ("plain", plain)):
        networks, recipe = written(one, tmp_path / name)
        made.append(recipe.sample(networks, Request(num=4)).x)
    np.testing.assert_array_equal(*made)
    assert Recipe.load(tmp_path / "own").codec == {"shape": (8, 8, 1), "shift": 0.0, "scale": 1.0}


@pytest.mark.slow
def test_patches_are_the_pixels_and_come_back(tmp_path):
    one = task("patch(size=2)", "4,4,4")
    x = Batches(one.training, 8).batch(1)["x1"]
    pixels = Batches(task("none", "8,8,1").training, 8).batch(1)["x1"]
    np.testing.assert_array_equal(x[:, 1, 2], pixels[:, 2:4, 4:6, 0].reshape(8, 4))
    networks, recipe = written(one, tmp_path / "flow")
    assert recipe.runs["codec"]["workdir"] is None
    assert recipe.codec == {"shape": (4, 4, 4), "shift": 0.0, "scale": 1.0}
    z = np.asarray(states(recipe, networks, 4))
    expected = z.reshape(4, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(4, 8, 8, 1) * 8 + 8
    np.testing.assert_allclose(recipe.sample(networks, Request(num=4)).x, expected, rtol=1e-5, atol=1e-5)
    export_run(networks, recipe, tmp_path / "model")
    shutil.rmtree(tmp_path / "flow")
    again, copy = load_run(tmp_path / "model")
    assert copy.runs == recipe.runs
    np.testing.assert_allclose(copy.sample(again, Request(num=4)).x, expected, rtol=1e-5, atol=1e-5)


def test_edits_know_the_scale_of_every_entry(tmp_path):
    """What a mask keeps comes back as it was, through latents."""
    networks, recipe = written(task("patch(size=2, statistics=elements)", "4,4,4"), tmp_path / "flow")
    pictures = data.load("digits").x[:2].astype(np.float32)
    np.savez(tmp_path / "pictures.npz", x=pictures)
    np.savez(tmp_path / "mask.npz", x=np.ones((1, 8, 8, 1), np.float32))
    asked = {name: str(tmp_path / f"{file}.npz") for name, file in (("picture", "pictures"), ("mask", "mask"))}
    found = recipe.sample(networks, Request(num=2, batch=8, steps=2, edit="inpaint", conditions=asked))
    np.testing.assert_allclose(found.x, pictures, atol=1e-3)
    asked = {"picture": asked["picture"]}
    with pytest.raises(ValueError, match="this flow moves latents, and its operators would measure these"):
        recipe.check(Request(num=2, steps=2, edit="restore(operator=pooled(factor=2))", conditions=asked))


def test_another_codec_than_that_of_the_training_is_refused(tmp_path):
    one = task("patch(size=2)", "4,4,4")
    written(one, tmp_path / "flow")
    one.check(tmp_path / "flow")
    with pytest.raises(ValueError, match="began with a codec whose weights have the hash") as error:
        task("identity", "8,8,1").check(tmp_path / "flow")
    assert "identity has" in str(error.value)
    file = tmp_path / "flow" / "recipe.json"
    values = json.loads(file.read_text())
    values["runs"]["codec"]["model"] = "0" * 12
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="by the hash 000000000000, and it has another"):
        load_run(tmp_path / "flow")
    values["runs"]["codec"]["recipe"]["network"] = {"name": "run", "options": {"workdir": "/"}}
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="codec without weights 'run'"):
        Base.load(tmp_path / "flow")


@pytest.mark.parametrize(
    "codec",
    [
        "patch(size=2, statistics=elements)",
        pytest.param("run(workdir='{}', statistics=elements)", marks=pytest.mark.slow),
    ],
)
def test_every_entry_is_normalised_by_itself(tmp_path, request, codec):
    autoencoder = request.getfixturevalue("autoencoder") if codec.startswith("run") else None
    channels = 3 if codec.startswith("run") else 4
    one = task(codec.format(autoencoder), f"4,4,{channels}")
    source = one.training
    assert source.shift.shape == source.scale.shape == (4, 4, channels)
    normal = source.normalize(np.asarray(source.x)).astype(float)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-4)
    variance = np.asarray(source.x).astype(float).var(0)
    np.testing.assert_allclose(normal.var(0), variance / (variance + 1e-5), atol=1e-3)
    np.testing.assert_allclose(source.denormalize(source.normalize(source.x)), source.x, rtol=1e-5, atol=1e-5)

    networks, recipe = written(one, tmp_path / "flow")
    assert recipe.codec.keys() == {"shape", "shift", "scale", "elements"}
    assert isinstance(networks["codec"], Elements)
    z = states(recipe, networks, 4) * source.scale[None] + source.shift[None]
    expected = np.asarray(one.codec.networks[one.codec.recipe.label].decode(z)) * 8 + 8
    np.testing.assert_allclose(recipe.sample(networks, Request(num=4)).x, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="pass codec= from load_run"):
        recipe.generate(recipe.flow(networks["network"]), 2, key=jax.random.key(0), codec=networks["codec"].network)

    export_run(networks, recipe, tmp_path / "model", "float16")
    half, copy = load_run(tmp_path / "model", dtype="bfloat16")
    assert half["codec"].shift.dtype == np.float32  # whatever the weights are
    np.testing.assert_array_equal(half["codec"].scale, source.scale)
    assert copy.codec == recipe.codec

    file = tmp_path / "flow" / "statistics.npz"
    arrays = dict(np.load(file))
    np.savez(file, shift=arrays["shift"] + np.float32(0.01), scale=arrays["scale"])
    with pytest.raises(ValueError, match="has changed since the run was trained") as error:
        load_run(tmp_path / "flow")
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="bring it back"):
        load_run(tmp_path / "flow")


@pytest.mark.parametrize("statistics", ["all", "elements"])
def test_a_run_goes_on_with_its_scale_where_latents_were_encoded_again(tmp_path, statistics):
    """Which is theirs but for rounding: batches, recipe and statistics stay those that it began with, bit by bit."""
    codec, workdir = f"patch(size=2, statistics={statistics})", tmp_path / "flow"
    began = task(codec, "4,4,4")
    workdir.mkdir()
    began.save(workdir)
    files = ["recipe.json", "statistics.npz"][: 1 + (statistics == "elements")]
    before = [(workdir / name).read_bytes() for name in files]

    def again(rounding):
        one = task(codec, "4,4,4")
        source = one.training  # in which batches are cut before the workdir is looked at
        made = {name: getattr(source, name) * (1 + rounding) for name in ("shift", "scale")}
        one.__dict__["training"] = dataclasses.replace(source, **made)
        return one, Batches(one.training, 8)

    one, batches = again(1e-6)
    assert one.recipe.codec != began.recipe.codec
    one.check(workdir)
    assert one.recipe.codec == began.recipe.codec
    np.testing.assert_array_equal(batches.batch(1)["x1"], Batches(began.training, 8).batch(1)["x1"])
    one.save(workdir)
    assert [(workdir / name).read_bytes() for name in files] == before
    other, _ = again(1e-2)
    with pytest.raises(ValueError, match=r"the data changed since .* its latents were") as error:
        other.check(workdir)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="the data changed since"):
        task("patch(size=2, statistics=own)", "4,4,4").check(workdir)


@pytest.mark.slow
def test_the_scale_of_the_codec_itself(tmp_path, autoencoder):
    one = task(f"run(workdir='{autoencoder}', statistics=own)", "4,4,3")
    assert one.recipe.codec == {"shape": (4, 4, 3), "shift": 0.0, "scale": 4.0}
    network, x = one.codec.networks["autoencoder"], jnp.asarray((one.source.x[:8] - 8) / 8)
    np.testing.assert_allclose(one.training.normalize(one.training.x[:8]), network.to_latents(x), rtol=1e-4, atol=1e-4)


def test_statistics_of_all_numbers_without_weights():
    one = task("identity(statistics=all)", "8,8,1")
    x = (np.asarray(one.source.x, float) - 8) / 8
    np.testing.assert_allclose([one.training.shift, one.training.scale], [x.mean(), x.std()], rtol=1e-6)
    assert one.recipe.codec["scale"] == one.training.scale


@pytest.mark.slow
def test_latents_are_drawn_from_the_posterior_anew(tmp_path, autoencoder):
    one = task(f"run(workdir='{autoencoder}', sample=True)", "4,4,3")
    network = one.codec.networks["autoencoder"]
    mean, log_variance = network.encode(jnp.asarray((one.source.x[:64] - 8) / 8))
    np.testing.assert_allclose(one.training.x[:64], mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.training.deviation[:64], np.exp(log_variance / 2), rtol=1e-4)
    assert one.recipe.codec["sample"] is True
    [folder] = [path for path in (autoencoder / "latents").iterdir() if path.name.endswith("-posterior")]
    assert json.loads((folder / "metadata.json").read_text())["posterior"] is True
    # Normalised by what is drawn, not by the means.
    many = np.concatenate([Batches(one.training, 1797, seed=seed).batch(0)["x1"] for seed in range(3)])
    np.testing.assert_allclose([many.mean(), many.std()], [0, 1], atol=0.02)
    written(one, tmp_path / "flow")
    assert Codec.of_recipe(Recipe.load(tmp_path / "flow").codec).sample  # for students


@pytest.mark.slow
def test_tiles_reach_sampling(tmp_path, autoencoder):
    made = []
    for name, more in (("whole", ""), ("one", ", tile=4"), ("tiles", ", tile=3, overlap=2")):
        networks, recipe = written(task(f"run(workdir='{autoencoder}'{more})", "4,4,3"), tmp_path / name)
        made.append(recipe.sample(networks, Request(num=4)).x)
    assert recipe.codec["tiles"] == (3, 2)
    np.testing.assert_allclose(made[1], made[0], rtol=1e-3, atol=1e-3)
    assert made[2].shape == made[0].shape
    assert not np.allclose(made[2], made[0])


@pytest.mark.slow
def test_a_folder_of_its_own_for_latents(tmp_path, autoencoder):
    before = sorted((autoencoder / "latents").iterdir()) if (autoencoder / "latents").exists() else []
    one = task(f"run(workdir='{autoencoder}', cache='{tmp_path / 'a'}')", "4,4,3")
    two = task(f"patch(size=2, cache='{tmp_path / 'b'}', statistics=elements)", "4,4,4")
    for each, name in ((one, "a"), (two, "b")):
        assert len(each.training.x) == 1797
        [folder] = (tmp_path / name).iterdir()
        assert folder.name.startswith(each.codec.model)
        assert (folder / "statistics.npz").exists()
    np.testing.assert_array_equal(two.training.x, task("patch(size=2)", "4,4,4").training.x)
    assert before == (sorted((autoencoder / "latents").iterdir()) if before else [])


@pytest.mark.slow
def test_latents_of_an_older_run_stay_what_they_are(autoencoder):
    """A folder without statistics of entries and digests, whose scale was measured in one pass: it counts."""
    loaded, source = Run(workdir=str(autoencoder)).load(make_mesh()), data.load("digits").take(30)
    first = latents(loaded, source, make_mesh())
    [folder] = [
        path
        for path in (autoencoder / "latents").iterdir()
        if json.loads((path / "metadata.json").read_text())["size"] == 30
    ]
    (folder / "statistics.npz").unlink()
    record = json.loads((folder / "metadata.json").read_text())
    del record["digests"]
    shift = first.shift + 0.1 * first.scale
    (folder / "metadata.json").write_text(json.dumps(record | {"shift": shift}))
    again = latents(loaded, source, make_mesh())
    assert (again.shift, again.scale) == (shift, first.scale)
    assert not (folder / "statistics.npz").exists()
    assert latents(loaded, source, make_mesh(), Codec(statistics="elements")).shift.shape == (4, 4, 3)


def test_what_a_codec_cannot_be_asked_for_is_refused():
    refused("the codec patch.* has none|patch has none", "patch(sample=True)")
    refused("patches of 3 x 3 do not divide examples of shape", "patch(size=3)")
    refused("size must be at least 1", "patch(size=0)")
    refused("statistics 'element'.*did you mean 'elements'", "patch(statistics=element)")
    refused("overlap=2 is that of tiles", "run(workdir=a, overlap=2)")
    refused("overlap must be", "run(workdir=a, tile=4, overlap=4)")
    refused("a is not the workdir of a training run", "run(workdir=a)")
    refused("unknown codec 'pach'; did you mean 'patch'", "pach")
    refused("patch has no option workdir", "patch(workdir=a)")
    refused("does not take samples of shape", "patch(size=2)", "8,8,1")


def test_recipes_of_codecs_are_checked():
    one = task("patch(size=2, tile=3)", "4,4,4").recipe
    for change in ({"tiles": 3}, {"tiles": (3, 3)}, {"tiles": (1, 0)}, {"elements": "a"}, {"sample": 1}, {"other": 1}):
        with pytest.raises(ValueError, match="codec") as error:
            dataclasses.replace(one, codec={**one.codec, **change})
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_runs_students_and_pairs_with_scales_of_entries(tmp_path, autoencoder, capsys):
    """Through the mains, resumed, distilled and adapted; drawn from the posterior and decoded in tiles."""
    flow = tmp_path / "flow"
    codec = f"run(workdir='{autoencoder}', statistics=elements, sample=True, tile=3)"
    arguments = ["--config=digits:smoke", f"--config.codec={codec}", f"--config.network={DIT.format('4,4,3')}"]
    assert exit_code(train, *arguments, f"--workdir={flow}") == 0
    assert exit_code(train, *arguments, f"--workdir={flow}") == 0
    assert "training is complete" in capsys.readouterr().out
    known, made = Recipe.load(flow).codec, {}
    assert exit_code(sample, f"--workdir={flow}", f"--pairs={tmp_path / 'pairs'}", "--num=16", "--batch=8") == 0
    still = ["--config.optimizer.options.rate=1e-12", "--config.train.steps=1"]
    stored = f"--config.coupling=stored(path='{tmp_path / 'pairs'}')"
    for name, config, more in (
        ("student", "distill", [f"--config.teacher.options.workdir={flow}"]),
        ("adapters", "adapters", [f"--config.base.options.workdir={flow}"]),
        ("rectified", "rectified", [f"--config.teacher.options.workdir={flow}", stored]),
    ):
        workdir = tmp_path / name
        assert exit_code(train, f"--config={config}:smoke", *more, *still, f"--workdir={workdir}") == 0, (
            capsys.readouterr().err
        )
        _, recipe = load_run(workdir)
        assert recipe.codec == known
        assert (workdir / "statistics.npz").exists()
    for name in ("flow", "student", "adapters"):
        out = tmp_path / f"{name}.npz"
        assert (
            exit_code(sample, f"--workdir={tmp_path / name}", "--num=4", "--steps=2", "--guidance=1", f"--out={out}")
            == 0
        )
        made[name] = np.load(out)["x"]
    np.testing.assert_allclose(made["student"], made["flow"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(made["adapters"], made["flow"], rtol=1e-3, atol=1e-3)

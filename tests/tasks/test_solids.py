"""Solids as users make them: three runs, their chain, students, what is written, what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from runs import config_of, exit_code, task_of

from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax.data import Batches
from flowjax.geometry.solids import Solids
from flowjax.recipe import Chain, Request, Samples, export_run, link, load_run
from flowjax.recipe.report import picture
from flowjax.training import make_mesh

pytestmark = pytest.mark.standard_promotion
SMALL = ("--config.data.options.size=64", "--config.data.options.resolution=8", "--config.data.options.view=16")
SHORT = tuple(f"--config.train.{name}=1" for name in ("report_every", "sample_every", "checkpoint_every"))
SHORT += ("--config.train.steps=2", "--config.train.batch=8")
SHOWN = ("--config.sample.num=16", "--config.sample.batch=8", "--config.sample.steps=2")
TINY = tuple(f"--config.network.options.{o}" for o in ("image_shape=16,16,3", "width=24", "depth=1"))
DETAILS = ("--config.network.options.resolution=8", *TINY)
CONDITION = "--config.task.options.conditions.structure.options.block=1"
ROOM = ("--config.data.options.voxels=256", "--config.task.options.conditions.structure.options.voxels=256")


def details_of(*flags):
    return config_of("--config=solids:details", *SMALL, *SHORT, *SHOWN, *DETAILS, *flags)


def test_details_are_padded_sets():
    """Batches have masks, conditions are by name, guidance leaves the structure."""
    task = task_of(details_of())
    batch = Batches(task.training, 8, 0).batch(0)
    assert batch["x1"].shape == (8, 160, 30)
    assert {name: c.shape for name, c in batch["cond"].items()} == {
        "image": (8, 16, 16, 3),
        "structure": (8, 8, 8, 8, 1),
    }
    np.testing.assert_array_equal(batch["mask"], (batch["x1"] != 0).any(-1))
    draws = task.objective.draw(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    assert draws.mask.shape == (8, 160)
    recipe = task.recipe
    assert recipe.padded == "structure"
    assert recipe.null["structure"] is None
    assert recipe.form == "solids"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--config.objective=mean_flow",), "has no masks: take flow_matching"),
        (("--config.coupling=optimal_transport",), "padding is no part of a set"),
        (
            ("--config.task.options.conditions.structure.options.voxels=99",),
            "has room for 99 entries, samples have 160",
        ),
        (("--config.network.options.image_shape=8,8,3",), "expected pictures"),
        (("--config.data.options.block=1", "--config.network.options.block=1", *ROOM), "give data, network and cond"),
        (("--config.data.options.block=1", CONDITION, *ROOM), r"\(11,\) and \(30,\)"),
        ((CONDITION,), "give data, network and condition the same block"),
        (("--config.network.options.block=1",), r"\(30,\) and \(11,\)"),
        (("--config.sample.solver=adaptive",), "padded sets, and adaptive takes norms"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        task_of(details_of(*flags))


def test_blocks_of_another_size():
    """The mask has the entries of the data, and the form their blocks."""
    flags = ("--config.data.options.block=1", "--config.network.options.block=1", CONDITION, *ROOM)
    task = task_of(details_of(*flags))
    batch = Batches(task.training, 8, 0).batch(0)
    np.testing.assert_array_equal(batch["mask"], (batch["x1"] != 0).any(-1))
    assert task.recipe.build_form().block == 1
    assert task.recipe.build_form("solids(frames=0)") == Solids(block=1, frames=0)
    with pytest.raises(ValueError, match="block=2 has 30 numbers, and samples have 11"):
        task.recipe.build_form("solids(block=2)")


def test_forms_of_other_samples_are_refused():
    recipe = task_of(details_of()).recipe
    assert recipe.build_form("solids(mesh=ply)").mesh == "ply"
    with pytest.raises(ValueError, match=r"form=voxels: samples of this run have the form solids"):
        recipe.build_form("voxels")


def test_the_contact_sheet_has_the_form_that_is_asked_for(tmp_path):
    recipe = task_of(details_of()).recipe
    grids = np.zeros((2, 8, 8, 8, 1), np.uint8)
    grids[:, 2:6, 2:6, 2:5] = 1
    samples = Samples(x=np.zeros((2, 160, 30)), cond={"structure": grids}, evaluations=1, network_calls=1)
    picture(recipe, samples, tmp_path / "sheet.png", form=recipe.build_form("solids(size=8)"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 10 + 2, 10 + 2)


def test_what_goes_over_whole_samples_is_refused():
    """Solvers, fields and rules at any depth; a velocity is 0 in padding, so that its inner products may stay."""
    recipe = task_of(details_of()).recipe
    refused = {
        "dpm_adaptive": {"solver": "dpm_adaptive"},
        "sada": {"fields": ["every_nth", "sada"]},
        "thresholded": {"fields": ["thresholded"]},
        "APG": {"guidance": "interval(rule=apg(scale=2), start=0.3, end=0.31)"},
        "Rescaled": {"guidance": "rescaled(rule=cfg(scale=2))"},
        "Tangential": {"guidance": "tangential(scale=2, space=noise)"},
    }
    for name, options in refused.items():
        with pytest.raises(ValueError, match=f"padded sets, and {name} takes norms, means or quantiles over their pad"):
            recipe.check(Request(num=2, batch=2, **options))
    kept = ("cfg(scale=2)", "raag", "cfg_zero_star(scale=2)", "tangential(scale=2)", "channels(rule=cfg(scale=2))")
    for options in ({"fields": ["every_nth"]}, *({"guidance": rule} for rule in kept)):
        recipe.check(Request(num=2, batch=2, **options))
    of_data = dataclasses.replace(recipe, prediction="data")
    for name, rule in (("RAAG", "raag"), ("CFGZeroStar", "cfg_zero_star(scale=2)")):
        with pytest.raises(ValueError, match=f"padded sets, and {name} takes"):
            of_data.check(Request(num=2, batch=2, guidance=rule))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"solver": "consistency"}, {"solver": "unipc"}, {"guidance": "cfg_zero_star(scale=3)"}],
    ids=lambda options: next(iter(options.values()), "euler"),
)
def test_padding_changes_no_sample(options):
    """What is asked for and not refused gives equal samples with more room."""
    grids, made = np.zeros((2, 8, 8, 8, 1), np.float32), []
    grids[0, 2:6, 2:6, 2:5] = grids[1, 1:3] = 1
    image = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    for room in (64, 160):
        voxels = (f"--config.data.options.voxels={room}", ROOM[1].replace("256", str(room)))
        recipe = task_of(details_of(*voxels)).recipe
        recipe.check(Request(num=2, batch=2, **options))
        network = recipe.build_network(nnx.Rngs(0))
        rng = np.random.default_rng(1)
        network = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.1, a.shape), a.dtype), network)  # noqa: B023
        field = recipe.field(recipe.flow(network), options.get("guidance"))
        more = dict(key=jax.random.key(0), cond={"image": image, "structure": grids}, batch=2, steps=4)
        made.append(recipe.generate(field, 2, solver=options.get("solver"), **more).x)
    few, many = made
    assert float(np.abs(few).max()) > 0.1
    assert (many[:, 64:] == 0).all()
    np.testing.assert_allclose(many[:, :64], few, atol=2e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An autoencoder, both flows, their chain, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("solids")
    code = lambda *flags: exit_code(train_main, *flags)  # noqa: E731
    smoke = ("--config=solids:smoke", "--config.data.options.view=16")
    assert code(*smoke, f"--workdir={folder / 'voxels'}") == 0
    structure = ("--config=solids:structure", f"--config.codec.options.workdir={folder / 'voxels'}")
    grid = "--config.network.options.grid_shape=2,2,2,2"
    assert code(*structure, f"--workdir={folder / 'structure'}", grid, *SMALL, *SHORT, *SHOWN, *TINY) == 0
    details = ("--config=solids:details", f"--workdir={folder / 'details'}")
    assert code(*details, *SMALL, *SHORT, *SHOWN, *DETAILS) == 0
    named = f"--runs=a={folder / 'structure'},b={folder / 'details'}"
    assert exit_code(link, named, "--into=structure", f"--out={folder / 'chain'}") == 0
    (folder / "views").mkdir()
    for i in (0, 1):
        Image.new("RGB", (16, 16), (200, 30 * i, 60)).save(folder / "views" / f"{i}.png")
    return folder


@pytest.mark.slow
def test_a_chain_makes_meshes_of_pictures(runs, tmp_path, capsys):
    flags = [f"--workdir={runs / 'chain'}", f"--cond.image={runs / 'views'}", "--num=3", "--batch=8"]
    form = "--form=solids(mesh=ply, points=50, frames=2, size=16)"
    assert exit_code(sample_main, *flags, form, f"--out={tmp_path / 'made.npz'}") == 0
    said = capsys.readouterr().out
    assert "3 of 3 samples as meshes (ply), points, turntables" in said
    with np.load(tmp_path / "made.npz") as held:
        assert held["x"].shape == (3, 160, 30)
        assert held["cond_structure"].shape == (3, 8, 8, 8, 1)
        np.testing.assert_array_equal(held["cond_image"][0, 0, 0], [200, 0, 60])
        there = (held["x"] != 0).any(-1)
    assert (tmp_path / "made.png").exists()
    assert there.any(1).sum() * 3 == len(list((tmp_path / "made").iterdir()))  # empty ones have no mesh, but a picture
    assert exit_code(sample_main, *flags, form, f"--out={tmp_path / 'made.npz'}") != 0
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert exit_code(sample_main, *flags, "--form=solids(mesh=stp)", f"--out={tmp_path / 'b.npz'}") != 0
    assert "mesh" in capsys.readouterr().err


def test_a_chain_names_the_samples_that_do_not_fit():
    """All of them, counted from the first sample of all, and what to do."""
    last = task_of(details_of("--config.data.options.voxels=50", ROOM[1].replace("256", "50"))).recipe
    network = {"name": "voxel_dit", "options": {"grid_shape": (8, 8, 8, 1), "patch": 4}}
    grids = dict(shape=(8, 8, 8, 1), form="voxels", conditions=None, num_classes=None)
    first = dataclasses.replace(last, network=network, **grids)
    runs = {"a": first, "b": last}
    runs = {k: {"workdir": k, "model": "", "recipe": dataclasses.asdict(recipe)} for k, recipe in runs.items()}
    of_data = {k: getattr(last, k) for k in ("data", "shape", "shift", "scale", "low", "high", "num_classes", "form")}
    chain = Chain(network={}, stages=("a", "b"), into=("structure",), runs=runs, **of_data)
    full = np.zeros((4, 8, 8, 8, 1), np.float32)
    full[[1, 3]] = 1  # of 64 blocks the inner 8 have no surface
    message = (
        r"the stage b does not take sample 11, 13 of the stage a: the structure has 56 active blocks of 2\^3 voxels, "
        "and there is room for voxels=50: .*; try another seed or fewer samples, or sample a alone and choose"
    )
    with pytest.raises(ValueError, match=message):
        chain._taken(1, full, 10)
    np.testing.assert_array_equal(chain._taken(1, full[::2], 10), full[::2])


@pytest.mark.slow
def test_samples_depend_on_neither_batch_nor_devices(runs):
    grids = np.zeros((3, 8, 8, 8, 1), np.float32)
    grids[:, 2:6, 2:6, 2:5] = 1
    cond = {"image": np.zeros((3, 16, 16, 3), np.float32), "structure": grids}
    made = []
    for batch, mesh in ((8, make_mesh()), (3, make_mesh(devices=jax.devices()[:1]))):
        networks, recipe = load_run(runs / "details", mesh)
        field, key = recipe.field(recipe.flow(networks["network"])), jax.random.key(0)
        made.append(recipe.generate(field, 3, key=key, cond=cond, batch=batch, mesh=mesh).x)
    one, two = made
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert len({row.tobytes() for row in one}) == 3  # each has its own noise
    assert (one[:, 27:] == 0).all()


@pytest.mark.slow
def test_details_alone_need_a_structure(runs, tmp_path, capsys):
    flags = (f"--workdir={runs / 'details'}", "--num=2", f"--out={tmp_path / 'made.npz'}")
    assert exit_code(sample_main, *flags) != 0
    assert "details need a structure" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    grids = np.zeros((2, 8, 8, 8, 1), np.float32)
    grids[:, 2:6, 2:6, 2:5] = 1
    np.savez(tmp_path / "grids.npz", x=grids)
    more = (f"--cond.structure={tmp_path / 'grids.npz'}", "--form=solids(mesh=none, points=0, frames=0)")
    assert exit_code(sample_main, *flags, *more) == 0


@pytest.mark.slow
def test_a_chain_is_exported_whole(runs, tmp_path):
    networks, recipe = load_run(runs / "chain")
    assert set(networks) == {"a", "a.codec", "b"}
    export_run(networks, recipe, tmp_path / "copy")
    again, copied = load_run(tmp_path / "copy")
    request = Request(num=2, batch=8, conditions={"image": str(runs / "views")})
    first, second = recipe.sample(networks, request), copied.sample(again, request)
    np.testing.assert_array_equal(first.x, second.x)
    assert first.evaluations == 4  # two steps of both


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["structure", "details"])
def test_students_of_both_stages(runs, tmp_path, stage):
    flags = (
        f"--config=mdt:{stage}",
        f"--config.teacher.options.workdir={runs / stage}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert exit_code(train_main, *flags, *SMALL, *SHORT, *SHOWN[:2]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["evaluations"] == 1
    assert set(report) & {"iou", "chamfer"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--out=FOLDER is required"),
        (("--out=x", "--runs=a=b"), "two runs or more"),
        (("--out=x", "--runs=a,b=c"), "NAME=FOLDER"),
        (("--out=x", "--runs=a=no,b=no", "--into=start"), "is not the workdir of a training run"),
    ],
)
def test_links_that_are_none(flags, message, capsys):
    assert exit_code(link, *flags) != 0
    assert message in capsys.readouterr().err

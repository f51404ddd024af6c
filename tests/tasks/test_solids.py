"""Solids as users make them: three runs, their chain, students, what is written, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import config_of, exit_code, task_of

from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax.data import Batches
from flowjax.recipe import Request, export_run, link, load_run
from flowjax.training import make_mesh

pytestmark = pytest.mark.standard_promotion
SMALL = ("--config.data.options.size=64", "--config.data.options.resolution=8", "--config.data.options.view=16")
SHORT = tuple(f"--config.train.{name}=1" for name in ("report_every", "sample_every", "checkpoint_every"))
SHORT += ("--config.train.steps=2", "--config.train.batch=8")
SHOWN = ("--config.sample.num=16", "--config.sample.batch=8", "--config.sample.steps=2")
TINY = tuple(f"--config.network.options.{o}" for o in ("image_shape=16,16,3", "width=24", "depth=1"))
DETAILS = ("--config.network.options.resolution=8", *TINY)


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
    ],
)
def test_what_does_not_fit_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        task_of(details_of(*flags))


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

"""What solids are shown, written and compared by, and conditions of structures and pictures."""

import dataclasses
import sys

import numpy as np
import pytest
import trimesh
from PIL import Image

import flowjax as fj
from flowjax.geometry import solids
from flowjax.geometry.solids import structure
from flowjax.recipe import Samples

SMALL = {"size": 9, "resolution": 8, "voxels": 64, "view": 8}


@pytest.fixture(scope="module")
def details():
    return solids.solids(part="details", **SMALL)


# --------------------------------------------------------------------------------------------------------------- forms


def samples_of(source, **more):
    cond = {name: rows for name, rows in source.fields.items()}
    return Samples(x=source.x.astype(np.float32), cond=cond, evaluations=1, network_calls=1, **more)


def test_what_is_written(details, tmp_path):
    form = solids.Solids(mesh="ply", points=100, frames=3, size=8, most=2)
    said = form.write(samples_of(details), tmp_path)
    assert said == "2 of 9 samples as meshes (ply), points, turntables"
    for name in ("0007.ply", "12345_points.ply", "0009.glb"):
        (tmp_path / name).write_text("of an earlier run")
    others = ["0001.png", "0003_points.gif", "2024-notes.txt", "20240101.npz"]
    for name in others:
        (tmp_path / name).write_text("of somebody")
    form.write(samples_of(details), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"000{i}{end}" for i in (0, 1) for end in (".gif", ".ply", "_points.ply")
    } | set(others)
    mesh = trimesh.load(tmp_path / "0000.ply")
    assert mesh.is_watertight
    assert mesh.volume > 0  # faces look outwards
    assert len(trimesh.load(tmp_path / "0001_points.ply").vertices) == 100
    with Image.open(tmp_path / "0000.gif") as turn:
        assert (turn.n_frames, turn.size) == (3, (8, 8))


def test_meshes_are_missed_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    for work in (solids.Solids().require, lambda: solids.solids(part="details", **SMALL)):
        with pytest.raises(ValueError, match="meshes need trimesh and scikit-image"):
            work()
    assert solids.solids(**SMALL).form == "voxels"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 9, 14])
def test_contact_sheets(details, tmp_path, count):
    rows = np.arange(count) % 9
    some = samples_of(details.select(rows))
    solids.Solids(size=8).picture(some, tmp_path / "sheet.png")
    solids.Voxels(size=8).picture(
        dataclasses.replace(some, x=some.cond["structure"] * 1.0, cond=None), tmp_path / "grey.png"
    )
    for name, lines in (("sheet.png", 2 if count <= 10 else 4), ("grey.png", 1 if count <= 10 else 2)):
        with Image.open(tmp_path / name) as sheet:
            assert sheet.size == (min(count, 10) * 10 + 2, lines * 10 + 2)


def test_comparisons(details):
    own, form = samples_of(details), solids.Solids()
    same = form.compare(own, details.x)
    assert same == {"chamfer": 0.0, "colour_error": 0.0}
    moved = details.x.copy()
    moved[..., :27] += 0.1 * (details.x != 0).any(-1, keepdims=True)  # surfaces 0.1 sides of a block deeper, 0.05
    moved[..., -1:] -= 0.3 * (details.x != 0).any(-1, keepdims=True)
    other = form.compare(dataclasses.replace(own, x=moved), details.x)
    np.testing.assert_allclose(other["colour_error"], 0.05, atol=0.001)
    assert 0.01 < other["chamfer"] < 0.08
    full = samples_of(solids.solids(**SMALL))
    assert solids.Voxels().compare(full, full.x) == {"iou": 1.0}
    assert solids.Voxels().compare(full, 1 - full.x) == {"iou": 0.0}


def test_colours_of_other_structures_are_compared_block_by_block(details):
    """Features of a sample whose structure has lost blocks: those left are where they were, at other rows."""
    form, shown, made = solids.Solids(), [], np.zeros_like(details.x)
    grids = details.fields["structure"].copy()
    for row, grid in enumerate(grids):
        grid[4:] = 0
        (own,), (whole,) = (structure.numbers_of(g[None], 2) for g in (grid, details.fields["structure"][row]))
        for place, number in enumerate(own):
            there = (whole == number).all(1)
            made[row, place] = details.x[row, : len(whole)][there][0] if there.any() else 7.0
        shown.append((len(own), len(whole)))
    assert any(few != many and few for few, many in shown)
    samples = dataclasses.replace(samples_of(details), x=made, cond={"structure": grids})
    found = form.compare(samples, details.x, details.fields["structure"])
    assert found["colour_error"] == 0
    assert found["chamfer"] > 0
    made[..., -1] += 0.3  # a third of 0.3 / 2 in each block
    found = form.compare(samples, details.x, details.fields["structure"])
    np.testing.assert_allclose(found["colour_error"], 0.05, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"), [({"mesh": "stp"}, "mesh"), ({"points": -1}, "points"), ({"size": 0}, "size")]
)
def test_forms_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        fj.build("form", {"name": "solids", "options": options})


# ---------------------------------------------------------------------------------------------------------- conditions


def test_structures_as_conditions(details, tmp_path):
    condition = solids.Structure.learn(details.fields["structure"], voxels=64)
    encoded = condition.encode(details.fields["structure"])
    np.testing.assert_array_equal(condition.mask(encoded), (details.x != 0).any(-1))
    np.testing.assert_array_equal(condition.decode(encoded), details.fields["structure"])
    assert condition.null is None
    np.savez(tmp_path / "grids.npz", x=details.fields["structure"][:2].astype(np.float32))
    np.testing.assert_array_equal(condition.read(str(tmp_path / "grids.npz"), 3), encoded[[0, 1, 0]])
    with pytest.raises(ValueError, match=r"structure \d has \d+ active blocks of 2\^3 voxels, and there is room for"):
        solids.Structure(resolution=8, voxels=3).encode(details.fields["structure"])
    with pytest.raises(ValueError, match=r"details need a structure: --cond\.structure=FILE"):
        condition.default(3)
    with pytest.raises(ValueError, match="structures are grids"):
        condition.encode(np.zeros((2, 4, 4, 4, 1)))
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="structures have NaN or infinite values"):
            condition.encode(np.full((2, 8, 8, 8, 1), value))
    condition.check_details((64, 30))
    with pytest.raises(ValueError, match=r"blocks of 2\^3 voxels, with 30 numbers, and details of blocks with 11"):
        condition.check_details((64, 11))


def test_pictures_as_conditions(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    condition = fj.conditions.Picture.learn(rows)
    for i in (0, 1):
        Image.fromarray(rows[i]).save(tmp_path / f"{i}.png")
    read = condition.read(str(tmp_path), 3)
    np.testing.assert_array_equal(condition.decode(read), rows[[0, 1, 0]])
    assert np.abs(read).max() <= 1
    np.testing.assert_array_equal(condition.read(str(tmp_path / "1.png"), 1)[0], read[1])
    Image.fromarray(rows[0, :6]).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"2.png has 8 x 6 pixels; this run takes 8 x 8: scale it"):
        condition.read(str(tmp_path), 3)
    with pytest.raises(ValueError, match="is neither a picture nor a folder"):
        condition.read(str(tmp_path / "none"), 1)
    with pytest.raises(ValueError, match="pictures are bytes"):
        condition.encode(rows.astype(np.float32))

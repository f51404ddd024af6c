"""Samples in a folder of many files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small
from runs import exit_code

from flowjax import evaluate as evaluate_main
from flowjax import sample as sample_main
from flowjax.data import shards
from flowjax.recipe import Request, load_run
from flowjax.recipe.parts import Parts, draw
from flowjax.training import make_mesh

pytestmark = pytest.mark.standard_promotion
REQUEST = Request(num=50, batch=8, seed=3, conditions={"label": "1,4,7"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    small.write(folder)
    return folder


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(shards, "_SHARD", 16 * 4 * 64)


def drawn(run, folder, request=REQUEST, files=None, mesh=None):
    """Draws so many files."""
    networks, recipe = load_run(run, mesh)
    for number, _ in enumerate(draw(recipe, networks, request, folder, mesh=mesh)):
        if number == files:
            break
    return Parts(folder)


def test_parts_are_the_samples_of_one_request(run, tmp_path):
    parts = drawn(run, tmp_path / "a")
    assert sorted(path.name for path in parts.folder.iterdir()) == [
        *(f"{i:06d}.npz" for i in range(4)),
        "manifest.json",
    ]
    networks, recipe = load_run(run)
    whole, found = recipe.sample(networks, REQUEST), parts.samples
    np.testing.assert_allclose(found.x, whole.x, atol=1e-5)
    np.testing.assert_array_equal(found.cond, whole.cond)
    assert found.cond[:4].tolist() == [1, 4, 7, 1]
    assert (found.evaluations, found.network_calls) == (whole.evaluations, whole.network_calls)
    record = parts.record
    assert (record["num"], record["rows"], record["solver"], record["guidance"]) == (50, 16, "euler", 1.5)
    assert record["request"]["seed"] == 3
    assert record["versions"]["jax"] == jax.__version__


def test_numbers_of_samples_begin_at_zero(run):
    _, recipe = load_run(run)
    with pytest.raises(ValueError, match="first"):
        recipe.check(dataclasses.replace(REQUEST, first=-1))


@pytest.mark.slow
def test_what_was_stopped_goes_on_with_other_devices(run, tmp_path):
    whole = drawn(run, tmp_path / "a")
    parts = drawn(run, tmp_path / "b", files=2)
    assert len(parts.missing()) == 2
    with pytest.raises(ValueError, match="is not complete: 18 of 50 samples are missing"):
        _ = parts.samples
    before = parts.file(range(0, 16)).stat().st_mtime_ns
    parts = drawn(run, tmp_path / "b", mesh=make_mesh(devices=jax.devices()[:2]))
    assert not parts.missing()
    assert parts.file(range(0, 16)).stat().st_mtime_ns == before
    np.testing.assert_allclose(parts.samples.x, whole.samples.x, atol=1e-5)
    assert parts.record == whole.record


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "samples of request="),
        ({"num": 60}, "num=50, not 60"),
        ({"steps": 3}, "not {'seed': 3, "),
        ({"conditions": {"label": "2"}}, "name another folder, or ask for the same samples"),
    ],
)
def test_other_samples_are_refused(run, tmp_path, changes, words):
    drawn(run, tmp_path, files=0)
    with pytest.raises(ValueError, match=words):
        drawn(run, tmp_path, dataclasses.replace(REQUEST, **changes))


def test_other_weights_and_folders_are_refused(run, tmp_path):
    drawn(run, tmp_path / "a", files=1)
    small.write(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="samples of models="):
        drawn(tmp_path / "other", tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no manifest\.json"):
        drawn(run, tmp_path / "full")


@pytest.mark.slow
def test_samples_of_a_block_that_depend_on_each_other(run, tmp_path):
    """Blocks are the same for any number of devices, or refused."""
    request = dataclasses.replace(REQUEST, num=20, solver="adaptive(rtol=1e-2, atol=1e-2)", steps=1)
    parts = drawn(run, tmp_path / "a", request)
    assert parts.record["request"]["batch"] == 8
    with pytest.raises(ValueError, match=r"batch=4 does not split over 8 devices"):
        drawn(run, tmp_path / "b", dataclasses.replace(request, batch=4))
    other = drawn(run, tmp_path / "c", request, mesh=make_mesh(devices=jax.devices()[:2]))
    np.testing.assert_allclose(parts.samples.x, other.samples.x, atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:500]), "cannot be read"),
        (lambda file: np.savez(file, x=np.zeros((3, 8, 8, 1)), cond=np.zeros(3)), "must hold 16 rows of x"),
        (lambda file: np.savez(file, y=np.zeros(16)), "has y, and the files before it"),
    ],
)
def test_damaged_files_are_named(run, tmp_path, spoil, words):
    parts = drawn(run, tmp_path)
    spoil(parts.file(range(16, 32)))
    with pytest.raises(ValueError, match=f"000001.npz.*{words}"):
        _ = parts.samples


@pytest.mark.slow
def test_the_mains_write_and_measure_them(capsys, run, tmp_path):
    folder = tmp_path / "many"
    options = [f"--workdir={run}", f"--out={folder}", "--num=40", "--batch=8"]
    assert exit_code(sample_main, *options) == 0
    out = capsys.readouterr().out
    assert "16/40 samples" in out
    assert "s left" in out
    assert f"{folder}: 40 samples, 2 evaluations (4 network calls) each" in out
    assert (folder / "preview.png").exists()
    assert exit_code(sample_main, *options) == 0  # there is nothing left to do
    capsys.readouterr()

    measure = [f"--workdir={run}", f"--samples={folder}", "--data=recipe"]
    assert exit_code(evaluate_main, *measure) == 0
    (row,) = json.loads((run / "evaluation.json").read_text())["runs"][-1]["rows"]
    assert row["samples"] == str(folder)
    assert row["evaluations"] == 2
    assert exit_code(evaluate_main, f"--workdir={run}", "--num=40", "--batch=8", "--data=recipe", "--seed=0") == 0
    *_, fresh = json.loads((run / "evaluation.json").read_text())["runs"][-1]["rows"]
    distance = next(name for name in row if name.startswith("FD["))
    np.testing.assert_allclose(row[distance], fresh[distance], rtol=1e-3)
    capsys.readouterr()

    for arguments, words in (
        ([*measure, "--steps=3"], "--steps is given, but --samples="),
        ([f"--workdir={run}", f"--samples={tmp_path / 'none'}"], "holds no samples"),
    ):
        assert exit_code(evaluate_main, *arguments) == 2
        assert words in capsys.readouterr().err
    small.write(tmp_path / "other", seed=1)
    assert exit_code(evaluate_main, f"--workdir={tmp_path / 'other'}", *measure[1:]) == 2
    assert "holds samples of weights" in capsys.readouterr().err
    for more in (["--overwrite"], ["--form=x"]):
        assert exit_code(sample_main, *options, *more) == 2

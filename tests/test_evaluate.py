import dataclasses
import errno
import json
import os

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from flowjax import _cli, evaluate
from flowjax.recipe import Recipe, export, load
from flowjax.training import Checkpoints, create_state, make_mesh
from flowjax.training.workdir import Lock
from flowjax.training.writers import write_json

pytestmark = pytest.mark.standard_promotion  # optax


def make_run(workdir, num_classes):
    """A run whose network is untrained, on labelled points in the plane."""
    workdir.mkdir()
    rng = np.random.default_rng(0)
    np.savez(workdir / "points.npz", images=rng.normal(size=(90, 2)), labels=rng.integers(3, size=90))
    labels = {} if num_classes else {"labels": None}
    recipe = Recipe(
        network={"name": "MLP", "options": {"dim": 2, "width": 8, "depth": 1, "num_classes": num_classes}},
        path={"name": "Linear", "options": {}},
        prediction="velocity",
        data={"name": "npz", "options": {"path": str(workdir / "points.npz"), **labels}},
        shape=(2,),
        shift=0.0,
        scale=1.0,
        low=None,
        high=None,
        num_classes=num_classes,
        solver={"name": "euler", "options": {}},
        steps=2,
    )
    recipe.save(workdir)
    write_json(workdir / "config.json", {"seed": 0})
    state = create_state(lambda: recipe.build_network(nnx.Rngs(0)), optax.sgd(1.0), make_mesh())
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state)


def build(path):
    """A feature function for `--extractor`."""
    weight = np.load(path)
    return lambda x: x * weight


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    make_run(tmp_path_factory.mktemp("runs") / "classes", 3)
    return next(tmp_path_factory.getbasetemp().glob("runs*/classes"))


def run(workdir, *arguments):
    with pytest.raises(SystemExit) as end:
        _cli.run(evaluate.main, evaluate.define, ["evaluate", f"--workdir={workdir}", "--num=40", *arguments])
    return end.value.code


def test_sweep_is_measured_written_pictured_and_resumed(workdir, capsys, monkeypatch):
    path = workdir / "evaluation.json"
    assert run(workdir, "--solvers=euler,heun", "--steps=1,2", "--guidance=1.0,2.0") == 0
    out = capsys.readouterr().out
    for piece in ("FD[raw]", "KID[raw]", "solver", "network calls", "heun", "precision", "evaluation.png"):
        assert piece in out
    (found,) = json.loads(path.read_text())["runs"]
    rows = {(row["solver"], row["steps"], row["guidance"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 8
    assert (rows["heun", 2, 2.0]["evaluations"], rows["heun", 2, 2.0]["network_calls"]) == (4, 8)
    assert rows["euler", 1, 1.0]["network_calls"] == 1
    assert all(np.isfinite(value) for row in rows.values() for value in row.values() if not isinstance(value, str))
    origin = found["provenance"]
    assert (origin["extractor"], origin["checkpoint_step"], origin["config"]) == ("raw", 0, {"seed": 0})
    assert (origin["num"], origin["num_real"], origin["seed"]) == (40, 40, 0)
    assert {"jax", "numpy", "flowjax-generative"} < origin["versions"].keys()
    assert np.asarray(Image.open(workdir / "evaluation.png")).std() > 0

    # Known rows are not computed again, a new one is; the table is that of the flags.
    sampled = []
    sample = Recipe.generate
    monkeypatch.setattr(Recipe, "generate", lambda *a, **k: sampled.append(len(k["grid"]) - 1) or sample(*a, **k))
    assert run(workdir, "--solvers=euler", "--steps=1,3", "--guidance=1") == 0
    out = capsys.readouterr().out
    assert sampled == [3]
    assert "1 of 2 rows are known" in out
    assert "heun" not in out
    assert len(json.loads(path.read_text())["runs"][0]["rows"]) == 9
    # Other samples begin a new list.
    assert run(workdir, "--solvers=euler", "--steps=1", "--guidance=1", "--seed=1") == 0
    runs = json.loads(path.read_text())["runs"]
    assert [len(r["rows"]) for r in runs] == [9, 1]
    assert runs[1]["rows"][0]["FD[raw]"] != rows["euler", 1, 1.0]["FD[raw]"]


def test_straightness_is_a_flag(workdir, capsys):
    assert run(workdir, "--solvers=euler", "--steps=1", "--guidance=2", "--straightness=3") == 0
    assert "first order defect" in capsys.readouterr().out
    (row,) = json.loads((workdir / "evaluation.json").read_text())["runs"][-1]["rows"]
    assert row["straightness"] == row["first_order_defect"] == 0  # of a network that answers with zero
    assert run(workdir, "--straightness=0") == 2
    assert "straightness must be" in capsys.readouterr().err


@pytest.mark.slow
def test_a_live_run_and_an_export_are_only_read(workdir, tmp_path, capsys):
    """Another process may be writing a checkpoint; an export has none, and other weights begin a new list."""
    make_run(tmp_path / "run", 3)
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "5.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"seed"')
    before = {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")}
    assert run(tmp_path / "run", "--steps=1") == 0
    assert {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")} == before

    flow, recipe = load(tmp_path / "run")
    model = tmp_path / "model"
    export(flow, recipe, model)
    assert run(model, "--steps=1", "--data=recipe") == 0
    expected = {"recipe.json", "weights.safetensors", "evaluation.json", "evaluation.png"}
    assert {path.name for path in model.iterdir()} == expected
    for name in ("recipe.json", "weights.safetensors"):
        (model / name).unlink()
    export(dataclasses.replace(flow, network=jax.tree.map(lambda leaf: leaf + 0.1, flow.network)), recipe, model)
    assert run(model, "--steps=1", "--data=recipe") == 0
    kept = (model / "evaluation.json").read_text()
    assert [r["provenance"]["checkpoint_step"] for r in json.loads(kept)["runs"]] == [None, None]
    with Lock(model, "evaluate"):
        assert run(model, "--steps=1", "--data=recipe") == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_sweeps_without_finite_samples_are_no_success(workdir, capsys, monkeypatch):
    sample = Recipe.sample

    def spoiled(*arguments, **options):
        samples = sample(*arguments, **options)
        samples.x[3] = np.nan
        return samples

    monkeypatch.setattr(Recipe, "sample", spoiled)
    assert run(workdir, "--steps=7") == 2
    assert "no setting of the sweep has finite samples" in capsys.readouterr().err


def test_own_features(workdir, tmp_path, capsys):
    np.save(tmp_path / "w.npy", np.float32(2.0))
    flags = [f"--extractor={__name__}:build", f"--weights={tmp_path / 'w.npy'}"]
    assert run(workdir, "--steps=1", *flags, "--sha256=00") == 2
    error = capsys.readouterr().err
    assert "has the SHA-256" in error
    seal = error.split("SHA-256 ")[1].split(",")[0]
    assert run(workdir, "--steps=1", *flags, f"--sha256={seal}") == 0
    assert f"FD[{seal[:8]}]" in capsys.readouterr().out
    assert run(workdir, "--steps=1", *flags) == 2
    assert "must be given together" in capsys.readouterr().err
    assert run(workdir, "--extractor=gone:f", "--weights=a", "--sha256=b") == 2
    assert "No module named 'gone'" in capsys.readouterr().err


def test_wrong_flags_are_one_line(workdir, tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "plain", None)
    (tmp_path / "empty").mkdir()
    for folder, flag, message in (
        (workdir, "--solvers=euler,huen", "did you mean 'heun'"),
        (workdir, "--steps=4,x", "--steps must be numbers, got 'x'"),
        (workdir, "--steps=0", "--steps must be at least 1"),
        (workdir, "--guidance=inf", "guidance must be"),
        (workdir, "--guidance=nan", "guidance must be"),
        (workdir, "--num=3", "--num must be at least 20"),
        (workdir, "--stepz=3", "did you mean '--steps'"),
        (tmp_path / "empty", "--steps=1", "no recipe.json"),
        (tmp_path / "plain", "--guidance=2", "has no classes"),
    ):
        assert run(folder, flag) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate, "write_json", full)
    assert run(tmp_path / "plain", "--steps=1") == 2
    assert "evaluation.json: No space left on device" in capsys.readouterr().err
    (tmp_path / "plain" / "evaluation.png").write_text("precious")
    assert run(tmp_path / "plain", "--steps=1") == 2
    assert "evaluation.png would be replaced" in capsys.readouterr().err
    (tmp_path / "plain" / "evaluation.json").write_text("{")
    assert run(tmp_path / "plain", "--steps=1") == 2
    assert "move it away" in capsys.readouterr().err

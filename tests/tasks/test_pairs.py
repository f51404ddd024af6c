"""Pairs of noise and sample: drawn by the sample main, stored in shards, trained on."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from runs import task_of

import flowjax as fj
from flowjax import _cli, data
from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax.data import Pairs
from flowjax.data import shards as module
from flowjax.recipe import load

pytestmark = pytest.mark.standard_promotion
ROOT = Path(fj.__file__).parents[1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    small.write(folder)
    return folder


def draw(capsys, *arguments):
    """Exit code, stdout, stderr of the sample main."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(sample_main.main, sample_main.define, ["sample", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


@pytest.fixture
def made(capsys, tmp_path, teacher, monkeypatch):
    """Fifty pairs in shards of sixteen, and the arguments that draw them."""
    monkeypatch.setattr(module, "_SHARD", 16 * 2 * 4 * 64)
    options = (f"--workdir={teacher}", f"--pairs={tmp_path / 'pairs'}", "--num=50", "--batch=16", "--seed=3")
    code, out, err = draw(capsys, *options)
    assert (code, err) == (0, "")
    assert "50 pairs" in out
    return tmp_path / "pairs", options


def test_pairs_are_noise_and_sample_in_the_scale_of_the_network(capsys, tmp_path, teacher, made):
    folder, _ = made
    assert sorted(path.name for path in folder.iterdir()) == [*(f"{i:06d}.npy" for i in range(4)), "pairs.json"]
    source, out = Pairs(folder).source, tmp_path / "samples.npz"
    draw(capsys, f"--workdir={teacher}", f"--out={out}", "--num=50", "--batch=16", "--seed=3")
    with np.load(out) as samples:
        np.testing.assert_allclose(source.x * 8 + 8, samples["x"], atol=1e-4)
        np.testing.assert_array_equal(source.cond, samples["cond"])
    flow, recipe = load(teacher)
    field, x0 = recipe.field(flow), source.fields["x0"]
    assert abs(x0.std() - 1) < 0.05
    x, cond = jnp.asarray(x0), jnp.asarray(source.cond)
    found = fj.solve(field, fj.solvers.Euler(), x, fj.times.uniform(2), cond=cond).x
    np.testing.assert_allclose(found, source.x, atol=1e-4)
    record = Pairs(folder).record
    assert (record["guidance"], record["solver"], record["seed"], record["num_classes"]) == (1.5, "euler", 3, 10)


def test_a_run_that_was_stopped_goes_on_and_other_pairs_are_refused(capsys, teacher, made):
    folder, options = made
    before = {path: path.read_bytes() for path in folder.iterdir()}
    gone = folder / "000001.npy"
    expected = np.load(gone)
    gone.unlink()
    with pytest.raises(ValueError, match="is not complete: 16 of 50 pairs are missing"):
        _ = Pairs(folder).source
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    code, _, err = draw(capsys, *options, "--batch=4")  # another batch changes nothing but the rounding
    assert (code, err) == (0, "")
    found = np.load(gone)
    for name in expected.dtype.names:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    before[gone] = gone.read_bytes()
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    for more, message in (
        ("--seed=4", "holds pairs of seed=3, not 4"),
        ("--guidance=2.0", "holds pairs of guidance=1.5, not 2.0"),
        ("--num=60", "holds pairs of num=50, not 60"),
        ("--solver=euler_maruyama(diffusion=1.0)", "EulerMaruyama adds noise"),
        ("--out=x.npz", "--out is given, but --pairs writes shards"),
        ("--data=recipe", "--data is given, but --pairs writes shards"),
    ):
        code, _, err = draw(capsys, *options, more)
        assert code == 1 or code == 2
        assert message in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def config_of(teacher, folder, *overrides):
    argv = ["--config=rectified:smoke", f"--config.teacher.options.workdir={teacher}"]
    argv += [f"--config.coupling=stored(path={str(folder)!r})", *overrides]
    values = train_main.flags.FlagValues()
    train_main.define(values, argv)
    values(["train", *argv])
    return values.config


def test_a_student_trains_on_pairs_and_is_judged_by_data(teacher, made):
    folder, _ = made
    task = task_of(config_of(teacher, folder))
    batch = data.Batches(task.training, 8).batch(0)
    source, rows = Pairs(folder).source, data.Batches(task.training, 8).indices(0)
    for name, held in (("x1", source.x), ("x0", source.fields["x0"]), ("cond", source.cond)):
        np.testing.assert_array_equal(batch[name], held[rows])
    draws = task.objective.draw(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    np.testing.assert_array_equal(draws.x0, batch["x0"])
    assert len(task.source.x) == 1797
    assert (task.recipe.shift, task.recipe.scale) == (8.0, 8.0)


def test_pairs_of_another_teacher_scale_or_data_are_refused(tmp_path, teacher, made):
    folder, _ = made
    other = tmp_path / "other"
    small.write(other, seed=1)
    with pytest.raises(ValueError, match=r"drawn by a model of the hash \w+, and the teacher .* draw pairs with this"):
        task_of(config_of(other, folder))
    with pytest.raises(ValueError, match="augment changes images, and pairs would no longer be pairs"):
        task_of(config_of(teacher, folder, "--config.data.augment.flip=True"))
    with pytest.raises(ValueError, match=r"nowhere holds no pairs; draw some with python -m flowjax.sample --pairs"):
        task_of(config_of(teacher, tmp_path / "nowhere"))
    record = json.loads((folder / "pairs.json").read_text())
    (folder / "pairs.json").write_text(json.dumps(record | {"scale": 2.0}))
    with pytest.raises(ValueError, match=r"do not fit: their scale is 2.0, that of this run 8.0"):
        task_of(config_of(teacher, folder))


def test_shards_without_the_labels_of_their_record_are_refused(teacher, made):
    """A network of classes would be trained without any."""
    folder, _ = made
    for file in folder.glob("*.npy"):
        table = np.load(file)
        np.save(file, table[["x0", "x1"]].astype([(name, table.dtype[name]) for name in ("x0", "x1")]))
    with pytest.raises(ValueError, match=r"the shards in .* do not fit: their labels are False, not True"):
        task_of(config_of(teacher, folder))


def test_a_run_goes_on_with_the_same_pairs_only(tmp_path, teacher, made):
    folder, _ = made
    task, workdir = task_of(config_of(teacher, folder)), tmp_path / "run"
    workdir.mkdir()
    task.save(workdir)
    task_of(config_of(teacher, folder)).check(workdir)
    record = json.loads((folder / "pairs.json").read_text())
    (folder / "pairs.json").write_text(json.dumps(record | {"seed": 4}))
    with pytest.raises(ValueError, match=r"holds other pairs than when .*run began"):
        task_of(config_of(teacher, folder)).check(workdir)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "000002.npy").write_bytes(b"\x93NUMPY"), "cannot read the pairs in .*000002.npy"),
        (lambda folder: np.save(folder / "000002.npy", np.zeros(16)), r"must hold 16 pairs, got float64 \(16,\)"),
        (lambda folder: np.save(folder / "000002.npy", np.zeros(16, [("x0", "f4")])), "must hold numbers x0 and x1"),
        (lambda folder: np.save(folder / "000002.npy", np.array([None] * 16)), "cannot read the pairs"),
        (lambda folder: (folder / "pairs.json").write_text("[]"), "is no record of pairs"),
        (lambda folder: (folder / "pairs.json").write_text('{"num": 50, "rows": 0}'), "positive whole numbers"),
        (lambda folder: _with_nan(folder / "000002.npy"), "example 32 must be finite"),
    ],
)
def test_damaged_pairs_are_refused(made, break_it, message):
    folder, _ = made
    break_it(folder)
    with pytest.raises(ValueError, match=message):
        _ = Pairs(folder).source


def _with_nan(file):
    table = np.load(file)
    table["x1"][0] = np.nan
    np.save(file, table)


def test_a_folder_of_something_else_stays_as_it_is(capsys, tmp_path, teacher):
    (tmp_path / "file").write_text("mine")
    code, _, err = draw(capsys, f"--workdir={teacher}", f"--pairs={tmp_path}", "--num=4")
    assert code != 0
    assert "is not empty and holds no pairs.json" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_another_round_has_pairs_of_the_student(capsys, tmp_path, teacher, made):
    folder, _ = made
    student, again = tmp_path / "student", tmp_path / "again"
    argv = ["train", "--config=rectified:smoke", f"--config.teacher.options.workdir={teacher}", f"--workdir={student}"]
    with pytest.raises(SystemExit) as exit_:
        _cli.run(train_main.main, train_main.define, [*argv, f"--config.coupling.options.path={folder}"])
    assert exit_.value.code == 0
    code, _, err = draw(capsys, f"--workdir={student}", f"--pairs={again}", "--num=20")
    assert (code, err) == (0, "")
    assert Pairs(again).record["model"] != Pairs(folder).record["model"]
    assert len(task_of(config_of(student, again)).training.x) == 20
    with pytest.raises(ValueError, match="draw pairs with this teacher"):
        task_of(config_of(student, folder))


@pytest.mark.slow
def test_pairs_of_two_processes_are_those_of_one(tmp_path, teacher, made):
    folder, options = made
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script = (
        "import sys, jax; from flowjax import _cli, sample; from flowjax.data import shards;"
        f"shards._SHARD = {module._SHARD};"
        f"jax.distributed.initialize('localhost:{port}', 2, int(sys.argv.pop(1)));"
        "_cli.run(sample.main, sample.define)"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="4")
    arguments = [option.replace(str(folder), str(tmp_path / "both")) for option in options]
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(i), *arguments], env=environment, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    texts = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "both").iterdir()}
    for shard in folder.glob("*.npy"):
        one, two = np.load(shard), np.load(tmp_path / "both" / shard.name)
        for name in one.dtype.names:
            np.testing.assert_allclose(one[name], two[name], atol=1e-6)

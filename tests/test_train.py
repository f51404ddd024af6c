import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import final, kill, training, wait_for_checkpoint

import flowjax as fj
from flowjax import _cli, data
from flowjax import train as train_main
from flowjax.recipe import Recipe
from flowjax.training.workdir import Lock

pytestmark = pytest.mark.standard_promotion
ROOT = Path(__file__).resolve().parent.parent


def run(capsys, *arguments):
    """Runs the main in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(train_main.main, train_main.define, ["train", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


@pytest.mark.parametrize("name", ["digits", pytest.param("toy2d", marks=pytest.mark.slow)])
def test_smoke_run_leaves_everything_and_is_then_complete(capsys, tmp_path, name):
    code, out, err = run(capsys, f"--config={name}:smoke", f"--workdir={tmp_path / 'run'}")
    assert (code, err) == (0, "")
    assert "parameters on 8 device(s), compiled in" in out
    assert "step 2/2  loss" in out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["evaluations"] == 4
    assert report["compile_seconds"] > 0
    assert 0 < report["goodput"] < 1
    assert np.isfinite(report["loss"])
    if name == "digits":
        assert {"accuracy", "spread", "nearest_ratio"} <= set(report)
    present = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {
        "config.json",
        "recipe.json",
        "metrics.jsonl",
        "clock.jsonl",
        "checkpoints",
        "samples",
        "samples.png",
        "report.json",
    }
    assert present - {"tensorboard"} == expected | ({"ways.png"} if name == "toy2d" else set())
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == {"000001.png", "000001-raw.png"}
    assert report["skipped"] == 0

    code, out, _ = run(capsys, f"--config={name}:smoke", f"--workdir={tmp_path / 'run'}")
    assert code == 0
    assert "training is complete" in out
    code, _, err = run(capsys, f"--config={name}:smoke", f"--workdir={tmp_path / 'run'}", "--config.train.steps=3")
    assert code == 2
    assert "config.train.steps=2, not 3" in err
    assert "--allow_config_change" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.train.steps=0"], "config.train.steps must be at least 1, got 0"),
        (["--config.sample.steps=0"], "config.sample.steps must be at least 1, got 0"),
        (["--config.train.batch=12"], "a batch of 12 cannot be split over 8 devices"),
        (["--config.train.batch=99999999999992"], "more than half of the memory of this machine"),
        (["--config.network.options.num_classes=5"], "the data have 10 classes, but the network is built with num_cl"),
        (["--config.mesh.fsdp=3"], "fsdp=3"),
        (["--config.sample.solver.name=huen"], "unknown solver 'huen'; did you mean 'heun'?"),
        (["--config.network.name=dits"], "unknown network 'dits'; did you mean 'dit'? (allowed: mlp, dit"),
        (["--config.path.name=Linaer"], "unknown path 'Linaer'; did you mean 'linear'?"),
        (["--config.objective.options.times.name=Unifrom"], "did you mean 'uniform'?"),
        (["--config.objective.times.name=Unifrom"], "did you mean 'uniform'?"),
        (["--config.objective=sit(weighing=none)"], "sit has no option weighing; did you mean weighting?"),
        (["--config.objective=classification"], "objective 'classification' is not one of the task generation"),
        (["--config.coupling=sinkhorn"], "sinkhorn needs its option epsilon"),
        (["--config.optimizer=adamw(rate=nan)"], "rate must be finite"),
        (["--config.optimizer.options.b2=1.5"], "b2 must be in [0, 1)"),
        (["--config.sample.times=karas"], "unknown times 'karas'; did you mean 'karras'?"),
        (["--config.task=generaton"], "unknown task 'generaton'; did you mean 'generation'?"),
        (["--config.teacher.workdir=x"], "unknown key of config 'teacher'"),
        (["--config.objective.prediction=velocty"], "velocty"),
        (["--config.data.name=digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["--config.network.options.patch=3"], "patch"),
        (["--config.train.accumulate=3"], "config.train.accumulate=3 must divide batch=8"),
        (["--config.train.max_skipped=0"], "config.train.max_skipped must be at least 1, got 0"),
        (["--config.train.snapshot_every=2"], "config.train.snapshot_every must be 0 unless"),
        (["--config.train.best=los"], "unknown metric of config.train.best 'los'; did you mean 'loss'?"),
        (["--profile=3:2"], "--profile must be FIRST:LAST"),
        (["--config.train.ema=1.5"], "decay of the average must lie in [0, 1), got 1.5"),
        (["--workdr=x"], "unknown flag '--workdr'; did you mean '--workdir'?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tmp_path, arguments, expected):
    workdir = tmp_path / "run"
    code, out, err = run(capsys, "--config=digits:smoke", f"--workdir={workdir}", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not workdir.exists()


def test_workdir_is_required(capsys):
    code, _, err = run(capsys, "--config=digits:smoke")
    assert code == 2
    assert "--workdir=FOLDER is required" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")
def test_killed_training_resumes_to_the_same_bits(tmp_path):
    """SIGKILL in the middle and a new start give the parameters of an uninterrupted run, bit for bit."""
    overrides = {"steps": 600, "checkpoint_every": 50, "report_every": 50, "sample_every": 600}
    command = ["--config=toy2d:smoke", *(f"--config.train.{key}={value}" for key, value in overrides.items())]
    killed = training(tmp_path / "killed", *command)
    wait_for_checkpoint(tmp_path / "killed", killed)
    with pytest.raises(ValueError, match=f"killed is in use by process {killed.pid} on"), Lock(tmp_path / "killed"):
        pass
    kill(killed)
    assert (tmp_path / "killed" / "train.lock").exists()
    assert not (tmp_path / "killed" / "report.json").exists()

    resumed, whole = (training(tmp_path / name, *command) for name in ("killed", "whole"))
    texts = [process.communicate(timeout=300)[0] for process in (resumed, whole)]
    assert (resumed.returncode, whole.returncode) == (0, 0)
    assert "resumed after step" in texts[0]
    assert "resumed" not in texts[1]
    (step_a, a), (step_b, b) = final(tmp_path / "killed"), final(tmp_path / "whole")
    assert step_a == step_b == 600
    jax.tree.map(np.testing.assert_array_equal, a, b)
    reports = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert reports[0] == reports[1]


TINY = """
from ml_collections import ConfigDict
from flowjax._cli import load_config
def get_config(argument=""):
    config = load_config("toy2d:smoke").copy_and_resolve_references()
    config.unlock()
    config.data.options.size = 200
    config.train.update(steps=6, report_every=1, sample_every=100, checkpoint_every=2)
    if argument == "averages":
        config.train.snapshot_every = 2
        config.train.averages = ConfigDict({
            "short": {"name": "Power", "options": {"std": 0.05}},
            "long": {"name": "Power", "options": {"std": 0.1}},
            "flat": {"name": "Constant", "options": {"decay": 0.5}},
        })
    return config
"""


@pytest.fixture
def tiny(tmp_path):
    """Arguments of a run of six steps; `:averages` adds all kinds of averages."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return [f"--config={path}", f"--workdir={tmp_path / 'run'}"]


def load(workdir, **options):
    return jax.device_get(fj.load(workdir, **options)[0].network)


@pytest.mark.slow
def test_a_run_survives_the_loss_of_its_small_files(capsys, tmp_path, tiny):
    """As after a power cut; what is gone, and what is done about it, is said."""
    workdir = tmp_path / "run"
    tiny += ["--config.train.steps=2"]
    assert run(capsys, *tiny)[::2] == (0, "")
    before = final(workdir)
    for path, content in {
        "config.json": '{"data": {"na',
        "report.json": "",
        "recipe.json": "\0\0\0",
        "metrics.jsonl": '\0\0\0\0\n{"step": 2, "los\n',
        "checkpoints/index.json": "[",
    }.items():
        (workdir / path).write_text(content)
    code, out, err = run(capsys, *tiny)
    assert (code, err) == (0, "")
    for note in (
        "config.json cannot be read: the run goes on with the config that is given now",
        "checkpoints/index.json cannot be read: the scores of earlier checkpoints are lost",
        "metrics.jsonl: 2 line(s) that cannot be read were left out",
        "resumed after step 2",
    ):
        assert note in out
    jax.tree.map(np.testing.assert_array_equal, final(workdir), before)
    assert "loss" not in json.loads((workdir / "report.json").read_text())
    code, out, err = run(capsys, *tiny)
    assert (code, err) == (0, "")
    assert "training is complete" in out


@pytest.mark.slow
def test_samples_that_are_not_finite_are_no_report(capsys, tmp_path, tiny, monkeypatch):
    sample = Recipe.generate

    def spoiled(*arguments, **options):
        samples = sample(*arguments, **options)
        samples.x[3] = np.nan
        return samples

    monkeypatch.setattr(Recipe, "generate", spoiled)
    code, _, err = run(capsys, *tiny, "--config.train.steps=2", "--config.train.best=FD")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: 1 samples of the trained network have NaN or infinite values; ")
    index = json.loads((tmp_path / "run" / "checkpoints" / "index.json").read_text())
    assert index["2"]["score"] == np.inf  # the last one that could be the best
    assert not (tmp_path / "run" / "report.json").exists()


def test_workdirs_of_others_are_refused(capsys, tmp_path, tiny):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "samples.png").write_text("precious")
    code, _, err = run(capsys, *tiny)
    assert code == 2
    assert err.startswith(f"error: {workdir}/samples.png would be replaced")
    assert os.listdir(workdir) == ["samples.png"]
    (workdir / "samples.png").unlink()
    with Lock(workdir):
        code, _, err = run(capsys, *tiny)
    assert code == 2
    assert err.startswith(f"error: {workdir} is in use by process {os.getpid()}")
    assert run(capsys, tiny[0], "--workdir=")[::2] == (2, "error: --workdir=FOLDER is required\n")


@pytest.mark.slow
def test_averages_snapshots_and_best(capsys, tmp_path, tiny):
    workdir = tmp_path / "run"
    code, _, err = run(capsys, f"{tiny[0]}:averages", tiny[1])
    assert (code, err) == (0, "")
    assert {path.name for path in (workdir / "snapshots").iterdir() if path.name.isdigit()} == {"2", "4", "6"}
    flat, made = load(workdir, average="flat"), load(workdir, average=0.05)
    stored = load(workdir, average="short")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), made, stored)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(flat), jax.tree.leaves(stored)))
    scores = json.loads((workdir / "checkpoints" / "index.json").read_text())
    best = min(scores, key=lambda step: scores[step]["score"])
    reports = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(scores["6"]["score"], np.mean(reports[4:]))
    load(workdir, which="best")
    assert best in {path.name for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.slow
def test_changed_config_goes_on_only_if_allowed(capsys, tmp_path, tiny):
    workdir = tmp_path / "run"
    run(capsys, *tiny, "--config.train.checkpoint_every=6")
    tiny = [*tiny, "--config.train.checkpoint_every=6"]
    code, out, err = run(capsys, *tiny, "--config.train.steps=8", "--allow_config_change")
    assert (code, err) == (0, "")
    assert "resumed after step 6" in out
    assert json.loads((workdir / "report.json").read_text())["steps"] == 8
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 8
    code, _, err = run(capsys, *tiny, "--config.train.steps=4", "--allow_config_change")
    assert (code, err) == (2, "error: config.train.steps=4, but 8 steps are done\n")
    code, _, err = run(
        capsys, *tiny, "--config.train.steps=8", "--config.network.options.width=8", "--allow_config_change"
    )
    assert code == 2
    assert "checkpoint 8 does not fit: average/" in err
    # What was refused has changed nothing.
    code, out, _ = run(capsys, *tiny, "--config.train.steps=8")
    assert "training is complete" in out


@pytest.mark.slow
def test_best_by_samples(capsys, tmp_path, tiny):
    code, _, err = run(capsys, *tiny, "--config.train.best=FD", "--config.train.steps=2")
    assert (code, err) == (0, "")
    index = json.loads((tmp_path / "run" / "checkpoints" / "index.json").read_text())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    np.testing.assert_allclose(index["2"]["score"], report["FD[raw]"])


def spoiled(monkeypatch, steps):
    """Batches of these steps are not finite."""
    whole = data.Batches.batch

    def batch(self, step):
        found = whole(self, step)
        return {**found, "x1": found["x1"] * np.float32(np.nan)} if step in steps else found

    monkeypatch.setattr(data.Batches, "batch", batch)


@pytest.mark.slow
def test_skipped_steps_are_reported_and_too_many_end_the_run(capsys, tmp_path, tiny, monkeypatch):
    spoiled(monkeypatch, {1, 3})
    code, out, err = run(capsys, *tiny, "--config.train.max_skipped=2")
    assert (code, err) == (0, "")
    assert out.count("1 step(s) skipped: loss, gradient or update was not finite") == 2
    assert json.loads((tmp_path / "run" / "report.json").read_text())["skipped"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load(tmp_path / "run")))

    spoiled(monkeypatch, range(100))
    code, _, err = run(capsys, tiny[0], f"--workdir={tmp_path / 'other'}", "--config.train.max_skipped=3")
    assert code == 2
    assert err.startswith(
        "error: loss, gradient or update was not finite in the last 3 steps, up to step 3; lower config.optimizer"
    )
    assert err.count("\n") == 1


@pytest.mark.slow
def test_damaged_checkpoint_is_reported(capsys, tmp_path, tiny):
    run(capsys, *tiny)
    folder = tmp_path / "run" / "checkpoints" / "6" / "state"
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    code, out, err = run(capsys, *tiny, "--config.train.steps=7", "--allow_config_change")
    assert (code, err) == (0, "")
    assert "damaged checkpoints were removed: [6]" in out
    assert "resumed after step 4" in out


def said(stderr):
    """Lines of the run itself: grain warns of a jaxlib before 0.11, matplotlib where it cannot keep a list of fonts."""
    others = ("WARNING:absl:Grain multiprocess worker", "WARNING:matplotlib.font_manager:")
    return [line for line in stderr.splitlines() if not line.startswith(others)]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [pytest.param(200, id="config"), 20_000])
def test_full_disk_is_one_line(tmp_path, tiny, limit):
    """A limit of the size of files makes writes fail as a full disk does, small or large ones."""
    script = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "runpy.run_module('flowjax.train', run_name='__main__')"
    )
    command = [sys.executable, "-c", script, *tiny, "--config.network.options.width=64"]
    # Or the limit would leave half an entry in the cache of compiled programs.
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_ENABLE_COMPILATION_CACHE="0")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = said(done.stderr)
    assert line.startswith(f"error: cannot write to {tmp_path / 'run'}: File too large; free space")


@pytest.mark.slow
def test_profile_leaves_a_trace(capsys, tmp_path, tiny):
    code, _, err = run(capsys, *tiny, "--profile=2:3", "--config.train.steps=4")
    assert (code, err) == (0, "")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_debug_stops_at_the_nan(capsys, tiny, monkeypatch):
    names = ("jax_debug_nans", "jax_debug_key_reuse", "jax_numpy_rank_promotion", "jax_enable_compilation_cache")
    before = {name: jax.config.values[name] for name in names}
    spoiled(monkeypatch, {1})
    try:
        with pytest.raises(FloatingPointError, match="nan"):
            _cli.run(train_main.main, train_main.define, ["train", *tiny, "--debug"])
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_and_exits_with_zero(tmp_path, cause):
    number = signal.SIGTERM if cause == "SIGTERM" else signal.SIGINT
    command = [sys.executable, "-m", "flowjax.train", "--config=toy2d:smoke", f"--workdir={tmp_path / 'run'}"]
    command += ["--config.train.steps=100000", "--config.train.report_every=20", "--config.train.sample_every=100000"]
    command += ["--config.train.checkpoint_every=100000"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 20/"):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert len(said(err)) == (number == signal.SIGINT)
    stopped = int(re.search(rf"stopped by {cause}; saved after step (\d+)", out)[1])
    assert 20 <= stopped < 100000
    step, found = final(tmp_path / "run")
    assert step == stopped == found["state"]["step"]
    assert not (tmp_path / "run" / "report.json").exists()

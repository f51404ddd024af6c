import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flowjax import _cli
from flowjax import train as train_main

pytestmark = pytest.mark.standard_promotion
ROOT = Path(__file__).resolve().parent.parent


def run(capsys, *arguments):
    """Runs the main in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(train_main.main, train_main.define, ["train", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


@pytest.mark.parametrize("name", ["digits", "toy2d"])
def test_smoke_run_leaves_everything_and_is_then_complete(capsys, tmp_path, name):
    code, out, err = run(capsys, f"--config={name}:smoke", f"--workdir={tmp_path / 'run'}")
    assert (code, err) == (0, "")
    assert "parameters on 8 device(s), compiled in" in out
    assert "step 2/2  loss" in out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["evaluations"] == 4
    assert report["compile_seconds"] > 0
    assert np.isfinite(report["loss"])
    if name == "digits":
        assert {"accuracy", "spread", "nearest_ratio"} <= set(report)
    present = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"config.json", "recipe.json", "metrics.jsonl", "checkpoints", "samples", "samples.png", "report.json"}
    assert present == expected | ({"ways.png"} if name == "toy2d" else set())
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["000001.png"]

    code, out, _ = run(capsys, f"--config={name}:smoke", f"--workdir={tmp_path / 'run'}")
    assert code == 0
    assert "training is complete" in out
    code, _, err = run(capsys, f"--config={name}:smoke", f"--workdir={tmp_path / 'run'}", "--config.train.steps=3")
    assert code == 2
    assert "config.train.steps=2, not 3" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.train.steps=0"], "config.train.steps must be at least 1, got 0"),
        (["--config.sample.steps=0"], "config.sample.steps must be at least 1, got 0"),
        (["--config.train.batch=12"], "a batch of 12 cannot be split over 8 devices"),
        (["--config.mesh.fsdp=3"], "fsdp=3"),
        (["--config.sample.solver.name=huen"], "unknown solver 'huen'; did you mean 'heun'?"),
        (["--config.network.name=Dit"], "unknown network 'Dit'; did you mean 'DiT'? (allowed: DiT, MLP"),
        (["--config.path.name=Linaer"], "unknown path 'Linaer'; did you mean 'Linear'?"),
        (["--config.objective.times.name=Unifrom"], "did you mean 'Uniform'?"),
        (["--config.objective.prediction=velocty"], "velocty"),
        (["--config.data.name=digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["--config.network.options.patch=3"], "patch"),
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


def final(workdir):
    """All arrays of the newest checkpoint, by item and name."""
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        restore = ocp.args.StandardRestore
        step = manager.latest_step()
        found = manager.restore(step, args=ocp.args.Composite(state=restore(), average=restore()))
        return step, jax.tree.map(np.asarray, {"state": found["state"], "average": found["average"]})


@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")
def test_killed_training_resumes_to_the_same_bits(tmp_path):
    """SIGKILL in the middle and a new start give the parameters of an uninterrupted run, bit for bit."""
    overrides = {"steps": 600, "checkpoint_every": 50, "report_every": 50, "sample_every": 600}
    command = [sys.executable, "-m", "flowjax.train", "--config=toy2d:smoke"]
    command += [f"--config.train.{key}={value}" for key, value in overrides.items()]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))

    def start(name):
        return subprocess.Popen(
            [*command, f"--workdir={tmp_path / name}"], env=environment, stdout=subprocess.PIPE, text=True
        )

    killed = start("killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 200
    while not any(path.name.isdigit() for path in checkpoints.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "report.json").exists()

    resumed, whole = start("killed"), start("whole")
    texts = [process.communicate(timeout=300)[0] for process in (resumed, whole)]
    assert (resumed.returncode, whole.returncode) == (0, 0)
    assert "resumed after step" in texts[0]
    assert "resumed" not in texts[1]
    (step_a, a), (step_b, b) = final(tmp_path / "killed"), final(tmp_path / "whole")
    assert step_a == step_b == 600
    jax.tree.map(np.testing.assert_array_equal, a, b)
    reports = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert reports[0] == reports[1]

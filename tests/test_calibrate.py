"""The calibrate main on an untrained run, its files, and sampling with them."""

import jax
import numpy as np
import pytest
from flax import nnx

from flowjax import _cli, calibrate
from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax.training import Checkpoints
from flowjax.training.state import TrainState

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = train_main.make_recipe(_cli.load_config("digits:smoke"), train_main.data.load("digits"))
    network = jax.tree.map(lambda leaf: leaf + 0.01, jax.jit(lambda: recipe.build_network(nnx.Rngs(0)))())
    recipe.save(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        one = jax.numpy.int32(1)
        checkpoints.save(TrainState(step=one, network=network, average=network, optimizer=one))
    return folder


def run(capsys, main, *arguments):
    """Exit code, stdout, stderr of a main."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["main", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


@pytest.mark.parametrize(
    ("what", "options", "steps"),
    [
        ("ems", ["--points=20", "--num=128", "--mode=scalar", "--start=0.1", "--end=0.9"], 3),
        ("compensation", ["--steps=3", "--num=8"], None),
    ],
)
def test_calibrates_once_and_samples_with_the_file(capsys, tmp_path, workdir, what, options, steps):
    code, text, err = run(capsys, calibrate, what, f"--workdir={workdir}", "--guidance=1.0", *options)
    assert (code, err) == (0, "")
    file = text.split(" in ")[0].splitlines()[-1]
    code, text, _ = run(capsys, calibrate, what, f"--workdir={workdir}", "--guidance=1.0", *options)
    assert (code, text.strip()) == (0, f"{file} exists")
    out = tmp_path / "samples.npz"
    chosen = [f"--workdir={workdir}", "--num=8", f"--calibration={file}", *([f"--steps={steps}"] if steps else [])]
    code, text, err = run(capsys, sample_main, *chosen, "--guidance=1.0", f"--out={out}")
    assert (code, err) == (0, "")
    assert "3 evaluations" in text
    assert np.isfinite(np.load(out)["x"]).all()
    code, _, err = run(capsys, sample_main, *chosen, "--guidance=2.0", f"--out={tmp_path / 'other.npz'}")
    assert code == 2
    assert "calibrated for guidance=1.0, not 2.0" in err
    assert not (tmp_path / "other.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to calibrate"),
        (["emx"], "did you mean 'ems'"),
        (["ems"], "--workdir=FOLDER is required"),
        (["ems", "--workdir=nowhere"], "is not the workdir"),
        (["schedule", "--workdir=nowhere", "--steps=0"], "--steps must be at least 1"),
        (["ems", "--workdir=nowhere", "--start=0.9", "--end=0.1"], "start"),
        (["ems", "--point=3"], "did you mean '--points'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, arguments, message):
    code, out, err = run(capsys, calibrate, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err

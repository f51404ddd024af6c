"""Students that learn without data: the teacher and its conditions are all that a run needs."""

import json

import numpy as np
import pytest
import small
from runs import exit_code

from flowjax import data
from flowjax import evaluate as evaluate_main
from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax.recipe import load_run

pytestmark = pytest.mark.standard_promotion
BLANK = "blank(shape=(8, 8, 1), num_classes=10)"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    small.write(folder)
    return folder


def train(config, teacher, workdir, *arguments):
    run = "base" if config.endswith(":lora") else "teacher"
    flags = (f"--config.{run}.options.workdir={teacher}", f"--config.data={BLANK}", "--config.train.checkpoint_every=1")
    small_run = () if config.endswith("smoke") else ("--config.train.steps=2", "--config.train.batch=8")
    return exit_code(train_main, f"--config={config}", f"--workdir={workdir}", *flags, *small_run, *arguments)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("arcflow:smoke", marks=pytest.mark.slow),
        pytest.param("arcflow:lora", marks=pytest.mark.slow),
        pytest.param("dmd2:smoke", marks=pytest.mark.slow),
        pytest.param("mf_rae:cmt_smoke", marks=pytest.mark.slow),
    ],
)
def test_students_of_a_teacher_need_no_data(config, teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train(config, teacher, workdir) == 0
    report = json.loads((workdir / "report.json").read_text())
    assert np.isfinite(report["loss"])
    assert not any(name.startswith(("FD", "accuracy", "spread")) for name in report)  # there is nothing to compare with
    assert (workdir / "samples.png").exists()
    recipe = load_run(workdir)[1]
    assert (recipe.low, recipe.high, recipe.scale) == (0.0, 16.0, 8.0)  # the teacher's
    assert exit_code(sample_main, f"--workdir={workdir}", "--num=20", f"--out={tmp_path / 'samples.npz'}") == 0
    capsys.readouterr()
    assert exit_code(evaluate_main, f"--workdir={workdir}", "--num=100") != 0
    assert "was trained without data: say what to compare with, --data=digits" in capsys.readouterr().err
    assert exit_code(evaluate_main, f"--workdir={workdir}", "--num=100", f"--data={BLANK}") != 0
    assert "has no examples" in capsys.readouterr().err
    assert exit_code(evaluate_main, f"--workdir={workdir}", "--num=100", "--data=digits") == 0
    row = json.loads((workdir / "evaluation.json").read_text())["runs"][0]["rows"][0]
    assert np.isfinite([value for name, value in row.items() if name.startswith("FD[")]).all()


@pytest.mark.parametrize(
    ("config", "argument", "message"),
    [
        ("arcflow:smoke", "--config.objective.options.from_data=True", "has no examples"),
        ("dmd2:smoke", "--config.objective.options.adversary=True", "has no examples"),
        ("distill:smoke", "--config.seed=0", "has no examples"),
        ("arcflow:smoke", "--config.train.best=FD", "config.train.best='FD' compares with examples"),
        ("arcflow:smoke", "--config.data.options.shape=8,8,3", "does not fit: its shape"),
        ("arcflow:smoke", "--config.data.options.num_classes=3", "does not fit: its number of classes"),
    ],
)
def test_what_needs_data_is_refused(config, argument, message, teacher, tmp_path, capsys):
    assert train(config, teacher, tmp_path / "run", argument) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_texts_stand_for_data(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a red circle\na blue square\n")
    source = data.load("blank", shape=(16, 16, 3), path=str(path))
    assert (source.x.shape, source.fields["text"].tolist()) == ((2, 16, 16, 3), ["a red circle", "a blue square"])
    uneven = tmp_path / "uneven.txt"
    uneven.write_text("a" * 2**22 + "\na" * 2**21)
    with pytest.raises(ValueError, match="the texts of"):
        data.load("blank", shape=(2,), path=str(uneven))
    with pytest.raises(ValueError, match="classes or texts"):
        data.load("blank", shape=(2,), num_classes=3, path=str(path))
    with pytest.raises(ValueError, match=r"shape\[1\]"):
        data.load("blank", shape=(2, 0))
    huge = data.load("blank", shape=(2048, 2048, 3), size=10**6)  # holds nothing
    assert huge.select(np.array([3, 5])).x.shape == (2, 2048, 2048, 3)

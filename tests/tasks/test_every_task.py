"""What holds for the runs of every task: a run that is broken off goes on bit for bit, in parts and on every mesh it
learns the same."""

import json
import shutil

import jax
import numpy as np
import pytest
import small
from runs import config_of

from flowjax import _cli
from flowjax import train as train_main
from flowjax.tasks import make_program
from flowjax.training import compile_step, make_mesh, over

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]
CONFIGS = [
    "digits",
    "moons",
    "captions",
    "distill",
    "adapters",
    "lcm",
    "lcm_lora",
    "rectified",
    "refiner",
    "arcflow",
    "dmd2",
    "classifier",
    "autoencoder",
    "rae",
    "clouds",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    small.write(folder)
    small.write_pairs(folder, num=16)
    small.write_encoder(folder / "encoder")
    return folder


STUDENTS = ("distill", "lcm", "rectified", "refiner", "arcflow", "dmd2", "mdt")


def stands_on(name, trained):
    """Flags that name the runs and pairs that a config needs."""
    needs = {"adapters": "base", "lcm_lora": "base"} | dict.fromkeys(STUDENTS, "teacher")
    flags = [f"--config.{needs[name]}.options.workdir={trained}"] if name in needs else []
    flags += [f"--config.encoder.options.workdir={trained / 'encoder'}"] if name == "rae" else []
    return flags + ([f"--config.coupling.options.path={trained / 'pairs'}"] if name == "rectified" else [])


def run(name, workdir, trained, *flags):
    flags += (*stands_on(name, trained),)
    with pytest.raises(SystemExit) as exit_:
        _cli.run(train_main.main, train_main.define, ["x", f"--config={name}:smoke", f"--workdir={workdir}", *flags])
    assert exit_.value.code == 0


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_that_is_broken_off_goes_on(name, trained, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    run(name, whole, trained)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "2")
    (again / "report.json").unlink()
    run(name, again, trained)
    assert losses(again)[-1] == losses(whole)[-1]
    report, expected = (json.loads((path / "report.json").read_text()) for path in (again, whole))
    for key in expected.keys() - {
        "compile_seconds",
        "wall_seconds",
        "goodput",
        "samples_per_second",
        "train_images_per_second",
    }:
        np.testing.assert_array_equal(report[key], expected[key], err_msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_in_parts_is_the_whole_batch(name, trained, tmp_path):
    """Up to rounding; the adversary's weight and the statistics of a batch are those of a part."""
    run(name, tmp_path / "whole", trained, "--config.train.steps=1")
    run(name, tmp_path / "parts", trained, "--config.train.steps=1", "--config.train.accumulate=2")
    jax.clear_caches()
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-3)


@pytest.mark.parametrize("name", [*CONFIGS, "meanflow", "imf", "shortcut", "consistency", "scm", "mdt", "solids"])
def test_a_mesh_changes_nothing(name, trained):
    """Teachers, averages, critics and codecs are cut too; up to the order of additions."""
    found = []
    for sizes in ({}, {"fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2}):
        mesh = make_mesh(**sizes)
        with over(mesh):
            program = make_program(config_of(f"--config={name}:smoke", *stands_on(name, trained)), mesh)
            state, given = program.create(), (program.objective, program.batch, program.key)
            _, metrics = compile_step(program.step, state, *given)(state, *given)
        found.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
        jax.clear_caches()
    assert min(found[0]) > 0
    for numbers in found[1:]:
        np.testing.assert_allclose(numbers, found[0], rtol=1e-3)

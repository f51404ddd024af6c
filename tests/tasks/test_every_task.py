"""What holds for the runs of every task: a run that is broken off goes on bit for bit, in parts and on every mesh it
learns the same."""

import json
import shutil

import jax
import numpy as np
import pytest
import small

from flowjax import _cli
from flowjax import train as train_main

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
    "clouds",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    small.write(folder)
    small.write_pairs(folder, num=16)
    return folder


STUDENTS = ("distill", "lcm", "rectified", "refiner", "arcflow", "dmd2", "mdt", "scm")


def run(name, workdir, trained, *flags):
    stands_on = {"adapters": "base", "lcm_lora": "base"} | dict.fromkeys(STUDENTS, "teacher")
    if name in stands_on:
        flags += (f"--config.{stands_on[name]}.options.workdir={trained}",)
    if name == "rectified":
        flags += (f"--config.coupling.options.path={trained / 'pairs'}",)
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
    for key in expected.keys() - {"compile_seconds", "wall_seconds", "samples_per_second", "train_images_per_second"}:
        np.testing.assert_array_equal(report[key], expected[key], err_msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_in_parts_is_the_whole_batch(name, trained, tmp_path):
    """Up to rounding; the adversary's weight and the statistics of a batch are those of a part."""
    run(name, tmp_path / "whole", trained, "--config.train.steps=1")
    run(name, tmp_path / "parts", trained, "--config.train.steps=1", "--config.train.accumulate=2")
    jax.clear_caches()
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-3)


@pytest.mark.parametrize("name", [*CONFIGS, "meanflow", "imf", "shortcut", "consistency", "scm", "mdt", "solids"])
def test_a_mesh_changes_nothing(name, trained, tmp_path):
    """Teachers, averages, critics and codecs are cut too; up to the order of additions."""
    for mesh in ({}, {"fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2}):
        flags = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
        workdir = tmp_path / ("-".join(mesh) or "data")
        run(name, workdir, trained, "--config.train.steps=1", *flags)
        jax.clear_caches()
        np.testing.assert_allclose(losses(workdir), losses(tmp_path / "data"), rtol=1e-3, err_msg=str(mesh))

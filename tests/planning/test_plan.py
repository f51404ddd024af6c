"""Plans of real configs: for GPUs with CPU devices as a stand-in, for TPUs where libtpu is installed."""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest
import small
from runs import config_of, exit_code

from flowjax import plan as plan_main
from flowjax.plan import variants
from flowjax.planning import parse, plan_sampler, plan_step
from flowjax.tasks import make_program
from flowjax.training import make_mesh
from flowjax.training.show import nbytes

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(autouse=True)
def eight_devices():
    """JAX has its devices before a plan may ask for others, which other tests would meet."""
    assert len(jax.devices()) == 8


def planned(*arguments, topology="h100x8", **mesh):
    config, topology = config_of(*arguments), parse(topology)
    program = make_program(config, make_mesh(devices=jax.devices()[:1]))
    there = make_mesh(**mesh)
    return program, plan_step(program, topology, there), plan_sampler(program, topology, there)


@pytest.mark.slow
def test_memory_and_exchanges_of_a_step():
    program, step, sampler = planned("--config=digits:smoke")
    weights = nbytes(program.shapes.networks)
    assert step.memory["weights"] == step.memory["averages"] == weights
    assert 2 * weights <= step.memory["optimiser"] <= 2 * weights + 64
    assert step.needed >= sum(step.memory[name] for name in ("weights", "averages", "optimiser"))
    assert step.fits
    assert not step.whole
    assert {one.kind for one in step.exchanges} == {"all-reduce"}
    assert sum(one.size for one in step.exchanges) >= weights  # the gradient
    assert step.flops == step.model_flops > 0
    assert step.bound in step.seconds
    assert 0 < step.utilisation <= 1
    assert sampler.memory["weights"] == weights
    assert not sampler.exchanges
    config = program.task.config
    # Each sample is a row of two in the guided pair; Heun evaluates twice a step.
    assert sampler.flops > 2 * 2 * config.sample.steps * config.sample.batch

    _, split, _ = planned("--config=digits:smoke", fsdp=8)
    assert split.memory["weights"] < weights / 4
    assert "all-gather" in {one.kind for one in split.exchanges}


@pytest.mark.slow
def test_axes_that_stay_whole_are_named():
    _, step, _ = planned("--config=digits:smoke", "--config.network.options.width=12", fsdp=8)
    assert ("embed", 12, "fsdp", 8) in {one[:4] for one in step.whole}


@pytest.mark.slow
def test_recomputation_is_no_work_of_the_model(capsys):
    command = ["--config=sit:smoke", "--topology=h100x8", "--nosampler"]
    assert exit_code(plan_main, *command, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    assert 1.2 < found["flops"] / found["model_flops"] < 1.4
    assert exit_code(plan_main, *command) == 0
    out = capsys.readouterr().out
    assert "step on h100x8, mesh data 8: fits" in out
    assert "of it recomputation" in out


@pytest.mark.slow
def test_teachers_are_counted(tmp_path):
    small.write(tmp_path)
    teacher = f"--config.teacher.options.workdir={tmp_path}"
    program, step, _ = planned("--config=distill", teacher)
    teacher_bytes = nbytes(program.task.teacher.networks)
    assert teacher_bytes <= step.memory["teachers and tables"] <= teacher_bytes + 1000
    assert step.memory["weights"] == nbytes(program.shapes.networks) > teacher_bytes  # it takes scales of guidance
    program, step, _ = planned("--config=dmd2", teacher)  # a student and a fake network
    assert step.memory["weights"] >= 2 * nbytes(program.task.teacher.networks)


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_does(capsys, monkeypatch):
    """A chip with little memory: parameters are split until they fit."""
    import dataclasses

    from flowjax.planning import hardware

    command = ["--config=digits:smoke", "--topology=h100x8", "--nosampler", "--config.network.options.width=64"]
    exit_code(plan_main, *command, "--json")
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    tight = dataclasses.replace(hardware.CHIPS["h100"], memory=0.8 * found["needed"])
    monkeypatch.setitem(hardware.CHIPS, "h100", tight)
    assert exit_code(plan_main, *command) == 1
    out = capsys.readouterr().out
    assert "does NOT fit" in out
    assert "fits with --config" in out
    monkeypatch.setitem(hardware.CHIPS, "h100", dataclasses.replace(tight, memory=1000))
    assert exit_code(plan_main, *command) == 1
    assert "no variant fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (None, "--topology is required"),
        ("v9:2x2", "accelerator 'v9'"),
        ("16", "accelerator '16'"),
        ("V5e:2x4", "accelerator 'V5e:2x4'"),
        ("v5e", "a topology of v5e is written like v5e:2x4"),
        ("v5ex8", "is written like v5e:2x4"),
        ("h100:2x4", "a topology of h100 is written like h100x8"),
        ("h100x0", "must have 1 to 65536 devices"),
        ("h100x2x2", "must have 1 to 65536 devices"),
        ("h100x4096", "CPU devices as a stand-in"),
    ],
)
def test_topologies_that_are_none(capsys, topology, words):
    given = [] if topology is None else [f"--topology={topology}"]
    assert exit_code(plan_main, "--config=digits:smoke", *given) == 2
    assert words in capsys.readouterr().err


def test_a_batch_that_does_not_split_is_refused(capsys):
    assert exit_code(plan_main, "--config=digits:smoke", "--topology=h100x8", "--config.train.batch=12") == 2
    assert "a batch of 12 cannot be split over 8 devices" in capsys.readouterr().err


def test_smaller_variants_recompute_more_and_more():
    config = config_of("--config=digits:smoke")
    flags = [given for given, _ in variants(config, 8)]
    names = [flag.rpartition("=")[2] for given in flags[:3] for flag in given]
    assert names == ["dots_saveable", "dots_with_no_batch_dims_saveable", "True"]
    some = config_of("--config=digits:smoke", "--config.network.options.remat=dots_with_no_batch_dims_saveable")
    assert next(given for given, _ in variants(some, 8)) == ["--config.network.options.remat=True"]
    whole = {"data": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
    for given, smaller in variants(config, 8):
        assert ("--config.mesh.fsdp=8" in given) == (smaller.mesh.to_dict() == whole)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install(capsys):
    assert exit_code(plan_main, "--config=digits:smoke", "--topology=v5e:2x4") == 2
    assert 'pip install "flowjax-generative[tpu-plan]"' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "batch"), [("v5e:2x4", 256), ("v5e:16x16", 1024), ("v5p:2x2x1", 256)])
def test_the_largest_sit_on_tpus(topology, batch):
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "flowjax.plan", "--config=sit:XL/2", f"--topology={topology}", "--json"]
    done = subprocess.run([*command, f"--config.train.batch={batch}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    step, sampler = json.loads(done.stdout)["plans"]
    assert step["memory"]["weights"] == pytest.approx(4 * 674e6, rel=0.01)
    # Published: 118.6 GFLOPs (products and sums as one) of a call with one image, three calls' worth a step.
    assert step["model_flops"] == pytest.approx(batch * 3 * 2 * 118.6e9, rel=0.03)
    assert sampler["fits"]

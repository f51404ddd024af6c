import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from runs import wait_for_checkpoint

from flowjax import launch

ROOT = Path(__file__).resolve().parent.parent
MPI = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}
HOSTS = MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
SLURM = {"SLURM_JOB_ID": "70000", "SLURM_STEP_NODELIST": "gpu-[007-009,12],x1", "SLURM_STEP_NUM_TASKS": "8"}
SLURM |= {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x4)", "SLURM_STEP_ID": "0"}
PORT = 61440 + 70000 % 4096


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (MPI, ("Open MPI", "localhost:", 8, 5, (5,))),
        (HOSTS, ("Open MPI", None, 8, 5, (1,))),
        (HOSTS | {"CUDA_VISIBLE_DEVICES": "3"}, ("Open MPI", None, 8, 5, None)),
        (
            HOSTS | {"OMPI_MCA_orte_hnp_uri": "4096000.0;tcp://10.0.0.1,10.1.0.1:34911"},
            ("Open MPI", "10.0.0.1:62440", 8, 5, (1,)),
        ),
        (
            HOSTS | {"OMPI_MCA_orte_hnp_uri": "4096000.0;tcp6://[fe80::b9b,2620::2]:43370"},
            ("Open MPI", "[fe80::b9b]:62440", 8, 5, (1,)),
        ),
        (SLURM, ("Slurm", f"gpu-007:{PORT}", 8, 3, (1,))),
        (SLURM | {"SLURM_STEP_NODELIST": "n1,n2", "SLURM_STEP_ID": "2"}, ("Slurm", f"n1:{PORT + 194}", 8, 3, (1,))),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, ("Slurm", f"gpu-007:{PORT}", 8, 3, None)),
        (SLURM | {"SLURM_STEP_NODELIST": "one", "SLURM_STEP_NUM_TASKS": "1"}, ("Slurm", f"one:{PORT}", 1, 3, None)),
        (SLURM | MPI, ("Open MPI", "localhost:", 8, 5, (5,))),  # mpirun starts its daemons by srun
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, "SLURM_STEP_NODELIST is not set"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, "SLURM_STEP_NODELIST is not set"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"},
            ("Kubernetes, without the package kubernetes,", None, None, 2, None),
        ),
    ],
)
def test_what_the_surroundings_say(environment, expected):
    place, remark = launch.find(environment)
    if isinstance(expected, tuple):
        name, coordinator, *rest = expected
        assert (place.name, place.num_processes, place.process_id, place.devices) == (name, *rest)
        if coordinator is None or not coordinator.endswith(":"):
            assert place.coordinator == coordinator
        else:  # of one host: any port, the same for all of its processes
            assert re.fullmatch(rf"{coordinator}6\d{{4}}", place.coordinator)
            assert launch.find(environment)[0] == place
    else:
        assert place is None
        assert (expected or "") in remark
        assert bool(remark) == (expected is not None)


@pytest.mark.parametrize(("hosts", "count"), [("localhost", 1), ("a,b", None), (None, None)])
def test_tpu_hosts(monkeypatch, hosts, count):
    monkeypatch.setattr(launch.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    environment = {} if hosts is None else {"TPU_WORKER_HOSTNAMES": hosts}
    place, _ = launch.find(environment)
    assert (place.name[:3], place.num_processes, place.asks) == ("TPU", count, count is None)
    assert launch.find(environment | {"JAX_PLATFORMS": "cpu"}) == (None, "")
    if hosts is None:  # notebooks of one host
        assert launch.find({"TPU_SKIP_MDS_QUERY": "1"})[0].num_processes == 1


def asked(*arguments):
    values = flags.FlagValues()
    launch.define(values)
    values(["main", *arguments])
    return values


def test_a_task_that_is_alone_joins_nobody():
    alone = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert launch.resolve(asked(), alone) == (None, "Slurm: one process")
    assert launch.resolve(asked(), {"SLURM_JOB_ID": "1"})[1].startswith("Slurm: no task of srun")
    assert launch.resolve(asked("--distributed=off"), SLURM) == (None, "")
    assert launch.resolve(asked("--distributed=on"), alone)[0].num_processes == 1


def test_flags_stand_above_the_cluster():
    place, _ = launch.resolve(asked("--coordinator=head:1234"), HOSTS)
    assert (place.coordinator, place.num_processes, place.process_id) == ("head:1234", 8, 5)
    place, _ = launch.resolve(asked("--coordinator=[::1]:99", "--num_processes=3", "--process_id=1"), {})
    assert (place.coordinator, place.num_processes, place.process_id) == ("[::1]:99", 3, 1)


@pytest.mark.parametrize(
    ("environment", "arguments", "words"),
    [
        ({}, ["--distributed=on"], "--coordinator is missing"),
        ({}, ["--coordinator=a:1"], "--num_processes is missing"),
        (HOSTS, [], "--coordinator is missing: .* Open MPI tells less"),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, [], "without the package kubernetes, tells"),
        (MPI | {"OMPI_COMM_WORLD_RANK": "x"}, [], "OMPI_COMM_WORLD_RANK='x' must be a whole number"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, [], "names no host"),
        ({}, ["--coordinator=a", "--num_processes=2", "--process_id=0"], "must be HOST:PORT, got 'a'"),
        ({}, ["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "process_id"),
        ({}, ["--coordinator=a:1", "--num_processes=0", "--process_id=0"], "num_processes"),
        (SLURM, ["--distributed=off", "--process_id=0"], "--process_id is given, and --distributed=off"),
    ],
)
def test_what_cannot_be(environment, arguments, words):
    with pytest.raises(ValueError, match=words):
        launch.resolve(asked(*arguments), environment)


# --------------------------------------------------------------------------------------------------------------------
# Real processes
# --------------------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def begin(main, *arguments, count=2, devices=4, joined=True, **variables):
    """Processes of a main, with so many devices each; one that is joined adds numbers of devices as several do."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
    command = [sys.executable, "-m", f"flowjax.{main}", *map(str, arguments)]
    if joined:
        command += [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [*command, *([f"--process_id={i}"] if joined else [])],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def finish(processes, codes=0):
    """What each wrote."""
    texts = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [codes] * len(processes), texts
    return texts


def quiet(text):
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


@pytest.fixture
def tiny(tmp_path):
    options = ["--config=digits:smoke", f"--workdir={tmp_path / 'run'}", "--config.mesh.fsdp=2"]
    return [*options, "--config.train.steps=12", "--config.train.report_every=1", "--config.train.checkpoint_every=4"]


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["gradient_norm"]) for line in lines}


@pytest.mark.slow
def test_killed_in_two_processes_and_resumed_in_one(tmp_path, tiny):
    """Two processes of four devices; one is killed; one process of eight goes on: exactly the losses of one process.

    One that is not joined adds the numbers of its devices in another order: there the losses agree to rounding.
    """
    tiny.append("--config.train.steps=60")
    processes = begin("train", *tiny)
    wait_for_checkpoint(tmp_path / "run", processes[0], 8)
    processes[1].kill()
    processes[1].communicate()
    out, _ = processes[0].communicate(timeout=300)  # it does not wait for ever
    assert processes[0].returncode != 0
    assert "flags: 2 processes, 8 devices" in out
    log = (tmp_path / "run" / "logs" / "process-1.log").read_text()
    assert "flowjax" in log
    assert "--process_id=1" in log
    assert not (tmp_path / "run" / "report.json").exists()
    texts = finish(begin("train", *tiny, count=1, devices=8))
    assert "resumed after step" in texts[0][0]

    for name in ("joined", "alone"):
        tiny[1] = f"--workdir={tmp_path / name}"
        finish(begin("train", *tiny, count=1, devices=8, joined=name == "joined"))
    found = losses(tmp_path / "run")
    assert found == losses(tmp_path / "joined")
    alone = losses(tmp_path / "alone")
    assert found.keys() == alone.keys()
    np.testing.assert_allclose([*found.values()], [*alone.values()], rtol=1e-3)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both(tmp_path, tiny):
    processes = begin("train", *tiny, "--config.train.steps=20000", "--config.train.checkpoint_every=20000")
    for line in processes[0].stdout:
        if line.startswith("step 10/"):
            processes[1].send_signal(signal.SIGTERM)
            break
    texts = finish(processes)
    stopped = int(re.search(r"saved after step (\d+)", texts[0][0])[1])
    assert not quiet(texts[1][0])
    assert (tmp_path / "run" / "checkpoints" / str(stopped)).is_dir()


@pytest.mark.slow
def test_two_processes_sample_evaluate_and_calibrate(tmp_path, tiny):
    workdir = f"--workdir={tmp_path / 'run'}"
    finish(begin("train", "--config=digits:smoke", workdir, count=1, devices=8))
    found = []
    for count, devices in ((2, 4), (1, 8)):
        out = tmp_path / f"{count}.npz"
        finish(begin("sample", workdir, "--num=30", f"--out={out}", count=count, devices=devices))
        sweep = ["--solvers=euler", "--steps=2", "--num=40"]
        texts = finish(begin("evaluate", workdir, *sweep, count=count, devices=devices))
        assert all(not quiet(out) for out, _ in texts[1:])
        rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())["runs"][-1]["rows"]
        for ending in ("json", "png"):
            (tmp_path / "run" / f"evaluation.{ending}").unlink()
        options = ["--steps=2", "--num=16", "--rounds=1"]
        finish(begin("calibrate", "schedule", workdir, *options, count=count, devices=devices))
        folder = tmp_path / "run" / "calibration"
        (file,) = folder.glob("schedule*.npz")
        with np.load(file) as stored, np.load(out) as samples:
            found.append((samples["x"], samples["cond"], rows[0], dict(stored)))
        for path in folder.iterdir():
            path.unlink()
    (x, cond, row, schedule), (x1, cond1, row1, schedule1) = found
    np.testing.assert_array_equal(x, x1)
    np.testing.assert_array_equal(cond, cond1)
    distances = [name for name in row if name.startswith("FD[")]
    assert distances
    for name in ("evaluations", "accuracy", *distances):
        assert row[name] == row1[name]
    assert schedule.keys() == schedule1.keys()
    for name in schedule.keys() - {"seconds"}:
        np.testing.assert_array_equal(schedule[name], schedule1[name], err_msg=name)


@pytest.mark.slow
def test_failures_end_all_processes(tmp_path):
    """The same mistake in all is told once; what fails in one alone does not leave the other waiting."""
    clock = time.perf_counter()
    texts = finish(begin("sample", f"--workdir={tmp_path / 'none'}"), 2)
    assert "is not the workdir of a training run" in texts[0][1]
    assert not (tmp_path / "none").exists()
    options = ["--config=digits:smoke", f"--workdir={tmp_path / 'run'}"]
    texts = finish(begin("train", *options, "--config.train.batch=20"), 2)
    assert "cannot be split over 8 devices" in texts[0][1]
    assert texts[1][1].startswith("process 1: error: ")
    assert "error: " in (tmp_path / "run" / "logs" / "process-1.log").read_text()
    assert time.perf_counter() - clock < 200

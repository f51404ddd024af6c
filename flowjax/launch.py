"""Starts a main alone, or as one of the processes of a run on several hosts.

`jax.distributed` does the work. What is here finds out where a process stands:

    TPU pod      TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES, else what the metadata of the host say
    Open MPI     OMPI_COMM_WORLD_SIZE, _RANK, _LOCAL_SIZE and _LOCAL_RANK of `mpirun`
    Slurm        SLURM_STEP_NODELIST, _STEP_NUM_TASKS, _PROCID, ... of a task of `srun`
    Kubernetes   JOB_COMPLETION_INDEX of an indexed Job or JobSet, the rest by its API (package kubernetes)

Variables of a cluster without those of a task, as in a notebook within an allocation, start one process and say so.
"""

import dataclasses
import datetime
import glob
import importlib.util
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from flowjax import _checks

MODES = ("auto", "on", "off")
_OWN = ("coordinator", "num_processes", "process_id")
_PORTS = 61440, 4096  # first and number of those from which coordinators of clusters take theirs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among those of its run, as far as it is known; None is what JAX finds out by itself.

    Attributes:
        name: What told it.
        coordinator: HOST:PORT of the first process.
        num_processes: How many there are.
        process_id: Which this one is, from 0.
        devices: Those of this host that belong to it; None takes all that it sees.
        asks: Whether JAX can ask the cluster for what is None.

    Example:
        >>> from flowjax.launch import find
        >>> find({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"})[0].process_id
        1
    """

    name: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    devices: tuple[int, ...] | None = None
    asks: bool = False


def define(values: flags.FlagValues) -> None:
    """The flags of every main that can run on several hosts."""
    text = "Whether this is one of several processes: auto asks TPU pods, Slurm, Kubernetes and Open MPI."
    flags.DEFINE_enum("distributed", "auto", MODES, text, flag_values=values)
    text = "HOST:PORT of the first process, for machines without a cluster."
    flags.DEFINE_string("coordinator", None, text, flag_values=values)
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", flag_values=values)


# --------------------------------------------------------------------------------------------------------------------
# What the surroundings say
# --------------------------------------------------------------------------------------------------------------------


def find(environment: Mapping[str, str]) -> tuple[Place | None, str]:
    """The place of this process by its environment, and a remark on what was seen.

    Raises:
        ValueError: A variable is not what it should be.
    """
    remark = ""
    for look in (_tpu, _open_mpi, _slurm, _kubernetes):
        found = look(environment)
        if isinstance(found, Place):
            return found, ""
        remark = remark or found
    return None, remark


def _numbers(environment: Mapping[str, str], *names: str) -> list[int]:
    found = []
    for name in names:
        text = environment.get(name, "")
        if not text.isdecimal():
            raise ValueError(f"{name}={text!r} must be a whole number; unset it, or give --distributed=off")
        found.append(int(text))
    return found


def _own_devices(environment: Mapping[str, str], local_count: int, local_id: int) -> tuple[int, ...] | None:
    """Those of one of several processes of a host: its own GPU, unless the launcher shows it no other."""
    shown = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", "all"))
    return None if local_count == 1 or (shown != "all" and "," not in shown) else (local_id,)


def _tpu(environment: Mapping[str, str]) -> Place | str:
    allowed = environment.get("JAX_PLATFORMS", "tpu")
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    if "tpu" not in allowed.split(",") or not chips or importlib.util.find_spec("libtpu") is None:
        return ""
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in environment:
        return Place(name="TPU", asks=True)
    if len((hosts or "").split(",")) == 1 and slices == "1":
        return Place(name="TPU", num_processes=1)
    return Place(name="TPU pod", asks=True)


def _open_mpi(environment: Mapping[str, str]) -> Place | str:
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return ""
    count, rank = _numbers(environment, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    local_count, local_rank = count, rank
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environment:
        names = "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
        local_count, local_rank = _numbers(environment, *names)
    # Open MPI 5 tells no address; 4 does, and the number of the job before it.
    told = re.match(r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    host = (told[2] or told[3]) if told else "localhost" if local_count == count else None
    job = int(told[1]) // 4096 if told else os.getppid()
    return Place(
        name="Open MPI",
        coordinator=None if host is None else _address(host, job),
        num_processes=count,
        process_id=rank,
        devices=_own_devices(environment, local_count, local_rank),
    )


def _slurm(environment: Mapping[str, str]) -> Place | str:
    if "SLURM_JOB_ID" not in environment:
        return ""
    needed = ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if missing := [name for name in needed if name not in environment]:
        return f"Slurm: no task of srun ({missing[0]} is not set), so this is one process"
    job, count, rank, local = _numbers(environment, "SLURM_JOB_ID", *needed[1:])
    step = environment.get("SLURM_STEP_ID", "0")
    # node7, node[01-04,9], a-node[3,7]: the first name
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", environment["SLURM_STEP_NODELIST"])
    if first is None:
        raise ValueError(f"SLURM_STEP_NODELIST={environment['SLURM_STEP_NODELIST']!r} names no host")
    per_host = environment.get("SLURM_STEP_TASKS_PER_NODE", str(count))
    alone = set(re.sub(r"\(x\d+\)", "", per_host).split(",")) == {"1"}
    return Place(
        name="Slurm",
        coordinator=_address(first[1] + (first[2] or ""), job + 97 * (int(step) if step.isdecimal() else 0)),
        num_processes=count,
        process_id=rank,
        devices=_own_devices(environment, 1 if alone else count, local),
    )


def _kubernetes(environment: Mapping[str, str]) -> Place | str:
    if "KUBERNETES_SERVICE_HOST" not in environment or "JOB_COMPLETION_INDEX" not in environment:
        return ""
    (index,) = _numbers(environment, "JOB_COMPLETION_INDEX")
    if importlib.util.find_spec("kubernetes") is None:
        return Place(name="Kubernetes, without the package kubernetes,", process_id=index)
    return Place(name="Kubernetes", process_id=index, asks=True)


def _address(host: str, job: int) -> str:
    first, count = _PORTS
    return f"{f'[{host}]' if ':' in host else host}:{first + job % count}"


# --------------------------------------------------------------------------------------------------------------------
# What is done with it
# --------------------------------------------------------------------------------------------------------------------


def resolve(values: flags.FlagValues, environment: Mapping[str, str]) -> tuple[Place | None, str]:
    """The place to start from by flags and environment, None for a process alone; and a remark.

    Raises:
        ValueError: Flags that contradict each other, or something that is needed and nobody knows.
    """
    given = {name: values[name].value for name in _OWN if values[name].value is not None}
    if values.distributed == "off":
        if given:
            raise ValueError(f"--{min(given)} is given, and --distributed=off: leave one of them out")
        return None, ""
    found, remark = find(environment)
    if values.distributed == "auto" and not given:
        if found is None or found.num_processes == 1:
            return None, remark or ("" if found is None else f"{found.name}: one process")
    place = dataclasses.replace(found or Place(name="flags"), **given)
    if not re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+):\d{1,5}", address := place.coordinator or "any:0"):
        raise ValueError(f"--coordinator must be HOST:PORT, got {address!r}")
    if place.num_processes is not None:
        _checks.whole(_checks.COUNT, num_processes=place.num_processes)
        if place.process_id is not None:
            _checks.whole(f"[0, {place.num_processes - 1}]", process_id=place.process_id)
    missing = [name for name in _OWN if getattr(place, name) is None]
    if missing and not place.asks:
        seen = "no TPU pod, Slurm, Kubernetes or Open MPI is seen here" if found is None else f"{found.name} tells less"
        raise ValueError(
            f"--{missing[0]} is missing: several processes need {', '.join(f'--{name}' for name in _OWN)}, and {seen}; "
            "--distributed=off starts one process"
        )
    return place, ""


def start(values: flags.FlagValues, logs: str | Path | None, timeout: int = 300) -> None:
    """Joins the other processes of the run, if there are any. To be called before anything else touches a device.

    The first process says what was found. The output of the others goes to the files `process-ID.log` in `logs`.

    Args:
        values: Flags, with those of `define`.
        logs: Made if needed; None leaves the output where it is.
        timeout: Seconds to wait for the others.

    Raises:
        ValueError: See `resolve`; the others do not come.
    """
    if jax.distributed.is_initialized():
        return
    place, remark = resolve(values, os.environ)
    if remark:
        print(remark)
    if place is None:
        return
    more: dict[str, Any] = {} if place.asks else {"cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            local_device_ids=place.devices,
            initialization_timeout=timeout,
            **more,
        )
    except (ValueError, RuntimeError, OSError) as error:
        where = f" at {place.coordinator}" if place.coordinator else ""
        raise ValueError(
            f"{place.name}: the processes of this run did not find each other{where}: {str(error) or repr(error)}"
        ) from error
    if jax.process_index() > 0:
        _write_to(None if logs is None else Path(logs))
    elif jax.process_count() > 1:
        print(f"{place.name}: {jax.process_count()} processes, {len(jax.devices())} devices", flush=True)


_terminal: int | None = None  # where the first process speaks, for the last words of another one


def _write_to(logs: Path | None) -> None:
    """Sends the output of this process, that of compiled libraries too, to its log."""
    global _terminal
    if logs is None:
        return
    logs.mkdir(parents=True, exist_ok=True)
    file = os.open(logs / f"process-{jax.process_index()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    os.write(file, f"\n{now}  {' '.join(sys.argv)}\n".encode())
    _terminal = os.dup(2)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(file, number)
    os.close(file)


def everywhere(good: bool) -> bool:
    """Whether `good` holds in all processes."""
    return good if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(good)).all())


def check_shared(what: str | Path, number: int) -> None:
    """Refuses a file or folder in which processes do not find the same.

    Args:
        what: The file or folder.
        number: How much this process has found.

    Raises:
        ValueError: Others have found another number.
    """
    if jax.process_count() > 1 and len({*multihost_utils.process_allgather(np.asarray(number)).tolist()}) > 1:
        raise ValueError(f"{what} lies on some hosts and not on all: use a folder that all hosts share")


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def leave(code: int, words: str) -> None:
    """Ends this process at once, where it is one of several, so that the others do not wait for it; else nothing.

    Args:
        code: Exit code, not 0.
        words: Why; processes that write to logs tell it on the terminal too.
    """
    if not several():
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if _terminal is not None:
        os.write(_terminal, f"process {jax.process_index()}: {words}\n".encode())
    if jax.process_index() == 0:
        time.sleep(2)  # it holds the others together: those that end for the same reason end first
    os._exit(code)

"""What the benchmarks share: timings in alternation, and results with the place they were measured at."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"


def alternate(functions: dict[str, Callable[[], Any]], rounds: int = 20) -> dict[str, list[float]]:
    """Seconds of each function in each round; all are called in turn, so that a slow spell of the machine hits all.

    Args:
        functions: by name; each returns arrays, which are waited for. Each is called twice before the first round.
        rounds: number of rounds.
    """
    for function in functions.values():
        for _ in range(2):
            jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, against: str) -> float:
    """Median over rounds of time(name) / time(against)."""
    return float(np.median(np.divide(seconds[name], seconds[against])))


def store(name: str, claim: str, numbers: dict[str, Any]) -> None:
    """Prints the numbers and writes them to results/<name>-<platform>.json with versions, commit and device."""
    device = jax.devices()[0]
    command, here = ["git", "rev-parse", "--short", "HEAD"], RESULTS.parent
    commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    record = {
        "claim": claim,
        "numbers": numbers,
        "device": device.device_kind if device.platform != "cpu" else f"{os.cpu_count()} x {platform.machine()}",
        "commit": commit.stdout.strip(),
        "versions": {p: version(p) for p in ("jax", "flax", "diffrax", "numpy")}
        | {"python": platform.python_version()},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{device.platform}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(numbers, indent=2), f"\n-> {path}")

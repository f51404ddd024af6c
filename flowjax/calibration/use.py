"""From a calibration file to a solver and its times."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowjax import times
from flowjax.calibration import schedules, store
from flowjax.flow import Flow
from flowjax.solvers import USF, DCSolver, DPMSolverV3, Solver, Statistics


def record(what: str, flow: Flow, *, guidance: float, start: float, end: float, **sizes: Any) -> dict[str, Any]:
    """What a calibration belongs to: JSON values.

    Args:
        what: "ems", "compensation" or "schedule".
        flow: the flow; its weights enter as a hash.
        guidance: scale of classifier-free guidance.
        start: first sampling time.
        end: last sampling time.
        **sizes: numbers of points, samples, steps, ...
    """
    path = {"name": type(flow.path).__name__} | {
        field.name: getattr(flow.path, field.name)
        for field in dataclasses.fields(flow.path)  # type: ignore[arg-type]
    }
    return {
        "what": what,
        "model": store.model_hash(flow.network),
        "path": path,
        "prediction": flow.prediction,
        "guidance": float(guidance),
        "start": float(start),
        "end": float(end),
    } | sizes


def calibrated(file: str | Path, flow: Flow, guidance: float, steps: int | None = None) -> tuple[Solver, np.ndarray]:
    """The solver that a calibration file is for, and the times to sample at.

    Args:
        file: made by `python -m flowjax.calibrate`.
        flow: the flow that will be sampled.
        guidance: its guidance scale.
        steps: number of steps; needed for statistics only, the others have their own.

    Raises:
        ValueError: the file belongs to another model, guidance or number of steps.
        FileNotFoundError: no such file.
    """
    expected: Mapping[str, Any] = {"model": store.model_hash(flow.network), "guidance": float(guidance)}
    arrays, known = store.load(file, expected)
    if steps is not None and known.get("steps", steps) != steps:
        raise ValueError(f"{file} was calibrated for {known['steps']} steps, not {steps}")
    if known["what"] == "ems":
        if steps is None:
            raise ValueError(f"{file} holds statistics for any number of steps: say how many")
        statistics = Statistics(**{name: arrays[name] for name in ("lam", "l", "s", "b")})
        order = 3 if guidance == 1 else 2
        return DPMSolverV3(statistics=statistics, order=order), times.uniform(steps, known["start"], known["end"])
    if known["what"] == "compensation":
        return DCSolver(order=known["order"], ratios=arrays["ratios"].tolist()), arrays["times"]
    schedule = schedules.from_json(json.loads(str(arrays["schedule"])))
    return USF(schedule=schedule), np.asarray(schedule.times)

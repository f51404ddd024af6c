"""From a calibration file to a solver and its times."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowjax import specs, times
from flowjax._checks import choose
from flowjax.calibration import schedules, store
from flowjax.couplings import SemidiscreteMap
from flowjax.flow import Flow
from flowjax.solvers import USF, DPMSolverV3, Solver, Statistics


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What a calibration file brings to sampling.

    Attributes:
        solver: the solver, or None for that of the recipe.
        times: the times to sample at.
        start: the map that the start states come from, in place of `path.start`, or None.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.calibration.use import Calibrated
        >>> found = Calibrated(solver=fj.solvers.UniPC(order=2), times=fj.times.uniform(8))
        >>> found.start is None, len(found.times)
        (True, 9)
    """

    solver: Solver | None
    times: Float[np.ndarray, " times"]
    start: SemidiscreteMap | None = None


def record(
    what: str, flow: Flow, *, guidance: float, start: float, end: float, fields: Sequence[str] = (), **sizes: Any
) -> dict[str, Any]:
    """What a calibration belongs to: JSON values.

    Args:
        what: "ems", "compensation", "schedule" or "transport".
        flow: the flow; its weights enter as a hash.
        guidance: scale of classifier-free guidance.
        start: first sampling time.
        end: last sampling time.
        fields: texts of the specs of fields around the flow, the first innermost.
        **sizes: numbers of points, samples, steps, ...
    """
    model = {name: value for name, value in _model(flow, guidance, fields).items() if value is not None}
    return {"what": what, "start": float(start), "end": float(end)} | model | sizes


def _model(flow: Flow, guidance: float, fields: Sequence[str]) -> dict[str, Any]:
    """The part of a record that the flow to be sampled must agree with; what is None is not in it."""
    path = {"name": type(flow.path).__name__} | {
        field.name: getattr(flow.path, field.name)
        for field in dataclasses.fields(flow.path)  # type: ignore[arg-type]
    }
    return {
        "model": store.model_hash(flow.network),
        "path": path,
        "prediction": flow.prediction,
        "guidance": float(guidance),
        "fields": list(fields) or None,
    }


def calibrated(
    file: str | Path, flow: Flow, guidance: float, steps: int | None = None, fields: Sequence[str] = ()
) -> Calibrated:
    """The solver that a calibration file is for, and where to sample.

    Args:
        file: made by `python -m flowjax.calibrate`.
        flow: the flow that will be sampled.
        guidance: its guidance scale.
        steps: number of steps; needed for statistics and maps, the others have their own.
        fields: texts of the specs of fields around it, the first innermost.

    Raises:
        ValueError: the file belongs to another model, path, guidance, fields or number of steps, or it is none.
        FileNotFoundError: no such file.
    """
    arrays, known = store.load(file, _model(flow, guidance, fields))
    try:
        return _made(file, arrays, known, guidance, steps)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is not a whole file of flowjax.calibrate: {error}") from error


def _made(
    file: str | Path, arrays: dict[str, np.ndarray], known: dict[str, Any], guidance: float, steps: int | None
) -> Calibrated:
    """The same from the contents of the file."""
    n = known.get("steps", steps)
    if n is None:
        raise ValueError(f"{file} holds {known['what']} for any number of steps: say how many")
    if steps not in (None, n):
        raise ValueError(f"{file} was calibrated for {n} steps, not {steps}")
    choose("calibration", known["what"], ("ems", "compensation", "schedule", "transport"))
    if known["what"] == "ems":
        statistics = Statistics(**{name: arrays[name] for name in ("lam", "l", "s", "b")})
        order = 3 if guidance == 1 else 2
        solver = DPMSolverV3(statistics=statistics, order=order)
        return Calibrated(solver, times.uniform(n, known["start"], known["end"]))
    if known["what"] == "transport":
        targets, heights = (jnp.asarray(arrays[name]) for name in ("targets", "heights"))
        labels = jnp.asarray(arrays["labels"]) if "labels" in arrays else None
        if not len(targets) == len(heights) == len(targets if labels is None else labels) > 0:
            raise ValueError(f"{file} has {len(targets)} targets and {len(heights)} heights")
        found = SemidiscreteMap(targets=targets, heights=heights, time=known["start"], labels=labels)
        return Calibrated(None, times.uniform(n, known["start"]), found)
    if known["what"] == "compensation":
        solver = specs.build("solver", known.get("solver", {"name": "dc_solver", "options": {"order": known["order"]}}))
        return Calibrated(dataclasses.replace(solver, ratios=arrays["ratios"].tolist()), arrays["times"])
    schedule = schedules.from_json(json.loads(str(arrays["schedule"])))
    mean = float(arrays.get("mean", 0.0))  # of the data; not in files of searches that guessed no first output
    return Calibrated(USF(schedule=schedule, mean=mean), np.asarray(schedule.times))

"""From a calibration file to a solver and its times."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowjax._checks import choose
from flowjax.calibration import store
from flowjax.calibration.base import Calibrated, Calibration, Stored
from flowjax.calibration.best import Best
from flowjax.calibration.caches import Cache
from flowjax.calibration.compensation import Compensation
from flowjax.calibration.ems import EMS
from flowjax.calibration.grids import Grid
from flowjax.calibration.learning import Learning
from flowjax.calibration.schedules import Searched
from flowjax.calibration.transport import Transport
from flowjax.flow import Flow

KINDS: dict[str, type[Calibration]] = {
    "best": Best,
    "ems": EMS,
    "compensation": Compensation,
    "schedule": Searched,
    "transport": Transport,
    "grid": Grid,
    "learn": Learning,
    "cache": Cache,
}
"""What can be calibrated, by the name of its files."""


def record(
    what: str, flow: Flow, *, guidance: float | None, start: float, end: float, fields: Sequence[str] = (), **sizes: Any
) -> dict[str, Any]:
    """What a calibration belongs to: JSON values.

    Args:
        what: A name of `KINDS`.
        flow: the flow; its weights enter as a hash.
        guidance: scale of classifier-free guidance; None where the sizes have several.
        start: first sampling time.
        end: last sampling time.
        fields: texts of the specs of fields around the flow, the first innermost.
        **sizes: numbers of points, samples, steps, ...
    """
    model = {name: value for name, value in _model(flow, guidance, fields).items() if value is not None}
    return {"what": what, "start": float(start), "end": float(end)} | model | sizes


def _model(flow: Flow, guidance: float | None, fields: Sequence[str]) -> dict[str, Any]:
    """The part of a record that the flow to be sampled must agree with; what is None is not in it."""
    path = {"name": type(flow.path).__name__} | {
        field.name: getattr(flow.path, field.name)
        for field in dataclasses.fields(flow.path)  # type: ignore[arg-type]
    }
    return {
        "model": store.model_hash(flow.network),
        "path": path,
        "prediction": flow.prediction,
        "guidance": None if guidance is None else float(guidance),
        "fields": list(fields) or None,
    }


def best_file(workdir: str | Path, guidance: float, steps: int | None) -> Path:
    """The file of `flowjax.calibrate best` for a scale of guidance and a number of steps, or the only one there is.

    Where `best` has none for these steps, that of `flowjax.calibrate cache`.

    Raises:
        ValueError: There is none, or without steps several.
    """
    folder = Path(workdir) / "calibration"
    files: list[Path] = []
    for name in ("best", "cache"):
        files = files or sorted(folder.glob(f"{name}-g{guidance:g}-{'*' if steps is None else steps}steps.npz"))
    if len(files) == 1:
        return files[0]
    what = f"guidance {guidance:g}" + ("" if steps is None else f" and {steps} steps")
    if not files:
        raise ValueError(
            f"{folder} has no advice for {what}: python -m flowjax.calibrate best --workdir={workdir} "
            f"--guidance={guidance:g}" + ("" if steps is None else f" --steps={steps}")
        )
    known = ", ".join(file.stem for file in files)
    raise ValueError(f"{folder} has advice for several numbers of steps, say which: {known}")


def fields_of(file: str | Path) -> tuple[str, ...]:
    """Specs of the fields that a calibration file brings.

    Raises:
        ValueError: the file is none.
        FileNotFoundError: no such file.
    """
    arrays, known = store.load(file, {})
    kind = KINDS[choose("calibration", known.get("what"), KINDS)]
    try:
        return kind.fields(arrays)
    except KeyError as error:
        raise ValueError(f"{file} is not a whole file of flowjax.calibrate: {error}") from error


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
    model = _model(flow, guidance, fields)
    del model["guidance"]
    arrays, known = store.load(file, model)
    kind = KINDS[choose("calibration", known.get("what"), KINDS)]
    if not kind.serves(known, float(guidance)):
        scales = known.get("scales")
        made = f"guidance={known.get('guidance')!r}" if not scales else f"guidance from {min(scales)} to {max(scales)}"
        raise ValueError(
            f"{file} was calibrated for {made}, not {float(guidance)!r}: calibrate again, or name another file"
        )
    n = known.get("steps", steps)
    if n is None:
        raise ValueError(f"{file} holds {known['what']} for any number of steps: say how many")
    if steps not in (None, n):
        raise ValueError(f"{file} was calibrated for {n} steps, not {steps}")
    try:
        return kind.use(Stored(file=file, arrays=arrays, record=known, flow=flow, guidance=float(guidance), steps=n))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is not a whole file of flowjax.calibrate: {error}") from error

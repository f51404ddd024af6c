"""How much of the time of a run ends up in its parameters: not compilation, pictures, saving, nor steps done twice."""

import json
import time
from pathlib import Path
from typing import Any

FILE = "clock.jsonl"


class Clock:
    """A file of what the time of a run went into, over all its interruptions.

    Each line is a start, {"start": step, "time": ...}, or some steps, {"step": the last, "seconds": ..., "time": ...}.
    What a process that was killed did after its last line is not known, and does not count as time of the run.

    Args:
        workdir: Folder of the file.
        start: Steps that are done already.
        active: False in processes that must not write.
        since: When this process began, seconds since the epoch; now by default.

    Example:
        >>> import tempfile
        >>> from flowjax.training.goodput import Clock
        >>> folder = tempfile.mkdtemp()
        >>> clock = Clock(folder, start=0)
        >>> clock.add(step=10, seconds=0.0)
        >>> clock.close()
        >>> goodput(folder)
        0.0
    """

    def __init__(self, workdir: str | Path, start: int, active: bool = True, since: float | None = None):
        self._file = (Path(workdir) / FILE).open("a") if active else None
        self._write({"start": start}, time.time() if since is None else since)

    def _write(self, line: dict[str, Any], now: float) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line | {"time": now}) + "\n")
            self._file.flush()

    def add(self, step: int, seconds: float) -> None:
        """Steps up to `step` took `seconds`, pauses left out."""
        self._write({"step": step, "seconds": seconds}, time.time())

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            self._file.close()


def goodput(workdir: str | Path, now: float | None = None) -> float | None:
    """Share of the time of a run, in [0, 1], that went into steps which its parameters have; None if it is not known.

    Args:
        workdir: Its folder.
        now: When the process that runs now ends, seconds since the epoch; the time of the last line by default.
    """
    starts: list[dict[str, Any]] = []
    try:
        for text in (Path(workdir) / FILE).read_text().splitlines():
            line = json.loads(text)
            if "start" in line:
                starts.append({"start": line["start"], "began": line["time"], "ended": line["time"], "steps": []})
            else:
                starts[-1]["steps"].append((line["step"], line["seconds"]))
                starts[-1]["ended"] = line["time"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        return None
    if not starts:
        return None
    starts[-1]["ended"] = starts[-1]["ended"] if now is None else now
    kept = 0.0
    for number, run in enumerate(starts):
        # What later starts do not go back behind.
        limit = min((later["start"] for later in starts[number + 1 :]), default=float("inf"))
        before = run["start"]
        for step, seconds in run["steps"]:
            done = min(step, limit) - before
            kept += seconds * max(done, 0) / max(step - before, 1)
            before = step
    total = sum(run["ended"] - run["began"] for run in starts)
    return min(kept / total, 1.0) if total > 0 else 0.0

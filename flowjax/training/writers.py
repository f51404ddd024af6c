"""Where a run writes what it measures: a JSON-lines file and the console."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON so that the file is either the old or the new one, never half of it."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    os.replace(part, path)


class Writer:
    """The progress bar and `metrics.jsonl` of one run; silent in all processes but the first.

    On a terminal the console shows one bar with loss, speed and time left; otherwise a line for each report. Each line of
    the file is one report: {"step": ..., "loss": ..., ...}.

    Args:
        workdir: Folder of `metrics.jsonl`.
        steps: Number of steps of the whole run.
        start: Steps already done. Later reports of an earlier, interrupted run are removed from the file.
        active: False in processes that must not write.
    """

    def __init__(self, workdir: str | Path, steps: int, start: int = 0, active: bool = True):
        self._active = active
        self._steps = steps
        self._start = (start, time.perf_counter())
        self.console = Console(quiet=not active)
        if not active:
            return
        path = Path(workdir) / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= start))
        self._file = path.open("a")
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:.1f} steps/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task("train", total=steps, completed=start, loss=float("nan"), speed=0.0)
        self._bar.start()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of the file, and the state of the bar, after `step` steps."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        first, began = self._start
        seconds = time.perf_counter() - began
        speed = (step - first) / seconds
        self._bar.update(self._task, completed=step, loss=metrics["loss"], speed=speed)
        if not self.console.is_terminal:
            left = (self._steps - step) / speed
            self.console.print(
                f"step {step}/{self._steps}  loss {metrics['loss']:.4f}  {speed:.1f} steps/s  {left:.0f} s left"
            )

    def close(self) -> None:
        """Ends the bar and the file."""
        if self._active:
            self._bar.stop()
            self._file.close()

"""Where a run writes what it measures: a JSON-lines file, the console, and TensorBoard where it is installed."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowjax._files import replacing
from flowjax.training.goodput import Clock

try:
    from tensorboardX import SummaryWriter
except ImportError:
    SummaryWriter = None


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON so that the file is either the old or the new one, never half of it."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_reports(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """The reports in a `metrics.jsonl`, none if there is no such file, and the number of lines that are none.

    The line that a run was writing when it was stopped does not count.
    """
    try:
        *lines, _ = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    reports = []
    for line in lines:
        try:
            report = json.loads(line)
            if isinstance(report["step"], int) and isinstance(report["loss"], int | float):
                reports.append(report)
        except (ValueError, TypeError, KeyError):
            pass
    return reports, len(lines) - len(reports)


class Writer:
    """The progress bar and `metrics.jsonl` of one run; silent in all processes but the first.

    On a terminal the console shows one bar with loss, speed and time left; otherwise a line for each report.
    Each line of the file is one report: {"step": ..., "loss": ..., ...}. With tensorboardX (the extra `tb`) the same
    numbers go to the folder `tensorboard`. How long the steps took goes to `clock.jsonl` (`training.goodput`).

    Args:
        workdir: Folder of `metrics.jsonl`.
        steps: Number of steps of the whole run.
        batch: Examples per step.
        start: Steps already done. Later reports of an earlier, interrupted run are removed from the file.
        active: False in processes that must not write.
        since: When this process began, seconds since the epoch; now by default.

    Attributes:
        console: For other output, so that it does not tear the bar.
        last: The newest report, empty before the first.
        losses: The reported losses since it was last emptied.

    Example:
        >>> from flowjax.training.writers import Writer
        >>> writer = Writer("run", steps=100, batch=32, active=False)  # True writes run/metrics.jsonl and shows the bar
        >>> writer.report(10, {"loss": 0.5})
        >>> writer.last, writer.losses
        ({'step': 10, 'loss': 0.5}, [0.5])
        >>> writer.close()
    """

    def __init__(
        self,
        workdir: str | Path,
        steps: int,
        batch: int,
        start: int = 0,
        active: bool = True,
        since: float | None = None,
    ):
        self._active, self._steps, self._batch, self._start = active, steps, batch, start
        self.console = Console(quiet=not active)
        self.last: dict[str, float] = {}
        self.losses: list[float] = []
        self._done, self._began, self._seconds = start, time.perf_counter(), 0.0
        self._clock = Clock(workdir, start, active, since)
        self._file = self._board = None
        bad = 0
        if active:
            path = Path(workdir) / "metrics.jsonl"
            reports, bad = read_reports(path)
            reports = [report for report in reports if report["step"] <= start]
            with replacing(path) as part:
                part.write_text("".join(json.dumps(report) + "\n" for report in reports))
            self.last = reports[-1] if reports else {}
            self._file = path.open("a")
            if SummaryWriter is not None:
                self._board = SummaryWriter(str(path.with_name("tensorboard")), purge_step=start + 1)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:.0f} examples/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task("train", total=steps, completed=start, loss=float("nan"), speed=0.0)
        self._bar.start()
        if bad:
            self.note(f"metrics.jsonl: {bad} line(s) that cannot be read were left out")
        if SummaryWriter is None:
            self.note("no TensorBoard files: tensorboardX is not installed (pip install tensorboardX)")

    @property
    def speed(self) -> float:
        """Examples per second of training up to the newest report, pauses left out; 0 before the first."""
        return self._batch * (self._done - self._start) / self._seconds if self._done > self._start else 0.0

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of the file, and the state of the bar, after `step` steps."""
        before = self._seconds
        self._done, self._seconds = step, time.perf_counter() - self._began
        self._clock.add(step, self._seconds - before)
        self.last = {"step": step, **metrics}
        self.losses.append(metrics["loss"])
        if self._file is not None:
            self._file.write(json.dumps(self.last) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in {**metrics, "examples_per_second": self.speed}.items():
                self._board.add_scalar(name, value, step)
        self._bar.update(self._task, completed=step, loss=metrics["loss"], speed=self.speed)
        if not self.console.is_terminal:
            left = (self._steps - step) * self._batch / self.speed
            loss = f"loss {metrics['loss']:.4f}"
            self.note(f"step {step}/{self._steps}  {loss}  {self.speed:.0f} examples/s  {left:.0f} s left")

    def note(self, text: str) -> None:
        """One line on the console."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def paused(self, state: Any) -> Iterator[None]:
        """Waits for `state`, then leaves the time spent inside out of the speed."""
        jax.block_until_ready(state)
        stopped = time.perf_counter()
        yield
        self._began += time.perf_counter() - stopped

    def close(self) -> None:
        """Ends the bar and the file."""
        self._bar.stop()
        for file in (self._file, self._board, self._clock):
            if file is not None:
                file.close()

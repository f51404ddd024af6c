"""Notices that this run is about to be stopped, so that it can save before."""

import os
import signal
import sys
import types
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Asks once per step whether SIGTERM or Ctrl-C has arrived, in this process or, among several, in any of them.

    A context manager; the handlers that were there before are back when it ends. Several processes (a
    `jax.distributed` run) agree on one step through JAX's preemption service, which catches SIGTERM itself. A second
    Ctrl-C ends the process at once, with exit code 130. Where Ctrl-C is ignored, as in background jobs of scripts, it
    stays ignored.

    Attributes:
        cause: "SIGTERM" or "Ctrl-C".

    Example:
        >>> from flowjax.training import Preemption
        >>> with Preemption() as stop:
        ...     stop.reached(1)  # no signal has come
        False
    """

    def __init__(self):
        self.cause = "SIGTERM"
        self._told = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        for number in (signal.SIGTERM, signal.SIGINT):
            caught = number == signal.SIGTERM and jax.distributed.is_initialized()
            if not caught and signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._told:
                # Whatever is on the disk is whole at any moment; the way through the exits would wait for writes.
                show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
                os.write(2, f"{show_cursor}stopped at once\n".encode())
                os._exit(130)
            os.write(2, b"Ctrl-C: saving after this step; a second one stops at once\n")
            self.cause = "Ctrl-C"
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)
        self._told = True

    def reached(self, step: int) -> bool:
        """Whether to save after `step` and stop; every process must ask after every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told

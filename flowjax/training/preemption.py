"""Notices that this run is about to be stopped, so that it can save before."""

import signal
import types
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Asks once per step whether SIGTERM has arrived, in this process or, among several, in any of them.

    A context manager; the handler that was there before is back when it ends. Several processes (a
    `jax.distributed` run) agree on one step through JAX's preemption service, which catches the signal itself.
    """

    def __init__(self):
        self._told = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        if not jax.distributed.is_initialized():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        if not jax.distributed.is_initialized():
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self._told = True

    def reached(self, step: int) -> bool:
        """Whether to save after `step` and stop; every process must ask after every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told

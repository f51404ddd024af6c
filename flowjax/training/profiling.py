"""A trace of a few training steps by JAX's profiler."""

import re
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Records the steps first to last; a context manager that ends a trace under way.

    Args:
        span: "FIRST:LAST", counted from 1; None records nothing.
        folder: Where the trace goes, for TensorBoard, XProf or Perfetto.

    Raises:
        ValueError: `span` is not of this form.

    Example:
        >>> from flowjax.training import Profile
        >>> with Profile("5:9", folder="trace") as profile:
        ...     for step in range(1, 4):  # ends before step 5: nothing is recorded
        ...         profile.before(step)
        ...         profile.after(step, state=())
    """

    def __init__(self, span: str | None, folder: str | Path):
        match = re.fullmatch(r"(\d+):(\d+)", span or "0:0")
        first, last = map(int, match.groups()) if match else (0, 0)
        if span is not None and not 1 <= first <= last:
            raise ValueError(f"--profile must be FIRST:LAST with 1 <= FIRST <= LAST, got {span!r}")
        self._first, self._last, self._folder = first, last, str(folder)
        self._active = False

    def before(self, step: int) -> None:
        """Begins the trace if `step`, which comes next, is the first one."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._active = True

    def after(self, step: int, state: Any) -> None:
        """Ends the trace if `step` was the last one."""
        if self._active and step == self._last:
            jax.block_until_ready(state)
            self.__exit__()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._active:
            self._active = False
            jax.profiler.stop_trace()

"""Examples that stay on disk until they are asked for."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Num

MEMORY = 2**30
"""Decoded data sets up to this many bytes are kept in memory unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class Records:
    """Looks like an array of shape (N, ...) whose rows are read when they are indexed.

    Attributes:
        shape: (N, ...).
        dtype: Of every example.
        read: Example of a row number; called from several threads.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Int[np.ndarray, " B"] | slice) -> Num[np.ndarray, "B ..."]:
        """The examples of these rows."""
        numbers = np.arange(len(self))[rows]
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for i, row in enumerate(numbers):
            found[i] = self.read(int(row))
        return found

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All examples, read by several threads."""
        found = np.empty(self.shape, self.dtype)

        def fill(row: int) -> None:
            found[row] = self.read(row)

        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(fill, range(len(self))):
                pass
        return found if dtype is None else found.astype(dtype)

    def settle(self, in_memory: bool | None) -> "np.ndarray | Records":
        """An array if `in_memory`, or if it is None and the array has at most `MEMORY` bytes; else the records."""
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        return np.asarray(self) if in_memory or (in_memory is None and size <= MEMORY) else self


def scale_of(x: np.ndarray | Records) -> dict[str, Any]:
    """What `Source` needs to normalise `x`: bytes go to [-1, 1], floats in memory to mean 0 and deviation 1.

    Raises:
        ValueError: Another type of number, or floats that are not finite or all equal.
    """
    if x.dtype == np.uint8:
        return {"shift": 127.5, "scale": 127.5, "low": 0.0, "high": 255.0}
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"examples must be uint8 or floating point, got {x.dtype}")
    rows = np.asarray(x[: 2**16], np.float64)
    shift, scale = float(rows.mean()), float(rows.std())
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError("examples must be finite and not all equal")
    return {"shift": shift, "scale": scale}

"""Examples that stay on disk until they are asked for."""

import dataclasses
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Num

MEMORY = 2**30
"""Decoded data sets up to this many bytes are kept in memory unless told otherwise."""


def check_memory(what: str, size: float) -> None:
    """Refuses before the machine runs out of memory.

    The environment variable FLOWJAX_MEMORY_GIB replaces the limit, half of the memory that this machine has.

    Raises:
        ValueError: `size` bytes are more than that.
    """
    memory, given = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), os.environ.get("FLOWJAX_MEMORY_GIB")
    if size > (memory / 2 if given is None else float(given) * 2**30):
        limit = f"half of the memory of this machine ({memory / 2**30:.3g} GiB)" if given is None else f"{given} GiB"
        asked = f"{what} would take {min(size, 10**300) / 2**30:.3g} GiB, more than {limit}"
        raise ValueError(f"{asked}; the environment variable FLOWJAX_MEMORY_GIB sets another limit")


def check_finite(x: np.ndarray, what: str) -> None:
    """Refuses NaN and infinity.

    Raises:
        ValueError: A value of `x` is not finite.
    """
    if np.issubdtype(x.dtype, np.inexact) and not np.isfinite(x).all():
        raise ValueError(f"{what} must be finite, but a value is NaN or infinite")


@dataclasses.dataclass(frozen=True)
class Records:
    """Looks like an array of shape (N, ...) whose rows are read when they are indexed.

    Rows of another shape and floats that are not finite are refused when they are read.

    Attributes:
        shape: (N, ...).
        dtype: Of every example.
        read: Example of a row number; called from several threads.

    Example:
        >>> import numpy as np
        >>> from flowjax.data import Records
        >>> records = Records((1000, 2), np.dtype("float32"), read=lambda row: np.full(2, row))
        >>> records[5:7].tolist()  # two rows are read
        [[5.0, 5.0], [6.0, 6.0]]
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
            found[i] = self.one(int(row))
        return found

    def one(self, row: int) -> np.ndarray:
        """One example, checked."""
        x = np.asarray(self.read(row))
        if x.shape != self.shape[1:]:
            raise ValueError(f"example {row} has shape {x.shape}, not {self.shape[1:]}")
        check_finite(x, f"example {row}")
        return x

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All examples, read by several threads."""
        check_memory(f"all {len(self)} examples at once", math.prod(self.shape) * self.dtype.itemsize)
        found = np.empty(self.shape, self.dtype)

        def fill(row: int) -> None:
            found[row] = self.one(row)

        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(fill, range(len(self))):
                pass
        return found if dtype is None else found.astype(dtype)

    def select(self, rows: Int[np.ndarray, " M"]) -> "Records":
        """These examples, read when they are indexed."""
        return Records((len(rows), *self.shape[1:]), self.dtype, lambda row: self.read(int(rows[row])))

    def settle(self, in_memory: bool | None) -> "np.ndarray | Records":
        """An array if `in_memory`, or if it is None and the array has at most `MEMORY` bytes; else the records."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return np.asarray(self) if in_memory or (in_memory is None and size <= MEMORY) else self


def scale_of(x: np.ndarray | Records) -> dict[str, Any]:
    """What `Source` needs to normalise `x`: bytes go to [-1, 1], floats to mean 0 and deviation 1.

    Of floats that stay on disk, 65,536 rows over the whole length are measured.

    Raises:
        ValueError: Another type of number, or floats that are not finite or all equal.
    """
    if x.dtype == np.uint8:
        return {"shift": 127.5, "scale": 127.5, "low": 0.0, "high": 255.0}
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"examples must be uint8 or floating point, got {x.dtype}")
    if isinstance(x, Records):
        x = x[np.unique(np.linspace(0, len(x) - 1, 2**16).astype(int))]
    # In blocks, so that double precision takes no second copy, and about the first value, so that nothing cancels.
    block, centre = max(1, 2**18 * len(x) // max(x.size, 1)), float(x.flat[0]) if x.size else 0.0
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(x) if math.isfinite(centre) else 0, block):
        part = np.subtract(x[start : start + block], centre, dtype=np.float64)
        count, squares = count + part.size, squares + float(np.vdot(part, part))
        if not math.isfinite(squares):  # NaN and infinity stay in a sum of squares
            break
        total += float(part.sum())
    variance = squares / count - (total / count) ** 2 if count else 0.0
    if not 0 < variance < math.inf:
        raise ValueError("examples must be finite and not all equal")
    return {"shift": centre + float(total / count), "scale": float(np.sqrt(variance))}

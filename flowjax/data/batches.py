"""The batch of any step as a pure function of (seed, step), so that a resumed run sees the same data."""

import dataclasses
import functools

import numpy as np

from flowjax.data.sources import Source


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch. Cached, since every batch of the epoch asks for it."""
    return np.random.default_rng([seed, epoch]).permutation(size)


@dataclasses.dataclass(frozen=True)
class Batches:
    """Endless batches: epochs in random orders follow each other and are cut into batches without a rest.

    A batch may begin in one epoch and end in the next, so every example occurs exactly once in each epoch
    whatever the batch size is. Each of several processes reads its own consecutive rows of the global batch.

    Attributes:
        source: Where the examples come from.
        batch_size: Rows of the global batch, at least 1.
        seed: Non-negative; decides the order.
        process_index: Which slice this process reads.
        process_count: Number of slices; divides `batch_size`.

    Raises:
        ValueError: A number outside its range.
    """

    source: Source
    batch_size: int
    seed: int = 0
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index must be 0..{self.process_count - 1}, got {self.process_index}")
        if self.batch_size % self.process_count:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by {self.process_count} processes")

    def indices(self, step: int) -> np.ndarray:
        """Rows of the source that this process reads at `step` = 0, 1, ...: (batch_size / process_count,).

        Raises:
            ValueError: `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        size, rows = len(self.source.x), self.batch_size // self.process_count
        first = step * self.batch_size + self.process_index * rows
        epochs = range(first // size, (first + rows - 1) // size + 1)
        stream = np.concatenate([_epoch(self.seed, epoch, size) for epoch in epochs])
        offset = first - epochs[0] * size
        return stream[offset : offset + rows]

    def batch(self, step: int) -> dict[str, np.ndarray | None]:
        """The batch of `step`: "x1" normalised float32, "cond" int32 labels or None."""
        rows = self.indices(step)
        x, cond = self.source.x[rows], self.source.cond
        return {
            "x1": self.source.normalize(x).astype(np.float32),
            "cond": None if cond is None else cond[rows].astype(np.int32),
        }

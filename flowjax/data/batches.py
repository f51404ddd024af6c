"""The batch of any step as a pure function of (seed, step), so that a resumed run sees the same data."""

import dataclasses
import functools
import math
import sys
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, Num

from flowjax.data.records import Records, check_memory
from flowjax.data.sources import Source


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch. Cached, since every batch of the epoch asks for it."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def _label(rows: np.ndarray | Records) -> bool:
    """Whether a field has one whole number for each example."""
    return len(rows.shape) == 1 and rows.dtype.kind in "biu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Random flips and moves of images.

    Attributes:
        flip: Mirrors left and right with probability 1/2.
        crop: Moves by up to so many pixels in both directions, uniformly; what enters repeats the border.

    Raises:
        ValueError: `crop` is negative.

    Example:
        >>> import numpy as np
        >>> from flowjax.data import Augment
        >>> x = np.arange(4.0).reshape(1, 1, 4, 1)
        >>> u = np.array([[0.2, 0.0, 0.0]])  # three numbers for each image; the first below 1/2 mirrors
        >>> Augment(flip=True)(u, x).ravel().tolist()
        [3.0, 2.0, 1.0, 0.0]
    """

    flip: bool = False
    crop: int = 0

    def __post_init__(self):
        if self.crop < 0:
            raise ValueError(f"crop must not be negative, got {self.crop}")

    def __call__(self, u: Float[np.ndarray, "B 3"], x: Num[np.ndarray, "B H W C"]) -> Num[np.ndarray, "B H W C"]:
        """The images changed as three numbers in [0, 1) per image say."""
        if self.flip:
            x = np.where(u[:, 0, None, None, None] < 0.5, x[:, :, ::-1], x)
        if self.crop:
            height, width = x.shape[1:3]
            padded = np.pad(x, ((0, 0), (self.crop, self.crop), (self.crop, self.crop), (0, 0)), mode="edge")
            corner = np.floor(u[:, 1:] * (2 * self.crop + 1)).astype(int)
            rows = corner[:, 0, None] + np.arange(height)
            columns = corner[:, 1, None] + np.arange(width)
            x = padded[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]
        return x


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
        augment: Changes of images, drawn anew at each step; they do not depend on the number of processes.

    Raises:
        ValueError: A number outside its range, a batch that takes more than half of this machine's memory, a field of
            texts, or an augmentation of data that are not images or have fields beside labels.

    Example:
        >>> import numpy as np
        >>> from flowjax.data import Batches, Source
        >>> batches = Batches(Source(x=np.arange(6.0).reshape(6, 1)), batch_size=4)
        >>> batches.batch(0)["x1"].shape
        (4, 1)
        >>> epoch = np.concatenate([batches.indices(step) for step in range(3)])[:6]  # 12 rows: two epochs
        >>> sorted(epoch.tolist())
        [0, 1, 2, 3, 4, 5]
    """

    source: Source
    batch_size: int
    seed: int = 0
    process_index: int = 0
    process_count: int = 1
    augment: Augment | None = None

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index must be 0..{self.process_count - 1}, got {self.process_index}")
        if self.batch_size % self.process_count:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by {self.process_count} processes")
        # The row numbers, and the examples four times while they are normalised in float32.
        shape, rows = self.source.x.shape, self.batch_size // self.process_count
        fields = sum(8 * math.prod(field.shape[1:]) for field in self.source.fields.values())
        check_memory(f"batch_size={self.batch_size}", rows * (8 + 16 * math.prod(shape[1:]) + fields))
        for name, field in self.source.fields.items():
            if field.dtype.kind == "U":
                raise ValueError(
                    f"the field {name} holds texts; put their tokens in its place, from `flowjax.models.Words`"
                )
        others = [
            name for name, rows in self.source.fields.items() if not (name in self.source.conditions and _label(rows))
        ]
        if self._changes and others:
            names = ", ".join(others)
            raise ValueError(f"images with the fields {names} are not augmented: what belongs to them would not change")
        if self._changes and len(shape) != 4:
            raise ValueError(f"only images (N, H, W, C) can be augmented, got shape {shape}")
        if self.augment is not None and self._changes and self.augment.crop >= min(shape[1:3]):
            raise ValueError(f"crop={self.augment.crop} must be smaller than the images, {shape[1]}x{shape[2]}")

    @property
    def _changes(self) -> bool:
        return self.augment not in (None, Augment())

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

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of `step`: "x1" normalised float32, "cond" int32 labels or None, and the fields of the source.

        Of a source with deviations, what is drawn of example i depends on (seed, step, i) only.
        Fields are float32 or int32, as they are. Those that are conditions are in a dict "cond", in place of labels.
        """
        rows = self.indices(step)
        x, cond = np.asarray(self.source.x[rows]), self.source.cond
        if self.source.deviation is not None:
            # The 2 keeps these numbers apart from those below. A row draws the same in whatever process reads it.
            draws = [np.random.default_rng([self.seed, step, 2, row]).standard_normal(x.shape[1:]) for row in rows]
            x = x + np.asarray(self.source.deviation[rows]) * np.stack(draws).astype(np.float32)
        if self.augment is not None and self._changes:
            # The 1 keeps these numbers apart from those that order the epochs.
            u = np.random.default_rng([self.seed, step, 1]).random((self.batch_size, 3))
            x = self.augment(u[self.process_index * len(rows) :][: len(rows)], x)
        held = {name: np.asarray(field[rows]) for name, field in self.source.fields.items()}
        fields = {name: a.astype(np.float32 if a.dtype.kind == "f" else np.int32) for name, a in held.items()}
        named = {name: fields.pop(name) for name in self.source.conditions}
        return {
            "x1": self.source.normalize(x.astype(np.float32)).astype(np.float32),
            "cond": named or (None if cond is None else cond[rows].astype(np.int32)),
            **fields,
        }

    def dataset(self) -> grain.MapDataset:
        """The batches by step for grain, to be mapped, mixed or read by several processes."""
        return grain.MapDataset.range(sys.maxsize).map(self.batch)

    def iterator(self, start: int = 0, *, threads: int | None = None, ahead: int = 8) -> grain.DatasetIterator:
        """Batches from step `start` on, read ahead in the background where the source is on disk.

        `get_state()` and `set_state(state)` save and restore the position exactly; `close()` ends the threads.

        Args:
            start: First step.
            threads: Batches that are read at the same time; 0 reads each batch when it is asked for. By default 4 for
                sources on disk, 0 for those in memory.
            ahead: Batches that wait in memory.
        """
        if threads is None:
            held = (self.source.x, self.source.deviation, *self.source.fields.values())
            threads = 0 if not any(isinstance(rows, Records) for rows in held) else 4
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
        iterator = iter(self.dataset().to_iter_dataset(options))
        grain.experimental.set_next_index(iterator, start)
        return iterator

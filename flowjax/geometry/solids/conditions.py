"""The occupancy grid as a condition: it says which blocks of the details there are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.data import npz
from flowjax.data.records import check_memory
from flowjax.facts import fact
from flowjax.geometry.solids.structure import check_sizes, features, numbers_of


@fact("condition", "structure", "an occupancy grid", example=lambda: {"resolution": 4, "voxels": 8})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """An occupancy grid of zeros and ones; it has no null, and is never left out.

    Attributes:
        resolution: Voxels R along a side.
        voxels: Number N of blocks of an example, with padding.
        block: Voxels along a block.

    Raises:
        ValueError: A number outside its range, or `block` does not divide `resolution`.

    Example:
        >>> import numpy as np
        >>> condition = Structure(resolution=4, voxels=8)
        >>> grid = np.zeros((1, 4, 4, 4, 1)); grid[0, :2, 0, 0] = 1.0
        >>> condition.mask(condition.encode(grid)).tolist()
        [[True, False, False, False, False, False, False, False]]
    """

    resolution: int
    voxels: int
    block: int = 2

    null = None

    def __post_init__(self) -> None:
        check_sizes(self.resolution, self.block, self.voxels)

    @classmethod
    def learn(cls, rows: np.ndarray, *, voxels: int, block: int = 2) -> "Structure":
        """The condition that grids of the data are.

        Args:
            rows: (N, R, R, R, 1).
            voxels: Blocks of an example, with padding: those of the data.
            block: Voxels along a block.

        Raises:
            ValueError: Something else.
        """
        found = cls(resolution=rows.shape[1] if rows.ndim > 1 else 0, voxels=voxels, block=block)
        found.encode(rows[:1])
        return found

    @property
    def entries(self) -> int:
        """How many there is room for."""
        return self.voxels

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((*(self.resolution,) * 3, 1), jnp.float32)

    def check_details(self, shape: tuple[int, ...]) -> None:
        """Refuses details of other blocks, whose numbers the masks of these would not fit.

        Args:
            shape: Of the details of an example, (N, F).

        Raises:
            ValueError: F is not that of blocks of this size.
        """
        if shape[-1] != features(self.block):
            raise ValueError(
                f"the condition has blocks of {self.block}^3 voxels, with {features(self.block)} numbers, and details "
                f"of blocks with {shape[-1]} are given: give data, network and condition the same block"
            )

    @property
    def encoder(self) -> dict[str, int]:
        """Options that an encoder of it must have."""
        return {"resolution": self.resolution, "block": self.block}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Grids as networks take them, (N, R, R, R, 1): 1 where above 1/2, else 0.

        Raises:
            ValueError: No grids of this size, one that is not finite, or with more active blocks than there is room
                for.
        """
        shape = self.struct.shape
        if rows.dtype.kind not in "biuf" or rows.shape[1:] != shape:
            raise ValueError(f"structures are grids (N, {', '.join(map(str, shape))}), got {rows.dtype} {rows.shape}")
        check_memory("the grids of all examples", 4 * rows.size)
        if not np.isfinite(rows).all():
            raise ValueError("structures have NaN or infinite values")
        full = (rows > 0.5).astype(np.float32)
        counts = [len(numbers) for numbers in numbers_of(full, self.block)]
        if max(counts, default=0) > self.voxels:
            row = int(np.argmax(counts))
            raise ValueError(
                f"{f'structure {row}' if len(rows) > 1 else 'the structure'} has {counts[row]} active blocks of "
                f"{self.block}^3 voxels, and there is room for voxels={self.voxels}: train with more, or take others"
            )
        return full

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """Which entries of the details there are, (N, voxels)."""
        counts = np.array([len(numbers) for numbers in numbers_of(rows, self.block)])
        return np.arange(self.voxels) < counts[:, None]

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The grids as bytes."""
        return (np.asarray(rows) > 0.5).astype(np.uint8)

    def default(self, num: int) -> np.ndarray:
        """None: details are details of something.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "details need a structure: --cond.structure=FILE.npz with the array x of a run that samples structures, or "
            "sample a chain of both runs"
        )

    def read(self, text: str, num: int) -> np.ndarray:
        """The grids x (N, R, R, R, 1) of an npz file, in turn: (num, R, R, R, 1).

        Raises:
            ValueError: A file that cannot be read, or see `encode`.
        """
        rows = npz(text, images="x", labels=None).x
        return self.encode(np.resize(np.asarray(rows[:num]), (num, *rows.shape[1:])))

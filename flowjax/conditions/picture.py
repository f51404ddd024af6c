"""A picture as a condition."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import _checks
from flowjax.data.pictures import MAX_PIXELS, Reader, endings
from flowjax.data.records import check_memory
from flowjax.facts import fact


@fact("condition", "image", "a picture", example=lambda: {"shape": (4, 4, 3)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of bytes, which networks see in [-1, 1]; the null is grey.

    Attributes:
        shape: (H, W, C) with C = 1 or 3.

    Raises:
        ValueError: Another shape.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> view = fj.conditions.Picture.learn(np.full((5, 2, 2, 3), 255, np.uint8))
        >>> view.shape, float(view.encode(np.full((1, 2, 2, 3), 255, np.uint8)).max())
        ((2, 2, 3), 1.0)
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _checks.sizes(3, shape=self.shape)
        if self.shape[-1] not in (1, 3):
            raise ValueError(f"a picture is grey (H, W, 1) or in colour (H, W, 3), got {tuple(self.shape)}")
        object.__setattr__(self, "shape", tuple(self.shape))

    @classmethod
    def learn(cls, rows: np.ndarray) -> "Picture":
        """The condition that pictures of the data are.

        Args:
            rows: Bytes, (N, H, W, C).

        Raises:
            ValueError: Something else.
        """
        found = cls(shape=rows.shape[1:])
        found.encode(np.asarray(rows[:1]))
        return found

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.zeros(self.shape, np.float32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct(self.shape, jnp.float32)

    @property
    def encoder(self) -> dict[str, tuple[int, ...]]:
        """Options that an encoder of it must have."""
        return {"image_shape": self.shape}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Pictures of the data as networks take them, (N, H, W, C) in [-1, 1].

        Raises:
            ValueError: No bytes (N, H, W, C).
        """
        if rows.dtype != np.uint8 or rows.shape[1:] != self.shape:
            raise ValueError(
                f"pictures are bytes (N, {', '.join(map(str, self.shape))}), got {rows.dtype} {rows.shape}"
            )
        check_memory("the pictures of all examples", 4 * rows.size)
        return rows.astype(np.float32) / 127.5 - 1

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The pictures as bytes."""
        return np.rint(np.clip(127.5 * (np.asarray(rows) + 1), 0, 255)).astype(np.uint8)

    def default(self, num: int) -> np.ndarray:
        """Nothing in particular: the null."""
        return np.zeros((num, *self.shape), np.float32)

    def read(self, text: str, num: int) -> np.ndarray:
        """The picture in a file, or those of a folder in the order of their names, in turn: (num, H, W, C).

        Raises:
            ValueError: None, one that cannot be read, or one of another size.
        """
        place = Path(text)
        files = (
            sorted(path for path in place.iterdir() if path.suffix.lower() in endings()) if place.is_dir() else [place]
        )
        if not files or not place.exists():
            raise ValueError(f"{text} is neither a picture nor a folder with pictures")
        reader, rows = Reader(None, self.shape[-1], MAX_PIXELS), []
        for path in files[:num]:
            rows.append(reader.read(path, str(path)))
            if rows[-1].shape != self.shape:
                (height, width, _), (own, wide, _) = rows[-1].shape, self.shape
                raise ValueError(f"{path} has {width} x {height} pixels; this run takes {wide} x {own}: scale it")
        return self.encode(np.resize(np.stack(rows), (num, *self.shape)))


# ---------------------------------------------------------------------------------------------------- those of the data

"""Examples that an edit starts from, and the parts of them that it keeps, as command lines name them."""

import dataclasses
from pathlib import Path

import numpy as np

from flowjax.data.files import BROKEN, read_arrays
from flowjax.data.pictures import MAX_PIXELS, Reader, endings
from flowjax.data.records import check_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Examples like those of a run, in the scale of its network.

    Attributes:
        shape: Of one.
        shift: Normalised data = (x - shift) / scale.
        scale: See `shift`.
        low: Black in pictures, in the data's own scale; None where pictures are none.
        high: White.

    Example:
        >>> import numpy as np, tempfile
        >>> from flowjax.conditions import Example
        >>> like = Example(shape=(2,), shift=1.0, scale=2.0)
        >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        ...     np.savez(file, x=np.array([[1.0, 3.0]]))
        ...     _ = file.flush()
        ...     like.read(file.name, 2).tolist()  # one example, twice
        [[0.0, 1.0], [0.0, 1.0]]
    """

    shape: tuple[int, ...]
    shift: float = 0.0
    scale: float = 1.0
    low: float | None = None
    high: float | None = None

    def read(self, text: str, num: int, first: int = 0) -> np.ndarray:
        """Examples in a file or folder, in turn: (num, ...), float32.

        Args:
            text: An npz file whose `x` holds examples in the data's own scale, as `flowjax.sample` writes it; a
                picture; or a folder of pictures, in the order of their names. Pictures for square examples are cut to
                the square in their middle and scaled; others must have the size.
            num: How many.
            first: Number of the first.

        Raises:
            ValueError: None, one that cannot be read, or one of another shape.
        """
        check_memory(f"{num} examples from {text}", 8 * num * int(np.prod(self.shape)))
        rows = (
            self._arrays(Path(text)) if text.endswith(".npz") else self.from_pixels(self._pictures(text, first + num))
        )
        return ((rows[(first + np.arange(num)) % len(rows)] - self.shift) / self.scale).astype(np.float32)

    def _arrays(self, path: Path) -> np.ndarray:
        try:
            rows = read_arrays(path, ["x"])["x"]
        except FileNotFoundError:
            raise ValueError(f"{path} is not there") from None
        except BROKEN as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if rows.shape[1:] != self.shape or not len(rows) or not np.isfinite(rows).all():
            raise ValueError(
                f"{path} must hold finite examples x (N, {', '.join(map(str, self.shape))}), got {rows.shape}"
            )
        return rows.astype(np.float64)

    def from_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Bytes in the data's own scale."""
        if self.low is None or self.high is None:
            raise ValueError("the data of this run has no black and white: give its examples as an npz file with x")
        return self.low + (self.high - self.low) / 255 * pixels.astype(np.float64)

    def _pictures(self, text: str, num: int) -> np.ndarray:
        if len(self.shape) != 3 or self.shape[-1] not in (1, 3):
            raise ValueError(f"{text}: examples of this run, {self.shape}, are no pictures; give an npz file with x")
        place = Path(text)
        files = (
            sorted(path for path in place.iterdir() if path.suffix.lower() in endings()) if place.is_dir() else [place]
        )
        if not files or not place.exists():
            raise ValueError(f"{text} is neither a picture, a folder with pictures nor an npz file")
        height, width, channels = self.shape
        reader, rows = Reader(height if height == width else None, channels, MAX_PIXELS), []
        for path in files[:num]:
            rows.append(reader.read(path, str(path)))
            if rows[-1].shape != self.shape:
                (tall, wide, _) = rows[-1].shape
                raise ValueError(f"{path} has {wide} x {tall} pixels; this run takes {width} x {height}: scale it")
        return np.stack(rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(Example):
    """What is kept of examples: 1 where a picture is white (at least half), 0 where it is black.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from flowjax.conditions import Mask
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     picture = Image.new("L", (2, 2), 0)
        ...     picture.putpixel((1, 0), 255)
        ...     picture.save(file)
        ...     Mask(shape=(2, 2, 3)).read(file.name, 1)[0, ..., 0].tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """

    def read(self, text: str, num: int, first: int = 0) -> np.ndarray:
        """Masks in a file or folder, in turn: (num, H, W, 1), or (num, ...) from an npz with x of 0 and 1.

        Raises:
            ValueError: See `Example.read`.
        """
        if text.endswith(".npz"):
            rows = Example(shape=self.shape).read(text, num, first)
            if not np.isin(rows, (0, 1)).all():
                raise ValueError(f"{text} must hold masks x of 0 and 1")
            return rows
        grey = dataclasses.replace(self, shape=(*self.shape[:-1], 1), low=0.0, high=1.0, shift=0.0, scale=1.0)
        return (Example.read(grey, text, num, first) >= 0.5).astype(np.float32)

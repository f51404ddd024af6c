"""One picture from a file or from bytes, as 8-bit pixels: what every data set of pictures reads with."""

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

MAX_PIXELS = 2**26
"""Pictures with more pixels are refused unless told otherwise; in colour this many take 192 MiB."""

# Common ones first. Pillow knows more, and some of those start other programs (EPS runs Ghostscript): whatever a file
# is called, its content is never given to them.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that can be read here: AVIF from Pillow 11.3 on, HEIF (HEIC) where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def endings() -> frozenset[str]:
    """The file name endings of these formats."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats())


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of more than 8 bits, which Pillow would cut off at 255, over their whole range."""
    x, info = np.asarray(image), image.info
    if image.mode == "F":
        if not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(f"its floating point values must be in 0..1, not {x.min()}..{x.max()}; store it as npz")
        top = 1
    elif image.mode == "I" and image.format == "TIFF":
        raise ValueError("signed and 32-bit integers have no white; store it with 8 or 16 bits or as npz")
    else:
        tags = getattr(image, "tag_v2", {})
        top = 2 ** tags.get(258, (16,))[0] - 1  # TIFF has also 12 bits in 16
        if tags.get(262) == 0:  # white is zero
            x = top - x
    pixels = np.rint(x * (255 / top)).astype(np.uint8)
    if isinstance(transparent := info.get("transparency"), int):
        pixels[x == transparent] = 255
    return Image.fromarray(pixels)


def _foreign(file: Path | io.BytesIO) -> str:
    """What to do about a picture that only further packages read, whatever its ending says; "" for others."""
    start = b""
    with contextlib.suppress(OSError), file.open("rb") if isinstance(file, Path) else io.BytesIO(file.getvalue()) as f:
        start = f.read(12)
    kinds = {b"heic": ("HEIF", "pillow-heif (pip install pillow-heif)"), b"avif": ("AVIF", "Pillow 11.3 or newer")}
    name, needs = kinds.get(start[8:12] if start[4:8] == b"ftyp" else b"", ("", ""))
    return f"it is {name}, which needs {needs}" if name and name not in formats() else ""


def fit(image: Image.Image, size: int | None, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Grey or colour; the largest square in the middle scaled to `size` pixels, or the size it has.

    The picture stands upright as its EXIF orientation says, on white where it is transparent.
    """
    image.load()
    # A broken EXIF block is no reason to refuse a picture: it stands as it is stored.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if size is not None and image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.convert("RGB").crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


class Reader:
    """Reads pictures of one data set, and knows which of them move.

    Attributes:
        animations: Names of the animations met so far; of each the first frame was read.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from PIL import Image
        >>> from flowjax.data.pictures import Reader
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(file, format="png")
        >>> Reader(8, 1, max_pixels=1000).read(file, "black.png").shape  # cut to a square, scaled, grey
        (8, 8, 1)
    """

    def __init__(self, size: int | None, channels: int, max_pixels: int):
        """Checks the options.

        Args:
            size: Height and width, or None for those that a picture has.
            channels: 1 or 3.
            max_pixels: Largest number of pixels of a picture, before and after scaling.

        Raises:
            ValueError: A number outside its range.
        """
        if channels not in (1, 3) or (size is not None and size < 1):
            raise ValueError(f"channels must be 1 or 3 and size at least 1, got {channels} and {size}")
        if max_pixels < 1 or (size or 1) ** 2 > max_pixels:
            raise ValueError(f"size {size} and max_pixels {max_pixels}: size**2 must be in 1..max_pixels")
        if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow refuses by itself what is larger
        self.size, self.channels, self.max_pixels = size, channels, max_pixels
        self.animations: set[str] = set()
        self.warns = False

    def read(self, file: Path | io.BytesIO, name: str) -> UInt8[np.ndarray, "H W C"]:
        """The picture in `file`, which errors call `name`.

        Raises:
            ValueError: No picture of a format in `formats`, a broken one, or one that is too large.
        """
        try:
            with Image.open(file, formats=formats()) as image:
                if image.width * image.height > self.max_pixels:
                    raise Image.DecompressionBombError
                # A JPEG with a second picture holds the first at another depth or exposure.
                moves = getattr(image, "is_animated", False) and image.format != "MPO"
                pixels = fit(image, self.size, self.channels)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(
                f"cannot read image {name}: it has more than max_pixels={self.max_pixels} pixels; "
                "raise that option if it is meant to be so large"
            ) from error
        except Exception as error:  # decoders raise anything when a file is broken
            raise ValueError(f"cannot read image {name}: {_foreign(file) or error}") from error
        if moves:
            if self.warns and not self.animations:
                warnings.warn(f"{name} is an animation; of those the first frame is read", stacklevel=2)
            self.animations.add(name)
        return pixels

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """While data are opened, animations are collected without a word; after it, the first one met is said."""
        # Pillow warns of large pictures before they can be refused here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
        self.warns = True

    def notes(self) -> list[str]:
        """What a data set says of its animations."""
        names = sorted(self.animations)
        return [f"the first frame is read of {some('animation(s)', names)}"] if names else []


def some(what: str, names: Sequence[str]) -> str:
    """A count and the first names: "2 file(s): a, b"."""
    return f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"

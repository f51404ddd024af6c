"""Data sets from a folder of pictures or from one npz file."""

import functools
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flowjax.data.records import Records, scale_of
from flowjax.data.sources import Source, choose

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def fit(image: Image.Image, size: int | None, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Grey or colour; the largest square in the middle scaled to `size` pixels, or the size it has."""
    if size is not None and image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.convert("RGB").crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _read(row: int, *, files: Sequence[Path], size: int | None, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """The picture in file `row`."""
    try:
        with Image.open(files[row]) as image:
            return fit(image, size, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {files[row]}: {error}") from error


def _read_equal(row: int, *, shape: tuple[int, ...], files: Sequence[Path], **options: Any) -> np.ndarray:
    """The picture in file `row`, which must have this shape."""
    x = _read(row, files=files, **options)
    if x.shape != shape:
        raise ValueError(f"image {files[row]} is {x.shape[1]}x{x.shape[0]}, not {shape[1]}x{shape[0]}; give a size")
    return x


def images(folder: str, *, size: int | None = None, channels: int = 3, in_memory: bool | None = None) -> Source:
    """Pictures under a folder, in the order of their names.

    If they lie in subfolders, those directly under `folder` are the classes, in alphabetical order.

    Args:
        folder: Where they lie.
        size: Height and width in pixels: each picture's largest square in the middle is scaled. Without it all
            must have the same size.
        channels: 1 for grey, 3 for colour.
        in_memory: Read everything now, or each picture when it is asked for; by default now if all fit in 1 GiB.

    Raises:
        ValueError: A missing or empty folder, pictures beside the folders of classes, a file that is no picture
            (when it is read), pictures of different sizes, or a number outside its range.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"folder {root} does not exist")
    if channels not in (1, 3) or (size is not None and size < 1):
        raise ValueError(f"channels must be 1 or 3 and size at least 1, got {channels} and {size}")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
    if not files:
        raise ValueError(f"folder {root} has no images ({', '.join(sorted(_ENDINGS))})")
    groups = [path.relative_to(root).parts[0] if path.parent != root else None for path in files]
    names = tuple(sorted({group for group in groups if group is not None}))
    if names and None in groups:
        raise ValueError(f"{files[groups.index(None)]} lies beside the folders of classes {', '.join(names)}")
    shape = _read(0, files=files, size=size, channels=channels).shape
    read = functools.partial(_read_equal, shape=shape, files=files, size=size, channels=channels)
    x = Records((len(files), *shape), np.dtype(np.uint8), read).settle(in_memory)
    cond = np.array([names.index(group) for group in groups if group is not None], np.int32)
    labels: dict[str, Any] = {"cond": cond, "num_classes": len(names), "names": names} if names else {}
    return Source(x=x, **scale_of(x), **labels)


def npz(path: str, *, images: str = "images", labels: str | None = "labels", num_classes: int | None = None) -> Source:
    """Arrays in one npz file, kept in memory.

    Args:
        path: The file.
        images: Key of the examples (N, ...). uint8 pictures (N, H, W) get a channel axis. uint8 is normalised
            from 0..255 to [-1, 1], floating point by mean and standard deviation.
        labels: Key of the integer labels (N,), or None.
        num_classes: Number of classes; by default one more than the largest label.

    Raises:
        ValueError: A missing or broken file, a key that it does not have, or arrays that do not fit.
    """
    if not Path(path).is_file():
        raise ValueError(f"file {path} does not exist")
    try:
        # A file that numpy opens itself stays open when it is broken.
        with open(path, "rb") as opened, np.load(opened) as file:
            for key in (images, *([] if labels is None else [labels])):
                if key not in file.files:
                    raise ValueError(f"no array {key!r} in it (it has {', '.join(file.files)})")
            x, cond = file[images], None if labels is None else file[labels]
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if x.dtype == np.uint8 and x.ndim == 3:
        x = x[..., None]
    if cond is None:
        return Source(x=x, **scale_of(x))
    if not np.issubdtype(cond.dtype, np.integer) or cond.shape != (len(x),):
        raise ValueError(f"{path}: {len(x)} examples need {len(x)} integer labels, got {cond.dtype} {cond.shape}")
    classes = int(cond.max()) + 1 if num_classes is None else num_classes
    return Source(x=x, cond=cond.astype(np.int32), num_classes=classes, **scale_of(x))


def stored_array(
    path: str, name: str | None = None, sha256: str | None = None, folder: str | None = None
) -> np.ndarray:
    """An array of an npz file.

    Args:
        path: The file; a relative one lies in `folder` if that is given.
        name: Its name in the file; not needed where there is one only.
        sha256: Digest of the file, in hexadecimal digits, by which another file of the same name is refused.
        folder: Of a run, for files that were copied into it.

    Raises:
        ValueError: No such file or array, or another file.
    """
    place = Path(path) if folder is None else Path(folder) / path
    if not place.is_file():
        raise ValueError(f"file {place} does not exist")
    if sha256 is not None and hashlib.sha256(place.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{place} is another file than the one that is meant: its sha256 differs")
    with open(place, "rb") as opened, np.load(opened) as file:
        names = list(file.files)
        if name is None and len(names) > 1:
            raise ValueError(f"{place} holds {', '.join(names)}: say which with name=")
        return file[choose(f"array of {place}", name or names[0], names)]

"""Data sets from a folder of pictures or from one npz file."""

import functools
import hashlib
import lzma
import math
import mimetypes
import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.data.pictures import MAX_PIXELS, Reader, endings, some
from flowjax.data.records import MEMORY, Records, scale_of
from flowjax.data.sources import Source, labels_of
from flowjax.facts import fact

# Pictures that the system's table of file types may not know.
_MORE_PICTURES = set(".arw .avif .cr2 .dng .exr .hdr .heic .heif .jp2 .jxl .nef .psd .tga".split())
BROKEN = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What reading a damaged npz file may raise."""
_TRAIN = {"train", "training"}
_HELD_OUT = {"dev", "eval", "evaluation", "test", "testing", "val", "valid", "validation"}


def _read(row: int, *, shape: tuple[int, ...], files: Sequence[Path], reader: Reader) -> np.ndarray:
    """The picture in file `row`, which must have this shape."""
    x = reader.read(files[row], str(files[row]))
    if x.shape != shape:
        raise ValueError(f"image {files[row]} is {x.shape[1]}x{x.shape[0]}, not {shape[1]}x{shape[0]}; give a size")
    return x


def _is_hidden(name: str) -> bool:
    """What file managers and archives leave behind."""
    return name.startswith(".") or name == "__MACOSX"


def _needs(names: Sequence[str]) -> str:
    """What would read these pictures."""
    modern = any(name.lower().endswith((".heic", ".heif", ".avif")) for name in names)
    return "; HEIC needs pillow-heif (pip install pillow-heif), AVIF needs Pillow 11.3" if modern else ""


def _search(root: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """All pictures under a folder in the order of their names, and by kind the names of what is left out.

    Links are followed; a folder that is reached twice is read once.
    """

    def fail(error: OSError) -> None:
        raise ValueError(f"cannot read folder {error.filename}: {error.strerror}")

    files: list[Path] = []
    skipped: dict[str, list[str]] = {name: [] for name in ("hidden", "unreadable", "broken", "again", "others")}
    seen: set[str] = set()
    for place, folders, names in os.walk(root, followlinks=True, onerror=fail):
        folders.sort()
        here = Path(place)
        if (real := os.path.realpath(place)) in seen:
            skipped["again"].append(str(here.relative_to(root)))
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in folders if _is_hidden(name)]
        skipped["hidden"] += [f"{(here / name).relative_to(root)}/" for name in hidden]
        folders[:] = [name for name in folders if name not in hidden]
        for name in names:
            path = here / name
            if (ending := path.suffix.lower()) in endings():
                kind = "hidden" if _is_hidden(name) else "" if path.is_file() else "broken"
            elif not path.exists():
                kind = "broken"
            else:
                guess = mimetypes.guess_type(name)[0] or ""
                kind = "unreadable" if ending in _MORE_PICTURES or guess.startswith("image/") else "others"
            if kind:
                skipped[kind].append(str(path.relative_to(root)))
            else:
                files.append(path)
    return sorted(files), {kind: sorted(names) for kind, names in skipped.items()}


def _class_names(
    root: Path, groups: Sequence[str | None], asked: Sequence[str] | None, again: Sequence[str]
) -> tuple[str, ...]:
    """The names of the classes of pictures whose folders directly under `root` are `groups`.

    Raises:
        ValueError: Folders that are no classes, or whose pictures cannot be read.
    """
    found = {group for group in groups if group is not None}
    if asked is not None:
        missing = [name for name in asked if name not in found]
        if missing or not 0 < len(asked) == len(set(asked)):
            raise ValueError(
                f"classes={tuple(asked)}: {root} has pictures in {', '.join(sorted(found)) or 'no folder'}; "
                "name each folder once"
            )
        return tuple(asked)
    if not found:
        return ()
    # A broken link without the ending of a picture was a folder.
    below = {
        path.name: path
        for path in sorted(root.iterdir())
        if not _is_hidden(path.name) and (path.is_dir() or (not path.exists() and path.suffix.lower() not in endings()))
    }
    names = tuple(below)
    lower = {name.lower() for name in names}
    if lower <= _TRAIN | _HELD_OUT or (lower & _TRAIN and lower & _HELD_OUT):
        raise ValueError(
            f"the folders in {root} are named like parts of a data set ({', '.join(names)}); give the folder of one "
            f"part, such as {below[min(found)]}, or classes=(...) if these are the names of classes"
        )
    if empty := [below[name] for name in names if name not in found]:
        reason = "it is the same folder as another" if empty[0].name in again else "it is a broken link"
        if empty[0].exists() and empty[0].name not in again:
            held = sorted(path.name for path in empty[0].iterdir())
            reason = f"it has {some('file(s)', held)}" if held else "it is empty"
        raise ValueError(
            f"class folder {empty[0]} has no picture that can be read ({reason}), "
            "and without it the labels behind it would move; remove it, convert its pictures, or name the folders that "
            "are classes with classes=(...)"
        )
    return names


def images(
    folder: str,
    *,
    size: int | None = None,
    channels: int = 3,
    in_memory: bool | None = None,
    classes: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Pictures under a folder, in the order of their names.

    If they lie in subfolders, those directly under `folder` are the classes, in alphabetical order. Links are followed,
    hidden files and folders are not read. Pictures stand upright as their EXIF orientation says, and on white where
    they are transparent; 16-bit grey and floats in 0..1 are scaled to 8 bits; of an animation the first frame is read.
    What was skipped is said in warnings and in `notes` of the source.

    Args:
        folder: Where they lie.
        size: Height and width in pixels: each picture's largest square in the middle is scaled. Without it all
            must have the same size.
        channels: 1 for grey, 3 for colour.
        in_memory: Read everything now, or each picture when it is asked for; by default now if all fit in 1 GiB.
        classes: Names of the folders that are classes, in the order of their labels; other folders are skipped.
        max_pixels: Pictures with more pixels are refused.

    Raises:
        ValueError: A missing or empty folder, pictures beside the folders of classes, a class folder without a picture
            that can be read, folders named like parts of a data set (train, test), a file that is no picture or too
            large (when it is read), pictures of different sizes, or a number outside its range.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"folder {root} {'is a file' if root.exists() else 'does not exist'}")
    reader = Reader(size, channels, max_pixels)
    files, skipped = _search(root)
    if not files:
        others = "".join(
            f"; it has {some('picture(s) of other kinds', names)}{_needs(names)}"
            for names in [skipped["unreadable"]]
            if names
        )
        raise ValueError(
            f"folder {root} has no images ({', '.join(sorted(endings(), key=lambda name: (len(name), name)))}){others}"
        )
    groups = [path.relative_to(root).parts[0] if path.parent != root else None for path in files]
    names = _class_names(root, groups, classes, skipped["again"])
    if names and None in groups:
        raise ValueError(f"{files[groups.index(None)]} lies beside the folders of classes {', '.join(names)}")
    if classes is not None:
        skipped["unasked"] = sorted({f"{group}/" for group in groups if group not in names})
        files = [path for path, group in zip(files, groups) if group in names]
        groups = [group for group in groups if group in names]
    with reader.collecting():
        shape = reader.read(files[0], str(files[0])).shape
        read = functools.partial(_read, shape=shape, files=files, reader=reader)
        x = Records((len(files), *shape), np.dtype(np.uint8), read).settle(in_memory)
    numbers = {name: number for number, name in enumerate(names)}
    cond = np.array([numbers[group] for group in groups if group is not None], np.int32)
    labels: dict[str, Any] = {"cond": cond, "num_classes": len(names), "names": names} if names else {}
    texts = {
        "hidden": "hidden file(s) or folder(s)",
        "unreadable": "picture(s) of a kind that cannot be read here",
        "broken": "broken link(s)",
        "again": "folder(s) read under another name",
        "unasked": "folder(s) not among the classes",
    }
    shown = {kind: f"skipped: {some(text, skipped[kind])}" for kind, text in texts.items() if skipped.get(kind)}
    if "unreadable" in shown:
        shown["unreadable"] += _needs(skipped["unreadable"])
    notes = [*shown.values(), *reader.notes()]
    for note in notes:
        warnings.warn(f"{root}: {note}", stacklevel=2)
    if skipped["others"]:
        notes.append(f"skipped: {some('file(s) that are no pictures', skipped['others'])}")
    return Source(x=x, **scale_of(x), **labels, notes=tuple(notes))


def _header(file: Any, key: str, kinds: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array whose file is open, from its first bytes."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        # What numpy says here advises to trust the file.
        raise ValueError(f"{key!r} is no array of numbers") from error
    if dtype.hasobject or dtype.names or dtype.kind not in kinds:
        kind = "Python objects" if dtype.hasobject else f"values of type {dtype}"
        raise ValueError(f"{key!r} holds {kind}, which are not read; save it as numbers of one shape (numpy.stack)")
    return shape, dtype


def read_arrays(
    path: Path, keys: Sequence[str] | None = None, max_bytes: int | None = None, *, texts: bool = False
) -> dict[str, np.ndarray]:
    """Arrays of an npz file by name; what the file claims is checked before they are read.

    Args:
        path: The file.
        keys: Names; all by default.
        max_bytes: Largest size of the unpacked arrays; by default 2 GiB, or ten times the size of the file if that
            is more.
        texts: Whether arrays may hold texts besides numbers.

    Raises:
        ValueError: Not an npz file, one that claims more than it holds or than `max_bytes`, a key that it does not
            have, or an array of something else. Damaged files raise the other `BROKEN` errors too.
    """
    with open(path, "rb") as opened:
        if opened.read(6) == b"\x93NUMPY":
            raise ValueError("it is one .npy array; put it into an npz: numpy.savez(path, name=array)")
        if not zipfile.is_zipfile(opened):
            raise ValueError("it is not an npz file or not a whole one")
        with zipfile.ZipFile(opened) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            shown = ", ".join(list(members)[:10]) + (", ..." if len(members) > 10 else "")
            keys = list(members) if keys is None else keys
            for key in keys:
                if key not in members:
                    raise ValueError(f"no array {key!r} in it (it has {shown})")
            claimed = sum(members[key].file_size for key in keys)
            limit = max(2 * MEMORY, 10 * path.stat().st_size) if max_bytes is None else max_bytes
            if claimed > limit:
                raise ValueError(
                    f"its {path.stat().st_size} bytes unpack to {claimed}, more than max_bytes={limit}; "
                    "raise that option if it is meant to be so large"
                )
            found = {}
            for key in keys:
                with archive.open(members[key]) as file:
                    shape, dtype = _header(file, key, "biufU" if texts else "biuf")
                    size = math.prod(shape) * dtype.itemsize
                    if size != members[key].file_size - file.tell():
                        held = members[key].file_size - file.tell()
                        raise ValueError(f"{key!r} of shape {shape} and type {dtype} needs {size} bytes, it has {held}")
                with archive.open(members[key]) as file:
                    found[key] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _channels_last(x: np.ndarray, key: str, channels_first: bool | None) -> np.ndarray:
    """Pictures and videos with their channels behind."""
    if channels_first:
        if x.ndim not in (4, 5):
            raise ValueError(f"channels_first is for arrays (N, C, H, W) or (N, C, T, H, W), but {key!r} has {x.shape}")
        return np.ascontiguousarray(np.moveaxis(x, 1, -1))
    # Up to four channels before larger sides: no picture has four rows and many channels.
    for axis in (1, 2) if x.ndim == 5 else (1,) if x.ndim == 4 else ():
        if channels_first is None and x.shape[axis] <= 4 < x.shape[-1] and x.shape[axis] < min(x.shape[axis + 1 :]):
            raise ValueError(
                f"{key!r} of shape {x.shape} seems to have its channels at axis {axis}, and they belong behind: save "
                f"numpy.moveaxis(x, {axis}, -1), or give channels_first="
                + ("True (False takes it as it is)" if axis == 1 else "False to take it as it is")
            )
    return x


def npz(
    path: str,
    *,
    images: str = "images",
    labels: str | None = "labels",
    fields: tuple = (),
    num_classes: int | None = None,
    channels_first: bool | None = None,
    max_bytes: int | None = None,
) -> Source:
    """Arrays in one npz file, kept in memory. Only numbers and texts are read, never pickled objects.

    Args:
        path: The file.
        images: Key of the examples (N, ...). uint8 pictures (N, H, W) get a channel axis. uint8 is normalised
            from 0..255 to [-1, 1], floating point by mean and standard deviation.
        labels: Key of the integer labels (N,), or None.
        fields: Keys of what else belongs to each example, (N, ...): "target" of a regression, "x0" of a coupling,
            texts (N,), ...
        num_classes: Number of classes; by default one more than the largest label.
        channels_first: Arrays are (N, C, H, W) or (N, C, T, H, W), and their channels are moved behind. By default
            arrays that look so are refused; False takes them as they are.
        max_bytes: Largest size of the unpacked arrays; by default 2 GiB, or ten times the size of the file if that
            is more.

    Raises:
        ValueError: A missing or broken file, one that claims more than it holds or than `max_bytes`, a key that it does
            not have, values that are not finite, labels that leave out most numbers up to the largest, or arrays that
            do not fit.
    """
    if not Path(path).is_file():
        raise ValueError(f"file {path} does not exist")
    keys = [images, *([] if labels is None else [labels])]
    try:
        arrays = read_arrays(Path(path), keys, max_bytes)
        more = read_arrays(Path(path), fields, max_bytes, texts=True)
        x, rest = arrays[images], [] if labels is None else [arrays[labels]]
    except BROKEN as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    try:
        if x.ndim == 0:
            raise ValueError(f"{images!r} is one number, not an array of examples")
        if x.dtype == np.uint8 and x.ndim == 3:
            x = x[..., None]
        x = _channels_last(x, images, channels_first)
        found = labels_of(rest[0], len(x), num_classes) if rest else {}
        for note in found.get("notes", ()):
            warnings.warn(f"{path}: {note}", stacklevel=2)
        return Source(x=x, **found, **scale_of(x), fields=more)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@fact("array", "npz", "an array of an npz file", example=lambda: {"path": "file.npz"})
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
    try:
        found = read_arrays(place, None if name is None else [name])
        if len(found) != 1:
            raise ValueError(f"it has {', '.join(found) or 'no array'}: say which with name=")
        return next(iter(found.values()))
    except BROKEN as error:
        raise ValueError(f"cannot read {place}: {error}") from error

"""Data sets of pictures in parquet files, as Hugging Face stores them."""

import functools
import io
import json
import re
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from packaging.version import Version

from flowjax.data.pictures import MAX_PIXELS, Reader
from flowjax.data.records import MEMORY, Records, scale_of
from flowjax.data.sources import Source, labels_of


def _library() -> Any:
    """pyarrow; before 14.0.1 a parquet file could run code."""
    try:
        installed = version("pyarrow")
    except PackageNotFoundError:
        installed = "0"
    if Version(installed) < Version("14.0.1"):
        found = "not installed" if installed == "0" else installed
        raise ValueError(
            f"parquet files need pyarrow 14.0.1 or newer (it is {found}): pip install -U pyarrow (extra `parquet`)"
        )
    import pyarrow.parquet

    return pyarrow.parquet


def _parts(path: Path) -> list[Path]:
    """The files of one split: a file, those of a folder, or those that a pattern matches.

    Raises:
        ValueError: None, several splits, or a split of which parts are missing.
    """
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.parquet") if path.is_dir() else path.parent.glob(path.name))
    if not files:
        raise ValueError(f"{path} is no parquet file, folder with parquet files or pattern that matches some")
    splits: dict[str, list[Path]] = {}
    for file in files:
        named = re.fullmatch(r"(.*?)-?\d+-of-\d+.*", file.name)
        splits.setdefault(str(file.with_name(named[1] if named else file.stem)), []).append(file)
    if path.is_dir() and len(splits) > 1:
        names = ", ".join(sorted(splits)[:9])
        raise ValueError(f"{path} has several splits ({names}); choose with a pattern, path='{min(splits)}*.parquet'")
    for parts in splits.values():
        whole = re.fullmatch(r".*-of-(\d+).*", parts[0].name)
        if whole and int(whole[1]) != len(parts):
            raise ValueError(f"{path} is not complete: {len(parts)} of {int(whole[1])} files, such as {parts[0].name}")
    return files


def _row(row: int, *, shape: tuple[int, ...], encoded: Sequence[bytes], reader: Reader, path: Path) -> np.ndarray:
    """The picture of a row, which must have this shape."""
    x = reader.read(io.BytesIO(encoded[row]), f"{row} of {path}")
    if x.shape != shape:
        raise ValueError(f"image {row} of {path} is {x.shape[1]}x{x.shape[0]}, not {shape[1]}x{shape[0]}; give a size")
    return x


def _names(schema: Any, label: str) -> tuple[str, ...]:
    """The names of the classes, where Hugging Face wrote them."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        names = feature["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _columns(
    files: Sequence[Path], image: str, label: str | None, max_bytes: int | None
) -> tuple[list[bytes], list[Any], tuple[str, ...]]:
    """The encoded pictures, their labels and the names of the classes."""
    library = _library()
    limit = max(2 * MEMORY, 10 * sum(file.stat().st_size for file in files)) if max_bytes is None else max_bytes
    encoded: list[bytes] = []
    labels: list[Any] = []
    names: tuple[str, ...] = ()
    used = 0
    for file in files:
        with library.ParquetFile(file) as table:
            schema, columns = table.schema_arrow, [image, *([] if label is None else [label])]
            for key in columns:
                if key not in schema.names:
                    raise ValueError(f"no column {key!r} in {file.name} (it has {', '.join(schema.names[:20])})")
            names = names or (() if label is None else _names(schema, label))
            # Equal values are stored once and become many: in portions of at most 256 MiB.
            largest = max(
                (table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)), default=1
            )
            portion = int(np.clip(2**28 // max(largest, 1), 1, 256))
            for batch in table.iter_batches(batch_size=portion, columns=columns):
                used += batch.nbytes
                if used > limit:
                    raise ValueError(
                        f"its columns take more than max_bytes={limit}; raise that option, or prepare the data set "
                        "(python -m flowjax.data.prepare) from a folder of pictures"
                    )
                for value in batch.column(image).to_pylist():
                    content = value.get("bytes") if isinstance(value, dict) else value
                    if not isinstance(content, bytes):
                        raise ValueError(
                            f"row {len(encoded)} of column {image!r} must hold an encoded picture, as bytes or "
                            f"{{bytes, path}}, not {str(value)[:60]}"
                        )
                    encoded.append(content)
                if label is not None:
                    labels += batch.column(label).to_pylist()
    return encoded, labels, names


def parquet(
    path: str,
    *,
    image: str = "image",
    label: str | None = "label",
    size: int | None = None,
    channels: int = 3,
    in_memory: bool | None = None,
    num_classes: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int | None = None,
) -> Source:
    """Pictures in parquet files, as Hugging Face stores them: a column of bytes or of {bytes, path}.

    Needs pyarrow. The encoded pictures are kept in memory; paths are not followed. Pictures are read as `images` reads
    them.

    Args:
        path: A file, a folder with the files of one split, or a pattern such as "data/train-*.parquet".
        image: Column with the pictures.
        label: Column with integer labels, or None.
        size: Height and width in pixels: each picture's largest square in the middle is scaled. Without it all
            must have the same size.
        channels: 1 for grey, 3 for colour.
        in_memory: Decode everything now, or each picture when it is asked for; by default now if all fit in 1 GiB.
        num_classes: Number of classes; by default that of their names in the file, or one more than the largest label.
        max_pixels: Pictures with more pixels are refused.
        max_bytes: Largest size of the encoded pictures; by default 2 GiB, or ten times the size of the files if that
            is more.

    Raises:
        ValueError: pyarrow is missing, no file or those of several splits or parts of one, a broken file, a column that
            it does not have or that holds something else, too large pictures, or a number outside its range.
    """
    reader = Reader(size, channels, max_pixels)
    files = _parts(Path(path))
    try:
        encoded, found, names = _columns(files, image, label, max_bytes)
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:  # pyarrow's are of these kinds
        raise ValueError(f"cannot read {path}: {error}") from error
    if not encoded:
        raise ValueError(f"{path} has no rows")
    with reader.collecting():
        shape = reader.read(io.BytesIO(encoded[0]), f"0 of {path}").shape
        read = functools.partial(_row, shape=shape, encoded=encoded, reader=reader, path=Path(path))
        x = Records((len(encoded), *shape), np.dtype(np.uint8), read).settle(in_memory)
    labels: dict[str, Any] = {}
    if label is not None:
        try:
            labels = labels_of(np.array(found), len(encoded), num_classes, names if num_classes is None else ())
        except ValueError as error:
            raise ValueError(f"{path}, column {label!r}: {error}") from error
    notes = (*labels.pop("notes", ()), *reader.notes())
    for note in notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return Source(x=x, **labels, **scale_of(x), notes=notes)

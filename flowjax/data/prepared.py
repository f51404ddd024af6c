"""Data sets prepared for TensorFlow Datasets, read and written without TensorFlow."""

import errno
import functools
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from PIL import Image

from flowjax.data.files import fit
from flowjax.data.records import Records, scale_of
from flowjax.data.sources import Source

_SHARD = 50_000


def _read(row: int, *, source: Any, key: str, size: int | None, channels: int | None) -> np.ndarray:
    """Example `row`; bytes are an encoded picture."""
    value = source[row][key]
    if not isinstance(value, bytes):
        return value
    with Image.open(io.BytesIO(value)) as image:
        return fit(image, size, channels or 3)


def tfds(
    folder: str,
    *,
    split: str = "train",
    image: str = "image",
    label: str | None = "label",
    size: int | None = None,
    in_memory: bool | None = None,
) -> Source:
    """A prepared data set of TensorFlow Datasets whose files are array_record.

    Args:
        folder: Folder with `dataset_info.json`, or one above it that has a single data set.
        split: Name or slice of a split, such as "train" or "train[:90%]".
        image: Feature with the examples: pictures or tensors.
        label: Feature with the class, or None.
        size: Pictures are cropped to their middle square and scaled to this many pixels; needed where their
            sizes differ.
        in_memory: Read everything now, or each example when it is asked for; by default now if all fit in 1 GiB.

    Raises:
        ValueError: No or several data sets in the folder, files in another format, an unknown split or feature, or
            pictures of different sizes without `size`.
    """
    import tensorflow_datasets as library

    root = Path(folder)
    found = sorted(path.parent for path in root.rglob("dataset_info.json")) if root.is_dir() else []
    if len(found) != 1:
        raise ValueError(f"{root} must have one prepared data set, found {len(found)}: {', '.join(map(str, found))}")
    builder = library.builder_from_directory(found[0])
    features = builder.info.features
    for key in (image, *([] if label is None else [label])):
        if key not in features:
            raise ValueError(f"{found[0]} has no feature {key!r} (it has {', '.join(sorted(features))})")
    # Pictures are decoded here, so that they need neither OpenCV nor a fixed size.
    picture = isinstance(features[image], library.features.Image)
    skip = {image: library.decode.SkipDecoding()}
    try:
        records = builder.as_data_source(split, decoders=skip if picture else None)
        labels = builder.as_data_source(split, decoders=skip) if label is not None else None
    except NotImplementedError as error:
        written = builder.info.file_format.value
        raise ValueError(
            f"{found[0]} is {written}; random access needs array_record (prepare it with file_format='array_record')"
        ) from error
    except (KeyError, ValueError) as error:
        splits = ", ".join(builder.info.splits)
        raise ValueError(f"cannot read split {split!r} of {found[0]} (it has {splits}): {error}") from error

    shape = tuple(features[image].shape)
    if picture:
        shape = shape if size is None else (size, size, shape[-1])
        if None in shape:
            raise ValueError(f"pictures of {found[0]} have different sizes; give a size")
    read = functools.partial(_read, source=records, key=image, size=size, channels=shape[-1] if picture else None)
    x = Records((len(records), *shape), np.dtype(features[image].np_dtype), read).settle(in_memory)
    metadata = builder.info.metadata or {}
    options = {key: metadata[key] for key in ("shift", "scale", "low", "high") if key in metadata}
    if "scale" not in options:
        options = scale_of(x)
    if labels is None:
        return Source(x=x, **options)
    cond = np.fromiter((labels[i][label] for i in range(len(labels))), np.int32, len(labels))
    names = tuple(features[label].names or ()) if isinstance(features[label], library.features.ClassLabel) else ()
    return Source(x=x, cond=cond, num_classes=len(names) or int(cond.max()) + 1, names=names, **options)


def _blocks(source: Source, block: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The rows of a source, `block` at a time, in order."""
    for start in range(0, len(source.x), block):
        rows = slice(start, start + block)
        yield source.x[rows], None if source.cond is None else source.cond[rows]


def _write(
    folder: Path, name: str, blocks: Iterable[tuple[np.ndarray, np.ndarray | None]], source: Source, metadata: dict
) -> None:
    """Writes blocks of (examples, labels); `metadata` is read after the last one."""
    import tensorflow_datasets as library

    if folder.exists():
        raise ValueError(f"{folder} exists; choose another folder")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    writer: Any = None
    try:
        part.mkdir(parents=True)
        for x, cond in blocks:
            if writer is None:
                features = {"image": library.features.Tensor(shape=x.shape[1:], dtype=x.dtype)}
                if cond is not None:
                    names = source.names or tuple(map(str, range(source.num_classes or 0)))
                    features["label"] = library.features.ClassLabel(names=list(names))
                kept = library.core.MetadataDict()
                identity = library.core.DatasetIdentity(
                    name=name, version=library.core.Version("1.0.0"), data_dir=str(part), module_name=""
                )
                info = library.core.DatasetInfo(
                    builder=identity, features=library.features.FeaturesDict(features), metadata=kept
                )
                writer = library.core.SequentialWriter(info, max_examples_per_shard=_SHARD, file_format="array_record")
                writer.initialize_splits(["train"])
            for i in range(len(x)):
                example = {"image": x[i]} | ({} if cond is None else {"label": int(cond[i])})
                writer.add_examples({"train": [example]})
        kept.update({key: value for key, value in metadata.items() if value is not None})
        writer.close_all()
        info.write_to_directory(part)
        os.replace(part, folder)
    except (OSError, RuntimeError) as error:
        # array_record reports failed writes as RuntimeError.
        shutil.rmtree(part, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OSError(errno.EIO, f"cannot write {folder}: {reason}") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _check_room(folder: Path, size: int) -> None:
    """Refuses before anything is written what cannot fit."""
    parent = next(path for path in folder.absolute().parents if path.exists())
    free = shutil.disk_usage(parent).free
    if size > free:
        raise OSError(
            errno.ENOSPC, f"cannot write {folder}: it needs {size / 2**20:.0f} MiB, the disk has {free / 2**20:.0f}"
        )


def store(source: Source, folder: str | Path, name: str = "dataset") -> None:
    """Writes a source as a data set that `tfds` reads back, with its classes and normalisation, in order.

    The folder appears under its name when it is complete.

    Args:
        source: What to write, as split "train", features "image" and "label".
        folder: New folder.
        name: Name of the data set.

    Raises:
        ValueError: The folder exists, or an example cannot be read.
        OSError: It cannot be written, for example because the disk is full.
    """
    folder = Path(folder)
    _check_room(folder, int(np.prod(source.x.shape, dtype=np.int64)) * source.x.dtype.itemsize)
    metadata = {key: getattr(source, key) for key in ("shift", "scale", "low", "high")}
    _write(folder, name, _blocks(source, 256), source, metadata)


def cache_latents(
    encode: Callable[[Num[np.ndarray, "B ..."]], Num[np.ndarray, "B ..."]],
    source: Source,
    folder: str | Path,
    *,
    block: int = 64,
    name: str = "latents",
) -> None:
    """Encodes every example once and writes the latents like `store`, normalised by their mean and deviation.

    Args:
        encode: Normalised float32 examples (B, ...) to latents (B, ...), in numpy or JAX; B is always `block`.
        source: What to encode.
        folder: New folder, read back with `load("tfds", folder=...)`.
        block: Examples encoded at once, at least 1.
        name: Name of the data set.

    Raises:
        ValueError: The folder exists, or latents that are not finite or all equal.
        OSError: It cannot be written, for example because the disk is full.
    """
    metadata: dict[str, float] = {}

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        count, total, squares = 0, 0.0, 0.0
        for x, cond in _blocks(source, block):
            # The last block is filled up, so that nothing compiles twice.
            whole = np.resize(source.normalize(x.astype(np.float32)).astype(np.float32), (block, *x.shape[1:]))
            latents = np.asarray(encode(whole), np.float32)[: len(x)]
            wide = latents.astype(np.float64)
            count, total, squares = count + wide.size, total + wide.sum(), squares + np.sum(wide**2)
            yield latents, cond
        variance = squares / count - (total / count) ** 2
        if not variance > 0:
            raise ValueError("latents must be finite and not all equal")
        metadata.update(shift=float(total / count), scale=float(np.sqrt(variance)))

    _write(Path(folder), name, blocks(), source, metadata)

"""Data sets prepared for TensorFlow Datasets, read and written without TensorFlow."""

import errno
import functools
import io
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from flowjax.data.pictures import MAX_PIXELS, Reader
from flowjax.data.records import Records, check_finite, scale_of
from flowjax.data.sources import MAX_CLASSES, Source, labels_of

_SHARD = 50_000
# Features that tensorflow_datasets builds from numbers and names alone.
_FEATURES = (
    "BBoxFeature",
    "ClassLabel",
    "FeaturesDict",
    "Image",
    "LabeledImage",
    "Scalar",
    "Sequence",
    "Tensor",
    "Text",
)


def _check_classes(node: Any, known: set[str], file: Path) -> None:
    """Refuses a description of features that names other classes: tensorflow_datasets would import their modules."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        name = str(key).replace("_", "").lower()
        # Older files call the class "type" or hold descriptions inside of strings; none of them is array_record.
        if isinstance(value, str) and (name in ("type", "json") or (name == "pythonclassname" and value not in known)):
            raise ValueError(
                f"{file} names the class {value!r}, which is not built; "
                f"known are {', '.join(_FEATURES)} of tensorflow_datasets"
            )
        _check_classes(value, known, file)


def _builder(folder: Path) -> Any:
    """The prepared data set in a folder, after a look at whose code it would run."""
    import tensorflow_datasets as library

    classes = [getattr(library.features, name) for name in _FEATURES]
    known = {f"{kind.__module__}.{kind.__name__}" for kind in classes}
    known |= {alias for kind in classes for alias in kind.__dict__.get("ALIASES", [])}
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        _check_classes(info.get("features"), known, folder / "dataset_info.json")
        _check_classes(json.loads((folder / "features.json").read_text()), known, folder / "features.json")
        for split in info.get("splits", []):
            if "/" in split.get("filepathTemplate", "") or "/" in split.get("name", ""):
                raise ValueError(f"{folder / 'dataset_info.json'} names files outside of its folder")
        return library.builder_from_directory(folder)
    except Exception as error:  # whatever a broken description makes of it
        if str(folder) in str(error) and isinstance(error, ValueError):
            raise
        raise ValueError(f"cannot read the prepared data set {folder}: {type(error).__name__}: {error}") from error


def _check_files(instructions: Iterable[Any], folder: Path) -> None:
    """Refuses a data set of which files are missing, cut off, or shorter than it claims."""
    for part in instructions:
        try:
            count = len(grain.sources.ArrayRecordDataSource(os.fspath(part.filename)))
        except Exception as error:
            raise ValueError(f"{folder} is not complete: cannot read {part.filename}: {error}") from error
        if count != part.examples_in_shard:
            raise ValueError(
                f"{folder} is not complete: {part.filename} has {count} examples, not {part.examples_in_shard}"
            )


def _decode(row: int, *, source: Any, features: Any, key: str, skip: Any, folder: Path) -> Any:
    """One feature of example `row`."""
    try:
        return features.deserialize_example_np(source[row], decoders=skip)[key]
    except Exception as error:  # whatever broken records make of it
        raise ValueError(f"cannot read {key!r} of example {row} of {folder}: {error}") from error


def _read_picture(row: int, *, reader: Reader, folder: Path, **options: Any) -> np.ndarray:
    """The encoded picture of example `row`."""
    return reader.read(io.BytesIO(_decode(row, folder=folder, **options)), f"{row} of {folder}")


def _scale(folder: Path) -> dict[str, float] | None:
    """The normalisation that was stored with a data set, if there is one."""
    file = folder / "metadata.json"
    try:
        metadata = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{file} must hold an object, not {str(metadata)[:60]}")
    options = {key: metadata[key] for key in ("shift", "scale", "low", "high") if key in metadata}
    for key, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{file}: {key} must be a number, got {value!r}")
    if ("scale" in options) != ("shift" in options):
        raise ValueError(f"{file} must hold shift and scale, or neither")
    return options if "scale" in options else None


def tfds(
    folder: str,
    *,
    split: str = "train",
    image: str = "image",
    label: str | None = "label",
    size: int | None = None,
    in_memory: bool | None = None,
    num_classes: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """A prepared data set of TensorFlow Datasets whose files are array_record.

    Nothing that the folder names is imported: of its features only the known kinds are built.

    Args:
        folder: Folder with `dataset_info.json`, or one above it that has a single data set.
        split: Name or slice of a split, such as "train" or "train[:90%]".
        image: Feature with the examples: pictures or tensors.
        label: Feature with the class, or None.
        size: Pictures are cropped to their middle square and scaled to this many pixels; needed where their
            sizes differ.
        in_memory: Read everything now, or each example when it is asked for; by default now if all fit in 1 GiB.
        num_classes: Number of classes; by default what the feature says, or one more than the largest label.
        max_pixels: Pictures with more pixels are refused.

    Raises:
        ValueError: No or several data sets in the folder, files in another format, missing or shorter than they should
            be, features of a class that is not known, an unknown split or feature, pictures of different sizes without
            `size`, or examples and labels that are not what the features say.
    """
    import tensorflow_datasets as library

    root = Path(folder)
    found = sorted(path.parent for path in root.rglob("dataset_info.json")) if root.is_dir() else []
    if len(found) != 1:
        raise ValueError(f"{root} must have one prepared data set, found {len(found)}: {', '.join(map(str, found))}")
    builder = _builder(found[0])
    features = builder.info.features
    for key in (image, *([] if label is None else [label])):
        if key not in features:
            raise ValueError(f"{found[0]} has no feature {key!r} (it has {', '.join(sorted(features))})")
    try:
        raw = builder.as_data_source(split, deserialize_method=library.decode.DeserializeMethod.RAW_BYTES)
        instructions = builder.info.splits[split].file_instructions
    except NotImplementedError as error:
        written = builder.info.file_format.value
        raise ValueError(
            f"{found[0]} is {written}; random access needs array_record (prepare it with file_format='array_record')"
        ) from error
    except (KeyError, ValueError) as error:
        splits = ", ".join(builder.info.splits)
        raise ValueError(f"cannot read split {split!r} of {found[0]} (it has {splits}): {error}") from error
    _check_files(instructions, found[0])

    # Only these two features are decoded, and pictures here, so that they need neither OpenCV nor a fixed size.
    kind = features[image]
    picture = isinstance(kind, library.features.Image)
    if not picture and not isinstance(kind, library.features.Tensor):
        raise ValueError(f"feature {image!r} of {found[0]} must be an Image or a Tensor, not {type(kind).__name__}")
    shape, dtype = tuple(kind.shape), np.dtype(kind.np_dtype)
    channels = 1 if picture and shape[-1] == 1 else 3
    if picture:
        if dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pictures {image!r} of {found[0]} hold {dtype}; only uint8 and uint16 are read")
        shape, dtype = (*(shape[:2] if size is None else (size, size)), channels), np.dtype(np.uint8)
    if None in shape:
        raise ValueError(f"pictures of {found[0]} have different sizes; give a size")
    reader = Reader(size if picture else None, channels, max_pixels)

    def reading(key: str, decode: Callable[..., Any], skip: Any = None, **options: Any) -> Callable[[int], Any]:
        only = library.features.FeaturesDict({key: features[key]})
        return functools.partial(decode, source=raw, features=only, key=key, skip=skip, folder=found[0], **options)

    if picture:
        read = reading(image, _read_picture, {image: library.decode.SkipDecoding()}, reader=reader)
    else:
        read = reading(image, _decode)
    records = Records((len(raw), *shape), dtype, read)
    with reader.collecting():
        records.one(0)  # before anything as large as the features claim is made
        x = records.settle(in_memory)
    labels: dict[str, Any] = {}
    if label is not None:
        names: tuple[str, ...] = ()
        if num_classes is None and isinstance(features[label], library.features.ClassLabel):
            if (features[label].num_classes or 0) > MAX_CLASSES:
                raise ValueError(
                    f"{found[0]} claims {features[label].num_classes} classes, more than {MAX_CLASSES}; "
                    "give num_classes if that is so"
                )
            names = tuple(features[label].names) if features[label].num_classes else ()
        cond = np.array([*map(reading(label, _decode), range(len(raw)))])
        labels = labels_of(cond, len(raw), num_classes, names)
    notes = (*labels.pop("notes", ()), *reader.notes())
    for note in notes:
        warnings.warn(f"{found[0]}: {note}", stacklevel=2)
    scale = _scale(found[0]) or scale_of(x)
    return Source(x=x, **labels, **scale, notes=notes)


def blocks_of(source: Source, block: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The rows of a source, `block` at a time, in order."""
    for start in range(0, len(source.x), block):
        rows = slice(start, start + block)
        x = source.x[rows]
        check_finite(x, f"examples {start}..{start + len(x) - 1}")
        yield x, None if source.cond is None else source.cond[rows]


def write_blocks(
    folder: Path,
    name: str,
    blocks: Iterable[tuple[np.ndarray, np.ndarray | None]],
    source: Source,
    metadata: Mapping[str, Any],
    finish: Callable[[Path], Mapping[str, Any]] = lambda part: {},
) -> None:
    """Writes blocks of (examples, labels) as a data set like that of `store`.

    Args:
        folder: New folder, which appears when it is complete.
        name: Name of the data set.
        blocks: In order.
        source: Where names and number of the classes come from.
        metadata: What `metadata.json` says; entries that are None are left out.
        finish: Given the folder under its first name, with all examples, returns what the metadata say besides.

    Raises:
        ValueError: See `store`.
        OSError: It cannot be written.
    """
    import tensorflow_datasets as library

    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise ValueError(f"name {name!r} begins the names of the files: letters, digits and _ only, at least one")
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another folder")
    if source.fields:
        raise ValueError(f"prepared sets hold no fields, and {', '.join(source.fields)} would be lost")
    writer: Any = None
    # A name of its own, so that two programs that write the same set do not delete each other's files.
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        for x, cond in blocks:
            if writer is None:
                features = {"image": library.features.Tensor(shape=x.shape[1:], dtype=x.dtype)}
                if cond is not None:
                    named = {"names": list(source.names)} if source.names else {"num_classes": source.num_classes}
                    features["label"] = library.features.ClassLabel(**named)
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
        if more := finish(part):
            kept.update(more)
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
        name: Name of the data set: letters, digits and _.

    Raises:
        ValueError: Another name, the folder exists, the source has fields, or an example cannot be read.
        OSError: It cannot be written, for example because the disk is full.
    """
    if source.deviation is not None or np.ndim(source.shift) or np.ndim(source.scale):
        raise ValueError("prepared sets have a shift and a scale that are numbers, and examples, not laws of them")
    folder = Path(folder)
    _check_room(folder, int(np.prod(source.x.shape, dtype=np.int64)) * source.x.dtype.itemsize)
    metadata = {key: getattr(source, key) for key in ("shift", "scale", "low", "high")}
    write_blocks(folder, name, blocks_of(source, 256), source, metadata)

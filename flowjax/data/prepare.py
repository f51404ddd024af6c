"""Converts pictures or arrays to a prepared data set of TensorFlow Datasets; TensorFlow is not needed.

    python -m flowjax.data.prepare --source=pictures/ --size=64 --out=prepared/pictures
    python -m flowjax.data.prepare --source=arrays.npz --images=images --labels=labels --out=prepared/arrays
    python -m flowjax.data.prepare --source='data/train-*.parquet' --size=64 --out=prepared/train

A folder has pictures, in one subfolder for each class if there are classes; an npz file has arrays; parquet files have
columns of pictures and labels. What is skipped is said. The result is read by the data set `tfds`:
--config.data.name=tfds with the option folder.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from flowjax import _cli
from flowjax.data.files import images, npz
from flowjax.data.prepared import store
from flowjax.data.sources import Source
from flowjax.data.tables import parquet

# The flags that are options of a source; a flag that is not given leaves the default of the function.
_OPTIONS = (
    "size",
    "channels",
    "classes",
    "max_pixels",
    "images",
    "labels",
    "num_classes",
    "channels_first",
    "max_bytes",
)


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    flags.DEFINE_string("source", None, "Folder of pictures, npz file, or parquet file(s).", flag_values=values)
    flags.DEFINE_string("out", None, "New folder for the data set.", flag_values=values)
    flags.DEFINE_string("name", "dataset", "Name of the data set.", flag_values=values)
    flags.DEFINE_integer("size", None, "Height and width of scaled pictures.", flag_values=values)
    flags.DEFINE_integer("channels", None, "1 for grey pictures, 3 (the default) for colour.", flag_values=values)
    flags.DEFINE_list("classes", None, "Folders that are classes, in the order of labels.", flag_values=values)
    flags.DEFINE_integer("max_pixels", None, "Larger pictures are refused [2**26].", flag_values=values)
    flags.DEFINE_string("images", None, "Key of the examples [npz: images, parquet: image].", flag_values=values)
    flags.DEFINE_string(
        "labels", None, "Key of the labels; empty: none [npz: labels, parquet: label].", flag_values=values
    )
    flags.DEFINE_integer("num_classes", None, "Number of classes in npz or parquet files.", flag_values=values)
    flags.DEFINE_bool("channels_first", None, "Arrays (N, C, H, W) in npz files.", flag_values=values)
    flags.DEFINE_integer("max_bytes", None, "Larger arrays in npz or parquet files are refused.", flag_values=values)


def read(values: flags.FlagValues) -> Source:
    """The source that the flags name.

    Raises:
        UsageError: A flag that this kind of source does not have.
    """
    maker: Callable[..., Source]
    options: dict[str, Any] = {name: values[name].value for name in _OPTIONS if values[name].value is not None}
    if "labels" in options:
        options["labels"] = options["labels"] or None
    path = Path(values.source)
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        maker = parquet
        options = {{"images": "image", "labels": "label"}.get(name, name): value for name, value in options.items()}
    else:
        maker = npz if path.is_file() or path.suffix in (".npz", ".npy") else images
    for name in options:
        if name not in inspect.signature(maker).parameters:
            raise _cli.UsageError(f"--{name} is not an option of {maker.__name__}, which reads {values.source}")
    return maker(values.source, **options)


def main(values: flags.FlagValues) -> None:
    """Reads, writes, says what was written."""
    for name in ("source", "out"):
        if not values[name].value:
            raise _cli.UsageError(f"--{name} is required")
    if Path(values.out).exists():
        raise _cli.UsageError(f"{values.out} exists; choose another --out")
    try:
        with _cli.usage_errors(), Console().status(f"{values.source} -> {values.out}"):
            source = read(values)
            store(source, values.out, values.name)
    except OSError as error:
        raise _cli.UsageError(error.strerror or str(error)) from error
    classes = "" if source.num_classes is None else f", {source.num_classes} classes"
    print(f"{values.out}: {len(source.x)} examples of shape {source.x.shape[1:]}{classes}")


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()

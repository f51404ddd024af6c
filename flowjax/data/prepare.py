"""Converts pictures or arrays to a prepared data set of TensorFlow Datasets; TensorFlow is not needed.

    python -m flowjax.data.prepare --source=pictures/ --size=64 --out=prepared/pictures
    python -m flowjax.data.prepare --source=arrays.npz --images=images --labels=labels --out=prepared/arrays

A folder has pictures, in one subfolder for each class if there are classes; an npz file has arrays. The result is
read by the data set `tfds`: --config.data.name=tfds with the option folder.
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from flowjax import _cli
from flowjax.data.files import images, npz
from flowjax.data.prepared import store


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    flags.DEFINE_string("source", None, "Folder of pictures, or npz file.", flag_values=values)
    flags.DEFINE_string("out", None, "New folder for the data set.", flag_values=values)
    flags.DEFINE_string("name", "dataset", "Name of the data set.", flag_values=values)
    flags.DEFINE_integer("size", None, "Height and width of scaled pictures.", flag_values=values)
    flags.DEFINE_integer("channels", 3, "1 for grey pictures, 3 for colour.", flag_values=values)
    flags.DEFINE_string("images", "images", "Key of the examples in the npz file.", flag_values=values)
    flags.DEFINE_string("labels", "labels", "Key of the labels in the npz file; empty: none.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Reads, writes, says what was written."""
    for name in ("source", "out"):
        if not values[name].value:
            raise _cli.UsageError(f"--{name} is required")
    if Path(values.out).exists():
        raise _cli.UsageError(f"{values.out} exists; choose another --out")
    try:
        with _cli.usage_errors(), Console().status(f"{values.source} -> {values.out}"):
            if Path(values.source).suffix == ".npz":
                source = npz(values.source, images=values.images, labels=values.labels or None)
            else:
                source = images(values.source, size=values.size, channels=values.channels)
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

"""Fashion-MNIST from the folder of its four files, as Debian's package dataset-fashion-mnist installs it, or an npz."""

import dataclasses
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flowjax._checks import choose
from flowjax.data.files import npz
from flowjax.data.records import MEMORY, scale_of
from flowjax.data.sources import Source, labels_of

FOLDER = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package puts the files."""
NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_SPLITS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array of bytes in an idx file, packed by gzip if its name ends with .gz.

    Raises:
        ValueError: Another file, one that holds more or less than it says, or more than 1 GiB.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise ValueError("it is no idx file of bytes")
            numbers = file.read(4 * head[3])
            if len(numbers) != 4 * head[3]:
                raise ValueError("it is no whole idx file")
            shape = np.frombuffer(numbers, ">u4").tolist()
            size = math.prod(shape)
            if size > MEMORY:
                raise ValueError(f"its shape {tuple(shape)} has more than {MEMORY} bytes")
            held = file.read(size + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if len(held) != size:
        more = "more" if len(held) > size else f"{len(held)}"
        raise ValueError(f"cannot read {path}: its shape {tuple(shape)} has {size} bytes, the file has {more}")
    return np.frombuffer(held, np.uint8).reshape(shape)


def source(path: str = FOLDER, *, split: str = "train") -> Source:
    """Fashion-MNIST: grey pictures of clothes (28, 28, 1), 60,000 for training and 10,000 for tests, ten classes.

    Args:
        path: Folder with the files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and those of t10k; or an npz
            file with `images` (N, 28, 28) and `labels` (N,).
        split: "train" or "test"; an npz file has one only.

    Raises:
        ValueError: A missing, broken or other file, or an unknown split.

    References:
        Xiao, Rasul and Vollgraf (2017), Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms, arXiv:1708.07747.
    """
    choose("split", split, _SPLITS)
    root = Path(path)
    if root.suffix == ".npz":
        if split != "train":
            raise ValueError(f"{root} has one split; give the file of split={split!r} as path, without split")
        return dataclasses.replace(npz(path, num_classes=len(NAMES)), names=NAMES)
    if not root.is_dir():
        raise ValueError(
            f"folder {root} does not exist: install Debian's package dataset-fashion-mnist (apt-get install "
            "dataset-fashion-mnist), or give path=, a folder with its four files or an npz file"
        )
    found = []
    for what in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        places = [root / f"{_SPLITS[split]}-{what}{ending}" for ending in (".gz", "")]
        if not any(place.is_file() for place in places):
            raise ValueError(f"folder {root} has no {places[0].name}")
        found.append(read_idx(next(place for place in places if place.is_file())))
    x, labels = found
    if x.ndim != 3 or labels.shape != x.shape[:1]:
        raise ValueError(f"{root}: pictures (N, H, W) and labels (N,) are expected, got {x.shape} and {labels.shape}")
    return Source(x=x[..., None], **scale_of(x), **labels_of(labels, len(x), len(NAMES), NAMES))

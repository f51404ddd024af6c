"""Fashion-MNIST: from its files, packed and plain, from an npz, and files that are damaged."""

import gzip
import struct

import numpy as np
import pytest

from flowjax import data
from flowjax.data import fashion

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(256, size=(7, 4, 5), dtype=np.uint8), np.array([3, 0, 9, 9, 1, 2, 3], np.uint8)


def idx(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder, images, labels, split="train", packed=True):
    folder.mkdir(exist_ok=True)
    for name, content in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        path = folder / f"{split}-{name}{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return str(folder)


@pytest.mark.parametrize("packed", [True, False])
def test_files(tmp_path, packed):
    folder = write(tmp_path / "files", idx(IMAGES), idx(LABELS), packed=packed)
    write(tmp_path / "files", idx(IMAGES[:2]), idx(LABELS[:2]), "t10k", packed)
    source = data.load("fashion", path=folder)
    np.testing.assert_array_equal(source.x, IMAGES[..., None])
    np.testing.assert_array_equal(source.cond, LABELS)
    assert (source.num_classes, source.names[9], source.scale) == (10, "ankle boot", 127.5)
    assert len(data.load("fashion", path=folder, split="test").x) == 2


def test_npz(tmp_path):
    np.savez(tmp_path / "clothes.npz", images=IMAGES, labels=LABELS.astype(int))
    source = data.load("fashion", path=str(tmp_path / "clothes.npz"))
    np.testing.assert_array_equal(source.x, IMAGES[..., None])
    assert source.names == fashion.NAMES
    with pytest.raises(ValueError, match="has one split"):
        data.load("fashion", path=str(tmp_path / "clothes.npz"), split="test")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (b"PK", idx(LABELS), "no idx file of bytes"),
        (b"", idx(LABELS), "no idx file"),
        (idx(IMAGES, kind=13), idx(LABELS), "no idx file of bytes"),
        (idx(IMAGES)[:9], idx(LABELS), "no whole idx file"),
        (idx(IMAGES)[:-1], idx(LABELS), r"its shape \(7, 4, 5\) has 140 bytes, the file has 139"),
        (idx(IMAGES) + b"x", idx(LABELS), "the file has more"),
        (idx(np.zeros((0,), np.uint8))[:4] + struct.pack(">I", 2**32 - 1), idx(LABELS), "more than 1073741824 bytes"),
        (idx(IMAGES), idx(LABELS[:3]), r"got \(7, 4, 5\) and \(3,\)"),
        (idx(IMAGES), idx(LABELS + 8), r"labels must be 0\.\.9"),
    ],
)
def test_damaged_files(tmp_path, images, labels, message):
    for packed in (True, False):
        with pytest.raises(ValueError, match=message):
            data.load("fashion", path=write(tmp_path / f"files{packed}", images, labels, packed=packed))


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist: install Debian's package dataset-fashion-mnist .*path="):
        data.load("fashion", path=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"has no train-images-idx3-ubyte\.gz"):
        data.load("fashion", path=str(tmp_path))
    with pytest.raises(ValueError, match=r"unknown split 'tset'; did you mean 'test'"):
        data.load("fashion", path=str(tmp_path), split="tset")
    folder = write(tmp_path / "cut", idx(IMAGES), idx(LABELS))
    packed = (tmp_path / "cut" / "train-images-idx3-ubyte.gz").read_bytes()
    (tmp_path / "cut" / "train-images-idx3-ubyte.gz").write_bytes(packed[:-20])
    with pytest.raises(ValueError, match=r"cannot read .*train-images"):
        data.load("fashion", path=folder)

import io
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flowjax import _cli, data
from flowjax.data import prepare, prepared


def source(size=20):
    rng = np.random.default_rng(0)
    return data.Source(
        x=rng.integers(256, size=(size, 4, 4, 1), dtype=np.uint8),
        cond=rng.integers(3, size=size, dtype=np.int32),
        num_classes=3,
        shift=127.5,
        scale=127.5,
        low=0.0,
        high=255.0,
        names=("a", "b", "c"),
    )


@pytest.mark.parametrize("in_memory", [True, False])
def test_round_trip(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(prepared, "_SHARD", 7)  # several files
    data.store(source(), tmp_path / "new" / "set")
    back = data.load("tfds", folder=str(tmp_path / "new"), in_memory=in_memory)
    np.testing.assert_array_equal(np.asarray(back.x), source().x)
    np.testing.assert_array_equal(back.cond, source().cond)
    for name in ("num_classes", "shift", "scale", "low", "high", "names"):
        assert getattr(back, name) == getattr(source(), name)
    plain = tfds.builder_from_directory(tmp_path / "new" / "set").as_data_source("train")[13]
    np.testing.assert_array_equal(plain["image"], source().x[13])
    assert plain["label"] == source().cond[13]
    part = data.tfds(str(tmp_path / "new"), split="train[5:9]", label=None)
    assert part.cond is None
    np.testing.assert_array_equal(part.x, source().x[5:9])
    assert "tensorflow" not in sys.modules
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"]


@pytest.mark.parametrize("shape", [(6, 8, 3), (None, None, 3)])
def test_pictures_that_were_encoded_are_decoded(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(256, size=(5, 6, 8, 3), dtype=np.uint8)

    def png(x):
        file = io.BytesIO()
        Image.fromarray(x).save(file, "PNG")
        file.seek(0)
        return file

    core, features = tfds.core, tfds.features
    identity = core.DatasetIdentity("pictures", core.Version("1.0.0"), str(tmp_path), "")
    kinds = features.FeaturesDict({"image": features.Image(shape=shape), "label": features.ClassLabel(num_classes=2)})
    info = core.DatasetInfo(builder=identity, features=kinds)
    writer = core.SequentialWriter(info, 10, file_format="array_record")
    writer.initialize_splits(["test"])
    writer.add_examples({"test": [{"image": png(x), "label": i % 2} for i, x in enumerate(pixels)]})
    writer.close_all()
    info.write_to_directory(tmp_path)
    if shape[0] is None:
        with pytest.raises(ValueError, match="different sizes; give a size"):
            data.tfds(str(tmp_path), split="test")
    else:
        found = data.tfds(str(tmp_path), split="test")
        np.testing.assert_array_equal(found.x, pixels)
        np.testing.assert_array_equal(found.cond, [0, 1, 0, 1, 0])
        assert (found.shift, found.num_classes) == (127.5, 2)
    assert data.tfds(str(tmp_path), split="test", size=4).x.shape == (5, 4, 4, 3)


def test_latents_are_standardised_and_in_order(tmp_path):
    def encode(x):
        assert (x.shape, x.dtype) == ((8, 4, 4, 1), np.float32)
        return 3 * x.reshape(8, 2, 2, 4) + 2

    data.cache_latents(encode, source(), tmp_path / "latents", block=8)
    back = data.tfds(str(tmp_path / "latents"))
    expected = 3 * (source().x.reshape(20, 2, 2, 4) / 127.5 - 1) + 2
    np.testing.assert_allclose(back.x, expected, rtol=1e-6, atol=1e-6)
    normal = back.normalize(back.x.astype(np.float64))
    np.testing.assert_allclose([normal.mean(), normal.std()], [0.0, 1.0], atol=1e-6)
    np.testing.assert_array_equal(back.cond, source().cond)
    with pytest.raises(ValueError, match="finite"):
        data.cache_latents(lambda x: x * np.nan, source(), tmp_path / "nan")
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]


def test_reading_errors(tmp_path):
    with pytest.raises(ValueError, match="must have one prepared data set, found 0"):
        data.tfds(str(tmp_path / "gone"))
    data.store(source(), tmp_path / "a")
    for options, message in (
        (dict(image="picture"), r"no feature 'picture' \(it has image, label\)"),
        (dict(split="test"), r"cannot read split 'test' of .*a \(it has train\)"),
    ):
        with pytest.raises(ValueError, match=message):
            data.tfds(str(tmp_path / "a"), **options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="found 2"):
        data.tfds(str(tmp_path))
    info = tmp_path / "b" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="is tfrecord; random access needs array_record"):
        data.tfds(str(tmp_path / "b"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *args, **options):
            pass

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

    with pytest.raises(ValueError, match="exists"):
        data.store(source(), tmp_path)
    with monkeypatch.context() as patch:
        from array_record.python import array_record_module

        patch.setattr(array_record_module, "ArrayRecordWriter", Full)
        with pytest.raises(OSError, match=r"cannot write .*set: write\(\) failed: No space left on device"):
            data.store(source(), tmp_path / "set")
    usage = shutil._ntuple_diskusage(1000, 900, 100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"cannot write .*set: it needs 0 MiB, the disk has 0"):
            data.store(source(), tmp_path / "set")
    assert not list(tmp_path.iterdir())


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        _cli.run(prepare.main, prepare.define, ["prepare", *arguments])
    return end.value.code


def test_main(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "a.npz", images=source().x, labels=source().cond)
    out = str(tmp_path / "out")
    assert run(f"--source={tmp_path / 'a.npz'}", f"--out={out}") == 0
    assert "20 examples of shape (4, 4, 1), 3 classes" in capsys.readouterr().out
    np.testing.assert_array_equal(data.tfds(out).x, source().x)

    usage = shutil._ntuple_diskusage(1000, 900, 100)
    for arguments, message in (
        ((), "--source is required"),
        ((f"--source={tmp_path / 'a.npz'}", f"--out={out}"), "exists; choose another --out"),
        ((f"--source={tmp_path / 'gone'}", f"--out={out}2"), "gone does not exist"),
        ((f"--source={tmp_path / 'a.npz'}", f"--out={out}2", "--labels=y"), "no array 'y'"),
        ((f"--source={tmp_path / 'a.npz'}", f"--out={out}2"), "the disk has 0"),
    ):
        if "disk" in message:
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error

import io
import json
import shutil
import sys
import warnings

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


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "feature",
    [
        {"pythonClassName": "evil.Feature", "tensor": {"dtype": "float32", "shape": {}}},
        {"python_class_name": "evil.Feature", "tensor": {"dtype": "float32", "shape": {}}},
        {"type": "evil.Feature", "content": {}},
        {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "proto_cls": "tensorflow_datasets.FeaturesDict",
            "content": '{"features": {"image": {"pythonClassName": "evil.Feature", "tensor": {}}}}',
        },
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": '{"image": {"type": "evil.Feature", "content": {}}}'},
        },
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": {"image": {"pythonClassName": "evil.Feature", "tensor": {}}}},
        },
        {
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "sequence": {"feature": {"pythonClassName": "evil.Feature", "tensor": {}}},
        },
    ],
)
def test_a_folder_does_not_choose_what_is_imported(tmp_path, monkeypatch, file, feature):
    data.store(source(3), tmp_path / "set")
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "set" / file
    held = feature if file == "features.json" else json.loads(path.read_text()) | {"features": feature}
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=rf"{file} names the class .*, which is not built; known are BBox"):
        data.tfds(str(tmp_path / "set"))
    assert "evil" not in sys.modules


def test_a_module_name_is_not_imported(tmp_path, monkeypatch):
    data.store(source(3), tmp_path / "set")
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "set" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"moduleName": "evil"}))
    assert len(data.tfds(str(tmp_path / "set")).x) == 3
    assert "evil" not in sys.modules


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"splits": 3}', '{"a": ' * 2000])
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json", "metadata.json"])
def test_broken_descriptions_are_one_line(tmp_path, file, content):
    data.store(source(3), tmp_path / "set")
    if (file, content) == ("metadata.json", '{"splits": 3}'):
        content = '{"scale": 3}'
    (tmp_path / "set" / file).write_text(content)
    with pytest.raises(ValueError, match=r"cannot read the prepared data set .*set|metadata\.json"):
        data.tfds(str(tmp_path / "set"))


def test_a_set_that_is_not_complete_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_SHARD", 7)
    data.store(source(), tmp_path / "whole")
    for number, spoil in enumerate(
        (
            lambda file: file.unlink(),
            lambda file: file.write_bytes(b""),
            lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        )
    ):
        part = tmp_path / f"part{number}"
        shutil.copytree(tmp_path / "whole", part)
        spoil(sorted(part.glob("*array_record*"))[1])
        with pytest.raises(ValueError, match=rf"part{number} is not complete: cannot read .*array_record"):
            data.tfds(str(part))
    info = json.loads((tmp_path / "whole" / "dataset_info.json").read_text())
    for lengths in (["7", "6", "7"], ["1000000000000"] * 3):
        info["splits"][0]["shardLengths"] = lengths
        change(tmp_path / "whole", "dataset_info.json", **info)
        with pytest.raises(ValueError, match=r"is not complete: .* examples, not"):
            data.tfds(str(tmp_path / "whole"))
    info["splits"][0] |= {
        "shardLengths": ["7"],
        "filepathTemplate": "/tmp/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    }
    change(tmp_path / "whole", "dataset_info.json", **info)
    with pytest.raises(ValueError, match="names files outside of its folder"):
        data.tfds(str(tmp_path / "whole"))


def test_features_that_claim_more_than_the_records_hold(tmp_path):
    data.store(source(), tmp_path / "set")
    path = tmp_path / "set" / "features.json"
    whole = path.read_text()
    for dimensions in (["100000", "100000", "1"], ["4", "5", "1"]):
        features = json.loads(whole)
        features["featuresDict"]["features"]["image"]["tensor"]["shape"]["dimensions"] = dimensions
        path.write_text(json.dumps(features))
        with pytest.raises(ValueError, match="cannot read 'image' of example 0"):
            data.tfds(str(tmp_path / "set"))
    (tmp_path / "set" / "label.labels.txt").unlink()
    for number, message in (
        ("10000000000", "claims 10000000000 classes, more than 1048576"),
        ("2", r"0\.\.1, got 0\.\.2"),
    ):
        features = json.loads(whole)
        features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = number
        path.write_text(json.dumps(features))
        with pytest.raises(ValueError, match=message):
            data.tfds(str(tmp_path / "set"))
        assert data.tfds(str(tmp_path / "set"), num_classes=5).num_classes == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 0.0}, "scale positive"),
        ({"shift": float("nan")}, "shift must be finite"),
        ({"scale": float("inf")}, "scale positive"),
        ({"scale": "1"}, "scale must be a number, got '1'"),
        ({"low": 300.0}, "low must be less than high"),
    ],
)
def test_stored_scales_are_checked(tmp_path, values, message):
    data.store(source(3), tmp_path / "set")
    change(tmp_path / "set", "metadata.json", **values)
    with pytest.raises(ValueError, match=message):
        data.tfds(str(tmp_path / "set"))


def test_values_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    x = np.zeros((300, 2), np.float32)
    x[280] = np.nan
    with pytest.raises(ValueError, match=r"examples 256\.\.299 must be finite"):
        data.store(data.Source(x=x), tmp_path / "set")
    with pytest.raises(ValueError, match="latents must be finite"):
        data.cache_latents(lambda z: np.where(z > 0, np.nan, z), data.Source(x=np.eye(8)), tmp_path / "set")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("encode", "options", "message"),
    [
        (lambda z: z[:1], {}, r"encode must give 64 latents for 64 examples, got shape \(1, 4, 4, 1\)"),
        (lambda z: z.sum(), {}, "got shape \\(\\)"),
        (lambda z: z, {"block": 0}, "block must be at least 1"),
    ],
)
def test_latents_are_one_for_each_example(tmp_path, encode, options, message):
    with pytest.raises(ValueError, match=message):
        data.cache_latents(encode, source(), tmp_path / "set", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", " ", "a/b", "../x", 'a"b', "a-b"])
def test_names_of_sets_are_words(tmp_path, name):
    with pytest.raises(ValueError, match="letters, digits and _ only"):
        data.store(source(), tmp_path / "sub" / "set", name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_beside_a_new_set_is_left_alone(tmp_path):
    (tmp_path / "set.part").mkdir()
    (tmp_path / "set.part" / "mine").write_text("x")
    data.store(source(3), tmp_path / "set")
    assert (tmp_path / "set.part" / "mine").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.part"]


def test_many_classes_take_no_names(tmp_path):
    many = data.Source(x=np.zeros((2, 3), np.uint8), cond=np.array([0, 9], np.int32), num_classes=2_000_000_000)
    data.store(many, tmp_path / "set")
    assert data.tfds(str(tmp_path / "set"), num_classes=10).num_classes == 10


def test_main_takes_every_kind_and_says_what_it_skips(tmp_path, capsys):
    for label in (0, 1):
        folder = tmp_path / "pictures" / f"c{label}"
        folder.mkdir(parents=True)
        Image.new("L", (4, 4), 9).save(folder / "a.png")
        (folder / ".old").mkdir()
    out = str(tmp_path / "out")
    with pytest.warns(UserWarning, match=r"skipped: 2 hidden file\(s\) or folder\(s\): c0/\.old/, c1/\.old/"):
        assert run(f"--source={tmp_path / 'pictures'}", f"--out={out}1", "--channels=1", "--classes=c1,c0") == 0
    assert "2 examples of shape (4, 4, 1), 2 classes" in capsys.readouterr().out
    assert data.tfds(f"{out}1").names == ("c1", "c0")

    file = tmp_path / "a.npz"
    np.savez(file, images=np.zeros((3, 1, 8, 8), np.uint8), labels=np.array([0, 1, 2_000_000_000]))
    assert file.stat().st_size < 1000
    np.save(tmp_path / "b.npy", np.zeros((3, 8, 8, 1), np.uint8))
    for arguments, message in (
        ((f"--source={file}", "--channels_first"), "make 2000000001 classes, of which 3 have an example"),
        ((f"--source={file}", "--labels="), "seems to have its channels at axis 1"),
        ((f"--source={file}", "--max_bytes=10"), "more than max_bytes=10"),
        ((f"--source={file}", "--size=8"), "--size is not an option of npz"),
        ((f"--source={tmp_path / 'b.npy'}",), "it is one .npy array"),
        ((f"--source={tmp_path / 'gone.npz'}",), "gone.npz does not exist"),
        ((f"--source={tmp_path / 'pictures'}", "--max_pixels=4"), "more than max_pixels=4 pixels"),
    ):
        assert run(*arguments, f"--out={out}2") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
    assert run(f"--source={file}", f"--out={out}2", "--channels_first", "--labels=") == 0
    assert data.tfds(f"{out}2", label=None).x.shape == (3, 8, 8, 1)


def test_warnings_of_a_main_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", lambda *args, **options: print(warnings.formatwarning(*args[:4])))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            _cli.run(lambda values: warnings.warn("a\nb", stacklevel=1), argv=["main"])
    assert capsys.readouterr().out == "warning: a b\n\n"

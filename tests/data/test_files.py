import os
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from flowjax import data
from flowjax.data import files
from flowjax.data.records import scale_of


@pytest.fixture
def pictures(tmp_path):
    """Six random 5x4 pictures in two classes, and their pixels in the order of the names."""
    pixels = np.random.default_rng(0).integers(256, size=(6, 4, 5, 3), dtype=np.uint8)
    for i, x in enumerate(pixels):
        folder = tmp_path / "pictures" / ("cats" if i < 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(folder / f"{i}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    return tmp_path / "pictures", pixels


@pytest.mark.parametrize("in_memory", [None, True, False])
def test_folder_has_its_classes_and_pixels(pictures, in_memory):
    folder, pixels = pictures
    source = data.load("images", folder=str(folder), in_memory=in_memory)
    assert isinstance(source.x, data.Records if in_memory is False else np.ndarray)
    np.testing.assert_array_equal(np.asarray(source.x), pixels)
    np.testing.assert_array_equal(source.cond, [0, 0, 1, 1, 1, 1])
    assert (source.names, source.num_classes, source.low, source.high) == (("cats", "dogs"), 2, 0.0, 255.0)
    few = source.take(3, seed=1)
    assert isinstance(few.x, np.ndarray)
    rows = [int(np.flatnonzero((pixels == x).all((1, 2, 3)))[0]) for x in few.x]
    assert len(set(rows)) == 3
    np.testing.assert_array_equal(few.cond, source.cond[rows])


def test_folder_disk_and_memory_give_the_same_batches(pictures):
    folder, _ = pictures
    a, b = (data.Batches(data.images(str(folder), in_memory=m), 4, seed=3) for m in (True, False))
    for step in range(4):
        left, right = a.batch(step), b.batch(step)
        assert left["x1"].dtype == np.float32
        assert (left["x1"].min() >= -1, left["x1"].max() <= 1) == (True, True)
        for key in ("x1", "cond"):
            np.testing.assert_array_equal(left[key], right[key])


def test_pictures_are_cropped_to_their_middle_and_grey_on_demand(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    source = data.images(str(tmp_path), size=2, channels=1)
    assert source.cond is None
    np.testing.assert_array_equal(source.x, np.full((1, 2, 2, 1), 200))


def test_folder_errors_name_the_file(pictures, tmp_path):
    folder, _ = pictures
    with pytest.raises(ValueError, match="gone does not exist"):
        data.images(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no images \(.bmp"):
        data.images(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="1 or 3"):
        data.images(str(folder), channels=2)
    whole = (folder / "dogs" / "3.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"nonsense", b""):
        (folder / "dogs" / "3.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read image .*dogs/3\.png: "):
            data.images(str(folder))
        lazy = data.images(str(folder), in_memory=False)
        with pytest.raises(ValueError, match=r"dogs/3\.png"):
            lazy.x[np.arange(6)]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "dogs" / "3.png")
    with pytest.raises(ValueError, match=r"3\.png is 9x9, not 5x4; give a size"):
        data.images(str(folder))
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(folder / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies beside the folders of classes cats, dogs"):
        data.images(str(folder))


def test_npz_of_grey_bytes(tmp_path):
    x = np.arange(12 * 9, dtype=np.uint8).reshape(12, 3, 3)
    np.savez(tmp_path / "a.npz", images=x, labels=np.arange(12) % 4)
    source = data.load("npz", path=str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(source.x, x[..., None])
    assert (source.num_classes, source.shift, source.scale, source.high) == (4, 127.5, 127.5, 255.0)
    assert source.cond.dtype == np.int32
    assert data.npz(str(tmp_path / "a.npz"), labels=None).cond is None


def test_npz_of_floats_is_standardised(tmp_path):
    x = np.random.default_rng(0).normal(5, 3, size=(400, 6)).astype(np.float32)
    np.savez(tmp_path / "a.npz", z=x)
    source = data.npz(str(tmp_path / "a.npz"), images="z", labels=None)
    normal = source.normalize(source.x.astype(np.float64))
    np.testing.assert_allclose([normal.mean(), normal.std()], [0.0, 1.0], atol=1e-6)
    assert source.low is None


def test_npz_errors(tmp_path):
    file = tmp_path / "a.npz"
    path = str(file)
    with pytest.raises(ValueError, match=r"a\.npz does not exist"):
        data.npz(path)
    np.savez(path, x=np.zeros((3, 2, 2), np.uint8), y=np.array([0, 1, 7]), z=np.zeros(3), ints=np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"a\.npz: no array 'images' in it \(it has x, y, z, ints\)"):
        data.npz(path)
    with pytest.raises(ValueError, match=r"labels must be 0\.\.4, got 0\.\.7"):
        data.npz(path, images="x", labels="y", num_classes=5)
    with pytest.raises(ValueError, match="3 integer labels, got float64"):
        data.npz(path, images="x", labels="z")
    with pytest.raises(ValueError, match="uint8 or floating point, got int64"):
        data.npz(path, images="ints", labels=None)
    with pytest.raises(ValueError, match="not all equal"):
        data.npz(path, images="z", labels=None)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"nonsense", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*a\.npz: "):
            data.npz(path)


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(path)


@pytest.fixture
def zoo(tmp_path):
    """Three classes of one grey picture each, whose values are 10 times their labels."""
    for i, name in enumerate(("cats", "dogs", "eels")):
        picture(tmp_path / "zoo" / name / f"{name}.png", 10 * i)
    return tmp_path / "zoo"


def labels_fit(source):
    np.testing.assert_array_equal(source.x[:, 0, 0, 0], 10 * source.cond)
    assert (source.names, source.num_classes) == (("cats", "dogs", "eels"), 3)


def test_linked_classes_are_read(zoo, tmp_path):
    (zoo / "dogs").rename(tmp_path / "elsewhere")
    (zoo / "dogs").symlink_to(tmp_path / "elsewhere")
    labels_fit(data.images(str(zoo), channels=1))
    (tmp_path / "elsewhere" / "round").symlink_to(zoo)  # a loop
    with pytest.warns(UserWarning, match=r"1 folder\(s\) read under another name: dogs/round"):
        labels_fit(data.images(str(zoo), channels=1))


@pytest.mark.parametrize("content", ["a.svg", "a.jxl", "a.txt", None, "link", "same", "gone"])
def test_class_folders_without_a_picture_are_refused(zoo, content):
    """Left out, they would move the labels of those behind them."""
    (zoo / "dogs" / "dogs.png").unlink()
    if content == "link":
        (zoo / "dogs" / "a.png").symlink_to(zoo / "gone.png")
    elif content == "same":
        (zoo / "dogs").rmdir()
        (zoo / "dogs").symlink_to(zoo / "cats")
    elif content == "gone":
        (zoo / "dogs").rmdir()
        (zoo / "dogs").symlink_to(zoo / "nowhere")
    elif content is not None:
        (zoo / "dogs" / content).write_text("x")
    reason = {"link": "a.png", "same": "same folder as another", "gone": "broken link", None: "it is empty"}.get(
        content, content
    )
    with pytest.raises(ValueError, match=rf"class folder .*dogs has no picture that can be read \(.*{reason}"):
        data.images(str(zoo), channels=1)


def test_classes_can_be_named(zoo):
    (zoo / "annotations").mkdir()
    picture(zoo / "birds" / "a.png")
    with pytest.raises(ValueError, match=r"class folder .*annotations .* name the folders that are classes"):
        data.images(str(zoo), channels=1)
    with pytest.warns(UserWarning, match=r"skipped: 1 folder\(s\) not among the classes: birds/"):
        labels_fit(data.load("images", folder=str(zoo), channels=1, classes=["cats", "dogs", "eels"]))
    with pytest.warns(UserWarning, match="birds"):
        turned = data.images(str(zoo), channels=1, classes=("eels", "cats", "dogs"))
    np.testing.assert_array_equal(turned.cond, [1, 2, 0])
    for wrong in (("cats", "cows"), ("cats", "cats"), ()):
        with pytest.raises(ValueError, match=r"has pictures in birds, cats, dogs, eels; name each folder once"):
            data.images(str(zoo), classes=wrong)


def test_hidden_files_and_folders_are_no_classes(zoo):
    for name in (".thumbnails/a.png", "__MACOSX/a.png", "cats/._cats.png", "dogs/.old/b.png"):
        picture(zoo / name, 99)
    (zoo / ".DS_Store").write_text("x")
    (zoo / "cats" / "list.csv").write_text("x")
    with pytest.warns(UserWarning, match=r"4 hidden .*: \.thumbnails/, __MACOSX/, cats/\._cats\.png, \.\.\.") as caught:
        source = data.images(str(zoo), channels=1)
    labels_fit(source)
    assert len(caught) == 1
    assert source.notes[1] == "skipped: 2 file(s) that are no pictures: .DS_Store, cats/list.csv"


def test_what_cannot_be_read_is_said(zoo):
    (zoo / "cats" / "a.psd").write_text("x")
    (zoo / "cats" / "b.png").symlink_to(zoo / "gone.png")
    with pytest.warns(UserWarning, match="skipped") as caught:
        source = data.images(str(zoo), channels=1)
    labels_fit(source)
    assert [str(warning.message).removeprefix(f"{zoo}: ") for warning in caught] == list(source.notes)
    assert source.notes == (
        "skipped: 1 picture(s) of a kind that cannot be read here: cats/a.psd",
        "skipped: 1 broken link(s): cats/b.png",
    )


def test_heic_needs_another_package(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "endings", lambda: frozenset([".png"]))
    (tmp_path / "a.heic").write_bytes(b"x")
    alone = r"has no images \(.png\); it has 1 picture\(s\) of other kinds: a.heic; HEIC needs pillow-heif"
    with pytest.raises(ValueError, match=alone):
        data.images(str(tmp_path))
    picture(tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"HEIC needs pillow-heif .*AVIF needs Pillow 11.3"):
        data.images(str(tmp_path))


@pytest.mark.parametrize("names", [("train", "test"), ("train",), ("Train", "Val"), ("a", "train", "validation")])
def test_parts_of_a_data_set_are_no_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "cats" / "a.png")
    with pytest.raises(ValueError, match=r"are named like parts of a data set .*classes=\(\.\.\.\) if"):
        data.images(str(tmp_path))
    assert data.images(str(tmp_path / names[-1])).names == ("cats",)
    assert data.images(str(tmp_path), classes=names).names == names


def test_a_train_is_a_class_among_others(zoo):
    picture(zoo / "train" / "a.png")
    assert data.images(str(zoo)).num_classes == 4


def test_a_folder_that_cannot_be_listed_is_said(zoo, monkeypatch):
    walk = os.walk

    def blocked(root, onerror, **options):
        yield from walk(root, onerror=onerror, **options)
        onerror(PermissionError(13, "Permission denied", str(zoo / "dogs")))

    monkeypatch.setattr(os, "walk", blocked)
    with pytest.raises(ValueError, match=r"cannot read folder .*dogs: Permission denied"):
        data.images(str(zoo))
    with pytest.raises(ValueError, match=r"cats\.png is a file"):
        data.images(str(zoo / "cats" / "cats.png"))


def save(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return str(tmp_path / "a.npz")


def test_npz_scale_is_that_of_all_rows(tmp_path):
    x = np.zeros((70_000, 2), np.float32)
    x[2**16 :] = 7
    x[:, 1] += 1e4
    source = data.npz(save(tmp_path, images=x), labels=None)
    np.testing.assert_allclose([source.shift, source.scale], [x.mean(dtype=float), x.std(dtype=float)], rtol=1e-12)
    for value in (np.nan, np.inf):
        x[-1, 0] = value
        with pytest.raises(ValueError, match=r"a\.npz: examples must be finite"):
            data.npz(save(tmp_path, images=x), labels=None)


def test_scale_of_floats_on_disk_looks_at_the_whole_length(monkeypatch):
    rows = np.linspace(-1, 3, 200_000)
    records = data.Records((len(rows), 1), np.dtype(np.float64), lambda i: rows[i : i + 1])
    found = scale_of(records)
    np.testing.assert_allclose([found["shift"], found["scale"]], [1, 4 / 12**0.5], rtol=1e-4)
    rows[3] = np.nan
    with pytest.raises(ValueError, match="example 3 must be finite"):
        records[np.array([2, 3])]


def test_records_of_another_shape_are_refused():
    records = data.Records((4, 3), np.dtype(np.float64), lambda i: np.zeros(1 if i == 2 else 3))
    for read in (lambda: records[:], lambda: np.asarray(records)):
        with pytest.raises(ValueError, match=r"example 2 has shape \(1,\), not \(3,\)"):
            read()


def test_more_than_the_memory_is_refused():
    huge = data.Records((10**9, 10**6), np.dtype(np.float32), lambda i: np.zeros(10**6, np.float32))
    assert huge.settle(None) is huge
    with pytest.raises(ValueError, match=r"all 1000000000 examples at once would take 3\.73e\+06 GiB"):
        huge.settle(True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0, 1, 2_000_000_000],
            r"up to 2000000000 make 2000000001 classes, of which 3 have an example; number them 0\.\.",
        ),
        ([0, 2**40, 1], "number them"),
        ([0, 1, -1], r"labels must be 0\.\.1, got -1\.\.1"),
        ([5, 6, 7], r"make 8 classes, of which 3 .* number them 0\.\.2, or give num_classes=8"),
    ],
)
def test_implausible_labels_are_refused(tmp_path, labels, message):
    path = save(tmp_path, images=np.zeros((3, 2, 2), np.uint8), labels=np.array(labels))
    with pytest.raises(ValueError, match=message):
        data.npz(path)
    if 0 < max(labels) < 2**31 and min(labels) >= 0:
        assert data.npz(path, num_classes=max(labels) + 1).num_classes == max(labels) + 1
    with pytest.raises(ValueError, match="num_classes must be in"):
        data.npz(path, num_classes=0)


def test_classes_without_an_example_are_said(tmp_path):
    path = save(tmp_path, images=np.zeros((3, 2, 2), np.uint8), labels=np.array([0, 1, 3]))
    with pytest.warns(UserWarning, match="labels up to 3 make 4 classes, of which 3 have an example"):
        source = data.npz(path)
    assert (source.num_classes, len(source.notes)) == (4, 1)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 8, 9), (2, 4, 32, 32), (2, 3, 5, 16, 16), (2, 5, 3, 16, 16)])
def test_channels_in_front_are_never_taken_for_rows(tmp_path, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = save(tmp_path, images=x)
    with pytest.raises(
        ValueError, match=r"seems to have its channels at axis \d.*numpy\.moveaxis\(x, \d, -1\).*channels_f"
    ):
        data.npz(path, labels=None)
    np.testing.assert_array_equal(data.npz(path, labels=None, channels_first=True).x, np.moveaxis(x, 1, -1))
    np.testing.assert_array_equal(data.npz(path, labels=None, channels_first=False).x, x)


@pytest.mark.parametrize(
    "shape", [(2, 28, 28, 1), (2, 4, 4, 16), (2, 3, 3, 3), (2, 32, 32, 4), (2, 4, 8, 8, 3), (2, 5)]
)
def test_channels_behind_are_taken_as_they_are(tmp_path, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = save(tmp_path, images=x)
    np.testing.assert_array_equal(data.npz(path, labels=None).x, x)
    if len(shape) == 2:
        with pytest.raises(ValueError, match="channels_first is for arrays"):
            data.npz(path, labels=None, channels_first=True)


class Bomb:
    """Unpickled, it would fail the test."""

    def __reduce__(self):
        return pytest.fail, ("code ran",)


def test_pickles_are_not_opened_and_not_advised(tmp_path):
    held = np.array([Bomb()], object)
    np.savez(tmp_path / "a.npz", images=held, labels=np.zeros(1, int))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "c.npz.npy", held, allow_pickle=True)
    (tmp_path / "c.npz.npy").rename(tmp_path / "c.npz")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("images.npy", pickle.dumps(Bomb()))
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:  # a header that numpy finds too long
        header = ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)" + " " * 20_000 + "}\n").encode()
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16))
    np.savez(tmp_path / "f.npz", images=np.array(["a", "b"]))
    np.savez(tmp_path / "g.npz", images=np.zeros(2, [("a", float), ("b", int)]))
    for name, message in (
        ("a", r"'images' holds Python objects, which are not read; save it as numbers of one shape \(numpy.stack\)"),
        ("b", "it is not an npz file"),
        ("c", r"it is one \.npy array; put it into an npz: numpy\.savez"),
        ("d", "'images' is no array of numbers"),
        ("e", "'images' is no array of numbers"),
        ("f", "'images' holds values of type <U1"),
        ("g", "'images' holds values of type"),
    ):
        with pytest.raises(ValueError, match=rf"cannot read .*{name}\.npz: {message}") as error:
            data.npz(str(tmp_path / f"{name}.npz"), labels=None)
        assert "allow_pickle" not in str(error.value)


def claim(path, shape, held=16, fill=0):
    """An npz whose array claims a shape and holds other bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _ in range(fill):
            file.write(bytes(2**20))
        file.write(bytes(held))


def test_npz_that_claims_more_than_it_holds(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    for shape in ((10**13,), (10**9, 10**9, 10**9), (3,)):
        claim(path, shape)
        with pytest.raises(ValueError, match=r"'images' of shape .* needs \d+ bytes, it has 16"):
            data.npz(str(path), labels=None)
    claim(path, (2**26 // 64, 8, 8), held=0, fill=64)  # 64 MiB of zeros in 64 KiB
    monkeypatch.setattr(files, "MEMORY", 2**24)
    with pytest.raises(
        ValueError, match=r"its \d{5} bytes unpack to 67108992, more than max_bytes=33554432; raise that"
    ):
        data.npz(str(path), labels=None)
    assert data.npz(str(path), labels=None, max_bytes=10**8).x.shape == (2**20, 8, 8, 1)
    monkeypatch.setattr(files, "MEMORY", 2**30)
    assert data.npz(str(path), labels=None).x.shape == (2**20, 8, 8, 1)


def test_damaged_npz_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).integers(256, size=(50, 8, 8), dtype=np.uint8))
    whole = bytearray(path.read_bytes())
    for place in range(60, len(whole) - 200, 400):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"cannot read .*a\.npz: "):
            data.npz(str(path), labels=None)
    np.savez(path, images=np.float32(3))
    with pytest.raises(ValueError, match="is one number"):
        data.npz(str(path), labels=None)
    np.savez(path, images=np.zeros((0, 3), np.float32), labels=np.zeros(0, int))
    for labels in (None, "labels"):
        with pytest.raises(ValueError, match=r"at least one|finite and not all equal"):
            data.npz(str(path), labels=labels)


def test_stored_arrays_are_checked_like_data(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(3.0), b=np.zeros(2))
    np.testing.assert_array_equal(files.stored_array("a.npz", "a", folder=str(tmp_path)), np.arange(3.0))
    for name, message in ((None, "it has a, b: say which with name="), ("c", r"no array 'c' in it \(it has a, b\)")):
        with pytest.raises(ValueError, match=message):
            files.stored_array(str(path), name)
    claim(path, (10**13,))
    with pytest.raises(ValueError, match="needs 10000000000000 bytes, it has 16"):
        files.stored_array(str(path))
    np.savez(path, a=np.array([Bomb()], object))
    with pytest.raises(ValueError, match="holds Python objects"):
        files.stored_array(str(path))

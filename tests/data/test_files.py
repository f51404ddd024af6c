import numpy as np
import pytest
from PIL import Image

from flowjax import data


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

import io

import numpy as np
import pytest
from PIL import Image, features

from flowjax import data
from flowjax.data import pictures


def decode(image, channels=1, size=None, max_pixels=pictures.MAX_PIXELS, **options):
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | options)
    file.seek(0)
    return pictures.Reader(size, channels, max_pixels).read(file, "a")


RAMP = np.array([[0, 256, 32768, 65535]], np.uint16)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(RAMP), {}),
        (Image.fromarray(RAMP), {"format": "TIFF"}),
        (Image.fromarray(RAMP.astype(">u2")), {"format": "TIFF"}),
        (Image.fromarray(RAMP.astype(np.int32)), {"format": "PPM"}),
        (Image.fromarray((RAMP / 65535).astype(np.float32)), {"format": "TIFF"}),
        (Image.fromarray(65535 - RAMP), {"format": "TIFF", "tiffinfo": {262: 0}}),
    ],
    ids=["png", "tiff", "big endian", "pgm", "float", "white is zero"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_greys_keep_their_range(image, options, channels):
    np.testing.assert_array_equal(decode(image, channels, **options)[0, :, 0], [0, 1, 128, 255])


def test_deep_greys_are_scaled_like_bytes():
    x = np.random.default_rng(0).integers(256, size=(6, 6), dtype=np.uint8)
    np.testing.assert_array_equal(
        decode(Image.fromarray(x.astype(np.uint16) * 257), size=3), decode(Image.fromarray(x), size=3)
    )


def test_twelve_bits_have_their_own_white():
    # Two 12-bit numbers in three bytes, as microscopes write them.
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1), (278, 3, 1)]
    tags += [(279, 4, 3)]
    entries = b"".join(
        t.to_bytes(2, "little") + k.to_bytes(2, "little") + (1).to_bytes(4, "little") + v.to_bytes(4, "little")
        for t, k, v in tags
    )
    head = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little") + entries + bytes(4)
    file = head.ljust(200, b"\0") + bytes([0x80, 0x0F, 0xFF])  # 2048, 4095
    found = pictures.Reader(None, 1, 100).read(io.BytesIO(file), "a")
    np.testing.assert_array_equal(found[0, :, 0], [128, 255])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([[0.0, 255.0]], np.float32), r"must be in 0\.\.1, not 0\.0\.\.255\.0; store it as npz"),
        (np.array([[0.0, np.nan]], np.float32), r"must be in 0\.\.1"),
        (np.array([[-1, 70000]], np.int32), "no white"),
    ],
)
def test_values_without_a_known_white_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        decode(Image.fromarray(x), format="TIFF")


def test_pictures_stand_upright():
    x = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turned = {1: x, 2: x[:, ::-1], 3: x[::-1, ::-1], 4: x[::-1], 5: x.T, 6: x.T[:, ::-1], 7: x[::-1, ::-1].T}
    turned[8] = x.T[::-1]
    for orientation, expected in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        np.testing.assert_array_equal(decode(Image.fromarray(x), exif=exif)[..., 0], expected)
        np.testing.assert_array_equal(decode(Image.fromarray(x.astype(np.uint16) * 257), exif=exif)[..., 0], expected)
    np.testing.assert_array_equal(decode(Image.fromarray(x), exif=b"nonsense")[..., 0], x)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pictures_lie_on_white(channels):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 51]]
    expected = [255, 0, 204]
    np.testing.assert_array_equal(decode(Image.fromarray(rgba), channels)[0, :, 0], expected)
    np.testing.assert_array_equal(decode(Image.fromarray(rgba[..., [0, 3]]), channels)[0, :, 0], expected)
    np.testing.assert_array_equal(
        decode(Image.fromarray(rgba), channels, format="WEBP", lossless=True, exact=True)[0, :, 0], expected
    )
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 7, 7, 7])
    np.testing.assert_array_equal(decode(palette, channels, transparency=0)[0, :, 0], [255, 7])
    deep = Image.fromarray(np.array([[1000, 257]], np.uint16))
    np.testing.assert_array_equal(decode(deep, channels, transparency=1000)[0, :, 0], [255, 1])
    # What is hidden does not shine through where a picture is scaled.
    large = np.zeros((4, 4, 4), np.uint8)
    large[:, :2] = [255, 0, 0, 0]
    large[:, 2:] = [0, 0, 255, 255]
    assert decode(Image.fromarray(large), 3, size=2)[0, 0].min() > 200


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (13_000, 13_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 30_000
    for in_memory in (None, False):
        with pytest.raises(ValueError, match=r"a\.png: it has more than max_pixels=67108864 pixels; raise that option"):
            data.images(str(tmp_path), size=8, in_memory=in_memory)
    with pytest.raises(ValueError, match="must be in"):
        data.images(str(tmp_path), size=100_000)
    small = Image.new("L", (40, 30))
    assert decode(small, max_pixels=1200).shape == (30, 40, 1)
    with pytest.raises(ValueError, match="max_pixels=1199"):
        decode(small, max_pixels=1199)


def test_larger_pictures_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow would refuse more than twice as many by itself
    assert decode(Image.new("L", (40, 30)), max_pixels=2000).shape == (30, 40, 1)


def test_content_of_other_formats_runs_no_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: started.append(args))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(ValueError, match=r"cannot read image .*a\.png"):
        data.images(str(tmp_path))
    assert not started


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif(tmp_path):
    Image.new("RGB", (8, 6), (200, 0, 0)).save(tmp_path / "a.avif")
    assert data.images(str(tmp_path)).x.shape == (1, 6, 8, 3)


def test_what_needs_another_package_says_so_whatever_its_ending(tmp_path, monkeypatch):
    """Telephones send HEIC as .jpg, and columns of tables have no endings."""
    known = tuple(name for name in pictures.formats() if name != "HEIF")  # also where pillow-heif is installed
    monkeypatch.setattr(pictures, "formats", lambda: known)
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    (tmp_path / "a.jpg").write_bytes(heic)
    for file in (tmp_path / "a.jpg", io.BytesIO(heic)):
        with pytest.raises(ValueError, match=r"it is HEIF, which needs pillow-heif \(pip install pillow-heif\)"):
            pictures.Reader(None, 1, 100).read(file, "a")
    monkeypatch.setattr(pictures, "formats", lambda: ("PNG",))
    with pytest.raises(ValueError, match="it is AVIF, which needs Pillow 11"):
        pictures.Reader(None, 1, 100).read(io.BytesIO(heic.replace(b"heic", b"avif")), "a")


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (16, 8), (200, 0, 0)).save(tmp_path / "a.heic", "HEIF")
    source = data.images(str(tmp_path))
    assert source.x.shape == (1, 8, 16, 3)
    np.testing.assert_allclose(source.x[0, 4, 8], (200, 0, 0), atol=8)


def test_animations_are_said(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (10, 20, 30)]
    for name in ("a.gif", "b.webp", "c.png", "d.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "e.png")
    with pytest.warns(UserWarning, match=r"the first frame is read of 4 animation\(s\): .*a\.gif.*, \.\.\.") as caught:
        source = data.images(str(tmp_path), channels=1)
    assert len(caught) == len(source.notes) == 1
    np.testing.assert_allclose(source.x, 10, atol=3)
    (tmp_path / "a.gif").rename(tmp_path / "f.gif")
    (tmp_path / "e.png").rename(tmp_path / "a.png")
    lazy = data.images(str(tmp_path), channels=1, in_memory=False)
    with pytest.warns(UserWarning, match="is an animation; of those the first frame is read") as caught:
        lazy.x[:]
    assert len(caught) == 1

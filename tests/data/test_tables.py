import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowjax import data
from flowjax.data import tables

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PIXELS = np.random.default_rng(0).integers(256, size=(6, 4, 5, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def png(x):
    file = io.BytesIO()
    Image.fromarray(x).save(file, "PNG")
    return file.getvalue()


def write(path, pixels=PIXELS, labels=LABELS, names=None, struct=True, **columns):
    encoded = [png(x) for x in pixels]
    values = [{"bytes": x, "path": f"{i}.png"} for i, x in enumerate(encoded)] if struct else encoded
    table = pa.table({"image": values, "label": labels} | columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)
    return str(path)


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("in_memory", [None, False])
def test_pictures_and_labels(tmp_path, struct, in_memory):
    path = write(tmp_path / "a.parquet", struct=struct, names=["a", "b", "c"])
    source = data.load("parquet", path=path, in_memory=in_memory)
    np.testing.assert_array_equal(np.asarray(source.x), PIXELS)
    np.testing.assert_array_equal(source.cond, LABELS)
    assert (source.names, source.num_classes, source.high) == (("a", "b", "c"), 3, 255.0)
    assert data.parquet(path, label=None, size=2, channels=1).x.shape == (6, 2, 2, 1)
    assert data.parquet(path, num_classes=7).num_classes == 7


def test_parts_of_a_split(tmp_path):
    for i in range(3):
        write(tmp_path / f"train-{i:05d}-of-00003.parquet", PIXELS[2 * i :][:2], LABELS[2 * i :][:2])
    np.testing.assert_array_equal(data.parquet(str(tmp_path)).x, PIXELS)
    write(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(
        ValueError, match=r"several splits \(.*test, .*train\); choose with a .* path='.*/test\*\.parquet'"
    ):
        data.parquet(str(tmp_path))
    np.testing.assert_array_equal(data.parquet(str(tmp_path / "train-*.parquet")).cond, LABELS)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"is not complete: 2 of 3 files, such as train-00000"):
        data.parquet(str(tmp_path / "train-*.parquet"))
    for name in ("part-0.parquet", "part-1.parquet"):
        write(tmp_path / name)
    assert len(data.parquet(str(tmp_path / "part-*.parquet")).x) == 12
    with pytest.raises(ValueError, match="is no parquet file, folder with"):
        data.parquet(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"image": "img"}, r"no column 'img' in a\.parquet \(it has image, label, other\)"),
        ({}, {"label": "y"}, "no column 'y'"),
        ({}, {"label": "other"}, "6 examples need 6 integer labels, got <U1"),
        ({}, {"image": "label"}, "row 0 of column 'label' must hold an encoded picture, as bytes or .* not 0"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}] * 6}, {}, "not .*'bytes': None"),
        ({"image": [None] * 6}, {}, "not None"),
        ({"image": [b"x"] * 6}, {}, r"cannot read image 0 of .*a\.parquet"),
        ({"label": [0, 1, 2, 3, 4, None]}, {}, "6 integer labels, got object"),
        ({"label": [0, 1, 2, 3, 4, 2_000_000_000]}, {}, "make 2000000001 classes"),
        ({"label": [0, 1, 2, 3, 4, 5]}, {"num_classes": 5}, r"labels must be 0\.\.4, got 0\.\.5"),
        ({}, {"size": 0}, "size at least 1"),
        ({}, {"max_pixels": 19}, "more than max_pixels=19 pixels"),
        ({}, {"max_bytes": 300}, "take more than max_bytes=300; raise that option"),
    ],
)
def test_errors(tmp_path, change, options, message):
    path = write(tmp_path / "a.parquet", other=list("abcdef"), **change)
    with pytest.raises(ValueError, match=message):
        data.parquet(path, **options)


def test_damage_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    whole = Path(write(path)).read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-9] + b"\xff" * 5 + whole[-4:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*a\.parquet"):
            data.parquet(str(path))
    write(path, PIXELS[:0], pa.array([], pa.int64()))
    with pytest.raises(ValueError, match="has no rows"):
        data.parquet(str(path))
    write(path, [PIXELS[0], PIXELS[1][:2]], [0, 1])
    with pytest.raises(ValueError, match=r"image 1 of .*a\.parquet is 5x2, not 5x4; give a size"):
        data.parquet(str(path))


def test_equal_values_stored_once_are_counted(tmp_path):
    table = pa.table({"image": [bytes(2**16)] * 300})
    pq.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2**14
    with pytest.raises(ValueError, match=f"max_bytes={2**23}"):
        data.parquet(str(tmp_path / "a.parquet"), label=None, max_bytes=2**23)


@pytest.mark.parametrize(("installed", "found"), [(None, "not installed"), ("14.0.0", "14.0.0")])
def test_pyarrow_is_asked_for(tmp_path, monkeypatch, installed, found):
    def version(name):
        if installed is None:
            raise tables.PackageNotFoundError(name)
        return installed

    path = write(tmp_path / "a.parquet")
    monkeypatch.setattr(tables, "version", version)
    with pytest.raises(ValueError, match=rf"need pyarrow 14\.0\.1 or newer \(it is {found}\): pip install -U pyarrow"):
        data.parquet(path)

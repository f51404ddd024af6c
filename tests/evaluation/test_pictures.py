import json

import numpy as np
import pytest
from PIL import Image

from flowjax import data
from flowjax.evaluation import pictures


def test_grid_shows_every_pixel_as_a_block(tmp_path):
    x = np.array([0, 4, 16, 99, -5, np.nan], np.float32)[:, None, None, None] * np.ones((1, 2, 3, 1), np.float32)
    pictures.grid(x, tmp_path / "new" / "grid.png", low=0.0, high=16.0, columns=4, zoom=5)
    image = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert image.shape == (2 * (2 * 5 + 2) + 2, 4 * (3 * 5 + 2) + 2)
    blocks = [image[2 + 12 * i : 12 + 12 * i, 2 + 17 * j : 17 + 17 * j] for i in (0, 1) for j in range(4)]
    assert [set(block.ravel().tolist()) for block in blocks[:6]] == [{0}, {64}, {255}, {255}, {0}, {0}]


def test_grid_has_one_row_per_class_and_keeps_colours(tmp_path):
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32)
    x = colours[:, None, None, :] * np.ones((1, 4, 4, 1), np.float32)
    pictures.grid(x, tmp_path / "a.png", low=0.0, high=1.0, cond=np.array([7, 2, 7, 7]), columns=2, zoom=1)
    image = np.asarray(Image.open(tmp_path / "a.png"))
    assert image.shape == (14, 14, 3)
    np.testing.assert_array_equal(image[4, 4], [0, 255, 0])
    np.testing.assert_array_equal(image[10, [4, 10]], [[255, 0, 0], [0, 0, 255]])


def test_grid_refuses(tmp_path):
    with pytest.raises(ValueError, match="C = 1 or 3"):
        pictures.grid(np.zeros((2, 4, 4, 2)), tmp_path / "a.png", low=0.0, high=1.0)
    with pytest.raises(ValueError, match="below high"):
        pictures.grid(np.zeros((2, 4, 4, 1)), tmp_path / "a.png", low=1.0, high=1.0)
    assert not list(tmp_path.iterdir())


def test_plots_are_written(tmp_path):
    real = data.toy2d("spiral", size=5000).x
    noise = np.random.default_rng(0).normal(size=real[:300].shape).astype(np.float32)
    pictures.density(real[:1000], real, tmp_path / "density.png")
    pictures.trajectories(np.linspace(noise, real[:300], 6), tmp_path / "trajectories.png")
    lines = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}, {"step": 20, "speed": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pictures.loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    for name in ("density", "trajectories", "loss"):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    with pytest.raises(ValueError, match=r"steps \+ 1"):
        pictures.trajectories(noise, tmp_path / "no.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="no loss"):
        pictures.loss_curve(tmp_path / "metrics.jsonl", tmp_path / "no.png")


def test_titles_stand_below_their_images(tmp_path):
    """Light letters on the grey between the cells, more of them for a longer title, and each below its own image."""
    x = np.zeros((3, 4, 4, 3))
    pictures.grid(x, tmp_path / "bare.png", low=0, high=1, columns=3)
    pictures.grid(x, tmp_path / "titled.png", low=0, high=1, columns=3, titles=["", "a red circle " * 9, "a"])
    bare, titled = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("bare", "titled"))
    assert titled.shape[0] > bare.shape[0]
    white = (titled.min(-1) > 200).sum(0)
    width = titled.shape[1] // 3
    assert white[:width].sum() == 0
    assert white[width : 2 * width].sum() > 5 * white[2 * width :].sum() > 0
    with pytest.raises(ValueError, match="3 images, but 1 titles"):
        pictures.grid(x, tmp_path / "bad.png", low=0, high=1, titles=["a"])

"""Pictures of samples and runs as PNG files, without a display or global state of matplotlib."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Num
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import confusion_matrix

from flowjax._files import replacing

_TITLE = 11  # pixels of a title's letters


def grid(
    x: Num[np.ndarray, "..."],
    path: str | Path,
    *,
    low: float,
    high: float,
    cond: Int[np.ndarray, " N"] | None = None,
    titles: Sequence[str] = (),
    columns: int = 10,
    zoom: int = 6,
) -> None:
    """Images side by side, every pixel a block of equal colour.

    Args:
        x: (N, H, W, C) grey (C = 1) or colour (C = 3) images in the data's own scale.
        path: The file; its folder is made if needed.
        low: Value shown black; smaller ones are clipped.
        high: Value shown white; larger ones are clipped.
        cond: Labels. With them each class has its own row, in ascending order, with its first `columns`
            images.
        titles: A text for each image, written below it; may be empty.
        columns: Images in a row.
        zoom: Screen pixels per image pixel, in each direction.

    Raises:
        ValueError: Another shape, an empty range of values, or another number of titles.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or len(x) == 0:
        raise ValueError(f"needs (N, H, W, C) images with C = 1 or 3, got shape {x.shape}")
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    if titles and len(titles) != len(x):
        raise ValueError(f"{len(x)} images, but {len(titles)} titles")
    order = np.arange(len(x))
    if cond is None:
        rows = [order[i : i + columns] for i in range(0, len(x), columns)]
    else:
        rows = [order[np.asarray(cond) == c][:columns] for c in np.unique(cond)]
    _, height, width, channels = x.shape
    columns = max(len(row) for row in rows)
    # Cells are separated, and missing images shown, by a middle grey that no digit's border has.
    gap, font = 2, ImageFont.load_default(_TITLE)
    cell_width = max(width * zoom, 12 * _TITLE if titles else 0) + gap
    lines = {i: textwrap.wrap(title, 5 * cell_width // (3 * _TITLE), max_lines=4) for i, title in enumerate(titles)}
    below = (_TITLE + gap) * max(map(len, lines.values()), default=0)
    cell_height = height * zoom + gap + below
    canvas = np.full((len(rows) * cell_height + gap, columns * cell_width + gap, channels), 96, np.uint8)
    # A NaN is no colour; it is shown black rather than cast to an arbitrary one.
    levels = np.rint(255 * np.clip(np.nan_to_num((x - low) / (high - low), nan=0.0), 0, 1)).astype(np.uint8)
    corners = {}
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            top, left = gap + i * cell_height, gap + j * cell_width
            block = levels[index].repeat(zoom, 0).repeat(zoom, 1)
            canvas[top : top + height * zoom, left : left + width * zoom] = block
            corners[index] = (left, top + height * zoom)
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    for index, shown in lines.items():
        ImageDraw.Draw(picture).multiline_text(
            corners[index], "\n".join(shown), "white" if channels == 3 else 255, font, spacing=gap
        )
    with replacing(path) as part:
        picture.save(part)


def density(
    x: Num[np.ndarray, "N 2"], real: Num[np.ndarray, "M 2"] | None, path: str | Path, *, bins: int = 60
) -> None:
    """Histogram of points in the plane beside that of the real law, in the same window and colours.

    Args:
        x: Samples.
        real: Points from the real law; they decide the window and the colours. None shows the samples alone.
        path: The file; its folder is made if needed.
        bins: Bins in each direction.
    """
    shown = {f"{len(x):,} samples": np.asarray(x, np.float64)}
    if real is not None:
        shown[f"{len(real):,} real points"] = np.asarray(real, np.float64)
    leading = list(shown.values())[-1]
    middle = (leading.max(0) + leading.min(0)) / 2
    half = 0.55 * np.ptp(leading, axis=0).max() or 1.0  # one point
    window = np.stack([middle - half, middle + half], 1)
    area = (2 * half / bins) ** 2
    maps = [np.histogram2d(p[:, 0], p[:, 1], bins, window)[0].T / (len(p) * area) for p in shown.values()]
    figure = Figure(figsize=(4.5 * len(maps), 4.2), layout="constrained")
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for panel, title, values in zip(panels, shown, maps):
        image = panel.imshow(values, origin="lower", extent=window.ravel(), vmin=0, vmax=maps[-1].max())
        panel.set_title(title)
    figure.colorbar(image, ax=panels, label="density")
    _save(figure, path)


def trajectories(trajectory: Num[np.ndarray, "..."], path: str | Path, *, num: int = 200) -> None:
    """Ways of points in the plane from noise (grey) to data (dark).

    Args:
        trajectory: (steps + 1, B, 2) points at every grid time, `result.trajectory` of `flowjax.solve`.
        path: The file; its folder is made if needed.
        num: At most so many of the B ways are drawn; all end points are.

    Raises:
        ValueError: Another shape.
    """
    trajectory = np.asarray(trajectory)
    if trajectory.ndim != 3 or trajectory.shape[-1] != 2:
        raise ValueError(f"needs a trajectory of shape (steps + 1, B, 2), got {trajectory.shape}")
    figure = Figure(figsize=(6, 6), layout="constrained")
    panel = figure.subplots()
    shown = trajectory[:, :num]
    panel.plot(*np.moveaxis(shown, -1, 0), color="tab:olive", linewidth=0.4, alpha=0.6)
    panel.scatter(trajectory[0, :, 0], trajectory[0, :, 1], s=3, color="0.6", label="t = start", zorder=2)
    panel.scatter(trajectory[-1, :, 0], trajectory[-1, :, 1], s=3, color="tab:blue", label="t = end", zorder=3)
    panel.set_aspect("equal")
    panel.legend(loc="upper right")
    _save(figure, path)


def confusion(
    cond: Int[np.ndarray, " N"],
    chosen: Int[np.ndarray, " N"],
    path: str | Path,
    *,
    classes: int,
    names: tuple[str, ...] = (),
) -> None:
    """How often each class was taken for which, in parts of the class.

    Args:
        cond: True classes.
        chosen: What they were taken for.
        path: The file; its folder is made if needed.
        classes: How many there are.
        names: Of the classes; may be empty.
    """
    counts = confusion_matrix(cond, chosen, labels=np.arange(classes))
    parts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(4 + 0.3 * classes, 12)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(parts, vmin=0, vmax=1, cmap="Blues")
    panel.set(xlabel="taken for", ylabel="class")
    if classes <= 30:
        labels = names or tuple(map(str, range(classes)))
        panel.set_xticks(range(classes), labels=labels, rotation=45, ha="right")
        panel.set_yticks(range(classes), labels=labels)
    figure.colorbar(image, ax=panel)
    _save(figure, path)


def scatter(real: Num[np.ndarray, " N"], made: Num[np.ndarray, " N"], path: str | Path) -> None:
    """Answers against truths, with the line on which they agree.

    Args:
        real: True numbers; the first 10,000 are shown.
        made: The answers.
        path: The file; its folder is made if needed.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    panel = figure.subplots()
    real, made = real[:10_000], made[:10_000]
    ends = [float(min(real.min(), made.min())), float(max(real.max(), made.max()))]
    panel.plot(ends, ends, color="0.7", linewidth=1)
    panel.scatter(real, made, s=4)
    panel.set(xlabel="truth", ylabel="answer", aspect="equal")
    _save(figure, path)


def loss_curve(metrics: str | Path, path: str | Path) -> None:
    """The loss over the steps, as recorded in a run's `metrics.jsonl`.

    Args:
        metrics: File with one JSON object {"step": ..., "loss": ...} per line; lines without a loss are left
            out.
        path: The picture; its folder is made if needed.

    Raises:
        ValueError: No line has a loss.
    """
    lines = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    points: list[tuple[float, float]] = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if not points:
        raise ValueError(f"{metrics} has no loss")
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    panel.plot(*zip(*points), marker="." if len(points) < 50 else None)
    panel.set(xlabel="step", ylabel="loss")
    panel.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)

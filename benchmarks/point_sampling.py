"""Claim: the sampling protocol keeps a classifier right on clouds with points added or lost; it beats a scipy loop.

Two classifiers of the same network are trained on clean clouds by the train main with configs/clouds.py, three seeds
each: "usual" with farthest points, and "protocol" with random resampling and weighted random key points. Both are
tested on seven corruptions at levels 0, 2 and 4: the usual one with farthest points, the other one with densified
clouds and filtered farthest points. A folder as argument keeps the runs, and those that are complete are not repeated.
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from measure import alternate, ratio, store
from scipy.spatial import cKDTree

from flowjax import _cli, train
from flowjax.geometry import corruptions, shapes
from flowjax.geometry import point_sampling as ps

POINTS, KEY_POINTS, SEEDS = 128, 32, 3
POINTWISE = np.array([name.startswith(("add", "drop")) for name in corruptions.CORRUPTIONS])
RUNS = {"usual": "clouds:usual", "protocol": "clouds"}
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "point_sampling.png"


def train_and_test(folder):
    """Reports of all runs, by name."""
    reports = {name: [] for name in RUNS}
    for seed in range(SEEDS):
        for name, config in RUNS.items():
            workdir = Path(folder) / f"{name}-{seed}"
            arguments = [f"--config={config}", f"--workdir={workdir}", f"--config.seed={seed}"]
            try:
                _cli.run(train.main, train.define, ["train", *arguments])
            except SystemExit as ended:
                if ended.code:
                    raise
            reports[name].append(json.loads((workdir / "report.json").read_text()))
    return reports


def scipy_loop(clouds):
    """Filtered farthest points of each cloud with a k-d tree."""
    chosen = []
    for x in clouds:
        squares = cKDTree(x).query(x, 20)[0] ** 2
        weights = (squares <= np.median(squares.mean(1))).sum(1)
        allowed = np.sort(np.argsort(-weights, kind="stable")[: int(0.95 * len(x))])
        x = x[allowed]
        distance, index = np.full(len(x), np.inf), []
        best = 0
        for _ in range(KEY_POINTS):
            index.append(best)
            distance = np.minimum(distance, ((x - x[best]) ** 2).sum(1))
            best = int(distance.argmax())
        chosen.append(allowed[index])
    return np.array(chosen)


def draw_figure(errors):
    x = shapes.sample(jax.random.key(3), jnp.int32(4), 1024)
    y, mask = corruptions.corrupt(jax.random.key(5), x, "add_global", 4)
    chosen = {
        "farthest points": ps.farthest_points(y, 128, mask),
        "weighted random": ps.weighted_random(jax.random.key(0), ps.isolation_weights(y), 128),
        "filtered farthest points": ps.filtered_farthest_points(y, 128),
    }
    figure = plt.figure(figsize=(11, 6), dpi=80)
    outlier = np.arange(len(y)) >= len(x)
    for place, (title, index) in enumerate({"corrupted cloud": np.arange(len(y)), **chosen}.items()):
        axes = figure.add_subplot(2, 4, place + 1)
        points, bad = np.asarray(y)[index], outlier[index]
        axes.scatter(*points[~bad, :2].T, s=4 if place else 1, color="tab:blue")
        axes.scatter(*points[bad, :2].T, s=14, color="tab:red")
        axes.set(title=f"{title}\n{bad.sum()} outliers of {len(points)}", aspect="equal", xticks=[], yticks=[])
    axes = figure.add_subplot(2, 1, 2)
    for shift, (name, error) in zip((-0.2, 0.2), errors.items(), strict=True):
        axes.bar(np.arange(8) + shift, error.mean(0), 0.38, label=name)
        for run in error:
            axes.plot(np.arange(8) + shift, run, "k.", ms=4)
    axes.set(xticks=range(8), xticklabels=["clean", *corruptions.CORRUPTIONS], ylabel="error rate, levels 0, 2, 4")
    axes.legend(title="mean and runs of 3 seeds")
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)


def main():
    keys, labels = jax.random.split(jax.random.key(9), 64), jnp.arange(64, dtype=jnp.int32) % len(shapes.NAMES)
    clouds = jax.vmap(lambda key, label: shapes.sample(key, label, POINTS))(keys, labels)
    many = jax.jit(jax.vmap(lambda x: ps.filtered_farthest_points(x, KEY_POINTS)))
    host = np.asarray(clouds)
    assert (np.asarray(many(clouds)) == scipy_loop(host)).mean() > 0.9  # ties and rounding move a few choices
    seconds = alternate({"vmapped": lambda: many(clouds), "loop": lambda: scipy_loop(host)}, 10)
    numbers = {
        "clouds per second, vmapped": 64 / float(np.median(seconds["vmapped"])),
        "clouds per second, scipy loop": 64 / float(np.median(seconds["loop"])),
        "time of the loop / vmapped": ratio(seconds, "loop", "vmapped"),
    }
    if len(sys.argv) > 1:
        reports = train_and_test(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            reports = train_and_test(folder)
    errors = {}
    for name, runs in reports.items():
        rows = [[1 - run["accuracy"], *(run[f"error[{c}]"] for c in corruptions.CORRUPTIONS)] for run in runs]
        errors[name] = np.array(rows)
        numbers[f"{name}: seconds of a run"] = [run["wall_seconds"] for run in runs]
        numbers[f"{name}: error on clean clouds, each seed"] = errors[name][:, 0].tolist()
        for kind, chosen in {
            "points added or lost": POINTWISE,
            "clouds scaled, rotated or jittered": ~POINTWISE,
        }.items():
            numbers[f"{name}: error on {kind}, each seed"] = errors[name][:, 1:][:, chosen].mean(1).tolist()
        for place, corruption in enumerate(corruptions.CORRUPTIONS):
            numbers[f"{name}: error under {corruption}, mean"] = float(errors[name][:, place + 1].mean())
    draw_figure(errors)
    store("point_sampling", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

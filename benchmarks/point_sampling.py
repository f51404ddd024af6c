"""Claim: the sampling protocol keeps a classifier of shapes right on corrupted clouds; vmapped, it beats a scipy loop.

Two classifiers of the same network are trained on clean clouds, three seeds each: "usual" with farthest points, and
"protocol" with random resampling and weighted random key points. Both are tested on seven corruptions at levels 0, 2
and 4: the usual one with farthest points, the other one with densified clouds and filtered farthest points.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from measure import alternate, ratio, store
from scipy.spatial import cKDTree

from flowjax import training
from flowjax.geometry import corruptions, pointnet, shapes
from flowjax.geometry import point_sampling as ps
from flowjax.objectives import Classification

POINTS, KEY_POINTS, BATCH, STEPS, TEST, SEEDS, LEVELS = 128, 32, 32, 800, 256, 3, (0, 2, 4)
CLASSES = len(shapes.NAMES)
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "point_sampling.png"


@jax.jit(static_argnums=1)
def draw(key, count):
    """Clouds and labels."""
    labels = jnp.arange(count, dtype=jnp.int32) % CLASSES
    return jax.vmap(lambda key, label: shapes.sample(key, label, POINTS))(jax.random.split(key, count), labels), labels


def usual_training(key, x):
    return x, jnp.ones(x.shape[:2]), jax.vmap(lambda x: ps.farthest_points(x, KEY_POINTS))(x)


def protocol_training(key, x):
    key, key_ratio = jax.random.split(key)
    amount = ps.draw_ratio(key_ratio)  # one for the batch

    def one(key, x):
        keys = jax.random.split(key)
        points, mask = ps.resample(keys[0], x, amount)
        return points, mask, ps.weighted_random(keys[1], ps.isolation_weights(points, mask=mask), KEY_POINTS)

    return jax.vmap(one)(jax.random.split(key, len(x)), x)


def usual_test(key, x, mask):
    return x, mask, ps.farthest_points(x, KEY_POINTS, mask)


def protocol_test(key, x, mask):
    count = max(len(x), POINTS)
    x, mask = ps.densify(key, x, count, mask=mask)
    return x, mask, ps.filtered_farthest_points(x, KEY_POINTS, mask=mask)


PROTOCOLS = {"usual": (usual_training, usual_test), "protocol": (protocol_training, protocol_test)}


@jax.jit(static_argnums=(2, 3))
def corrupt(key, x, corruption, level):
    """Corrupted clouds and their masks."""
    return jax.vmap(lambda key, x: corruptions.corrupt(key, x, corruption, level))(jax.random.split(key, len(x)), x)


def test_sets():
    """Clouds and masks of each corruption and level, the clean ones first; and the labels."""
    x, labels = draw(jax.random.key(1000), TEST)
    sets = [[(x, jnp.ones(x.shape[:2]))] * len(LEVELS)]
    for name in corruptions.CORRUPTIONS:
        sets.append([corrupt(jax.random.key(level), x, name, level) for level in LEVELS])
    return sets, labels


def train_and_test(name, sets, answers):
    """Errors (seeds, clean and each corruption, levels)."""
    prepare, inputs = PROTOCOLS[name]
    inputs = jax.jit(jax.vmap(inputs))
    keys = jax.random.split(jax.random.key(2000), TEST)
    prepared = [[inputs(keys, *clouds) for clouds in row] for row in sets]
    objective = Classification(prepare=prepare, smoothing=0.2)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))
    mesh = training.make_mesh(devices=jax.devices()[:1])
    step = jax.jit(training.make_step(optimizer, ema=0.9))
    wrong = jax.jit(lambda network, inputs: (network(*inputs).argmax(-1) != answers).mean())
    errors = []
    for seed in range(SEEDS):
        state = training.create_state(lambda s=seed: pointnet.PointNet(CLASSES, 32, rngs=nnx.Rngs(s)), optimizer, mesh)
        for i in range(STEPS):
            x, labels = draw(jax.random.fold_in(jax.random.key(seed), i), BATCH)
            state, report = step(state, objective, {"x1": x, "cond": labels}, jax.random.key(10 + seed))
        errors.append([[float(wrong(state.average, given)) for given in row] for row in prepared])
        print(name, seed, float(report["loss"]), np.mean(errors[-1], -1).round(3), flush=True)
    return np.array(errors)


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
    labels = ["clean", *corruptions.CORRUPTIONS]
    for shift, (name, error) in zip((-0.2, 0.2), errors.items(), strict=True):
        means = error.mean(-1)
        axes.bar(np.arange(8) + shift, means.mean(0), 0.38, yerr=means.std(0), label=name, capsize=2)
    axes.set(xticks=range(8), xticklabels=labels, ylabel="error rate, levels 0, 2, 4")
    axes.legend()
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)


def main():
    clouds, _ = draw(jax.random.key(9), 64)
    many = jax.jit(jax.vmap(lambda x: ps.filtered_farthest_points(x, KEY_POINTS)))
    host = np.asarray(clouds)
    assert (np.asarray(many(clouds)) == scipy_loop(host)).mean() > 0.9  # ties and rounding move a few choices
    seconds = alternate({"vmapped": lambda: many(clouds), "loop": lambda: scipy_loop(host)}, 10)
    numbers = {
        "clouds per second, vmapped": 64 / float(np.median(seconds["vmapped"])),
        "clouds per second, scipy loop": 64 / float(np.median(seconds["loop"])),
        "time of the loop / vmapped": ratio(seconds, "loop", "vmapped"),
    }
    sets = test_sets()
    errors = {name: train_and_test(name, *sets) for name in PROTOCOLS}
    for name, error in errors.items():
        numbers[f"{name}: error on clean clouds, mean over seeds"] = float(error[:, 0].mean())
        numbers[f"{name}: error on corrupted clouds, each seed"] = error[:, 1:].mean((1, 2)).tolist()
        for place, corruption in enumerate(corruptions.CORRUPTIONS):
            numbers[f"{name}: error under {corruption}"] = float(error[:, place + 1].mean())
    draw_figure(errors)
    store("point_sampling", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

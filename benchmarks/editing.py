"""Claim: edits keep what they are to keep and change what they are to change, on trained models of digits.

    python benchmarks/editing.py --workdir=benchmarks/models/digits_flowturbo/runs/network --data=digits
    python benchmarks/editing.py --workdir=benchmarks/models/mnist

One picture of each class: of the data, or drawn by the model where the data is not there. Inverted and sampled again;
SDEdit to the next class; the lower half filled in; translated to the next class; halfway to the next picture; enlarged
from half the size. Numbers: the largest error of what must be kept, the mean error of inversion and of what was
measured, and with --data the share of pictures that a classifier of the real ones takes for the class asked for.
"""

import argparse
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from measure import RESULTS, store

import flowjax as fj

STEPS = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", default=None)
    args = parser.parse_args()
    flow, recipe = fj.load(args.workdir)
    shape, labels = recipe.shape, jnp.arange(10)
    noise, times = fj.noise(jax.random.key(1), (10, *shape)), fj.times.uniform(STEPS)
    guided, heun = fj.guide(flow, fj.guidance.CFG(scale=2.0)), fj.solvers.Heun()
    judge = None
    if args.data is None:
        pictures = fj.solve(guided, heun, fj.noise(jax.random.key(2), (10, *shape)), times, labels).x
    else:
        source = fj.data.load(args.data)
        judge = fj.evaluation.default_extractor(source)
        first = [int(np.flatnonzero(source.cond == k)[0]) for k in range(10)]
        pictures = jnp.asarray((np.asarray(source.x)[first] - recipe.shift) / recipe.scale, jnp.float32)

    following, half = jnp.roll(labels, -1), jnp.zeros((*shape[:-1], 1)).at[: shape[0] // 2].set(1.0)
    pooled, given = fj.fields.Pooled(factor=2), {"noise": noise, "cond": labels}
    edits = {
        "picture": pictures,
        "inverted and sampled again": fj.solve(
            flow, heun, fj.editing.invert(flow, heun, pictures, times, labels).x, times, labels
        ).x,
        "sdedit to the next class, strength 0.7": fj.editing.sdedit(
            guided, heun, pictures, times, noise=noise, strength=0.7, cond=following
        ).x,
        "lower half filled in": fj.editing.inpaint(guided, heun, pictures, half, times, **given).x,
        "translated to the next class": fj.editing.translate(
            flow, heun, pictures, times, cond=following, second_cond=labels
        ).x,
        "halfway to the next picture": fj.editing.interpolate(
            flow, heun, pictures, jnp.roll(pictures, -1, 0), times, weight=0.5, cond=labels, second_cond=following
        ).x,
        "enlarged from half the size": fj.editing.restore(
            guided, fj.solvers.Euler(), pictures, fj.times.uniform(2 * STEPS), operator=pooled, **given
        ).x,
    }
    asked = {name: following if "next class" in name else labels for name in edits}
    again, filled, enlarged = (
        edits[k] for k in (list(edits)[1], "lower half filled in", "enlarged from half the size")
    )
    numbers = {
        "largest error of what inpainting keeps": float(jnp.abs(half * (filled - pictures)).max()),
        "error of inversion and back (rms)": float(jnp.sqrt(jnp.mean((again - pictures) ** 2))),
        "error of the measured half size (rms)": float(jnp.sqrt(jnp.mean((pooled(enlarged) - pooled(pictures)) ** 2))),
        "evaluations": {"heun": 2 * STEPS, "restore": 2 * STEPS},
    }
    if judge is not None:
        for name, x in edits.items():
            if "halfway" not in name:
                seen = judge.predict(np.asarray(x) * recipe.scale + recipe.shift)
                numbers[f"seen as asked: {name}"] = float(np.mean(seen == np.asarray(asked[name])))
    name = "digits" if args.data == "digits" else Path(args.workdir).name
    store(f"editing_{name}", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    plot(edits, RESULTS.parent.parent / "docs" / "figures" / f"editing_{name}.png")


def plot(edits, path):
    """A row for each edit, a column for each class."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(len(edits), 1)
    for axis, (name, x) in zip(axes, edits.items(), strict=True):
        axis.imshow(np.concatenate(list(np.asarray(x)[..., 0]), axis=1), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(re.sub(r",? (strength|and|to|from) ", r"\n\1 ", name), fontsize=7)
        axis.yaxis.label.set(rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()

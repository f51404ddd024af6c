"""Claim: under strong guidance PLMS4 blows up at few steps, while heavy ball and GHVB of order 2 stay bounded.

    python benchmarks/strong_guidance.py --workdir=benchmarks/models/mnist

15 evaluations at growing scales of classifier-free guidance: the largest magnitude over all states of the run after the
first half, as a multiple of the largest in a fine solution at the same scale, the error to that solution, and a picture
of the samples.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from fast_solvers import END, START
from matplotlib.figure import Figure
from measure import RESULTS, store

import flowjax as fj
from flowjax.calibration.reference import refine

SCALES = (1.5, 4.0, 8.0, 16.0, 32.0)
STEPS = 15
PLMS4 = fj.solvers.AdamsBashforth(order=4, form="noise", weights="fixed")
SOLVERS = {
    "plms4": PLMS4,
    "plms4 + heavy ball 0.5": fj.solvers.HeavyBall(solver=PLMS4, beta=0.5),
    "ghvb2, beta 0.2": fj.solvers.GHVB(order=2, beta=0.2, form="noise", weights="fixed"),
    "ghvb4, beta 0.2": fj.solvers.GHVB(order=4, beta=0.2, form="noise", weights="fixed"),
    "dpm_solver++_2m": fj.solvers.DPMSolver(lower_order_final=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num", type=int, default=100)
    args = parser.parse_args()
    flow, recipe = fj.load(args.workdir)
    grid = fj.times.uniform(STEPS, START, END)
    fine, where = refine(grid, 300)
    x = flow.path.start(fj.noise(jax.random.key(1), (args.num, *recipe.shape)), START)
    cond = jnp.asarray(recipe.balanced(args.num))

    numbers, samples = {}, {}
    for scale in SCALES:
        field = fj.guide(flow, fj.guidance.CFG(scale=scale))
        goal = fj.solve(field, fj.solvers.DPMSolver(), x, fine, cond, trajectory=True).trajectory[where]
        samples["300 steps", scale] = np.asarray(goal[-1])
        largest = float(jnp.abs(goal[STEPS // 2 :]).max())
        for name, solver in SOLVERS.items():
            states = fj.solve(field, solver, x, grid, cond, trajectory=True).trajectory
            samples[name, scale] = np.asarray(states[-1])
            numbers[f"{name}, scale {scale:g}"] = {
                "largest magnitude / reference": float(jnp.abs(states[STEPS // 2 :]).max()) / largest,
                "error": float(jnp.sqrt(jnp.mean((states[-1] - goal[-1]) ** 2))),
            }
    name = Path(args.workdir).name
    store(f"strong_guidance_{name}", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    plot(numbers, samples, RESULTS.parent.parent / "docs" / "figures" / f"strong_guidance_{name}.png")


def plot(numbers, samples, path):
    """Samples of every solver at every scale, and the magnitudes."""
    names = ["300 steps", *SOLVERS]
    figure = Figure(figsize=(15, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1))
    axes = left.subplots(len(names), len(SCALES))
    for i, name in enumerate(names):
        for j, scale in enumerate(SCALES):
            ten = samples[name, scale][:10, ..., 0]
            tiles = np.concatenate([np.concatenate(ten[k : k + 5], axis=1) for k in (0, 5)])
            axes[i, j].imshow(tiles, cmap="gray", vmin=-1.2, vmax=1.2)
            axes[i, j].set(xticks=[], yticks=[])
            if i == 0:
                axes[i, j].set_title(f"guidance {scale:g}")
        axes[i, 0].set_ylabel(name.replace(" + ", "\n+ ").replace(", ", "\n"), fontsize=8)
    axis_pair = right.subplots(2, 1, sharex=True)
    for axis, key in zip(axis_pair, ("largest magnitude / reference", "error"), strict=True):
        for name in SOLVERS:
            axis.plot(SCALES, [numbers[f"{name}, scale {scale:g}"][key] for scale in SCALES], "o-", label=name)
        axis.set(xscale="log", yscale="log" if key == "error" else "linear", ylabel=key)
        axis.set_xticks(SCALES, labels=[f"{scale:g}" for scale in SCALES])
        axis.minorticks_off()
    axis_pair[0].legend(fontsize=8)
    axis_pair[1].set_xlabel(f"guidance scale, {STEPS} evaluations")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

"""Claim: SADA skips over 40 % of calls at 50 steps, stays nearer than another draw, and takes the time of its calls.

    python benchmarks/sada.py

The flow of `benchmarks/models/mnist` with the guidance of its recipe, 50 equal steps of DPM-Solver++(2M), and of Euler
for SADA alone. Three seeds, each with noise of its own; MNIST is read from a file `mnist.npz` in the folder this is
started from, for the features of the Frechet distance. Distances are between what a field makes of some noise and what
all 50 calls make of the same noise; the margin is the Frechet distance between what all 50 calls make of it and of
other noise. Uniform skipping, thresholds and magnitudes have the setting that comes nearest to the evaluations of SADA
on noise of its own. Times are of whole runs, in alternation.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from measure import RESULTS, alternate, ratio, store

import flowjax as fj
from flowjax import data, evaluation
from flowjax.fields import SADA, EveryNth, FirstBlock, MagCache, TeaCache
from flowjax.recipe import load_run

SEEDS, STEPS, NUM = (0, 1, 2), 50, 64
TIMES = fj.times.uniform(STEPS, 1e-3, 1 - 1e-3)
SOLVERS = {"2M": fj.solvers.DPMSolver(), "Euler": fj.solvers.Euler()}


class Model:
    """The flow, its noise, and the features that its samples are judged in."""

    def __init__(self):
        networks, self.recipe = load_run(Path(__file__).parent / "models" / "mnist")
        self.field = self.recipe.field(self.recipe.flow(networks["network"]))
        source = data.load(self.recipe.data["name"], **self.recipe.data["options"])
        self.extractor = evaluation.default_extractor(source)

    def run(self, field, solver, seed, num=NUM):
        """The solution from the noise of a seed, all classes in turn."""
        x = self.field.path.start(fj.noise(jax.random.key(seed), (num, *self.recipe.shape)), TIMES[0])
        cond = jax.tree.map(jax.numpy.asarray, self.recipe.balanced(num))
        return fj.solve(field, solver, x, TIMES, cond=cond)

    def frechet(self, a, b):
        """Between two sets of samples."""
        sets = (np.asarray(s * self.recipe.scale + self.recipe.shift, np.float32) for s in (a, b))
        return float(evaluation.frechet_distance(*map(self.extractor.features, sets)))

    def ratios(self, solver):
        """Mean ratios of the sizes of the velocity from step to step."""
        x = self.field.path.start(fj.noise(jax.random.key(100), (16, *self.recipe.shape)), TIMES[0])
        cond = jax.tree.map(jax.numpy.asarray, self.recipe.balanced(16))
        states = fj.solve(self.field, solver, x, TIMES, cond=cond, trajectory=True).trajectory
        ask = jax.jit(lambda field, t, x: field.velocity(t, x, cond))
        sizes = [
            np.sqrt(np.mean(np.square(ask(self.field, t, x)), axis=(1, 2, 3)))
            for t, x in zip(TIMES[:-1], states[:-1], strict=True)
        ]
        return [1.0, *np.mean(np.divide(sizes[1:], sizes[:-1]), axis=1).tolist()]


def tuned(model, field, name, rises, solver, target):
    """The field with its number `name` in [0, 1] where its evaluations are nearest to `target`."""
    low, high, found = 0.0, 1.0, {}
    for _ in range(8):
        middle = (low + high) / 2
        field = dataclasses.replace(field, **{name: middle})
        count = int(model.run(field, solver, 100, 16).evaluations)
        found[middle] = count
        low, high = (middle, high) if (count < target) == rises else (low, middle)
    best = min(found, key=lambda setting: abs(found[setting] - target))
    return dataclasses.replace(field, **{name: best})


def measured(model):
    """Evaluations and distances of each field, seed and solver."""
    two = SOLVERS["2M"]
    target = int(model.run(SADA(model.field), two, 100, 16).evaluations)
    others = {
        "every third": tuned(model, EveryNth(model.field, n=3), "warmup", True, two, target),
        "TeaCache, modulated input": tuned(model, TeaCache(model.field), "threshold", False, two, target),
        "first block": tuned(model, FirstBlock(model.field), "threshold", False, two, target),
        "magnitudes": tuned(model, MagCache(model.field, ratios=model.ratios(two)), "threshold", False, two, target),
    }
    found = {}
    for seed in SEEDS:
        for solver_name, solver in SOLVERS.items():
            full = model.run(model.field, solver, seed).x
            margin = model.frechet(full, model.run(model.field, solver, seed + 50).x) if solver_name == "2M" else None
            for name, field in ({"SADA": SADA(model.field)} | (others if solver_name == "2M" else {})).items():
                result = model.run(field, solver, seed)
                numbers = {
                    "evaluations": int(result.evaluations),
                    "skipped": float(np.mean(result.report["skipped"])),
                    "relative distance": float(np.linalg.norm(result.x - full) / np.linalg.norm(full)),
                    "Frechet distance": model.frechet(result.x, full),
                } | ({} if margin is None else {"of other noise": margin})
                found[f"{name}, {solver_name}, seed {seed}"] = numbers
                print(name, solver_name, seed, numbers, flush=True)
    return found


def speed(model):
    """Seconds of a whole run with SADA over those of all calls, and calls over calls."""
    fields = {"SADA": SADA(model.field), "all calls": model.field}
    solver = SOLVERS["2M"]
    runs = {name: lambda field=field: model.run(field, solver, 0, 16).x for name, field in fields.items()}
    calls = int(model.run(fields["SADA"], solver, 0, 16).evaluations)
    return {
        "time with SADA / with all calls": ratio(alternate(runs, rounds=5), "SADA", "all calls"),
        "calls with SADA / all calls": calls / STEPS,
    }


def picture(numbers):
    """Relative distances of all fields at about equal evaluations."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(key.rpartition(", ")[0] for key in numbers if "seed" in key))
    for place, name in enumerate(names):
        points = [numbers[f"{name}, seed {seed}"] for seed in SEEDS]
        axes.scatter([point["relative distance"] for point in points], [place] * len(points), color=f"C{place}")
    calls = [np.mean([numbers[f"{name}, seed {seed}"]["evaluations"] for seed in SEEDS]) for name in names]
    axes.set_yticks(range(len(names)), [f"{name} ({count:.0f} of {STEPS})" for name, count in zip(names, calls)])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("distance to the samples of all calls, over their size")
    figure.savefig(RESULTS.parent.parent / "docs" / "figures" / "sada.png", dpi=120)


def main():
    model = Model()
    numbers = measured(model) | speed(model)
    store("sada", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    picture(numbers)


if __name__ == "__main__":
    main()

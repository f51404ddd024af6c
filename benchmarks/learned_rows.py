"""Claim: rows learned on a model have 0.07 to 0.59 of the error of the best fixed solver at 5 and 10 evaluations.

    python benchmarks/learned_rows.py mixture
    python benchmarks/learned_rows.py digits mnist --counts 5

`mixture`: a law of three components in four dimensions whose velocity is exact, on a straight and a VP path; rows that
are consistent and free ones are learned, and held-out noise decides. `parallel`: the same with two points in each
round, free rows and fewer noises. `digits`, `mnist`: flows of `benchmarks/models`, with the guidance of their recipes,
and free rows; MNIST is read from a file `mnist.npz` in the folder this is started from. Three seeds, each with noises
of its own to learn from, to decide when to stop, and to measure; errors are root mean square distances to a fine
solution from the same noise. The best fixed solver is that of `calibration.forms.KNOWN` on three grids, with as many
evaluations as there are rounds, that has the least error on the noises that measure, which favours it. Parts, counts
and seeds that are not named keep their numbers. `speed`: five learned rows against five network calls.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from measure import RESULTS, alternate, ratio, store

import flowjax as fj
from flowjax import data, evaluation
from flowjax.calibration import forms, learning, least_squares
from flowjax.calibration.reference import reference
from flowjax.recipe import load_run

SEEDS, MODELS = (0, 1, 2), Path(__file__).parent / "models"
RUNS = {"digits": MODELS / "digits_flowturbo" / "runs" / "network", "mnist": MODELS / "mnist"}
START, END = 1e-3, 1 - 1e-3


class Law:
    """The mixture on a path."""

    noises, fine = (4096, 512, 4096), 400
    ways = (True, False)

    def __init__(self, path):
        means = 1.2 * np.random.default_rng(0).normal(size=(3, 4))
        law = fj.oracles.Mixture(weights=np.array([0.3, 0.25, 0.45]), means=means, stds=0.3, path=path)
        self.field = fj.Flow(law.network("velocity"), path=path, prediction="velocity")

    def options(self, count, points):
        """Of learning; derivatives of parallel points cost more."""
        return {"iterations": 40, "batch": 4096} if points == 1 else {"iterations": 15, "batch": 1024}

    def states(self, key, num):
        """Start states, and no conditions."""
        return self.field.path.start(fj.noise(key, (num, 4)), START), None


class Model:
    """A trained flow with the guidance of its recipe."""

    noises, fine = (256, 64, 256), 100
    ways = (False,)

    def __init__(self, run, batch=640):
        networks, self.recipe = load_run(run)
        self.batch = batch
        self.field = self.recipe.field(self.recipe.flow(networks["network"]))

    def options(self, count, points):
        """Of learning; fewer noises for more evaluations and points, of which each costs more."""
        return {"iterations": 6, "batch": min(128, self.batch // (count * points))}

    @functools.cached_property
    def judge(self):
        """Features of the data, and the extractor that gives them."""
        source = data.load(self.recipe.data["name"], **self.recipe.data["options"])
        extractor = evaluation.default_extractor(source)
        return extractor, extractor.features(np.asarray(source.take(2000, 0).x))

    def frechet(self, x, target):
        """Frechet distances of samples and of the fine solution to the data, with the interval of the difference."""
        extractor, real = self.judge
        made, fine = (
            extractor.features(np.asarray(s * self.recipe.scale + self.recipe.shift, np.float32)) for s in (x, target)
        )
        rng = np.random.default_rng(0)
        apart = []
        for _ in range(100):
            some = rng.integers(len(made), size=len(made))
            apart.append(evaluation.frechet_distance(made[some], real) - evaluation.frechet_distance(fine[some], real))
        return {
            "Frechet distance": float(evaluation.frechet_distance(made, real)),
            "of the fine solution": float(evaluation.frechet_distance(fine, real)),
            "difference, 95 % over noises": [float(q) for q in np.quantile(apart, [0.025, 0.975])],
        }

    def states(self, key, num):
        """Start states, and all classes in turn."""
        x = self.field.path.start(fj.noise(key, (num, *self.recipe.shape)), START)
        return x, jax.tree.map(jax.numpy.asarray, self.recipe.balanced(num))


def pool(problem, key, num):
    x, cond = problem.states(key, num)
    targets = []
    for i in range(0, num, 512 if cond is None else 64):
        some = slice(i, i + (512 if cond is None else 64))
        c = jax.tree.map(lambda c, some=some: c[some], cond)
        targets.append(reference(problem.field, x[some], fj.times.uniform(5, START, END), c, steps=problem.fine)[-1])
    return least_squares.Pool(field=problem.field, x=x, target=jax.numpy.concatenate(targets), cond=cond)


def measured(problem, counts, seeds=SEEDS, points=1):
    """Errors of each count of rounds and seed."""
    found = {}
    for seed in seeds:
        keys, path = jax.random.split(jax.random.key(seed), 4), problem.field.path
        train, held, measure = (pool(problem, key, num) for key, num in zip(keys, problem.noises))
        for count in counts:
            fixed, error = learning.best_start(forms.starts(path, count, START, END), [measure])
            began = time.perf_counter()
            rows = forms.starts(path, count, START, END)
            if points > 1:
                rows = forms.parallel_starts(path, count, points, START, END)
            name, _ = learning.best_start(rows, [held])
            form, ways = forms.form_of(rows[name]), {}
            for way in problem.ways if points == 1 else (False,):
                more = {"consistent": way} | problem.options(count, points)
                moved, errors = least_squares.learn([train], [held], rows[name], keys[3], **more)
                ways[errors["best"]] = moved, errors, way
            delta, errors, way = ways[min(ways)]
            seconds = time.perf_counter() - began
            made = form.tables(form.widened(rows[name], 0), path, delta, 0.0, way)
            learned = least_squares.error([measure], lambda position, made=made: made)
            what = f"{count} evaluations" if points == 1 else f"{count} rounds of {points}"
            found[f"{what}, seed {seed}"] = {
                "best fixed": fixed,
                "its error": error,
                "error of learned rows": learned,
                "ratio": learned / error,
                "on training noises": errors["training"],
                "noises": problem.noises[0],
                "seconds of learning": seconds,
            }
            if isinstance(problem, Model):
                x = [least_squares.final(measure, made, range(i, i + 64)) for i in range(0, len(measure.x), 64)]
                found[f"{what}, seed {seed}"] |= problem.frechet(np.concatenate(x), np.asarray(measure.target))
            print(what, seed, found[f"{what}, seed {seed}"], flush=True)
    return found


def speed():
    """Five learned rows against five calls of the MNIST network, guided."""
    problem = Model(RUNS["mnist"])
    x, cond = problem.states(jax.random.key(0), 64)
    rows = forms.Multistep.widened(
        forms.starts(problem.field.path, 5, START, END)["adams_bashforth(order=4) on uniform"], 5
    )
    rng = np.random.default_rng(0)
    shapes = {"gaps": (1, 5), "weights": (1, 5, 5), "scale": (1, 5)}
    delta = {name: 0.01 * rng.standard_normal(shape) for name, shape in shapes.items()}
    solver = fj.solvers.Learned(rows=forms.Multistep.tables(rows, problem.field.path, delta, 0.0, False))
    bound = solver.bind(problem.field.path, solver.rows.times)
    call = jax.jit(lambda field, x, cond: field.velocity(0.5, x, cond))

    def calls():
        y = x
        for _ in range(5):
            y = call(problem.field, y, cond)
        return y

    seconds = alternate({"rows": lambda: fj.solve(problem.field, bound, x, cond=cond).x, "calls": calls}, rounds=7)
    return {"five learned rows / five network calls": ratio(seconds, "rows", "calls")}


def picture(known):
    """Errors of the best fixed solver and of learned rows, means over the seeds."""
    lines = {}
    for name, runs in known.items():
        for key, numbers in runs.items() if name != "speed" else ():
            lines.setdefault(f"{name}, {key.split(',')[0]}", []).append(
                (numbers["its error"], numbers["error of learned rows"])
            )
    figure = Figure(figsize=(7, 0.34 * len(lines) + 1), layout="constrained")
    axes = figure.subplots()
    for place, found in enumerate(lines.values()):
        fixed, learned = np.mean(found, axis=0)
        axes.plot([learned, fixed], [place, place], color="lightgrey", zorder=0)
        axes.scatter([fixed], [place], color="tab:grey", label=None if place else "best fixed solver")
        axes.scatter([learned], [place], color="tab:red", label=None if place else "learned rows")
    axes.set_yticks(range(len(lines)), lines)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("root mean square distance to the fine solution")
    figure.legend(loc="outside upper right", ncols=2)
    figure.savefig(RESULTS.parent.parent / "docs" / "figures" / "learned_rows.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("mixture", "parallel", "digits", "mnist", "speed"))
    parser.add_argument("--counts", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--points", type=int, default=1, help="of a round, on a trained model")
    args = parser.parse_args()
    path = RESULTS / f"learned_rows-{jax.default_backend()}.json"
    for part in args.parts:
        if part == "speed":
            found = {part: speed()}
        elif part in ("mixture", "parallel"):
            points = 1 if part == "mixture" else 2
            found = {
                f"mixture, {name}": measured(Law(of), args.counts, args.seeds, points)
                for name, of in (("linear", fj.paths.Linear()), ("VP", fj.paths.VP()))
            }
        else:
            problem = Model(RUNS[part], batch=1120 if part == "mnist" else 640)
            found = {part: measured(problem, args.counts, args.seeds, args.points)}
        known = json.loads(path.read_text())["numbers"] if path.exists() else {}
        known |= {name: known.get(name, {}) | numbers for name, numbers in found.items()}
        store("learned_rows", __doc__.splitlines()[0].removeprefix("Claim: "), known)
        picture(known)


if __name__ == "__main__":
    main()

"""Claim: this many samples it takes until a Frechet distance orders solvers of 5 evaluations.

    python benchmarks/frechet_samples.py digits mnist

The four solvers of `calibration.forms.KNOWN`, each on its best grid, that are nearest to a fine solution, Euler, and
the fine solution itself (50 steps) make samples from the same noises. Of these, n noises are drawn 200 times with
replacement, the same for all; of two neighbours in the order on all noises, the share of draws that agree is stored,
and the smallest n with a share of 0.95. MNIST is read from a file `mnist.npz` in the folder this is started from.
"""

import argparse
import itertools
import json

import jax
import numpy as np
from learned_rows import END, RUNS, START, Model
from measure import RESULTS, store

import flowjax as fj
from flowjax import evaluation
from flowjax.calibration import forms, least_squares
from flowjax.calibration.reference import reference

SIZES = {"digits": (100, 250, 500, 1000, 2000, 4000), "mnist": (50, 100, 200, 400, 800)}
COUNT, DRAWS = 5, 200


def chosen(problem, pool):
    """The four best solvers on their best grids, and Euler."""
    errors = {
        name: least_squares.error([pool], lambda position, rows=rows: rows)
        for name, rows in forms.starts(problem.field.path, COUNT, START, END).items()
    }
    best = {}
    for name in sorted(errors, key=errors.get):
        best.setdefault(name.split(" on ")[0], name)
    names = list(best.values())
    return [*names[:4], *(n for n in names[4:] if n.startswith("euler"))]


def measured(name):
    """Orders of one model."""
    problem, sizes = Model(RUNS[name]), SIZES[name]
    x, cond = problem.states(jax.random.key(0), sizes[-1])
    times = fj.times.uniform(5, START, END)

    def first(part, n):
        return jax.tree.map(lambda c: c[part : part + n], cond)

    fine = np.concatenate(
        [
            np.asarray(reference(problem.field, x[i : i + 64], times, first(i, 64), steps=50)[-1])
            for i in range(0, len(x), 64)
        ]
    )
    pool = least_squares.Pool(field=problem.field, x=x, target=jax.numpy.asarray(fine), cond=cond)
    few = least_squares.Pool(field=problem.field, x=x[:128], target=pool.target[:128], cond=first(0, 128))
    rows = forms.starts(problem.field.path, COUNT, START, END)
    made = {"fine solution": fine}
    for solver in chosen(problem, few):
        made[solver] = np.concatenate(
            [least_squares.final(pool, rows[solver], range(i, min(i + 64, len(x)))) for i in range(0, len(x), 64)]
        )
    extractor, real = problem.judge
    features = {
        key: extractor.features(np.asarray(s * problem.recipe.scale + problem.recipe.shift, np.float32))
        for key, s in made.items()
    }
    whole = {key: float(evaluation.frechet_distance(f, real)) for key, f in features.items()}
    order = sorted(whole, key=whole.get)
    rng, shares, spread = np.random.default_rng(0), {}, {}
    for n in sizes:
        drawn = []
        for _ in range(DRAWS):
            some = rng.integers(len(x), size=n)
            drawn.append([evaluation.frechet_distance(features[key][some], real) for key in order])
        drawn = np.array(drawn)
        shares[n] = (drawn[:, :-1] < drawn[:, 1:]).mean(0)
        spread[n] = float(drawn[:, 0].std())
    enough = {}
    for i, pair in enumerate(itertools.pairwise(order)):
        reached = [n for n in sizes if shares[n][i] >= 0.95]
        enough[" < ".join(pair)] = reached[0] if reached else f"more than {sizes[-1]}"
    return {
        "Frechet distances of all noises": {key: whole[key] for key in order},
        "samples that order neighbours": enough,
        "shares of draws with this order": {str(n): [float(s) for s in shares[n]] for n in sizes},
        "deviation of the least one over draws": {str(n): spread[n] for n in sizes},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=tuple(RUNS))
    args = parser.parse_args()
    path = RESULTS / f"frechet_samples-{jax.default_backend()}.json"
    known = json.loads(path.read_text())["numbers"] if path.exists() else {}
    for part in args.parts:
        known[part] = measured(part)
        print(part, json.dumps(known[part], indent=1), flush=True)
        store("frechet_samples", __doc__.splitlines()[0].removeprefix("Claim: "), known)


if __name__ == "__main__":
    main()

"""Claim: samples of the trained recipes are recognised as the class asked for, varied and no copies.

    python -m flowjax.train --config=digits --workdir=runs/digits && python benchmarks/recipes.py --workdir=runs/digits
    python benchmarks/recipes.py --workdir=benchmarks/models/mnist --run=runs/mnist

Stores the report of a complete run. A model that was exported is measured in the same way, on the noise of its run, and
shares the loss of --run if the weights of that run are its own.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from measure import store

import flowjax as fj
from flowjax import data
from flowjax.training import make_mesh
from flowjax.training.report import make_judge, measure

SAMPLES = 1000


def measured(workdir):
    """The numbers of the report of a run with the default seed and number of samples."""
    flow, recipe = fj.load(workdir)
    source, key = data.load(recipe.data["name"], **recipe.data["options"]), jax.random.split(jax.random.key(0), 3)[2]
    return measure(recipe, flow, source, SAMPLES, judge=make_judge(source), key=key, batch=200, mesh=make_mesh())


def loss(run, workdir):
    """The last reported loss of the run that `workdir` was exported from."""
    own, exported = (jax.tree.leaves(fj.load(folder)[0].network) for folder in (run, workdir))
    if not all(np.array_equal(np.float16(a), np.float16(b)) for a, b in zip(own, exported, strict=True)):
        raise SystemExit(f"the weights in {workdir} are not those of {run}")
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a complete run, or a model exported from one")
    parser.add_argument("--run", type=Path, help="the run that the model was exported from")
    args = parser.parse_args()
    extra = {"loss": loss(args.run, args.workdir)} if args.run else {}
    report = args.workdir / "report.json"
    numbers = json.loads(report.read_text()) if report.exists() else measured(args.workdir)
    store(args.workdir.name, __doc__.splitlines()[0].removeprefix("Claim: "), numbers | extra)


if __name__ == "__main__":
    main()

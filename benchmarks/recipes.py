"""Claim: samples of the trained recipes are recognised as the class asked for, varied and no copies.

    python -m flowjax.train --config=digits --workdir=runs/digits && python benchmarks/recipes.py --workdir=runs/digits
    python benchmarks/recipes.py --workdir=benchmarks/models/mnist --run=runs/mnist
    python benchmarks/recipes.py --workdir=runs/moons --against=runs/independent

Stores the report of a complete run. A model that was exported is measured in the same way, on the noise of its run, and
shares the loss of --run if the weights of that run are its own. Of pictures with texts that name colours it says how
often these are what is seen. --against sets the sweep of flowjax.evaluate beside that of another run.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from measure import store

import flowjax as fj
from flowjax import data
from flowjax.data import captions
from flowjax.recipe import Base
from flowjax.recipe.report import make_judge, measure
from flowjax.training import make_mesh

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


def swept(workdir):
    """Energy distances of a sweep."""
    rows = json.loads((workdir / "evaluation.json").read_text())["runs"][-1]["rows"]
    return {f"{row['solver']}, {row['evaluations']} evaluations": row["energy"] for row in rows}


def seen(x, texts):
    """Fractions of pictures that show the colours of their text, and of those with two that show them where it says."""
    names, palette = list(captions.COLOURS), np.array(list(captions.COLOURS.values()), np.float64)
    nearest = np.argmin(((x[..., None, :] - np.concatenate([palette, np.zeros((1, 3))])) ** 2).sum(-1), -1)
    share = (nearest[..., None] == np.arange(len(names))).mean((1, 2))  # of the picture, for each colour
    rows, columns = np.mgrid[: x.shape[1], : x.shape[2]]
    colours, places = [], []
    for picture, text, part in zip(nearest, texts, share, strict=True):
        asked = [names.index(word) for word in text.split() if word in names]
        colours.append(set(np.flatnonzero(part > 0.02)) == set(asked))
        if len(set(asked)) == 2 and colours[-1]:
            relation = next(relation for relation in captions.RELATIONS if f" {relation} " in text)
            first, second = ([columns[picture == i].mean(), rows[picture == i].mean()] for i in asked)
            places.append(np.dot(np.subtract(first, second), captions.RELATIONS[relation]) > 0)
    return {"colours": float(np.mean(colours)), "places": float(np.mean(places))}


def captioned(workdir):
    """`seen` of samples for the texts of the data, and of the data."""
    flow, recipe = fj.load(workdir)
    some = data.load(recipe.data["name"], **recipe.data["options"]).take(SAMPLES)
    cond = recipe.matching(some, SAMPLES)
    samples = recipe.generate(recipe.field(flow), SAMPLES, key=jax.random.key(1), cond=cond)
    texts = some.fields["text"].tolist()
    return {"seen in samples": seen(samples.x, texts), "seen in data": seen(np.asarray(some.x, np.float64), texts)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a complete run, or a model exported from one")
    parser.add_argument("--run", type=Path, help="the run that the model was exported from")
    parser.add_argument("--against", type=Path, help="another run; both have an evaluation.json")
    args = parser.parse_args()
    extra = {"loss": loss(args.run, args.workdir)} if args.run else {}
    if args.against:
        extra["energy distance"] = {run.name: swept(run) for run in (args.workdir, args.against)}
    if Base.load(args.workdir).data["name"] == "captions":
        extra |= captioned(args.workdir)
    report = args.workdir / "report.json"
    numbers = json.loads(report.read_text()) if report.exists() else measured(args.workdir)
    store(args.workdir.name, __doc__.splitlines()[0].removeprefix("Claim: "), numbers | extra)


if __name__ == "__main__":
    main()

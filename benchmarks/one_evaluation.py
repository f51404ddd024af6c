"""Claim: one evaluation of MeanFlow has at most 1.5 times the Frechet distance of a 50-step flow of the same cost.

    python benchmarks/one_evaluation.py --data=digits --runs=runs/one_evaluation/digits
    python benchmarks/one_evaluation.py --data=mnist --runs=runs/one_evaluation/mnist

With `configs/meanflow.py` and three seeds it trains a flow (`meanflow:flow`), a network of average velocities from
scratch (`meanflow`), and one that goes on from the flow for a quarter of the steps (`meanflow:continued`): the same
network, guided by 1.25, the flow with as many more steps as its step is cheaper (`mean_flow_step.py`). Runs that are
complete are taken as they are. MNIST is read from a file `mnist.npz` with `images` and `labels` in the folder this is
started from. Distances are those of 2,000 samples, in the features of a classifier trained on the data.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from measure import RESULTS, store

from flowjax.evaluation import pictures
from flowjax.recipe import Request, load_run

SEEDS = (0, 1, 2)
SCALE = 1.25
MNIST = ["--config.data=npz(path='mnist.npz')"]
LARGE = ["--config.network.options.image_shape=28,28,1", "--config.network.options.patch=7"]
GROUPS = {"digits": ([], []), "mnist": ([*MNIST, *LARGE], MNIST)}


def main_of(name, workdir, *arguments):
    """Runs a main of the package."""
    command = [sys.executable, "-m", f"flowjax.{name}", f"--workdir={workdir}", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train(workdir, *arguments):
    """Trains, or goes on; seconds that the run took."""
    report = workdir / "report.json"
    if not report.exists():
        main_of("train", workdir, *arguments)
    return json.loads(report.read_text())["wall_seconds"]


def measured(workdir, solver, guidance, *steps, times=None):
    """Frechet distance and accuracy by number of steps, on the times of the recipe or others."""
    listed = ",".join(map(str, steps))
    main_of(
        "evaluate",
        workdir,
        f"--solvers={solver}",
        f"--steps={listed}",
        f"--guidance={guidance}",
        "--seed=1",
        "--data=recipe",
        *([] if times is None else [f"--times={times}"]),
    )
    runs = json.loads((workdir / "evaluation.json").read_text())["runs"]
    rows = {row["steps"]: row for row in runs[-1]["rows"] if row["solver"] == solver and row["guidance"] == guidance}
    distance = next(name for name in rows[steps[0]] if name.startswith("FD["))
    return [(rows[count][distance], rows[count]["accuracy"]) for count in steps]


def compared(data, runs, seed):
    """The numbers of one seed."""
    flow, (whole, begun) = runs / f"flow_{seed}", GROUPS[data]
    seeded = f"--config.seed={seed}"
    numbers = {"flow: seconds": train(flow, "--config=meanflow:flow", seeded, *whole)}
    (one, _), (fifty, accuracy) = measured(flow, "euler", SCALE, 1, 50)
    numbers |= {"flow: 1 Euler step": one, "flow: 50 Euler steps": fifty, "flow: accuracy, 50 steps": accuracy}
    teacher = f"--config.teacher.options.workdir={flow}"
    ways = {
        "scratch": ["--config=meanflow", *whole],
        "continued": ["--config=meanflow:continued", teacher, *begun],
    }
    for name, arguments in ways.items():
        workdir = runs / f"{name}_{seed}"
        numbers[f"{name}: seconds"] = train(workdir, *arguments, seeded)
        (first, accuracy), (second, _) = measured(workdir, "jump", 1.0, 1, 2)
        numbers |= {
            f"{name}: 1 evaluation": first,
            f"{name}: 2 evaluations": second,
            f"{name}: accuracy, 1 evaluation": accuracy,
            f"{name}: 1 evaluation / 50 steps of the flow": first / fifty,
            f"{name}: 1 Euler step of the flow / 1 evaluation": one / first,
        }
    return numbers


def strip(name, runs, rows):
    """A picture in the docs: a row of 20 samples for each (run, solver, guidance, steps)."""
    shown = []
    for run, solver, guidance, steps in rows:
        networks, recipe = load_run(runs / run)
        request = Request(num=20, seed=1, batch=20, solver=solver, guidance=guidance, steps=steps)
        shown.append(recipe.sample(networks, request).x)
    path = RESULTS.parent.parent / "docs" / "figures" / f"{name}.png"
    zoom = max(1, 24 // recipe.shape[0])
    pictures.grid(np.concatenate(shown), path, low=recipe.low, high=recipe.high, columns=20, zoom=zoom)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=GROUPS, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    args = parser.parse_args()
    numbers = {}
    for seed in SEEDS:
        numbers[f"seed {seed}"] = compared(args.data, args.runs, seed)
        store(f"one_evaluation_{args.data}", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    rows = [("flow_0", "euler", SCALE, 1), ("flow_0", "euler", SCALE, 50)]
    rows += [(f"{name}_0", "jump", 1.0, steps) for name in ("scratch", "continued") for steps in (1, 2)]
    strip(f"one_evaluation_{args.data}", args.runs, rows)


if __name__ == "__main__":
    main()

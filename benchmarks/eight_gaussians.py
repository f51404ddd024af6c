"""Claim: a flow from `configs/toy2d.py` is within an energy distance of 0.005 of eight Gaussians, on three seeds.

Energy distance of 10,000 samples to 10,000 fresh points, against that between two sets of fresh points; the Gaussians
lie on a circle of radius 4.
"""

import argparse
import subprocess
import sys

import jax
import numpy as np
from measure import RESULTS, store

import flowjax as fj
from flowjax import data
from flowjax.evaluation import energy_distance, pictures

NUM = 10_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/eight_gaussians")
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    numbers = {"training steps": args.steps, "energy distance": {}, "energy distance of real points": {}}
    for seed in range(3):
        workdir = f"{args.workdir}{seed}"
        command = [sys.executable, "-m", "flowjax.train", "--config=toy2d", f"--workdir={workdir}"]
        options = [f"seed={seed}", "data.options.law=eight_gaussians", f"train.steps={args.steps}"]
        subprocess.run([*command, *(f"--config.{option}" for option in options)], check=True)
        flow, recipe = fj.load(workdir)
        x = recipe.generate(flow, NUM, key=jax.random.key(seed), batch=NUM).x
        first, second = (data.toy2d("eight_gaussians", size=NUM, seed=100 + 2 * seed + i).x for i in range(2))
        numbers["energy distance"][f"seed {seed}"] = float(energy_distance(np.asarray(x), first))
        numbers["energy distance of real points"][f"seed {seed}"] = float(energy_distance(second, first))
        if seed == 0:
            figures = RESULTS.parent.parent / "docs" / "figures"
            figures.mkdir(exist_ok=True)
            pictures.density(np.asarray(x), first, figures / "eight_gaussians.png")
    store("eight_gaussians", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

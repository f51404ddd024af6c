"""Claim: what makes latent consistency better in few evaluations, tried one by one on the digits.

    python benchmarks/consistency_ways.py --runs=runs/consistency_ways

Students of one run of `configs/digits.py`, by `configs/lcm.py` with a third of its steps, one seed; "longer" has all.
Runs that are complete are taken as they are. Frechet distances of 2,000 samples, guided by 1.4.
"""

import argparse
from pathlib import Path

from measure import store
from one_evaluation import measured, train

OBJECTIVE, SHORT = "--config.objective.options", "--config.train.steps=900"
WAYS = {
    "plain": [SHORT],
    "squared": [SHORT, f"{OBJECTIVE}.metric=l2"],
    "wide": [SHORT, f"{OBJECTIVE}.c=0.1"],
    "20 intervals": [SHORT, f"{OBJECTIVE}.grid=uniform(n=20)", "--config.sample.times=skipping(of=20)"],
    "12 intervals": [SHORT, f"{OBJECTIVE}.grid=uniform(n=12)", "--config.sample.times=skipping(of=12)"],
    "longer": [],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    runs = parser.parse_args().runs.resolve()
    train(runs / "teacher", "--config=digits")
    numbers = {}
    for name, arguments in WAYS.items():
        workdir = runs / name.replace(" ", "_")
        train(workdir, "--config=lcm", f"--config.teacher.options.workdir={runs / 'teacher'}", *arguments)
        found = measured(workdir, "consistency", 1.4, 1, 2, 4)
        numbers[name] = {f"{count} evaluations": one[0] for count, one in zip((1, 2, 4), found, strict=True)}
    store("consistency_ways", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

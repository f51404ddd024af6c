"""Claim: at 5 evaluations a searched schedule is closer to the reference than every fixed solver, on three seeds.

    python benchmarks/five_evaluations.py --workdir=runs/digits
    python benchmarks/five_evaluations.py --workdir=benchmarks/models/mnist

Each seed has its own search, its own compensation ratios and its own noises, none of them those of the search. Fixed
solvers are all deterministic ones of `fast_solvers.py`, on equal and on quadratic times and on those of their authors.
"""

import argparse
from pathlib import Path

from fast_solvers import FAMILIES, OWN, S, Sweep, find_schedule
from measure import store

from flowjax.calibration import compensation

COUNT = 5


def errors(workdir, num, rounds, seed):
    """The errors of the calibrated solvers, and those of all fixed ones, by name."""
    sweep = Sweep(workdir, num, 500, "uniform", seed)
    schedule, mean = find_schedule(sweep, rounds)
    sweep.add("calibrated", "searched schedule", S.USF(schedule=schedule, mean=mean), schedule.times)
    x, cond = sweep.states(3, 10)
    for times in ("uniform", "quadratic"):
        grid = sweep.grid(COUNT, times)
        ratios = compensation.search(sweep.field, S.DCSolver(order=3), x, grid, cond, iterations=20)
        sweep.add("calibrated", f"dc_solver, {times}", S.DCSolver(order=3, ratios=ratios.tolist()), grid)
    for family, members in FAMILIES.items():
        for name, solver in members.items():
            if family == "stochastic" or solver is None:
                continue
            for times in dict.fromkeys(("uniform", "quadratic", *OWN.get(name, ()))):
                grid = sweep.grid_of(solver, times, COUNT)
                if grid is not None:
                    sweep.add("fixed", f"{name}, {times}", solver, grid, registers=8)
    found = {kind: {} for kind in ("calibrated", "fixed")}
    for row in sweep.rows:
        found[row["family"]][row["solver"]] = row["error"]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num", type=int, default=100, help="samples")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of the schedule search")
    args = parser.parse_args()
    numbers = {"model": Path(args.workdir).name, "samples": args.num}
    for seed in (1, 2, 3):
        found = errors(args.workdir, args.num, args.rounds, seed)
        best = min(found["fixed"], key=found["fixed"].get)
        numbers[f"seed {seed}"] = found["calibrated"] | {f"best fixed: {best}": found["fixed"][best]}
    store(f"five_evaluations_{numbers['model']}", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

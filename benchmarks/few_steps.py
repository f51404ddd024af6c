"""Claim: students of one teacher in few evaluations: rectified, latent consistency, its adapters, FlowTurbo's refiner.

    python benchmarks/few_steps.py --data=digits --runs=runs/few_steps/digits
    python benchmarks/few_steps.py --data=mnist --runs=runs/few_steps/mnist

Three seeds of each student, by their configs; the teacher is a run of `configs/digits.py`, or the model of MNIST in
`benchmarks/models`, for which MNIST is read from a file `mnist.npz` in the folder this is started from. All are guided
by 1.4. Runs that are complete are taken as they are. Times are those of a whole block of samples, in alternation.
"""

import argparse
import shutil
from pathlib import Path

import jax
from measure import RESULTS, alternate, ratio, store
from one_evaluation import MNIST, SEEDS, main_of, measured, train

from flowjax.recipe import Request, load_run

SCALE = 1.4
GROUPS = {"digits": (None, []), "mnist": (RESULTS.parent / "models" / "mnist", MNIST)}
BLOCKS = ("H1P5R3", "H2P4R2", "H3P3R2")


def turbo(blocks):
    """The spec of a schedule."""
    return f"flowturbo(blocks='{blocks}', refiner=refiner)"


def compared(teacher, data, runs, seed):
    """Distances of the students of one seed."""
    seeded, of_teacher = f"--config.seed={seed}", f"--config.teacher.options.workdir={teacher}"
    pairs = runs / f"pairs_{seed}"
    main_of("sample", teacher, f"--pairs={pairs}", "--num=20000", f"--seed={seed + 1}", f"--guidance={SCALE}")
    students = {
        "rectified": ["--config=rectified", of_teacher, f"--config.coupling.options.path={pairs}"],
        "lcm": ["--config=lcm", of_teacher],
        "lcm_lora": ["--config=lcm_lora", f"--config.base.options.workdir={teacher}"],
        "refiner": ["--config=refiner", of_teacher],
    }
    numbers = {}
    for name, arguments in students.items():
        numbers[f"{name}: seconds"] = train(runs / f"{name}_{seed}", *arguments, *data, seeded)
    asked = {
        "rectified": ("ddim", 1.0, (1, 2)),
        "lcm": ("consistency", SCALE, (1, 2, 4)),
        "lcm_lora": ("consistency", 1.0, (1, 2, 4)),
    }
    for name, (solver, guidance, steps) in asked.items():
        found = measured(runs / f"{name}_{seed}", solver, guidance, *steps)
        numbers |= {f"{name}: {count} evaluations": one[0] for count, one in zip(steps, found, strict=True)}
    for blocks in BLOCKS:
        [(distance, _)] = measured(runs / f"refiner_{seed}", turbo(blocks), SCALE, sum(int(c) for c in blocks[1::2]))
        numbers[f"FlowTurbo {blocks}"] = distance
    return numbers


def times(folder):
    """Time of FlowTurbo's schedules over that of eight steps of Heun."""
    networks, recipe = load_run(folder)
    specs = {"heun": ("heun", 8), **{blocks: (turbo(blocks), None) for blocks in BLOCKS}}

    def run(solver, steps):
        return jax.numpy.asarray(
            recipe.sample(networks, Request(num=200, solver=solver, steps=steps, guidance=SCALE)).x[:1]
        )

    seconds = alternate({name: lambda spec=spec: run(*spec) for name, spec in specs.items()}, rounds=11)
    return {f"time of {blocks} / 8 steps of Heun": ratio(seconds, blocks, "heun") for blocks in BLOCKS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=GROUPS, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    args = parser.parse_args()
    model, data = GROUPS[args.data]
    teacher = args.runs / "teacher"  # its evaluation is written beside it
    if model is None:
        train(teacher, "--config=digits")
    elif not teacher.exists():
        shutil.copytree(model, teacher)
    steps = {"euler": (1, 2, 4, 50), "heun": (4, 8)}
    numbers = {
        f"teacher, {count} steps of {solver}": distance
        for solver, counts in steps.items()
        for count, (distance, _) in zip(counts, measured(teacher, solver, SCALE, *counts), strict=True)
    }
    numbers |= {f"seed {seed}": compared(teacher, data, args.runs, seed) for seed in SEEDS}
    numbers |= times(args.runs / "refiner_0")
    store(f"few_steps_{args.data}", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

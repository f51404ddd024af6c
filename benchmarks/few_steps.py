"""Claim: students of one teacher in few evaluations: rectified, latent consistency, its adapters, FlowTurbo's refiner.

    python benchmarks/few_steps.py --data=digits --runs=runs/few_steps/digits
    python benchmarks/few_steps.py --data=mnist --runs=runs/few_steps/mnist

Three seeds of each student, by their configs; the teacher is a run of `configs/digits.py`, or the model of MNIST in
`benchmarks/models`, whose students train for 400 steps; MNIST is read from a file `mnist.npz` in the folder this is
started from. All are guided by 1.4, pairs are those of eight steps of Heun. Runs that are complete are taken as they
are. Distances are those of 2,000 samples, times those of 200 samples, in alternation.
"""

import argparse
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from measure import RESULTS, alternate, ratio, store
from one_evaluation import MNIST, SEEDS, main_of, measured, strip, train

from flowjax.recipe import Request, load_run

SCALE = 1.4
BLOCKS = ("H1P7R1", "H1P6R2")


class Group(NamedTuple):
    """A data set: the model that teaches (None: trained here), what students need to know, and the number of pairs."""

    model: Path | None
    arguments: list[str]
    pairs: int


GROUPS = {
    "digits": Group(None, [], 10000),
    "mnist": Group(RESULTS.parent / "models" / "mnist", [*MNIST, "--config.train.steps=400"], 6000),
}


def turbo(blocks):
    """The spec of a schedule, as evaluations print it."""
    return f"flowturbo(blocks={blocks}, refiner=refiner)"


def compared(teacher, group, runs, seed):
    """Distances of the students of one seed."""
    of_teacher = f"--config.teacher.options.workdir={teacher}"
    students = {
        "rectified": ["--config=rectified", of_teacher, f"--config.coupling.options.path={runs / 'pairs'}"],
        "lcm": ["--config=lcm", of_teacher],
        "lcm_lora": ["--config=lcm_lora", f"--config.base.options.workdir={teacher}"],
        "refiner": ["--config=refiner", of_teacher],
    }
    asked = {
        "rectified": ("ddim", 1.0, (1, 2)),
        "lcm": ("consistency", SCALE, (1, 2, 4)),
        "lcm_lora": ("consistency", 1.0, (1, 2, 4)),
    }
    numbers = {}
    for name, arguments in students.items():
        workdir = runs / f"{name}_{seed}"
        numbers[f"{name}: seconds"] = train(workdir, *arguments, *group.arguments, f"--config.seed={seed}")
        if name in asked:
            solver, guidance, steps = asked[name]
            found = measured(workdir, solver, guidance, *steps)
            numbers |= {f"{name}: {count} evaluations": one[0] for count, one in zip(steps, found, strict=True)}
    return numbers | refined(workdir)


def refined(workdir):
    """Distances of FlowTurbo's schedules, and of Heun, on equal times and on the quadratic ones of the config."""
    solvers = {"8 steps of Heun": ("heun", 8)} | {f"FlowTurbo {blocks}": (turbo(blocks), 9) for blocks in BLOCKS}
    return {
        f"{name}, {times}": measured(workdir, solver, SCALE, steps, times=times)[0][0]
        for times in ("uniform", "quadratic")
        for name, (solver, steps) in solvers.items()
    }


def share(workdir):
    """Parameters of a run of adapters over those of the network they are for."""
    _, recipe = load_run(workdir)
    builds = (recipe.stored()["network"], recipe.build_network)
    own, whole = (jax.eval_shape(lambda build=build: build(nnx.Rngs(0))) for build in builds)
    return sum(leaf.size for leaf in jax.tree.leaves(own)) / sum(leaf.size for leaf in jax.tree.leaves(whole))


def times(workdir):
    """Time of FlowTurbo's schedules over that of eight steps of Heun."""
    networks, recipe = load_run(workdir)
    specs = {"heun": ("heun", 8), **{blocks: (turbo(blocks), None) for blocks in BLOCKS}}

    def run(solver, steps):
        recipe.sample(networks, Request(num=200, batch=200, solver=solver, steps=steps, guidance=SCALE))

    seconds = alternate({name: lambda spec=spec: run(*spec) for name, spec in specs.items()}, rounds=5)
    return {f"time of {blocks} / 8 steps of Heun": ratio(seconds, blocks, "heun") for blocks in BLOCKS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=GROUPS, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    args = parser.parse_args()
    group = GROUPS[args.data]
    runs = args.runs.resolve()
    teacher = runs / "teacher"  # its evaluation is written beside it
    if group.model is None:
        train(teacher, "--config=digits")
    elif not teacher.exists():
        shutil.copytree(group.model, teacher)
    main_of(
        "sample",
        teacher,
        f"--pairs={runs / 'pairs'}",
        f"--num={group.pairs}",
        "--seed=1",
        "--solver=heun",
        "--steps=8",
        f"--guidance={SCALE}",
    )
    numbers = {
        f"teacher, {steps} steps of {solver}": measured(teacher, solver, SCALE, steps)[0][0]
        for solver, steps in (("euler", 1), ("euler", 4), ("heun", 8))
    }
    for seed in SEEDS:
        numbers[f"seed {seed}"] = compared(teacher, group, runs, seed)
        store(f"few_steps_{args.data}", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    numbers["parameters, LCM-LoRA / network"] = share(runs / "lcm_lora_0")
    numbers |= times(runs / "refiner_0")
    store(f"few_steps_{args.data}", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    rows = [("teacher", "euler", SCALE, 1), ("teacher", "heun", SCALE, 8), ("rectified_0", "ddim", 1.0, 1)]
    rows += [("lcm_0", "consistency", SCALE, count) for count in (1, 4)] + [("lcm_lora_0", "consistency", 1.0, 4)]
    strip(f"few_steps_{args.data}", runs, [*rows, ("refiner_0", turbo(BLOCKS[0]), SCALE, None)])


if __name__ == "__main__":
    main()

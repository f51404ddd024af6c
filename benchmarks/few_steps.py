"""Claim: all students of one teacher side by side: what they cost to train and to sample, and how good they are.

    python benchmarks/few_steps.py --data=digits --runs=runs/few_steps/digits
    python benchmarks/few_steps.py --data=mnist --runs=runs/few_steps/mnist

Three seeds of each student, by their configs: rectified, latent consistency and its adapters, FlowTurbo's refiner,
policies (ArcFlow with 1, 4 and 16 components and its adapters), distribution matching (DMD2), and MeanFlow, which has
no teacher. The teacher is a run of `configs/digits.py`, or the model of MNIST in `benchmarks/models`, whose students
train for fewer steps; MNIST is read from a file `mnist.npz` in the folder this is started from. Students of guided
teachers learn from a guidance of 1.4 (DMD2 1.2), pairs are those of eight steps of Heun; policies and DMD2 read no more
of the data than shape and labels. Runs that are complete are taken as they are. Frechet distances and accuracies are
those of 2,000 samples, the spread is theirs within a class over that of the data, the error of a policy its root mean
square distance from 30 steps of Heun from the same noise, over the scale of the data. Times are those of 200 samples,
in alternation.
"""

import argparse
import functools
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from measure import RESULTS, alternate, ratio, store
from ml_collections import ConfigDict
from one_evaluation import LARGE, MNIST, SEEDS, main_of, strip, train

from flowjax import data
from flowjax.evaluation import frechet_distance
from flowjax.evaluation.report import within_class_spread
from flowjax.recipe import Request, load_run
from flowjax.recipe.report import make_judge
from flowjax.tasks import make_task
from flowjax.training import make_mesh

SCALE = 1.4
BLOCKS = ("H1P7R1", "H1P6R2")
REFINER = "refiner"
BLANK = "--config.data=blank(shape={}, num_classes=10)"


class Student(NamedTuple):
    """A student: config, option that names its teacher, how it is sampled, further options, whether it needs data."""

    config: str
    run: str | None
    solver: str
    guidance: float
    steps: tuple[int, ...]
    options: tuple[str, ...] = ()
    data: bool = True


def policy(components, argument="", run="teacher"):
    """ArcFlow with so many components."""
    option = f"--config.objective.options.policy=momentum(components={components})"
    return Student(f"arcflow{argument}", run, "policy", 1.0, (2, 3, 4), (option,), data=False)


STUDENTS = {
    "rectified": Student("rectified", "teacher", "ddim", 1.0, (1, 2)),
    "lcm": Student("lcm", "teacher", "consistency", SCALE, (1, 2, 4)),
    "lcm_lora": Student("lcm_lora", "base", "consistency", 1.0, (1, 2, 4)),
    REFINER: Student("refiner", "teacher", "", SCALE, ()),
    "linear": policy(1),
    "arcflow_4": policy(4),
    "arcflow": policy(16),
    "arcflow_lora": policy(16, ":lora", "base"),
    "dmd2": Student("dmd2", "teacher", "consistency", 1.0, (1,), data=False),
    "meanflow": Student("meanflow", None, "jump", 1.0, (1, 2)),
}
SHORT = ["--config.train.steps=400"]
POLICIES = ["--config.train.steps=200", "--config.train.batch=32", "--config.objective.options.decay=70"]
SHORTER = {
    "meanflow": LARGE,
    **dict.fromkeys(("linear", "arcflow_4", "arcflow"), POLICIES),
    # Its last layer is a larger part of the network than that of the digits.
    "arcflow_lora": [*POLICIES, "--config.objective.options.policy=momentum(components=8)"],
}
"""What differs for MNIST."""
GROUPS = {"digits": (None, [], 10000), "mnist": (RESULTS.parent / "models" / "mnist", MNIST, 6000)}
"""The model that teaches (None: trained here), what every run needs to know, and the number of pairs."""


def turbo(blocks):
    """The spec of a schedule, as evaluations print it."""
    return f"flowturbo(blocks={blocks}, refiner=refiner)"


@functools.cache
def loaded(workdir):
    """A run, ready to sample."""
    return load_run(workdir)


def sampled(workdir, solver, guidance, steps, num=2000, **more):
    """Samples of a run from the same noise."""
    networks, recipe = loaded(workdir)
    request = dict(num=num, seed=1, batch=200, solver=solver, guidance=guidance, steps=steps)
    return recipe.sample(networks, Request(**request, **more))


class Measure:
    """Numbers of samples, by the data of a run."""

    def __init__(self, workdir):
        self.source = data.of_run(loaded(workdir)[1], workdir, "recipe")
        self.judge = make_judge(self.source)
        self.real = self.judge.features(np.asarray(self.source.take(2000, 1).x))
        self.spread = within_class_spread(np.asarray(self.source.x), self.source.cond)
        self.fine = sampled(workdir, "heun", SCALE, 30, num=1000).x

    def __call__(self, name, samples):
        """Frechet distance, accuracy and spread."""
        distance = frechet_distance(self.judge.features(samples.x), self.real)
        spread = within_class_spread(samples.x, samples.cond)
        squares = np.array([(spread[c] ** 2, real**2) for c, real in self.spread.items()]).mean(0)
        accuracy = float((self.judge.predict(samples.x) == samples.cond).mean())
        numbers = {"FD": distance, "accuracy": accuracy, "spread": float(np.sqrt(squares[0] / squares[1]))}
        return {f"{name}: {key}": value for key, value in numbers.items()}

    def error(self, workdir, solver, guidance, steps):
        """Distance from the teacher's fine samples."""
        apart = sampled(workdir, solver, guidance, steps, num=1000).x - self.fine
        return float(np.sqrt(np.mean(apart**2))) / self.source.scale


def parameters(workdir):
    """How many parameters a run trains, a partner's too."""
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    source = data.load(config.data.name, **config.data.options)
    parts = make_task(config, source, make_mesh(), jax.random.key(0)).networks().values()
    shapes = [jax.eval_shape(lambda part=part: part.build(nnx.Rngs(0))) for part in parts]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def compared(teacher, name, runs, seed, measure, students):
    """Numbers of the students of one seed."""
    numbers, own = {}, GROUPS[name][1]
    for student in students:
        config, run, solver, guidance, steps, options, learns = STUDENTS[student]
        workdir = runs / f"{student}_{seed}"
        given = own if learns else [BLANK.format(measure.source.x.shape[1:])]
        arguments = [f"--config={config}", *options, *given, f"--config.seed={seed}"]
        if run is not None:
            arguments.append(f"--config.{run}.options.workdir={teacher}")
        if student == "rectified":
            arguments.append(f"--config.coupling.options.path={runs / 'pairs'}")
        if name == "mnist":
            arguments += SHORTER.get(student, SHORT)
        numbers[f"{student}: seconds"] = train(workdir, *arguments)
        for count in steps:
            numbers |= measure(f"{student}, {count}", sampled(workdir, solver, guidance, count))
            if solver == "policy":
                numbers[f"{student}, {count}: error"] = measure.error(workdir, solver, guidance, count)
        if seed == SEEDS[0]:
            numbers[f"{student}: parameters"] = parameters(workdir)
    for times in ("uniform", "quadratic") if REFINER in students else ():
        for blocks in BLOCKS:
            samples = sampled(runs / f"{REFINER}_{seed}", turbo(blocks), SCALE, 9, times=times)
            numbers |= measure(f"FlowTurbo {blocks}, {times}", samples)
    loaded.cache_clear()
    return numbers


def times(workdir):
    """Time of FlowTurbo's schedules over that of eight steps of Heun."""
    networks, recipe = load_run(workdir)
    specs = {"heun": ("heun", 8), **{blocks: (turbo(blocks), None) for blocks in BLOCKS}}

    def run(solver, steps):
        recipe.sample(networks, Request(num=200, batch=200, solver=solver, steps=steps, guidance=SCALE))

    seconds = alternate({name: lambda spec=spec: run(*spec) for name, spec in specs.items()}, rounds=5)
    return {f"time of {blocks} / 8 steps of Heun": ratio(seconds, blocks, "heun") for blocks in BLOCKS}


def stored(name):
    """The numbers of an earlier run of this."""
    path = RESULTS / f"{name}-{jax.default_backend()}.json"
    return json.loads(path.read_text())["numbers"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=GROUPS, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--students", nargs="*", choices=STUDENTS, help="those to measure; others keep their numbers")
    args = parser.parse_args()
    (model, _, num), runs = GROUPS[args.data], args.runs.resolve()
    result = f"few_steps_{args.data}"
    students, numbers = (list(STUDENTS), {}) if args.students is None else (args.students, stored(result))
    teacher = runs / "teacher"
    if model is None:
        train(teacher, "--config=digits")
    elif not teacher.exists():
        shutil.copytree(model, teacher)
    drawn = [f"--pairs={runs / 'pairs'}", f"--num={num}", "--seed=1", "--solver=heun", "--steps=8"]
    main_of("sample", teacher, *drawn, f"--guidance={SCALE}")
    measure = Measure(teacher)
    for solver, steps, grid in (
        ("euler", 1, None),
        ("euler", 2, None),
        ("euler", 4, None),
        ("heun", 8, None),
        ("heun", 8, "quadratic"),
    ):
        name = f"teacher, {steps} steps of {solver}" + (f", {grid}" if grid else "")
        numbers |= measure(name, sampled(teacher, solver, SCALE, steps, times=grid))
        if grid is None:
            numbers[f"{name}: error"] = measure.error(teacher, solver, SCALE, steps)
    claim = __doc__.splitlines()[0].removeprefix("Claim: ")
    for seed in SEEDS:
        measured = compared(teacher, args.data, runs, seed, measure, students)
        numbers[f"seed {seed}"] = numbers.get(f"seed {seed}", {}) | measured
        store(result, claim, numbers)
    if REFINER in students:
        store(result, claim, numbers | times(runs / f"{REFINER}_0"))
    rows = [("teacher", "euler", SCALE, 1), ("teacher", "euler", SCALE, 2), ("teacher", "heun", SCALE, 8)]
    for student in (name for name in STUDENTS if (runs / f"{name}_0" / "report.json").exists()):
        _, _, solver, guidance, steps, *_ = STUDENTS[student]
        way, count = (turbo(BLOCKS[0]), None) if student == REFINER else (solver, steps[0])
        rows.append((f"{student}_0", way, guidance, count))
    strip(result, runs, rows)


if __name__ == "__main__":
    main()

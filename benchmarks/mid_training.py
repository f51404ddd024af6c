"""Claim: stages of MF-RAE against MeanFlow from scratch at the same cost: one evaluation, and peaks of the gradient.

    python benchmarks/mid_training.py --data=digits --runs=runs/mid_training/digits
    python benchmarks/mid_training.py --data=fashion --runs=runs/mid_training/fashion

Three seeds of `configs/mf_rae.py`, a smaller network in fewer steps: a teacher, mid-training, distillation, and the
teacher's network with a span trained by MeanFlow from random weights. Costs are calls of a network for one example, a
backward pass counted as two; MeanFlow from scratch takes as many steps as teacher, mid-training and distillation cost
together. Compared are the Frechet distances of 2,000 samples in one and two evaluations. For the norm of the gradient,
before it is clipped, its peak in the first 200 steps of MeanFlow from random weights is compared with that from the
weights of mid-training (`begun`, on the same loss). Fashion-MNIST is learned on 4x4 tokens of 64 channels, of a
representation autoencoder by `configs/rae.py` with patches of 7x7 pixels that is trained first; digits without one.
Runs that are complete are taken as they are. With `--scale=0.01` every run has a hundredth of its steps, and nothing is
stored.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from measure import store
from one_evaluation import SEEDS, main_of, measured, strip, train

from flowjax.data import load
from flowjax.recipe.codec import latents
from flowjax.recipe.runs import Run
from flowjax.training import make_mesh

NAME = "mid_training_{}"
SIZES = {"width": 48, "depth": 3, "heads": 4, "head_width": 96, "head_depth": 1, "head_heads": 4}
NETWORK = [f"--config.network.options.{name}={value}" for name, value in SIZES.items()]
SHAPES = {"digits": ["image_shape=8,8,1", "patch=2"], "fashion": ["image_shape=4,4,64"]}
SHIFTS = {"digits": 1.0, "fashion": 4.0}
PATCH = "--config.network.options.patch=7"
STEPS = {"teacher": 3000, "cmt": 500, "mfd": 1500}
ROWS = 64
BOOTSTRAP = "mean_flow_distillation(velocity=conditional, label_dropout=0.1, power=0.5, shift={})"
COSTS = {"teacher": ROWS * 3, "cmt": 8 * 15 + 8 * 8 * 3, "mfd": ROWS * (1 + 3 + 2), "scratch": ROWS * (3 + 2)}
"""Of one step: the student's own calls with their backward pass, those of differences, those of the teacher."""
STEPS["scratch"] = round(sum(steps * COSTS[stage] for stage, steps in STEPS.items()) / COSTS["scratch"])
STEPS["begun"] = 200


def options(stage, args, seed):
    """The command line of a stage, or of MeanFlow from scratch."""
    folder = args.runs.resolve()
    config = {"scratch": "teacher", "begun": "mfd"}.get(stage, stage)
    given = [f"--config=mf_rae:{config}", f"--config.seed={seed}"]
    given += [
        f"--config.train.steps={max(2, round(args.scale * STEPS[stage]))}",
        "--config.train.report_every=1",
        "--config.train.sample_every=10000",
    ]
    given += ["--config.data=digits"] if args.data == "digits" else []
    shift = SHIFTS[args.data]
    if stage in ("begun", "scratch"):
        given.append(f"--config.objective={BOOTSTRAP.format(shift)}")
    else:
        law = ".times.options" if stage == "teacher" else ""
        given.append(f"--config.objective.options{law}.shift={shift}")
    if stage == "teacher":
        given.append(f"--config.sample.times.options.shift={shift}")
    if stage in ("teacher", "scratch"):
        codec = "none" if args.data == "digits" else f"run(workdir={folder / 'decoder'}, statistics=elements)"
        shape = [f"--config.network.options.{option}" for option in SHAPES[args.data]]
        given += [f"--config.codec={codec}", *NETWORK, *shape]
    else:
        given.append(f"--config.teacher.options.workdir={folder / f'teacher_{seed}'}")
    if stage == "begun":  # the rate of scratch in its first steps
        given += ["--config.optimizer.options.rate=5e-4", "--config.optimizer.options.decay=constant"]
    if stage in ("mfd", "begun"):
        given.append(f"--config.task.options.start.options.workdir={folder / f'cmt_{seed}'}")
    if stage == "scratch":
        given += [
            "--config.network.options.second_time=True",
            "--config.optimizer.options.rate=5e-4",
            "--config.optimizer.options.warmup=0.0",
            "--config.train.ema=0.99",
            "--config.sample.solver=jump",
            "--config.sample.times=uniform",
            "--config.sample.steps=1",
        ]
    return given


def readable(args):
    """Share of 800 images, each entry in its own scale, that lie nearest to the mean of their class when noised."""
    source = load(args.data).take(1600)
    if args.data == "fashion":
        source = latents(Run(workdir=str(args.runs / "decoder")).load(), source, make_mesh())
    x = np.asarray(source.x, np.float64).reshape(len(source.x), -1)
    x, cond = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), np.asarray(source.cond)
    means = np.stack([x[:800][cond[:800] == label].mean(0) for label in range(10)])
    noise, numbers = np.random.default_rng(0).normal(size=x[800:].shape), {}
    for t in (0.05, 0.1, 0.2, 0.5):
        apart = (((t * x[800:] + (1 - t) * noise)[:, None] - t * means) ** 2).sum(-1)
        numbers[f"classes read from states at t = {t}"] = float((apart.argmin(1) == cond[800:]).mean())
    return numbers


def peak(workdir):
    """The largest norm of the gradient in the first 200 steps."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    norms = [line["gradient_norm"] for line in lines if "gradient_norm" in line]
    return max(norms[:200])


def compared(args, seed):
    """The numbers of one seed."""
    numbers = {}
    for stage in ("teacher", "cmt", "mfd", "begun", "scratch"):
        workdir = args.runs / f"{stage}_{seed}"
        if not (workdir / "report.json").exists():
            main_of("train", workdir, *options(stage, args, seed))
        numbers[f"{stage}: seconds"] = json.loads((workdir / "report.json").read_text())["wall_seconds"]
        if stage == "teacher":
            found = measured(workdir, "euler", 1.0, 1, 50)
            for steps, (distance, accuracy) in zip((1, 50), found, strict=True):
                numbers[f"teacher: FD, {steps} Euler steps"] = distance
                numbers[f"teacher: accuracy, {steps} Euler steps"] = accuracy
            continue
        numbers[f"{stage}: peak gradient norm, 200 steps"] = peak(workdir)
        if stage == "begun":
            continue
        for steps, (distance, accuracy) in zip((1, 2), measured(workdir, "jump", 1.0, 1, 2), strict=True):
            numbers |= {f"{stage}: FD, {steps}": distance, f"{stage}: accuracy, {steps}": accuracy}
    numbers["scratch / mfd: FD, 1"] = numbers["scratch: FD, 1"] / numbers["mfd: FD, 1"]
    ratio = numbers["scratch: peak gradient norm, 200 steps"] / numbers["begun: peak gradient norm, 200 steps"]
    return numbers | {"scratch / begun: peak gradient norm, 200 steps": ratio}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "fashion"), required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps; other than 1 is a trial")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    args = parser.parse_args()
    numbers = {"steps": STEPS, "cost of a step": COSTS}
    if args.data == "fashion":
        encoder = args.runs.resolve() / "encoder"
        numbers["encoder: seconds"] = train(encoder, "--config=rae:encoder", "--config.train.steps=1500", PATCH)
        of_encoder = f"--config.encoder.options.workdir={encoder}"
        numbers["decoder: seconds"] = train(args.runs / "decoder", "--config=rae:decoder", PATCH, of_encoder)
    numbers |= readable(args)
    for seed in range(args.seeds):
        numbers[f"seed {seed}"] = compared(args, seed)
        if args.scale == 1:
            store(NAME.format(args.data), __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
        else:
            print(json.dumps(numbers, indent=2))
    if args.scale == 1:
        rows = [("teacher_0", "euler", 1.0, steps) for steps in (1, 50)]
        rows += [(f"{stage}_0", "jump", 1.0, steps) for stage in ("scratch", "cmt", "mfd") for steps in (1, 2)]
        strip(NAME.format(args.data), args.runs, rows)


if __name__ == "__main__":
    main()

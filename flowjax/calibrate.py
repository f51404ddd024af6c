"""Computes once per trained model what a solver then uses.

    python -m flowjax.calibrate ems --workdir=runs/digits
    python -m flowjax.calibrate compensation --workdir=runs/digits --steps=5
    python -m flowjax.calibrate schedule --workdir=runs/digits --steps=5
    python -m flowjax.calibrate transport --workdir=runs/digits --start=0.5

ems: the statistics of DPM-Solver-v3, from the training data, for any number of steps. compensation: the ratios of
DC-Solver for one number of steps. schedule: a solver searched for one number of evaluations (--steps). transport: the
map of DPM-OT from noise to training samples noised to --start, where sampling then begins (needs ott-jax). The result
goes to calibration/ in the workdir, with a record of the weights, path, range, guidance and fields that it belongs to;
sample with `flowjax.sample --calibration=FILE`. An interrupted calibration continues when it is started again (a map
begins anew), and a finished one says that it exists. Training data in files is opened where it lies in the workdir, or
where --data=recipe or --data=PATH asks for it.

Solvers, grids and fields are written name(option=value, ...), --guidance is a scale; `python -m flowjax.doctor
--list=solvers` (times, fields) prints what there is.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowjax import _checks, _cli, data, launch, specs, times
from flowjax.calibration import compensation, ems, reference, schedules, store
from flowjax.calibration.use import record
from flowjax.couplings import fit
from flowjax.data.records import check_memory
from flowjax.keys import noise
from flowjax.recipe import Recipe, Request, load
from flowjax.solvers import DCSolver
from flowjax.training import put_batch
from flowjax.training.workdir import Lock

KINDS = ("ems", "compensation", "schedule", "transport")


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main; what to calibrate is its one argument."""
    what = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else None
    flags.DEFINE_string("what", what, f"Same as the argument: {', '.join(KINDS)}.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of a training run.", flag_values=values)
    text = "Folder or file of the training data; recipe: what the recipe names. Needed for files outside of --workdir."
    flags.DEFINE_string("data", None, text, flag_values=values)
    flags.DEFINE_integer("steps", 5, "Solver steps (compensation) or evaluations (schedule).", flag_values=values)
    text = "Guidance scale, 1 for none; the recipe's by default. Rules have no calibrations."
    flags.DEFINE_string("guidance", None, text, flag_values=values)
    text = "Solver (compensation), such as dc_solver(order=2, variant=bh1)."
    flags.DEFINE_string("solver", None, text, flag_values=values)
    text = "Grid (compensation), such as quadratic(start=1e-3), in place of equal steps from --start to --end."
    flags.DEFINE_string("times", None, text, flag_values=values)
    text = "Fields around the flow, such as thresholded(max=2), the first innermost; the recipe's by default."
    flags.DEFINE_string("fields", None, text, flag_values=values)
    text = "First sampling time: 0.5 for transport, 1e-3 for the others."
    flags.DEFINE_float("start", None, text, flag_values=values)
    flags.DEFINE_float("end", 1 - 1e-3, "Last sampling time.", flag_values=values)
    flags.DEFINE_integer("points", 120, "Intervals of the statistics (ems).", flag_values=values)
    flags.DEFINE_string("mode", "element", "Statistics per element, channel or scalar (ems).", flag_values=values)
    flags.DEFINE_integer("order", 3, "Order of the solver (compensation).", flag_values=values)
    flags.DEFINE_integer("rounds", 12, "Rounds of the search (schedule).", flag_values=values)
    text = "Samples: 512 for ems, 10 for compensation, 128 for schedule, 1000 for transport."
    flags.DEFINE_integer("num", 0, text, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of noise and search.", flag_values=values)
    _cli.define_mesh(values)
    launch.define(values)


def main(values: flags.FlagValues) -> None:
    """Checks, computes, writes."""
    if values.what is None:
        raise _cli.UsageError(f"say what to calibrate ({', '.join(KINDS)}), e.g. `flowjax.calibrate ems --workdir=...`")
    _cli.choose("calibration", values.what, KINDS)
    counts = dict.fromkeys(("points", "rounds"), _checks.COUNT) | {"num": "[0, 2147483647]", "order": "[1, 10]"}
    numbers = {"start": "[0, 1]", "end": "[0, 1]"}
    _cli.check_flags(values, **counts, **numbers, steps=_checks.STEPS, seed=_checks.SEED)
    if values.workdir is None:
        raise _cli.UsageError("--workdir=FOLDER is required")
    _cli.choose("mode", values.mode, ("element", "channel", "scalar"))
    first, end = {"transport": 0.5}.get(values.what, 1e-3) if values.start is None else values.start, values.end
    for name, others in (("solver", ("order",)), ("times", ("start", "end"))):
        if values[name].value is not None and values.what != "compensation":
            raise _cli.UsageError(f"--{name} is given, but {values.what} has its own; it is for compensation")
        for other in others:
            if values[name].value is not None and values[other].present:
                raise _cli.UsageError(f"--{name} and --{other} are given; write {other} into the spec, or nothing else")
    if not 0 <= first < end <= 1:
        raise _cli.UsageError(f"need 0 <= --start < --end <= 1, got {first} and {end}")
    _cli.start(values)
    num = values.num or {"ems": 512, "compensation": 10, "schedule": 128, "transport": 1000}[values.what]
    with _cli.usage_errors():
        solver = DCSolver(order=values.order) if values.solver is None else specs.build("solver", values.solver)
        if not isinstance(solver, DCSolver):
            raise ValueError(f"compensation finds the ratios of dc_solver, got --solver={values.solver}")
        fields = None if values.fields is None else _cli.named_specs(values.fields, "field")
        asked = _cli.number_or_spec("guidance", values.guidance)
        recipe = Recipe.load(values.workdir)
        if recipe.codec is not None:
            raise ValueError(f"{values.workdir} is a flow on latents; calibrations are for flows on the data itself")
        recipe.check(Request(num=num, batch=num, times=values.times, steps=values.steps, fields=fields))
        scale = recipe.plain_scale(asked)
        if recipe.start is not None:
            raise ValueError("calibrations are of flows from noise, and this run starts from data")
        if values.what == "transport" and recipe.conditions is not None:
            raise ValueError(f"maps are of labels without a name; this run has {', '.join(recipe.conditions)} by name")
        grid = times.uniform(values.steps, first, end)
        if values.times is not None:
            grid = recipe.build_times(values.times, values.steps)
            first, end = float(grid[0]), float(grid[-1])
        check_memory(f"--points={values.points}", 3 * 8 * (values.points + 1) * math.prod(recipe.shape))
    if asked is not None and not recipe.inputs:
        raise _cli.UsageError("--guidance is given, but the data of this run has no classes")
    _cli.use_compilation_cache()
    mesh = _cli.mesh(values)
    with _cli.usage_errors():
        flow, recipe = load(values.workdir, mesh)

    field = recipe.field(flow, scale, fields)
    sizes = {
        "ems": {"points": values.points, "num": num, "mode": values.mode},
        "compensation": {"steps": values.steps, "num": num, "order": solver.order},
        "schedule": {"steps": values.steps, "num": num, "rounds": values.rounds},
        "transport": {"num": num},
    }[values.what]
    for what, text in (("times", values.times), ("solver", values.solver)):
        sizes |= {what: specs.text(text)} if text is not None else {}
    shown = [specs.text(spec) for spec in (recipe.fields if fields is None else fields)]
    ends = {"start": first, "end": end, "seed": values.seed}
    belongs = record(values.what, flow, guidance=scale, fields=shown, **ends, **sizes)
    name = f"{values.what}-g{scale:g}" + (f"-{values.steps}steps" if "steps" in sizes else "")
    file = Path(values.workdir) / "calibration" / f"{name}.npz"
    if file.exists():
        with _cli.usage_errors():
            store.load(file, dict.fromkeys(("times", "solver", "fields")) | belongs)
        print(f"{file} exists")
        return

    if values.what != "compensation":
        with _cli.usage_errors():
            source = data.of_run(recipe, values.workdir, values.data)
    began = time.perf_counter()
    console = Console()
    key = jax.random.key(values.seed)
    columns = (TextColumn(values.what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with (
        _cli.usage_errors(),
        Lock(file.parent, file.stem),
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if values.what in ("ems", "transport"):
            batches = data.Batches(recipe.with_conditions(source), num, values.seed)

        if values.what == "transport":
            drawn = batches.batch(0)
            classes = None if recipe.num_classes is None else jnp.asarray(drawn["cond"], jnp.int32)
            found = fit(key, field.path, jnp.asarray(drawn["x1"]), first, classes)
            arrays = {"targets": np.asarray(found.targets), "heights": np.asarray(found.heights)}
            arrays |= {} if classes is None else {"labels": np.asarray(classes)}
        elif values.what == "ems":

            def batch(i: int) -> tuple[jax.Array, Any]:
                drawn = put_batch(batches.batch(i), mesh)
                return drawn["x1"], drawn["cond"]

            statistics = ems.estimate(
                field,
                batch,
                key,
                start=first,
                end=end,
                points=values.points,
                mode=values.mode,
                partial=file.with_suffix(""),
                record=belongs,
                progress=progress,
            )
            arrays = {name: np.asarray(getattr(statistics, name)) for name in ("lam", "l", "s", "b")}
        else:
            x = field.path.start(noise(key, (num, *recipe.shape)), grid[0])
            cond = jax.tree.map(jnp.asarray, recipe.balanced(num))
            if values.what == "compensation":
                ratios = compensation.search(
                    field,
                    solver,
                    x,
                    grid,
                    cond,
                    partial=file.with_suffix(""),
                    record=belongs,
                    progress=progress,
                )
                arrays = {"ratios": ratios, "times": grid}
            else:
                target = reference.reference(field, x, grid, cond)[-1]
                total = values.rounds * 32
                some = np.asarray(source.take(10_000).x, np.float64)  # enough for one number
                mean = round(float(source.normalize(some).mean()), 6)

                def searched(done: int, best: float) -> None:
                    bar.update(task, completed=done, total=total, description=f"best mean squared error {best:.3g}")

                known = schedules.search(
                    lambda candidates: schedules.errors(field, candidates, x, target, cond, mean=mean),
                    [grid, times.quadratic(values.steps, first, end)],
                    rounds=values.rounds,
                    firsts=schedules.FIRSTS,
                    seed=values.seed,
                    results=file.with_suffix(".jsonl"),
                    record={k: v for k, v in belongs.items() if k != "rounds"} | {"mean": mean},  # more may follow
                    progress=searched,
                )
                arrays = {
                    "schedule": np.array(json.dumps(schedules.to_json(known[0][1]))),
                    "error": np.array(known[0][0]),
                    "mean": np.array(mean),
                }
        store.save(file, arrays, belongs)
    print(f"{file} in {time.perf_counter() - began:.0f} s; use it with flowjax.sample --calibration={file}")


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()

"""Computes once per trained model what a solver then uses.

    python -m flowjax.calibrate best --workdir=runs/digits --steps=5,8,10 --budget=10m
    python -m flowjax.calibrate learn --workdir=runs/digits --steps=5
    python -m flowjax.calibrate grid --workdir=runs/digits --steps=5
    python -m flowjax.calibrate ems --workdir=runs/digits
    python -m flowjax.calibrate compensation --workdir=runs/digits --steps=5
    python -m flowjax.calibrate schedule --workdir=runs/digits --steps=5
    python -m flowjax.calibrate transport --workdir=runs/digits --start=0.5
    python -m flowjax.calibrate cache --workdir=runs/digits --steps=50 --error=0.02

best: tries all of this within the time given, prints what is nearest to a fine solution, and keeps the winner where
`flowjax.sample --calibration=auto` finds it. learn: times and weights of a solver by least squares, for one number of
evaluations; with --scales=1,2 for all scales of guidance between. grid: times with the least local errors, by dynamic
programming. ems: the statistics of DPM-Solver-v3, from the training data, for any number of steps. compensation: the
ratios of DC-Solver for one number of steps. schedule: a solver searched for one number of evaluations. transport: the
map of DPM-OT from noise to training samples noised to --start, where sampling then begins (needs ott-jax). cache: the
field that skips most calls of a solver and keeps an error on noise that it has not seen. `python -m flowjax.calibrate
learn --help` lists the options of one of them.

The result goes to calibration/ in the workdir, with a record of the weights, path, range, guidance and fields that it
belongs to; sample with `flowjax.sample --calibration=FILE`. An interrupted calibration continues when it is started
again (a map and a grid begin anew), and a finished one says that it exists. Training data in files is opened where it
lies in the workdir, or where --data=recipe or --data=PATH asks for it.

Solvers, grids and fields are written name(option=value, ...), --guidance is a scale; `python -m flowjax.doctor
--list=solvers` (times, fields) prints what there is.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowjax import _checks, _cli, data, evaluation, launch, specs
from flowjax.calibration import KINDS, store
from flowjax.calibration.base import Work
from flowjax.calibration.use import record
from flowjax.recipe import Recipe, Request, load_run
from flowjax.training import over, put_batch
from flowjax.training.mesh import count_rows
from flowjax.training.workdir import Lock


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main: what to calibrate is its one argument, whose options are flags."""
    what = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else None
    flags.DEFINE_string("what", what, f"Same as the argument: {', '.join(KINDS)}.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of a training run.", flag_values=values)
    text = "Folder or file of the training data; recipe: what the recipe names. Needed for files outside of --workdir."
    flags.DEFINE_string("data", None, text, flag_values=values)
    text = "Guidance scale, 1 for none; the recipe's by default. Rules have no calibrations."
    flags.DEFINE_string("guidance", None, text, flag_values=values)
    text = "Fields around the flow, such as thresholded(max=2), the first innermost, or none; the recipe's by default."
    flags.DEFINE_string("fields", None, text, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of everything random.", flag_values=values)
    kind = KINDS.get(next((a.split("=", 1)[1] for a in argv if a.startswith("--what=")), what) or "")
    makers: dict[type, Any] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for option in () if kind is None else dataclasses.fields(kind):
        default, text = option.default, option.metadata["help"]
        if isinstance(default, tuple):
            default = ",".join(map(str, default)) or None
        makers.get(type(default), flags.DEFINE_string)(option.name, default, text, flag_values=values)
    _cli.define_mesh(values)
    launch.define(values)


def asked(values: flags.FlagValues) -> Any:
    """The calibration with its options.

    Raises:
        UsageError: There is none of this name, a number is out of its range, or one flag stands for another.
    """
    if values.what is None:
        raise _cli.UsageError(f"say what to calibrate ({', '.join(KINDS)}), e.g. `flowjax.calibrate ems --workdir=...`")
    kind = KINDS[_cli.choose("calibration", values.what, KINDS)]
    intervals = {"start": "[0, 1]", "end": "[0, 1]", "seed": _checks.SEED, "num": _checks.COUNT, "steps": _checks.STEPS}
    numbers = {field.name for field in dataclasses.fields(kind) if not isinstance(field.default, tuple)} | {"seed"}
    _cli.check_flags(values, **{name: interval for name, interval in intervals.items() if name in numbers})
    if values.workdir is None:
        raise _cli.UsageError("--workdir=FOLDER is required")
    for name, others in kind.instead.items():
        for other in others if name in values and values[name].value is not None else ():
            if values[other].present:
                raise _cli.UsageError(f"--{name} and --{other} are given; write {other} into the spec, or nothing else")
    options = {option.name: values[option.name].value for option in dataclasses.fields(kind)}
    if not 0 <= options["start"] < options["end"] <= 1:
        raise _cli.UsageError(f"need 0 <= --start < --end <= 1, got {options['start']} and {options['end']}")
    with _cli.usage_errors():
        for option in dataclasses.fields(kind):
            if isinstance(option.default, tuple):
                options[option.name] = tuple(specs.parse_many(options[option.name] or ""))
        return kind(**options)


def main(values: flags.FlagValues) -> None:
    """Checks, computes, writes."""
    calibration = asked(values)
    _cli.start(values)
    with _cli.usage_errors():
        fields = None if values.fields is None else _cli.named_specs(values.fields, "field")
        guidance = _cli.number_or_spec("guidance", values.guidance)
        recipe = Recipe.load(values.workdir)
        if recipe.codec is not None:
            raise ValueError(f"{values.workdir} is a flow on latents; calibrations are for flows on the data itself")
        times, num = getattr(calibration, "times", None), calibration.num
        recipe.check(Request(num=num, batch=num, times=times, steps=calibration.evaluations, fields=fields))
        scale = recipe.plain_scale(guidance)
        if recipe.start is not None:
            raise ValueError("calibrations are of flows from noise, and this run starts from data")
        calibration.check(recipe)
    if guidance is not None and not recipe.inputs:
        raise _cli.UsageError("--guidance is given, but the data of this run has no classes")
    _cli.use_compilation_cache()
    mesh = _cli.mesh(values)
    with _cli.usage_errors():
        networks, _ = load_run(values.workdir, mesh)
        fields = recipe.pinned(fields)
    with over(mesh):
        for part in calibration.parts():
            calibrate(values, part, networks, recipe, scale, fields, mesh)


def calibrate(
    values: flags.FlagValues,
    calibration: Any,
    networks: Mapping[str, Any],
    recipe: Recipe,
    scale: float,
    fields: Sequence[Any],
    mesh: Mesh,
) -> None:
    """Computes and writes one file."""
    flow: Any = recipe.flow(networks["network"])
    steps = calibration.evaluations
    with _cli.usage_errors():
        grid = calibration.grid(recipe)
    shown = [specs.text(spec) for spec in fields]
    known = {"guidance": scale, "fields": shown, "start": float(grid[0]), "end": float(grid[-1]), "seed": values.seed}
    belongs = record(values.what, flow, **(known | calibration.sizes()))
    between = getattr(calibration, "between", None)
    name = f"{values.what}-g" + (f"{scale:g}" if between is None else "{:g}to{:g}".format(*between))
    file = Path(values.workdir) / "calibration" / f"{name}{'' if steps is None else f'-{steps}steps'}.npz"
    if file.exists():
        with _cli.usage_errors():
            store.load(file, dict.fromkeys(("times", "solver", "fields")) | belongs)
        print(f"{file} exists")
        return

    @functools.cache
    def source() -> data.Source:
        return data.of_run(recipe, values.workdir, values.data)

    @functools.cache
    def batches() -> data.Batches:
        return data.Batches(recipe.with_conditions(source()), calibration.num, values.seed)

    @functools.cache
    def judge() -> tuple[Any, np.ndarray]:
        extractor = evaluation.default_extractor(source())
        return extractor, extractor.features(np.asarray(source().take(10_000).x))

    def batch(i: int) -> tuple[jax.Array, Any]:
        drawn = batches().batch(i)
        if calibration.num % count_rows(mesh) == 0:
            drawn = put_batch(drawn, mesh)
        return drawn["x1"], drawn["cond"]

    def mean() -> float:
        some = np.asarray(source().take(10_000).x, np.float64)  # enough for one number
        return float(source().normalize(some).mean())

    def frechet(x: np.ndarray) -> float:
        extractor, real = judge()
        made = np.asarray(x * recipe.scale + recipe.shift, np.float32)
        return float(evaluation.frechet_distance(extractor.features(made), real))

    def features() -> Callable[[jax.Array], jax.Array]:
        extractor = evaluation.network_extractor(source())
        return lambda x: extractor.traced(x * recipe.scale + recipe.shift)

    with _cli.usage_errors():
        _ = source() if calibration.reads_data else None
    began = time.perf_counter()
    console = Console()
    columns = (TextColumn(values.what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with (
        _cli.usage_errors(),
        Lock(file.parent, file.stem),
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("", total=None)

        def progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        arrays = calibration.compute(
            Work(
                recipe=recipe,
                flow=flow,
                guide=lambda scale: recipe.field(flow, scale, fields, networks=networks),
                guidance=scale,
                grid=grid,
                seed=values.seed,
                num=calibration.num,
                batch=batch,
                mean=mean,
                frechet=frechet,
                features=features,
                file=file,
                record=belongs,
                progress=progress,
            )
        )
        store.save(file, arrays, belongs)
    if told := calibration.summary(arrays):
        print(told)
    print(f"{file} in {time.perf_counter() - began:.0f} s; use it with flowjax.sample --calibration={file}")


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()

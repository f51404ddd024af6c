"""Generates samples from a trained flow.

    python -m flowjax.sample --workdir=runs/digits --num=1000 --out=samples.npz
    python -m flowjax.sample --workdir=runs/digits --num=30 --labels=0,1,2 --out=few.npz
    python -m flowjax.sample --workdir=runs/digits --num=1000 --solver=heun --steps=5 --guidance=1.5
    python -m flowjax.sample --workdir=runs/digits --calibration=runs/digits/calibration/schedule-g1.4-5steps.npz

The npz holds `x` in the data's own scale and, for classes, `cond`; a picture with the same name lies beside
it. Neither replaces another file without --overwrite, and samples with NaN or infinite values are an error that leaves
no file. Sample i depends on --seed, on i and on its label only, not on --batch. Solver, steps and guidance are
those of the recipe in the workdir unless they are given.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from flowjax import _cli, catalogue
from flowjax._files import replacing
from flowjax.calibration.use import calibrated
from flowjax.recipe import Recipe, load
from flowjax.training import make_mesh
from flowjax.training.report import has_picture, picture


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    flags.DEFINE_string("workdir", None, "Folder of a training run.", flag_values=values)
    flags.DEFINE_string("out", "samples.npz", "File to write; a .png goes beside it.", flag_values=values)
    flags.DEFINE_integer("num", 100, "Number of samples.", flag_values=values)
    flags.DEFINE_list("labels", None, "Classes to sample in turn; all by default.", flag_values=values)
    flags.DEFINE_string("solver", None, "Solver; the recipe's by default.", flag_values=values)
    flags.DEFINE_integer("steps", None, "Number of solver steps; the recipe's by default.", flag_values=values)
    text = "File of flowjax.calibrate; brings its solver and times."
    flags.DEFINE_string("calibration", None, text, flag_values=values)
    flags.DEFINE_float("guidance", None, "Guidance scale, 1 for none; the recipe's by default.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", flag_values=values)
    flags.DEFINE_integer("batch", 200, "Samples generated at once.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace --out and its picture if they exist.", flag_values=values)


def parse_labels(labels: list[str] | None, num_classes: int | None) -> tuple[int, ...] | None:
    """The classes asked for with `--labels`.

    Raises:
        UsageError: The data has no classes, or a label is not one of them.
    """
    if labels is None:
        return None
    if num_classes is None:
        raise _cli.UsageError("--labels is given, but the data of this run has no classes")
    allowed = [str(label) for label in range(num_classes)]
    for label in labels:
        if label not in allowed:
            raise _cli.UsageError(f"label {label!r} is out of range (allowed: 0 to {num_classes - 1})")
    return tuple(int(label) for label in labels)


def main(values: flags.FlagValues) -> None:
    """Checks, generates, writes."""
    if not values.workdir:
        raise _cli.UsageError("--workdir=FOLDER is required")
    out = Path(values.out)
    if out.suffix != ".npz":
        raise _cli.UsageError(f"--out must end in .npz, got {out}")
    for name in ("num", "batch", "steps"):
        if values[name].value is not None and values[name].value < 1:
            raise _cli.UsageError(f"--{name} must be at least 1, got {values[name].value}")
    try:
        recipe = Recipe.load(values.workdir)
    except FileNotFoundError:
        raise _cli.UsageError(f"{values.workdir} is not the workdir of a training run (no recipe.json)") from None
    if values.solver is not None:
        _cli.choose("solver", values.solver, sorted(catalogue.solvers))
    if values.solver in ("dpm_solver_v3", "usf"):
        raise _cli.UsageError(
            f"--solver={values.solver} needs a calibration: pass --calibration=FILE of flowjax.calibrate"
        )
    if values.solver is not None and values.calibration is not None:
        raise _cli.UsageError("--calibration brings its own solver; leave out --solver")
    if values.guidance is not None and recipe.num_classes is None:
        raise _cli.UsageError("--guidance is given, but the data of this run has no classes")
    cond = recipe.balanced(values.num, parse_labels(values.labels, recipe.num_classes))
    mesh = make_mesh()
    png = out.with_suffix(".png") if has_picture(recipe) else None
    for path in (out, png):
        if path is not None and path.exists() and not values.overwrite:
            raise _cli.UsageError(f"{path} exists; add --overwrite or choose another --out")
    _cli.use_compilation_cache()
    try:
        flow, recipe = load(values.workdir, mesh)
    except (FileNotFoundError, ValueError) as error:
        raise _cli.UsageError(str(error)) from None

    first, clock = jax.process_index() == 0, time.perf_counter()
    with _cli.usage_errors(), replacing(out) if first else contextlib.nullcontext(out) as part:
        solver, grid, start = recipe.build_solver(values.solver), None, None
        if values.calibration is not None:
            guidance = recipe.plain_scale(values.guidance)
            if not Path(values.calibration).is_file():
                raise _cli.UsageError(f"calibration file {values.calibration} does not exist")
            brought = calibrated(values.calibration, flow, guidance, values.steps)
            solver, grid, start = brought.solver or solver, brought.times, brought.start
        samples = recipe.sample(
            recipe.field(flow, values.guidance),
            values.num,
            key=jax.random.key(values.seed),
            cond=cond,
            solver=solver,
            steps=values.steps,
            grid=grid,
            start=start,
            batch=values.batch,
            mesh=mesh,
        )
        bad = values.num - int(np.isfinite(samples.x.reshape(values.num, -1)).all(1).sum())
        if bad:
            raise _cli.UsageError(
                f"{bad} of {values.num} samples have NaN or infinite values, nothing is written; try more --steps, a "
                "smaller --guidance or another --solver"
            )
        if first:
            arrays: dict[str, Any] = {"x": samples.x} | ({} if cond is None else {"cond": cond})
            with part.open("wb") as file:
                np.savez(file, **arrays)
    seconds = time.perf_counter() - clock
    if first:
        print(
            f"{out}: {values.num} samples, {samples.evaluations} evaluations "
            f"({samples.network_calls} network calls) each, {seconds:.1f} s with compilation"
        )
        if png is not None:
            with _cli.usage_errors():  # the samples are safe
                picture(recipe, samples, png)


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()

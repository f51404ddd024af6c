"""Generates samples from a trained flow.

    python -m flowjax.sample --workdir=runs/digits --num=1000 --out=samples.npz
    python -m flowjax.sample --workdir=runs/digits --num=30 --labels=0,1,2 --out=few.npz
    python -m flowjax.sample --workdir=runs/digits --num=1000 --solver=heun --steps=5 --guidance=1.5
    python -m flowjax.sample --workdir=runs/digits --solver="dpm_solver(order=3)" --guidance="apg(scale=4, eta=0)"
    python -m flowjax.sample --workdir=runs/digits --times="quadratic(start=1e-3)" --fields="thresholded(quantile=0.9)"
    python -m flowjax.sample --workdir=runs/captions --cond.text="a red circle left of a blue square" --guidance=3
    python -m flowjax.sample --workdir=runs/captions --cond.text="a cross" --against.text="a blue cross" --guidance=3
    python -m flowjax.sample --workdir=runs/digits --guidance="composed(scales=(2, -1))" --labels=3 --second.label=8
    python -m flowjax.sample --workdir=runs/digits --edit="sdedit(strength=0.6)" --cond.picture=threes --labels=8
    python -m flowjax.sample --workdir=runs/digits --edit=inpaint --cond.picture=three.png --cond.mask=upper.png
    python -m flowjax.sample --workdir=runs/digits --calibration=runs/digits/calibration/schedule-g1.4-5steps.npz
    python -m flowjax.sample --workdir=runs/digits --num=50000 --out=runs/many
    python -m flowjax.sample --workdir=runs/digits --pairs=runs/pairs --num=20000 --guidance=1.5
    python -m flowjax.sample --workdir=runs/digits --num=8 --search="rbf(budget=500)" --reward=judges:brightness

Solvers, grids, rules and fields are written name(option=value, ...), numbers of --guidance are scales;
`python -m flowjax.doctor --list=solvers` (times, rules, fields) prints what there is. --cond.NAME=VALUE asks for what
the recipe declares under this name: numbers or names of classes, vectors "0,1;2,3", a text, or with @FILE those in the
lines of a file; --labels=0,1 is short for --cond.label=0,1. What is not asked for is taken in turn from all classes and
from texts of the data. --against.NAME=VALUE is a negative condition, in place of none, and --second.NAME=VALUE
one beside the first, for the rule composed and for edits.

--edit changes pictures instead of sampling from noise (docs/editing.md): sdedit, inpaint, interpolate, translate.
--cond.picture=, and as the edit needs it --cond.mask= (white is kept) and --second.picture=, name a picture, a folder
of pictures, or an npz file with `x` in the data's own scale, such as this main writes; in turn for all samples.

The npz holds `x` in the data's own scale and, for classes, `cond` (`cond_NAME` for conditions by name, texts as texts);
a picture with the same name lies beside it. Neither replaces another file without --overwrite, and samples with NaN or
infinite values are an error that leaves no file. Sample i depends on --seed, on i and on its conditions only, not on
--batch. Solver, times, steps, guidance and fields are those of the recipe in the workdir unless they are given.

--out=FOLDER, a name without an ending, is for more than the memory holds: samples go to files 000000.npz, 000001.npz
and so on in a folder with manifest.json, which says everything that they depend on. Stopped and started again, by
whatever number of devices and processes, it goes on, and makes the same samples. `flowjax.evaluate --samples=FOLDER`
measures them.

--compile_only --program=FOLDER traces and compiles the sampler that the other flags ask for, and draws nothing;
--program=FOLDER then samples by it without tracing: solver, times, steps, guidance, fields and batch are its own.

--pairs=FOLDER writes noise and sample instead, in the scale of the network, as shards from which
--config.coupling="stored(path='FOLDER')" trains. Stopped and started again, it goes on.

--search=NAME(...) searches for samples with a large --reward=module:function, a function of samples (B, ...) in the
scale of the data that returns (B,) numbers; the module is looked for in the current folder first, and runs. Several,
separated by commas, count by their sum; --held_out=module:function judges the results only. The npz then holds
`reward`, `held_out_NAME`, `evaluations` and `history` besides; steps and path are options of the search, and --batch is
how many states the network is asked at once. A reward that fails leaves what was found until then in the file. See
docs/search.md.

Several processes sample together, see docs/pods.md: on a TPU pod, under Slurm, Open MPI and Kubernetes by the same
command on every host, elsewhere with --coordinator, --num_processes and --process_id.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowjax import _checks, _cli, data, launch, specs
from flowjax._files import replacing
from flowjax.calibration.use import best_file
from flowjax.recipe import Base, Recipe, Request, Samples, load_run
from flowjax.recipe.compiled import ASKED, Compiled, compile_sampler
from flowjax.recipe.pairs import draw_pairs
from flowjax.recipe.parts import Parts, draw
from flowjax.recipe.report import has_picture, picture
from flowjax.search import SearchError
from flowjax.training.workdir import Lock

CONDITIONS = {"cond": "conditions", "against": "against", "second": "second"}
"""Flags by their beginning, and where a request has what they say."""


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    flags.DEFINE_string("workdir", None, "Folder of a training run.", flag_values=values)
    text = "File to write, a .png goes beside it; or a folder for many files, a name without an ending."
    flags.DEFINE_string("out", "samples.npz", text, flag_values=values)
    text = "Folder for pairs of noise and sample, in place of --out."
    flags.DEFINE_string("pairs", None, text, flag_values=values)
    flags.DEFINE_integer("num", 100, "Number of samples.", flag_values=values)
    flags.DEFINE_string("labels", None, "Classes to sample in turn; all by default.", flag_values=values)
    for name in sorted({a[2:].split("=")[0] for a in argv if a.startswith(tuple(f"--{kind}." for kind in CONDITIONS))}):
        flags.DEFINE_string(name, None, "Condition of this name.", flag_values=values)
    flags.DEFINE_string(
        "solver", None, "Solver, such as dpm_solver(order=3); the recipe's by default.", flag_values=values
    )
    flags.DEFINE_string("times", None, "Grid, such as quadratic(start=1e-3); the recipe's.", flag_values=values)
    flags.DEFINE_integer("steps", None, "Number of solver steps; the recipe's by default.", flag_values=values)
    text = "File of flowjax.calibrate, which brings solver and times; auto: what its `best` found for these --steps."
    flags.DEFINE_string("calibration", None, text, flag_values=values)
    text = "Guidance: a scale, 1 for none, or a rule such as apg(scale=4, eta=0); the recipe's by default."
    flags.DEFINE_string("guidance", None, text, flag_values=values)
    text = "Edit of pictures, such as sdedit(strength=0.6), in place of sampling from noise."
    flags.DEFINE_string("edit", None, text, flag_values=values)
    text = "Fields around the flow, such as thresholded(max=2), the first innermost, or none; the recipe's by default."
    flags.DEFINE_string("fields", None, text, flag_values=values)
    text = "How samples that are no images or points are written, such as solids(mesh=ply, frames=0)."
    flags.DEFINE_string("form", None, text, flag_values=values)
    text = "Folder or file of the data that a flow between two laws starts from; recipe: what the recipe names."
    flags.DEFINE_string("data", None, text, flag_values=values)
    text = "Search for samples with a large --reward, such as rbf(budget=500) or svdd(budget=500, steps=20)."
    flags.DEFINE_string("search", None, text, flag_values=values)
    text = "What to search for: module:function, from the current folder on; several separated by commas are added."
    flags.DEFINE_string("reward", None, text, flag_values=values)
    text = "Rewards that judge the results only, module:function."
    flags.DEFINE_string("held_out", None, text, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", flag_values=values)
    flags.DEFINE_integer("batch", 200, "Samples generated at once.", flag_values=values)
    text = "Folder of a sampler that was compiled before, see --compile_only; brings all but numbers and conditions."
    flags.DEFINE_string("program", None, text, flag_values=values)
    text = "Compiles the sampler into the new folder --program and draws nothing."
    flags.DEFINE_bool("compile_only", False, text, flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace --out and its picture if they exist.", flag_values=values)
    _cli.define_mesh(values)
    launch.define(values)


def asked(values: flags.FlagValues) -> Request:
    """What the flags ask for.

    Raises:
        UsageError: A text that is no spec, or a number outside its range.
    """
    conditions: dict[str, Any] = {
        place: {name[len(kind) + 1 :]: values[name].value for name in values if name.startswith(f"{kind}.")}
        for kind, place in CONDITIONS.items()
    }
    if values.labels is not None:
        conditions["conditions"]["label"] = values.labels
    with _cli.usage_errors():
        return Request(
            num=values.num,
            seed=values.seed,
            batch=values.batch,
            **conditions,
            edit=None if values.edit is None else specs.parse(values.edit),
            solver=values.solver,
            times=values.times,
            steps=values.steps,
            guidance=_cli.number_or_spec("guidance", values.guidance),
            fields=None if values.fields is None else _cli.named_specs(values.fields, "field"),
            calibration=values.calibration,
            search=None if values.search is None else specs.parse(values.search),
            reward=values.reward,
            held_out=values.held_out,
        )


@contextlib.contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much is done: a bar on a terminal, lines elsewhere; nothing in other processes than the first."""
    console, began = Console(), (0, time.perf_counter())
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=jax.process_index() > 0 or not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)

        def tell(done: int) -> None:
            nonlocal began
            progress.update(bar, completed=done)
            if console.is_terminal or jax.process_index() > 0:
                return
            if began[0] in (0, done):  # what an earlier run has made costs no time
                began = done, time.perf_counter()
                speed = ""
            else:
                rate = (done - began[0]) / (time.perf_counter() - began[1])
                speed = f", {rate:.3g} a second, {(total - done) / rate:.0f} s left"
            print(f"{done}/{total} {what}{speed}", flush=True)

        yield tell


def write_program(values: flags.FlagValues, request: Request, mesh: Mesh) -> None:
    """Compiles a sampler into a folder."""
    for name in ("out", "pairs", "num", "seed", "labels", "overwrite", "data", "form", "search", "reward"):
        if values[name].present or request.conditions:
            what = f"--{name}" if values[name].present else "a condition"
            raise _cli.UsageError(f"{what} is given, but --compile_only draws nothing")
    if values.program is None:
        raise _cli.UsageError("--compile_only writes to --program=FOLDER: name it")
    _cli.use_compilation_cache()
    clock = time.perf_counter()
    with _cli.usage_errors():
        networks, recipe = load_run(values.workdir, mesh)
        if not isinstance(recipe, Recipe):
            raise _cli.UsageError(f"a program is of a flow, and {values.workdir} is of the kind {recipe.kind}")
        compile_sampler(recipe, networks, request, values.program, mesh)
    if jax.process_index() == 0:
        print(f"{values.program}: traced and compiled in {time.perf_counter() - clock:.1f} s")


def write_parts(values: flags.FlagValues, request: Request, mesh: Mesh) -> None:
    """Draws samples into a folder of many files."""
    for name in ("overwrite", "form"):
        if values[name].present:
            raise _cli.UsageError(f"--{name} is given, but --out={values.out} is a folder of arrays, which are kept")
    _cli.use_compilation_cache()
    folder, clock = Path(values.out), time.perf_counter()
    with _cli.usage_errors(), contextlib.ExitStack() as held:
        networks, recipe = load_run(values.workdir, mesh)
        source = data.of_run(recipe, values.workdir, values.data) if recipe.starts_from_data else None
        held.enter_context(Lock(folder, "sample"))
        tell = held.enter_context(counted("samples", values.num))
        for done, samples in draw(recipe, networks, request, folder, source=source, mesh=mesh):
            tell(done)
            shown = folder / "preview.png"
            if samples is not None and jax.process_index() == 0 and not shown.exists() and has_picture(recipe):
                some = {name: rows[:100] for name, rows in samples.arrays.items()}
                picture(recipe, Samples.of_arrays(some, samples.evaluations, samples.network_calls), shown)
    if jax.process_index() == 0:
        manifest = Parts(folder).record
        print(
            f"{folder}: {values.num} samples, {manifest['evaluations']} evaluations "
            f"({manifest['network_calls']} network calls) each, {time.perf_counter() - clock:.1f} s with compilation"
        )


def write_pairs(values: flags.FlagValues, request: Request, mesh: Mesh) -> None:
    """Draws pairs with a bar of what is done."""
    for name in ("search", "out", "overwrite", "data", "form"):
        if values[name].present:
            raise _cli.UsageError(f"--{name} is given, but --pairs writes shards into its folder")
    _cli.use_compilation_cache()
    with _cli.usage_errors():
        networks, recipe = load_run(values.workdir, mesh)
        if not isinstance(recipe, Recipe):
            raise _cli.UsageError(f"pairs are drawn by a flow, and {values.workdir} is of the kind {recipe.kind}")
    clock = time.perf_counter()
    with _cli.usage_errors(), counted("pairs", values.num) as tell:
        for done, _ in draw_pairs(recipe, networks, request, values.pairs, mesh):
            tell(done)
    if jax.process_index() == 0:
        print(f"{values.pairs}: {values.num} pairs, {time.perf_counter() - clock:.1f} s with compilation")


def main(values: flags.FlagValues) -> None:
    """Checks, generates, writes."""
    counts = dict.fromkeys(("num", "batch"), _checks.COUNT)
    _cli.check_flags(values, **counts, steps=_checks.STEPS, seed=_checks.SEED)
    if values.workdir is None:
        raise _cli.UsageError("--workdir=FOLDER is required")
    out = Path(values.out)
    if out.suffix not in ("", ".npz"):
        raise _cli.UsageError(f"--out must end in .npz, or be a folder, a name without an ending; got {out}")
    request, program = asked(values), None
    if values.program is not None and not values.compile_only:
        asked_besides = (name for name in values if name.startswith(("against.", "second.")))
        for name in (*ASKED, "pairs", "edit", "search", "reward", "held_out", *asked_besides):
            if values[name].present:
                raise _cli.UsageError(f"--{name} is given, but the program in {values.program} has its own")
        with _cli.usage_errors():
            program = Compiled.load(values.program)
            request = program.request(num=values.num, seed=values.seed, conditions=request.conditions)
        if not out.suffix:
            raise _cli.UsageError(f"a program writes one file: --out={out} must end in .npz")
    _cli.start(values)
    with _cli.usage_errors():
        recipe = Base.load(values.workdir)
        if request.calibration == "auto" and isinstance(recipe, Recipe):
            scale = recipe.plain_scale(request.guidance)
            request = dataclasses.replace(request, calibration=str(best_file(values.workdir, scale, request.steps)))
        if request.search is not None and not isinstance(recipe, Recipe):
            raise _cli.UsageError(f"a search is of a flow, and {values.workdir} is of the kind {recipe.kind}")
        # A folder is filled part by part, of which each must have room in memory.
        recipe.check(request if out.suffix else request.part(range(min(request.num, request.batch))))
        form = recipe.build_form(values.form)
        if form is not None:
            form.require()
    mesh = _cli.mesh(values)
    if values.compile_only:
        write_program(values, request, mesh)
        return
    if values.pairs is not None:
        write_pairs(values, request, mesh)
        return
    if not out.suffix:
        write_parts(values, request, mesh)
        return
    png = out.with_suffix(".png") if has_picture(recipe) else None
    folder = None if form is None else out.with_suffix("")
    for path in (out, png, folder):
        if path is not None and path.exists() and not values.overwrite:
            raise _cli.UsageError(f"{path} exists; add --overwrite or choose another --out")
    _cli.use_compilation_cache()
    with _cli.usage_errors():
        networks, recipe = load_run(values.workdir, mesh)
        source = data.of_run(recipe, values.workdir, values.data) if recipe.starts_from_data else None

    first, clock = jax.process_index() == 0, time.perf_counter()
    # The file is made before the work, so that a place that cannot be written costs nothing.
    with _cli.usage_errors(), replacing(out) if first else contextlib.nullcontext(out) as part:
        failure = None
        if program is None:
            try:
                samples = recipe.sample(networks, request, source, mesh)
            except SearchError as error:
                if error.found is None or not len((samples := error.found.finite()).x):
                    raise _cli.UsageError(f"{error.reason}; nothing was found until then") from error
                failure = f"{error.reason}; the {len(samples.x)} samples found until then are in {out}"
        else:
            samples = program.sample(recipe, networks, request, mesh)
        if samples.bad:
            raise _cli.UsageError(
                f"{samples.bad} of {values.num} samples have NaN or infinite values, nothing is written; try more "
                "--steps, a smaller --guidance or another --solver (of a chain, those of its stages)"
            )
        if first:
            with part.open("wb") as file:
                np.savez(file, **samples.arrays)
    seconds = time.perf_counter() - clock
    if first:
        print(
            f"{out}: {len(samples.x)} samples, {samples.evaluations} evaluations "
            f"({samples.network_calls} network calls) each{samples.notes}, {seconds:.1f} s with compilation"
        )
        if png is not None:
            try:
                if recipe.shape == (2,):  # beside the real points, if they can be read without asking
                    with contextlib.suppress(ValueError):
                        source = data.of_run(recipe, values.workdir)
                picture(recipe, samples, png, source, form)
            except (OSError, ValueError) as error:
                raise _cli.UsageError(f"{out} is written, but not {png}: {_cli.describe(error)}") from error
        if folder is not None:
            with _cli.usage_errors():
                print(f"{folder}: {form.write(samples, folder)}")
    if failure is not None:
        raise _cli.UsageError(failure)


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()

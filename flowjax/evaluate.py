"""Measures a trained run: what a flow generates, for each solver, number of steps and guidance; others on their data.

    python -m flowjax.evaluate --workdir=runs/digits --solvers=euler,heun,dpm_solver --steps=4,8,16
    python -m flowjax.evaluate --workdir=runs/digits --steps=5 --guidance=1.0,1.5,2.0 --num=10000
    python -m flowjax.evaluate --workdir=runs/rectified --steps=1,2 --straightness=50
    python -m flowjax.evaluate --workdir=runs/digits --samples=runs/many
    python -m flowjax.evaluate --workdir=runs/digits --solvers="heun, dpm_solver(order=3)" --guidance="apg(scale=4)"

Solvers, grids, rules and fields are written name(option=value, ...), several of them separated by commas, numbers of
--guidance are scales; `python -m flowjax.doctor --list=solvers` (times, rules, fields) prints what there is.

--samples=FOLDER measures the samples that `flowjax.sample --out=FOLDER` has made of this run, all of them.

Prints a table and writes evaluation.json (every number with what it depends on) and evaluation.png (quality against
evaluations) to the workdir. Started again, it computes only what is missing; other samples, weights, features or
versions begin a new list in the file. Distances carry the hash of the features they are measured in: those of a
classifier trained on the data, or of the function given with --extractor, whose --weights are checked by --sha256.
An extractor is a program of yours, and runs. A run from elsewhere is not: its recipe names data, which is opened only
if it needs no files, lies in the workdir, or is asked for with --data=recipe or --data=PATH.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flowjax import _checks, _cli, data, evaluation, launch, specs
from flowjax._files import replacing
from flowjax.calibration.store import model_hash
from flowjax.recipe import Base, Recipe, Request, load_run
from flowjax.recipe.base import compare
from flowjax.recipe.parts import Parts
from flowjax.training import Store
from flowjax.training.workdir import Lock
from flowjax.training.writers import write_json

_LEADING = ("solver", "steps", "guidance", "evaluations", "network_calls")


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    flags.DEFINE_string("workdir", None, "Folder of a training run.", flag_values=values)
    text = "Solvers, such as heun, dpm_solver(order=3); the recipe's by default."
    flags.DEFINE_string("solvers", None, text, flag_values=values)
    flags.DEFINE_string("times", None, "Grid, such as quadratic(start=1e-3); the recipe's.", flag_values=values)
    text = "Fields around the flow, such as thresholded(max=2), or none; the recipe's by default."
    flags.DEFINE_string("fields", None, text, flag_values=values)
    flags.DEFINE_list("steps", None, "Numbers of steps; the recipe's by default.", flag_values=values)
    text = "Scales, 1 for none, and rules such as apg(scale=4); the recipe's by default."
    flags.DEFINE_string("guidance", None, text, flag_values=values)
    text = "Folder or file of the real data; recipe: what the recipe names. Needed for files outside of --workdir. For "
    text += "runs without data a data set, such as digits or npz(path=FILE)."
    flags.DEFINE_string("data", None, text, flag_values=values)
    text = "Folder of samples of this run (flowjax.sample --out=FOLDER), in place of new ones."
    flags.DEFINE_string("samples", None, text, flag_values=values)
    flags.DEFINE_integer("num", 2000, "Samples, and real examples they are compared with.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the noise and of the choice of real examples.", flag_values=values)
    flags.DEFINE_integer("batch", 200, "Samples generated at once.", flag_values=values)
    text = "Steps of trajectories along which straightness and first-order defect are measured too, such as 50."
    flags.DEFINE_integer("straightness", None, text, flag_values=values)
    flags.DEFINE_string("extractor", None, "MODULE:FUNCTION from a path to a feature function.", flag_values=values)
    flags.DEFINE_string("weights", None, "File for --extractor.", flag_values=values)
    flags.DEFINE_string("sha256", None, "SHA-256 of --weights.", flag_values=values)
    _cli.define_mesh(values)
    launch.define(values)


# --------------------------------------------------------------------------------------------------------------------
# What is asked for
# --------------------------------------------------------------------------------------------------------------------


def parse(name: str, texts: Sequence[str], kind: Callable[[str], Any], interval: str) -> list[Any]:
    """The numbers of a flag, each once.

    Raises:
        UsageError: Not a number, or one outside the interval.
    """
    numbers = []
    for text in texts:
        try:
            number = kind(text)
        except ValueError:
            raise _cli.UsageError(f"--{name} must be numbers, got {text!r}") from None
        with _cli.usage_errors():
            (_checks.whole if kind is int else _checks.real)(interval, **{f"--{name}": number})
        numbers.append(number)
    return list(dict.fromkeys(numbers))


def settings(values: flags.FlagValues, recipe: Any) -> list[tuple[dict[str, Any], Request]]:
    """Every setting of the sweep with its request.

    Raises:
        UsageError: A flag is wrong.
    """
    with _cli.usage_errors():
        fields = None if values.fields is None else _cli.named_specs(values.fields, "field")
        shared = Request(
            num=values.num,
            seed=values.seed,
            batch=values.batch,
            times=values.times,
            fields=fields,
            straightness=values.straightness,
        )
        return recipe.sweep(
            shared,
            solver=_cli.named_specs(values.solvers, "solver") if values.solvers else [],
            steps=parse("steps", values.steps or [], int, _checks.STEPS),
            guidance=specs.parse_many(values.guidance) if values.guidance else [],
        )


def stored_samples(values: flags.FlagValues) -> Parts:
    """The samples that --samples names, instead of a sweep; their number becomes that of the flag.

    Raises:
        UsageError: No folder of samples, not all of them, or a flag that says how to make new ones.
    """
    making = ("solvers", "steps", "guidance", "times", "fields", "straightness", "num", "batch")
    for name in making:
        if values[name].present:
            raise _cli.UsageError(f"--{name} is given, but --samples={values.samples} has samples that are made")
    with _cli.usage_errors():
        found = Parts(values.samples)
        found.check_complete("--out=FOLDER")
    values.num = found.record["num"]
    return found


def assess_stored(parts: Parts, source: data.Source, seed: int, judge: Any) -> dict[str, Any]:
    """The numbers of samples in a folder."""
    samples = parts.samples
    numbers = compare(lambda: samples, source.take(len(samples.x), seed), seed, judge)
    return {name: value for name, value in numbers.items() if name != "sampling_seconds"}


def make_extractor(values: flags.FlagValues, source: data.Source) -> evaluation.Extractor:
    """The features given, or the default ones of the data.

    Raises:
        UsageError: The three flags are not given together, or one is wrong.
    """
    given = [values[name].value is not None for name in ("extractor", "weights", "sha256")]
    if not any(given):
        return evaluation.default_extractor(source)
    if not all(given):
        raise _cli.UsageError("--extractor, --weights and --sha256 must be given together")
    module, _, name = values.extractor.partition(":")
    try:
        build = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise _cli.UsageError(f"--extractor={values.extractor}: {error}") from None
    if not callable(build):
        raise _cli.UsageError(f"--extractor={values.extractor} is no function")
    with _cli.usage_errors():
        return evaluation.load_extractor(values.weights, values.sha256, build)


class _Judge:
    """An extractor that computes the features of the real data once, for every row of the sweep."""

    def __init__(self, extractor: evaluation.Extractor, source: data.Source, num: int, seed: int):
        self.digest, self._extractor = extractor.digest, extractor
        self._real = np.asarray(source.take(num, seed).x)
        if hasattr(extractor, "predict"):
            self.predict = extractor.predict

    def features(self, x: np.ndarray) -> np.ndarray:
        """Those of the extractor."""
        same = x.shape == self._real.shape and x.dtype == self._real.dtype and np.array_equal(x, self._real)
        return self._known if same else self._extractor.features(x)

    @functools.cached_property
    def _known(self) -> np.ndarray:
        return self._extractor.features(self._real)


def provenance(
    values: flags.FlagValues, networks: Mapping[str, Any], extractor: evaluation.Extractor | None, num: int
) -> dict[str, Any]:
    """Everything but the setting that a row depends on."""
    workdir = Path(values.workdir)
    step = None
    if (workdir / "checkpoints").is_dir():
        with Store(workdir / "checkpoints", write=False) as store:
            step = store.latest
    config = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        config = json.loads((workdir / "config.json").read_text())
    device = jax.devices()[0]
    names = ("flowjax-generative", "jax", "jaxlib", "flax", "diffrax", "numpy", "scipy", "scikit-learn")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "checkpoint_step": step,
        "model": model_hash(networks if len(networks) > 1 else next(iter(networks.values()))),
        "config": config,
        "recipe_sha256": hashlib.sha256((workdir / "recipe.json").read_bytes()).hexdigest(),
        "device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
        "extractor": None if extractor is None else extractor.digest,
        "num": values.num,
        "num_real": num,
        "seed": values.seed,
        **{name: values[name].value for name in ("times", "straightness") if values[name].value is not None},
        "versions": versions,
    }


# --------------------------------------------------------------------------------------------------------------------
# What is shown
# --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full or read-only disk in one line."""
    try:
        yield
    except OSError as error:
        raise _cli.UsageError(f"cannot write {path}: {error.strerror or error}") from error


def show(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The rows as a table for `rich.print`."""
    shown = {name for row in rows for name in row if not name.endswith(("_low", "_high", "_seconds"))}
    names = [*(name for name in _LEADING if name in shown), *sorted(shown - set(_LEADING))]
    result = Table(title=title, show_edge=False)
    for name in names:
        result.add_column(name.replace("_", " ").replace("[", "\\["), overflow="fold")
    for row in rows:
        result.add_row(*(f"{row[n]:.4g}" if isinstance(row[n], float) else str(row[n]) for n in names))
    return result


def _key(setting: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(setting.items())


def _described(setting: Mapping[str, Any]) -> str:
    """A setting as it is shown."""
    if "solver" not in setting:
        return " ".join(map(str, setting.values())) or "the run"
    return f"{setting['solver']}, {setting['steps']} steps, guidance {_short(setting['guidance'])}"


def _short(guidance: float | str) -> str:
    """A scale or a rule, as it is shown."""
    return guidance if isinstance(guidance, str) else f"{guidance:g}"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG: Frechet distance and energy distance against evaluations, a line for each solver and guidance."""
    distance = next(name for name in rows[0] if name.startswith("FD["))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        guidance = "" if row["guidance"] == 1.0 else f", guidance {_short(row['guidance'])}"
        lines.setdefault(row["solver"] + guidance, []).append(row)
    for panel, name in zip(figure.subplots(1, 2), (distance, "energy")):
        for label, group in lines.items():
            points = sorted((row["evaluations"], row[name]) for row in group)
            panel.plot(*zip(*points), marker="o", label=label)
        panel.set(xlabel="evaluations", ylabel=name, xscale="log")
        if all(row[name] > 0 for row in rows):
            panel.set_yscale("log")
        ticks = sorted({row["evaluations"] for row in rows})
        panel.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        panel.xaxis.minorticks_off()
        panel.grid(alpha=0.3)
    panel.legend()
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)


# --------------------------------------------------------------------------------------------------------------------
# The sweep
# --------------------------------------------------------------------------------------------------------------------


def run(values: flags.FlagValues, held: contextlib.ExitStack) -> None:
    """Checks, samples, measures, writes after each row; what is put on `held` ends with the run."""
    _cli.check_flags(values, num="[20, 2147483647]", batch=_checks.COUNT, seed=_checks.SEED)
    if values.workdir is None:
        raise _cli.UsageError("--workdir=FOLDER is required")
    workdir = Path(values.workdir)
    _cli.start(values)
    with _cli.usage_errors():
        recipe = Base.load(workdir)
    parts = None if values.samples is None else stored_samples(values)
    if parts is None:
        sweep = settings(values, recipe)
    else:
        sweep = [({"samples": values.samples, "manifest": parts.digest}, Request(num=values.num))]
    samples = bool(sweep[0][0])  # without any there is nothing that features could tell
    if not samples and values.extractor is not None:
        raise _cli.UsageError(f"--extractor is given, but a run of the kind {recipe.kind} draws no samples")
    _cli.use_compilation_cache()
    mesh = _cli.mesh(values)
    with _cli.usage_errors():
        networks, recipe = load_run(workdir, mesh)
        models = {label: model_hash(network) for label, network in networks.items()}
        if parts is not None and parts.record.get("models") != models:
            raise ValueError(
                f"{values.samples} holds samples of weights {parts.record.get('models')}, and {workdir} has {models}"
            )
        source = data.of_run(recipe, workdir, values.data)
        extractor = make_extractor(values, source) if samples else None
        num = min(values.num, len(source.x))
        if num < 20:
            raise ValueError(f"the data has {num} examples; at least 20 are needed")
        held.enter_context(Lock(workdir, "evaluate"))  # two would lose each other's rows
    first = jax.process_index() == 0

    # Rows with the same provenance are kept, here and in the file.
    path, png = workdir / "evaluation.json", workdir / "evaluation.png"
    if png.exists() and not path.exists():
        raise _cli.UsageError(
            f"{png} would be replaced, but is not of an evaluation (there is no {path.name}); move it"
        )
    origin = provenance(values, networks, extractor, num)
    if isinstance(recipe, Recipe) and sweep[0][1].fields is not None:
        origin["fields"] = [specs.text(spec) for spec in recipe.pinned(sweep[0][1].fields)]
    try:
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        same = next((run for run in runs if run["provenance"] == origin), None)
        if same is None:
            same = {"provenance": origin, "rows": []}
            runs.append(same)
        names = sweep[0][0].keys()  # stored samples have others than those that a sweep makes
        alike = [row for row in same["rows"] if names <= row.keys()]
        known = {_key({name: row[name] for name in names}): row for row in alike}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _cli.UsageError(f"cannot read {path} ({error}); move it away") from None
    missing = [(setting, request) for setting, request in sweep if _key(setting) not in known]
    with _cli.usage_errors():
        launch.check_shared(path, len(missing))
    console = Console(quiet=not first)
    if len(missing) < len(sweep):
        console.print(f"{len(sweep) - len(missing)} of {len(sweep)} rows are known already", highlight=False)

    judge = None if extractor is None else _Judge(extractor, source, values.num, values.seed)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(missing))
        for setting, request in missing:
            text = _described(setting)
            bar.update(task, description=text)
            with _cli.usage_errors():
                if parts is None:
                    numbers = recipe.assess(networks, source, request, judge=judge, mesh=mesh)
                else:
                    numbers = assess_stored(parts, source, values.seed, judge)
            if "bad_samples" in numbers:
                console.print(f"{text}: samples are not finite; no row", highlight=False)
                continue
            row = setting | numbers
            known[_key(setting)] = row
            same["rows"].append(row)
            if first:
                with _writing(path):
                    write_json(path, {"runs": runs})
            bar.advance(task)
            if not console.is_terminal:
                shown = next((name for name in row if name.startswith("FD[")), next(iter(numbers)))
                console.print(f"{text}: {shown} {row[shown]:.4g}", markup=False, highlight=False)
    rows = [known[_key(setting)] for setting, _ in sweep if _key(setting) in known]
    if not rows:
        raise _cli.UsageError("no setting of the sweep has finite samples; try more --steps or a smaller --guidance")
    if first:
        if drawn := "solver" in rows[0]:
            with _writing(png):
                plot(rows, png)
        Console(width=None if console.is_terminal else 200).print(show(rows, f"{values.num} examples of {workdir}"))
        print(f"{path} and {png}" if drawn else path)


def main(values: flags.FlagValues) -> None:
    """Checks, samples, measures, writes after each row."""
    with contextlib.ExitStack() as held:
        run(values, held)


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()

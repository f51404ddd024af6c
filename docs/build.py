"""Writes the tables of the documentation: `python docs/build.py`; with `--check` it only says which are out of date.

Each table stands between the lines `<!-- NAME -->` and `<!-- /NAME -->` of a page and is replaced as a whole.
"""

import inspect
import itertools
import json
import pathlib
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flowjax import catalogue

ROOT = pathlib.Path(__file__).resolve().parents[1]


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    columns = list(columns)
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def shown(default: object) -> str:
    """A default, the middle of long ones left out."""
    whole = repr(default)
    return whole if len(whole) < 200 else reprlib.repr(default)


def call(entry: catalogue.Entry) -> str:
    """The class of an entry with its options and their defaults."""
    parameters = inspect.signature(entry.make).parameters.values()
    options = (
        p.name if p.default is p.empty else f"{p.name}={getattr(p.default, '__name__', shown(p.default))}"
        for p in parameters
    )
    return f"`{entry.make.__name__}({', '.join(options)})`"


def link(reference: catalogue.Reference | None) -> str:
    """A reference as a link: first author and year."""
    return "" if reference is None else f"[{reference.authors.split(',')[0]} {reference.year}]({reference.url})"


def properties(entry: catalogue.Entry) -> str:
    """What is unusual about an entry, in words."""
    words = {"stochastic": entry.stochastic, "couples the samples of a batch": entry.couples_batch}
    return ", ".join(word for word, holds in words.items() if holds)


def evaluations(entry: catalogue.Entry) -> str:
    """Evaluations for n steps, as a multiple of n where they are one."""
    if entry.evaluations is None:
        return "varies"
    few, many = entry.evaluations(12), entry.evaluations(24)
    slope, rest = (many - few) // 12, 2 * few - many
    return ("" if slope == 1 else f"{slope} ") + "n" + (f" {'+' if rest > 0 else '-'} {abs(rest)}" if rest else "")


def solvers() -> str:
    """All solvers."""
    rows = (
        [f"`{n}`", e.summary, str(e.order or ""), evaluations(e), properties(e), link(e.reference), call(e)]
        for n, e in catalogue.solvers.items()
    )
    return table(["name", "method", "order", "evaluations", "properties", "reference", "class"], rows)


def others(entries: Mapping[str, catalogue.Entry]) -> str:
    """All rules, fields, couplings or objectives."""
    rows = ([f"`{n}`", e.summary, properties(e), link(e.reference), call(e)] for n, e in entries.items())
    return table(["name", "what it does", "properties", "reference", "class"], rows)


def systems() -> str:
    """All systems: the main function of each."""
    rows = (
        [f"`{n}`", e.summary, link(e.reference), f"`{e.make.__module__}.{e.make.__name__}`"]
        for n, e in catalogue.systems.items()
    )
    return table(["name", "what it does", "reference", "main function"], rows)


def overview() -> str:
    """One line per kind of method."""
    kinds = {
        "solvers": catalogue.solvers,
        "guidance": catalogue.rules,
        "fields": catalogue.fields,
        "edits": catalogue.edits,
        "searches": catalogue.searches,
        "couplings": catalogue.couplings,
        "objectives": catalogue.objectives,
    }
    rows = [[kind, ", ".join(f"`{e.make.__name__}`" for e in table.values())] for kind, table in kinds.items()]
    rows.append(["systems", ", ".join(f"`{n}`" for n in catalogue.systems)])
    return table(["kind", "methods"], rows)


UNREAD = re.compile(r"(accuracy|spread)_\d+|compile_seconds")


def tables_of(numbers: Mapping[str, Any]) -> str:
    """Numbers as tables: one of single numbers, one for all parts that hold the same numbers; no lists of rows."""

    def number(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    def parts(numbers: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
        inner = {name: value for name, value in numbers.items() if isinstance(value, dict)}
        rest = numbers.keys() - inner.keys()
        single = {n: number(v) for n, v in numbers.items() if n in rest and not isinstance(v, list)}
        yield prefix, {name: value for name, value in single.items() if not UNREAD.fullmatch(name)}
        for name, value in inner.items():
            yield from parts(value, f"{prefix}: {name}" if prefix else name)

    found: list[str] = []
    loose: dict[str, str] = {}
    for names, group in itertools.groupby(
        ((p, v) for p, v in parts(numbers, "") if v), key=lambda part: tuple(part[1])
    ):
        same = list(group)
        if len(same) > 1 and len(names) > 1:
            found.append(table(["", *names], ([prefix, *values.values()] for prefix, values in same)))
        else:
            loose |= {f"{p}: {name}" if p else name: text for p, values in same for name, text in values.items()}
    return "\n\n".join([table(["", ""], loose.items()), *found] if loose else found)


def sweep(rows: list[Mapping[str, Any]]) -> str:
    """Solvers against evaluations: error / Frechet distance, the smallest of each column in bold."""
    counts = sorted({row["evaluations"] for row in rows})
    best = {
        (key, n): min(row[key] for row in rows if row["evaluations"] == n and row[key] is not None)
        for key in ("error", "frechet")
        for n in counts
    }

    def number(row: Mapping[str, Any], key: str, digits: int) -> str:
        if row[key] is None:
            return "-"
        text = f"{row[key]:.{digits}f}"
        return f"**{text}**" if row[key] == best[key, row["evaluations"]] else text

    cells = {
        (row["solver"], row["evaluations"]): f"{number(row, 'error', 3)} / {number(row, 'frechet', 2)}" for row in rows
    }
    names = dict.fromkeys(row["solver"] for row in rows)
    return table(["solver", *map(str, counts)], ([name, *(cells.get((name, n), "") for n in counts)] for name in names))


def stored() -> dict[str, Any]:
    """All stored benchmarks by name."""
    return {
        file.stem: json.loads(file.read_text()) for file in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    }


def swept() -> dict[str, Any]:
    """The numbers of the models on which all solvers were run."""
    return {name: result["numbers"] for name, result in stored().items() if "rows" in result["numbers"]}


def sweeps() -> str:
    """The sweep of solvers on each trained model."""
    parts = []
    for name, numbers in swept().items():
        steps, floor = numbers["steps of the reference"], numbers["Frechet distance of the reference"]
        parts += [
            f"## {numbers['model']}",
            f"Error / Frechet distance, {numbers['samples']} samples, guidance {numbers['guidance']}. The "
            f"reference of {steps:,} steps itself has a Frechet distance of {floor:.2f}.",
            f"![Error and distance of all solvers](figures/{name.rsplit('-', 1)[0]}.png)",
            sweep(numbers["rows"]),
        ]
    return "\n\n".join(parts)


CALIBRATED = ("dc_solver", "dpm_solver_v3", "searched schedule")


def advice() -> str:
    """For each model and number of evaluations, Euler and the solvers with the smallest errors."""
    lines = []
    for numbers in swept().values():
        for count in sorted({row["evaluations"] for row in numbers["rows"]}):
            rows = [row for row in numbers["rows"] if row["evaluations"] == count and row["error"] is not None]
            ready, prepared = [], []
            for row in rows:
                (prepared if row["solver"].startswith(CALIBRATED) else ready).append(row)
            [euler] = (row for row in rows if row["solver"] == "euler")
            best = (min(found, key=lambda row: row["error"]) for found in (ready, prepared))
            cells = (f"{row['error']:.3f} {row['solver']}" for row in best)
            lines.append([numbers["model"], str(count), f"{euler['error']:.3f}", *cells])
    return table(["model", "evaluations", "Euler", "best as it is", "best after a calibration"], lines)


def results() -> str:
    """Every stored benchmark: its claim, its numbers, and where they were measured."""
    parts = []
    for name, result in stored().items():
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        claim = result["claim"].removeprefix("Claim: ")
        parts += [f"### {name}", claim[0].upper() + claim[1:], tables_of(result["numbers"])]
        if "rows" in result["numbers"]:
            parts.append("All solvers: [Tables of the fast solvers](fast_solvers_tables.md).")
        parts.append(f"Measured on {result['device']} at {result['commit']}, {versions}.")
    return "\n\n".join(parts)


def one_evaluation() -> str:
    """Frechet distances of flows and of average velocities, over the seeds."""
    shown = [
        ("flow, 50 steps", "flow: 50 Euler steps"),
        ("flow, 1 step", "flow: 1 Euler step"),
        ("average velocities, 1 evaluation", "scratch: 1 evaluation"),
        ("2 evaluations", "scratch: 2 evaluations"),
        ("1 evaluation / 50 steps", "scratch: 1 evaluation / 50 steps of the flow"),
        ("1 step / 1 evaluation", "scratch: 1 Euler step of the flow / 1 evaluation"),
        ("from the flow, 1 evaluation", "continued: 1 evaluation"),
        ("2 evaluations", "continued: 2 evaluations"),
        ("accuracy, 1 evaluation", "scratch: accuracy, 1 evaluation"),
        ("seconds of the flow", "flow: seconds"),
        ("seconds of training", "scratch: seconds"),
        ("seconds from the flow", "continued: seconds"),
    ]
    found = of_data("one_evaluation_")
    titles = [f"{name} (seeds: {len(seeds(numbers))})" for name, numbers in found.items()]
    return table(["", *titles], ([text, *(spanned(n, key) for n in found.values())] for text, key in shown))


def few_steps() -> str:
    """A teacher and its students, one table for each data set: cost and quality, over the seeds."""
    texts = {
        "rectified": ("rectified", (1, 2)),
        "lcm": ("latent consistency", (1, 2, 4)),
        "lcm_lora": ("its adapters", (1, 2, 4)),
        "linear": ("policy, 1 component", (2, 3, 4)),
        "arcflow_4": ("ArcFlow, 4 components", (2, 3, 4)),
        "arcflow": ("ArcFlow, 16 components", (2, 3, 4)),
        "arcflow_lora": ("its adapters", (2, 3, 4)),
        "dmd2": ("distribution matching", (1,)),
        "meanflow": ("MeanFlow, without teacher", (1, 2)),
    }
    grids = (("euler", 1), ("euler", 2), ("euler", 4), ("heun", 8), ("heun", 8, ", quadratic"))
    rows = [
        (f"teacher, {solver}{''.join(more)}", steps * (2 if solver == "heun" else 1), key, None)
        for solver, steps, *more in grids
        for key in [f"teacher, {steps} steps of {solver}{''.join(more)}"]
    ]
    rows += [
        (text, count, f"{name}, {count}", name if count == counts[0] else None)
        for name, (text, counts) in texts.items()
        for count in counts
    ]
    turbo = [
        (f"FlowTurbo {name}, {times}", 9, f"FlowTurbo {name}, {times}", None)
        for times in ("uniform", "quadratic")
        for name in ("H1P7R1", "H1P6R2")
    ]
    rows += [(*turbo[0][:3], "refiner"), *turbo[1:]]
    qualities, costs = ("FD", "accuracy", "spread", "error"), ("seconds", "parameters")
    titles = ("", "evaluations", *qualities, "training, s", "parameters trained")
    parts, alone = [], of_data("one_evaluation_")
    for name, numbers in of_data("few_steps_").items():
        if not spanned(numbers, "meanflow, 1: FD"):  # measured by another script, with the same runs
            own = {"FD": "1 evaluation", "accuracy": "accuracy, 1 evaluation"}
            for seed, part in alone.get(name, {}).items():
                numbers[seed] |= {f"meanflow, 1: {to}": part[f"scratch: {key}"] for to, key in own.items()}
                numbers[seed] |= {"meanflow, 2: FD": part["scratch: 2 evaluations"]}
                numbers[seed] |= {"meanflow: seconds": part["scratch: seconds"]}
        cells = (
            [
                text,
                str(count),
                *(spanned(numbers, f"{key}: {quality}") for quality in qualities),
                *(spanned(numbers, f"{student}: {cost}") for cost in costs),
            ]
            for text, count, key, student in rows
            if spanned(numbers, f"{key}: FD")
        )
        parts += [f"{name} (seeds: {len(seeds(numbers))})", table(titles, cells)]
    return "\n\n".join(parts)


def solid_students() -> str:
    """Students of the two flows of solids, on bodies that nobody has trained on, over the seeds."""
    numbers = stored()["solids-cpu"]["numbers"]
    names = {"teacher": "teacher", "vm": "velocity matching", "vd": "with distillation", "lcm": "latent consistency"}
    columns = {
        "IoU": "structure, {}: IoU",
        "chamfer": "structure, {}: chamfer",
        "details, chamfer": "details, {}: chamfer",
        "colour error": "details, {}: colour error",
        "both, chamfer": "chain, {}: chamfer",
    }
    rows = []
    for name, text in names.items():
        for count in (1, 2, 25) if name == "teacher" else (1, 2):
            found = [spanned(numbers, key.format(f"{name}, {count}")) for key in columns.values()]
            costs = [spanned(numbers, f"{stage}, {name}: seconds") for stage in ("structure", "details")]
            rows.append([text, str(count), *found, *(costs if count == 1 else ["", ""])])
    return table(["", "evaluations", *columns, "structure, s", "details, s"], rows)


def stages() -> str:
    """Stages of MF-RAE against MeanFlow from scratch, over the seeds."""
    names = {
        "teacher": "teacher",
        "cmt": "`cmt`",
        "mfd": "`mfd`",
        "scratch": "MeanFlow from scratch, same cost and loss",
    }
    rows = []
    for data, numbers in of_data("mid_training_").items():
        for name, text in names.items():
            steps = {1: " Euler steps", 50: " Euler steps"} if name == "teacher" else {1: "", 2: ""}
            found = [
                spanned(numbers, f"{name}: {what}, {n}{of}") for what in ("FD", "accuracy") for n, of in steps.items()
            ]
            if name == "teacher":
                found = [cell and f"{cell} (50)" if i % 2 else cell for i, cell in enumerate(found)]
            run = {"cmt": "begun"}.get(name, name)
            peak = spanned(numbers, f"{run}: peak gradient norm, 200 steps") if name in ("cmt", "scratch") else ""
            rows.append([data, text, *found, peak, spanned(numbers, f"{name}: seconds")])
    columns = [
        "",
        "",
        "FD, 1 evaluation",
        "2 evaluations",
        "accuracy, 1",
        "2",
        "peak of the gradient from there",
        "seconds",
    ]
    return table(columns, rows)


def learned_rows() -> str:
    """Learned rows against the best fixed solver, over the seeds."""
    found = {}
    for name, runs in stored()["learned_rows-cpu"]["numbers"].items():
        for key, numbers in runs.items() if name != "speed" else ():
            found.setdefault((name, key.split(",")[0]), {})[key] = numbers
    rows = []
    for (name, count), numbers in found.items():
        best = ", ".join(dict.fromkeys(f"`{run['best fixed']}`" for run in numbers.values()))
        keys = ("its error", "error of learned rows", "ratio", "on training noises", "noises", "seconds of learning")
        keys += ("Frechet distance", "of the fine solution")
        rows.append([name, count, str(len(numbers)), best, *(spanned(numbers, key) for key in keys)])
    columns = ["model", "", "seeds", "best fixed solver", "its error", "learned rows", "ratio", "on training noises"]
    return table([*columns, "training noises", "seconds", "FD", "of the fine solution"], rows)


def of_data(prefix: str) -> dict[str, dict[str, Any]]:
    """Stored numbers by data set, of results of this prefix."""
    return {
        name.removeprefix(prefix).rsplit("-", 1)[0]: result["numbers"]
        for name, result in stored().items()
        if name.startswith(prefix)
    }


def seeds(numbers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The numbers of each seed."""
    return [part for part in numbers.values() if isinstance(part, dict)]


def spanned(numbers: Mapping[str, Any], key: str) -> str:
    """The range of a number over the seeds, or the number where it has none; empty where nobody has it."""
    values = [part[key] for part in (*seeds(numbers), numbers) if key in part]
    ends = (
        [f"{value:,}" if isinstance(value, int) else f"{value:.3g}" for value in (min(values), max(values))]
        if values
        else []
    )
    return " to ".join(dict.fromkeys(ends))


TABLES = {
    "results": results,
    "one_evaluation": one_evaluation,
    "few_steps": few_steps,
    "solid_students": solid_students,
    "stages": stages,
    "learned_rows": learned_rows,
    "sweeps": sweeps,
    "advice": advice,
    "catalogue": overview,
    "solvers": solvers,
    "rules": lambda: others(catalogue.rules),
    "scales": lambda: others(catalogue.scales),
    "edits": lambda: others(catalogue.edits),
    "fields": lambda: others(catalogue.fields),
    "searches": lambda: others(catalogue.searches),
    "couplings": lambda: others(catalogue.couplings),
    "objectives": lambda: others(catalogue.objectives),
    "systems": systems,
}


def fill(text: str) -> str:
    """A page with its tables made anew."""
    pattern = r"^<!-- (\w+) -->\n.*?^<!-- /\1 -->$"
    return re.sub(
        pattern,
        lambda match: f"<!-- {match[1]} -->\n{TABLES[match[1]]()}\n<!-- /{match[1]} -->",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )


def main() -> None:
    """Fills all pages, or checks them."""
    stale = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        filled = fill(text)
        if filled != text:
            stale[page] = filled
    if "--check" in sys.argv:
        sys.exit(f"out of date, run python docs/build.py: {', '.join(map(str, stale))}" if stale else 0)
    for page, text in stale.items():
        page.write_text(text)


if __name__ == "__main__":
    main()

"""Registers and tables: from the stages of a method to the numbers of a compiled loop.

What is still needed after an evaluation is given a *register* (register 0 is the solution). Each evaluation is a *row*:
its time, the combination at which it is made, and the combinations of (registers, value, noises) that are the next
registers. Rows, and the steps in between that make no evaluation, are the *stages* of a run. One loop runs the stages
of any method; its compiled program depends on their pattern only, not on their numbers.
"""

import dataclasses
import importlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from flowjax.paths.base import namespace
from flowjax.solvers.symbols import CONSTANT, Combination, Stage, is_number

State = Float[Any, "batch ..."]  # of NumPy or JAX
Registers = tuple[State, ...]


@dataclasses.dataclass(frozen=True)
class Combine:
    """A weighted sum over operands (registers, then the value, then noises, or `CONSTANT`).

    `first` is the column of its first weight.

    Example:
        >>> import flowjax as fj
        >>> bound = fj.solvers.Euler().bind(fj.paths.Linear(), fj.times.uniform(4))
        >>> bound.pattern.advance[0].sources  # the next x is a combination of x (0) and the value (1)
        (0, 1)
    """

    sources: tuple[int, ...]
    first: int


FIELD, SECOND, FREE = range(3)  # what a stage evaluates: the field, the solver's own second one, or nothing


class Line(NamedTuple):
    """The numbers of one stage (of many, when stacked).

    Example:
        >>> import flowjax as fj
        >>> bound = fj.solvers.Euler().bind(fj.paths.Linear(), fj.times.uniform(4))
        >>> line = bound.line(2)
        >>> float(line.time), line.weights.tolist()  # x' = 1 x + 0.25 v
        (0.5, [1.0, 0.25])
    """

    time: Any
    end: Any
    weights: Any
    arrays: dict[int, Any]

    def combine(self, entry: "int | Combine", operands: tuple[Any, ...]) -> Any:
        """One entry of a pattern."""
        if isinstance(entry, int):
            return operands[entry]
        total = None
        for column, source in enumerate(entry.sources, entry.first):
            x = operands[0 if source == CONSTANT else source]
            weight = self.arrays[column] if column in self.arrays else self.weights[column]
            term = namespace(x, weight).asarray(weight, dtype=x.dtype)
            term = term if source == CONSTANT else term * x
            total = term if total is None else total + term
        return total


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The static half of bound rows: everything that decides the compiled program.

    `point`, `velocity` and each entry of `advance` are an operand's number (a plain copy) or a `Combine`.

    Example:
        >>> import flowjax as fj
        >>> pattern = fj.solvers.DPMSolver(order=2).bind(fj.paths.VP(), fj.times.uniform(10)).pattern
        >>> pattern.rows, pattern.registers, pattern.to, pattern.noises
        (10, 2, 'data', 0)
    """

    registers: int
    noises: int
    to: str
    kinds: tuple[int, ...]  # per stage: FIELD, SECOND or FREE
    completes: tuple[bool, ...]  # per stage: whether a step of the grid is complete after it; () for padded rows
    point: int | Combine
    velocity: int | Combine | None
    advance: tuple[int | Combine, ...]

    @property
    def rows(self) -> int:
        """Number of evaluations."""
        return len(self.stages)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage of every row: nearly always the same number."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind != FREE)

    def free(self, stage: int) -> range:
        """The stages without an evaluation that follow a stage (-1 for the start)."""
        stop = stage + 1
        while stop < len(self.kinds) and self.kinds[stop] == FREE:
            stop += 1
        return range(stage + 1, stop)

    def step_stages(self) -> list[tuple[int, int]]:
        """For every step of the grid, its first stage and the stage after its last."""
        ends = [i + 1 for i, done in enumerate(self.completes) if done]
        return list(zip([0, *ends[:-1]], ends, strict=True))


def tabulate(stages: list[Stage], registers: int | None) -> tuple[Line, Pattern]:
    """Allocates registers and tabulates the coefficients: the numbers of all stages, and their pattern.

    Args:
        stages: of the method.
        registers: as in `Solver.bind`.
    """
    rows = [stage.request for stage in stages if stage.request is not None]
    predictions = sorted({request.to for request in rows})
    if len(predictions) != 1:
        raise ValueError(f"a method asks for one kind of prediction, this one asks for {predictions}")
    if any(stage.noises for stage in stages if stage.request is None):
        raise ValueError("a step without an evaluation cannot draw noise")

    contents = _register_contents(stages)
    width = max(len(atoms) for atoms in contents)
    if registers is not None and registers < width:
        raise ValueError(f"this method needs {width} registers, got registers={registers}")
    size = width if registers is None else registers
    noises = max(len(stage.noises) for stage in stages)

    point_lines, velocity_lines = [], []
    advance_lines: list[list[dict[int, Any] | None]] = [[] for _ in range(size)]
    for number, stage in enumerate(stages):
        columns = {atom: i for i, atom in enumerate(contents[number])}
        columns |= {CONSTANT: CONSTANT} | ({} if stage.value is None else {stage.value: size})
        columns |= {atom: size + 1 + i for i, atom in enumerate(stage.noises)}

        def resolve(combination: Combination, columns=columns, stage=stage) -> dict[int, Any]:
            total = Combination({})
            for atom, coefficient in combination.terms.items():
                inner = (
                    Combination({columns[atom]: 1.0})
                    if atom in columns
                    else Combination(resolve(stage.definitions[atom], columns, stage))
                )
                total = total + inner * coefficient
            return total.terms

        request = stage.request
        point_lines.append(None if request is None else resolve(request.x))
        velocity_lines.append(None if request is None or request.velocity is None else resolve(request.velocity))
        kept = contents[number + 1]
        for i in range(size):
            advance_lines[i].append(resolve(Combination({kept[i]: 1.0})) if i < len(kept) else None)

    dense = None if registers is None else tuple(range(size))
    drawn = (*range(size + 1, size + 1 + noises), CONSTANT)
    table = _Table(len(stages))
    advance = tuple(table.entry(lines, dense and (*dense, size, *drawn)) for lines in advance_lines)
    point = table.entry(point_lines, dense and (*dense, *drawn))
    velocity = table.entry(velocity_lines, dense) if any(line is not None for line in velocity_lines) else None
    times = np.array([0.0 if stage.request is None else stage.request.t for stage in stages])
    ends = [None if stage.request is None else stage.request.end for stage in stages]
    pattern = Pattern(
        registers=size,
        noises=noises,
        to=predictions[0],
        kinds=tuple(FREE if s.request is None else SECOND if s.request.second else FIELD for s in stages),
        completes=() if registers is not None else tuple(stage.solution is not None for stage in stages),
        point=point,
        velocity=velocity,
        advance=advance,
    )
    some = any(ends)
    spans = np.array([t if end is None else end for t, end in zip(times, ends, strict=True)]) if some else None
    return Line(times, spans, table.weights(), table.arrays), pattern


def _register_contents(stages: list[Stage]) -> list[list[int]]:
    """Which atoms are in the registers before each stage and at the end: the solution, then the newest first."""
    born = {0: 0}  # first stage before which the atom is in a register
    for number, stage in enumerate(stages):
        for atom in [*stage.definitions, *stage.noises, *([] if stage.value is None else [stage.value])]:
            born[atom] = number + 1
    last_use: dict[int, int] = {}
    for number, stage in enumerate(stages):
        for combination in stage.uses():
            for atom in combination.terms.keys() - {CONSTANT}:
                last_use[atom] = number
    contents: list[list[int]] = []
    solution = 0
    for number in range(len(stages) + 1):
        live = [atom for atom, last in last_use.items() if born[atom] <= number <= last and atom != solution]
        contents.append([solution, *sorted(live, reverse=True)])
        completed = stages[number].solution if number < len(stages) else None
        solution = solution if completed is None else completed
    return contents


class _Table:
    """Collects the coefficients of all entries in columns, one line per stage."""

    def __init__(self, stages: int):
        self.stages = stages
        self.columns: list[Any] = []
        self.arrays: dict[int, Any] = {}

    def entry(self, lines: list[dict[int, Any] | None], dense: tuple[int, ...] | None) -> int | Combine:
        """Adds one output. A line is None where the output is not needed, so that anything finite may stand there."""
        needed = [line for line in lines if line is not None]
        sources = tuple(sorted({source for line in needed for source in line}))
        if dense is not None:
            sources = dense
        elif (
            len(sources) == 1
            and sources[0] != CONSTANT
            and all(is_number(line.get(sources[0], 0), 1) for line in needed)
        ):
            return sources[0]
        first = len(self.columns)
        for source in sources:
            column = [0.0 if line is None else line.get(source, 0.0) for line in lines]
            if any(np.ndim(c) for c in column):
                if dense is not None:
                    raise ValueError("per-element coefficients have no dense form; use registers=None")
                shape = np.broadcast_shapes(*(np.shape(c) for c in column))
                xp = namespace(*column)
                self.arrays[len(self.columns)] = xp.stack([xp.broadcast_to(xp.asarray(c), (1, *shape)) for c in column])
                column = [0.0] * self.stages
            self.columns.append(namespace(*column).stack(column))
        if not sources:  # zero throughout
            self.columns.append(np.zeros(self.stages))
        return Combine(sources=sources or (0,), first=first)

    def weights(self) -> Any:
        """The (stages, columns) matrix of scalar coefficients."""
        if not self.columns:
            return np.zeros((self.stages, 0))
        return namespace(*self.columns).stack(self.columns, axis=1)


def __getattr__(name: str) -> Any:
    """The words for methods of one's own, where version 0.1 had them; until version 0.3 (2026-11)."""
    for module in ("requests", "solver", "bound", "symbols"):
        found = getattr(importlib.import_module(f"flowjax.solvers.{module}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

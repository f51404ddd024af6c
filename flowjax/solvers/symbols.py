"""Runs a method once on symbols: what every stage evaluates and defines.

A state is a linear combination of the initial state, of values and of noises, with float64 coefficients.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from flowjax.solvers.requests import (
    Direction,
    Evaluate,
    Keep,
    Noise,
    Request,
    Step,
    Updates,
    interpret,
    keep,
    own_answer,
    rewritten,
)

CONSTANT = -1  # the atom, and the operand, that is 1


class Combination:
    """A linear combination of numbered atoms; supports +, - and scaling by numbers (concrete or traced).

    Adding a number or an array of a sample's shape adds a constant.

    Example:
        >>> from flowjax.solvers.symbols import Combination
        >>> x, v = Combination({0: 1.0}), Combination({1: 1.0})
        >>> (x + 0.25 * v).terms
        {0: 1.0, 1: 0.25}
        >>> (x + v - v).terms
        {0: 1.0}
    """

    __array_ufunc__ = None  # NumPy scalars leave the arithmetic to this class

    def __init__(self, terms: dict[int, Any]):
        self.terms = terms

    def __add__(self, other: Any) -> "Combination":
        if not isinstance(other, Combination):
            other = Combination({CONSTANT: other})
        terms = dict(self.terms)
        for atom, coefficient in other.terms.items():
            terms[atom] = terms[atom] + coefficient if atom in terms else coefficient
        return Combination({atom: c for atom, c in terms.items() if not is_number(c, 0)})

    def __mul__(self, factor: Any) -> "Combination":
        if isinstance(factor, Combination):
            return NotImplemented
        return Combination({a: c * factor for a, c in self.terms.items() if not is_number(factor, 0)})

    def __truediv__(self, divisor: Any) -> "Combination":
        return self * (1.0 / divisor)

    def __neg__(self) -> "Combination":
        return self * -1.0

    def __sub__(self, other: "Combination") -> "Combination":
        return self + -other

    __rmul__ = __mul__
    __radd__ = __add__


def is_number(coefficient: Any, number: float) -> bool:
    """Whether a coefficient is concretely this number (a traced or per-element one is not)."""
    if type(coefficient) is float:  # nearly always
        return coefficient == number
    return not isinstance(coefficient, jax.Array) and np.ndim(coefficient) == 0 and bool(coefficient == number)


@dataclasses.dataclass
class Stage:
    """An evaluation (None if a step follows another without one) and the definitions after it.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.solvers.symbols import trace
        >>> stages = trace(lambda x: fj.solvers.Heun().updates(fj.paths.Linear(), [0.0, 1.0], x))
        >>> [stage.request.t for stage in stages], [stage.solution is None for stage in stages]
        ([0.0, 1.0], [True, False])
    """

    request: Evaluate | None
    value: int | None = None
    noises: list[int] = dataclasses.field(default_factory=list)
    definitions: dict[int, Combination] = dataclasses.field(default_factory=dict)
    solution: int | None = None  # the atom of the step completed here

    def uses(self) -> list[Combination]:
        """The combinations this stage needs of what existed before it."""
        request = self.request
        inputs = [] if request is None else [request.x] + ([request.velocity] if request.velocity is not None else [])
        return inputs + list(self.definitions.values())


def trace(updates: Callable[[Combination], Updates]) -> list[Stage]:
    """Runs a method on symbols. Atom 0 is the initial state."""
    stages: list[Stage] = []
    pending: list[int] = []  # noises requested since the last evaluation that no definition has used yet
    numbers = itertools.count(1)

    def answer(request: Request) -> Combination:
        nonlocal pending
        if isinstance(request, Direction) or (isinstance(request, Keep) and not stages):  # nothing to store yet
            return own_answer(request)
        new = next(numbers)
        if isinstance(request, Evaluate):
            stages.append(Stage(request, value=new, noises=pending))
            pending = []
        elif isinstance(request, Noise):
            pending.append(new)
        else:
            if not stages or (isinstance(request, Step) and stages[-1].solution is not None):
                stages.append(Stage(None))
            stage, combination = stages[-1], own_answer(request)
            used = [z for z in pending if z in combination.terms]
            drawn_in = next((earlier for earlier in reversed(stages) if earlier.request is not None), stage)
            drawn_in.noises += used
            pending = [z for z in pending if z not in used]
            stage.definitions[new] = combination
            if isinstance(request, Step):
                stage.solution = new
        return Combination({new: 1.0})

    for _ in interpret(updates(Combination({0: 1.0})), answer):
        pass
    return stages


def asking_for_the_velocity(requests: Updates, path: Any) -> Updates:
    """The same requests, where data and noise are made from x and the velocity, which determine them."""

    def rewrite(request: Request) -> Updates:
        if not isinstance(request, Evaluate) or request.to not in ("data", "noise"):
            return (yield request)
        t, to = request.t, request.to
        if request.second:
            raise ValueError(
                f"padded rows (registers=) ask for the velocity, from which a second field's {to} cannot be made: use "
                "methods of the velocity form, or leave registers out"
            )
        if not path.has_velocity(t):
            raise ValueError(
                f"padded rows (registers=) ask for the velocity, which is infinite at t = {t:g}: move that end of "
                "the times, or leave registers out"
            )
        v = yield dataclasses.replace(request, to="velocity")
        return (yield keep(path.convert(v, given="velocity", to=to, t=t, x=request.x)))

    return rewritten(requests, rewrite)


def joined(stages: list[Stage]) -> list[Stage]:
    """Stages without an evaluation become part of the one before; what the leading ones define is spelled out."""
    known: dict[int, Combination] = {}

    def spelled(combination: Combination) -> Combination:
        parts = (known.get(atom, Combination({atom: 1.0})) * c for atom, c in combination.terms.items())
        return sum(parts, Combination({}))

    while stages and stages[0].request is None and not stages[0].noises:
        for atom, definition in stages[0].definitions.items():
            known[atom] = spelled(definition)
        stages = stages[1:]
    result: list[Stage] = []
    for stage in stages:
        if known:
            stage.definitions = {atom: spelled(definition) for atom, definition in stage.definitions.items()}
            if stage.request is not None:
                inputs = {"x": stage.request.x, "velocity": stage.request.velocity}
                inputs = {name: spelled(value) for name, value in inputs.items() if value is not None}
                stage.request = dataclasses.replace(stage.request, **inputs)
        if stage.request is None and result and result[-1].request is not None:
            result[-1].definitions |= stage.definitions
            result[-1].solution = stage.solution
        else:
            result.append(stage)
    return result

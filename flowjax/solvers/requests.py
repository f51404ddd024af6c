"""The words a method is written in.

A method is a generator that reads like its paper and yields *requests*: `evaluate(t, x)` answers with the field's
value, `step(x)` declares the solution at the next grid time, `keep(value)` asks for a combination to be stored as it is
(momentum), `noise()` answers with fresh standard normals, `direction(value)` announces the quantity that a wrapper such
as HeavyBall may replace.
"""

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluate:
    """Asks for the field's value at (t, x): one network evaluation.

    Args:
        t: time in [0, 1].
        x: the state, a linear combination of what the generator was given.
        to: prediction asked for; the same in all requests of one method.
        end: end of the span for networks that take `end=` (flow maps).
        velocity: a combination passed to the network as `velocity=`.
        second: ask the solver's own second field (`solver.second`: a refiner, a guidance) instead of the main one.
    """

    t: float
    x: Any
    _: dataclasses.KW_ONLY
    to: str = "velocity"
    end: float | None = None
    velocity: Any = None
    second: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Declares x as the solution at the next time of the grid; answered with x."""

    x: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Keep:
    """Stores a combination, so that later uses do not spell out its history; answered with it."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Asks for fresh standard normal noise of the state's shape."""


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """Announces the direction of the step; answered with it, unless a wrapper changes it."""

    value: Any


evaluate, step, keep, noise, direction = Evaluate, Step, Keep, Noise, Direction  # as methods write them
Request = Evaluate | Step | Keep | Noise | Direction
Updates = Generator[Request, Any, Any]


def pairs(times: Iterable[T]) -> Iterator[tuple[T, T]]:
    """Consecutive pairs (s, t) of a grid."""
    return itertools.pairwise(times)


def interpret(requests: Updates, answer: Callable[[Request], Any]) -> Iterator[Any]:
    """Runs a method with the answers of a function; yields the solution after every step."""
    given: Any = None
    while True:
        try:
            request = requests.send(given)
        except StopIteration:
            return
        given = answer(request)
        if isinstance(request, Step):
            yield given


def own_answer(request: Request) -> Any:
    """The answer to a step, a kept value or a direction that nobody changes."""
    return request.x if isinstance(request, Step) else request.value  # type: ignore[union-attr]


def rewritten(requests: Updates, rewrite: Callable[[Request], Updates]) -> Updates:
    """A method whose every request is replaced by those of `rewrite(request)`, a generator that returns the answer."""
    given: Any = None
    while True:
        try:
            request = requests.send(given)
        except StopIteration:
            return
        given = yield from rewrite(request)

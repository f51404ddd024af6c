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

    Example:
        >>> import flowjax as fj
        >>> requests = fj.solvers.Heun().updates(fj.paths.Linear(), [0.0, 0.5], 1.0)
        >>> first = next(requests)
        >>> second = requests.send(-1.0)  # the value there: Heun's second slope is at x + h v
        >>> (first.t, first.x), (second.t, second.x)
        ((0.0, 1.0), (0.5, 0.5))
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
    """Declares x as the solution at the next time of the grid; answered with x.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.solvers.requests import evaluate, pairs, step
        >>> def euler(path, times, x):
        ...     for s, t in pairs(times):
        ...         x = yield step(x + (t - s) * (yield evaluate(s, x)))
        >>> bound = fj.solvers.Formula(function=euler).bind(fj.paths.Linear(), [0.0, 0.5, 1.0])
        >>> bound.pattern.step_stages()  # each step is one stage
        [(0, 1), (1, 2)]
    """

    x: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Keep:
    """Stores a combination, so that later uses do not spell out its history; answered with it.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.solvers.requests import evaluate, keep, pairs, step
        >>> def averaged(path, times, x):
        ...     mean = yield evaluate(times[0], x)
        ...     for s, t in pairs(times):
        ...         mean = yield keep((mean + (yield evaluate(s, x))) / 2)
        ...         x = yield step(x + (t - s) * mean)
        >>> bound = fj.solvers.Formula(function=averaged).bind(fj.paths.Linear(), fj.times.uniform(4))
        >>> bound.pattern.registers  # x and the mean
        2
    """

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Asks for fresh standard normal noise of the state's shape.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.solvers.requests import evaluate, noise, pairs, step
        >>> def euler_maruyama(path, times, x):
        ...     for s, t in pairs(times):
        ...         z = yield noise()
        ...         x = yield step(x + (t - s) * (yield evaluate(s, x)) + (t - s) ** 0.5 * z)
        >>> fj.solvers.Formula(function=euler_maruyama).bind(fj.paths.Linear(), fj.times.uniform(4)).pattern.noises
        1
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """Announces the direction of the step; answered with it, unless a wrapper changes it.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.solvers.requests import direction, evaluate, pairs, step
        >>> def euler(path, times, x):
        ...     for s, t in pairs(times):
        ...         x = yield step(x + (t - s) * (yield direction((yield evaluate(s, x)))))
        >>> solver = fj.solvers.Formula(function=euler)
        >>> damped = fj.solvers.HeavyBall(solver=solver, beta=0.8)  # refused without a direction
        >>> damped.bind(fj.paths.Linear(), fj.times.uniform(4)).pattern.registers
        2
    """

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

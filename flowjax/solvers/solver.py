"""From a formula to rows: what every fixed-grid solver is.

`Solver.bind` runs the method once on the host, on symbols, and makes rows of what it asked for; the same generator run
on arrays is the foreign loop and the test oracle.
"""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from flowjax._pytree import pytree
from flowjax.paths.base import GaussianPath
from flowjax.solvers.bound import Bound
from flowjax.solvers.requests import Evaluate, Noise, Request, Updates, interpret, own_answer
from flowjax.solvers.rows import tabulate
from flowjax.solvers.symbols import asking_for_the_velocity, joined, trace
from flowjax.times import check_times


class Solver(abc.ABC):
    """A fixed-grid method: frozen keyword-only hyper-parameters and the generator `updates`.

    Example:
        >>> import flowjax as fj
        >>> from flowjax._pytree import pytree
        >>> from flowjax.solvers.requests import direction, evaluate, pairs, step
        >>> @pytree
        ... class Ralston(fj.solvers.Solver):
        ...     def updates(self, path, times, x):
        ...         for s, t in pairs(times):
        ...             h, d = t - s, (yield evaluate(s, x))
        ...             e = yield evaluate(s + 2 * h / 3, x + 2 * h / 3 * d)
        ...             x = yield step(x + h * (yield direction((d + 3 * e) / 4)))
        >>> Ralston().bind(fj.paths.Linear(), fj.times.uniform(5)).pattern.rows
        10
    """

    second: Any = None  # a field of the method's own, which `evaluate(..., second=True)` asks
    stochastic: bool = False  # whether the method is one of an SDE: such a run cannot be inverted
    asks: tuple[str, ...] = ()  # what it asks a network for besides (x, t, cond): "end"
    no_direction: str = ""  # why momentum (HeavyBall, Nesterov) cannot act on the method; empty where it can

    @abc.abstractmethod
    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The method as a generator of requests, from `times[0]` to `times[-1]`.

        Args:
            path: the path, for its coefficients at concrete times.
            times: the grid, n + 1 floats, increasing, or for an inversion decreasing.
            x: the initial state (symbols or arrays).
        """

    def bind(self, path: Any, times: Any, *, registers: int | None = None, invert: bool = False) -> Bound:
        """Turns the formula into rows for this path and grid.

        Args:
            path: the field's path: a `GaussianPath`, or an `Interpolant` for methods that ask it for nothing but times.
            times: n + 1 concrete increasing times in [0, 1].
            registers: None compiles the exact pattern of zeros and copies of this method. An integer pads to that many
                registers with dense weights and asks for the velocity, whatever the method expands: all deterministic
                methods with equally many rows then share one program. Padded rows keep no account of steps: they have
                no trajectory, `after_step` or diffrax form.
            invert: times decrease, and the run goes from data to noise. Deterministic methods only.

        Raises:
            ValueError: bad times, a method undefined on this grid, a stochastic one to be inverted, or too few
                registers.
        """
        grid = self.grid(times, invert=invert)

        def updates(x: Any) -> Updates:
            requests = self.updates(path, grid.tolist(), x)
            return requests if registers is None else asking_for_the_velocity(requests, path)

        stages = trace(updates)
        steps = sum(stage.solution is not None for stage in stages)
        if steps != len(grid) - 1:
            raise ValueError(f"{type(self).__name__} made {steps} steps on a grid of {len(grid) - 1}")
        if registers is not None:
            stages = joined(stages)
            grid = np.append(grid, [grid[-1]] * (len(stages) + 1 - len(grid)))[-len(stages) - 1 :]
        if invert and any(stage.noises for stage in stages):
            raise ValueError(_NOT_INVERTED.format(self))
        for request in (stage.request for stage in stages if stage.request is not None):
            if request.to == "velocity" and not path.has_velocity(request.t):
                raise ValueError(
                    f"the velocity of {path!r} is infinite at t = {request.t:g}, where {type(self).__name__} evaluates "
                    "it: move that end of the times"
                )
        lines, pattern = tabulate(stages, registers)
        return Bound(grid, *lines, second=self.second, pattern=pattern)

    def grid(self, times: Any, *, invert: bool = False) -> Float[np.ndarray, " times"]:
        """The times as a float64 array.

        Raises:
            ValueError: bad times, or a stochastic method to be inverted.
        """
        if invert and self.stochastic:
            raise ValueError(_NOT_INVERTED.format(self))
        return check_times(times, invert=invert)


_NOT_INVERTED = "{!r} draws noise, which no run back from the data can undo: invert=True is for deterministic solvers"


@pytree
class Formula(Solver):
    """A solver from a bare generator function `(path, times, x) -> requests`, for methods of your own.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.solvers.requests import evaluate, pairs, step
        >>> def euler(path, times, x):
        ...     for s, t in pairs(times):
        ...         x = yield step(x + (t - s) * (yield evaluate(s, x)))
        >>> fj.solvers.Formula(function=euler).bind(fj.paths.Linear(), fj.times.uniform(4)).pattern.rows
        4
    """

    function: Callable[..., Updates]

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Calls the function."""
        return self.function(path, times, x)


def run_on_arrays(
    solver: Solver,
    path: GaussianPath,
    times: Any,
    x: Any,
    network: Callable[..., Any],
    noise: Callable[[], Any] | None = None,
    *,
    invert: bool = False,
) -> list[Any]:
    """The same generator run on arrays: a plain Python loop, in the arrays' own precision.

    Args:
        solver: the method.
        path: the path.
        times: the grid.
        x: initial state, (B, ...).
        network: called as network(request) for each `Evaluate`; returns the prediction `request.to` at
            (request.t, request.x).
        noise: called for each noise of a stochastic method.
        invert: as in `Solver.bind`.

    Returns:
        The solution at every time of the grid, n + 1 arrays.
    """

    def answer(request: Request) -> Any:
        if isinstance(request, Evaluate):
            return network(request)
        if isinstance(request, Noise):
            if noise is None:
                raise ValueError("this method is stochastic: pass noise=, a function that draws it")
            return noise()
        return own_answer(request)

    return [x, *interpret(solver.updates(path, solver.grid(times, invert=invert).tolist(), x), answer)]

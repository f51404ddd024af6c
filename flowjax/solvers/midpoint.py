"""The explicit midpoint rule in t: x' = x + h v(s + h/2, x + h/2 v(s, x)), h = t - s."""

from typing import Any

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.requests import Updates, direction, evaluate, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "midpoint", "explicit midpoint rule", cite="hairer1993solving", order=2)
@pytree
class Midpoint(Solver):
    """The midpoint rule on the velocity (second order).

    x' = x + h v(s + h/2, x + h/2 v(s, x)), h = t - s.

    Order 2, two evaluations per step, none of them at the end of the step.

    Example:
        >>> import flowjax as fj
        >>> bound = fj.solvers.Midpoint().bind(fj.paths.Linear(), fj.times.uniform(4))
        >>> bound.times.tolist()
        [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    """

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """One half Euler step, then the slope there for the whole step."""
        for s, t in pairs(times):
            h = t - s
            d = yield evaluate(s + h / 2, x + h / 2 * (yield evaluate(s, x)))
            x = yield step(x + h * (yield direction(d)))

"""The classical Runge-Kutta method in t."""

from typing import Any

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.requests import Updates, direction, evaluate, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "rk4", "classical Runge-Kutta method", cite="hairer1993solving", order=4)
@pytree
class RK4(Solver):
    """The classical fourth-order Runge-Kutta method on the velocity.

    With h = t - s: a = v(s, x), b = v(s + h/2, x + h/2 a), c = v(s + h/2, x + h/2 b), d = v(t, x + h c),
    x' = x + h (a + 2 b + 2 c + d) / 6. Order 4, four evaluations per step. On a path whose velocity is
    infinite at t = 1 (VP, cosine) a last step that ends there is a midpoint step: 4 n - 2 evaluations.

    Example:
        >>> import flowjax as fj
        >>> times = fj.times.uniform(5)
        >>> [fj.solvers.RK4().bind(path, times).pattern.rows for path in (fj.paths.Linear(), fj.paths.VP())]
        [20, 18]
    """

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Four slopes, weights 1, 2, 2, 1."""
        for s, t in pairs(times):
            h = t - s
            a = yield evaluate(s, x)
            b = yield evaluate(s + h / 2, x + h / 2 * a)
            if path.has_velocity(t):
                c = yield evaluate(s + h / 2, x + h / 2 * b)
                d = yield evaluate(t, x + h * c)
                b = (a + 2 * b + 2 * c + d) / 6
            x = yield step(x + h * (yield direction(b)))

"""Euler's method in t: x' = x + (t - s) v(s, x)."""

from typing import Any

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.requests import Updates, direction, evaluate, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "euler", "Euler's method on the velocity", cite="lipman2022flow", order=1)
@pytree
class Euler(Solver):
    """Euler's method on the velocity.

    x' = x + (t - s) v(s, x): order 1, one evaluation per step, at its start. On the linear path it equals DDIM; on
    others it does not.

    Example:
        >>> import flowjax as fj
        >>> fj.solvers.Euler().bind(fj.paths.Linear(), fj.times.uniform(8)).pattern.rows
        8
    """

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """x + (t - s) v."""
        for s, t in pairs(times):
            v = yield direction((yield evaluate(s, x)))
            x = yield step(x + (t - s) * v)

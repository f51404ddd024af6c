"""Heun's method in t, the explicit trapezoid: d = v(s, x), e = v(t, x + (t - s) d), x' = x + (t - s)(d + e)/2."""

from typing import Any

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.requests import Updates, direction, evaluate, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "heun", "Heun's method (explicit trapezoid)", cite="hairer1993solving", order=2)
@pytree
class Heun(Solver):
    """Heun's method on the velocity (second order).

    d = v(s, x), e = v(t, x + (t - s) d), x' = x + (t - s) (d + e) / 2.

    Order 2, two evaluations per step. On a path whose velocity is infinite at t = 1 (VP, cosine) a last step that ends
    there is an Euler step: 2 n - 1 evaluations.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.Linear()
        >>> flow = fj.Flow(fj.oracles.Gaussian(mean=1.0, std=0.5, path=path).network(), path=path)
        >>> result = fj.solve(flow, fj.solvers.Heun(), jnp.full((1, 1), 0.5), fj.times.uniform(10))
        >>> int(result.evaluations), round(float(result.x[0, 0]), 2)  # exact: 1 + 0.5 * 0.5
        (20, 1.25)
    """

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Predictor d, corrector (d + e) / 2."""
        for s, t in pairs(times):
            d = yield evaluate(s, x)
            if path.has_velocity(t):
                e = yield evaluate(t, x + (t - s) * d)
                d = (d + e) / 2
            x = yield step(x + (t - s) * (yield direction(d)))

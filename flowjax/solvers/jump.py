"""Jumps along average velocities: x' = x + (t - s) U(s, x; t)."""

from typing import Any

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.requests import Updates, evaluate, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "jump", "one evaluation over each span, for networks of average velocities", cite="geng2025mean")
@pytree
class Jump(Solver):
    """Follows the flow map of a network that knows average velocities, asked with `end=`.

    U(s, x; t) = 1/(t - s) int_s^t v(r, x_r) dr along the flow through x at s, so x' = x + (t - s) U(s, x; t) is the
    flow itself: exact for an exact network, in any number of steps, also in one. A network of plain velocities has no
    such argument and is refused; so are decreasing grids, on which these networks were not trained.

    Reference: Geng et al. (2505.13447), algorithm 2.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> flow = fj.Flow(target.network("mean_velocity"), path=target.path)
        >>> x = fj.solve(flow, fj.solvers.Jump(), jnp.array([[0.3]]), fj.times.uniform(1)).x
        >>> round(float(x[0, 0]), 5)  # 2 + 0.5 * 0.3
        2.15
    """

    asks = ("end",)
    no_direction = "its steps are no velocities at one time"

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """x + (t - s) U."""
        if times[0] > times[-1]:
            raise ValueError(
                "Jump goes from noise to data: average velocities are trained for spans whose end lies behind their "
                "start; invert with another solver, such as Heun(), which asks the network for velocities"
            )
        for s, t in pairs(times):
            x = yield step(x + (t - s) * (yield evaluate(s, x, end=t)))

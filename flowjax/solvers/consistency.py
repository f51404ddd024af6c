"""Multistep consistency sampling: from every state to the data at once, and back to less noise with fresh noise."""

from typing import Any

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.requests import Updates, evaluate, noise, pairs, step
from flowjax.solvers.solver import Solver


@fact(
    "solver", "consistency", "to the data and back with fresh noise, for consistency models", cite="song2023consistency"
)
@pytree
class Consistency(Solver):
    """Samples of a consistency model f, a network that leads from any state to the end of its trajectory.

    A step from s to t asks for d = f(x, s), the data prediction, and goes on with

        x' = alpha(t) d + sigma(t) z,   z ~ N(0, I);

    the last step answers with d, whatever its time. One evaluation per step. With an exact f the samples have the exact
    law for any number of steps; those of an inexact one improve with the steps. The mean of the data, which other
    networks predict, is no such f. `flowjax.times.skipping` has the times of the published latent consistency models.

    Reference: Song et al. (2023), Consistency Models, algorithm 1, arXiv:2303.01469.

    Example:
        >>> import flowjax as fj, jax
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> flow = fj.Flow(lambda x, t, cond: target.flow_map(x, t, 1.0), path=target.path, prediction="data")
        >>> x = fj.noise(jax.random.key(0), (5000, 1))
        >>> x = fj.solve(flow, fj.solvers.Consistency(), x, fj.times.uniform(4), key=jax.random.key(1)).x
        >>> round(float(x.mean()), 1), round(float(x.std()), 1)
        (2.0, 0.5)
    """

    stochastic = True
    no_direction = "its steps begin anew from the data prediction"

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """d, and alpha d + sigma z."""
        for number, (s, t) in enumerate(pairs(times), 2):
            d = yield evaluate(s, x, to="data")
            if number == len(times):
                x = yield step(d)
            else:
                x = yield step(float(path.alpha(t)) * d + float(path.sigma(t)) * (yield noise()))

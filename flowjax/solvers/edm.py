"""EDM's sampler (Karras et al., 2206.00364, algorithm 2) on any path: Heun's method in k = sigma/alpha, with churn."""

import math
from typing import Any

import numpy as np

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.ends import check_noise_left
from flowjax.solvers.requests import Updates, direction, evaluate, noise, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "edm_heun", "EDM's sampler: Heun in sigma/alpha, optional churn", cite="karras2022elucidating", order=2)
@pytree
class EDMHeun(Solver):
    """EDM's stochastic or deterministic second-order sampler.

    In y = x/alpha the flow is dy/dk = e = (y - m)/k. A step from k to k' first adds noise (if S_tmin <= k <= S_tmax),
    raising k to kh = k (1 + gamma), gamma = min(S_churn/N, sqrt(2) - 1), yh = y + sqrt(kh^2 - k^2) S_noise z, and then

        d = (yh - m(yh, kh))/kh,  y' = yh + (k' - kh) d,  and if k' > 0:  y' = yh + (k' - kh)(d + (y' - m(y', k'))/k')/2

    Order 2 without churn. Two evaluations per step, one in a last step that ends at k' = 0: 2 N - 1. A step that starts
    from all noise (alpha = 0, infinite k) is its limit, one DDIM step, and so is one of an inversion that ends there.

    Args:
        s_churn: amount of added noise; 0 is deterministic.
        s_tmin: smallest noise level k at which noise is added.
        s_tmax: largest one.
        s_noise: standard deviation of the added noise.

    Raises:
        ValueError: a number that is negative or not one, or an empty range of levels.

    Reference: Karras et al. (2206.00364), algorithm 2.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.EDM()
        >>> target = fj.oracles.Gaussian(mean=1.0, std=0.5, path=path)
        >>> flow, x = fj.Flow(target.network("data"), path=path, prediction="data"), path.start(jnp.full((1, 1), 0.5))
        >>> result = fj.solve(flow, fj.solvers.EDMHeun(), x, fj.times.uniform(40))
        >>> round(float(result.x[0, 0]), 2), round(float(target.flow_map(x, 0.0, 1.0)[0, 0]), 2)
        (1.25, 1.24)
    """

    s_churn: float = static(0.0)
    s_tmin: float = static(0.0)
    s_tmax: float = static(math.inf)
    s_noise: float = static(1.0)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _checks.real("[0, inf)", s_churn=self.s_churn, s_tmin=self.s_tmin, s_noise=self.s_noise)
        if self.s_tmax != math.inf:
            _checks.real("[0, inf)", s_tmax=self.s_tmax)
        if not self.s_tmin < self.s_tmax:
            raise ValueError(f"EDMHeun needs s_tmin < s_tmax, got {self}")

    stochastic = property(lambda self: self.s_churn > 0)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Churn, Euler step in k, trapezoid."""
        check_noise_left(path, times)
        steps = len(times) - 1
        for s, t in pairs(times):
            alpha_s, alpha_t = float(path.alpha(s)), float(path.alpha(t))
            if alpha_s == 0 or alpha_t == 0:
                m = yield evaluate(s, x, to="data")
                e = path.convert(m, given="data", to="noise", t=s, x=x)
                x = yield step(alpha_t * m + float(path.sigma(t)) * e)
                continue
            k, end = float(path.sigma(s)) / alpha_s, float(path.sigma(t)) / alpha_t
            y = x / alpha_s
            gamma = min(self.s_churn / steps, math.sqrt(2) - 1) if self.s_tmin <= k <= self.s_tmax else 0.0
            raised, at = k * (1 + gamma), s
            if gamma > 0:
                at = max(0.0, float(path.time(-np.log(raised))))
                y = y + math.sqrt(raised**2 - k**2) * self.s_noise * (yield noise())
            d = (y - (yield evaluate(at, float(path.alpha(at)) * y, to="data"))) / raised if raised else 0.0 * y
            if end > 0:
                ahead = y + (end - raised) * d
                d = (d + (ahead - (yield evaluate(t, alpha_t * ahead, to="data"))) / end) / 2
            x = yield step(alpha_t * (y + (end - raised) * (yield direction(d))))

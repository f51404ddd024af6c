"""DDIM (Song et al., 2010.02502) on any path, deterministic or ancestral."""

import math
from typing import Any

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.ends import check_noise_left
from flowjax.solvers.requests import Updates, direction, evaluate, noise, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "ddim", "DDIM; ancestral sampling with eta=1", cite="song2020denoising", order=1)
@pytree
class DDIM(Solver):
    """DDIM on the data prediction.

    With m, e the data and noise predictions at s, k = sigma/alpha and 0 <= eta <= 1:

        d^2 = eta^2 (alpha_t k_t)^2 (1 - k_t^2 / k_s^2),      x' = alpha_t m + sqrt(sigma_t^2 - d^2) e + d z

    and e = (x - alpha_s m)/sigma_s. eta = 0 is the order-1 exponential integrator, the same numbers for every
    prediction; eta = 1 is ancestral sampling (DDPM). Order 1, one evaluation per step. Infinite k_s (all noise at the
    start) and sigma_t = 0 (x' = alpha_t m) are regular, and so is the end of an inversion at alpha_t = 0
    (x' = sigma_t e).

    Args:
        eta: amount of fresh noise in [0, 1]: 0 deterministic, 1 ancestral.

    Raises:
        ValueError: eta outside [0, 1].

    Reference: Song, Meng and Ermon (2010.02502), equation 12.

    Example:
        >>> import flowjax as fj
        >>> path, times = fj.paths.VP(), fj.times.uniform(10)
        >>> [fj.solvers.DDIM(eta=eta).bind(path, times).pattern.noises for eta in (0.0, 1.0)]
        [0, 1]
    """

    eta: float = static(0.0)

    def __post_init__(self) -> None:
        """Checks eta."""
        _checks.real("[0, 1]", eta=self.eta)

    stochastic = property(lambda self: self.eta > 0)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """alpha_t m + sqrt(sigma_t^2 - d^2) e + d z."""
        check_noise_left(path, times)
        for s, t in pairs(times):
            m = yield direction((yield evaluate(s, x, to="data")))
            if s == t:
                x = yield step(x)
                continue
            (alpha_s, sigma_s), (alpha_t, sigma_t) = ((path.alpha(u), path.sigma(u)) for u in (s, t))
            d = 0.0
            if self.eta > 0:
                ratio = sigma_t * alpha_s / (alpha_t * sigma_s)  # k_t / k_s
                d = self.eta * sigma_t * math.sqrt(max(1 - ratio**2, 0.0))
            a = math.sqrt(sigma_t**2 - d**2) / sigma_s
            x = a * x + (alpha_t - a * alpha_s) * m
            if d > 0:
                x = x + d * (yield noise())
            x = yield step(x)

"""ER-SDE solvers (Cui et al., 2309.06169): the extended reverse SDE, exact in its linear part."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.ends import check_noise_left
from flowjax.solvers.options import check_choice
from flowjax.solvers.requests import Updates, evaluate, noise, pairs, step
from flowjax.solvers.solver import Solver


def default_scale(k: Any) -> Any:
    """The authors' phi(k) = k (e^(k^0.3) + 10)."""
    return k * (np.exp(k**0.3) + 10)


@fact("solver", "er_sde", "extended reverse SDE", cite="cui2023elucidating")
@pytree
class ERSDE(Solver):
    """Solver of the extended reverse SDE.

    With k = sigma/alpha and a noise scale phi(k), r = phi(k_t)/phi(k_s), a step on the data prediction m is

        x'/alpha_t = r x/alpha_s + (1 - r) m + (Taylor terms) + sqrt(k_t^2 - r^2 k_s^2) z

    The Taylor terms of order 2 and 3 add w_1 dm/dk and w_2 d^2m/dk^2/2 with

        w_1 = k_t - k_s + phi(k_t) int_{k_t}^{k_s} du/phi(u),
        w_2 = (k_t - k_s)^2 + 2 phi(k_t) int_{k_t}^{k_s} (u - k_s)/phi(u) du

    and divided differences of the history. phi(k) = k is DDIM, phi(k) = k^2 ancestral sampling, the default of the
    authors is phi(k) = k (e^(k^0.3) + 10). One evaluation per step; the first steps use lower orders. Where k is
    infinite or zero a step is order 1 with its limit.

    Args:
        order: 1, 2 or 3.
        scale: phi, a function of k = sigma/alpha (NumPy), positive with phi(k)/k not falling; `default_scale`.

    Raises:
        ValueError: another order, or a scale that is none.

    Reference: Cui et al. (2309.06169).

    Example:
        >>> import flowjax as fj
        >>> path, times = fj.paths.VP(), fj.times.uniform(10)
        >>> fj.solvers.ERSDE(order=3).bind(path, times).pattern.noises
        1
        >>> fj.solvers.ERSDE(order=1, scale=lambda k: k).bind(path, times).pattern.noises  # DDIM
        0
    """

    order: int = static(3)
    scale: Callable[[Any], Any] = static(default_scale)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("order", self.order, (1, 2, 3))
        if not callable(self.scale):
            raise ValueError(f"scale is a function phi(k) of the noise level, got {self.scale!r}")
        k = np.logspace(-3, 3, 61)
        ratio = np.asarray(self.scale(k)) / k
        if not (np.all(np.isfinite(ratio)) and np.all(ratio > 0) and np.all(np.diff(ratio) > -1e-9 * ratio[1:])):
            raise ValueError("scale, phi(k), must be positive and finite, with a phi(k)/k that does not fall")

    no_direction = "its steps have no direction that momentum could average"
    stochastic = property(lambda self: self._limit() < 1)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Linear part, Taylor terms, noise."""
        check_noise_left(path, times)
        history: list[tuple[float, Any]] = []  # (k, m), newest first
        for s, t in pairs(times):
            m = yield evaluate(s, x, to="data")
            alpha_s, alpha_t, sigma_s = float(path.alpha(s)), float(path.alpha(t)), float(path.sigma(s))
            # All noise: phi(k_t)/phi(k_s) -> 0 at most like k_t/k_s, so x' = alpha_t m + sigma_t z or DDIM.
            if alpha_s == 0:
                limit, sigma_t = self._limit(), float(path.sigma(t))
                fresh = math.sqrt(1 - limit**2) * sigma_t
                x = limit * sigma_t / sigma_s * x + alpha_t * m
                x = yield step(x + fresh * (yield noise()) if fresh else x)
                continue
            if alpha_t == 0:  # the end of an inversion, DDIM
                x = yield step(float(path.sigma(t)) * path.convert(m, given="data", to="noise", t=s, x=x))
                continue
            k, end = sigma_s / alpha_s, float(path.sigma(t)) / alpha_t
            if k == end:
                x = yield step(x)
                continue
            history = [(k, m), *history][: self.order]
            r = float(self.scale(np.float64(end)) / self.scale(np.float64(k))) if end else 0.0
            y = (r / alpha_s) * x + (1 - r) * m
            if end and len(history) > 1:
                first, second = self._taylor(k, end)
                (k0, m0), (k1, m1) = history[:2]
                slope = (m0 - m1) / (k0 - k1)
                if len(history) > 2:
                    k2, m2 = history[2]
                    curve = (slope - (m1 - m2) / (k1 - k2)) / (k0 - k2)  # half the second derivative
                    slope = slope + (k0 - k1) * curve
                    y = y + second * curve
                y = y + first * slope
            variance = end**2 - r**2 * k**2
            if variance > 1e-12 * end**2:  # what rounding leaves of zero is some 1e-16 end^2
                y = y + math.sqrt(variance) * (yield noise())
            x = yield step(alpha_t * y)

    def _limit(self) -> float:
        """(phi(k_t)/k_t)/(phi(k)/k) as k grows: 1 for phi = k, 0 for anything that grows faster."""
        low, high = (float(self.scale(np.float64(k)) / k) for k in (1.0, 1e6))
        return 1.0 if math.isclose(low, high) else 0.0

    def _taylor(self, k: float, end: float) -> tuple[float, float]:
        """w_1 and w_2 by Gauss-Legendre quadrature in log k."""
        points, weights = np.polynomial.legendre.leggauss(64)
        u = np.exp(math.log(end) + (math.log(k) - math.log(end)) * (points + 1) / 2)
        weights = weights * (math.log(k) - math.log(end)) / 2 * u / self.scale(u) * self.scale(np.float64(end))
        return end - k + float(np.sum(weights)), (end - k) ** 2 + 2 * float(np.sum(weights * (u - k)))

"""SA-Solver (Xue et al., 2309.05019): stochastic Adams methods on the data prediction."""

import math
from typing import Any

import numpy as np

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.ends import check_noise_left
from flowjax.solvers.phi import data_weight
from flowjax.solvers.quadrature import lagrange_integrals
from flowjax.solvers.requests import Updates, evaluate, noise, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "sa_solver", "stochastic Adams predictor-corrector", cite="xue2023sasolver")
@pytree
class SASolver(Solver):
    """Stochastic Adams predictor-corrector.

    The reverse SDE with noise level tau(t) >= 0 is, in lam = log(alpha/sigma), solved exactly in its linear part:

        x' = (sigma_t/sigma_s) e^{-T} x + sum_j b_j m_j + sigma_t sqrt(1 - e^{-2 T}) z,
        T = int_{lam_s}^{lam_t} tau^2 dlam,  b_j = sigma_t int e^{lam - int_lam^{lam_t} tau^2} (1 + tau^2) L_j(lam) dlam

    with L_j the Lagrange polynomials in lam on the last points (predictor), and also on the new point (corrector, same
    noise z). tau is constant over a step. tau = 0 is a deterministic multistep method, tau = 1 with order 1 the SDE
    version of DPM-Solver++ of order 1. One evaluation per step, none after the last step, which is not corrected. Steps
    that touch an infinite lam are order 1 and uncorrected.

    Args:
        predictor_order: 1 to 8.
        corrector_order: number of points of the corrector, the new one included, up to 8; 0 for none.
        tau: noise level; 0 is deterministic, 1 the reverse SDE of the diffusion.
        start: first time at which tau applies, in [0, 1].
        end: last one.

    Raises:
        ValueError: orders or levels that are not allowed.

    Reference: Xue et al. (2309.05019).

    Example:
        >>> import flowjax as fj
        >>> path, times = fj.paths.VP(), fj.times.uniform(10)
        >>> [fj.solvers.SASolver(tau=tau).bind(path, times).pattern.noises for tau in (0.0, 1.0)]
        [0, 1]
    """

    predictor_order: int = static(2)
    corrector_order: int = static(2)
    tau: float = static(1.0)
    start: float = static(0.2)
    end: float = static(0.8)

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole("[1, 8]", predictor_order=self.predictor_order)
        _checks.whole("[0, 8]", corrector_order=self.corrector_order)
        _checks.real("[0, inf)", tau=self.tau)
        _checks.real("[0, 1]", start=self.start, end=self.end)
        if self.start > self.end:
            raise ValueError(f"SASolver needs start <= end, got {self}")

    no_direction = "its steps have no direction that momentum could average"
    stochastic = property(lambda self: self.tau > 0)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Predict with noise, evaluate, correct with the same noise."""
        check_noise_left(path, times)
        depth = max(self.predictor_order, self.corrector_order - 1)
        steps = len(times) - 1
        history = [(times[0], (yield evaluate(times[0], x, to="data")))]  # (t, m), newest first
        for number, (s, t) in enumerate(pairs(times)):
            lam_s, lam_t = float(path.lam(s)), float(path.lam(t))
            if lam_s == lam_t:
                x = yield step(x)
                continue
            h, tau = lam_t - lam_s, self.tau if self.start <= s <= self.end else 0.0
            sigma = float(path.sigma(t))
            damping = math.exp(-(tau**2) * h) if tau else 1.0  # h may be infinite
            base = sigma / float(path.sigma(s)) * damping * x
            deviation = sigma * math.sqrt(-math.expm1(-2 * tau**2 * h)) if tau else 0.0
            if deviation:
                base = base + deviation * (yield noise())
            points = [(float(path.lam(u)), m) for u, m in history]
            finite = [(lam, m) for lam, m in points if math.isfinite(lam)] if math.isfinite(h) else []
            predicted = base + _drift(path, s, t, tau, finite[: self.predictor_order] or points[:1])
            if number == steps - 1:
                x = yield step(predicted)
                return
            new = yield evaluate(t, predicted, to="data")
            if self.corrector_order > 0 and math.isfinite(h):
                predicted = base + _drift(path, s, t, tau, [(lam_t, new), *finite[: self.corrector_order - 1]])
            x = yield step(predicted)
            history = [(t, new), *history][:depth]


def _drift(path: GaussianPath, s: float, t: float, tau: float, points: list[tuple[float, Any]]) -> Any:
    """The exponentially weighted polynomial through points (lam, m) over the step."""
    lam_s, lam_t, rate = float(path.lam(s)), float(path.lam(t)), 1 + tau**2
    if len(points) == 1:
        return data_weight(path, s, t, -rate * (lam_t - lam_s)) * points[0][1]

    def kernel(lam: np.ndarray) -> np.ndarray:
        return float(path.alpha(t)) * rate * np.exp(rate * (lam - lam_t))

    weights = lagrange_integrals([lam for lam, _ in points], lam_s, lam_t, kernel)
    return sum(weight * m for weight, (_, m) in zip(weights, points, strict=True))

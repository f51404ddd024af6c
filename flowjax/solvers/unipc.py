"""UniPC (Zhao et al., 2302.04867): a predictor, and a corrector that reuses the evaluation at the next point."""

import math
from collections.abc import Generator
from typing import Any

import numpy as np

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.ends import check_ends
from flowjax.solvers.options import LOWER_ORDER_FINAL, check_choice
from flowjax.solvers.phi import exponential_step, phi
from flowjax.solvers.requests import Request, Updates, direction, evaluate, pairs, step
from flowjax.solvers.solver import Solver

ORDERS = "[1, 8]"  # beyond it the weights alternate in sign and grow faster than they gain


@fact("solver", "unipc", "unified predictor-corrector", cite="zhao2023unipc", order=2)
@pytree
class UniPC(Solver):
    """The unified predictor-corrector.

    With h = lam_t - lam_s, f the data prediction (A = sigma_t/sigma_s, c = alpha_t, z = -h) or the noise prediction
    (A = alpha_t/alpha_s, c = sigma_t, z = h), f_0 its value at s, f_i at the points before, r_i = (lam_i - lam_s)/h and
    D_i = (f_i - f_0)/r_i, both are

        x' = A x - c (e^z - 1) f_0 - c sum_i a_i D_i,     sum_i a_i r_i^(k-1) = k! z phi_{k+1}(z)  for k = 1, 2, ...

    The predictor of order p uses i = 1..p-1, the corrector also the value at t (r = 1). Where there is one term only,
    variants "bh1" and "bh2" use a = B/2 with B = z or e^z - 1; "vary" solves the equation there too (elsewhere the
    three coincide). The evaluation made at the predicted point is what enters the history. One evaluation per step,
    none after the last step, which is not corrected. Order p without, p + 1 with corrector (from an exact history; the
    first steps limit a whole run to order 3). Steps that touch an infinite lam are order 1 and uncorrected; the noise
    form is undefined there and says so.

    Args:
        order: p, 1 to 8; 2 under guidance, 3 without.
        variant: "bh1", "bh2" or "vary".
        corrector: whether to correct.
        form: "data" or "noise".
        lower_order_final: order 1 in the last step, at most 2 in the one before, and so on: True, False or "auto" (True
            for any number of steps, as in the published code).
        disable_corrector: numbers of steps that are not corrected (0, ... under strong guidance).
        directions: what a momentum wrapper acts on: "corrector" (as in the authors' code), "predictor" or "both".

    Raises:
        ValueError: a value that is not allowed; at bind, the noise form on a grid that touches an infinite lam.

    Reference: Zhao et al. (2302.04867).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.Linear()
        >>> flow = fj.Flow(fj.oracles.Gaussian(mean=1.0, std=0.5, path=path).network(), path=path)
        >>> result = fj.solve(flow, fj.solvers.UniPC(order=3), jnp.full((1, 1), 0.5), fj.times.uniform(10))
        >>> int(result.evaluations), round(float(result.x[0, 0]), 2)  # exact: 1 + 0.5 * 0.5
        (10, 1.25)
    """

    order: int = static(3)
    variant: str = static("bh2")
    corrector: bool = static(True)
    form: str = static("data")
    lower_order_final: bool | str = static(True)
    disable_corrector: tuple[int, ...] = static(())
    directions: str = static("corrector")

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole(ORDERS, order=self.order)
        check_choice("corrector", self.corrector, (True, False))
        check_choice("lower_order_final", self.lower_order_final, LOWER_ORDER_FINAL)
        check_choice("variant", self.variant, ("bh1", "bh2", "vary"))
        check_choice("form", self.form, ("data", "noise"))
        check_choice("directions", self.directions, ("corrector", "predictor", "both"))
        if not isinstance(self.disable_corrector, tuple | list):
            raise ValueError(f"disable_corrector holds numbers of steps, as in (0, 1), got {self.disable_corrector!r}")
        object.__setattr__(self, "disable_corrector", tuple(self.disable_corrector))
        for number in self.disable_corrector:
            _checks.whole("[0, inf)", disable_corrector=number)

    @property
    def no_direction(self) -> str:
        """A predictor alone announces its direction only when told to."""
        silent = self.directions == "corrector" and not self.corrector
        return "directions='corrector' but there is no corrector: say directions='predictor'" if silent else ""

    depth = property(lambda self: self.order)  # outputs in the history

    def compensated(
        self, number: int, history: list[tuple[float, Any]]
    ) -> Generator[Request, Any, list[tuple[float, Any]]]:
        """The history to use in step `number`; a hook for methods that adjust it."""
        yield from ()
        return history

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Predict, evaluate there, correct."""
        check_ends(path, times, self.form, "UniPC")
        steps = len(times) - 1
        history = [(times[0], (yield evaluate(times[0], x, to=self.form)))]  # (t, f), newest first
        for number, (s, t) in enumerate(pairs(times)):
            history = yield from self.compensated(number, history)
            f = history[0][1]
            lam_s, lam_t = float(path.lam(s)), float(path.lam(t))
            h = 0.0 if lam_s == lam_t else lam_t - lam_s
            order = min(self.order, steps - number) if self.lower_order_final is not False else self.order
            points = [(float(path.lam(u)), value) for u, value in history[1:]]
            points = [(lam, value) for lam, value in points if math.isfinite(lam) and lam != lam_s]
            points = points[: order - 1] if h and math.isfinite(h) else []
            predicted = x
            if h:
                predicted = yield from self._advance(path, s, t, x, f, points, self.directions != "corrector")
            if number == steps - 1:
                x = yield step(predicted)
                return
            new = yield evaluate(t, predicted, to=self.form)
            if h and math.isfinite(h) and self.corrector and number not in self.disable_corrector:
                points.append((lam_t, new))
                predicted = yield from self._advance(path, s, t, x, f, points, self.directions != "predictor")
            x = yield step(predicted)
            history = [(t, new), *(history if h else history[1:])][: self.depth]

    def _advance(
        self, path: GaussianPath, s: float, t: float, x: Any, f: Any, points: list[tuple[float, Any]], announce: bool
    ) -> Generator[Request, Any, Any]:
        """The update with these other points (lam, f), its direction announced in units of x over the linear part."""
        lam_s, h = float(path.lam(s)), float(path.lam(t)) - float(path.lam(s))
        a, b, z = exponential_step(path, self.form, s, t, h)
        unit = float(path.alpha(t) if self.form == "noise" else path.sigma(t))
        ratios, mean = [(lam - lam_s) / h for lam, _ in points], f
        for weight, r, (_, value) in zip(self._weights(z, ratios), ratios, points, strict=True):
            mean = mean + weight / math.expm1(z) * ((value - f) / r)
        if announce and unit:
            mean = unit * (yield direction(mean / unit))
        return a * x + b * mean

    def _weights(self, z: float, ratios: list[float]) -> list[float]:
        """The a_i of the differences at these r_i."""
        if len(ratios) == 1 and self.variant != "vary":
            return [0.5 * (z if self.variant == "bh1" else math.expm1(z))]
        powers = np.arange(len(ratios))
        matrix = np.asarray(ratios)[None, :] ** powers[:, None]
        right = [math.factorial(k) * z * phi(k + 1, z) for k in range(1, len(ratios) + 1)]
        return [float(w) for w in np.linalg.solve(matrix, right)] if ratios else []

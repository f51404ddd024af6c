"""DEIS (Zhang and Chen, 2204.13902): a polynomial of the noise prediction against the exponential kernel."""

import math
from typing import Any

import numpy as np

from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.ends import check_positive_alpha
from flowjax.solvers.options import LOWER_ORDER_FINAL, check_choice, lowers_final_order
from flowjax.solvers.quadrature import lagrange_integrals
from flowjax.solvers.requests import Updates, direction, evaluate, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "deis", "exponential Adams-Bashforth on the noise prediction", cite="zhang2022fast", order=2)
@pytree
class DEIS(Solver):
    """Exponential Adams-Bashforth methods.

    In k = sigma/alpha the flow of x/alpha is the integral of e dk; a step from s to t is

        x' = (alpha_t/alpha_s) x + alpha_t sum_j C_j e_{s-j},        C_j = int_{k_s}^{k_t} L_j dk

    with L_j the Lagrange polynomials on the last `order` points in the variable u: t ("time", tAB), log k ("log_k",
    which is the multistep DPM-Solver of the noise form) or k ("k", the variable-step Adams-Bashforth method in k).
    Order 1 is DDIM. One evaluation per step; the first steps use lower orders, so the asymptotic order of a whole run
    is at most 2. Undefined where alpha = 0; where sigma = 0 with "log_k" (log k is infinite) the last step lowers to
    order 1, as does the first of an inversion.

    Args:
        order: number of values the polynomial goes through, 1 to 4.
        variable: in which the polynomial is one: "time", "log_k" or "k".
        lower_order_final: order 1 in the last step, at most 2 in the one before: True, False or "auto" (True below 15
            steps, and where the last step is longer in `variable` than 1.25 times the one before).

    Raises:
        ValueError: a value that is not allowed; at bind, a grid that touches alpha = 0.

    Reference: Zhang and Chen (2204.13902).

    Example:
        >>> import flowjax as fj
        >>> bound = fj.solvers.DEIS(order=3).bind(fj.paths.VP(), fj.times.uniform(8))
        >>> bound.pattern.rows, bound.pattern.registers, bound.pattern.to
        (8, 3, 'noise')
    """

    order: int = static(3)
    variable: str = static("time")
    lower_order_final: bool | str = static("auto")

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("order", self.order, (1, 2, 3, 4))
        check_choice("variable", self.variable, ("time", "log_k", "k"))
        check_choice("lower_order_final", self.lower_order_final, LOWER_ORDER_FINAL)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The exponentially weighted mean of the polynomial."""
        check_positive_alpha(path, times, "DEIS")
        steps = len(times) - 1

        def level(t: float) -> float:
            return float(path.sigma(t) / path.alpha(t))

        nodes = times if self.variable == "time" else [level(t) for t in times]
        if self.variable == "log_k":
            nodes = [-float(path.lam(t)) for t in times]
        lower = lowers_final_order(self.lower_order_final, nodes, 15)
        history: list[tuple[float, Any]] = []  # (t, e), newest first
        for number, (s, t) in enumerate(pairs(times)):
            history = [(s, (yield evaluate(s, x, to="noise"))), *history][: self.order]
            k, end = level(s), level(t)
            if k == end:  # a repeated time adds nothing to the history
                history = history[1:]
                x = yield step(x)
                continue
            order = min(len(history), steps - number) if lower else len(history)
            if self.variable == "log_k":
                order = 1 if end == 0 else min(order, sum(level(u) > 0 for u, _ in history) or 1)
            past = [u for u, _ in history[:order]]
            integrals = self._integrals(path, past, t, [level(u) for u in past], end) if order > 1 else [end - k]
            total = sum(c * e for c, (_, e) in zip(integrals, history[:order], strict=True))
            total = yield direction(total / (end - k))
            x = yield step(float(path.alpha(t) / path.alpha(s)) * x + float(path.alpha(t)) * (end - k) * total)

    def _integrals(
        self, path: GaussianPath, times: list[float], t: float, levels: list[float], end: float
    ) -> list[float]:
        """The C_j of points at these times and levels (newest first)."""
        if self.variable == "k":
            return lagrange_integrals(levels, levels[0], end)
        if self.variable == "log_k":
            return lagrange_integrals([math.log(k) for k in levels], math.log(levels[0]), math.log(end), np.exp)

        def slope(u: np.ndarray) -> np.ndarray:  # dk/dt
            return path.determinant(u) / path.alpha(u) ** 2

        weights = np.asarray(lagrange_integrals(times, times[0], t, slope))
        # Quadrature of an integrable singularity at sigma = 0.
        return (weights * (end - levels[0]) / weights.sum()).tolist()

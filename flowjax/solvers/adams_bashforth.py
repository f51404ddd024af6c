"""Adams-Bashforth methods on the velocity in t or, as PLMS / iPNDM, on the noise prediction in k = sigma/alpha."""

from collections.abc import Callable
from typing import Any

import numpy as np

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.ends import check_positive_alpha
from flowjax.solvers.options import check_choice
from flowjax.solvers.quadrature import lagrange_integrals
from flowjax.solvers.requests import Updates, direction, evaluate, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "adams_bashforth", "Adams-Bashforth, PLMS, iPNDM", cite="liu2022pseudo", order=2)
@pytree
class AdamsBashforth(Solver):
    """Explicit Adams methods of order 1 to 5.

    With y = x, u = t, f = v ("velocity") or y = x/alpha, u = k, f = e ("noise") the flow is dy/du = f, and a step is

        y' = y + (u_t - u_s) sum_j w_j f_{s-j}

    with the weights of the interpolating polynomial through the last `order` values: for equal steps 1; (3, -1)/2;
    (23, -16, 5)/12; (55, -59, 37, -9)/24. "variable" integrates the polynomial on the actual nodes; "fixed" uses the
    equal-step weights on any grid, as PNDM (2202.09778) and iPNDM do. One evaluation per step. The first steps either
    use lower orders ("lower", which limits the asymptotic order to 2) or classical Runge-Kutta steps ("rk4", four
    evaluations each). The noise form is undefined where alpha = 0 and says so.

    Args:
        order: number of values the polynomial goes through, 1 to 5.
        form: "velocity" (any path) or "noise" (PLMS, iPNDM: the flow in DDIM's coordinates).
        weights: "variable" for the actual nodes or "fixed" for equal-step weights.
        start: "lower" orders for the first steps, or "rk4".

    Raises:
        ValueError: a value that is not allowed; at bind, the noise form on a grid that touches alpha = 0.

    Reference: Liu et al. (2202.09778) for PLMS.

    Example:
        >>> import flowjax as fj
        >>> path, times = fj.paths.Linear(), fj.times.uniform(10)
        >>> bound = fj.solvers.AdamsBashforth(order=3).bind(path, times)
        >>> bound.pattern.rows, bound.pattern.registers  # x and two earlier velocities
        (10, 3)
        >>> fj.solvers.AdamsBashforth(order=4, start="rk4").bind(path, times).pattern.rows  # 3 * 4 + 7
        19
    """

    order: int = static(4)
    form: str = static("velocity")
    weights: str = static("variable")
    start: str = static("lower")

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole("[1, 5]", order=self.order)
        check_choice("form", self.form, ("velocity", "noise"))
        check_choice("weights", self.weights, ("variable", "fixed"))
        check_choice("start", self.start, ("lower", "rk4"))

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The polynomial through the last values, integrated over the step."""
        scale, coordinate, time = coordinates(path, self.form, times)
        nodes: list[float] = []
        values: list[Any] = []
        for s, t in pairs(times):
            u, h = coordinate(s), coordinate(t) - coordinate(s)
            f = yield evaluate(s, x, to=self.form)
            if s == t:  # a repeated time is no step and adds nothing to the history
                x = yield step(x)
                continue
            nodes, values = [u, *nodes][: self.order], [f, *values][: self.order]
            if self.start == "rk4" and len(values) < self.order and (self.form == "noise" or path.has_velocity(t)):
                middle, y = time(u + h / 2), x / scale(s)
                b = yield evaluate(middle, scale(middle) * (y + h / 2 * f), to=self.form)
                c = yield evaluate(middle, scale(middle) * (y + h / 2 * b), to=self.form)
                d = yield evaluate(t, scale(t) * (y + h * c), to=self.form)
                total = (f + 2 * b + 2 * c + d) / 6
            else:
                weights = adams_weights(nodes, u + h) if self.weights == "variable" else EQUAL_STEPS[len(nodes)]
                total = sum(w * v for w, v in zip(weights, values, strict=True))
            x = yield step(scale(t) / scale(s) * x + scale(t) * h * (yield direction(total)))


def coordinates(
    path: GaussianPath, form: str, times: list[float]
) -> tuple[Callable[[float], float], Callable[[float], float], Callable[[float], float]]:
    """Scale a(t) and coordinate u(t) in which the flow of y = x/a is dy/du = f, and the time of a coordinate.

    Raises:
        ValueError: the noise form on a grid that touches alpha = 0.
    """
    if form == "velocity":
        return (lambda t: 1.0), (lambda t: t), (lambda u: u)
    check_positive_alpha(path, times, "the noise form")
    return (
        lambda t: float(path.alpha(t)),
        lambda t: float(path.sigma(t) / path.alpha(t)),
        lambda u: float(path.time(-np.log(u))),
    )


def adams_weights(nodes: list[float], end: float) -> list[float]:
    """Weights (sum 1) of values at `nodes`, newest first, in the mean of their polynomial from nodes[0] to `end`."""
    h = end - nodes[0]
    return [weight / h for weight in lagrange_integrals(nodes, nodes[0], end)]


EQUAL_STEPS = {order: adams_weights([-float(j) for j in range(order)], 1.0) for order in range(1, 6)}

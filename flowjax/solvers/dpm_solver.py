"""DPM-Solver and DPM-Solver++ (Lu et al., 2206.00927, 2211.01095), multistep.

The linear part of the flow is solved exactly in lam = log(alpha/sigma); the prediction f is expanded at s from its
history. With h = lam_t - lam_s, and

    noise form: f = e, A = alpha_t/alpha_s, c = sigma_t, z = h
    data form ("++"): f = m, A = sigma_t/sigma_s, c = alpha_t, z = -h

a step is, with the functions phi_k of exponential integrators at z,

    x' = A x - c (e^z - 1) (f + (phi_2/phi_1) D1 + (phi_3/phi_1) D2),        D1 ~ h f'(lam),  D2 ~ h^2 f''(lam)

and, with r0 = h0/h, r1 = h1/h the lengths of the steps before, d0 = (f_s - f_{s-1})/r0, d1 = (f_{s-1} - f_{s-2})/r1,

    order 1: D1 = D2 = 0, which is DDIM
    order 2: D1 = d0, D2 = 0 ("taylor"), or 1/2 for phi_2/phi_1 ("midpoint")
    order 3: D1 = d0 + r0/(r0 + r1) (d0 - d1), D2 = 2 (d0 - d1)/(r0 + r1)

The authors' code and its ports omit the 2 in D2, which makes the method second order; `compat="official"` reproduces
them. One evaluation per step. The first steps use lower orders (so the asymptotic order of a whole run is at most 2),
and so do the last ones when `lower_order_final` says so. Where lam is infinite (alpha = 0 at the start, sigma = 0 at
the end) the data form takes its order-1 limit, x' = A x + alpha_t m; the noise form is undefined there and says which
end to move.
"""

import math
from typing import Any

import numpy as np

from flowjax._pytree import pytree, static
from flowjax.paths.base import GaussianPath
from flowjax.solvers.phi import phi
from flowjax.solvers.rows import Solver, Updates, check_choice, direction, evaluate, pairs, step


@pytree
class DPMSolver(Solver):
    """DPM-Solver ("noise" form) and DPM-Solver++ ("data" form).

    Args:
        order: 1, 2 or 3.
        scheme: "multistep".
        form: "data" (DPM-Solver++, stable under guidance) or "noise" (DPM-Solver).
        solver_type: second-order update, "midpoint" or "taylor" ("heun" in diffusers).
        lower_order_final: order 1 in the last step, at most 2 in the one before, ...: True, False or "auto" (when there
            are fewer than 10 steps).
        compat: None, or "official" for the authors' third-order update, which is second order.

    Raises:
        ValueError: a value that is not allowed; at bind, the noise form on a grid that touches an infinite lam.

    Example:
        >>> import flowjax as fj
        >>> bound = fj.solvers.DPMSolver(order=3).bind(fj.paths.VP(), fj.times.uniform(20))
        >>> bound.pattern.rows, bound.pattern.registers
        (20, 3)
    """

    order: int = static(2)
    scheme: str = static("multistep")
    form: str = static("data")
    solver_type: str = static("midpoint")
    lower_order_final: bool | str = static("auto")
    compat: str | None = static(None)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("order", self.order, (1, 2, 3))
        check_choice("scheme", self.scheme, ("multistep",))
        check_choice("form", self.form, ("data", "noise"))
        check_choice("solver_type", self.solver_type, ("midpoint", "taylor"))
        check_choice("lower_order_final", self.lower_order_final, ("auto", True, False))
        check_choice("compat", self.compat, (None, "official"))

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """One evaluation, then the order that history, end and lam allow."""
        steps = len(times) - 1
        lower = steps < 10 if self.lower_order_final == "auto" else self.lower_order_final
        if self.form == "noise":
            check_finite_lam(path, times, "the noise form of DPMSolver")
        history: list[tuple[float, Any]] = []  # (lam, output), newest first
        for number, (s, t) in enumerate(pairs(times)):
            f = yield evaluate(s, x, to=self.form)
            lam_s, lam_t = float(path.lam(s)), float(path.lam(t))
            if lam_s == lam_t:  # a repeated time is no step and adds nothing to the history
                x = yield step(x)
                continue
            history = [(lam_s, f), *history][: self.order]
            known = 1 if math.isinf(lam_t) else sum(math.isfinite(lam) for lam, _ in history)
            order = max(1, min(known, steps - number if lower else self.order))
            h = lam_t - lam_s
            if self.form == "data":
                a, c, z = path.sigma(t) / path.sigma(s), path.alpha(t), -h
            else:
                a, c, z = path.alpha(t) / path.alpha(s), path.sigma(t), h
            mean = self._mean(order, h, z, history)
            if order > 1 or self.order == 1:
                mean = yield direction(mean)
            x = yield step(float(a) * x - float(c) * math.expm1(z) * mean)

    def _mean(self, order: int, h: float, z: float, history: list[tuple[float, Any]]) -> Any:
        """The exponentially weighted mean of f over the step: the bracket of the update, divided by P1."""
        lam, f = zip(*history, strict=True)
        if order == 1:
            return f[0]
        p2, p3 = phi(2, z) / phi(1, z), phi(3, z) / phi(1, z)  # weights of h f' and h^2 f''
        r0 = (lam[0] - lam[1]) / h
        d0 = (f[0] - f[1]) / r0
        if order == 2:
            return f[0] + (0.5 if self.solver_type == "midpoint" else p2) * d0
        r1 = (lam[1] - lam[2]) / h
        d1 = (f[1] - f[2]) / r1
        first = d0 + r0 / (r0 + r1) * (d0 - d1)
        second = (1.0 if self.compat == "official" else 2.0) / (r0 + r1) * (d0 - d1)
        return f[0] + p2 * first + p3 * second


def check_finite_lam(path: GaussianPath, times: list[float], what: str) -> None:
    """Raises ValueError, naming the end to move, if lam is infinite on the grid."""
    for end, inside, t in (("start", "above", times[0]), ("end", "below", times[-1])):
        if not np.isfinite(path.lam(t)):
            raise ValueError(
                f"{what} needs a finite lam = log(alpha/sigma), but lam({t:g}) = {float(path.lam(t))}: "
                f"move the {end} of the times {inside} {t:g}, or use the data form"
            )

"""DPM-Solver and DPM-Solver++ (Lu et al., 2206.00927, 2211.01095), deterministic and stochastic.

The linear part of the flow is solved exactly in lam = log(alpha/sigma); the prediction f is expanded at s. With
h = lam_t - lam_s, eta >= 0 the amount of fresh noise, and

    noise form: f = e, A = alpha_t/alpha_s,             c = (1 + eta) sigma_t, z = h,
                d^2 = eta sigma_t^2 (e^(2h) - 1)
    data form:  f = m, A = sigma_t/sigma_s e^(-eta h),  c = alpha_t,           z = -(1 + eta) h,
                d^2 = sigma_t^2 (1 - e^(-2 eta h))

a step is, with the functions phi_k of exponential integrators at z and fresh noise n,

    x' = A x - c (e^z - 1) (f + (phi_2/phi_1) D1 + (phi_3/phi_1) D2) + d n,        D1 ~ h f'(lam),  D2 ~ h^2 f''(lam)

"multistep" takes the derivatives from the last outputs: with r0 = h0/h, r1 = h1/h the lengths of the steps before,
d0 = (f_s - f_{s-1})/r0, d1 = (f_{s-1} - f_{s-2})/r1,

    order 1: D1 = D2 = 0, which is DDIM
    order 2: D1 = d0, D2 = 0 ("taylor"), or 1/2 for phi_2/phi_1 ("midpoint")
    order 3: D1 = d0 + r0/(r0 + r1) (d0 - d1), D2 = 2 (d0 - d1)/(r0 + r1)

The authors' code and its ports omit the 2 in D2, which makes the method second order; `compat="official"` reproduces
them. The first steps use lower orders, which limits the asymptotic order of a whole run to 2, or, with
`start="singlestep"`, the first `order` intervals are one singlestep group, which keeps the order at no evaluation more.
The last steps use lower orders when `lower_order_final` says so.

"singlestep" takes them from evaluations inside the step: groups of `order` intervals of the grid are one step each,
whose inner grid points are reached with lower order. A grid whose length is no multiple of the order ends as in the
authors' "fast" driver: for order 3 with groups 3, ..., 2, 1 or 3, ..., 1 or 3, ..., 2. "singlestep_fixed" insists on
full groups. (Their logSNR grid gives all groups the same length in lam, so that its short ones have longer intervals.)

Every scheme makes one evaluation per interval of the grid. Where lam is infinite (alpha = 0 at the start, sigma = 0 at
the end) the data form takes its order-1 limit, x' = A x + (alpha_t - A alpha_s) m; the noise form is undefined there
and says which end to move.
"""

import math
from collections.abc import Generator
from typing import Any

import numpy as np

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.paths.base import GaussianPath
from flowjax.solvers.phi import phi
from flowjax.solvers.rows import (
    LOWER_ORDER_FINAL,
    Request,
    Solver,
    Updates,
    check_choice,
    check_noise_left,
    direction,
    evaluate,
    lowers_final_order,
    noise,
    pairs,
    step,
)


@pytree
class DPMSolver(Solver):
    """DPM-Solver ("noise" form) and DPM-Solver++ ("data" form).

    Args:
        order: 1, 2 or 3.
        scheme: "multistep", "singlestep" or "singlestep_fixed".
        form: "data" (DPM-Solver++, stable under guidance) or "noise" (DPM-Solver).
        solver_type: second-order update (and third-order, singlestep): "midpoint" or "taylor" ("heun" in diffusers).
        lower_order_final: multistep: order 1 in the last step, at most 2 in the one before, ...: True, False or "auto":
            True below 10 steps, the authors' rule, and where the last step is longer in lam than 1.25 times the one
            before, as on equal steps in t: 10 of them to 0.999 on a linear path have an error of 0.025 on a model of
            digits, but 0.110 without (0.028 and 0.752 at order 3). To an infinite lam (t = 1) the step is of order 1
            in any case; order 3 on times equal in lam is better without.
        eta: fresh noise, multistep only: 0 is the ODE, 1 the SDE variants ("sde-dpmsolver", "sde-dpmsolver++"); the
            marginals are those of the path for every eta >= 0.
        start: multistep: "lower" orders first, or "singlestep", which keeps the order of a whole run (eta = 0 only).
        compat: None, or "official" for the authors' third-order multistep update, which is second order.

    Raises:
        ValueError: a value that is not allowed; at bind, the noise form on a grid that touches an infinite lam, or a
            grid that "singlestep_fixed" cannot divide.

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
    eta: float = static(0.0)
    start: str = static("lower")
    compat: str | None = static(None)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("order", self.order, (1, 2, 3))
        check_choice("scheme", self.scheme, ("multistep", "singlestep", "singlestep_fixed"))
        check_choice("form", self.form, ("data", "noise"))
        check_choice("solver_type", self.solver_type, ("midpoint", "taylor"))
        check_choice("lower_order_final", self.lower_order_final, LOWER_ORDER_FINAL)
        check_choice("start", self.start, ("lower", "singlestep"))
        check_choice("compat", self.compat, (None, "official"))
        _checks.real("[0, inf)", eta=self.eta)
        if self.eta > 0 and self.scheme != "multistep":
            raise ValueError(f"eta > 0 is for multistep schemes, got eta={self.eta} with {self.scheme!r}")
        if self.start == "singlestep" and (self.eta > 0 or self.scheme != "multistep"):
            raise ValueError("start='singlestep' is for deterministic multistep schemes")

    stochastic = property(lambda self: self.eta > 0)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The scheme's steps."""
        check_ends(path, times, self.form, "DPMSolver")
        return self._multistep(path, times, x) if self.scheme == "multistep" else self._singlestep(path, times, x)

    def _multistep(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """One evaluation, then the order that history, end and lam allow."""
        steps = len(times) - 1
        lower = lowers_final_order(self.lower_order_final, [float(path.lam(t)) for t in times], 10)
        history: list[tuple[float, Any]] = []  # (lam, output), newest first
        group = self._first_group(path, times) if self.start == "singlestep" else range(0)
        for number, (s, t) in enumerate(pairs(times)):
            if number in group:
                if number == group[0]:
                    x, history = yield from self._group(path, times[number : group.stop + 1], x)
                continue
            f = yield evaluate(s, x, to=self.form)
            lam_s, lam_t = float(path.lam(s)), float(path.lam(t))
            if lam_s == lam_t:  # a repeated time is no step and adds nothing to the history
                x = yield step(x)
                continue
            history = [(lam_s, f), *history][: self.order]
            known = 1 if math.isinf(lam_t) else sum(math.isfinite(lam) for lam, _ in history)
            order = max(1, min(known, steps - number if lower else self.order))
            h = lam_t - lam_s
            a, b, z = self._linear(path, s, t, h)
            mean = self._from_history(order, h, z, history)
            if order > 1 or self.order == 1:
                mean = yield direction(mean)
            x = a * x + b * mean
            if self.eta > 0:
                growth = -math.expm1(-2 * self.eta * h) if self.form == "data" else self.eta * math.expm1(2 * h)
                if growth * path.sigma(t) > 0:
                    x = x + float(path.sigma(t)) * math.sqrt(growth) * (yield noise())
            x = yield step(x)

    def _first_group(self, path: GaussianPath, times: list[float]) -> range:
        """The intervals of the group that a run starts with: `order` proper ones, the first with a finite lam."""
        lam = [float(path.lam(t)) for t in times]
        first = 0 if math.isfinite(lam[0]) else 1
        found = range(first, first + self.order)
        proper = found.stop < len(times) and math.isfinite(lam[found.stop])
        return found if proper and len(set(lam[first : found.stop + 1])) == self.order + 1 else range(0)

    def _singlestep(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Groups of intervals in turn."""
        first = 0
        for size in self._groups(path, times):
            x, _ = yield from self._group(path, times[first : first + size + 1], x)
            first += size

    def _group(
        self, path: GaussianPath, points: list[float], x: Any
    ) -> Generator[Request, Any, tuple[Any, list[tuple[float, Any]]]]:
        """One step over all points, the inner ones reached first; the end and the (lam, output), newest first."""
        s, size = points[0], len(points) - 1
        lam = [float(path.lam(t)) for t in points]
        start, values = x, [(yield evaluate(s, x, to=self.form))]
        for number, t in enumerate(points[1:], start=1):
            if lam[number] == lam[0]:
                x = start
            else:
                h = lam[number] - lam[0]
                a, b, z = self._linear(path, s, t, h)
                ratios = [(node - lam[0]) / h for node in lam[1:number]]
                mean = self._from_inside(ratios, z, values, inner=number < size)
                if number == size and (size > 1 or self.order == 1):
                    mean = yield direction(mean)
                x = a * start + b * mean
            x = yield step(x)
            if number < size:
                values.append((yield evaluate(t, x, to=self.form)))
        return x, list(zip(lam, values))[::-1]

    def _groups(self, path: GaussianPath, times: list[float]) -> list[int]:
        """Sizes of the groups; an interval that touches an infinite lam, or is empty, stands alone."""
        steps, k = len(times) - 1, self.order
        if self.scheme == "singlestep_fixed" and steps % k:
            raise ValueError(f"singlestep_fixed of order {k} needs a multiple of {k} intervals, the grid has {steps}")
        sizes = [k] * (steps // k) + ([steps % k] if steps % k else [])
        if k == 3 and steps % 3 == 0 and self.scheme == "singlestep":
            sizes = [3] * (steps // 3 - 1) + [2, 1]
        result, first = [], 0
        for size in sizes:
            lam = [float(path.lam(t)) for t in times[first : first + size + 1]]
            first += size
            if not math.isfinite(lam[0]) or len(set(lam)) < len(lam):
                result += [1] * size
            elif not math.isfinite(lam[-1]):
                result += [size - 1, 1] if size > 1 else [1]
            else:
                result.append(size)
        return result

    def _linear(self, path: GaussianPath, s: float, t: float, h: float) -> tuple[float, float, float]:
        """A, -c (e^z - 1) and z of the step."""
        if self.form == "data":
            decay, z = math.exp(-self.eta * h) if self.eta else 1.0, -(1 + self.eta) * h
            return float(path.sigma(t) / path.sigma(s)) * decay, data_weight(path, s, t, z), z
        return float(path.alpha(t) / path.alpha(s)), -(1 + self.eta) * float(path.sigma(t)) * math.expm1(h), h

    def _from_history(self, order: int, h: float, z: float, history: list[tuple[float, Any]]) -> Any:
        """The exponentially weighted mean of f over the step, from the outputs before it."""
        lam, f = zip(*history, strict=True)
        if order == 1:
            return f[0]
        p2, p3 = phi(2, z) / phi(1, z), phi(3, z) / phi(1, z)
        r0 = (lam[0] - lam[1]) / h
        d0 = (f[0] - f[1]) / r0
        if order == 2:
            return f[0] + (0.5 if self.solver_type == "midpoint" else p2) * d0
        r1 = (lam[1] - lam[2]) / h
        d1 = (f[1] - f[2]) / r1
        first = d0 + r0 / (r0 + r1) * (d0 - d1)
        second = (1.0 if self.compat == "official" else 2.0) / (r0 + r1) * (d0 - d1)
        return f[0] + p2 * first + p3 * second

    def _from_inside(self, ratios: list[float], z: float, values: list[Any], *, inner: bool) -> Any:
        """The same mean from outputs at the start and at fractions `ratios`, to an inner point or the end."""
        f = values[0]
        if not ratios:
            return f
        p2, p3 = phi(2, z) / phi(1, z), phi(3, z) / phi(1, z)
        slopes = [(value - f) / r for value, r in zip(values[1:], ratios, strict=True)]
        if len(ratios) == 1:
            return f + (p2 if inner or self.solver_type == "taylor" else 0.5) * slopes[0]
        if self.solver_type == "midpoint":
            return f + p2 * slopes[1]
        (r1, r2), (d1, d2) = ratios, slopes
        return f + p2 / (r2 - r1) * (r2 * d1 - r1 * d2) + p3 * 2 / (r2 - r1) * (d2 - d1)


def data_weight(path: GaussianPath, s: float, t: float, z: float) -> float:
    """-alpha_t (e^z - 1), the weight of the data in a step from s to t; its limit if an inversion ends at alpha = 0."""
    if z == math.inf:
        return float(path.alpha(t) - path.sigma(t) / path.sigma(s) * path.alpha(s))
    return -float(path.alpha(t)) * math.expm1(z)


def check_ends(path: GaussianPath, times: list[float], form: str, what: str) -> None:
    """Raises ValueError if a method of this form is undefined where the grid begins or ends."""
    if form == "noise":
        check_finite_lam(path, times, f"the noise form of {what}")
    else:
        check_noise_left(path, times)


def check_finite_lam(path: GaussianPath, times: list[float], what: str) -> None:
    """Raises ValueError, naming the end to move, if lam is infinite on the grid."""
    for end, t in (("start", times[0]), ("end", times[-1])):
        inside = "above" if t == min(times) else "below"
        if not np.isfinite(path.lam(t)):
            raise ValueError(
                f"{what} needs a finite lam = log(alpha/sigma), but lam({t:g}) = {float(path.lam(t))}: "
                f"move the {end} of the times {inside} {t:g}, or use the data form"
            )

"""DPM-Solver's multistep scheme: derivatives from the last outputs.

With f_s the output at s, r0 = h0/h, r1 = h1/h the lengths of the steps before, d0 = (f_s - f_{s-1})/r0 and
d1 = (f_{s-1} - f_{s-2})/r1,

    order 1: D1 = D2 = 0, which is DDIM
    order 2: D1 = d0, D2 = 0 ("taylor"), or 1/2 for phi_2/phi_1 ("midpoint")
    order 3: D1 = d0 + r0/(r0 + r1) (d0 - d1), D2 = 2 (d0 - d1)/(r0 + r1)

The authors' code and its ports omit the 2 in D2, which makes the method second order; `compat="official"` reproduces
them. The first steps use lower orders, which limits the asymptotic order of a whole run to 2, or, with
`start="singlestep"`, the first `order` intervals are one singlestep group, which keeps the order at no evaluation more.
The last steps use lower orders when `lower_order_final` says so.
"""

import math
from typing import Any

from flowjax.paths.base import GaussianPath
from flowjax.solvers.dpm.singlestep import group_step
from flowjax.solvers.options import lowers_final_order
from flowjax.solvers.phi import exponential_step, phi
from flowjax.solvers.requests import Updates, direction, evaluate, noise, pairs, step


def multistep(solver: Any, path: GaussianPath, times: list[float], x: Any) -> Updates:
    """One evaluation, then the order that history, end and lam allow."""
    steps = len(times) - 1
    lower = lowers_final_order(solver.lower_order_final, [float(path.lam(t)) for t in times], 10)
    history: list[tuple[float, Any]] = []  # (lam, output), newest first
    group = _first_group(solver, path, times) if solver.start == "singlestep" else range(0)
    for number, (s, t) in enumerate(pairs(times)):
        if number in group:
            if number == group[0]:
                x, history = yield from group_step(solver, path, times[number : group.stop + 1], x)
            continue
        f = yield evaluate(s, x, to=solver.form)
        lam_s, lam_t = float(path.lam(s)), float(path.lam(t))
        if lam_s == lam_t:  # a repeated time is no step and adds nothing to the history
            x = yield step(x)
            continue
        history = [(lam_s, f), *history][: solver.order]
        known = 1 if math.isinf(lam_t) else sum(math.isfinite(lam) for lam, _ in history)
        order = max(1, min(known, steps - number if lower else solver.order))
        h = lam_t - lam_s
        a, b, z = exponential_step(path, solver.form, s, t, h, solver.eta)
        mean = _from_history(solver, order, h, z, history)
        if order > 1 or solver.order == 1:
            mean = yield direction(mean)
        x = a * x + b * mean
        if solver.eta > 0:
            growth = -math.expm1(-2 * solver.eta * h) if solver.form == "data" else solver.eta * math.expm1(2 * h)
            if growth * path.sigma(t) > 0:
                x = x + float(path.sigma(t)) * math.sqrt(growth) * (yield noise())
        x = yield step(x)


def _first_group(solver: Any, path: GaussianPath, times: list[float]) -> range:
    """The intervals of the group that a run starts with: `order` proper ones, the first with a finite lam."""
    lam = [float(path.lam(t)) for t in times]
    first = 0 if math.isfinite(lam[0]) else 1
    found = range(first, first + solver.order)
    proper = found.stop < len(times) and math.isfinite(lam[found.stop])
    return found if proper and len(set(lam[first : found.stop + 1])) == solver.order + 1 else range(0)


def _from_history(solver: Any, order: int, h: float, z: float, history: list[tuple[float, Any]]) -> Any:
    """The exponentially weighted mean of f over the step, from the outputs before it."""
    lam, f = zip(*history, strict=True)
    if order == 1:
        return f[0]
    p2, p3 = phi(2, z) / phi(1, z), phi(3, z) / phi(1, z)
    r0 = (lam[0] - lam[1]) / h
    d0 = (f[0] - f[1]) / r0
    if order == 2:
        return f[0] + (0.5 if solver.solver_type == "midpoint" else p2) * d0
    r1 = (lam[1] - lam[2]) / h
    d1 = (f[1] - f[2]) / r1
    first = d0 + r0 / (r0 + r1) * (d0 - d1)
    second = (1.0 if solver.compat == "official" else 2.0) / (r0 + r1) * (d0 - d1)
    return f[0] + p2 * first + p3 * second

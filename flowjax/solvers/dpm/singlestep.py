"""DPM-Solver's singlestep scheme: derivatives from evaluations inside the step.

Groups of `order` intervals of the grid are one step each, whose inner grid points are reached with lower order. A grid
whose length is no multiple of the order ends as in the authors' "fast" driver: for order 3 with groups 3, ..., 2, 1 or
3, ..., 1 or 3, ..., 2. "singlestep_fixed" insists on full groups. (Their logSNR grid gives all groups the same length
in lam, so that its short ones have longer intervals.)
"""

import math
from collections.abc import Generator
from typing import Any

from flowjax.paths.base import GaussianPath
from flowjax.solvers.phi import exponential_step, phi
from flowjax.solvers.requests import Request, Updates, direction, evaluate, step


def singlestep(solver: Any, path: GaussianPath, times: list[float], x: Any) -> Updates:
    """Groups of intervals in turn."""
    first = 0
    for size in _groups(solver, path, times):
        x, _ = yield from group_step(solver, path, times[first : first + size + 1], x)
        first += size


def group_step(
    solver: Any, path: GaussianPath, points: list[float], x: Any
) -> Generator[Request, Any, tuple[Any, list[tuple[float, Any]]]]:
    """One step over all points, the inner ones reached first; the end and the (lam, output), newest first."""
    s, size = points[0], len(points) - 1
    lam = [float(path.lam(t)) for t in points]
    start, values = x, [(yield evaluate(s, x, to=solver.form))]
    for number, t in enumerate(points[1:], start=1):
        if lam[number] == lam[0]:
            x = start
        else:
            h = lam[number] - lam[0]
            a, b, z = exponential_step(path, solver.form, s, t, h)
            ratios = [(node - lam[0]) / h for node in lam[1:number]]
            mean = _from_inside(solver, ratios, z, values, inner=number < size)
            if number == size and (size > 1 or solver.order == 1):
                mean = yield direction(mean)
            x = a * start + b * mean
        x = yield step(x)
        if number < size:
            values.append((yield evaluate(t, x, to=solver.form)))
    return x, list(zip(lam, values))[::-1]


def _groups(solver: Any, path: GaussianPath, times: list[float]) -> list[int]:
    """Sizes of the groups; an interval that touches an infinite lam, or is empty, stands alone."""
    steps, k = len(times) - 1, solver.order
    if solver.scheme == "singlestep_fixed" and steps % k:
        raise ValueError(f"singlestep_fixed of order {k} needs a multiple of {k} intervals, the grid has {steps}")
    sizes = [k] * (steps // k) + ([steps % k] if steps % k else [])
    if k == 3 and steps % 3 == 0 and solver.scheme == "singlestep":
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


def _from_inside(solver: Any, ratios: list[float], z: float, values: list[Any], *, inner: bool) -> Any:
    """The same mean from outputs at the start and at fractions `ratios`, to an inner point or the end."""
    f = values[0]
    if not ratios:
        return f
    p2, p3 = phi(2, z) / phi(1, z), phi(3, z) / phi(1, z)
    slopes = [(value - f) / r for value, r in zip(values[1:], ratios, strict=True)]
    if len(ratios) == 1:
        return f + (p2 if inner or solver.solver_type == "taylor" else 0.5) * slopes[0]
    if solver.solver_type == "midpoint":
        return f + p2 * slopes[1]
    (r1, r2), (d1, d2) = ratios, slopes
    return f + p2 / (r2 - r1) * (r2 * d1 - r1 * d2) + p3 * 2 / (r2 - r1) * (d2 - d1)

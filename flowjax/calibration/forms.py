"""Rows that are moved: what may be learned of each form of rows, and how they are sampled while it is.

The numbers of the start with what is learned: gaps between times as g exp(a), weights as (b / c + s) c, where c is what
all weights of a step add up to for a constant prediction; without a step of learning they are the start. Rows that are
consistent keep this sum and the scale of the state that belongs to it, and are then exact for constant predictions.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from flowjax.flow import Field
from flowjax.paths.base import GaussianPath, namespace
from flowjax.solvers import DEIS, AdamsBashforth, DPMSolver, Euler, UniPC
from flowjax.solvers.learned import Learned, Rows, rows_of
from flowjax.solvers.parallel import Parallel, ParallelRows, steps
from flowjax.solvers.solver import Solver
from flowjax.solving import solve
from flowjax.times import log_snr, quadratic, uniform

KNOWN: Mapping[str, Solver] = {
    "euler": Euler(),
    "adams_bashforth(order=2)": AdamsBashforth(order=2),
    "adams_bashforth(order=4)": AdamsBashforth(order=4),
    "dpm_solver(order=2)": DPMSolver(order=2),
    "dpm_solver(order=3)": DPMSolver(order=3),
    "unipc(order=2)": UniPC(order=2),
    "unipc(order=3)": UniPC(order=3),
    "deis(order=3)": DEIS(order=3),
}
"""Solvers with one evaluation in each step, of which the best on a model is where learning starts."""


def constant_law(path: GaussianPath, to: str, s: Any, t: Any) -> tuple[Any, Any]:
    """Scale of the state and sum of the weights of a step from s to t that is exact for a constant prediction."""
    if to == "velocity":
        return namespace(s).ones_like(s), t - s
    a, b = (path.alpha, path.sigma) if to == "data" else (path.sigma, path.alpha)
    ratio = b(t) / b(s)
    return ratio, a(t) - ratio * a(s)


def _moved(delta: Mapping[str, Any], position: Any) -> dict[str, Any]:
    """The polynomials at a position."""
    return {name: sum(part * position**i for i, part in enumerate(parts)) for name, parts in delta.items()}


def _times(base: Any, gaps: Any, number: Any) -> Any:
    """Increasing times with the ends of the base."""
    xp = namespace(gaps)
    start, end = float(base.times[0]), float(base.times[-1])
    gaps = number(np.diff(base.times)) * xp.exp(gaps)
    inner = start + (end - start) * xp.cumsum(gaps)[:-1] / xp.sum(gaps)
    return xp.concatenate([number([start]), inner, number([end])])


class Form(abc.ABC):
    """What may be learned of rows of one form.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.calibration.forms import form_of
        >>> rows = fj.solvers.rows_of(fj.solvers.Euler().bind(fj.paths.Linear(), fj.times.uniform(3)))
        >>> form_of(rows).shapes(rows)
        {'gaps': (3,), 'weights': (3, 1), 'scale': (3,)}
    """

    times: tuple[str, ...] = ("gaps",)

    @staticmethod
    def widened(rows: Any, history: int) -> Any:
        """The same rows with room for what is learned; `history` values, 0 for all.

        Raises:
            ValueError: They use more.
        """
        return rows

    @staticmethod
    @abc.abstractmethod
    def shapes(rows: Any) -> dict[str, tuple[int, ...]]:
        """Of what is learned."""

    @staticmethod
    @abc.abstractmethod
    def tables(base: Any, path: GaussianPath, delta: Mapping[str, Any], position: Any, consistent: bool) -> Any:
        """The rows that `delta` makes of `base`: in float64 of NumPy arrays, or within a compiled function.

        Args:
            base: From `widened`.
            path: Of the field.
            delta: Polynomials in `position`, (d + 1, *shape) for each of `shapes`.
            position: Where the scale of guidance lies in its range.
            consistent: Whether the rows are exact for constant predictions.
        """

    @staticmethod
    @abc.abstractmethod
    def sampled(field: Field, rows: Any, x: Array, cond: Any) -> Array:
        """The final states by rows whose numbers may all be traced: one compiled program for as many rows."""

    @staticmethod
    @abc.abstractmethod
    def is_consistent(rows: Any, path: GaussianPath) -> bool:
        """Whether rows are exact for constant predictions."""

    @staticmethod
    @abc.abstractmethod
    def solver(rows: Any) -> Any:
        """The solver that has them."""


class Multistep(Form):
    """`solvers.Rows`: weights of the newest values.

    Example:
        >>> from flowjax.calibration.forms import Multistep
        >>> Multistep.times
        ('gaps',)
    """

    @staticmethod
    def widened(rows: Rows, history: int) -> Rows:
        """Zeros for values that are not used yet."""
        n, used = rows.weights.shape
        history = min(history or n, n)
        if used > history:
            raise ValueError(f"these rows use {used} values, and history={history}: raise it, or start from other rows")
        return dataclasses.replace(rows, weights=np.pad(rows.weights, ((0, 0), (0, history - used))))

    @staticmethod
    def shapes(rows: Rows) -> dict[str, tuple[int, ...]]:
        """Gaps, weights and scales."""
        n = len(rows.scale)
        return {"gaps": (n,), "weights": rows.weights.shape, "scale": (n,)}

    @staticmethod
    def tables(base: Rows, path: GaussianPath, delta: Mapping[str, Any], position: Any, consistent: bool) -> Rows:
        """See `Form`."""
        xp, dtype, moved = namespace(*delta.values()), delta["gaps"].dtype, _moved(delta, position)

        def number(value: Any) -> Any:
            return xp.asarray(value, dtype)

        before = constant_law(path, base.to, base.times[:-1], base.times[1:])
        times = _times(base, moved["gaps"], number)
        ratio, total = constant_law(path, base.to, times[:-1], times[1:])
        known = np.tril(np.ones(base.weights.shape))
        shares = number(base.weights / before[1][:, None]) + moved["weights"] * number(known)
        scale = ratio * (number(base.scale / before[0]) + moved["scale"])
        if consistent:
            shares = xp.concatenate([1 - xp.sum(shares[:, 1:], axis=1, keepdims=True), shares[:, 1:]], axis=1)
            scale = ratio
        return Rows(times=times, scale=scale, weights=shares * total[:, None], to=base.to)

    @staticmethod
    def sampled(field: Field, rows: Rows, x: Array, cond: Any) -> Array:
        """See `Form`."""
        inside = uniform(len(rows.scale), 0.25, 0.75)  # what is bound on these times does not depend on them
        bound = Learned(rows=dataclasses.replace(rows, times=inside)).bind(field.path, inside)
        bound = dataclasses.replace(bound, times=rows.times[:-1], grid=rows.times)
        return solve(field, bound, x, cond=cond, checkpoint=True).x

    @staticmethod
    def is_consistent(rows: Rows, path: GaussianPath) -> bool:
        """See `Form`."""
        scale, total = constant_law(path, rows.to, rows.times[:-1], rows.times[1:])
        return bool(np.allclose(rows.weights.sum(1), total, atol=1e-9) and np.allclose(rows.scale, scale, atol=1e-9))

    @staticmethod
    def solver(rows: Rows) -> Learned:
        """See `Form`."""
        return Learned(rows=rows)


class Stacked(Form):
    """`solvers.ParallelRows`: several points in each step.

    Example:
        >>> from flowjax.calibration.forms import Stacked
        >>> Stacked.times
        ('gaps', 'fractions')
    """

    times = ("gaps", "fractions")

    @staticmethod
    def shapes(rows: ParallelRows) -> dict[str, tuple[int, ...]]:
        """Gaps, places of the points within their steps, and all weights."""
        n, k = rows.points.shape
        return {
            "gaps": (n,),
            "fractions": (n, k),
            "states": (n, k),
            "values": (n, k, k),
            "scale": (n,),
            "weights": (n, 2 * k),
        }

    @staticmethod
    def tables(
        base: ParallelRows, path: GaussianPath, delta: Mapping[str, Any], position: Any, consistent: bool
    ) -> ParallelRows:
        """See `Form`."""
        xp, dtype, moved = namespace(*delta.values()), delta["gaps"].dtype, _moved(delta, position)

        def number(value: Any) -> Any:
            return xp.asarray(value, dtype)

        n, k = base.points.shape
        fractions = (base.points - base.times[:-1, None]) / np.diff(base.times)[:, None]
        before = constant_law(path, base.to, base.times[:-1], base.times[1:])
        inner = constant_law(path, base.to, np.repeat(base.times[:-1, None], k, 1), base.points)
        times = _times(base, moved["gaps"], number)
        starts = times[:-1, None] * xp.ones_like(moved["fractions"])
        places = xp.clip(number(fractions) + moved["fractions"], 0.0, 1.0)
        points = xp.clip(starts + places * (times[1:, None] - starts), 0.0, 1.0)
        ratio, total = constant_law(path, base.to, times[:-1], times[1:])
        own = constant_law(path, base.to, starts, points)
        states = own[0] * (number(base.states / inner[0]) + moved["states"])
        # The first step has no values before it; what a point takes of others goes with its own length.
        reach = np.where(inner[1] == 0, 1.0, inner[1])[:, :, None]
        values = number(base.values / reach) * own[1][:, :, None] + moved["values"] * total[:, None, None]
        known = np.concatenate([np.ones((n, k)), np.arange(n)[:, None] > np.zeros((1, k))], axis=1)
        shares = (number(base.weights / before[1][:, None]) + moved["weights"]) * number(known)
        scale = ratio * (number(base.scale / before[0]) + moved["scale"])
        if consistent:
            shares = xp.concatenate([1 - xp.sum(shares[:, 1:], axis=1, keepdims=True), shares[:, 1:]], axis=1)
            scale = ratio
        weights = shares * total[:, None]
        return ParallelRows(
            times=times, points=points, states=states, values=values, scale=scale, weights=weights, to=base.to
        )

    @staticmethod
    def sampled(field: Field, rows: ParallelRows, x: Array, cond: Any) -> Array:
        """See `Form`."""
        return steps(rows, field, x, cond, checkpoint=True)[0]

    @staticmethod
    def is_consistent(rows: ParallelRows, path: GaussianPath) -> bool:
        """See `Form`; what points are is then no matter."""
        scale, total = constant_law(path, rows.to, rows.times[:-1], rows.times[1:])
        k = rows.points.shape[1]
        first = np.concatenate([rows.weights[:1, :k].sum(1), rows.weights[1:].sum(1)])
        return bool(np.allclose(first, total, atol=1e-9) and np.allclose(rows.scale, scale, atol=1e-9))

    @staticmethod
    def solver(rows: ParallelRows) -> Parallel:
        """See `Form`."""
        return Parallel(rows=rows)


_FORMS: dict[type, type[Form]] = {Rows: Multistep, ParallelRows: Stacked}


def form_of(rows: Any) -> type[Form]:
    """What may be learned of these rows, and how."""
    return _FORMS[type(rows)]


# --------------------------------------------------------------------------------------------------------------------
# Where learning starts
# --------------------------------------------------------------------------------------------------------------------


def _grids(path: GaussianPath, steps: int, start: float, end: float) -> dict[str, np.ndarray]:
    grids = {"uniform": uniform(steps, start, end), "quadratic": quadratic(steps, start, end)}
    if np.isfinite(path.lam(start)) and np.isfinite(path.lam(end)):
        grids["log_snr"] = log_snr(path, steps, start, end)
    return grids


def starts(path: GaussianPath, steps: int, start: float, end: float) -> dict[str, Rows]:
    """The rows of known solvers on equal and quadratic steps of time, and equal ones of log-SNR where it is finite."""
    found = {}
    for name, solver in KNOWN.items():
        for kind, grid in _grids(path, steps, start, end).items():
            try:
                found[f"{name} on {kind}"] = rows_of(solver.bind(path, grid))
            except ValueError:  # a method that is not defined at an end
                continue
    return found


def parallel_starts(path: GaussianPath, steps: int, points: int, start: float, end: float) -> dict[str, ParallelRows]:
    """Steps whose points lie at equal distances and are reached by the newest value of the step before.

    Their weights integrate the polynomial through all points (two points: that of the middle).
    """
    fractions = np.arange(points) / points
    moments = 1.0 / np.arange(1, points + 1)
    own = np.linalg.solve(np.vander(fractions, increasing=True).T, moments)
    found = {}
    for to in ("velocity", "data"):
        for kind, grid in _grids(path, steps, start, end).items():
            times = grid[:-1, None] + fractions * np.diff(grid)[:, None]
            if to == "velocity" and not all(path.has_velocity(t) for t in np.ravel(times)):
                continue
            inner = constant_law(path, to, np.repeat(grid[:-1, None], points, 1), times)
            ratio, total = constant_law(path, to, grid[:-1], grid[1:])
            values = np.zeros((steps, points, points))
            values[1:, :, -1] = inner[1][1:]
            weights = np.concatenate([own * total[:, None], np.zeros((steps, points))], axis=1)
            found[f"{to} at {points} points on {kind}"] = ParallelRows(
                times=grid, points=times, states=inner[0], values=values, scale=ratio, weights=weights, to=to
            )
    return found


# --------------------------------------------------------------------------------------------------------------------
# In files
# --------------------------------------------------------------------------------------------------------------------


def to_arrays(rows: Any, delta: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Rows and what was learned of them, as a file holds them."""
    named = {f"base_{f.name}": np.asarray(getattr(rows, f.name)) for f in dataclasses.fields(rows)}
    if delta is None:
        delta = {name: np.zeros((1, *shape)) for name, shape in form_of(rows).shapes(rows).items()}
    return named | {f"learned_{name}": np.asarray(part) for name, part in delta.items()}


def of_arrays(arrays: Mapping[str, Any], path: GaussianPath, position: float, consistent: bool) -> Any:
    """The rows of a file at a position in the range of scales.

    Raises:
        KeyError: Something is missing.
        ValueError: Numbers that are no rows.
    """
    make: Any = ParallelRows if "base_points" in arrays else Rows
    names = [field.name for field in dataclasses.fields(make) if field.name != "to"]
    base = make(**{name: arrays[f"base_{name}"] for name in names}, to=str(arrays["base_to"]))
    form = form_of(base)
    delta = {name: arrays[f"learned_{name}"] for name in form.shapes(base)}
    for name, shape in form.shapes(base).items():
        if delta[name].shape[1:] != shape:
            raise ValueError(f"learned_{name} must be (degree + 1, *{shape}), got {delta[name].shape}")
    return form.tables(base, path, delta, position, consistent)

"""Learned rows: a linear method whose times and weights are numbers that were found on a model.

    x_{i+1} = scale_i x_i + sum_{m < k} weights_im f_{i-m},    f_j the prediction at (times_j, x_j)

Every explicit method that evaluates once at each of n increasing times is of this form, whatever it expands: its rows
are `rows_of(bound)`. `flowjax.calibration.learning` fits them to a model.

References:
    Shaul et al. (2024), Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models,
    arXiv:2403.01329. Frankel et al. (2025), S4S: Solving for a Diffusion Model Solver, arXiv:2502.17423.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flowjax import _checks
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths.base import PREDICTIONS, GaussianPath
from flowjax.solvers.bound import Bound
from flowjax.solvers.requests import Updates, evaluate, pairs, step
from flowjax.solvers.rows import FIELD
from flowjax.solvers.solver import Solver
from flowjax.times import check_times


def as_numbers(rows: Any, names: Sequence[str]) -> None:
    """Makes float64 arrays of these attributes of frozen rows.

    Raises:
        ValueError: One is no array of finite numbers.
    """
    for name in names:
        try:
            array = np.asarray(getattr(rows, name), np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{name} of rows are numbers, got {getattr(rows, name)!r}") from None
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of rows hold NaN or infinite numbers")
        object.__setattr__(rows, name, array)


@fact(
    "rows",
    "rows",
    "the numbers of a learned solver",
    cite="frankel2025s4s",
    example=lambda: {"times": (0.0, 0.5, 1.0), "scale": (1.0, 1.0), "weights": ((0.5, 0.0), (0.5, 0.0))},
)
@pytree
class Rows:
    """The numbers of a method, see the module.

    Attributes:
        times: n + 1 increasing times: those of the evaluations, and the end.
        scale: Weights of the state, (n,).
        weights: Of the k newest values, the newest first, (n, k); zero where there are fewer.
        to: The prediction that is asked for.

    Raises:
        ValueError: Numbers that do not fit, or are not finite.

    Example:
        >>> import flowjax as fj
        >>> rows = fj.solvers.rows_of(fj.solvers.AdamsBashforth(order=2).bind(fj.paths.Linear(), fj.times.uniform(2)))
        >>> rows.weights.tolist()  # of a step of Euler, then of the second order
        [[0.5, 0.0], [0.75, -0.25]]
    """

    times: Any
    scale: Any
    weights: Any
    to: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks what is no part of a compiled function."""
        _checks.choose("prediction", self.to, PREDICTIONS)
        if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves((self.times, self.scale, self.weights))):
            return
        as_numbers(self, ("times", "scale", "weights"))
        n = len(check_times(self.times)) - 1
        if self.scale.shape != (n,) or self.weights.ndim != 2 or not 1 <= self.weights.shape[1] <= len(self.weights):
            raise ValueError(
                f"rows with {n + 1} times have scale ({n},) and weights ({n}, 1 to {n}), got {self.scale.shape} and "
                f"{self.weights.shape}"
            )
        if len(self.weights) != n or np.triu(self.weights, 1)[:, 1:].any():
            raise ValueError(f"weights of row i are those of at most i + 1 values, got {self.weights.tolist()}")


@fact(
    "solver",
    "learned",
    "rows and times learned on a model",
    cite="shaul2024bespoke",
    example=lambda: {"rows": Rows(times=(0.0, 0.5, 1.0), scale=(1.0, 1.0), weights=((0.5, 0.0), (0.75, -0.25)))},
)
@pytree
class Learned(Solver):
    """A method by its numbers; it is sampled at its own times, `solver.rows.times`.

    Attributes:
        rows: The numbers.

    Raises:
        ValueError: See `Rows`.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path, times = fj.paths.Linear(), fj.times.uniform(4)
        >>> solver = fj.solvers.Learned(rows=fj.solvers.rows_of(fj.solvers.DPMSolver().bind(path, times)))
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=path)
        >>> found, expected = (fj.solve(flow, s, jnp.ones((1, 1)), times).x for s in (solver, fj.solvers.DPMSolver()))
        >>> bool(jnp.allclose(found, expected))
        True
    """

    rows: Rows = part("rows")

    no_direction = "its steps are numbers, without a direction that momentum could average"

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The rows, one after the other."""
        rows: Rows = self.rows
        values: list[Any] = []
        if len(times) != len(rows.times) or not np.allclose(times, rows.times, rtol=0, atol=1e-9):
            raise ValueError("learned rows have their own times: pass times=solver.rows.times")
        for i, (s, _) in enumerate(pairs(times)):
            values = [(yield evaluate(s, x, to=rows.to)), *values][: rows.weights.shape[1]]
            total = rows.scale[i] * x
            for m, value in enumerate(values):
                total = total + rows.weights[i, m] * value
            x = yield step(total)


def rows_of(bound: Bound) -> Rows:
    """The rows of a bound solver, as few values back as it goes.

    Raises:
        ValueError: A method that is not of this form: with noise, arrays, a second field, ends of spans or constants,
            or whose times do not increase from one evaluation to the next.
    """
    pattern, n = bound.pattern, bound.pattern.rows
    times = np.append(np.asarray(bound.times, np.float64)[list(pattern.stages)], np.asarray(bound.grid)[-1])
    strange = [
        name
        for name, found in (
            ("noise", pattern.noises),
            ("arrays", bound.arrays),
            ("a second field", any(kind > FIELD and kind != 2 for kind in pattern.kinds) or bound.second is not None),
            ("ends of spans", bound.ends is not None),
            ("times that do not increase", not (np.diff(times) > 0).all()),
        )
        if found
    ]
    unit = np.eye(n + 1)
    points = []
    if not strange:
        registers, zero = (bound.start(start[None]) for start in (unit[0], np.zeros(n + 1)))
        for row in range(n):
            points.append(bound.point(row, registers)[1][0])
            registers = bound.advance(row, registers, unit[row + 1][None])
            zero = bound.advance(row, zero, np.zeros((1, n + 1)))
        points.append(registers[0][0])
        if np.any(zero[0]):
            strange.append("constants")
    if strange:
        raise ValueError(f"this method has {strange[0]}, and is no row of scales and weights")
    scale, lines = [], []
    for i, (now, then) in enumerate(itertools.pairwise(points)):
        scale.append(then[0] / now[0])
        left = then - scale[-1] * now
        left[np.abs(left) < 1e-13 * np.abs(then).max()] = 0
        lines.append(np.append(left[i + 1 : 0 : -1], np.zeros(n - i - 1)))
    weights = np.stack(lines)
    used = max(1, int(np.flatnonzero(weights.any(0)).max(initial=0)) + 1)
    return Rows(times=times, scale=np.array(scale), weights=weights[:, :used], to=pattern.to)

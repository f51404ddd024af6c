"""Parallel evaluations: steps whose evaluations do not wait for each other and go through the network as one batch.

In step i, from times_i to times_{i+1}, k points are evaluated at once; f_m are the values there and g_l those of the
step before, zero in the first:

    x_m = states_im x + sum_l values_iml g_l            at points_im
    x' = scale_i x + sum_m weights_im f_m + sum_l weights_i(k+l) g_l

A step costs k evaluations and takes one round; where the network does not fill the device, a round takes hardly longer
than one evaluation. `flowjax.calibration.learning` moves the numbers by gradient.

References:
    Zhu et al. (2025), Distilling Parallel Gradients for Fast ODE Solvers of Diffusion Models, arXiv:2507.14797 (EPD).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax import _checks
from flowjax._captured import tracing
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field, count
from flowjax.paths.base import PREDICTIONS, at_least_single
from flowjax.solvers.adaptive import OwnSteps
from flowjax.solvers.learned import as_numbers
from flowjax.times import check_times


def _two_steps() -> dict[str, Any]:
    """Two steps of two points each, of the velocity."""
    return {
        "times": (0.0, 0.5, 1.0),
        "points": ((0.0, 0.25), (0.5, 0.75)),
        "states": ((1.0, 1.0), (1.0, 1.0)),
        "values": (((0.0, 0.0), (0.0, 0.0)), ((0.0, 0.0), (0.0, 0.25))),
        "scale": (1.0, 1.0),
        "weights": ((0.0, 0.5, 0.0, 0.0), (0.0, 0.5, 0.0, 0.0)),
    }


@fact("rows", "parallel_rows", "the numbers of steps with parallel evaluations", cite="zhu2025epd", example=_two_steps)
@pytree
class ParallelRows:
    """The numbers of n steps with k points each, see the module.

    Attributes:
        times: Ends of the steps, n + 1 increasing times.
        points: Times of the evaluations, (n, k), in [0, 1].
        states: (n, k).
        values: (n, k, k).
        scale: (n,).
        weights: (n, 2 k).
        to: The prediction that is asked for.

    Raises:
        ValueError: Numbers that do not fit, or are not finite.

    Example:
        >>> from flowjax.solvers.parallel import ParallelRows, _two_steps
        >>> ParallelRows(**_two_steps()).points.shape
        (2, 2)
    """

    times: Any
    points: Any
    states: Any
    values: Any
    scale: Any
    weights: Any
    to: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks what is no part of a compiled function."""
        _checks.choose("prediction", self.to, PREDICTIONS)
        names = ("times", "points", "states", "values", "scale", "weights")
        if any(isinstance(getattr(self, name), jax.core.Tracer) for name in names):
            return
        as_numbers(self, names)
        n = len(check_times(self.times)) - 1
        k = self.points.shape[-1] if self.points.ndim == 2 else 0
        expected = {"points": (n, k), "states": (n, k), "values": (n, k, k), "scale": (n,), "weights": (n, 2 * k)}
        for name, shape in expected.items():
            if k < 1 or getattr(self, name).shape != shape:
                raise ValueError(f"{name} of {n} steps must be {shape}, got {getattr(self, name).shape}")
        if self.points.min() < 0 or self.points.max() > 1:
            raise ValueError(f"points must be in [0, 1], got {self.points.min():g} to {self.points.max():g}")


@fact(
    "solver",
    "parallel",
    "learned steps with parallel evaluations",
    cite="zhu2025epd",
    example=lambda: {"rows": ParallelRows(**_two_steps())},
)
@pytree
class Parallel(OwnSteps):
    """Steps with parallel evaluations, at their own times, `solver.rows.times`.

    It has no rows that a loop of somebody else could run one by one: `flowjax.solve` and all mains run it.

    Attributes:
        rows: The numbers.

    Raises:
        ValueError: See `ParallelRows`; when solving, other times, or a field with a memory.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> from flowjax.solvers.parallel import _two_steps
        >>> solver = fj.solvers.Parallel(rows=fj.solvers.ParallelRows(**_two_steps()))
        >>> flow = fj.Flow(lambda x, t, cond: jnp.ones_like(x), path=fj.paths.Linear())
        >>> result = fj.solve(flow, solver, jnp.zeros((1, 1)), solver.rows.times)
        >>> float(result.x[0, 0]), int(result.evaluations), int(result.rounds)
        (1.0, 4, 2)
    """

    rows: ParallelRows = part("rows")

    def solve(
        self,
        field: Field,
        x: Float[Array, "batch ..."],
        times: Any,
        cond: Any = None,
        *,
        trajectory: bool = False,
        invert: bool = False,
    ) -> dict[str, Any]:
        """Integrates along the steps.

        Raises:
            ValueError: Other times than those of the rows, an inversion, a field with a memory.
        """
        rows = self.rows
        if invert:
            raise ValueError("learned steps go from noise to data only: invert=True is for other solvers")
        if np.shape(times) != np.shape(rows.times) or not np.allclose(times, rows.times, rtol=0, atol=1e-9):
            raise ValueError("learned steps have their own times: pass times=solver.rows.times")
        field.check(np.unique(rows.points).tolist(), rows.to)
        if not field.stateless:
            raise ValueError(f"{type(field).__name__} has a memory, which parallel evaluations have no order for")
        x = at_least_single(x)
        moved = jax.tree.map(functools.partial(jnp.asarray, dtype=x.dtype), rows)
        return _integrate(moved, field, x, cond, trajectory)


def steps(rows: ParallelRows, field: Field, x: Array, cond: Any, checkpoint: bool = False) -> tuple[Array, Array, Any]:
    """The final states, those after each step, and the field's account, of rows whose numbers may be traced.

    Args:
        rows: The numbers.
        field: What is evaluated.
        x: Start states, (B, ...).
        cond: Their conditions.
        checkpoint: Whether the backward pass computes a step again.
    """
    k, batch = rows.points.shape[1], x.shape[0]
    every = jax.tree.map(lambda c: jnp.repeat(c, k, axis=0), cond)  # points of a sample stay on its device
    account = field.init(jnp.repeat(x, k, axis=0))

    def one(carry: Any, row: Any) -> Any:
        x, before, account = carry
        points, states, values, scale, weights = row
        at = states.reshape(1, k, *(1,) * (x.ndim - 1)) * x[:, None] + jnp.einsum("ml,bl...->bm...", values, before)
        found, account = field.evaluate(
            jnp.tile(points, batch), at.reshape(-1, *x.shape[1:]), every, account, to=rows.to
        )
        found = found.reshape(at.shape).astype(x.dtype)
        x = scale * x + jnp.einsum("m,bm...->b...", weights, jnp.concatenate([found, before], axis=1))
        return (x, found, account), x

    start = (x, jnp.zeros((batch, k, *x.shape[1:]), x.dtype), account)
    lines = (rows.points, rows.states, rows.values, rows.scale, rows.weights)
    (final, _, account), visited = jax.lax.scan(jax.checkpoint(one) if checkpoint else one, start, lines)
    return final, visited, account


@functools.partial(jax.jit, static_argnames="trajectory")
@tracing()
def _integrate(rows: ParallelRows, field: Field, x: Array, cond: Any, trajectory: bool) -> dict[str, Any]:
    final, visited, account = steps(rows, field, x, cond)
    rounds, calls = count(account)
    k = rows.points.shape[1]
    return {
        "x": final,
        "evaluations": k * rounds,
        "network_calls": k * calls,
        "rounds": rounds,
        "trajectory": jnp.concatenate([x[None], visited]) if trajectory else None,
    }

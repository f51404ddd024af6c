"""Final states of rows, and their derivatives by each number of the rows.

A number of step i has no effect before it. For `solvers.Rows` of fields without memory the derivatives are carried from
step to step, so that an evaluation is differentiated by the numbers before it alone: for ten evaluations a third of
differentiating the whole run by each number.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from flowjax.calibration.forms import form_of
from flowjax.flow import Field
from flowjax.solvers.learned import Rows

TOGETHER = 8
"""Derivatives that are computed in one batch."""


def numbers(rows: Any) -> dict[str, Any]:
    """The arrays of rows by name."""
    return {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows) if field.name != "to"}


def derivatives(
    field: Field, rows: Any, x: Float[Array, "B ..."], cond: Any
) -> tuple[Float[Array, "B ..."], dict[str, Float[Array, "..."]]]:
    """Final states from x, and their derivatives by `numbers`: (*shape, B, ...) for each array (*shape).

    Args:
        field: What is evaluated.
        rows: `solvers.Rows` or `ParallelRows`, numbers.
        x: Start states.
        cond: Their conditions.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> from flowjax.calibration.derivatives import derivatives
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> rows = fj.solvers.rows_of(fj.solvers.Euler().bind(flow.path, fj.times.uniform(2)))
        >>> final, slopes = derivatives(flow, rows, jnp.ones((1, 1)), None)
        >>> final.tolist(), slopes["weights"][:, 0, 0, 0].tolist()  # (1 - b_1)(1 - b_0)
        ([[0.25]], [-0.5, -0.5])
    """
    if isinstance(rows, Rows) and field.stateless:
        return _step_by_step(field, rows, x, cond)
    return _whole(field, rows, x, cond)


@jax.jit
def _whole(field: Field, rows: Any, x: Array, cond: Any) -> tuple[Array, dict[str, Array]]:
    vector, shaped = ravel_pytree({name: jnp.asarray(part, x.dtype) for name, part in numbers(rows).items()})

    def final(vector: Array) -> Array:
        return form_of(rows).sampled(field, dataclasses.replace(rows, **shaped(vector)), x, cond)

    def along(direction: Array) -> Array:
        return jax.jvp(final, (vector,), (direction,))[1]

    slopes = jax.lax.map(along, jnp.eye(len(vector), dtype=vector.dtype), batch_size=TOGETHER)
    parts, start = {}, 0
    for name, part in sorted(numbers(rows).items()):  # in the order of ravel_pytree
        parts[name] = slopes[start : start + part.size].reshape(*part.shape, *x.shape)
        start += part.size
    return final(vector), parts


@functools.partial(jax.jit, static_argnames="to")
def _evaluated(
    field: Field, t: Any, x: Array, cond: Any, directions: Array, durations: Array, to: str
) -> tuple[Array, Array]:
    def value(t: Any, x: Array) -> Array:
        return field.evaluate(t, x, cond, field.init(x), to=to)[0].astype(x.dtype)

    def along(direction: Array, duration: Array) -> Array:
        return jax.jvp(value, (t, x), (duration, direction))[1]

    return value(t, x), jax.vmap(along)(directions, durations)


def _step_by_step(field: Field, rows: Rows, x: Array, cond: Any) -> tuple[Array, dict[str, Array]]:
    (n, used), shape = rows.weights.shape, x.shape
    state = np.asarray(x)
    slopes = np.zeros((0, *shape), state.dtype)  # of the state
    values: list[tuple[np.ndarray, np.ndarray]] = []  # the newest first, each with its slopes
    names: list[tuple[str, tuple[int, ...]]] = []

    def grown(slopes: np.ndarray) -> np.ndarray:
        return np.concatenate([slopes, np.zeros((len(names) - len(slopes), *shape), state.dtype)])

    for i in range(n):
        if i:
            names.append(("times", (i,)))
            slopes = grown(slopes)
        durations = np.zeros(len(names), state.dtype)
        durations[-1:] = 1
        found = []
        for first in range(0, max(len(names), 1), TOGETHER):
            some = slopes[first : first + TOGETHER]
            room = ((0, TOGETHER - len(some)), *((0, 0) for _ in shape))
            value, more = _evaluated(
                field,
                jnp.asarray(rows.times[i], x.dtype),
                jnp.asarray(state),
                cond,
                np.pad(some, room),
                np.pad(durations[first : first + TOGETHER], room[0]),
                rows.to,
            )
            found.append(np.asarray(more)[: len(some)])
        values = [(np.asarray(value), np.concatenate(found)), *values][:used]
        new = [state, *(value for value, _ in values)]
        names += [("scale", (i,)), *(("weights", (i, m)) for m in range(len(values)))]
        weights = rows.weights[i].astype(state.dtype)
        scale = state.dtype.type(rows.scale[i])
        state = scale * state + sum(w * value for w, (value, _) in zip(weights, values, strict=False))
        slopes = scale * grown(slopes) + sum(w * grown(more) for w, (_, more) in zip(weights, values, strict=False))
        slopes[len(names) - len(new) :] = np.stack(new)
    made = {name: np.zeros((*array.shape, *shape), state.dtype) for name, array in numbers(rows).items()}
    for (name, place), slope in zip(names, slopes, strict=True):
        made[name][place] = slope
    return jnp.asarray(state), {name: jnp.asarray(part) for name, part in made.items()}

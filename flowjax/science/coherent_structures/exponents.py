"""Finite-time Lyapunov exponents of vector fields, samplers and flow maps on a grid; ridges."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowjax._pytree import pytree
from flowjax.facts import fact

VectorField = Callable[[Any, Any, Any], Any]


@pytree
class Stretching:
    """What a flow map does to small neighbourhoods.

    Attributes:
        end: the points after the map, (..., d).
        gradient: J, (..., d, d).
        exponent: FTLE per unit of time, (...); 0 where not valid.
        valid: False where J is zero, not finite or undetermined (too few or degenerate neighbours), or the interval of
            time is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> saddle = lambda t, x, args: jnp.stack([x[0], -x[1]])
        >>> found = stretching(saddle, jnp.zeros(2), 0.0, 1.0, steps=4)
        >>> round(float(found.gradient[0, 0]), 2), round(float(found.exponent), 2)  # e, and the rate 1
        (2.72, 1.0)
    """

    end: Float[Array, "... d"]
    gradient: Float[Array, "... d d"]
    exponent: Float[Array, "..."]
    valid: Bool[Array, "..."]


def largest_stretch(gradient: Float[Array, "... d d"]) -> Float[Array, "..."]:
    """The largest singular value; in two dimensions in closed form without cancellation.

    With J = [[a, b], [c, d]] it is (|(a + d, c - b)| + |(a - d, b + c)|) / 2, the conformal and the anticonformal part.
    Its derivative is finite everywhere (one of the subgradients where singular values coincide).
    """
    if gradient.shape[-1] != 2:
        return jnp.linalg.svd(gradient, compute_uv=False)[..., 0]
    a, b, c, d = (gradient[..., i, j] for i in range(2) for j in range(2))
    return (_hypotenuse(a + d, c - b) + _hypotenuse(a - d, b + c)) / 2


def ftle(gradient: Float[Array, "... d d"], duration: Any) -> Float[Array, "..."]:
    """ln sigma_max(J) / |T|; -inf where J is zero.

    Raises:
        ValueError: T is 0 or not finite; where that shows only under jit, the exponent is NaN.
    """
    _check_duration(duration)
    length = jnp.abs(jnp.asarray(duration, gradient.dtype))
    return jnp.log(largest_stretch(gradient)) / jnp.where((length > 0) & (length < jnp.inf), length, jnp.nan)


@fact(
    "system",
    "lyapunov_exponents",
    "finite-time Lyapunov exponents of vector fields, samplers and tracks",
    cite="haller2015lagrangian",
)
def stretching(
    vector_field: VectorField, points: Float[Array, "... d"], t0: Any, t1: Any, *, steps: int, args: Any = None
) -> Stretching:
    """Flow map, its Jacobian and the FTLE of a vector field, by classical Runge-Kutta steps of constant length.

    Args:
        vector_field: v(t, x, args) for one point x (d,), in diffrax's signature. A field of flowjax is
            `lambda t, x, cond: flow.velocity(t, x[None], cond)[0]`.
        points: starting points.
        t0: time of the points.
        t1: final time; below t0 for attracting structures.
        steps: number of steps; the error of J falls as its fourth power.
        args: passed to the vector field.

    Raises:
        ValueError: no steps, or an empty interval: t0 = t1, or as far as rounding of t0 and t1 in the dtype of the
            points can tell. Where that shows only under jit, the result is not valid.

    Example:
        >>> shear = lambda t, x, args: jnp.stack([1.3 * x[1], 0 * x[0]])
        >>> round(float(stretching(shear, jnp.zeros(2), 0.0, 2.0, steps=4).exponent), 4)
        0.5392
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one step is needed")
    if not isinstance(t0, jax.core.Tracer) and not isinstance(t1, jax.core.Tracer):
        if _empty(np.asarray(t0, points.dtype), np.asarray(t1, points.dtype)):
            raise ValueError(f"from t0={t0} to t1={t1}: the exponent of an empty interval is not defined")
    t0, t1 = jnp.asarray(t0, points.dtype), jnp.asarray(t1, points.dtype)
    times = jnp.linspace(t0, t1, steps + 1, dtype=points.dtype)
    size = points.shape[-1]

    def step(span, y):
        t, h = span[0], span[1] - span[0]
        k1 = vector_field(t, y, args)
        k2 = vector_field(t + h / 2, y + h / 2 * k1, args)
        k3 = vector_field(t + h / 2, y + h / 2 * k2, args)
        k4 = vector_field(t + h, y + h * k3, args)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def advance(state, span):
        y, columns = state
        y, push = jax.linearize(lambda y: step(span, y), y)
        return (y, jax.vmap(push)(columns)), None

    def one(y):
        spans = jnp.stack([times[:-1], times[1:]], axis=1)
        (y, columns), _ = jax.lax.scan(advance, (y, jnp.eye(size, dtype=y.dtype)), spans)
        return y, columns.T

    end, gradient = jax.vmap(one)(points.reshape(-1, size))
    return _checked(
        end.reshape(points.shape), gradient.reshape(*points.shape, size), jnp.where(_empty(t0, t1), 0, t1 - t0)
    )


def variational(vector_field: VectorField) -> VectorField:
    """The field of the pair (x, J), d(x, J)/dt = (v, grad v J), whose error an adaptive solver can control.

    Start it at (x, identity). A diffrax solver of this field gives (F(x), J) without differentiating the solver.
    """

    def field(t, state, args):
        y, gradient = state
        value, push = jax.linearize(lambda y: vector_field(t, y, args), y)
        return value, jax.vmap(push, in_axes=1, out_axes=1)(gradient)

    return field


def sampler_stretching(
    sampler: Callable[[Array], Array], noise: Float[Array, "B ..."], *, duration: Any = 1.0, chunk: int = 16
) -> Stretching:
    """What a generative flow stretches: the Jacobian of the whole sampler, from noise to data, with its FTLE.

    The Jacobian is that of the discrete sampler, by forward derivatives along all D coordinates of a sample.

    Args:
        sampler: noise (B, ...) -> samples of the same shape, such as
            `lambda x: fj.solve(flow, solver, x, times).x`; a sample must not depend on its batch mates.
        noise: where to look.
        duration: length of the interval of time, 1 for a whole run; not 0.
        chunk: directions that are pushed through the sampler at once.

    Returns:
        Flattened samples (B, D), Jacobians (B, D, D), exponents and flags (B,).

    Raises:
        ValueError: duration is 0 or not finite; where that shows only under jit, the result is not valid.
    """
    _check_duration(duration)
    flat = noise.reshape(len(noise), -1)

    def flat_sampler(x):
        return sampler(x.reshape(noise.shape)).reshape(flat.shape)

    def column(direction):
        return jax.jvp(flat_sampler, (flat,), (jnp.broadcast_to(direction, flat.shape),))[1]

    basis = jnp.eye(flat.shape[1], dtype=flat.dtype)
    columns = jax.lax.map(column, basis, batch_size=min(chunk, flat.shape[1]))
    return _checked(flat_sampler(flat), jnp.moveaxis(columns, 0, -1), duration)


def grid_stretching(end: Float[Array, "... d"], spacing: tuple[float, ...], duration: Any) -> Stretching:
    """FTLE by central differences of a flow map that is known on a grid (one-sided at its edges).

    Two neighbours cannot separate by more than the domain: the result is capped near
    ln(extent / (2 spacing)) / |T| and never to be compared with the exact one where that is larger.

    Args:
        end: final positions of the grid points, (n_1, ..., n_d, d).
        spacing: of the grid along each axis, d numbers.
        duration: T, not 0.

    Raises:
        ValueError: the number of axes is not d, an axis has fewer than two points, a spacing is not positive, or T is 0
            or not finite; where that shows only under jit, the result is not valid.
    """
    _check_duration(duration)
    _check_spacing(spacing)
    size = end.shape[-1]
    if end.ndim != size + 1 or len(spacing) != size or min(end.shape[:-1]) < 2:
        raise ValueError(f"a flow map on a grid has shape (n_1, ..., n_d, d) with n >= 2; got {end.shape}, {spacing=}")
    gradient = jnp.stack(jnp.gradient(end, *spacing, axis=tuple(range(size))), axis=-1)
    return _checked(end, gradient, duration)


def ridges(
    exponent: Float[Array, "..."], spacing: tuple[float, ...], *, percentile: float = 75.0
) -> Bool[Array, "..."]:
    """Grid points on ridges of a scalar: maxima along the direction e of the most negative curvature (reconstructed).

    On the line along e the maximum of the quadratic model lies at -(grad . e) / curvature; a grid point is on the ridge
    if that is within half a cell. The outermost points never are: walls carry extremes of their own.

    Args:
        exponent: values on a grid, (n_1, ..., n_d).
        spacing: of the grid along each axis.
        percentile: only values above this percentile of the interior, in [0, 100].

    Raises:
        ValueError: fewer than three points along an axis, or numbers outside these ranges. Values that are not finite
            are on no ridge and count in no percentile.
    """
    _check_spacing(spacing)
    if min(exponent.shape, default=0) < 3 or len(spacing) != exponent.ndim or not 0 <= percentile <= 100:
        raise ValueError(
            f"ridges need a grid of 3 points or more and a spacing along each axis, and a percentile in [0, 100]; got "
            f"{exponent.shape}, {spacing=}, {percentile=}"
        )
    axes = tuple(range(exponent.ndim))
    slope = _gradient(exponent, spacing, axes)
    curvature, directions = jnp.linalg.eigh(_gradient(slope, spacing, axes))
    curvature, direction = curvature[..., 0], directions[..., 0]
    offset = -jnp.sum(slope * direction, axis=-1) / jnp.where(curvature < 0, curvature, 1)
    cell = 1 / jnp.max(jnp.abs(direction) / _spread(spacing, direction), axis=-1)
    inner = np.zeros(exponent.shape, bool)
    inner[(slice(1, -1),) * exponent.ndim] = True
    interior = exponent[(slice(1, -1),) * exponent.ndim]
    high = exponent >= jnp.nanpercentile(jnp.where(jnp.isfinite(interior), interior, jnp.nan), percentile)
    return (curvature < 0) & (jnp.abs(offset) <= cell / 2) & high & inner


def _check_duration(duration: Any) -> None:
    if not isinstance(duration, jax.core.Tracer) and not (np.all(np.isfinite(duration)) and np.all(duration != 0)):
        raise ValueError(f"duration={duration} must be finite and not 0: an empty interval has no exponent")


def _check_spacing(spacing: tuple[Any, ...]) -> None:
    known = [h for h in spacing if not isinstance(h, jax.core.Tracer)]
    if not all(np.isfinite(h) and h > 0 for h in known):
        raise ValueError(f"spacing={spacing} must be positive and finite")


def _empty(t0: Any, t1: Any) -> Any:
    """Whether rounding of t0 and t1 is a hundredth of t1 - t0 or more: the exponent would be wrong by as much."""
    return abs(t1 - t0) <= 100 * float(jnp.finfo(t0.dtype).eps) * (abs(t0) + abs(t1))


def _hypotenuse(x: Array, y: Array) -> Array:
    square = x**2 + y**2
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _spread(spacing: tuple[float, ...], like: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(spacing, like.dtype), like.shape)


def _gradient(values: Array, spacing: tuple[float, ...], axes: tuple[int, ...]) -> Array:
    """Central differences along the grid axes, as a new last axis."""
    slopes = jnp.gradient(values, *spacing, axis=axes)
    return jnp.stack(slopes if isinstance(slopes, (list, tuple)) else [slopes], axis=-1)


def _checked(end: Array, gradient: Array, duration: Any) -> Stretching:
    """The exponent of a gradient, or 0 and a flag where it has none."""
    duration = jnp.asarray(duration, gradient.dtype)
    some = jnp.isfinite(duration) & (duration != 0)
    valid = jnp.all(jnp.isfinite(gradient), axis=(-2, -1)) & jnp.any(gradient != 0, axis=(-2, -1)) & some
    identity = jnp.broadcast_to(jnp.eye(gradient.shape[-1], dtype=gradient.dtype), gradient.shape)
    stretch = largest_stretch(jnp.where(valid[..., None, None], gradient, identity))
    exponent = jnp.log(stretch) / jnp.where(some, jnp.abs(duration), 1)
    return Stretching(end=end, gradient=gradient, exponent=jnp.where(valid, exponent, 0), valid=valid)

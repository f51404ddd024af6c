"""Neighbouring tracks: the exponent of their deformation, and which of them move along together."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowjax.science.coherent_structures.exponents import Stretching, _check_duration, _checked


def nearest(
    queries: Float[Array, "Q d"], points: Float[Array, "N d"], count: int, valid: Bool[Array, " N"] | None = None
) -> tuple[Int[Array, "Q k"], Float[Array, "Q k"]]:
    """Indices and distances of the nearest valid points, nearest first; distance inf where there are not enough.

    Points that are not finite are never valid. Exact, by all distances of 1024 queries at a time.

    Raises:
        ValueError: fewer points than asked for.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"count={count} must lie between 1 and the number of points, {len(points)}")

    def one(query):
        square = jnp.sum((points - query[None]) ** 2, axis=-1)
        usable = jnp.isfinite(square) if valid is None else jnp.isfinite(square) & valid
        smallest, index = jax.lax.top_k(-jnp.where(usable, square, jnp.inf), count)
        return index, jnp.sqrt(-smallest)

    return jax.lax.map(one, queries, batch_size=1024)


def track_stretching(
    start: Float[Array, "N d"],
    end: Float[Array, "N d"],
    neighbours: Int[Array, "N m"],
    valid: Bool[Array, "N m"],
    duration: Any,
) -> Stretching:
    """FTLE from tracks: J = (sum dX1 dX0^T) (sum dX0 dX0^T)^-1 over the neighbours of each particle.

    Exact for affine flows. Particles with fewer than d neighbours, with neighbours in a plane (condition of the second
    sum above 1e10, in float32 1e5), or nearer than a hundred roundings of their coordinates, are flagged and get
    J = identity.

    Raises:
        ValueError: duration is 0 or not finite; where that shows only under jit, nothing is valid.
    """
    _check_duration(duration)
    size = start.shape[-1]
    weight = valid[..., None].astype(start.dtype)
    before = jnp.where(valid[..., None], start[neighbours] - start[:, None], 0) * weight
    after = jnp.where(valid[..., None], end[neighbours] - end[:, None], 0) * weight
    moments = jnp.einsum("nmi,nmj->nij", before, before)
    cross = jnp.einsum("nmi,nmj->nij", after, before)
    values = jnp.linalg.eigvalsh(jnp.where(jnp.isfinite(moments), moments, 0))
    limit = 1e10 if start.dtype == jnp.float64 else 1e5
    # Differences of coordinates x are known to eps |x|: to 1 % where the least spread is a hundred times that.
    place = jnp.max(jnp.where(jnp.isfinite(start), jnp.abs(start), 0), axis=-1)
    known = values[:, 0] > (100 * jnp.finfo(start.dtype).eps * place) ** 2 * jnp.sum(valid, axis=-1).astype(start.dtype)
    enough = (jnp.sum(valid, axis=-1) >= size) & (values[:, 0] * limit > values[:, -1]) & known
    identity = jnp.eye(size, dtype=start.dtype)[None]
    moments = jnp.where(enough[:, None, None], moments, identity)
    gradient = jnp.where(enough[:, None, None], jnp.linalg.solve(moments, cross.mT).mT, identity)
    result = _checked(end, gradient, duration)
    return Stretching(
        end=end,
        gradient=gradient,
        exponent=jnp.where(enough, result.exponent, 0),
        valid=result.valid & enough,
    )


def coherent_neighbours(
    start: Float[Array, "N d"],
    end: Float[Array, "N d"],
    neighbours: Int[Array, "N m"],
    valid: Bool[Array, "N m"],
    duration: Any,
    *,
    floor: float = 0.0,
) -> tuple[Float[Array, "N m"], Bool[Array, "N m"], Float[Array, "N m"]]:
    """Which neighbours move along with a particle, from the separation of pairs of tracks.

    Lambda = |ln(distance at the end / distance at the start)| / |T|; coherent are the valid neighbours at or below the
    median of their particle, at least two of them. Their weights (Lambda / mean)^-1 + 3 (d / max d)^-1, d the distance
    at the end, sum to one (0 where no neighbour is coherent). Contraction counts as separation, and rotation about
    each other does not count.

    Args:
        start: positions at the first time.
        end: positions at the last time.
        neighbours: indices of the neighbours of each particle.
        valid: which of them exist.
        duration: T.
        floor: smallest distance, of the order of the noise: close pairs separate by noise alone.

    Returns:
        Lambda (0 where not valid), mask of the coherent neighbours, weights.

    Raises:
        ValueError: duration is 0 or not finite; where that shows only under jit, no neighbour is coherent.
    """
    _check_duration(duration)
    duration = jnp.asarray(duration, start.dtype)
    some = jnp.isfinite(duration) & (duration != 0)
    tiny = jnp.finfo(start.dtype).eps
    first, last = (
        jnp.maximum(jnp.linalg.norm(x[neighbours] - x[:, None], axis=-1), max(floor, float(tiny))) for x in (start, end)
    )
    valid &= jnp.isfinite(first) & jnp.isfinite(last) & some
    first, last = jnp.where(valid, first, 1), jnp.where(valid, last, 1)
    exponent = jnp.abs(jnp.log(last / first)) / jnp.where(some, jnp.abs(duration), 1)
    any_valid = jnp.any(valid, axis=-1, keepdims=True)
    known = jnp.where(valid | ~any_valid, exponent, jnp.nan)
    coherent = valid & (exponent <= jnp.nanmedian(known, axis=-1, keepdims=True))
    coherent &= jnp.sum(coherent, axis=-1, keepdims=True) >= 2
    mean = jnp.sum(jnp.where(coherent, exponent, 0), -1, keepdims=True) / jnp.maximum(
        jnp.sum(coherent, -1, keepdims=True), 1
    ).astype(start.dtype)
    weight = (mean + tiny) / (exponent + tiny) + 3 * jnp.max(jnp.where(coherent, last, 0), -1, keepdims=True) / last
    weight = jnp.where(coherent, weight, 0)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return exponent, coherent, weight / jnp.where(total > 0, total, 1)

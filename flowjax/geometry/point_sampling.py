"""Choosing points of a cloud so that corrupted clouds do less harm (PointSP), and the usual choices beside them.

A cloud is x (N, 3), in the unit sphere where radii matter, with a mask (N,) that is nonzero for points that exist.
Points that are masked or not finite are never chosen, are nobody's neighbour and have weight zero; an index -1 says
that no point was left. Every function treats one cloud and is made for `vmap`. Where N points are asked for and
found, padding changes nothing.

Key points, i.e. centres of the groups inside a network, are chosen by `weighted_random` in training and
`filtered_farthest_points` in evaluation, both by the isolation weight

    w_i = #{j in kNN(i): |x_i - x_j|^2 <= tau},   tau = median_i mean_{j in kNN(i)} |x_i - x_j|^2,

with k = 20 neighbours, the point itself included: an isolated point keeps weight 1. The input of a network is
resampled by `resample` in training and filled up by `densify` in evaluation. Weights are invariant to rigid motion
and uniform scaling. Everything works in the dtype of the points; in float32 distances that tie to 1e-7 may be ordered
differently than in float64, and the plane interpolation is exact to 1e-6.

References:
    Li, Tang, Li, Liu and Li (2025), Enhancing Sampling Protocol for Point Cloud Classification Against Corruptions,
    IJCAI, arXiv:2408.12062. Formulas from the authors' program. Different here: farthest-point sampling starts at the
    first allowed point (there always at index 0, even when it is excluded); each cloud draws its own indices and
    centre (there one draw of indices per batch).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from flowjax.facts import fact
from flowjax.geometry._linear import null_vector, present

Mask = Float[Array, " N"] | None


def _check(points, count=1, k=1):
    if not 1 <= k <= len(points):
        raise ValueError(f"k={k} neighbours of a cloud with {len(points)} points; k must be in [1, {len(points)}]")
    if count < 1:
        raise ValueError(f"at least one point must be asked for, got {count}")


def neighbours(x: Float[Array, "N 3"], k: int = 20, mask: Mask = None) -> tuple[Int[Array, "N k"], Float[Array, "N k"]]:
    """The k nearest points of each point, itself first, and their squared distances (infinite where none is left).

    Raises:
        ValueError: k is not in [1, N].
    """
    _check(x, k=k)
    good = present(x, mask) > 0
    x = jnp.where(good[:, None], x, 0)
    # Not |a|^2 + |b|^2 - 2ab, which is rounded below zero and loses the point itself from the first place.
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    squares = jnp.where(good[:, None] & good[None], squares, jnp.inf)
    # Ten times faster than a sort. Of a batch that is spread over devices without `shard_map`, CPUs gather this step.
    negative, index = jax.lax.top_k(-squares, k)
    return index, -negative


def isolation_weights(x: Float[Array, "N 3"], k: int = 20, mask: Mask = None) -> Float[Array, " N"]:
    """Weights of the points, sum 1, smallest for isolated points; see the module's formula.

    All zero for a cloud without points. Piecewise constant in x.

    Raises:
        ValueError: k is not in [1, N].
    """
    good = present(x, mask) > 0
    _, squares = neighbours(x, k, mask)
    near = jnp.isfinite(squares)
    mean = jnp.where(near, squares, 0).sum(-1) / jnp.maximum(near.sum(-1), 1).astype(x.dtype)
    ordered = jnp.sort(jnp.where(good, mean, jnp.inf))
    last = jnp.maximum(good.sum() - 1, 0)
    tau = (ordered[last // 2] + ordered[(last + 1) // 2]) / 2
    counts = jnp.where(good, (squares <= tau).sum(-1), 0).astype(x.dtype)
    return counts / jnp.maximum(counts.sum(), 1)


def farthest_points(
    x: Float[Array, "N 3"], count: int, mask: Mask = None, *, skip_origin: bool = False
) -> Int[Array, " count"]:
    """Farthest-point sampling: the first allowed point, then always the one farthest from those chosen.

    Args:
        x: The cloud.
        count: Points to choose; -1 once none is left.
        mask: Nonzero for points that may be chosen.
        skip_origin: Whether points with |x|^2 <= 1e-3 are left out, as the published kernel does.

    Raises:
        ValueError: count is not positive.
    """
    _check(x, count)
    good = present(x, mask) > 0
    x = jnp.where(good[:, None], x, 0)
    if skip_origin:
        good &= (x**2).sum(-1) > 1e-3

    def choose(i, state):
        chosen, distance = state
        best = jnp.argmax(distance)
        left = distance[best] >= 0
        chosen = chosen.at[i].set(jnp.where(left, best, -1).astype(jnp.int32))
        distance = jnp.minimum(distance, ((x - x[best][None]) ** 2).sum(-1))
        return chosen, distance.at[best].set(-1)

    start = jnp.full(count, -1, jnp.int32), jnp.where(good, jnp.inf, -1).astype(x.dtype)
    return jax.lax.fori_loop(0, count, choose, start)[0]


def _best(scores, count):
    """Indices of the largest scores above -inf, then -1."""
    scores = jnp.pad(scores, (0, max(count - len(scores), 0)), constant_values=-jnp.inf)
    index = jnp.argsort(-scores, stable=True)[:count]
    return jnp.where(scores[index] > -jnp.inf, index, -1).astype(jnp.int32)


def weighted_random(key: Key[Array, ""], weights: Float[Array, " N"], count: int) -> Int[Array, " count"]:
    """Distinct indices drawn in turn with probability proportional to the weights (Gumbel top-k).

    Raises:
        ValueError: count is not positive.
    """
    _check(weights, count)
    gumbel = jax.random.gumbel(key, weights.shape, weights.dtype)
    return _best(jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)) + gumbel, -jnp.inf), count)


def fixed_size(
    x: Float[Array, "N 3"], count: int, mask: Mask = None, *, key: Key[Array, ""] | None = None
) -> Int[Array, " count"]:
    """The first `count` points, or with a key a random subset (FSS).

    Raises:
        ValueError: count is not positive.
    """
    _check(x, count)
    order = -jnp.arange(len(x), dtype=x.dtype) if key is None else jax.random.uniform(key, (len(x),), x.dtype)
    return _best(jnp.where(present(x, mask) > 0, order, -jnp.inf), count)


def trusted(x: Float[Array, "N 3"], k: int = 20, keep: float = 0.95, mask: Mask = None) -> Bool[Array, " N"]:
    """True for the int(keep n) of n points with the largest isolation weights.

    Weights are small integers over their sum, so ties at the cut are common: a stable sort keeps the points that come
    first in the cloud.

    Raises:
        ValueError: k is not in [1, N] or keep not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must be in (0, 1]")
    weights = isolation_weights(x, k, mask)
    rank = jnp.argsort(jnp.argsort(-weights, stable=True), stable=True)
    kept = jnp.asarray(np.floor(keep * np.arange(len(x) + 1) + 1e-9).astype(np.int32))
    return rank < kept[(weights > 0).sum()]


@fact(
    "system",
    "point_sampling",
    "key points and resampling for point clouds with outliers and holes",
    cite="li2024pointsp",
)
def filtered_farthest_points(
    x: Float[Array, "N 3"],
    count: int,
    k: int = 20,
    keep: float = 0.95,
    mask: Mask = None,
    *,
    skip_origin: bool = False,
) -> Int[Array, " count"]:
    """Farthest-point sampling among the `trusted` points (FFPS).

    The budget is fixed: a clean cloud loses 1 - keep of its points, and more outliers than that leak through.

    Raises:
        ValueError: count, k or keep is out of range.
    """
    return farthest_points(x, count, trusted(x, k, keep, mask).astype(x.dtype), skip_origin=skip_origin)


def draw_ratio(key: Key[Array, ""], dtype: Any = jnp.float32) -> Float[Array, ""]:
    """A random ratio of resampling in [0.5, 2], uniform in its logarithm; one for each batch."""
    return 2 ** (2 * jax.random.uniform(key, (), dtype) - 1)


def balanced_drop(
    key: Key[Array, ""],
    x: Float[Array, "N 3"],
    ratio: float | Float[Array, ""],
    mask: Mask = None,
    *,
    spread: float | Float[Array, ""] | None = None,
) -> Float[Array, " N"]:
    """Local-global balanced down-sampling: the mask after the removal of K = int(n (1 - ratio)) of n points.

    They are a random subset of the P = int((n - K) g) + K points nearest to a random point of the cloud.

    Args:
        key: Random key.
        x: The cloud.
        ratio: Share of points to keep, in [0, 1].
        mask: Nonzero for points that exist.
        spread: g in [0, 1]; 0 cuts out a ball, 1 thins the whole cloud; uniformly random unless given.

    Raises:
        ValueError: ratio or spread is outside [0, 1]. Where that shows only under jit, no point is left.
    """
    in_range = _in_range("ratio", ratio, 1) & (spread is None or _in_range("spread", spread, 1))
    good = present(x, mask) > 0
    keys = jax.random.split(key, 3)
    total = good.sum().astype(x.dtype)
    g = jax.random.uniform(keys[0], (), x.dtype) if spread is None else jnp.asarray(spread, x.dtype)
    remove = jnp.floor(total * (1 - jnp.asarray(ratio, x.dtype)))
    pool = jnp.floor((total - remove) * g) + remove
    center = x[jnp.argmax(jnp.where(good, jax.random.uniform(keys[1], good.shape, x.dtype), -1))]
    squares = jnp.where(good, ((x - center[None]) ** 2).sum(-1), jnp.inf)
    in_pool = _rank(squares) < pool
    score = jnp.where(in_pool & good, jax.random.uniform(keys[2], good.shape, x.dtype), jnp.inf)
    return (good & ~(_rank(score) < remove) & in_range).astype(x.dtype)


def _in_range(name, value, largest):
    """Whether a number lies in [0, largest]; an error where it is known and does not."""
    good = (value >= 0) & (value <= largest)
    if not isinstance(good, jax.core.Tracer) and not good:
        raise ValueError(f"{name}={value} must be in [0, {largest}]")
    return good


def _rank(values):
    return jnp.argsort(jnp.argsort(values)).astype(values.dtype)


def tangent_step(key: Key[Array, ""], x: Float[Array, "N 3"], k: int = 20, mask: Mask = None) -> Float[Array, "N 3"]:
    """One new point near each point: a step in its tangent plane towards a random one of its k neighbours.

    With v = x_j - x_i, p = v - (v.n) n and L = |p|: x_i + p / L min(L / 2, med_i), where n is the normal (direction of
    least variance of the neighbours) and med_i the lower median distance of the neighbours. The neighbour may be the
    point itself, which gives no step. On a plane the new points are exact, on a unit sphere of 1024 points their
    radius is off by 0.004. Differentiable in x, also through the normal, where the patch has one.

    Raises:
        ValueError: k is not in [1, N].
    """
    return _steps(jax.random.uniform(key, (len(x),), x.dtype), jnp.arange(len(x)), x, k, mask)


def _steps(uniforms, source, x, k, mask):
    """The step of `tangent_step` from the points `source` (M,), each to the neighbour that its uniform number picks."""
    good = present(x, mask) > 0
    index, squares = neighbours(x, k, mask)
    x = jnp.where(good[:, None], x, 0)
    near = jnp.isfinite(squares)
    count = jnp.maximum(near.sum(-1), 1)
    weight = near[..., None].astype(x.dtype)
    patch = x[index] * weight
    mean = patch.sum(1) / count[:, None].astype(x.dtype)
    normal = jax.vmap(null_vector)((patch - mean[:, None]) * weight)[0][source]
    choice = jnp.floor(uniforms * count[source].astype(x.dtype)).astype(jnp.int32)
    start = x[source]
    v = x[index[source, choice]] - start
    p = v - (v * normal).sum(-1, keepdims=True) * normal
    square = (p**2).sum(-1)
    length = jnp.sqrt(jnp.maximum(square, 1e-12))
    median = squares[source, (count[source] - 1) // 2]
    apart = jnp.isfinite(median) & (median > 0)
    step = jnp.minimum(length / 2, jnp.where(apart, jnp.sqrt(jnp.where(apart, median, 1)), 0))
    return start + p * (step / length)[:, None]


def densify(
    key: Key[Array, ""], x: Float[Array, "N 3"], count: int = 1024, k: int = 20, mask: Mask = None
) -> tuple[Float[Array, "count 3"], Float[Array, " count"]]:
    """Exactly `count` points: those of the cloud in order, then rounds of new ones by `tangent_step` from the original.

    A cloud with more points is cut off. The mask that comes with them is zero only for an empty cloud.

    Raises:
        ValueError: count is not positive or k not in [1, N].
    """
    _check(x, count, k)
    good = present(x, mask) > 0
    total = jnp.maximum(good.sum(), 1)
    order = jnp.argsort(~good, stable=True)
    slot = jnp.arange(count)
    source = order[slot % total]
    new = _steps(jax.random.uniform(key, (count,), x.dtype), source, x, k, mask)
    points = jnp.where((slot < total)[:, None], jnp.where(good[:, None], x, 0)[source], new)
    return points, jnp.broadcast_to(good.any(), (count,)).astype(x.dtype)


def resample(
    key: Key[Array, ""], x: Float[Array, "N 3"], ratio: float | Float[Array, ""], k: int = 20, mask: Mask = None
) -> tuple[Float[Array, "M 3"], Float[Array, " M"]]:
    """A cloud thinned or thickened by a ratio, as 2 N points with a mask (training form of the input).

    A ratio up to 1 is `balanced_drop`; above it int((ratio - 1) n) new points, one each at random points, are appended.

    Args:
        key: Random key.
        x: The cloud.
        ratio: In [0, 2], see `draw_ratio`.
        k: Neighbours for the new points.
        mask: Nonzero for points that exist.

    Raises:
        ValueError: k is not in [1, N], or ratio not in [0, 2]. Where that shows only under jit, no point is left.
    """
    in_range = _in_range("ratio", ratio, 2)
    drop, step, choose = jax.random.split(key, 3)
    good = present(x, mask) > 0
    ratio = jnp.asarray(ratio, x.dtype)
    kept = balanced_drop(drop, x, jnp.where(in_range, jnp.minimum(ratio, 1), -1), mask)
    extra = jnp.floor(jnp.maximum(ratio - 1, 0) * good.sum().astype(x.dtype))
    score = jnp.where(good, jax.random.uniform(choose, good.shape, x.dtype), jnp.inf)
    added = (good & (_rank(score) < extra) & in_range).astype(x.dtype)
    points = jnp.concatenate([jnp.where(good[:, None], x, 0), tangent_step(step, x, k, mask)])
    return points, jnp.concatenate([kept, added])

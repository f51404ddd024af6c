"""What goes wrong with measured point clouds: seven corruptions at five levels, after PointCloud-C.

Each takes (key, x, level, mask) for one cloud x (N, 3) in the unit sphere and gives (x, mask); `level` in 0..4 is
static. Added points are appended, so that the arrays grow; dropped ones are masked.

References:
    Ren, Pan and Liu (2022), Benchmarking and Analyzing Point Cloud Classification under Corruptions, ICML,
    arXiv:2202.03377. Numbers of points below are those for clouds of 1024 points; here they scale with N.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax.geometry._linear import present

LEVELS = 5
_PARTS = 7  # most clusters that local corruptions use


def to_unit_sphere(x: Float[Array, "N 3"], mask: Float[Array, " N"] | None = None) -> Float[Array, "N 3"]:
    """The cloud moved to its centre and scaled to largest radius 1."""
    weight = present(x, mask)[:, None]
    x = jnp.where(weight > 0, x, 0)
    x -= (x * weight).sum(0, keepdims=True) / jnp.maximum(weight.sum(), 1)
    radius = jnp.sqrt((weight[:, 0] * (x**2).sum(-1)).max())
    return x / jnp.where(radius > 0, radius, 1)


def _joined(x, added, mask):
    """Points and added ones, which exist only beside others, with their mask."""
    good = present(x, mask)
    return jnp.concatenate([x, added]), jnp.concatenate([good, jnp.broadcast_to(good.max(), (len(added),))])


def scale(key, x, level, mask=None):
    """Each axis times U(1/s, s), s = 1.6, 1.7, ..., 2; back to the unit sphere."""
    s = 1.6 + 0.1 * level
    return to_unit_sphere(x * jax.random.uniform(key, (1, 3), x.dtype, 1 / s, s), mask), present(x, mask)


def jitter(key, x, level, mask=None):
    """Normal noise of size 0.01 (level + 1)."""
    return x + 0.01 * (level + 1) * jax.random.normal(key, x.shape, x.dtype), present(x, mask)


def rotate(key, x, level, mask=None):
    """Angles U(-a, a) about each axis, a = 6 (level + 1) degrees: x Rz Ry Rx."""
    a = math.pi / 30 * (level + 1)
    angles = jax.random.uniform(key, (3,), x.dtype, -a, a)

    def matrix(axis):
        c, s = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        i, j = (axis + 1) % 3, (axis + 2) % 3
        return jnp.eye(3, dtype=x.dtype).at[i, i].set(c).at[j, j].set(c).at[i, j].set(-s).at[j, i].set(s)

    return x @ matrix(2) @ matrix(1) @ matrix(0), present(x, mask)


def drop_global(key, x, level, mask=None):
    """25, 37.5, 50, 62.5 or 75 % of the points are lost anywhere."""
    good = present(x, mask) > 0
    score = jnp.where(good, jax.random.uniform(key, good.shape, x.dtype), jnp.inf)
    lost = jnp.floor((0.25 + 0.125 * level) * good.sum().astype(x.dtype))
    rank = jnp.argsort(jnp.argsort(score)).astype(x.dtype)
    return x, (good & (rank >= lost)).astype(x.dtype)


def _cluster_sizes(key, total, dtype):
    """`total` points shared out at random over 1 to 7 clusters."""
    keys = jax.random.split(key)
    used = jax.random.randint(keys[0], (), 1, _PARTS + 1)
    owner = jnp.floor(jax.random.uniform(keys[1], (total,), dtype) * used.astype(dtype))
    return (owner[:, None] == jnp.arange(_PARTS, dtype=dtype)[None]).sum(0), owner.astype(jnp.int32)


def portion(points: int, level: int) -> int:
    """How many of a cloud's points local corruptions drop or add, 100 (level + 1) of 1024."""
    return max(points * 100 * (level + 1) // 1024, 1)


def drop_local(key, x, level, mask=None):
    """100 (level + 1) of 1024 points are lost in 1 to 7 balls around random points."""
    keys = jax.random.split(key)
    sizes, _ = _cluster_sizes(keys[0], portion(len(x), level), x.dtype)

    def lose(good, part):
        score, size = part
        center = x[jnp.argmax(jnp.where(good, score, -1))]
        squares = jnp.where(good, ((x - center[None]) ** 2).sum(-1), jnp.inf)
        return good & (jnp.argsort(jnp.argsort(squares)) >= size), None

    scores = jax.random.uniform(keys[1], (_PARTS, len(x)), x.dtype)
    good, _ = jax.lax.scan(lose, present(x, mask) > 0, (scores, sizes))
    return x, good.astype(x.dtype)


def add_global(key, x, level, mask=None):
    """10 (level + 1) of 1024 points are added anywhere in the unit ball, none to an empty cloud."""
    count = max(len(x) * 10 * (level + 1) // 1024, 1)
    return _joined(x, jax.random.ball(key, 3, shape=(count,), dtype=x.dtype), mask)


def add_local(key, x, level, mask=None):
    """100 (level + 1) of 1024 points are added in 1 to 7 clouds of size U(0.075, 0.125) around random points.

    Those outside the unit ball are divided by their squared radius, as in the published benchmark. Nothing is added to
    an empty cloud; one of fewer than 7 points has as many clusters at most.
    """
    count = portion(len(x), level)
    keys = jax.random.split(key, 4)
    _, owner = _cluster_sizes(keys[0], count, x.dtype)
    good = present(x, mask) > 0
    order = jnp.argsort(jnp.where(good, -jax.random.uniform(keys[1], good.shape, x.dtype), jnp.inf))
    centers = jnp.where(good[:, None], x, 0)[order[jnp.arange(_PARTS) % jnp.maximum(good.sum(), 1)]]
    sizes = jax.random.uniform(keys[2], (_PARTS,), x.dtype, 0.075, 0.125)
    added = centers[owner] + sizes[owner][:, None] * jax.random.normal(keys[3], (count, 3), x.dtype)
    added /= jnp.maximum((added**2).sum(-1, keepdims=True), 1)
    return _joined(x, added, mask)


CORRUPTIONS: dict[str, Callable] = {
    f.__name__: f for f in (scale, jitter, rotate, drop_global, drop_local, add_global, add_local)
}


def corrupt(
    key: Key[Array, ""],
    x: Float[Array, "N 3"],
    name: str,
    level: int,
    mask: Float[Array, " N"] | None = None,
) -> tuple[Float[Array, "M 3"], Float[Array, " M"]]:
    """A corrupted cloud and its mask.

    Raises:
        ValueError: unknown name, or level not in 0..4.
    """
    if name not in CORRUPTIONS or level not in range(LEVELS):
        raise ValueError(f"corruption {name!r} at level {level}; use one of {', '.join(CORRUPTIONS)}, levels 0 to 4")
    return CORRUPTIONS[name](key, x, level, mask)

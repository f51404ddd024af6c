"""Random clouds of points on the surfaces of simple bodies: a small classification problem without files."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flowjax._checks import SEED, whole
from flowjax.data.records import check_memory
from flowjax.data.sources import Source

NAMES = ("sphere", "cube", "cylinder", "cone", "torus", "disc", "helix", "cross")


def _circle(angle):
    return jnp.cos(2 * math.pi * angle), jnp.sin(2 * math.pi * angle)


def sample(
    key: Key[Array, ""],
    label: Int[Array, ""],
    points: int = 1024,
    *,
    stretch: float = 1.2,
    dtype: Any = jnp.float32,
) -> Float[Array, "points 3"]:
    """Points of the body number `label` of `NAMES`, each axis stretched by U(1/stretch, stretch), in the unit sphere.

    Raises:
        ValueError: points is not positive or stretch is below 1.
    """
    if points < 1 or stretch < 1:
        raise ValueError(f"points={points} must be positive and stretch={stretch} at least 1")
    uniforms = jax.random.uniform(key, (points + 1, 3), dtype)
    a, b, c = uniforms[:-1].T
    cos, sin = _circle(a)
    z = 2 * b - 1
    side, ring = jnp.sqrt(jnp.maximum(1 - z**2, 0)), _circle(b)
    tube = 0.35 * ring[0] + 1
    face = jnp.floor(6 * c).astype(jnp.int32)
    flat = jnp.stack([2 * a - 1, z, jnp.where(face % 2 == 0, 1, -1).astype(dtype)], -1)
    cube = jnp.take_along_axis(flat, (jnp.arange(3)[None] - face[:, None] // 2) % 3, 1)
    lid = c < 1 / 3
    radius = jnp.where(lid, jnp.sqrt(b), 1)
    cap = jnp.where(lid, jnp.where(c < 1 / 6, -1, 1).astype(dtype), z)
    slope = jnp.sqrt(b)
    turn = _circle(2 * b)
    beam = jnp.floor(3 * c).astype(jnp.int32)
    rod = jnp.stack([z, 0.15 * cos, 0.15 * sin], -1)
    bodies = [
        jnp.stack([side * cos, side * sin, z], -1),
        cube,
        jnp.stack([radius * cos, radius * sin, cap], -1),
        jnp.stack([slope * cos, slope * sin, jnp.where(c < 0.3, -1, 1 - 2 * slope)], -1),
        jnp.stack([tube * cos, tube * sin, 0.35 * ring[1]], -1),
        jnp.stack([slope * cos, slope * sin, 0.1 * (2 * c - 1)], -1),
        jnp.stack([turn[0] + 0.15 * (2 * a - 1), turn[1] + 0.15 * (2 * c - 1), z], -1),
        jnp.take_along_axis(rod, (jnp.arange(3)[None] - beam[:, None]) % 3, 1),
    ]
    body = jnp.stack(bodies)[label] * stretch ** (2 * uniforms[-1:] - 1)
    body -= body.mean(0, keepdims=True)
    return body / jnp.sqrt((body**2).sum(-1).max())


def source(*, size: int = 8192, points: int = 128, seed: int = 0) -> Source:
    """Clouds (size, points, 3) of all bodies in turn, with their numbers as labels.

    Args:
        size: Number of clouds, at least 1.
        points: Points of each.
        seed: Equal seeds give equal clouds, different seeds independent ones.

    Raises:
        ValueError: A number outside its range.
    """
    whole("[1, inf)", size=size, points=points)
    whole(SEED, seed=seed)
    check_memory(f"size={size} clouds of points={points}", 4 * 64 * size * points)
    labels = np.arange(size, dtype=np.int32) % len(NAMES)
    draw = jax.jit(jax.vmap(lambda key, label: sample(key, label, points)))
    clouds = draw(jax.random.split(jax.random.key(seed), size), jnp.asarray(labels))
    return Source(x=np.asarray(clouds), cond=labels, num_classes=len(NAMES), low=-1.0, high=1.0, names=NAMES)

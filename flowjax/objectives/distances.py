"""How far two states are from each other, in what losses add up."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

METRICS = ("pseudo_huber", "l2")


def pseudo_huber(error: Float[Array, "..."], c: Any) -> Float[Array, "..."]:
    """sqrt(error^2 + c^2) - c of each element: error^2 / (2 c) for small errors, |error| - c for large ones.

    Its slope is at most 1. c = 0 is |error|, with slope 0 at 0.

    References:
        Charbonnier et al. (1997), Deterministic edge-preserving regularization in computed imaging.
    """
    square = error**2
    root = jnp.sqrt(jnp.where(square + c**2 > 0, square + c**2, 1.0))
    # Not root - c, which loses all digits of small errors.
    return jnp.where(square > 0, square / (root + c), 0.0)


def distance(metric: str, error: Float[Array, "B ..."], c: Any) -> Float[Array, " B"]:
    """Mean over the elements of each example of the pseudo-Huber error, or of the square for "l2"."""
    each = error**2 if metric == "l2" else pseudo_huber(error, c)
    return jnp.mean(each, axis=tuple(range(1, error.ndim)))

"""How far two states are from each other, in what losses add up."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.paths.base import at_least_single

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


def perceptual(
    features: Callable[[Array], Sequence[Array]], x: Float[Array, "B ..."], y: Float[Array, "B ..."]
) -> Float[Array, " B"]:
    """Mean over layers and places of |u(x) - u(y)|^2, where u are features scaled to length 1 over their channels.

    LPIPS with equal weights of all channels: between 0 and 4.

    Args:
        features: Gives the features (B, ..., channels) of each layer.
        x: Images that features are made of.
        y: Others of this shape.

    References:
        Zhang et al. (2018), The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, equation 1,
        arXiv:1801.03924.
    """

    def units(images: Array) -> list[Array]:
        layers = [at_least_single(layer) for layer in features(images)]
        return [h * jax.lax.rsqrt(jnp.sum(h**2, axis=-1, keepdims=True) + 1e-10) for h in layers]

    each = [jnp.sum((a - b) ** 2, axis=-1) for a, b in zip(units(x), units(y), strict=True)]
    return jnp.mean(jnp.stack([jnp.mean(d, axis=tuple(range(1, d.ndim))) for d in each]), axis=0)

"""Frequency-decoupled guidance (Sadat et al., 2506.19713): a scale for each level of a Laplacian pyramid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strengths, differs, strength
from flowjax.paths.base import expand


@fact(
    "rule",
    "frequency_decoupled",
    "a scale for fine and one for coarse structure",
    cite="sadat2025frequency",
    example=lambda: {"scales": (3.0, 1.5)},
)
@pytree
class FrequencyDecoupled(Rule):
    """Guidance of images (B, ..., H, W, C) with a scale for each level of a Laplacian pyramid.

        v = u + sum of w_l D_l (c - u),   the sum of all D_l is the identity

    D_1 is what a blur and every second pixel lose, D_2 what they lose of the rest, ..., and the last what is left.
    Large scales for fine structure sharpen, small ones for coarse structure keep colours and variety. Linear, so the
    same in every prediction.

    Args:
        scales: two or more, as for `CFG`, that of the finest level first; (10, 5) in the paper for SDXL. Equal scales
            are plain guidance.

    Raises:
        ValueError: fewer scales; when evaluated, states that are no images.

    Reference: Sadat et al. (2506.19713), algorithm 1, without its projection.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.FrequencyDecoupled(scales=(10.0, 2.0))
        >>> c, u = jnp.ones((1, 4, 4, 1)), jnp.zeros((1, 4, 4, 1))
        >>> float(rule.combine(0.5, c, u, ())[0].max())  # a constant is coarse
        2.0
    """

    scales: Any = part("scale")

    def __post_init__(self) -> None:
        """Checks the scales."""
        check_strengths(self.scales, 2)

    def active(self, t: Any) -> Any:
        """Wherever a scale is not 1."""
        return jnp.any(jnp.stack([differs(scale, t) for scale in self.scales]))

    def combine(self, t: Any, c: Array, u: Array, state: Any) -> tuple[Array, Any]:
        """The sum over the levels."""
        if c.ndim < 4:
            raise ValueError(f"FrequencyDecoupled is for images (B, ..., H, W, C), got states {tuple(c.shape)}")
        rest, details = c - u, []
        for scale in self.scales[:-1]:
            coarse = _along(_reduce, rest)
            details.append((rest - _along(_widen, coarse, rest.shape), scale))
            rest = coarse
        value = expand(strength(self.scales[-1], t), rest) * rest
        for detail, scale in reversed(details):
            value = _along(_widen, value, detail.shape) + expand(strength(scale, t), detail) * detail
        return u + value, state


def _along(matrix: Any, x: Array, shape: tuple[int, ...] | None = None) -> Array:
    """A matrix for lines of a length applied along height and width."""
    shape = x.shape if shape is None else shape
    rows, columns = (jnp.asarray(matrix(size), x.dtype) for size in shape[-3:-1])
    high = jax.lax.Precision.HIGHEST
    x = jnp.einsum("ih,...hwc->...iwc", rows, x, precision=high)
    return jnp.einsum("jw,...iwc->...ijc", columns, x, precision=high)


def _reduce(size: int) -> np.ndarray:
    """Every second entry of a line, blurred by (1, 4, 6, 4, 1)/16 with its ends repeated: (ceil(size/2), size)."""
    matrix = np.zeros(((size + 1) // 2, size))
    for i in range(len(matrix)):
        for offset, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            matrix[i, np.clip(2 * i + offset, 0, size - 1)] += weight / 16
    return matrix


def _widen(size: int) -> np.ndarray:
    """A line of that length from its every second entry, linear between them: (size, ceil(size/2))."""
    half = (size + 1) // 2
    return np.stack([np.interp(np.arange(size) / 2, np.arange(half), row) for row in np.eye(half)], axis=1)

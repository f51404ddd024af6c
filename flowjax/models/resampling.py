"""Images of another size, by bicubic interpolation as the tools do it that published encoders are used with."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resampling(size: int, new: int, *, antialias: bool) -> Float[np.ndarray, "new size"]:
    """The matrix that makes `new` numbers of `size` numbers on a line by bicubic interpolation, in float64.

    Both lines cover the same interval, with numbers in the middle of equal cells. With `antialias` the kernel of Keys
    (a = -1/2) is widened by size / new where that is above one, and the weights of a number sum to one at the border
    too; without, the kernel (a = -3/4) has its own width, and beyond the border the last number goes on. These are the
    two ways of the tools that published encoders were trained and are used with.

    References:
        Keys (1981), Cubic Convolution Interpolation for Digital Image Processing, doi:10.1109/TASSP.1981.1163711.
    """
    a, wide = (-0.5, max(size / new, 1.0)) if antialias else (-0.75, 1.0)
    centre = (np.arange(new) + 0.5) * size / new - 0.5
    taps = np.arange(-3 * math.ceil(wide), size + 3 * math.ceil(wide))
    x = np.abs(taps[None] - centre[:, None]) / wide
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    inside = (taps >= 0) & (taps < size)
    if antialias:
        kept = weights[:, inside]
        return kept / kept.sum(1, keepdims=True)
    matrix = np.zeros((new, size))
    np.add.at(matrix.T, np.clip(taps, 0, size - 1), weights.T)
    return matrix


def resized(x: Float[Array, "B H W C"], size: Sequence[int], *, antialias: bool) -> Float[Array, "B h w C"]:
    """Images of another size by bicubic interpolation, see `resampling`."""
    rows, columns = (
        jnp.asarray(resampling(own, new, antialias=antialias), x.dtype)
        for own, new in zip(x.shape[1:3], size, strict=True)
    )
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("jw,bhwc->bhjc", columns, jnp.einsum("ih,bhwc->biwc", rows, x, precision=exact), precision=exact)

"""What measures a picture: a part of it, a smaller one, a blurred one. Any function of states (B, ...) does as well."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax._checks import COUNT, real, whole
from flowjax._pytree import pytree, static
from flowjax.facts import fact


@fact("operator", "masked", "the part of a picture where a mask is 1", example=lambda: {"mask": 1.0})
@pytree
class Masked:
    """Keeps what the mask keeps, and answers 0 elsewhere: inpainting.

    Args:
        mask: 1 where something is measured, 0 elsewhere; broadcasts to the states.

    Example:
        >>> import jax.numpy as jnp
        >>> Masked(mask=jnp.array([[1.0, 0.0]]))(jnp.array([[2.0, 3.0]])).tolist()
        [[2.0, 0.0]]
    """

    mask: Any

    def __post_init__(self) -> None:
        """Checks a concrete mask."""
        real("[0, 1]", mask=self.mask)

    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """Mask times x."""
        mask = jnp.asarray(self.mask, x.dtype)
        mask = jnp.broadcast_to(mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape), x.shape)
        return mask * jnp.where(mask == 0, 0, x)


@fact("operator", "pooled", "a picture with fewer pixels", example=lambda: {"factor": 1})
@pytree
class Pooled:
    """Means of squares of pixels: super-resolution.

    Args:
        factor: side of a square, which divides height and width.

    Raises:
        ValueError: a factor below 1; when called, states that are no pictures (B, ..., H, W, C) of such a size.

    Example:
        >>> import jax.numpy as jnp
        >>> Pooled(factor=2)(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
        [[[[1.5]]]]
    """

    factor: int = static()

    def __post_init__(self) -> None:
        """Checks the factor."""
        whole(COUNT, factor=self.factor)

    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The means, (B, ..., H / factor, W / factor, C)."""
        _check_picture(x)
        *rest, height, width, channels = x.shape
        if height % self.factor or width % self.factor:
            raise ValueError(f"factor={self.factor} does not divide pictures of {height} x {width}")
        cells = (height // self.factor, self.factor, width // self.factor, self.factor)
        return jnp.mean(x.reshape(*rest, *cells, channels), axis=(-4, -2))


@fact("operator", "blurred", "a picture out of focus", example=lambda: {"std": 0.5})
@pytree
class Blurred:
    """A Gaussian blur, normalised at the edges: deblurring.

    Args:
        std: of the Gaussian, in pixels, positive.

    Raises:
        ValueError: another std; when called, states that are no pictures (B, ..., H, W, C).

    Example:
        >>> import jax.numpy as jnp
        >>> dot = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(1.0)
        >>> round(float(Blurred(std=0.5)(dot)[0, 1, 1, 0]), 2)
        0.62
    """

    std: float = static()

    def __post_init__(self) -> None:
        """Checks the number."""
        real("(0, inf)", std=self.std)

    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The blurred pictures, like x."""
        _check_picture(x)
        rows, columns = (jnp.asarray(self._kernel(size), x.dtype) for size in x.shape[-3:-1])
        high = jax.lax.Precision.HIGHEST
        x = jnp.einsum("ih,...hwc->...iwc", rows, x, precision=high)
        return jnp.einsum("jw,...iwc->...ijc", columns, x, precision=high)

    def _kernel(self, size: int) -> np.ndarray:
        """The weights of all pixels of a line for each of them, (size, size)."""
        distance = np.arange(size)[:, None] - np.arange(size)[None]
        weights = np.exp(-(distance**2) / (2 * self.std**2)) * (np.abs(distance) <= math.ceil(4 * self.std))
        return weights / weights.sum(axis=1, keepdims=True)


def _check_picture(x: Array) -> None:
    if x.ndim < 4:
        raise ValueError(f"pictures have the shape (B, ..., H, W, C), got {tuple(x.shape)}")

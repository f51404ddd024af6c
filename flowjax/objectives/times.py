"""Distributions of training times t in (0, 1); t = 0 is noise, t = 1 data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._pytree import pytree


@pytree
class Uniform:
    """Uniform times on [start, end].

    Attributes:
        start: Earliest time, in [0, 1).
        end: Latest time, in (start, 1].
    """

    start: float = 0.0
    end: float = 1.0

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        # Affine map of [0, 1) rather than minval and maxval, so that the bounds may be traced.
        return self.start + (self.end - self.start) * jax.random.uniform(key, (), jnp.float32)


@pytree
class LogitNormal:
    """Times t = sigmoid(mean + std n), n ~ N(0, 1): mass in the middle of the path.

    A positive mean moves the mass towards the data. Papers that count time from data to noise have the other
    sign.

    Attributes:
        mean: Mean of logit(t).
        std: Standard deviation of logit(t), positive.

    References:
        Esser et al. (2024), Scaling Rectified Flow Transformers, section 3.1, arXiv:2403.03206.
    """

    mean: float = 0.0
    std: float = 1.0

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (), jnp.float32))

"""Gaussian data."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax._pytree import pytree
from flowjax.oracles.base import State, Target, Time, prepare
from flowjax.paths import GaussianPath
from flowjax.paths.base import divide, expand


@pytree
class Gaussian(Target):
    """The law N(mean, std^2), independent in each dimension; states have any shape (B, ...).

    The flow map is affine: x -> alpha(e) m + sqrt(V(e) / V(t)) (x - alpha(t) m).

    Attributes:
        mean: Scalar, or an array that broadcasts to one state.
        std: Standard deviation, non-negative (0: a single point); a scalar, or an array that broadcasts to
            one state.
        path: The path from noise to data.

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.paths import Linear
        >>> float(Gaussian(mean=2.0, std=0.5, path=Linear()).flow_map(jnp.array([0.25]), 0.0, 1.0)[0])
        2.125
    """

    mean: Any
    std: Any
    path: GaussianPath

    def _moments(self, t: Time, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        alpha, sigma = expand(self.path.alpha(t), x), expand(self.path.sigma(t), x)
        mean, variance = jnp.asarray(self.mean, x.dtype), jnp.asarray(self.std, x.dtype) ** 2
        mean, variance = (jnp.broadcast_to(a, x.shape[1:])[None] for a in (mean, variance))
        return alpha, mean, variance, alpha**2 * variance + sigma**2, x - alpha * mean

    def _posterior(self, t: Time, x: Array, cond: Array | None) -> tuple[Array, Array]:
        alpha, mean, variance, total, residual = self._moments(t, x)
        u = divide(residual, total)
        return mean + alpha * variance * u, u

    def log_density(self, t: Time, x: State, cond: Any = None) -> Float[Array, " B"]:
        """Log N(x; alpha m, V), summed over all dimensions but the first."""
        t, x = prepare(t, x)
        *_, total, residual = self._moments(t, x)
        logs = -(residual**2 / total + jnp.log(2 * math.pi * total)) / 2
        return jnp.sum(logs, axis=tuple(range(1, x.ndim)))

    def sample(self, key: Key[Array, ""], n: int, cond: Any = None) -> Float[Array, "n ..."]:
        """Draws n data points of the shape of `mean` and `std` broadcast together."""
        shape = np.broadcast_shapes(np.shape(self.mean), np.shape(self.std))
        noise = jax.random.normal(key, (n, *shape))
        return jnp.asarray(self.mean, noise.dtype) + jnp.asarray(self.std, noise.dtype) * noise

    def flow_map(self, x: State, t: Time, end: Time, cond: Any = None) -> Float[Array, "B ..."]:
        """Affine map of the state at time t to the state at time end; both scalar or (B,), in any order."""
        t, x = prepare(t, x)
        end, _ = prepare(end, x)
        _, mean, _, total, residual = self._moments(t, x)
        alpha_end, _, _, total_end, _ = self._moments(end, x)
        return alpha_end * mean + jnp.sqrt(divide(total_end, total)) * residual

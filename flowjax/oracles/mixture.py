"""Mixtures of Gaussians, with classes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flowjax._pytree import pytree
from flowjax.oracles.base import State, Target, Time, expand_components, prepare
from flowjax.paths import GaussianPath
from flowjax.paths.base import expand


@pytree
class Mixture(Target):
    """The law sum_k w_k N(m_k, diag(s_k^2)); component k is class k, class K is the whole mixture.

    Attributes:
        weights: (K,), positive; normalised on use.
        means: (K, *event), where a state is (B, *event); event () and (1,) are one-dimensional.
        stds: Standard deviations, positive: a scalar, (K,), or (K, *event).
        path: The path from noise to data.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> law = fj.oracles.Mixture(weights=[1.0, 1.0], means=[[-1.0], [1.0]], stds=0.1, path=fj.paths.Linear())
        >>> round(float(jax.jit(law.data)(0.5, jnp.array([[0.5]]))[0, 0]), 2)  # near the second mean
        0.76
    """

    weights: Any
    means: Any
    stds: Any
    path: GaussianPath

    def __post_init__(self) -> None:
        """Checks the shapes.

        Raises:
            ValueError: shapes do not fit together.
        """
        count, event = np.shape(self.weights), np.shape(self.means)
        if len(count) != 1 or event[:1] != count or np.shape(self.stds) not in ((), count, event):
            raise ValueError(
                "expected weights (K,), means (K, ...) and stds (), (K,) or like the means; got "
                f"{count}, {event} and {np.shape(self.stds)}"
            )

    @classmethod
    def default(cls, path: GaussianPath, dim: int = 1) -> "Mixture":
        """The shared test problem: three unequal components, of order 1, in `dim` = 1 or 2 dimensions.

        Raises:
            ValueError: another dimension.
        """
        means = {1: [[-1.4], [0.2], [1.3]], 2: [[-1.2, -0.7], [0.1, 1.1], [1.3, -0.4]]}
        if dim not in means:
            raise ValueError(f"dim={dim} must be 1 or 2")
        return cls(
            weights=np.array([0.3, 0.25, 0.45]),
            means=np.array(means[dim]),
            stds=np.array([0.35, 0.25, 0.3]),
            path=path,
        )

    @property
    def num_classes(self) -> int:
        """Number K of components, and the label of the whole mixture."""
        return np.shape(self.weights)[0]

    def _log_weights(self, x: Array, cond: Array | None) -> Float[Array, "B K"]:
        """Log prior weights of the components that each state's condition allows."""
        logs = jax.nn.log_softmax(jnp.log(jnp.asarray(self.weights, x.dtype)))[None]
        if cond is None:
            return jnp.broadcast_to(logs, (x.shape[0], self.num_classes))
        cond = jnp.asarray(cond)[:, None]
        allowed = (cond == jnp.arange(self.num_classes, dtype=cond.dtype)[None]) | (cond == self.num_classes)
        logs = jnp.where(allowed, logs, -jnp.inf)
        return logs - jax.nn.logsumexp(logs, axis=1, keepdims=True)

    def _components(self, t: Time, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Returns alpha () or (B, 1, ...), m and S (1, K, *event), V and x - alpha m (B, K, *event)."""
        if x.shape[1:] != np.shape(self.means)[1:]:
            raise ValueError(f"expected states (B, {np.shape(self.means)[1:]}), got {x.shape}")
        wide = x[:, None]
        alpha, sigma = expand(self.path.alpha(t), wide), expand(self.path.sigma(t), wide)
        means, stds = jnp.asarray(self.means, x.dtype), jnp.asarray(self.stds, x.dtype)
        stds = stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim))
        means, variances = means[None], jnp.broadcast_to(stds**2, means.shape)[None]
        return alpha, means, variances, alpha**2 * variances + sigma**2, wide - alpha * means

    def _joint(self, t: Time, x: Array, cond: Array | None) -> Float[Array, "B K"]:
        """Log w_k + log N(x; alpha m_k, V_k)."""
        _, _, _, totals, residuals = self._components(t, x)
        logs = -(residuals**2 / totals + jnp.log(2 * math.pi * totals)) / 2
        return self._log_weights(x, cond) + jnp.sum(logs, axis=tuple(range(2, logs.ndim)))

    def _posterior(self, t: Time, x: Array, cond: Array | None) -> tuple[Array, Array]:
        alpha, means, variances, totals, residuals = self._components(t, x)
        responsibilities = expand_components(jax.nn.softmax(self._joint(t, x, cond), axis=1), residuals)
        u = residuals / totals
        data = jnp.sum(responsibilities * (means + alpha * variances * u), axis=1)
        return data, jnp.sum(responsibilities * u, axis=1)

    def log_density(self, t: Time, x: State, cond: Any = None) -> Float[Array, " B"]:
        """Log p_t(x | cond)."""
        return jax.nn.logsumexp(self._joint(*prepare(t, x), cond), axis=1)

    def sample(self, key: Key[Array, ""], n: int, cond: Int[Array, " n"] | None = None) -> Float[Array, "n ..."]:
        """Draws n data points, of the given classes or, without them, of the whole mixture."""
        for_component, for_noise = jax.random.split(key)
        noise = jax.random.normal(for_noise, (n, *np.shape(self.means)[1:]))
        component = jax.random.categorical(for_component, self._log_weights(noise, cond), axis=1)
        _, means, variances, *_ = self._components(1.0, noise)
        return means[0, component] + jnp.sqrt(variances[0, component]) * noise

    def flow_map(self, x: State, t: Time, end: Time, cond: Any = None) -> Float[Array, "B ..."]:
        """The map that keeps the quantile, which in one dimension is the flow map; by bisection.

        The flow maps of the components alone bracket the solution. Probabilities are compared in logarithms,
        of the nearer tail, so that relative accuracy does not degrade far out.

        Raises:
            ValueError: states have more than one dimension (there the map has no closed form).
        """
        if math.prod(np.shape(self.means)[1:]) != 1:
            raise ValueError("the flow map of a mixture is known for one-dimensional targets only")
        t, x = prepare(t, x)
        end, _ = prepare(end, x)
        alpha_end, means, _, totals_end, _ = self._components(end, x)
        _, _, _, totals, residuals = self._components(t, x)
        scores = residuals / jnp.sqrt(totals)
        log_weights = expand_components(self._log_weights(x, cond), residuals)
        images = alpha_end * means + jnp.sqrt(totals_end) * scores

        def log_tail(scores: Array, sign: Array) -> Array:
            return jax.nn.logsumexp(log_weights + jax.scipy.special.log_ndtr(sign * scores), axis=1)

        ones = jnp.ones_like(x)
        sign = jnp.where(log_tail(scores, ones[:, None]) < log_tail(scores, -ones[:, None]), ones, -ones)
        level = log_tail(scores, sign[:, None])

        def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = (low + high) / 2
            at_middle = log_tail((middle[:, None] - alpha_end * means) / jnp.sqrt(totals_end), sign[:, None])
            below = sign * (at_middle - level) < 0
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, 64, halve, (jnp.min(images, axis=1), jnp.max(images, axis=1)))
        return (low + high) / 2

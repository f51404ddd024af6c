"""What targets in closed form share."""

import abc
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax._pytree import pytree, static
from flowjax.paths import PREDICTIONS, GaussianPath
from flowjax.paths.base import check_time_and_state, divide, expand

Time = Any  # a scalar or (B,)
State = Float[Array | np.ndarray, "B ..."]


def expand_components(weights: Float[Array, "B K"], like: Float[Array, "B K ..."]) -> Float[Array, "B K ..."]:
    """`weights` with the trailing unit axes that it needs to multiply `like`."""
    return weights.reshape(weights.shape + (1,) * (like.ndim - weights.ndim))


def prepare(t: Time, x: Any) -> tuple[Time, Array]:
    """The state as a JAX array, and the time in at least its precision."""
    x = jnp.asarray(x)
    return check_time_and_state(t, x), x


class Target(abc.ABC):
    """A closed-form target. `cond` selects a component; targets with one component ignore it.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())  # one of them
        >>> x = jnp.zeros((1, 2))  # at t = 0 it says nothing of the data
        >>> law.data(0.0, x).tolist(), law.noise(0.0, x).tolist(), law.velocity(0.0, x).tolist()
        ([[2.0, 2.0]], [[0.0, 0.0]], [[2.0, 2.0]])
    """

    path: GaussianPath

    @abc.abstractmethod
    def _posterior(self, t: Time, x: Array, cond: Array | None) -> tuple[Array, Array]:
        """The pair (data, u) of the module's formulas, each (B, ...)."""

    @abc.abstractmethod
    def log_density(self, t: Time, x: State, cond: Any = None) -> Float[Array, " B"]:
        """Log p_t(x), summed over all dimensions but the first."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], n: int, cond: Any = None) -> Float[Array, "n ..."]:
        """Draws n data points x1."""

    @abc.abstractmethod
    def flow_map(self, x: State, t: Time, end: Time, cond: Any = None) -> Float[Array, "B ..."]:
        """Solution at time `end` of dx/dt = velocity that passes through x at time t."""

    def predict(self, prediction: str, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """The exact prediction of any kind: "velocity", "noise", "data", "score" or "v"."""
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction!r} is unknown; use one of {', '.join(PREDICTIONS)}")
        t, x = prepare(t, x)
        data, u = self._posterior(t, x, cond)
        if prediction == "data":
            return data
        if prediction == "score":
            return -u
        sigma = expand(self.path.sigma(t), x)
        if prediction == "noise":
            return sigma * u
        if prediction == "v":
            return expand(self.path.alpha(t), x) * sigma * u - sigma * data
        return expand(self.path.dalpha(t), x) * data + expand(self.path.sigma_dsigma(t), x) * u

    def velocity(self, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """E[alpha' x1 + sigma' x0 | x_t = x]."""
        return self.predict("velocity", t, x, cond)

    def data(self, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """E[x1 | x_t = x]."""
        return self.predict("data", t, x, cond)

    def noise(self, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """E[x0 | x_t = x]."""
        return self.predict("noise", t, x, cond)

    def score(self, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """Gradient of log p_t at x."""
        return self.predict("score", t, x, cond)

    def mean_velocity(self, x: State, t: Time, end: Time, cond: Any = None) -> Float[Array, "B ..."]:
        """(flow_map(x, t, end) - x) / (end - t), and the velocity where end = t."""
        t, x = prepare(t, x)
        end, _ = prepare(end, x)
        span = expand(end, x) - expand(t, x)
        quotient = divide(self.flow_map(x, t, end, cond) - x, span)
        return jnp.where(span == 0, self.velocity(t, x, cond), quotient)

    def network(self, prediction: str = "velocity") -> "Network":
        """A perfectly trained network of this prediction, or of "mean_velocity", as a pytree."""
        return Network(target=self, prediction=prediction)


@pytree
class Network:
    """A closed-form target behind the call of a network.

    Attributes:
        target: The law of the data.
        prediction: "velocity", "noise", "data", "score", "v", or "mean_velocity", which takes `end`.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.Linear()
        >>> network = fj.oracles.Gaussian(mean=2.0, std=0.5, path=path).network("data")
        >>> network(jnp.zeros((1, 3)), jnp.zeros(1)).tolist()  # from noise alone: the mean of the data
        [[2.0, 2.0, 2.0]]
        >>> flow = fj.Flow(network, path=path, prediction="data")
    """

    target: Target
    prediction: str = static("velocity")

    def __call__(
        self, x: State, t: Float[Array, " B"], cond: Any = None, end: Time | None = None
    ) -> Float[Array, "B ..."]:
        """Evaluates the prediction at states x and times t; end=None means end = t."""
        if self.prediction == "mean_velocity":
            return self.target.mean_velocity(x, t, t if end is None else end, cond)
        return self.target.predict(self.prediction, t, x, cond)

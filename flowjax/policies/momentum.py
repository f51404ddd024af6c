"""A mixture of velocities that grow or decay exponentially in time, integrated in closed form.

References:
    Yang et al. (2026), ArcFlow: Unleashing 2-Step Text-to-Image Generation via High-Precision Non-Linear Flow
    Distillation, arXiv:2602.09014.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._checks import real
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.policies.base import Head, Policy, mixed, wide

SMALL = 0.02  # below, six terms of the series are exact to rounding in float64


def _phi(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """(exp(z) - 1) / z, which is 1 at z = 0, with its derivatives.

    Example:
        >>> [round(float(_phi(jnp.float32(z))), 4) for z in (-1.0, 0.0, 1.0)]
        [0.6321, 1.0, 1.7183]
    """
    small = jnp.abs(z) < SMALL
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6))))
    safe = jnp.where(small, 1.0, z)  # the branch that is not taken must have a gradient too
    return jnp.where(small, series, jnp.expm1(safe) / safe)


@pytree
class MomentumPolicy(Policy):
    """v(t) = sum_k w_k v_k exp(lambda_k (t - s)), whatever the state.

    Attributes:
        basic: Velocities v_k of the components at s, (B, ..., K, C).
        rates: Logarithms of their momenta lambda_k = log gamma_k, (B, ..., K); 0 is a constant velocity.

    Example:
        >>> zero, two = jnp.zeros((1,)), jnp.zeros((1, 2))
        >>> rates = jnp.array([[0.0, jnp.log(4.0)]])
        >>> policy = MomentumPolicy(start=zero, logits=two, basic=jnp.ones((1, 2, 1)), rates=rates)
        >>> x = jnp.zeros((1, 1))
        >>> [round(float(v[0, 0]), 3) for v in (policy.velocity(zero + 1, x), policy.rollout(x, zero, zero + 1))]
        [2.5, 1.582]
    """

    basic: Float[Array, "B ... K C"]
    rates: Float[Array, "B ... K"]

    def velocity(self, t: Float[Array, " B"], x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The curve at t; x gives no more than its shape."""
        return self.average_velocity(x, t, t)

    def average_velocity(
        self, x: Float[Array, "B ..."], t: Float[Array, " B"], end: Float[Array, " B"]
    ) -> Float[Array, "B ..."]:
        """sum_k w_k v_k exp(lambda_k (t - s)) phi(lambda_k (end - t))."""
        passed, ahead = wide(t - self.start, self.rates), wide(end - t, self.rates)
        factor = jnp.exp(self.rates * passed) * _phi(self.rates * ahead)
        return mixed(self.logits, self.basic * factor[..., None])


@fact("policy", "momentum", "velocities that grow or decay in time, integrated in closed form", cite="yang2026arcflow")
@pytree
class Momentum(Head):
    """The head of `MomentumPolicy`: K velocities of C channels, then K logits and K - 1 rates for each pixel.

    The first component is constant (lambda_0 = 0), so that one component is a straight line. At the start the momenta
    of the others are spread evenly in their logarithm from 0.2 to 4.

    Attributes:
        rate_scale: The rates are so many times their channel. With Adam this makes their learning rate that part of the
            others', 0.1 as published; positive.

    Example:
        >>> import flowjax as fj
        >>> head = fj.policies.Momentum(components=2)
        >>> policy = head.policy(jnp.ones((3, head.channels(1))), jnp.zeros(3), jnp.zeros((3, 1)))
        >>> [round(float(rate), 3) for rate in policy.rates[0]]
        [0.0, 0.1]
    """

    rate_scale: float = static(0.1)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("(0, inf)", rate_scale=self.rate_scale)

    def channels(self, channels: int) -> int:
        """K C + K + K - 1."""
        return self.components * channels + 2 * self.components - 1

    def policy(
        self, answer: Float[Array, "B ... out"], t: Float[Array, " B"], x: Float[Array, "B ... C"]
    ) -> MomentumPolicy:
        """The policy of an answer at (t, x)."""
        basic, logits, rates = self._split(answer, x, self.components, self.components - 1)
        rates = jnp.concatenate([jnp.zeros_like(logits[..., :1]), self.rate_scale * rates], axis=-1)
        return MomentumPolicy(start=t, logits=logits, basic=basic, rates=rates)

    def extras(self, channels: int) -> Float[Array, " extra"]:
        """Equal weights, and rates from log 0.2 to log 4."""
        rates = jnp.linspace(math.log(0.2), math.log(4.0), self.components - 1)
        return jnp.concatenate([jnp.zeros(self.components), rates / self.rate_scale])

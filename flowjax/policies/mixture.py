"""A Gaussian mixture of the data behind a state, which gives velocities at all states near its trajectory.

References:
    Chen et al. (2025), Gaussian Mixture Flow Matching Models, arXiv:2504.05304.
    Chen et al. (2025), pi-Flow, section 4, arXiv:2510.14974.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._checks import COUNT, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths import GaussianPath, Linear
from flowjax.paths.base import expand
from flowjax.policies.base import Head, Policy, mixed, wide

LATEST = 1 - 1e-4  # velocities are asked no later: they are data and state apart over what is left of the path


@pytree
class MixturePolicy(Policy):
    """The velocity of a mixture q(x1 | x_s) = sum_k w_k N(m_k, d^2), given that a state x at t lies on the same path.

    With a, b = alpha, sigma at t and at s (index s), and r = (b / b_s)^2,

        c = a^2 - a_s^2 r,   n = a x - a_s x_s r,   u = 1 / (b^2 + d^2 c),
        E[x1 | x, x_s] = sum_k softmax(log w_k + u sum over channels of (m_k n - c m_k^2 / 2)) (b^2 m_k + d^2 n) u,

    which is the mixture's mean at (s, x_s) itself. `rollout` takes `steps` Euler steps.

    Attributes:
        origin: The state x_s at which the network was asked, (B, ..., C).
        means: m_k, (B, ..., K, C).
        spread: d, (B,).
        path: The path, of a teacher for example.
        steps: Steps of a rollout.

    Example:
        >>> import flowjax as fj
        >>> one = jnp.full((1,), 0.5)
        >>> policy = fj.policies.MixturePolicy(
        ...     start=one, logits=jnp.zeros((1, 2)), origin=jnp.zeros((1, 1)), means=jnp.array([[[-1.0], [1.0]]]),
        ...     spread=one / 100, path=fj.paths.Linear(), steps=64,
        ... )
        >>> float(policy.velocity(one, jnp.zeros((1, 1)))[0, 0])  # between both
        0.0
        >>> round(float(policy.rollout(jnp.full((1, 1), 0.02), one, one * 2)[0, 0]), 2)  # to the nearer one
        0.99
    """

    origin: Float[Array, "B ... C"]
    means: Float[Array, "B ... K C"]
    spread: Float[Array, " B"]
    path: GaussianPath
    steps: int = static()

    def data(self, t: Float[Array, " B"], x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The posterior mean of the data."""
        a, b, first, noise = (
            wide(coefficient(time), x) for time in (t, self.start) for coefficient in (self.path.alpha, self.path.sigma)
        )
        ratio, variance = (b / noise) ** 2, wide(self.spread, x) ** 2
        precision, pull = a**2 - first**2 * ratio, a * x - first * self.origin * ratio
        unit = 1 / (b**2 + variance * precision)
        scores = jnp.sum(self.means * (pull[..., None, :] - precision[..., None] / 2 * self.means), axis=-1)
        return mixed(self.logits + unit * scores, self.means) * b**2 * unit + variance * pull * unit

    def velocity(self, t: Float[Array, " B"], x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The velocity that belongs to the posterior mean."""
        t = jnp.minimum(t, LATEST)
        return self.path.convert(self.data(t, x), given="data", to="velocity", t=t, x=x)

    def average_velocity(
        self, x: Float[Array, "B ..."], t: Float[Array, " B"], end: Float[Array, " B"]
    ) -> Float[Array, "B ..."]:
        """The mean over the steps from t to `end`."""
        step = (end - t) / self.steps

        @jax.checkpoint
        def one(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
            x, total = carry
            velocity = self.velocity(t + number * step, x)
            return (x + expand(step, x) * velocity, total + velocity), None

        numbers = jnp.arange(self.steps, dtype=step.dtype)
        return jax.lax.scan(one, (x, jnp.zeros_like(x)), numbers)[0][1] / self.steps


@fact("policy", "mixture", "a Gaussian mixture of the data, followed in small steps", cite="chen2025piflow")
@pytree
class Mixture(Head):
    """The head of `MixturePolicy`: K velocities of C channels, K logits for each pixel, and the spread of a sample.

    Each velocity says where the data of its component lie, m = x + (1 - t) v on the linear path. All components of a
    sample have the same standard deviation d = exp(l) sigma(t), with l the mean of the last channel over the pixels.

    Attributes:
        path: The path.
        steps: Euler steps of a rollout, at least 1.
        logstd: l, where it is not learned; None is a channel of the network's answer.

    Example:
        >>> import flowjax as fj
        >>> head = fj.policies.Mixture(components=2)
        >>> policy = head.policy(jnp.ones((3, head.channels(1))), jnp.full((3,), 0.5), jnp.zeros((3, 1)))
        >>> policy.means.shape, policy.spread.shape
        ((3, 2, 1), (3,))
    """

    path: GaussianPath = part("path", Linear())
    steps: int = static(64)
    logstd: float | None = static(None)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        whole(COUNT, steps=self.steps)
        if self.logstd is not None:
            real("(-inf, inf)", logstd=self.logstd)

    def channels(self, channels: int) -> int:
        """K C + K, and 1 where the spread is learned."""
        return self.components * (channels + 1) + (self.logstd is None)

    def policy(
        self, answer: Float[Array, "B ... out"], t: Float[Array, " B"], x: Float[Array, "B ... C"]
    ) -> MixturePolicy:
        """The policy of an answer at (t, x)."""
        t = jnp.minimum(t, LATEST)
        velocities, logits, more = self._split(answer, x, self.components, int(self.logstd is None))
        state = jnp.broadcast_to(x[..., None, :], velocities.shape)
        means = self.path.convert(velocities, given="velocity", to="data", t=t, x=state)
        if self.logstd is None:
            level = jnp.mean(more, axis=tuple(range(1, more.ndim)))
        else:
            level = jnp.full(t.shape, self.logstd, x.dtype)
        spread = jnp.exp(level) * self.path.sigma(t)
        return MixturePolicy(
            start=t, logits=logits, origin=x, means=means, spread=spread, path=self.path, steps=self.steps
        )

    def extras(self, channels: int) -> Float[Array, " extra"]:
        """Equal weights, and a spread of sigma(t)."""
        return jnp.zeros(self.components + (self.logstd is None))

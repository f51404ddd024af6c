"""Policies: one evaluation of a network gives the velocities of all times behind it.

A network asked at (x_s, s) answers with numbers, a `Head` makes a `Policy` of them, and the policy leads states from
any time a >= s to any b >= a without the network.

References:
    Chen et al. (2025), pi-Flow: Policy-Based Few-Step Generation via Imitation Distillation, arXiv:2510.14974.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import COUNT, whole
from flowjax._pytree import pytree, static
from flowjax.paths.base import expand


@pytree
class Policy(abc.ABC):
    """Velocities of the times from `start` on, for a batch; a mixture of K components in every pixel.

    Attributes:
        start: Times s at which the network was asked, (B,).
        logits: Of the components' weights, (B, ..., K).

    Example:
        >>> import flowjax as fj
        >>> [issubclass(kind, fj.policies.Policy) for kind in (fj.policies.MomentumPolicy, fj.policies.MixturePolicy)]
        [True, True]
    """

    start: Float[Array, " B"]
    logits: Float[Array, "B ... K"]

    @abc.abstractmethod
    def velocity(self, t: Float[Array, " B"], x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The velocity at (t, x), with t at least `start`."""

    @abc.abstractmethod
    def average_velocity(
        self, x: Float[Array, "B ..."], t: Float[Array, " B"], end: Float[Array, " B"]
    ) -> Float[Array, "B ..."]:
        """The mean velocity from t to `end` of the state that is x at t; where both are equal, the velocity."""

    def rollout(
        self, x: Float[Array, "B ..."], t: Float[Array, " B"], end: Float[Array, " B"]
    ) -> Float[Array, "B ..."]:
        """The state at `end` of what is x at t."""
        return x + expand(end - t, x) * self.average_velocity(x, t, end)

    def dropout(self, keys: Key[Array, " B"], rate: float) -> "Policy":
        """The policy without some of its components, each left out with probability `rate`, but never all of a sample.

        Args:
            keys: One key per sample.
            rate: In [0, 1).
        """
        count = self.logits.shape[-1]
        out = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys) < rate
        out &= ~out.all(axis=1, keepdims=True)
        out = out.reshape(out.shape[:1] + (1,) * (self.logits.ndim - 2) + (count,))
        return dataclasses.replace(self, logits=jnp.where(out, -jnp.inf, self.logits))


@pytree
class Head(abc.ABC):
    """How the numbers that a network answers with become a policy: an entry of the catalogue.

    Attributes:
        components: K, at least 1.

    Example:
        >>> import flowjax as fj
        >>> fj.policies.Momentum(components=16).channels(3)  # 16 velocities, 16 weights, 15 momenta
        79
    """

    components: int = static(16)

    def __post_init__(self) -> None:
        """Checks the options."""
        whole(COUNT, components=self.components)

    @abc.abstractmethod
    def channels(self, channels: int) -> int:
        """Channels of the network's answer for states with `channels` channels, the last axis."""

    @abc.abstractmethod
    def policy(self, answer: Float[Array, "B ... out"], t: Float[Array, " B"], x: Float[Array, "B ... C"]) -> Policy:
        """The policy of an answer at (t, x).

        Raises:
            ValueError: An answer of another shape.
        """

    @abc.abstractmethod
    def extras(self, channels: int) -> Float[Array, " extra"]:
        """Biases at the start of all channels behind the K velocities of a new answer."""

    def grown(self, leaf: Float[Array, "*axes width"], channels: int, key: Key[Array, ""]) -> Float[Array, "*axes out"]:
        """A kernel or bias of a velocity network's last layer, as that of a network for this head.

        Each component starts as the velocity of that network, moved by 0.05 N(0, 1) in each channel so that components
        differ; all weigh the same. Its channels are the fastest of the last axis, behind the pixels of a patch.

        Args:
            leaf: The kernel (.., pixels * channels) or the bias (pixels * channels,).
            channels: Channels of the state.
            key: Of the noise.
        """
        parts = leaf.reshape(*leaf.shape[:-1], -1, channels)
        means = jnp.tile(parts, self.components)
        extras = self.extras(channels).astype(leaf.dtype)
        if leaf.ndim == 1:
            means += 0.05 * jax.random.normal(key, (1, self.components * channels), leaf.dtype)
        else:
            extras = jnp.zeros_like(extras)
        behind = jnp.broadcast_to(extras, (*parts.shape[:-1], extras.size))
        return jnp.concatenate([means, behind], axis=-1).reshape(*leaf.shape[:-1], -1)

    def _split(self, answer: Array, x: Array, *sizes: int) -> tuple[Array, ...]:
        """The K velocities (B, ..., K, C), and what follows them in pieces of these sizes."""
        channels = x.shape[-1]
        expected = (*x.shape[:-1], self.channels(channels))
        if answer.shape != expected:
            raise ValueError(
                f"a {type(self).__name__.lower()} policy of {self.components} components needs an answer of shape "
                f"{expected} for states of shape {x.shape}; the network gives {answer.shape}"
            )
        answer = answer.astype(x.dtype)
        count = self.components * channels
        means = answer[..., :count].reshape(*x.shape[:-1], self.components, channels)
        pieces, begin = [], count
        for size in sizes:
            pieces.append(answer[..., begin : begin + size])
            begin += size
        return means, *pieces


def mixed(logits: Float[Array, "B ... K"], values: Float[Array, "B ... K C"]) -> Float[Array, "B ... C"]:
    """The mean of the components' values."""
    return jnp.einsum("...k,...kc->...c", jax.nn.softmax(logits, axis=-1), values)


def wide(t: Any, like: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Times (B,) with as many axes as `like`, in its precision."""
    return expand(jnp.asarray(t, like.dtype), like)

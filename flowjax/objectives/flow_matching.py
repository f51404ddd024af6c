"""Flow matching: regress the network on what it should predict when noise and data are known."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from flowjax._pytree import part, pytree, static
from flowjax._trees import with_parts
from flowjax.facts import fact
from flowjax.keys import entries_noise
from flowjax.objectives.base import seed, with_keys
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import PREDICTIONS, GaussianPath
from flowjax.paths.base import check_time_and_state

LATEST = 1 - 1e-3  # latest time for targets without a bound at t = 1


@pytree
class Draws:
    """Everything random of one training step, for the global batch.

    Attributes:
        x0: Noise, (B, ...).
        x1: Data, (B, ...).
        t: Times, (B,).
        cond: Condition with a leading axis B after label dropout, or None.
        seeds: Seeds of the network's dropout, (B, 2); None is without dropout.
        guidance: Scales of guidance, (B,), where the objective has a range of them.
        mask: Of padded sets, which entries (B, N) of the first axis of an example are there; of others None.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.FlowMatching(path=fj.paths.Linear())
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))})
        >>> draws.x0.shape, draws.t.shape
        ((4, 2), (4,))
    """

    x0: Float[Array, "B ..."]
    x1: Float[Array, "B ..."]
    t: Float[Array, " B"]
    cond: Any = None
    seeds: UInt32[Array, "B 2"] | None = None
    guidance: Float[Array, " B"] | None = None
    mask: Bool[Array, "B N"] | None = None


def average(values: Float[Array, "B ..."], mask: Bool[Array, "B N"] | None = None) -> Float[Array, " B"]:
    """Mean over the numbers of each example; with a mask over those of the entries of a set that are there.

    An empty set has the mean 0.
    """
    if mask is None:
        return jnp.mean(values, axis=tuple(range(1, values.ndim)))
    sums = jnp.sum(values, axis=tuple(range(2, values.ndim)))
    size = values[0, 0].size * jnp.maximum(jnp.sum(mask, axis=1), 1)
    return jnp.sum(jnp.where(mask, sums, 0), axis=1) / size.astype(sums.dtype)


def make_draws(key: Key[Array, ""], batch: Mapping[str, Any], times: Any, label_dropout: Any, null: Any) -> Draws:
    """Noise, times and dropped conditions; example i depends on (key, i) only, entry n of a set on (key, i, n).

    Args:
        key: Key of the training step.
        batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B, and "mask" (B, N), which
            entries of padded sets are there.
        times: Law of the times.
        label_dropout: Probability that a condition is replaced by `null`.
        null: The null condition, see `FlowMatching`.
    """
    x1, cond, mask = batch["x1"], batch.get("cond"), batch.get("mask")
    mask = None if mask is None else jnp.asarray(mask, bool)

    def one(index: Array) -> tuple[Array, Array, Array, Array]:
        for_noise, for_time, for_label, for_network = jax.random.split(jax.random.fold_in(key, index), 4)
        x0 = entries_noise(for_noise, x1.shape[1:], x1.dtype, entries=mask is not None)
        return x0, times.sample(for_time), jax.random.uniform(for_label, (), jnp.float32), seed(for_network)

    x0, t, chance, seeds = jax.vmap(one)(jnp.arange(x1.shape[0]))
    cond = with_null(cond, null, chance < label_dropout)
    return Draws(x0=x0, x1=x1, t=t, cond=cond, seeds=seeds, mask=mask)


def off_ends(draws: Any, start: bool, end: bool) -> Any:
    """The draws with times at least 0.001 from an end of the path, where False says that the loss is not defined."""
    low, high = 0.0 if start else 1 - LATEST, 1.0 if end else LATEST
    return dataclasses.replace(draws, t=jnp.clip(draws.t, low, high))


def with_null(cond: Any, null: Any, dropped: Bool[Array, " B"]) -> Any:
    """Conditions, a pytree with leading axis B, with the null condition where they are dropped; None stays None.

    A part of the null condition that is None is never dropped.
    """

    def one(null: Any, c: Array) -> Array:
        none = jnp.broadcast_to(jnp.asarray(null, c.dtype), c.shape)
        return jnp.where(dropped.reshape(dropped.shape + (1,) * (c.ndim - 1)), none, c)

    return cond if cond is None else with_parts(one, null, cond)


def check_answer(value: Array, target: Array) -> None:
    """Refuses an answer of a network that would be broadcast against its target.

    Raises:
        ValueError: The shapes differ.
    """
    if value.shape != target.shape:
        raise ValueError(f"the network answers with shape {value.shape}, but its targets have {target.shape}")


@fact(
    "objective",
    "flow_matching",
    "regression on the conditional prediction of any path",
    cite="lipman2022flow",
    tasks=("generation", "adapters"),
)
@pytree
class FlowMatching:
    """The flow-matching objective on a Gaussian path.

    With x_t = alpha(t) x1 + sigma(t) x0, x0 ~ N(0, I), the loss of one example is

        w(t) mean |network(x_t, t, cond) - target|^2,   target = alpha' x1 + sigma' x0 for the velocity, x0 for
        the noise, ...

    and its minimiser, for every positive weight w, is the conditional mean of the target given x_t and cond: the
    marginal velocity E[alpha' x1 + sigma' x0 | x_t], or whichever prediction was asked for.

    The target of the score, -x0 / sigma, has no bound where sigma = 0, nor has the velocity of a path with
    infinite sigma'(1) (VP, cosine). For these `draw` moves later times back to t = 0.999, unless the law of
    the times itself ends before 1, `Uniform(end=1 - 1e-5)` for example; all other targets use the whole of
    [0, 1]. A score is best given `weight=lambda t: path.sigma(t) ** 2`.

    Attributes:
        path: The path from noise to data.
        prediction: What the network outputs: "velocity", "noise", "data", "score" or "v".
        times: Distribution of training times: an object whose `sample(key)` draws one time (`TimeLaw`).
        weight: Function of t (B,) that returns the weights w(t) (B,); None is 1.
        label_dropout: Probability in [0, 1] that an example's condition is replaced by `null`.
        null: The null condition: a pytree like one example's condition (num_classes for class labels), or of scalars.

    References:
        Lipman et al. (2022), Flow Matching for Generative Modeling, equation 9, arXiv:2210.02747.
        Albergo, Boffi and Vanden-Eijnden (2023), Stochastic Interpolants, section 3, arXiv:2303.08797.
        Ho and Salimans (2022), Classifier-Free Diffusion Guidance, algorithm 1 (label dropout), arXiv:2207.12598.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flowjax.paths import Linear
        >>> objective = FlowMatching(path=Linear())
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))})
        >>> per_example, metrics = objective.loss(lambda x, t, cond: jnp.zeros_like(x), draws)
        >>> per_example.shape
        (4,)
    """

    path: GaussianPath = part("path")
    prediction: str = static("velocity")
    times: TimeLaw = part("time_law", Uniform())
    weight: Callable[[Float[Array, " B"]], Float[Array, " B"]] | None = part("weight", None)
    label_dropout: float = 0.0
    null: Any = None

    masked = True

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: unknown prediction, times that are no law, dropout outside [0, 1] or without a null condition.
        """
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction={self.prediction!r} is unknown; use one of {', '.join(PREDICTIONS)}")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout={self.label_dropout} must be in [0, 1]")
        object.__setattr__(self, "times", check_law(self.times))
        if self.label_dropout and self.null is None:
            raise ValueError("label_dropout needs null=, the condition that stands for none (num_classes for labels)")

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> Draws:
        """Draws noise, times and dropped conditions; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        draws = make_draws(key, batch, self.times, self.label_dropout, self.null)
        if self._bounded:
            return draws
        # In the precision of t: an end that rounds to 1 is one.
        end = jnp.asarray(getattr(self.times, "end", 1.0), draws.t.dtype)
        return dataclasses.replace(draws, t=jnp.where(end < 1, draws.t, jnp.minimum(draws.t, LATEST)))

    def loss(self, networks: Callable[..., Array], draws: Draws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Weighted squared error per example, averaged over its numbers, of padded sets over those that are there.

        Args:
            networks: The network, called as `networks(x, t, cond)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"mse": the same without the weight, (B,)}.

        Raises:
            ValueError: The network's answer has another shape than the data.
        """
        t = check_time_and_state(draws.t, draws.x1)
        x = self.path.interpolate(t, draws.x0, draws.x1)
        target = self.path.target(self.prediction, t, draws.x0, draws.x1)
        value = with_keys(networks, draws.seeds)(x, t, draws.cond)
        check_answer(value, target)
        mse = average((value - target) ** 2, draws.mask)
        return mse if self.weight is None else self.weight(t) * mse, {"mse": mse}

    @property
    def _bounded(self) -> bool:
        """Whether the target stays bounded up to t = 1."""
        if self.prediction == "score":
            return bool(self.path.sigma(1.0) > 0)
        return self.prediction != "velocity" or self.path.has_velocity(1.0)

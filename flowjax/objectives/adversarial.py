"""What autoencoders learn against a discriminator: both losses, the weight between them, and who moves when."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from flowjax._checks import choose, real, whole
from flowjax._pytree import pytree, static
from flowjax.objectives.base import seed
from flowjax.objectives.flow_matching import check_answer
from flowjax.paths.base import at_least_single

LARGEST = 1e4  # of lambda, where the last layer no longer hears the adversary


@pytree
class AutoencodingDraws:
    """Everything random of one training step.

    Attributes:
        x1: Images, (B, ...).
        seeds: Seeds of the noise on latents, (B, 2).
        adversarial: Whether the adversary takes part.
        judging: Whether the discriminator learns; None means that it does where the adversary takes part.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.Autoencoding(start=100)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 8, 8, 1))}, step=99)
        >>> draws.seeds.shape, bool(draws.adversarial)
        ((4, 2), False)
    """

    x1: Float[Array, "B ..."]
    seeds: UInt32[Array, "B 2"]
    adversarial: Bool[Array, ""]
    judging: Bool[Array, ""] | None = None


@pytree
class Adversarial(abc.ABC):
    """Base of objectives of an autoencoder and the discriminator that it plays against.

    With y = decode(z) one example costs the autoencoder rec(x1, y) + w_adv lambda g and whatever else its latents z do,

        g = -mean over patches of D(y),   lambda = |d rec / d last| / (|d g / d last| + `guard`), at most 1e4,

    where `last` is the kernel of the decoder's last layer: there the adversary pulls as hard as the reconstruction,
    whatever the scale of its logits. The discriminator minimises

        hinge      (max(0, 1 - D(x1)) + max(0, 1 + D(y))) / 2
        vanilla    (softplus(-D(x1)) + softplus(D(y))) / 2

    over patches. The gradients of rec and g with respect to y are computed once: lambda is made of them, and the
    decoder descends on them.

    Attributes:
        adversary: The discriminator's loss, "hinge" or "vanilla"; None for no discriminator.
        adversarial_weight: w_adv, not negative.
        start: First step with the adversary, counted from 0.
        discriminator_start: First step at which the discriminator learns, at most `start`; None is `start`.
        last: Attributes that lead from the autoencoder to the kernel of the decoder's last layer.
        guard: Keeps lambda finite where the discriminator is silent.

    Example:
        >>> from flowjax.objectives import Autoencoding
        >>> objective = Autoencoding(start=7, discriminator_start=5)
        >>> [bool(objective.updates(step)["discriminator"]) for step in (4, 5)]
        [False, True]
    """

    adversary: str | None = static("hinge")
    adversarial_weight: float = 0.5
    start: int = 0
    discriminator_start: int | None = None
    last: str = static("decoder.unembed.kernel")

    guard = 1e-4

    def __post_init__(self) -> None:
        """Checks the options."""
        if self.adversary is not None:
            choose("adversary", self.adversary, ("hinge", "vanilla"))
        real("[0, inf)", adversarial_weight=self.adversarial_weight)
        whole("[0, 2147483647]", start=self.start)
        if self.discriminator_start is not None:
            whole("[0, 2147483647]", discriminator_start=self.discriminator_start)
            if self.discriminator_start > self.start:
                raise ValueError(
                    f"discriminator_start={self.discriminator_start} is behind start={self.start}: the adversary must "
                    "learn before it takes part, or with its first step"
                )

    def updates(self, step: Int[Array, ""] | int) -> dict[str, Any]:
        """The discriminator moves from `discriminator_start` on, the autoencoder always."""
        if self.adversary is None:
            return {}
        first = self.start if self.discriminator_start is None else self.discriminator_start
        return {"discriminator": jnp.asarray(step) >= first}

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> AutoencodingDraws:
        """Draws the seeds of the noise; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", images (B, ...).
            memory: Unused; part of the objective protocol.
            step: Number of the step: it decides who takes part.
        """
        seeds = jax.vmap(lambda index: seed(jax.random.fold_in(key, index)))(jnp.arange(batch["x1"].shape[0]))
        adversarial, judging = jnp.asarray(step) >= self.start, None
        if self.adversary is not None and self.discriminator_start is not None:
            judging = jnp.asarray(step) >= self.discriminator_start
        return AutoencodingDraws(x1=batch["x1"], seeds=seeds, adversarial=adversarial, judging=judging)

    @abc.abstractmethod
    def latents(self, autoencoder: Any, draws: AutoencodingDraws) -> tuple[Array, Array | None, dict[str, Array]]:
        """Latents to decode, what they cost each example beside the reconstruction, and metrics."""

    @abc.abstractmethod
    def distance(self, autoencoder: Any, x: Array, y: Array) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """What the reconstruction y of x costs each example by itself, and metrics."""

    def loss(self, networks: Any, draws: AutoencodingDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Both networks' losses of each example, summed.

        Args:
            networks: See the class.
            draws: From `draw`.

        Returns:
            (B,), and {"reconstruction": rec (B,)} with other metrics; with an adversary also "generator": g (B,),
            "discriminator": the discriminator's loss (B,), and "lambda", all zero where they take no part.

        Raises:
            ValueError: A network is missing, or the answer has another shape than the images.
        """
        autoencoder, discriminator = self._players(networks)
        z, cost, metrics = self.latents(autoencoder, draws)
        last = None if discriminator is None else self.last
        y, pull = _decode(autoencoder, last, z)
        x = draws.x1.astype(y.dtype)
        check_answer(y, x)

        fixed = jax.lax.stop_gradient(y)
        nll, by_data, more = jax.vjp(lambda y: self.distance(autoencoder, x, y), fixed, has_aux=True)
        by_data = by_data(jnp.ones_like(nll))[0]
        metrics |= {"reconstruction": nll, **more}
        own = _descending(y, nll, by_data) if cost is None else _descending(y, nll, by_data) + cost
        if discriminator is None:
            return own, metrics

        def judge() -> Array:
            # The discriminator's loss must not move the autoencoder, which would please it.
            return self._judgement(discriminator(x), discriminator(fixed)).astype(nll.dtype)

        def play() -> tuple[Array, ...]:
            # The generator's term must not move the discriminator, which would learn to praise.
            fair = jax.lax.stop_gradient(discriminator)
            generator, back = jax.vjp(lambda y: -_mean(fair(y)).astype(nll.dtype), fixed)
            by_judge = back(jnp.ones_like(generator))[0]
            return generator, by_judge, judge(), self.balance(pull, by_data, by_judge).astype(nll.dtype)

        def wait() -> tuple[Array, ...]:
            return jnp.zeros_like(nll), jnp.zeros_like(y), jnp.zeros_like(nll), jnp.zeros((), nll.dtype)

        if draws.judging is None:
            generator, by_judge, judgement, balance = jax.lax.cond(draws.adversarial, play, wait)
        else:
            ways = (wait, lambda: (*wait()[:2], judge(), wait()[3]), play)
            who = draws.judging.astype(jnp.int32) + draws.adversarial.astype(jnp.int32)
            generator, by_judge, judgement, balance = jax.lax.switch(who, ways)
        metrics |= {"generator": generator, "discriminator": judgement, "lambda": balance}
        return own + self.adversarial_weight * balance * _descending(y, generator, by_judge) + judgement, metrics

    def balance(self, pull: Callable[[Array], Array], by_data: Array, by_judge: Array) -> Float[Array, ""]:
        """Lambda: a number of the batch; with accumulation, of each part.

        Args:
            pull: Of a gradient with respect to the decoded images, the gradient with respect to the last kernel.
            by_data: Gradient of each example's reconstruction with respect to its decoded image.
            by_judge: That of g.
        """
        count = by_data.shape[0]
        by_data, by_judge = (_length(pull(gradient)) / count for gradient in (by_data, by_judge))
        # A weight, not a term: nothing descends on it, nor on what it is made of.
        return jax.lax.stop_gradient(jnp.clip(by_data / (by_judge + self.guard), 0.0, LARGEST))

    def _players(self, networks: Any) -> tuple[Any, Any]:
        labels = ("autoencoder",) if self.adversary is None else ("autoencoder", "discriminator")
        if self.adversary is None and not isinstance(networks, Mapping):
            return networks, None
        found = tuple(networks) if isinstance(networks, Mapping) else ("network",)
        if set(found) != set(labels):
            raise ValueError(
                f"autoencoding with adversary={self.adversary!r} trains {' and '.join(labels)}, got {', '.join(found)}"
            )
        return networks["autoencoder"], networks.get("discriminator")

    def _judgement(self, real: Array, fake: Array) -> Float[Array, " B"]:
        margin = jax.nn.softplus if self.adversary == "vanilla" else lambda logits: jax.nn.relu(1 + logits)
        return (_mean(margin(-real)) + _mean(margin(fake))) / 2


def total(values: Array) -> Float[Array, " B"]:
    """The sum of each example's entries."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _descending(y: Array, value: Float[Array, " B"], gradient: Array) -> Float[Array, " B"]:
    """`value`, of which the derivative with respect to y (B, ...) is `gradient`."""
    # Both are known already; what made them must not be differentiated again.
    value, gradient = jax.lax.stop_gradient((value, gradient))
    # y is stopped in one place of two, so that the difference is zero and its derivative one.
    return value + total(gradient * (y - jax.lax.stop_gradient(y)))


def _decode(autoencoder: Any, last: str | None, z: Array) -> tuple[Array, Any]:
    """The decoder's answer, and the map from gradients with respect to it to those with respect to its last kernel."""
    if last is None:
        return at_least_single(autoencoder.decode(z)), None
    *way, name = last.split(".")

    def layer(network: Any) -> Any:
        try:
            found = functools.reduce(getattr, way, network)
            getattr(found, name)
        except AttributeError:
            raise ValueError(f"the autoencoder has no last={last!r}, by which the adversary is weighed") from None
        return found

    def decode(kernel: Array) -> Array:
        copy = jax.tree.map(lambda leaf: leaf, autoencoder)
        setattr(layer(copy), name, getattr(layer(copy), name).replace(kernel))
        return at_least_single(copy.decode(z))

    # The one pass of the decoder serves both: what precedes the last layer does not depend on the kernel.
    y, back = jax.vjp(decode, getattr(layer(autoencoder), name)[...])
    # It makes a weight, on which nothing descends.
    return y, lambda gradient: jax.lax.stop_gradient(back(jax.lax.stop_gradient(gradient))[0])


def _length(gradient: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(at_least_single(gradient) ** 2))


def _mean(values: Array) -> Float[Array, " B"]:
    return jnp.mean(at_least_single(values), axis=tuple(range(1, values.ndim)))

"""Autoencoding: images through a Gaussian posterior and back, against an adversary that starts later."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from flowjax._checks import choose, real, whole
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.objectives.base import keys, seed
from flowjax.objectives.flow_matching import check_answer
from flowjax.paths.base import at_least_single

LARGEST = 1e4  # of lambda, where the last layer no longer hears the adversary


@pytree
class AutoencodingDraws:
    """Everything random of one training step.

    Attributes:
        x1: Images, (B, ...).
        seeds: Seeds of the posterior's noise, (B, 2).
        adversarial: Whether the adversary takes part.

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


@fact(
    "objective",
    "autoencoding",
    "reconstruction, prior and an adversary that starts later",
    cite="rombach2021high",
    couples_batch=True,
    tasks=("autoencoding",),
)
@pytree
class Autoencoding:
    """Trains an autoencoder, and the discriminator that it plays against.

    With z = mean + exp(log variance / 2) noise and y = decode(z), one example costs the autoencoder

        nll + w_kl KL + w_adv lambda g,   nll = sum |x1 - y| (or its squares),   KL = KL(N(mean, variance), N(0, I)),
        g = -mean over patches of D(y),   lambda = |d nll / d last| / (|d g / d last| + 1e-4), at most 1e4,

    where `last` is the kernel of the decoder's last layer: there the adversary pulls as hard as the reconstruction,
    whatever the scale of its logits. The discriminator minimises

        hinge      (max(0, 1 - D(x1)) + max(0, 1 + D(y))) / 2
        vanilla    (softplus(-D(x1)) + softplus(D(y))) / 2

    over patches. Sums are over the entries of an example, as published; the adversary takes part from step `start` on.

    `networks` is {"autoencoder": ..., "discriminator": D}, or the autoencoder alone with `adversary=None`. It has
    `encode(x) -> (mean, log_variance)` and `decode(z)`; D(x) answers with logits (B, ...) of patches, positive for real
    images, and depends on the batch through no statistics. Both networks descend on one sum of losses with disjoint
    gradients. `updates` rests the discriminator before `start`, and nothing of it is computed.

    Lambda is a number of the batch; with accumulation, of each part.

    Attributes:
        kl_weight: w_kl, not negative.
        reconstruction: "l1" (absolute differences) or "l2" (squares).
        adversary: The discriminator's loss, "hinge" or "vanilla"; None for no discriminator.
        adversarial_weight: w_adv, not negative.
        start: First step with the adversary, counted from 0.
        last: Attributes that lead from the autoencoder to the kernel of the decoder's last layer.

    Raises:
        ValueError: An unknown name, or a number outside its range.

    References:
        Rombach et al. (2021), High-Resolution Image Synthesis with Latent Diffusion Models, appendix G,
        arXiv:2112.10752.
        Esser et al. (2020), Taming Transformers for High-Resolution Image Synthesis, equation 7,
        arXiv:2012.09841 (lambda).

    Example:
        >>> import flowjax as fj
        >>> objective = fj.build("objective", "autoencoding(kl_weight=1e-6, start=100)")
        >>> bool(objective.updates(99)["discriminator"]), bool(objective.updates(100)["discriminator"])
        (False, True)
    """

    kl_weight: float = 1e-6
    reconstruction: str = static("l1")
    adversary: str | None = static("hinge")
    adversarial_weight: float = 0.5
    start: int = 0
    last: str = static("decoder.unembed.kernel")

    def __post_init__(self) -> None:
        """Checks the options."""
        choose("reconstruction", self.reconstruction, ("l1", "l2"))
        if self.adversary is not None:
            choose("adversary", self.adversary, ("hinge", "vanilla"))
        real("[0, inf)", kl_weight=self.kl_weight, adversarial_weight=self.adversarial_weight)
        whole("[0, 2147483647]", start=self.start)

    def updates(self, step: Int[Array, ""] | int) -> dict[str, Any]:
        """The discriminator moves from `start` on, the autoencoder always."""
        return {} if self.adversary is None else {"discriminator": jnp.asarray(step) >= self.start}

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> AutoencodingDraws:
        """Draws the seeds of the noise; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", images (B, ...).
            memory: Unused; part of the objective protocol.
            step: Number of the step: from `start` on the adversary takes part.
        """
        seeds = jax.vmap(lambda index: seed(jax.random.fold_in(key, index)))(jnp.arange(batch["x1"].shape[0]))
        return AutoencodingDraws(x1=batch["x1"], seeds=seeds, adversarial=jnp.asarray(step) >= self.start)

    def loss(self, networks: Any, draws: AutoencodingDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Both networks' losses of each example, summed.

        Args:
            networks: See the class.
            draws: From `draw`.

        Returns:
            (B,), and {"reconstruction": nll (B,), "kl": KL (B,)}; with an adversary also "generator": g (B,),
            "discriminator": the discriminator's loss (B,), and "lambda", all zero before `start`.

        Raises:
            ValueError: A network is missing, or the answer has another shape than the images.
        """
        autoencoder, discriminator = self._players(networks)
        mean, log_variance = map(at_least_single, autoencoder.encode(draws.x1))
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys(draws.seeds))
        z = mean + jnp.exp(log_variance / 2) * noise
        y = at_least_single(autoencoder.decode(z))
        x = draws.x1.astype(y.dtype)
        check_answer(y, x)

        nll = self._distance(x, y)
        kl = _sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
        own, metrics = nll + self.kl_weight * kl, {"reconstruction": nll, "kl": kl}
        if discriminator is None:
            return own, metrics

        pull = _pull(autoencoder, self.last, z)  # outside the branch, where it shares the decoder's pass with `y`

        def play() -> tuple[Array, Array, Array]:
            # The generator's term must not move the discriminator, which would learn to praise.
            judge = jax.lax.stop_gradient(discriminator)
            generator = _generator(judge, y)
            # A weight, not a term: nothing descends on it, nor on what it is made of.
            fixed = jax.lax.stop_gradient(y)
            by_data = pull(jax.grad(lambda y: self._distance(x, y).mean())(fixed))
            by_judge = pull(jax.grad(lambda y: _generator(judge, y).mean())(fixed))
            balance = jnp.clip(_length(by_data) / (_length(by_judge) + 1e-4), 0.0, LARGEST)
            # The discriminator's loss must not move the autoencoder, which would please it.
            played = generator, self._judgement(discriminator(x), discriminator(fixed)), balance
            return jax.tree.map(lambda value: value.astype(nll.dtype), played)

        def wait() -> tuple[Array, Array, Array]:
            return jnp.zeros_like(nll), jnp.zeros_like(nll), jnp.zeros((), nll.dtype)

        generator, judgement, balance = jax.lax.cond(draws.adversarial, play, wait)
        metrics |= {"generator": generator, "discriminator": judgement, "lambda": balance}
        return own + self.adversarial_weight * balance * generator + judgement, metrics

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

    def _distance(self, x: Array, y: Array) -> Float[Array, " B"]:
        return _sum(jnp.abs(x - y) if self.reconstruction == "l1" else (x - y) ** 2)

    def _judgement(self, real: Array, fake: Array) -> Float[Array, " B"]:
        margin = jax.nn.softplus if self.adversary == "vanilla" else lambda logits: jax.nn.relu(1 + logits)
        return (_mean(margin(-real)) + _mean(margin(fake))) / 2


def _generator(discriminator: Callable[[Array], Array], y: Array) -> Float[Array, " B"]:
    return -_mean(discriminator(y))


def _pull(autoencoder: Any, last: str, z: Array) -> Callable[[Array], Array]:
    """The map from gradients with respect to the decoder's answer to those with respect to its last kernel."""
    # It makes a weight, on which nothing descends.
    autoencoder, z = jax.lax.stop_gradient((autoencoder, z))
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

    pull = jax.vjp(decode, getattr(layer(autoencoder), name)[...])[1]
    return lambda gradient: pull(gradient)[0]


def _length(gradient: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(at_least_single(gradient) ** 2))


def _sum(values: Array) -> Float[Array, " B"]:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _mean(values: Array) -> Float[Array, " B"]:
    return jnp.mean(at_least_single(values), axis=tuple(range(1, values.ndim)))

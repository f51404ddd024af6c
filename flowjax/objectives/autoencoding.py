"""Autoencoding: images through a Gaussian posterior and back, against an adversary that starts later."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._checks import choose, real
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.objectives.adversarial import Adversarial, AutoencodingDraws, total
from flowjax.objectives.base import frozen, keys
from flowjax.objectives.distances import perceptual
from flowjax.paths.base import at_least_single


@fact(
    "objective",
    "autoencoding",
    "reconstruction, prior and an adversary that starts later",
    cite="rombach2021high",
    couples_batch=True,
    tasks=("autoencoding",),
)
@pytree
class Autoencoding(Adversarial):
    """Trains an autoencoder, and the discriminator that it plays against.

    With z = mean + exp(log variance / 2) noise and y = decode(z), one example costs the autoencoder

        nll + w_kl KL + w_adv lambda g,   nll = sum (|x1 - y| + w_p LPIPS(x1, y))  (or squares in place of |x1 - y|),
        KL = KL(N(mean, variance), N(0, I)),
        g = -mean over patches of D(y),   lambda = |d nll / d last| / (|d g / d last| + 1e-4), at most 1e4,

    where `last` is the kernel of the decoder's last layer: there the adversary pulls as hard as the reconstruction,
    whatever the scale of its logits. The discriminator minimises

        hinge      (max(0, 1 - D(x1)) + max(0, 1 + D(y))) / 2
        vanilla    (softplus(-D(x1)) + softplus(D(y))) / 2

    over patches. Sums are over the entries of an example, as published; the adversary takes part from step `start` on.

    `networks` is {"autoencoder": ..., "discriminator": D}, or the autoencoder alone with `adversary=None`. It has
    `encode(x) -> (mean, log_variance)` and `decode(z)`; D(x) answers with logits (B, ...) of patches, positive for real
    images, and depends on the batch through no statistics. Both networks descend on one sum of losses with disjoint
    gradients. `updates` rests the discriminator before its start, and nothing of it is computed.

    Lambda is a number of the batch; with accumulation, of each part.

    Attributes:
        kl_weight: w_kl, not negative.
        reconstruction: "l1" (absolute differences) or "l2" (squares).
        perceptual_weight: w_p, not negative, of `flowjax.objectives.distances.perceptual`; published is 1.
        extractor: Network with `features(images in [0, 1])` for it; a task gives that of a run.
        adversary: The discriminator's loss, "hinge" or "vanilla"; None for no discriminator.
        adversarial_weight: w_adv, not negative.
        start: First step with the adversary, counted from 0.
        discriminator_start: First step at which the discriminator learns, at most `start`; None is `start`.
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
    perceptual_weight: float = static(0.0)
    extractor: Any = None

    def __post_init__(self) -> None:
        """Checks the options."""
        choose("reconstruction", self.reconstruction, ("l1", "l2"))
        real("[0, inf)", kl_weight=self.kl_weight, perceptual_weight=self.perceptual_weight)
        super().__post_init__()

    def latents(self, autoencoder: Any, draws: AutoencodingDraws) -> tuple[Array, Array, dict[str, Array]]:
        """Latents drawn from the posterior, and its divergence from the prior."""
        mean, log_variance = map(at_least_single, autoencoder.encode(draws.x1))
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys(draws.seeds))
        z = mean + jnp.exp(log_variance / 2) * noise
        kl = total(mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
        return z, self.kl_weight * kl, {"kl": kl}

    def distance(self, autoencoder: Any, x: Array, y: Array) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Sums of absolute differences, or of squares; the distance of features counts once for each number."""
        pixels = total(jnp.abs(x - y) if self.reconstruction == "l1" else (x - y) ** 2)
        if self.perceptual_weight == 0:
            return pixels, {}
        if self.extractor is None:
            raise ValueError(
                f"perceptual_weight={self.perceptual_weight} needs a network with features: name the run of a vit, "
                "config.task.options.extractor=run(workdir=...)"
            )
        seen = perceptual(frozen(self.extractor).features, (x + 1) / 2, (y + 1) / 2)
        return pixels + self.perceptual_weight * x[0].size * seen, {"pixels": pixels, "perceptual": seen}

"""Representation autoencoding: a decoder of a frozen encoder's tokens, with noise on them and against an adversary."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._checks import real
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.objectives.adversarial import Adversarial, AutoencodingDraws
from flowjax.objectives.base import frozen, keys
from flowjax.objectives.distances import perceptual


@fact(
    "objective",
    "representation_autoencoding",
    "decoder of a frozen encoder's tokens: pixels, features and an adversary",
    cite="zheng2025diffusion",
    couples_batch=True,
    tasks=("autoencoding",),
)
@pytree
class RepresentationAutoencoding(Adversarial):
    """Trains the decoder of an autoencoder whose encoder is frozen, and the discriminator that it plays against.

    With tokens z = encode(x1), noise n ~ N(0, I) and a size of it sigma ~ U[0, noise] for each example,
    y = decode(z + sigma n), one example costs the decoder

        rec + w_adv lambda g,   rec = mean |x1 - y| / 2 + w_perceptual d(x1, y),   g = -mean over patches of D(y),
        lambda = |d rec / d last| / (|d g / d last| + 1e-6), at most 1e4,

    where d is the distance of normalised features (`flowjax.objectives.distances.perceptual`) and the mean of absolute
    differences counts images in [0, 1], while networks see them in [-1, 1]. The losses of the discriminator and `last`
    are those of `Autoencoding`. The noise is for what flows on the tokens get wrong; trained, it decodes tokens as they
    are.

    `networks` is {"autoencoder": ..., "discriminator": D}, or the autoencoder alone with `adversary=None`. It has
    `encoder`, `encode(x) -> z` and `decode(z)`, as `flowjax.models.RepresentationAutoencoder`; no gradient reaches its
    encoder. The discriminator learns from `discriminator_start` on, and is heard from `start` on.

    Attributes:
        noise: Largest deviation of the noise on tokens, not negative; tokens have the deviation 1.
        perceptual_weight: w_perceptual, not negative; at 0 no features are computed.
        extractor: Network with `features(images in [0, 1]) -> (B, ..., channels)` of each layer; None is the encoder.
        adversary: The discriminator's loss, "hinge" or "vanilla"; None for no discriminator.
        adversarial_weight: w_adv, not negative.
        start: First step with the adversary, counted from 0.
        discriminator_start: First step at which the discriminator learns, at most `start`; None is `start`.
        last: Attributes that lead from the autoencoder to the kernel of the decoder's last layer.

    Raises:
        ValueError: An unknown name, or a number outside its range.

    References:
        Zheng et al. (2025), Diffusion Transformers with Representation Autoencoders, section 3 and appendix,
        arXiv:2510.11690. The published distance is LPIPS, whose channels have trained weights, and the published
        discriminator looks at features of DINO in augmented images; here channels count alike, and the discriminator
        looks at the images themselves.

    Example:
        >>> import flowjax as fj
        >>> objective = fj.build("objective", "representation_autoencoding(discriminator_start=60, start=80)")
        >>> objective.adversarial_weight, bool(objective.updates(60)["discriminator"])
        (0.75, True)
    """

    noise: float = 0.8
    perceptual_weight: float = static(1.0)
    extractor: Any = None
    adversarial_weight: float = 0.75

    guard = 1e-6
    frozen_encoder = True

    def __post_init__(self) -> None:
        """Checks the options."""
        real("[0, inf)", noise=self.noise, perceptual_weight=self.perceptual_weight)
        super().__post_init__()

    def latents(self, autoencoder: Any, draws: AutoencodingDraws) -> tuple[Array, None, dict[str, Array]]:
        """Tokens with noise on them."""
        # The encoder is given: whoever holds it among trained networks must not move it.
        z = jax.lax.stop_gradient(autoencoder.encode(draws.x1))

        def noise(key: Array) -> Array:
            size, direction = jax.random.split(key)
            sigma = self.noise * jax.random.uniform(size, (), z.dtype)
            return sigma * jax.random.normal(direction, z.shape[1:], z.dtype)

        return z + jax.vmap(noise)(keys(draws.seeds)), None, {}

    def distance(self, autoencoder: Any, x: Array, y: Array) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Half the mean absolute difference, and the distance of features."""
        pixels = jnp.mean(jnp.abs(x - y), axis=tuple(range(1, x.ndim))) / 2
        if self.perceptual_weight == 0:
            return pixels, {"pixels": pixels}
        # Features measure, and must not learn to see less.
        extractor = frozen(autoencoder.encoder if self.extractor is None else self.extractor)
        seen = perceptual(extractor.features, (x + 1) / 2, (y + 1) / 2)
        return pixels + self.perceptual_weight * seen, {"pixels": pixels, "perceptual": seen}

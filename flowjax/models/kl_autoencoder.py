"""The autoencoder of latent diffusion models, layer by layer as published, so that its weights can be read."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.facts import fact
from flowjax.models.autoencoder import Autoencoder, Decoder, Encoder
from flowjax.models.layers import conv
from flowjax.models.unet import Block, GroupNorm, double

_EPS = 1e-6


class Doubling(nnx.Module):
    """Every pixel as 2 x 2 equal ones, then a convolution of 3 x 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> Doubling(4, rngs=nnx.Rngs(0))(jnp.ones((1, 2, 2, 4))).shape
        (1, 4, 4, 4)
    """

    def __init__(self, width: int, **options: Any):
        self.conv = conv(width, width, 3, ("embed", None), **options)

    def __call__(self, h: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
        """Applies the layer."""
        return self.conv(double(h))


class KLEncoder(Encoder):
    """Images (B, H, W, C) to mean and log variance of their latents, see `KLAutoencoder`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"channels": 8, "multipliers": (1, 2), "groups": 4}
        >>> network = nnx.eval_shape(lambda: KLAutoencoder((8, 8, 3), **options, rngs=nnx.Rngs(0)))
        >>> mean, _ = jax.eval_shape(lambda network, x: network.encoder(x), network, jnp.ones((2, 8, 8, 3)))
        >>> mean.shape
        (2, 4, 4, 4)
    """

    def __init__(self, pixels: int, widths: Sequence[int], blocks: int, latent: int, shared: dict, **options: Any):
        shared, layers, width = shared | {"eps": _EPS}, [], widths[0]
        self.embed = conv(pixels, width, 3, (None, "embed"), **options)
        for level, target in enumerate(widths):
            for _ in range(blocks):
                layers.append(Block(width, target, **shared, **options))
                width = target
            if level < len(widths) - 1:
                # One row and one column of zeros at the far ends alone, as the published weights expect.
                layers.append(conv(width, width, 3, ("embed", None), strides=2, padding=((0, 1), (0, 1)), **options))
        layers += [Block(width, width, head=width, **shared, **options), Block(width, width, **shared, **options)]
        self.layers, self.dtype = nnx.data(layers), options["dtype"]
        self.norm = GroupNorm(width, shared["groups"], "embed", options["param_dtype"], _EPS)
        self.unembed = conv(width, 2 * latent, 3, ("embed", None), **options)
        self.mix = conv(2 * latent, 2 * latent, 1, (None, None), **options)

    def moments(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w moments"]:
        """Mean and log variance side by side, mixed."""
        return self.mix(super().moments(x))


class KLDecoder(Decoder):
    """Latents (B, h, w, latent) to images, see `KLAutoencoder`; `unembed(features(z))` like `Decoder`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"channels": 8, "multipliers": (1, 2), "groups": 4}
        >>> network = nnx.eval_shape(lambda: KLAutoencoder((8, 8, 3), **options, rngs=nnx.Rngs(0)))
        >>> jax.eval_shape(lambda network, z: network.decoder(z), network, jnp.ones((2, 4, 4, 4))).shape
        (2, 8, 8, 3)
    """

    def __init__(self, pixels: int, widths: Sequence[int], blocks: int, latent: int, shared: dict, **options: Any):
        shared, width = shared | {"eps": _EPS}, widths[-1]
        self.mix = conv(latent, latent, 1, (None, None), **options)
        self.embed = conv(latent, width, 3, (None, "embed"), **options)
        layers: list[Any] = [Block(width, width, head=width, **shared, **options)]
        layers.append(Block(width, width, **shared, **options))
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                layers.append(Block(width, target, **shared, **options))
                width = target
            if level:
                layers.append(Doubling(width, **options))
        self.layers, self.dtype = nnx.data(layers), options["dtype"]
        self.norm = GroupNorm(width, shared["groups"], "embed", options["param_dtype"], _EPS)
        self.unembed = conv(width, pixels, 3, ("embed", None), **options)

    def features(self, z: Float[Array, "B h w latent"]) -> Float[Array, "B H W width"]:
        """What the last layer sees."""
        return super().features(self.mix(z.astype(self.dtype)))


@fact(
    "network",
    "kl_autoencoder",
    "autoencoder of Stable Diffusion, whose published weights it reads",
    cite="rombach2021high",
    example=lambda: {"image_shape": (4, 4, 1), "channels": 4, "multipliers": (1, 1), "blocks": 1, "groups": 2},
)
class KLAutoencoder(Autoencoder):
    """The autoencoder of Stable Diffusion (f = 8, four latent channels with the defaults); methods of `Autoencoder`.

    It differs from `Autoencoder` in these layers: images are halved by a convolution of 3 x 3 with stride 2 and zeros
    at the right and at the bottom alone, and doubled by repeated pixels and a convolution; the decoder has one block
    more in each level; a 1 x 1 convolution stands behind the encoder, and one in front of the decoder; normalisations
    have eps = 1e-6. With random weights it starts like `Autoencoder`. Attention in the middle has one head.

    `flowjax.weights.read_kl_autoencoder` reads files with the names of diffusers (`vae/diffusion_pytorch_model
    .safetensors` of Stable Diffusion 1 and 2, of SDXL with latent_scale=0.13025). Images are in [-1, 1].

    References:
        Rombach et al. (2021), High-Resolution Image Synthesis with Latent Diffusion Models, appendix G,
        arXiv:2112.10752; layers as in CompVis/latent-diffusion and diffusers' AutoencoderKL.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = nnx.eval_shape(lambda: KLAutoencoder((256, 256, 3), rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(network)), network.latent_shape
        (83653863, (32, 32, 4))
    """

    parts: ClassVar[tuple[Any, Any]] = (KLEncoder, KLDecoder)

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        latent: int = 4,
        *,
        groups: int = 32,
        latent_scale: float = 0.18215,
        attention: str = "xla",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            image_shape: (H, W, C); the weights fit every H and W.
            channels: Channels of the first level.
            multipliers: Channels of each level over `channels`; each further level halves H and W.
            blocks: Residual blocks of a level of the encoder; the decoder has one more.
            latent: Channels of the latents.
            groups: Groups of a normalisation.
            latent_scale: What `to_latents` multiplies by; positive.
            attention: "xla", "dot_product" or "cudnn", see `flowjax.models.attention`.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: See `Autoencoder`.
        """
        super().__init__(
            image_shape,
            channels,
            multipliers,
            blocks,
            latent,
            groups=groups,
            latent_scale=latent_scale,
            attention=attention,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.levels, self.blocks = len(multipliers), blocks

"""A small autoencoder of images with a Gaussian posterior."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax._checks import COUNT, real, sizes, whole
from flowjax.facts import fact
from flowjax.models.attention import check_implementation
from flowjax.models.layers import conv
from flowjax.models.unet import Block, GroupNorm
from flowjax.paths.base import at_least_single


class Encoder(nnx.Module):
    """Images (B, H, W, C) to mean and log variance of their latents.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = nnx.eval_shape(lambda: Autoencoder((8, 8, 3), channels=8, groups=4, latent=3, rngs=nnx.Rngs(0)))
        >>> mean, log_variance = jax.eval_shape(lambda network, x: network.encoder(x), network, jnp.ones((2, 8, 8, 3)))
        >>> mean.shape, log_variance.shape
        ((2, 2, 2, 3), (2, 2, 2, 3))
    """

    def __init__(self, pixels: int, widths: Sequence[int], blocks: int, latent: int, shared: dict, **options: Any):
        layers, width = [], widths[0]
        self.embed = conv(pixels, width, 3, (None, "embed"), **options)
        for level, target in enumerate(widths):
            for _ in range(blocks):
                layers.append(Block(width, target, **shared, **options))
                width = target
            if level < len(widths) - 1:
                layers.append(Block(width, width, resample="halve", **shared, **options))
        layers += [Block(width, width, head=width, **shared, **options), Block(width, width, **shared, **options)]
        self.layers, self.dtype = nnx.data(layers), options["dtype"]
        self.norm = GroupNorm(width, shared["groups"], "embed", options["param_dtype"])
        self.unembed = conv(width, 2 * latent, 3, ("embed", None), **options)

    def __call__(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w latent"], Float[Array, "B h w latent"]]:
        """Mean and log variance in at least float32; the log variance is held in [-30, 20]."""
        mean, log_variance = jnp.split(at_least_single(self.moments(x)), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def moments(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w moments"]:
        """Mean and log variance side by side, as the last layer gives them."""
        h = self.embed(x.astype(self.dtype))
        for layer in self.layers:
            h = layer(h)
        return self.unembed(jax.nn.silu(self.norm(h)))


class Decoder(nnx.Module):
    """Latents (B, h, w, latent) to images; `unembed(features(z))`, whose last layer adversarial losses weigh by.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = nnx.eval_shape(lambda: Autoencoder((8, 8, 3), channels=8, groups=4, latent=3, rngs=nnx.Rngs(0)))
        >>> jax.eval_shape(lambda network, z: network.decoder(z), network, jnp.ones((2, 2, 2, 3))).shape
        (2, 8, 8, 3)
    """

    def __init__(self, pixels: int, widths: Sequence[int], blocks: int, latent: int, shared: dict, **options: Any):
        width = widths[-1]
        self.embed = conv(latent, width, 3, (None, "embed"), **options)
        layers = [Block(width, width, head=width, **shared, **options), Block(width, width, **shared, **options)]
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                layers.append(Block(width, target, **shared, **options))
                width = target
            if level:
                layers.append(Block(width, width, resample="double", **shared, **options))
        self.layers, self.dtype = nnx.data(layers), options["dtype"]
        self.norm = GroupNorm(width, shared["groups"], "embed", options["param_dtype"])
        self.unembed = conv(width, pixels, 3, ("embed", None), **options)

    def features(self, z: Float[Array, "B h w latent"]) -> Float[Array, "B H W width"]:
        """What the last layer sees."""
        h = self.embed(z.astype(self.dtype))
        for layer in self.layers:
            h = layer(h)
        return jax.nn.silu(self.norm(h))

    def __call__(self, z: Float[Array, "B h w latent"]) -> Float[Array, "B H W C"]:
        """The images, in at least float32."""
        return at_least_single(self.unembed(self.features(z)))


@fact(
    "network",
    "autoencoder",
    "autoencoder of images with a Gaussian posterior",
    cite="rombach2021high",
    example=lambda: {"image_shape": (4, 4, 1), "channels": 4, "multipliers": (1, 1), "groups": 2},
)
class Autoencoder(nnx.Module):
    """Autoencoder of images (B, H, W, C) with a Gaussian posterior.

        encode(x) = (mean, log variance),   z = mean + exp(log variance / 2) noise,   decode(z) ~ x

    Both halves are residual blocks of the U-Net without condition, with attention between two blocks at the lowest
    resolution. Latents as flows see them are latent_scale z, with latent_scale about one over the deviation of z.

    Computes in `dtype` (normalisations, softmax and results in at least float32), stores parameters in `param_dtype`.
    Kernels start Glorot-uniform with zero bias; the second convolution of every block and the projection of attention
    at zero. The parts are `encoder` and `decoder`, for patterns of labels and rates.

    References:
        Kingma and Welling (2013), Auto-Encoding Variational Bayes, arXiv:1312.6114.
        Rombach et al. (2021), High-Resolution Image Synthesis with Latent Diffusion Models, section 3.1,
        arXiv:2112.10752.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"channels": 8, "multipliers": (1, 2), "groups": 4}
        >>> network = nnx.eval_shape(lambda: Autoencoder((8, 8, 3), **options, rngs=nnx.Rngs(0)))
        >>> mean, log_variance = jax.eval_shape(Autoencoder.encode, network, jnp.ones((2, 8, 8, 3)))
        >>> mean.shape, network.latent_shape, jax.eval_shape(Autoencoder.decode, network, mean).shape
        ((2, 4, 4, 4), (4, 4, 4), (2, 8, 8, 3))
    """

    parts: ClassVar[tuple[Any, Any]] = (Encoder, Decoder)

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        latent: int = 4,
        *,
        groups: int = 8,
        latent_scale: float = 1.0,
        attention: str = "xla",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            image_shape: (H, W, C).
            channels: Channels of the first level.
            multipliers: Channels of each level over `channels`; each further level halves H and W.
            blocks: Residual blocks of a level.
            latent: Channels of the latents.
            groups: Groups of a normalisation.
            latent_scale: What `to_latents` multiplies by; positive.
            attention: "xla", "dot_product" or "cudnn", see `flowjax.models.attention`.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, the image cannot be halved often enough, or `groups` does not
                divide the channels.
        """
        sizes(3, image_shape=image_shape)
        sizes(multipliers=multipliers)
        whole(COUNT, channels=channels, blocks=blocks, latent=latent, groups=groups)
        real("(0, inf)", latent_scale=latent_scale)
        rows, columns, pixels = image_shape
        widths, factor = [channels * m for m in multipliers], 2 ** (len(multipliers) - 1)
        if rows % factor or columns % factor:
            raise ValueError(f"an image of {rows} x {columns} pixels cannot be halved {len(widths) - 1} times")
        if any(width % groups for width in widths):
            raise ValueError(f"groups={groups} does not divide the channels {widths}")
        self.image_shape, self.latent_shape = (rows, columns, pixels), (rows // factor, columns // factor, latent)
        self.latent_scale = latent_scale
        shared = {"conditions": None, "groups": groups, "attention": check_implementation(attention, dtype)}
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        encoder, decoder = self.parts
        self.encoder = encoder(pixels, widths, blocks, latent, shared, **options)
        self.decoder = decoder(pixels, widths, blocks, latent, shared, **options)

    def encode(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w latent"], Float[Array, "B h w latent"]]:
        """Mean and log variance of the posterior of z.

        Raises:
            ValueError: Images of another shape.
        """
        check_shape("images", x, self.image_shape)
        with jax.named_scope("encode"):
            return self.encoder(x)

    def decode(self, z: Float[Array, "B h w latent"]) -> Float[Array, "B H W C"]:
        """The images of unscaled latents z.

        Raises:
            ValueError: Latents of another shape.
        """
        check_shape("latents", z, self.latent_shape)
        with jax.named_scope("decode"):
            return self.decoder(z)

    def decode_part(self, z: Float[Array, "B h w latent"]) -> Float[Array, "B H W C"]:
        """The image of a part of the latents, of any height and width: a tile.

        Attention and the statistics of normalisations are those of the part.
        """
        with jax.named_scope("decode"):
            return self.decoder(z)

    def to_latents(
        self, x: Float[Array, "B H W C"], noise: Float[Array, "B h w latent"] | None = None
    ) -> Float[Array, "B h w latent"]:
        """latent_scale z, drawn from the posterior by standard normal noise; without noise z is its mean."""
        mean, log_variance = self.encode(x)
        z = mean if noise is None else mean + jnp.exp(log_variance / 2) * noise
        return self.latent_scale * z

    def to_images(self, latents: Float[Array, "B h w latent"]) -> Float[Array, "B H W C"]:
        """The images of what `to_latents` gave."""
        return self.decode(latents / self.latent_scale)

    def __call__(
        self, x: Float[Array, "B H W C"], noise: Float[Array, "B h w latent"] | None = None
    ) -> Float[Array, "B H W C"]:
        """The images again, through latents drawn by `noise`, or through their means."""
        return self.to_images(self.to_latents(x, noise))


def check_shape(what: str, x: Array, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless x is (B, *shape)."""
    if x.shape[1:] != shape:
        raise ValueError(f"expected {what} (B, {', '.join(map(str, shape))}), got {x.shape}")

"""A discriminator of overlapping patches (PatchGAN)."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax._checks import COUNT, sizes, whole
from flowjax.facts import fact
from flowjax.models.layers import conv
from flowjax.models.unet import GroupNorm
from flowjax.paths.base import at_least_single


@fact(
    "network",
    "discriminator",
    "discriminator of overlapping patches (PatchGAN)",
    cite="isola2016image",
    example=lambda: {"image_shape": (8, 8, 1), "channels": 4, "layers": 1, "groups": 2},
)
class Discriminator(nnx.Module):
    """Logits (B, h, w, 1) of the patches of images (B, H, W, C), positive for real ones; see the module.

    Convolutions of 4 x 4 pixels: `layers` of stride 2, one of stride 1, and one that answers with a logit for each
    patch; with three layers a logit sees 70 x 70 pixels. Between them a leaky rectifier, and behind all but the first
    and the last a normalisation. Here it is that of groups in one image: no batch statistics, so that a logit does not
    depend on the batch mates or on the number of devices.

    Computes in `dtype` (normalisations in at least float32), stores parameters in `param_dtype`. Kernels start as
    N(0, 0.02^2).

    References:
        Isola et al. (2016), Image-to-Image Translation with Conditional Adversarial Networks, section 3.2.2,
        arXiv:1611.07004.
        Esser et al. (2020), Taming Transformers for High-Resolution Image Synthesis, arXiv:2012.09841.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = nnx.eval_shape(lambda: Discriminator((32, 32, 3), channels=8, rngs=nnx.Rngs(0)))
        >>> jax.eval_shape(Discriminator.__call__, network, jnp.ones((2, 32, 32, 3))).shape
        (2, 2, 2, 1)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int = 64,
        layers: int = 3,
        *,
        groups: int = 8,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            image_shape: (H, W, C).
            channels: Channels behind the first convolution; each further one doubles them, up to eight times.
            layers: Convolutions of stride 2.
            groups: Groups of a normalisation; divides `channels`.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, an image too small for so many layers, or `groups` does not
                divide `channels`.
        """
        sizes(3, image_shape=image_shape)
        whole(COUNT, channels=channels, groups=groups)
        whole("[1, 10]", layers=layers)
        rows, columns, pixels = image_shape
        if min(rows, columns) >> layers < 3:
            least = 3 * 2**layers
            raise ValueError(f"layers={layers} needs images of {least} x {least} pixels, got {rows} x {columns}")
        if channels % groups:
            raise ValueError(f"groups={groups} does not divide channels={channels}")
        self.image_shape, self.dtype = (rows, columns, pixels), dtype
        options = {
            "init": nnx.initializers.normal(0.02),
            "padding": 1,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        # Whole on every device: where input and output channels of a strided convolution of 4 x 4 pixels are cut, XLA's
        # gradient by its input is wrong.
        whole_kernel = (None, None)
        self.embed = conv(pixels, channels, 4, whole_kernel, strides=2, **options)
        self.layers = nnx.data(
            [
                conv(i, o, 4, whole_kernel, strides=2 if k < layers - 1 else 1, use_bias=False, **options)
                for k, (i, o) in enumerate(itertools.pairwise(widths))
            ]
        )
        self.norms = nnx.data([GroupNorm(width, groups, None, param_dtype) for width in widths[1:]])
        self.unembed = conv(widths[-1], 1, 4, whole_kernel, **options)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w 1"]:
        """The logits, in at least float32.

        Raises:
            ValueError: Images of another shape.
        """
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"expected images (B, {', '.join(map(str, self.image_shape))}), got {x.shape}")
        h = jax.nn.leaky_relu(self.embed(x.astype(self.dtype)), 0.2)
        for layer, norm in zip(self.layers, self.norms):
            h = jax.nn.leaky_relu(norm(layer(h)), 0.2)
        return at_least_single(self.unembed(h))

"""The autoencoder of solids: occupancy grids to dense latents and back."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from flowjax._checks import COUNT, sizes, whole
from flowjax.facts import fact
from flowjax.models.autoencoder import check_shape
from flowjax.models.layers import conv
from flowjax.models.unet import GroupNorm
from flowjax.paths.base import at_least_single

_ZERO = nnx.initializers.zeros_init()


class _Residual(nnx.Module):
    """h + conv(silu(norm(conv(silu(norm(h)))))), the last one from zero."""

    def __init__(self, width: int, groups: int, **options: Any):
        self.norms = nnx.data([GroupNorm(width, groups, "embed", options["param_dtype"]) for _ in range(2)])
        self.first = conv(width, width, 3, ("embed", "mlp"), rank=3, **options)
        self.second = conv(width, width, 3, ("mlp", "embed"), init=_ZERO, rank=3, **options)

    def __call__(self, h: Float[Array, "B X Y Z C"]) -> Float[Array, "B X Y Z C"]:
        inner = self.first(jax.nn.silu(self.norms[0](h)))
        return h + self.second(jax.nn.silu(self.norms[1](inner)))


def _fold(x: Array) -> Array:
    return rearrange(x, "b (x p) (y q) (z r) c -> b x y z (p q r c)", p=2, q=2, r=2)


def _unfold(x: Array) -> Array:
    return rearrange(x, "b x y z (p q r c) -> b (x p) (y q) (z r) c", p=2, q=2, r=2)


@fact(
    "network",
    "voxel_autoencoder",
    "autoencoder of voxels with a Gaussian posterior",
    cite="xiang2024trellis",
    example=lambda: {"resolution": 4, "widths": (4, 4), "groups": 2, "latent": 2},
)
class VoxelAutoencoder(nnx.Module):
    """Autoencoder of occupancy grids (B, R, R, R, 1) with latents (B, r, r, r, latent), r = R / 2^levels.

    Each level folds 2^3 voxels into channels, a convolution of 3^3 makes them `widths` and a residual block follows;
    the decoder goes the same way back. Kernels start Glorot-uniform with zero bias, the second convolution of a block
    at zero.

    References:
        Xiang et al. (2024), Structured 3D Latents for Scalable and Versatile 3D Generation, arXiv:2412.01506.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = nnx.eval_shape(lambda: VoxelAutoencoder(16, rngs=nnx.Rngs(0)))
        >>> mean, _ = jax.eval_shape(lambda network, x: network.encode(x), network, jnp.ones((2, 16, 16, 16, 1)))
        >>> mean.shape, jax.eval_shape(lambda network, z: network.decode(z), network, mean).shape
        ((2, 4, 4, 4, 8), (2, 16, 16, 16, 1))
    """

    def __init__(
        self,
        resolution: int,
        widths: Sequence[int] = (32, 64),
        latent: int = 8,
        *,
        groups: int = 8,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            resolution: R, a multiple of 2^levels.
            widths: Channels of each level.
            latent: Channels of the latents.
            groups: Groups of a normalisation.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number outside its range, a grid that cannot be folded so often, or `groups` does not divide
                the widths.
        """
        sizes(widths=widths)
        whole(COUNT, resolution=resolution, latent=latent, groups=groups)
        if resolution % 2 ** len(widths):
            raise ValueError(f"resolution={resolution} cannot be halved {len(widths)} times")
        if any(width % groups for width in widths):
            raise ValueError(f"groups={groups} does not divide the widths {tuple(widths)}")
        self.resolution, self.latent, self.dtype = resolution, latent, dtype
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        inputs = [8, *(8 * width for width in widths[:-1])]
        self.down = nnx.data(
            [conv(i, o, 3, (None, "embed"), rank=3, **options) for i, o in zip(inputs, widths, strict=True)]
        )
        self.encoding = nnx.data([_Residual(width, groups, **options) for width in widths])
        self.posterior = conv(widths[-1], 2 * latent, 3, ("embed", None), rank=3, **options)
        self.embed = conv(latent, widths[-1], 3, (None, "embed"), rank=3, **options)
        self.decoding = nnx.data([_Residual(width, groups, **options) for width in reversed(widths)])
        outputs = list(reversed(inputs))
        self.up = nnx.data(
            [conv(i, o, 3, ("embed", None), rank=3, **options) for i, o in zip(reversed(widths), outputs, strict=True)]
        )

    def encode(self, x: Float[Array, "B R R R 1"]) -> tuple[Float[Array, "B r r r L"], Float[Array, "B r r r L"]]:
        """Mean and log variance of the posterior, in at least float32.

        Raises:
            ValueError: Grids of another shape.
        """
        check_shape("grids", x, (*(self.resolution,) * 3, 1))
        h = x.astype(self.dtype)
        for layer, block in zip(self.down, self.encoding, strict=True):
            h = block(layer(_fold(h)))
        mean, log_variance = jnp.split(at_least_single(self.posterior(jax.nn.silu(h))), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, z: Float[Array, "B r r r L"]) -> Float[Array, "B R R R 1"]:
        """The grids of latents, in at least float32.

        Raises:
            ValueError: Latents of another shape.
        """
        side = self.resolution // 2 ** len(self.up)
        check_shape("latents", z, (*(side,) * 3, self.latent))
        h = self.embed(z.astype(self.dtype))
        for layer, block in zip(self.up, self.decoding, strict=True):
            h = _unfold(layer(block(h)))
        return at_least_single(h)

"""Representation autoencoders: the tokens of a trained encoder, and a transformer that makes images of them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax._checks import COUNT, sizes, whole
from flowjax.facts import fact
from flowjax.models.attention import check_implementation
from flowjax.models.autoencoder import check_shape
from flowjax.models.dit import positions
from flowjax.models.layers import DEPTH, check_patches, dense, from_patches, named, per_token
from flowjax.models.remat import check_remat, recomputed
from flowjax.models.stacks import build_stacked, run_blocks
from flowjax.models.vit import Block, LayerNorm
from flowjax.paths.base import at_least_single


def _apply(block: Block, h: Array, key: None) -> Array:
    return block(h)


@fact(
    "network",
    "vit_decoder",
    "vision transformer that makes images of tokens",
    cite="he2021masked",
    example=lambda: {"image_shape": (4, 4, 1), "latent": 3, "patch": 2, "width": 8, "depth": 1, "heads": 2},
)
class ViTDecoder(nnx.Module):
    """Images (B, H, W, C) of tokens (B, H / patch, W / patch, latent), as the decoder of a masked autoencoder.

    A dense layer to `width`, fixed sine-cosine positions (columns first, zero for the class token), a trained class
    token in front, blocks of attention and feed-forward layers without layer scale, a normalisation, a dense layer to
    the pixels of each patch. The class token goes through all blocks and is dropped at the end. Called as
    `unembed(features(z))`, whose last layer adversarial losses weigh by.

    Computes in `dtype` (normalisations, softmax and results in at least float32), stores parameters in `param_dtype`.
    Dense layers start Glorot-uniform with zero bias, the class token as N(0, 0.02^2): at zero, as in the authors' code,
    the first normalisation would multiply its gradient by the inverse root of its epsilon.

    The published decoders for 256 x 256 pixels have patch 16, latent 768 and, as "XL", width 1152, depth 28, heads 16
    and hidden 4096.

    References:
        He et al. (2021), Masked Autoencoders Are Scalable Vision Learners, arXiv:2111.06377.
        Zheng et al. (2025), Diffusion Transformers with Representation Autoencoders, arXiv:2510.11690.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"latent": 768, "patch": 16, "width": 64, "depth": 2, "heads": 2}
        >>> network = nnx.eval_shape(lambda: ViTDecoder((256, 256, 3), **options, rngs=nnx.Rngs(0)))
        >>> jax.eval_shape(ViTDecoder.__call__, network, jnp.ones((2, 16, 16, 768))).shape
        (2, 256, 256, 3)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int | None = None,
        attention: str = "xla",
        remat: bool | str = False,
        scan: bool = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            image_shape: (H, W, C).
            latent: Channels of the tokens that are given.
            patch: Side of the square patch of pixels that a token becomes; divides H and W.
            width: Width of a token within; a multiple of 4 and of `heads`.
            depth: Number of blocks.
            heads: Number of attention heads.
            hidden: Hidden width of the feed-forward layers; 4 `width` by default.
            attention: "xla", "dot_product" or "cudnn", see `flowjax.models.attention`.
            remat: What the backward pass computes again, see `flowjax.models.remat`.
            scan: Whether the blocks are stacked and run by one compiled loop.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, `patch` does not divide the image, or `heads` or 4 does not
                divide `width`.
        """
        sizes(3, image_shape=image_shape)
        hidden = 4 * width if hidden is None and isinstance(width, int) else hidden
        whole(COUNT, latent=latent, patch=patch, width=width, heads=heads, hidden=hidden)
        whole(DEPTH, depth=depth)
        check_patches(image_shape, patch)
        if width % heads or width % 4:
            raise ValueError(f"width={width} must be a multiple of 4 and of heads={heads}")
        rows, columns, channels = image_shape
        self.image_shape, self.patch, self.dtype = tuple(image_shape), patch, dtype
        self.latent_shape = (rows // patch, columns // patch, latent)
        self.remat, self.scan = check_remat(remat), scan
        attention = check_implementation(attention, dtype)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.embed = dense(latent, width, (None, "embed"), **options)
        self.token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,), param_dtype), **named("embed"))

        def block(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, hidden, False, attention, **(options | {"rngs": rngs}))

        self.blocks = build_stacked(block, depth, rngs) if scan else nnx.data([block(rngs) for _ in range(depth)])
        self.norm = LayerNorm(width, param_dtype)
        self.unembed = dense(width, patch * patch * channels, ("embed", "patch"), **options)

    def features(self, z: Float[Array, "B h w latent"]) -> Float[Array, "B N width"]:
        """What the last layer sees, without the class token.

        Raises:
            ValueError: Tokens of another shape.
        """
        check_shape("tokens", z, self.latent_shape)
        rows, columns, latent = self.latent_shape
        h = per_token(self.embed, z.reshape(len(z), -1, latent).astype(self.dtype))
        codes = np.roll(positions(rows, columns, h.shape[-1]), h.shape[-1] // 2, axis=-1)
        token = jnp.broadcast_to(self.token[...].astype(h.dtype)[None, None], (len(h), 1, h.shape[-1]))
        h = jnp.concatenate([token, h + jnp.asarray(codes, h.dtype)[None]], axis=1)
        h = run_blocks(self.blocks, recomputed(_apply, self.remat, self.scan), h)
        return self.norm(h)[:, 1:]

    def __call__(self, z: Float[Array, "B h w latent"]) -> Float[Array, "B H W C"]:
        """The images, in at least float32, in the scale of the encoder: whitened by its mean and deviation.

        Raises:
            ValueError: Tokens of another shape.
        """
        return at_least_single(from_patches(per_token(self.unembed, self.features(z)), self.image_shape, self.patch))


@fact(
    "network",
    "representation_autoencoder",
    "a trained encoder and a decoder of its tokens",
    cite="zheng2025diffusion",
    parts={"encoder": "network", "decoder": "network"},
    example=lambda: {
        "encoder": {
            "name": "vit",
            "options": {"image_shape": (4, 4, 1), "patch": 2, "width": 8, "depth": 1, "heads": 2},
        },
        "decoder": {
            "name": "vit_decoder",
            "options": {"image_shape": (4, 4, 1), "latent": 8, "patch": 2, "width": 8, "depth": 1, "heads": 2},
        },
    },
)
class RepresentationAutoencoder(nnx.Module):
    """Images x in [-1, 1] to tokens and back: encode(x) = E((x + 1) / 2), decode(z) = 2 (s D(z) + m) - 1.

    The encoder E is frozen: its run trains nothing of it, and a token is a function of the image, without a posterior.
    m and s are the mean and deviation by which E normalises images (1/2 each where it says nothing).

    References:
        Zheng et al. (2025), Diffusion Transformers with Representation Autoencoders, arXiv:2510.11690.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from flowjax.models import ViT, ViTDecoder
        >>> options = {"width": 8, "depth": 1, "heads": 2, "rngs": nnx.Rngs(0)}
        >>> encoder, decoder = ViT((8, 8, 1), 4, **options), ViTDecoder((8, 8, 1), 8, 4, **options)
        >>> network = RepresentationAutoencoder(encoder, decoder)
        >>> z = jax.eval_shape(network.encode, jnp.zeros((2, 8, 8, 1)))
        >>> z.shape, jax.eval_shape(network.decode, z).shape
        ((2, 2, 2, 8), (2, 8, 8, 1))
    """

    def __init__(self, encoder: Any, decoder: nnx.Module, *, rngs: nnx.Rngs | None = None):
        """Puts a decoder behind an encoder.

        Args:
            encoder: `encode(images in [0, 1]) -> (B, h, w, hidden_size)`, with `patch_size` and `hidden_size`.
            decoder: Called with such tokens, it answers with images.
            rngs: Unused; part of the protocol of networks.

        Raises:
            ValueError: The encoder is none.
        """
        check_encoder("the encoder", encoder)
        self.encoder, self.decoder = encoder, decoder

    def encode(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w latent"]:
        """The tokens of images in [-1, 1]."""
        with jax.named_scope("encode"):
            return self.encoder.encode((at_least_single(x) + 1) / 2)

    def decode(self, z: Float[Array, "B h w latent"]) -> Float[Array, "B H W C"]:
        """The images of tokens, in [-1, 1] but for errors."""
        with jax.named_scope("decode"):
            y = self.decoder(z)
            mean, std = (
                jnp.asarray(getattr(self.encoder, name, (0.5,)), y.dtype).reshape(1, 1, 1, -1)
                for name in ("mean", "std")
            )
            return 2 * (std * y + mean) - 1


def check_encoder(what: str, network: Any) -> None:
    """Refuses a network that is no encoder of images to tokens.

    Raises:
        ValueError: It lacks a part of the protocol.
    """
    missing = [name for name in ("encode", "patch_size", "hidden_size") if not hasattr(network, name)]
    if missing:
        raise ValueError(
            f"{what}, a {type(network).__name__}, has no {missing[0]}: an encoder makes tokens (B, h, w, hidden_size) "
            "of images in [0, 1] by encode(images), as the network vit does"
        )


def with_encoder(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of training, in which "autoencoder" is a decoder: with the frozen "encoder" in front of it."""
    return {**trained, "autoencoder": RepresentationAutoencoder(frozen["encoder"], trained["autoencoder"])}

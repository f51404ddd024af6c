"""A vision transformer as an encoder of images: DINOv2 with registers, of any size, and small ones to train here."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from flowjax._checks import COUNT, choose, real, sizes, whole
from flowjax.facts import fact
from flowjax.models.attention import attend, check_implementation
from flowjax.models.autoencoder import check_shape
from flowjax.models.layers import DEPTH, check_patches, dense, named, normalize, per_token, to_patches
from flowjax.models.resampling import resized
from flowjax.models.stacks import run_blocks
from flowjax.paths.base import at_least_single

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Mean and deviation of the channels of natural images in [0, 1], which published encoders divide out."""

SIZES = {
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}
"""Published sizes of DINOv2 with a plain feed-forward layer."""


class LayerNorm(nnx.Module):
    """Layer normalisation with a scale and a shift for each channel, computed in at least float32; epsilon is 1e-6.

    Example:
        >>> import jax.numpy as jnp
        >>> norm = LayerNorm(2, jnp.float32)
        >>> norm(jnp.array([[[1.0, 3.0]]])).round(2).tolist()
        [[[-1.0, 1.0]]]
    """

    def __init__(self, width: int, param_dtype: Any):
        self.scale = nnx.Param(jnp.ones(width, param_dtype), **named("embed"))
        self.bias = nnx.Param(jnp.zeros(width, param_dtype), **named("embed"))

    def __call__(self, h: Float[Array, "B N width"]) -> Float[Array, "B N width"]:
        """Applies the layer."""
        scale, bias = (a[...].astype(h.dtype)[None, None] for a in (self.scale, self.bias))
        return normalize(h) * scale + bias


class Block(nnx.Module):
    """h <- h + s1 attention(norm1(h)), h <- h + s2 mlp(norm2(h)), with the exact GELU; s1 = s2 = 1 without `scaled`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        >>> block = Block(16, 2, 64, scaled=True, **options)
        >>> block(jnp.ones((2, 5, 16))).shape, block.scale1.shape
        ((2, 5, 16), (16,))
    """

    def __init__(self, width: int, heads: int, hidden: int, scaled: bool, attention: str = "xla", **options: Any):
        self.attention, param_dtype, head = attention, options["param_dtype"], width // heads
        self.norm1, self.norm2 = LayerNorm(width, param_dtype), LayerNorm(width, param_dtype)
        self.qkv = dense(width, (3, heads, head), ("embed", None, "heads", None), **options)
        self.project = dense((heads, head), width, ("heads", None, "embed"), **options)
        self.inner = dense(width, hidden, ("embed", "mlp"), **options)
        self.outer = dense(hidden, width, ("mlp", "embed"), **options)
        self.scale1 = nnx.Param(jnp.ones(width, param_dtype), **named("embed")) if scaled else None
        self.scale2 = nnx.Param(jnp.ones(width, param_dtype), **named("embed")) if scaled else None

    def __call__(self, h: Float[Array, "B N width"]) -> Float[Array, "B N width"]:
        """Applies the block."""
        with jax.named_scope("attention"):
            q, k, v = jnp.moveaxis(per_token(self.qkv, self.norm1(h)), 2, 0)
            h = h + _scaled(self.scale1, per_token(self.project, attend(q, k, v, self.attention)))
        with jax.named_scope("mlp"):
            hidden = jax.nn.gelu(per_token(self.inner, self.norm2(h)), approximate=False)
            return h + _scaled(self.scale2, per_token(self.outer, hidden))


def _scaled(scale: nnx.Param | None, h: Array) -> Array:
    return h if scale is None else h * scale[...].astype(h.dtype)[None, None]


@fact(
    "network",
    "vit",
    "vision transformer with registers: an encoder of images, or a classifier",
    cite="darcet2023vision",
    example=lambda: {"image_shape": (4, 4, 1), "patch": 2, "width": 8, "depth": 1, "heads": 2, "outputs": 3},
)
class ViT(nnx.Module):
    """Tokens of images (B, H, W, C) with values in [0, 1]: `encode(images) -> (B, h, w, width)`.

    The architecture of DINOv2 with registers. Images are resized to `resize` where that is given and normalised by
    `mean` and `std`; patches, with learned positions, a class token and `registers` further tokens go through blocks of
    attention and feed-forward layers (`Block`, with layer scale); class token and registers are dropped, and what is
    left is normalised over its channels, without scale and shift: every token has mean 0 and variance 1, which the
    latents of a representation autoencoder need. The table of positions is that of `table` x `table` patches and is
    interpolated bicubically to others.

    An encoder of this package has `encode`, `patch_size`, `hidden_size`, and, where there are, `mean` and `std`;
    distances of features ask for `features(images)`, the tokens behind each block, (B, h, w, width) each.

    With `outputs` it is a classifier too: `network(x)` gives logits (B, outputs), a dense layer, zero at the start, on
    the mean of the tokens of x, images as networks see them, in [-1, 1]. Trained by the task `classification`, its run
    is an encoder.

    Computes in `dtype` (normalisations, softmax and results in at least float32), stores parameters in `param_dtype`.
    Dense layers start Glorot-uniform with zero bias, tokens and positions as N(0, 0.02^2), layer scales at one.

    References:
        Darcet et al. (2023), Vision Transformers Need Registers, arXiv:2309.16588.
        Oquab et al. (2023), DINOv2: Learning Robust Visual Features without Supervision, arXiv:2304.07193.
        Zheng et al. (2025), Diffusion Transformers with Representation Autoencoders, arXiv:2510.11690 (the last
        normalisation).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> build = lambda: ViT((256, 256, 3), **ViT.size("base"), resize=224, rngs=nnx.Rngs(0))
        >>> network = nnx.eval_shape(build)
        >>> jax.eval_shape(ViT.encode, network, jnp.ones((2, 256, 256, 3))).shape
        (2, 16, 16, 768)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        patch: int,
        width: int,
        depth: int,
        heads: int,
        outputs: int | None = None,
        *,
        registers: int = 4,
        mlp_ratio: float = 4.0,
        resize: int | None = None,
        table: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        attention: str = "xla",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            image_shape: (H, W, C) of the images that are given.
            patch: Side of a square patch in pixels, after resizing.
            width: Width of a token; a multiple of `heads`.
            depth: Number of blocks.
            heads: Number of attention heads.
            outputs: Number of logits of the classifier; None for an encoder alone.
            registers: Number of registers, 0 or more.
            mlp_ratio: Hidden width of the feed-forward layers over `width`.
            resize: Side to which square images are resized, a multiple of `patch`; None leaves them as they are.
            table: Side of the table of positions in patches; None is that of the images, which may have any ratio.
            mean: Subtracted from images in [0, 1]: a number for each channel, or one for all.
            std: Divides them, likewise; positive.
            attention: "xla", "dot_product" or "cudnn", see `flowjax.models.attention`.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, `patch` does not divide the image, `heads` does not divide
                `width`, or images to be resized are not square.
        """
        sizes(3, image_shape=image_shape)
        whole(COUNT, patch=patch, width=width, heads=heads)
        whole(DEPTH, depth=depth)
        whole("[0, 1000]", registers=registers)
        real("(0, inf)", mlp_ratio=mlp_ratio)
        rows, columns, channels = image_shape
        for name, values in (("mean", mean), ("std", std)):
            if not isinstance(values, tuple | list) or len(values) not in (1, channels):
                raise ValueError(f"{name} has a number for each of {channels} channels, or one for all, got {values!r}")
        real("(-inf, inf)", **{f"mean[{i}]": value for i, value in enumerate(mean)})
        real("(0, inf)", **{f"std[{i}]": value for i, value in enumerate(std)})
        if resize is not None:
            whole(COUNT, resize=resize)
            if rows != columns:
                raise ValueError(f"resize={resize} is for square images, got {rows} x {columns}")
            rows = columns = resize
        check_patches((rows, columns), patch)
        if width % heads or round(mlp_ratio * width) < 1:
            raise ValueError(f"width={width} must be a multiple of heads={heads}, and of use for mlp_ratio={mlp_ratio}")
        if table is not None:
            whole(COUNT, table=table)
        if outputs is not None:
            whole(COUNT, outputs=outputs)
        self.image_shape, self.resize, self.dtype = tuple(image_shape), resize, dtype
        self.patch_size, self.hidden_size, self.heads = patch, width, heads
        self.mean, self.std = tuple(mean), tuple(std)
        self.grid = rows // patch, columns // patch
        self.table_grid = self.grid if table is None else (table, table)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def table_of(*shape: int) -> nnx.Param:
            values = nnx.initializers.normal(0.02)(rngs.params(), shape, param_dtype)
            return nnx.Param(values, **named(*(None,) * (len(shape) - 1), "embed"))

        self.embed = dense(patch * patch * channels, width, ("patch", "embed"), **options)
        self.token = table_of(width)
        self.token_position = table_of(width)
        self.positions = table_of(*self.table_grid, width)
        self.registers = table_of(registers, width) if registers else None
        attention = check_implementation(attention, dtype)
        hidden = round(mlp_ratio * width)
        self.blocks = nnx.data([Block(width, heads, hidden, True, attention, **options) for _ in range(depth)])
        zero = nnx.initializers.zeros_init()
        self.head = None if outputs is None else dense(width, outputs, ("embed", None), init=zero, **options)

    @staticmethod
    def size(name: str) -> dict[str, Any]:
        """Options of a published size of DINOv2 with registers: "small", "base" or "large", patches of 14 pixels.

        Raises:
            ValueError: The size is unknown.
        """
        return {**SIZES[choose("size", name, SIZES)], "patch": 14, "registers": 4, "table": 37, **IMAGENET}

    def features(self, images: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w width"], ...]:
        """The tokens behind each block, in at least float32.

        Raises:
            ValueError: Images of another shape.
        """
        check_shape("images", images, self.image_shape)
        with jax.named_scope("embed"):
            h = self._embedded(at_least_single(images))
        found: list[Array] = []

        def apply(block: Block, h: Array, key: None) -> Array:
            found.append(block(h))
            return found[-1]

        run_blocks(self.blocks, apply, h)
        behind = h.shape[1] - self.grid[0] * self.grid[1]
        return tuple(at_least_single(h[:, behind:]).reshape(len(h), *self.grid, -1) for h in found)

    def encode(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w width"]:
        """The tokens of images in [0, 1], each with mean 0 and variance 1 over its channels, in at least float32.

        Raises:
            ValueError: Images of another shape.
        """
        return normalize(self.features(images)[-1])

    def __call__(
        self, x: Float[Array, "B H W C"], t: Any = None, cond: Any = None, *, key: Key[Array, " B"] | None = None
    ) -> Float[Array, "B outputs"]:
        """The logits of images in [-1, 1], in at least float32.

        Args:
            x: Images.
            t: Unused; part of the protocol of networks.
            cond: Not taken.
            key: Unused; part of the protocol of networks.

        Raises:
            ValueError: A condition is given, or the network is an encoder alone.
        """
        if cond is not None:
            raise ValueError("a ViT takes no condition")
        if self.head is None:
            raise ValueError("this ViT is an encoder alone: build it with outputs=, the number of classes")
        return at_least_single(self.head(jnp.mean(self.encode((x + 1) / 2), axis=(1, 2)).astype(self.dtype)))

    def _embedded(self, x: Float[Array, "B H W C"]) -> Float[Array, "B N width"]:
        """Class token, registers and patches."""
        mean, std = (jnp.asarray(values, x.dtype).reshape(1, 1, 1, -1) for values in (self.mean, self.std))
        x = (x - mean) / std
        if self.resize is not None and x.shape[1] != self.resize:
            x = resized(x, (self.resize, self.resize), antialias=False)
        h = per_token(self.embed, to_patches(x.astype(self.dtype), self.patch_size))
        positions = at_least_single(self.positions[...])[None]
        if self.table_grid != self.grid:
            positions = resized(positions, self.grid, antialias=True)
        h = h + positions.reshape(1, -1, h.shape[-1]).astype(h.dtype)
        tokens = [(self.token[...] + self.token_position[...])[None]]
        if self.registers is not None:
            tokens.append(self.registers[...])
        front = jnp.concatenate(tokens).astype(h.dtype)
        return jnp.concatenate([jnp.broadcast_to(front[None], (len(h), *front.shape)), h], axis=1)

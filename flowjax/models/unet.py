"""Convolutional U-Net with adaptive group normalisation and attention at chosen resolutions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from flowjax._checks import COUNT, real, sizes, whole
from flowjax.facts import fact
from flowjax.models.attention import attend, check_implementation
from flowjax.models.embeddings import Condition, TimeEmbedding, embed_times
from flowjax.models.layers import beside, check_dropout, check_input, conv, dense, drop, layer_keys, named
from flowjax.models.remat import check_remat, recomputed
from flowjax.paths.base import at_least_single

_ZERO = nnx.initializers.zeros_init()


def halve(h: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
    """Means of 2 x 2 pixels."""
    batch, rows, columns, channels = h.shape
    return jnp.mean(h.reshape(batch, rows // 2, 2, columns // 2, 2, channels), axis=(2, 4))


def double(h: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Every pixel as 2 x 2 equal ones."""
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)


_RESAMPLE = {"halve": halve, "double": double, None: lambda h: h}


class GroupNorm(nnx.Module):
    """Normalises groups of neighbouring channels over an image or a grid, in float32 or better; scales, shifts them.

    (h - mean) / sqrt(variance + eps) over the pixels and channels of a group, times a scale plus a shift per channel.

    Reference: Wu and He (1803.08494).

    Example:
        >>> import jax.numpy as jnp
        >>> norm = GroupNorm(4, 2, "embed", jnp.float32)
        >>> norm(jnp.array([1.0, 3.0, 10.0, 30.0]).reshape(1, 1, 1, 4)).round(2).tolist()
        [[[[-1.0, 1.0, -1.0, 1.0]]]]
    """

    def __init__(self, channels: int, groups: int, axis: str | None, param_dtype: Any, eps: float = 1e-5):
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones(channels, param_dtype), **named(axis))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype), **named(axis))

    def __call__(self, h: Float[Array, "B *pixels C"]) -> Float[Array, "B *pixels C"]:
        """Applies the layer."""
        grouped = at_least_single(h).reshape(h.shape[0], -1, self.groups, h.shape[-1] // self.groups)
        centred = grouped - jnp.mean(grouped, axis=(1, 3), keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=(1, 3), keepdims=True) + self.eps)
        scale, bias = (a[...].astype(h.dtype).reshape(*(1,) * (h.ndim - 1), -1) for a in (self.scale, self.bias))
        return normal.reshape(h.shape).astype(h.dtype) * scale + bias


class Attention(nnx.Module):
    """Residual self-attention over the pixels; starts as the identity.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"dtype": jnp.float32, "param_dtype": jnp.float32}
        >>> layer = nnx.eval_shape(lambda: Attention(8, 4, 2, "xla", rngs=nnx.Rngs(0), **options))
        >>> layer.qkv.kernel.shape  # channels to queries, keys and values of two heads
        (8, 3, 2, 4)
    """

    def __init__(self, channels: int, head: int, groups: int, attention: str, eps: float = 1e-5, **options: Any):
        self.attention = attention
        self.norm = GroupNorm(channels, groups, "embed", options["param_dtype"], eps)
        self.qkv = dense(channels, (3, channels // head, head), ("embed", None, "heads", None), **options)
        self.project = dense((channels // head, head), channels, ("heads", None, "embed"), init=_ZERO, **options)

    def __call__(self, h: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the layer."""
        tokens = self.norm(h).reshape(h.shape[0], -1, h.shape[-1])
        q, k, v = jnp.moveaxis(self.qkv(tokens), 2, 0)
        return h + self.project(attend(q, k, v, self.attention)).reshape(h.shape)


class Block(nnx.Module):
    """A residual block, with attention behind it where `head` is given; see `UNet` for the formulas.

    Without `conditions` there is no c, and a = b = 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"dtype": jnp.float32, "param_dtype": jnp.float32}
        >>> build = lambda: Block(8, 16, None, 4, "xla", resample="halve", rngs=nnx.Rngs(0), **options)
        >>> jax.eval_shape(lambda h: build()(h), jnp.ones((1, 8, 8, 8))).shape
        (1, 4, 4, 16)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        conditions: int | None,
        groups: int,
        attention: str,
        head: int | None = None,
        resample: str | None = None,
        dropout: float = 0.0,
        eps: float = 1e-5,
        **options: Any,
    ):
        self.resample, self.dropout = resample, dropout
        self.norm1 = GroupNorm(inputs, groups, "embed", options["param_dtype"], eps)
        self.conv1 = conv(inputs, outputs, 3, ("embed", "mlp"), **options)
        names = ("embed", None, "mlp")
        self.modulation = None if conditions is None else dense(conditions, (2, outputs), names, **options)
        self.norm2 = GroupNorm(outputs, groups, "mlp", options["param_dtype"], eps)
        self.conv2 = conv(outputs, outputs, 3, ("mlp", "embed"), init=_ZERO, **options)
        self.skip = None if inputs == outputs else conv(inputs, outputs, 1, ("embed", None), **options)
        self.attend = None if head is None else Attention(outputs, head, groups, attention, eps, **options)

    def __call__(
        self, h: Float[Array, "B H W C"], c: Float[Array, "B cond"] | None = None, keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B rows columns out"]:
        """Applies the block; `c` has gone through SiLU already."""
        resample = _RESAMPLE[self.resample]
        inner = self.norm2(self.conv1(resample(jax.nn.silu(self.norm1(h)))))
        if self.modulation is not None:
            shift, scale = jnp.moveaxis(self.modulation(c), 1, 0)[:, :, None, None]
            inner = inner * (1 + scale) + shift
        inner = self.conv2(drop(jax.nn.silu(inner), self.dropout, keys))
        h = resample(h)
        h = (h if self.skip is None else self.skip(h)) + inner
        return h if self.attend is None else self.attend(h)


def _apply(block: Block, h: Array, c: Array, keys: Array | None) -> Array:
    return block(h, c, keys)


@fact(
    "network",
    "unet",
    "convolutional U-Net for images",
    example=lambda: {
        "image_shape": (8, 8, 1),
        "channels": 8,
        "multipliers": (1,),
        "groups": 2,
        "attention_at": (),
        "head": 8,
    },
)
class UNet(nnx.Module):
    """U-Net for images (B, H, W, C).

    A residual block is h <- skip(h) + conv2(silu((1 + a) * norm2(conv1(silu(norm1(h)))) + b)), with (b, a) affine in
    silu(c) and c made from the time, the optional span end and the condition. Between levels a residual block halves or
    doubles the image, averaging 2 x 2 pixels or repeating them, in front of conv1 and on the skip. Where a block
    attends, h <- h + project(attention(norm3(h))) over all pixels follows. Every block of the way up takes the stored
    result of the way down as further channels.

    The network computes in `dtype` (normalisations and softmax in at least float32), stores its parameters in
    `param_dtype` and answers in the type of x. Kernels start Glorot-uniform with zero bias, embeddings as
    N(0, 0.02^2); the second convolution of every block, the projection of attention and the output start at zero. Times
    in [0, 1] enter as sines and cosines of angular frequency at most `time_scale`.

    References:
        Ho et al. (2020), Denoising Diffusion Probabilistic Models, appendix B, arXiv:2006.11239.
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis, section 3, arXiv:2105.05233.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"blocks": 1, "attention_at": (4,), "head": 8, "groups": 4}
        >>> network = nnx.eval_shape(lambda: UNet((8, 8, 3), 8, (1, 2), **options, rngs=nnx.Rngs(0)))
        >>> jax.eval_shape(UNet.__call__, network, jnp.ones((2, 8, 8, 3)), jnp.full((2,), 0.5)).shape
        (2, 8, 8, 3)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_at: Sequence[int] = (16,),
        head: int = 64,
        num_classes: int | None = None,
        cond_dim: int | None = None,
        *,
        groups: int = 32,
        out_channels: int | None = None,
        second_time: bool = False,
        guidance: bool = False,
        velocity: bool = False,
        time_scale: float = 100.0,
        dropout: float = 0.0,
        attention: str = "xla",
        remat: bool | str = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            image_shape: (H, W, C).
            channels: Channels of the first level; the vector c has four times as many entries.
            multipliers: Channels of each level over `channels`; each level halves H and W.
            blocks: Residual blocks of a level on the way down; one more on the way up.
            attention_at: Heights of the levels whose blocks attend; one attention lies in the middle in any case.
            head: Channels of one attention head.
            num_classes: Number of classes; label `num_classes` means "no class".
            cond_dim: Size of a condition vector; with `num_classes` too, conditions are {"label": ...,
                "vector": ...}.
            groups: Groups of a normalisation.
            out_channels: Channels of the answer; C unless given.
            second_time: Whether the network takes the end of a span (flow maps).
            guidance: Whether the network takes a scale of guidance; at the start it makes no difference.
            velocity: Whether the network takes a velocity beside x (the refiner of FlowTurbo), as further channels.
            time_scale: Highest angular frequency of the time features, radians per unit of time.
            dropout: Probability in [0, 1) that a hidden value is dropped, in calls with `key=`.
            attention: "xla", "dot_product" or "cudnn"; the last has no forward derivative (see
                `flowjax.models.attention`).
            remat: Whether the backward pass recomputes the blocks instead of storing their insides, or the name of what
                they store (see `flowjax.models.remat`).
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, the image cannot be halved often enough, `groups` or `head`
                does not divide the channels, no level has a height of `attention_at`, or the implementation of
                attention is unknown or cannot compute in `dtype`.
        """
        sizes(3, image_shape=image_shape)
        sizes(multipliers=multipliers)
        whole(COUNT, channels=channels, head=head, groups=groups)
        whole(COUNT, out_channels=1 if out_channels is None else out_channels)
        whole("[0, 10000]", blocks=blocks)
        real("(0, inf)", time_scale=time_scale)
        rows, columns, pixels = image_shape
        widths = [channels * m for m in multipliers]
        heights = [rows >> level for level in range(len(widths))]
        factor = 2 ** (len(widths) - 1)
        if rows % factor or columns % factor:
            raise ValueError(f"an image of {rows} x {columns} pixels cannot be halved {len(widths) - 1} times")
        if any(width % groups for width in [channels, *widths]):
            raise ValueError(f"groups={groups} does not divide the channels {widths}")
        if set(attention_at) - set(heights):
            raise ValueError(f"attention_at={tuple(attention_at)} is not among the heights {heights} of the levels")
        attending = [w for w, height in zip(widths, heights) if height in attention_at] + widths[-1:]
        if any(width % head for width in attending):
            raise ValueError(f"head={head} does not divide the channels {attending} of the levels that attend")
        self.image_shape, self.dtype = (rows, columns, pixels), dtype
        self.remat, self.out_channels, self.dropout = check_remat(remat), out_channels or pixels, dropout
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conditions = 4 * channels
        self.time = TimeEmbedding(conditions, scale=time_scale, features=channels, **options)
        self.span = TimeEmbedding(conditions, scale=time_scale, features=channels, **options) if second_time else None
        self.strength = (
            TimeEmbedding(conditions, scale=time_scale, features=channels, zero=True, **options) if guidance else None
        )
        self.condition = Condition(conditions, num_classes, cond_dim, **options)
        shared = options | {
            "conditions": conditions,
            "groups": groups,
            "attention": check_implementation(attention, dtype),
            "dropout": check_dropout(dropout),
        }

        self.refines = velocity
        self.embed = conv(2 * pixels if velocity else pixels, channels, 3, (None, "embed"), **options)
        down, up, kept, width = [], [], [channels], channels
        heads = [head if height in attention_at else None for height in heights]
        for level, target in enumerate(widths):
            for _ in range(blocks):
                down.append(Block(width, target, head=heads[level], **shared))
                kept.append(width := target)
            if level < len(widths) - 1:
                down.append(Block(width, width, resample="halve", **shared))
                kept.append(width)
        middle = [Block(width, width, head=head, **shared), Block(width, width, **shared)]
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                up.append(Block(width + kept.pop(), target, head=heads[level], **shared))
                width = target
            if level:
                up.append(Block(width, width, resample="double", **shared))
        self.down, self.middle, self.up = nnx.data(down), nnx.data(middle), nnx.data(up)
        self.norm = GroupNorm(width, groups, "embed", param_dtype)
        self.unembed = conv(width, self.out_channels, 3, ("embed", None), init=_ZERO, **options)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        cond: Any = None,
        end: Float[Array, " B"] | None = None,
        key: Key[Array, "..."] | None = None,
        guidance: Float[Array, " B"] | None = None,
        velocity: Float[Array, "B ..."] | None = None,
    ) -> Float[Array, "B H W out"]:
        """Evaluates the network.

        Args:
            x: Noisy images.
            t: Times in [0, 1].
            cond: Labels, vectors or both (see `Condition`); None is the null condition.
            end: Ends of the spans, in [t, 1]; None means t. Only with `second_time`.
            key: One key per example, (B,); with them, and `dropout` above 0, values are dropped.
            guidance: Scales of guidance, (B,), at least 0; None means 1. Only with `guidance`.
            velocity: A velocity, of the shape of x. With `velocity`, and only then.

        Raises:
            ValueError: Shapes do not fit, or a condition or an end is given to a network built without it.
        """
        check_input(x, self.image_shape, t)
        apply = recomputed(_apply, self.remat)
        with jax.named_scope("embed"):
            h = self.embed(beside(self, x, velocity).astype(self.dtype))
            c = jax.nn.silu(embed_times(self, t, end, guidance) + self.condition(cond, x.shape[0]))
        keys = iter(layer_keys(key, x.shape[0], len(self.down) + len(self.middle) + len(self.up)))
        kept = [h]
        for index, block in enumerate(self.down):
            with jax.named_scope(f"down{index}"):
                h = apply(block, h, c, next(keys))
                kept.append(h)
        for index, block in enumerate(self.middle):
            with jax.named_scope(f"middle{index}"):
                h = apply(block, h, c, next(keys))
        for index, block in enumerate(self.up):
            with jax.named_scope(f"up{index}"):
                if block.resample is None:
                    h = jnp.concatenate([h, kept.pop()], axis=-1)
                h = apply(block, h, c, next(keys))
        with jax.named_scope("unembed"):
            return self.unembed(jax.nn.silu(self.norm(h))).astype(x.dtype)

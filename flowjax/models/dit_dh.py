"""Diffusion transformer with a wide and shallow head, for latents of many channels (DiT^DH)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax._checks import COUNT, choose, real, sizes, whole
from flowjax.facts import fact
from flowjax.models.attention import attend, check_implementation
from flowjax.models.dit import positions
from flowjax.models.embeddings import Condition, FourierEmbedding, embed_times
from flowjax.models.layers import (
    DEPTH,
    check_input,
    check_patches,
    dense,
    from_patches,
    per_token,
    rms_norm,
    to_patches,
)
from flowjax.models.remat import check_remat, recomputed
from flowjax.models.stacks import build_stacked, run_blocks
from flowjax.models.token_dit import rotate, turns

_HEAD = {"head_width": 2048, "head_depth": 2, "head_heads": 16}
SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6} | _HEAD,
    "B": {"width": 768, "depth": 12, "heads": 12} | _HEAD,
    "XL": {"width": 1152, "depth": 28, "heads": 16} | _HEAD,
}
"""Published sizes."""

_ZERO = nnx.initializers.zeros_init()


def plane_turns(rows: int, columns: int, size: int) -> Float[np.ndarray, "tokens half"]:
    """Angles of rotary codes of places in a plane: the first half of `size` numbers turns by the row of a token."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.concatenate([turns(axis.ravel(), size // 2) for axis in (row, column)], axis=1)


def _modulate(h: Array, shift: Array, scale: Array) -> Array:
    return h * (1 + scale) + shift


class WideBlock(nnx.Module):
    """One transformer block, modulated as a whole or token by token; see `DiTDH` for its formula.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        >>> block, h = WideBlock(16, 2, 32, **options), jnp.ones((1, 4, 16))
        >>> bool(jnp.array_equal(block(h, h, plane_turns(2, 2, 8)), h))  # it starts as the identity
        True
    """

    def __init__(self, width: int, heads: int, hidden: int, attention: str = "xla", **options: Any):
        self.attention, head = attention, width // heads
        self.norms = nnx.data([rms_norm(width, "embed", **options) for _ in range(2)])
        self.qkv = dense(width, (3, heads, head), ("embed", None, "heads", None), **options)
        self.project = dense((heads, head), width, ("heads", None, "embed"), **options)
        self.inner = dense(width, (2, hidden), ("embed", None, "mlp"), **options)
        self.outer = dense(hidden, width, ("mlp", "embed"), **options)
        self.modulation = dense(width, (6, width), ("embed", None, None), init=_ZERO, **options)

    def __call__(
        self,
        h: Float[Array, "B N width"],
        c: Float[Array, "B M width"],
        angles: Float[np.ndarray, "N half"],
    ) -> Float[Array, "B N width"]:
        """Applies the block; `c` is one vector for each token, or one for all."""
        parts = jnp.moveaxis(per_token(self.modulation, jax.nn.silu(c)), 2, 0)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        with jax.named_scope("attention"):
            q, k, v = jnp.moveaxis(per_token(self.qkv, _modulate(self.norms[0](h), shift1, scale1)), 2, 0)
            attended = attend(rotate(q, angles), rotate(k, angles), v, self.attention)
            h = h + gate1 * per_token(self.project, attended)
        with jax.named_scope("mlp"):
            gate, value = jnp.moveaxis(per_token(self.inner, _modulate(self.norms[1](h), shift2, scale2)), 2, 0)
            return h + gate2 * per_token(self.outer, jax.nn.silu(gate) * value)


@fact(
    "network",
    "dit_dh",
    "transformer with a wide shallow head, for latents of many channels",
    cite="zheng2025diffusion",
    example=lambda: {
        "image_shape": (4, 4, 2),
        "width": 8,
        "depth": 1,
        "heads": 1,
        "head_width": 16,
        "head_depth": 1,
        "head_heads": 2,
    },
)
class DiTDH(nnx.Module):
    """Diffusion transformer for latents (B, H, W, C) with more channels than a narrow network can pass through.

    A trunk of narrow blocks makes a condition of its own for every token; a head, few blocks as wide as the latents
    need, sees the latents again and is modulated by it. With p the patches and m the embedding of time and span,

        c = silu(m + class),        s = trunk(W_s p + positions, c),
        s <- W silu(m + s),         h = head(W_h p, s),         answer = W_o ((1 + a) * rms(h) + b).

    Blocks of both are h <- h + g1 * attention((1 + a1) * rms(h) + b1), h <- h + g2 * W2 (silu(W1 h') * W3 h') with
    h' = (1 + a2) * rms(h) + b2, where (b, a, g) are affine in silu(c), one vector for all tokens of the trunk, and in
    silu(s) in the head. (c has then gone through silu twice, as in the authors' program.) Queries and keys carry rotary
    codes of row and column. These affine maps and W_o start at zero, so every block starts as the identity and the
    network as the zero function; W is left out where both parts are equally wide.

    The network computes in `dtype` (normalisations, softmax and time features in at least float32), stores its
    parameters in `param_dtype` and answers in the type of x. Dense layers start Glorot-uniform with zero bias, those of
    embeddings as N(0, 0.02^2). A network with `second_time` has one embedding more, of the span e - t, and starts from
    the weights of one without: by default exactly as that.

    References:
        Zheng et al. (2025), Diffusion Transformers with Representation Autoencoders, section 5, arXiv:2510.11690.
        Hu et al. (2025), MeanFlow Transformers with Representation Autoencoders, arXiv:2511.13019 (the span).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> sizes = {"width": 16, "depth": 2, "heads": 2, "head_width": 32, "head_depth": 1, "head_heads": 2}
        >>> network = nnx.eval_shape(lambda: DiTDH((4, 4, 8), **sizes, num_classes=10, rngs=nnx.Rngs(0)))
        >>> jax.eval_shape(DiTDH.__call__, network, jnp.ones((3, 4, 4, 8)), jnp.full((3,), 0.5), jnp.arange(3)).shape
        (3, 4, 4, 8)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        width: int,
        depth: int,
        heads: int,
        head_width: int,
        head_depth: int,
        head_heads: int,
        num_classes: int | None = None,
        cond_dim: int | None = None,
        *,
        patch: int = 1,
        mlp_ratio: float = 4.0,
        out_channels: int | None = None,
        second_time: bool = False,
        zero_span: bool = True,
        time_scale: float = 1.0,
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
            width: Width of a token in the trunk; a multiple of 4 x `heads`.
            depth: Number of blocks of the trunk.
            heads: Number of its attention heads.
            head_width: Width of a token in the head, at least C at best; a multiple of 4 x `head_heads`.
            head_depth: Number of blocks of the head.
            head_heads: Number of its attention heads.
            num_classes: Number of classes; label `num_classes` means "no class".
            cond_dim: Size of a condition vector; with `num_classes` too, conditions are {"label": ...,
                "vector": ...}.
            patch: Side of a square patch; divides H and W. Published networks on latents have 1.
            mlp_ratio: Feed-forward layers are 2/3 of this times as wide as a token.
            out_channels: Channels of the answer; C unless given.
            second_time: Whether the network takes the end of a span (flow maps).
            zero_span: Whether the last layer of the span's embedding starts at zero; False is its published start.
            time_scale: Standard deviation of the frequencies of times, in periods per unit of time.
            attention: "xla", "dot_product" or "cudnn"; the last has no forward derivative (see
                `flowjax.models.attention`).
            remat: Whether the backward pass recomputes the blocks instead of storing their insides, or the name of what
                they store (see `flowjax.models.remat`).
            scan: Whether the blocks of each part are stacked and run by one compiled loop.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, `patch` does not divide the image, a width does not fit its
                heads, or the implementation of attention is unknown or cannot compute in `dtype`.
        """
        sizes(3, image_shape=image_shape)
        rows, columns, channels = image_shape
        whole(COUNT, patch=patch, width=width, heads=heads, head_width=head_width, head_heads=head_heads)
        whole(COUNT, out_channels=channels if out_channels is None else out_channels)
        whole(DEPTH, depth=depth, head_depth=head_depth)
        real("(0, inf)", mlp_ratio=mlp_ratio, time_scale=time_scale)
        check_patches(image_shape, patch)
        for name, size, count in (("", width, heads), ("head_", head_width, head_heads)):
            if size % (4 * count):
                raise ValueError(f"{name}width={size} must be a multiple of 4 x {name}heads={4 * count}")
            if int(2 / 3 * int(mlp_ratio * size)) < 1:
                raise ValueError(f"mlp_ratio={mlp_ratio} leaves the feed-forward layers of {name}width={size} empty")
        self.image_shape, self.patch, self.dtype = (rows, columns, channels), patch, dtype
        self.remat, self.scan, self.out_channels = check_remat(remat), scan, out_channels or channels
        self.shapes = (width // heads, head_width // head_heads)
        attention = check_implementation(attention, dtype)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        pixels = patch * patch * channels
        self.time = FourierEmbedding(width, scale=time_scale, **options)
        self.condition = Condition(width, num_classes, cond_dim, **options)

        def blocks(size: int, count: int, depth: int) -> Any:
            hidden = int(2 / 3 * int(mlp_ratio * size))

            def block(rngs: nnx.Rngs) -> WideBlock:
                return WideBlock(size, count, hidden, attention, **(options | {"rngs": rngs}))

            return build_stacked(block, depth, rngs) if scan else nnx.data([block(rngs) for _ in range(depth)])

        self.embed = dense(pixels, width, ("patch", "embed"), **options)
        self.blocks = blocks(width, heads, depth)
        same = width == head_width
        self.widen = None if same else dense(width, head_width, (None, "embed"), **options)
        self.embed_again = dense(pixels, head_width, ("patch", "embed"), **options)
        self.head_blocks = blocks(head_width, head_heads, head_depth)
        self.norm = rms_norm(head_width, "embed", **options)
        self.modulation = dense(head_width, (2, head_width), ("embed", None, None), init=_ZERO, **options)
        self.unembed = dense(head_width, patch**2 * self.out_channels, ("embed", "patch"), init=_ZERO, **options)
        # Last, so that all other initial values are those of a network without.
        span = FourierEmbedding(width, scale=time_scale, zero=zero_span, **options) if second_time else None
        self.span, self.strength = span, None

    @staticmethod
    def size(name: str) -> dict[str, int]:
        """Widths, depths and heads of a published size, "S", "B" or "XL", a name of `SIZES`.

        Example:
            >>> DiTDH.size("XL")["head_width"]
            2048

        Raises:
            ValueError: The size is unknown.

        References:
            Zheng et al. (2025), arXiv:2510.11690; the published latents (16, 16, 768) have patch 1.
        """
        return SIZES[choose("size", name, SIZES)]

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        cond: Any = None,
        end: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B H W out"]:
        """Evaluates the network.

        Args:
            x: Noisy latents.
            t: Times in [0, 1]; derivatives by differences may ask a little beyond.
            cond: Labels, vectors or both (see `Condition`); None is the null condition.
            end: Ends of the spans, in [t, 1], or a little before t likewise; None means t. Only with `second_time`.

        Raises:
            ValueError: Shapes do not fit, or a condition or an end is given to a network built without it.
        """
        check_input(x, self.image_shape, t)
        rows, columns = (side // self.patch for side in self.image_shape[:2])
        trunk, head = (self._apply(plane_turns(rows, columns, size)) for size in self.shapes)
        with jax.named_scope("embed"):
            patches = to_patches(x.astype(self.dtype), self.patch)
            s = per_token(self.embed, patches)
            # Columns come first in the codes of the published weights.
            codes = np.roll(positions(rows, columns, s.shape[-1]), s.shape[-1] // 2, axis=1)
            s = s + jnp.asarray(codes, s.dtype)[None]
            times = embed_times(self, t, end, None)
            c = jax.nn.silu(times + self.condition(cond, len(x)))[:, None]
        s = run_blocks(self.blocks, lambda block, s, key: trunk(block, s, c), s)
        with jax.named_scope("widen"):
            s = jax.nn.silu(times[:, None] + s)
            s = s if self.widen is None else per_token(self.widen, s)
            h = per_token(self.embed_again, patches)
        h = run_blocks(self.head_blocks, lambda block, h, key: head(block, h, s), h, name="head_block")
        with jax.named_scope("unembed"):
            shift, scale = jnp.moveaxis(per_token(self.modulation, jax.nn.silu(s)), 2, 0)
            answer = per_token(self.unembed, _modulate(self.norm(h), shift, scale))
            return from_patches(answer, self.image_shape, self.patch).astype(x.dtype)

    def _apply(self, angles: np.ndarray) -> Any:
        """A block of one part as a function (block, h, c) -> h, recomputed in the backward pass if asked."""
        return recomputed(lambda block, h, c: block(h, c, angles), self.remat, self.scan)

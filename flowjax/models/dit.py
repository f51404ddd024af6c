"""Diffusion transformer with adaLN-zero conditioning.

Patches of the image are tokens; a vector c made from the time, the optional span end and the condition
modulates every block: h <- h + g1 * attention((1 + a1) * norm(h) + b1), h <- h + g2 * mlp((1 + a2) * norm(h)
+ b2), with (b, a, g) affine in silu(c). These affine maps and the output layer start at zero, so every block
starts as the identity and the network as the zero function.

References:
    Peebles and Xie (2022), Scalable Diffusion Models with Transformers, section 3.2, arXiv:2212.09748.
    Geng et al. (2025), Mean Flows for One-step Generative Modeling, arXiv:2505.13447 (embedding of t and of
    the span).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax.models.layers import Condition, TimeEmbedding, check_input, dense, embed_times

_ZERO = nnx.initializers.zeros_init()


def positions(rows: int, columns: int, width: int) -> Float[np.ndarray, "tokens width"]:
    """Fixed sine-cosine position codes: a quarter of the width for sin and cos of row and column each."""
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [np.outer(axis.ravel(), frequencies) for axis in (row, column)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=-1)


def _norm(h: Float[Array, "B N width"]) -> Float[Array, "B N width"]:
    """Layer normalisation without parameters, in float32."""
    h32 = h.astype(jnp.float32)
    centred = h32 - jnp.mean(h32, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)).astype(h.dtype)


def _modulate(h: Array, shift: Array, scale: Array) -> Array:
    return _norm(h) * (1 + scale)[:, None] + shift[:, None]


def _per_token(layer: nnx.LinearGeneral, h: Array) -> Array:
    """A dense layer on (B, N, ...) as one matrix product; the batched form's gradients take twice as long."""
    return layer(h.reshape(-1, *h.shape[2:])).reshape(*h.shape[:2], *layer.out_features)


def _attention(q: Array, k: Array, v: Array) -> Array:
    """Softmax attention of (B, N, heads, head) arrays; plain sums, since fused kernels have no jvp."""
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


class Block(nnx.Module):
    """One transformer block; see the module's formula."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, **options: Any):
        head, hidden = width // heads, round(mlp_ratio * width)
        self.qkv = dense(width, (3, heads, head), ("embed", None, "heads", None), **options)
        self.project = dense((heads, head), width, ("heads", None, "embed"), **options)
        self.inner = dense(width, hidden, ("embed", "mlp"), **options)
        self.outer = dense(hidden, width, ("mlp", "embed"), **options)
        self.modulation = dense(width, (6, width), ("embed", None, None), init=_ZERO, **options)

    def __call__(self, h: Float[Array, "B N width"], c: Float[Array, "B width"]) -> Float[Array, "B N width"]:
        """Applies the block; `c` has gone through SiLU already."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(self.modulation(c), 1, 0)
        with jax.named_scope("attention"):
            q, k, v = jnp.moveaxis(_per_token(self.qkv, _modulate(h, shift1, scale1)), 2, 0)
            attended = _attention(q, k, v)
            h = h + gate1[:, None] * _per_token(self.project, attended)
        with jax.named_scope("mlp"):
            hidden = jax.nn.gelu(_per_token(self.inner, _modulate(h, shift2, scale2)))
            h = h + gate2[:, None] * _per_token(self.outer, hidden)
        return h


class DiT(nnx.Module):
    """Diffusion transformer for images (B, H, W, C).

    The network computes in `dtype` (normalisations and softmax in float32), stores its parameters in
    `param_dtype` and answers in the type of x. Dense layers start Glorot-uniform with zero bias, embeddings
    as N(0, 0.02^2), modulations and the output layer at zero. Times in [0, 1] enter as sines and cosines of
    angular frequency at most `time_scale`.

    With width w, depth L, hidden width m = mlp_ratio w, p = patch^2 C, n classes and E = 2 with
    `second_time`, else 1, the number of parameters is L (10 w^2 + 2 w m + 11 w + m) + E (257 w + w^2 + w) +
    (n + 1) w + 2 w^2 + 4 w + 2 p w + p.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = DiT((8, 8, 1), patch=2, width=32, depth=2, heads=2, num_classes=10, rngs=nnx.Rngs(0))
        >>> network(jnp.ones((4, 8, 8, 1)), jnp.full((4,), 0.5), jnp.arange(4)).shape
        (4, 8, 8, 1)

    References:
        Peebles and Xie (2022), Scalable Diffusion Models with Transformers, arXiv:2212.09748.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        patch: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int | None = None,
        cond_dim: int | None = None,
        *,
        mlp_ratio: float = 4.0,
        second_time: bool = False,
        time_scale: float = 100.0,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            image_shape: (H, W, C).
            patch: Side of a square patch in pixels; divides H and W.
            width: Width of a token; a multiple of 4 and of `heads`.
            depth: Number of blocks.
            heads: Number of attention heads.
            num_classes: Number of classes; label `num_classes` means "no class".
            cond_dim: Size of a condition vector; with `num_classes` too, conditions are {"label": ...,
                "vector": ...}.
            mlp_ratio: Hidden width of the feed-forward layers over `width`.
            second_time: Whether the network takes the end of a span (flow maps).
            time_scale: Highest angular frequency of the time features, radians per unit of time.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: `patch` does not divide the image, or `heads` or 4 does not divide `width`.
        """
        rows, columns, channels = image_shape
        if rows % patch or columns % patch:
            raise ValueError(f"patch={patch} does not divide an image of {rows} x {columns} pixels")
        if width % heads or width % 4:
            raise ValueError(f"width={width} must be a multiple of 4 and of heads={heads}")
        self.image_shape, self.patch, self.dtype = (rows, columns, channels), patch, dtype
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        pixels = patch * patch * channels
        self.embed = dense(pixels, width, ("patch", "embed"), **options)
        self.time = TimeEmbedding(width, scale=time_scale, **options)
        self.span = TimeEmbedding(width, scale=time_scale, **options) if second_time else None
        self.condition = Condition(width, num_classes, cond_dim, **options)
        self.blocks = nnx.List([Block(width, heads, mlp_ratio, **options) for _ in range(depth)])
        self.modulation = dense(width, (2, width), ("embed", None, None), init=_ZERO, **options)
        self.unembed = dense(width, pixels, ("embed", "patch"), init=_ZERO, **options)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        cond: Any = None,
        end: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Evaluates the network.

        Args:
            x: Noisy images.
            t: Times in [0, 1].
            cond: Labels, vectors or both (see `Condition`); None is the null condition.
            end: Ends of the spans, in [t, 1]; None means t. Only with `second_time`.

        Raises:
            ValueError: Shapes do not fit, or a condition or an end is given to a network built without it.
        """
        check_input(x, self.image_shape, t)
        (height, breadth, channels), p = self.image_shape, self.patch
        batch, rows, columns = x.shape[0], height // p, breadth // p
        with jax.named_scope("embed"):
            patches = x.astype(self.dtype).reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
            h = _per_token(self.embed, patches.reshape(batch, rows * columns, p * p * channels))
            h = h + jnp.asarray(positions(rows, columns, h.shape[-1]), h.dtype)[None]
            c = embed_times(self.time, self.span, t, end) + self.condition(cond, batch)
            c = jax.nn.silu(c)
        for index, block in enumerate(self.blocks):
            with jax.named_scope(f"block{index}"):
                h = block(h, c)
        with jax.named_scope("unembed"):
            shift, scale = jnp.moveaxis(self.modulation(c), 1, 0)
            patches = _per_token(self.unembed, _modulate(h, shift, scale))
            y = patches.reshape(batch, rows, columns, p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(x.shape).astype(x.dtype)

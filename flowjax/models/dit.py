"""Diffusion transformer with adaLN-zero conditioning."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from flowjax._checks import COUNT, choose, real, sizes, whole
from flowjax.facts import fact
from flowjax.models.attention import attend, check_implementation
from flowjax.models.embeddings import Condition, TimeEmbedding, embed_times
from flowjax.models.layers import (
    DEPTH,
    beside,
    check_dropout,
    check_input,
    check_patches,
    dense,
    drop,
    from_patches,
    layer_keys,
    normalize,
    per_token,
    to_patches,
)
from flowjax.models.remat import check_remat, recomputed
from flowjax.models.stacks import build_stacked, by_block, run_blocks, run_cached, stack, unstack

_ZERO = nnx.initializers.zeros_init()

SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
"""Published sizes of DiT and SiT."""

PATCHES = (2, 4, 8)
"""Published sides of a patch."""


def positions(rows: int, columns: int, width: int) -> Float[np.ndarray, "tokens width"]:
    """Fixed sine-cosine position codes: a quarter of the width for sin and cos of row and column each."""
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [np.outer(axis.ravel(), frequencies) for axis in (row, column)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=-1)


def _modulate(h: Array, shift: Array, scale: Array) -> Array:
    return normalize(h) * (1 + scale)[:, None] + shift[:, None]


class Block(nnx.Module):
    """One transformer block; see `DiT` for its formula.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        >>> block = Block(16, 2, 4.0, **options)
        >>> block.qkv.kernel.shape, block.modulation.kernel.shape  # of attention, and of (b, a, g) twice
        ((16, 3, 2, 8), (16, 6, 16))
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, attention: str = "xla", dropout: float = 0.0, **options: Any
    ):
        self.attention, self.dropout = attention, dropout
        head, hidden = width // heads, round(mlp_ratio * width)
        self.qkv = dense(width, (3, heads, head), ("embed", None, "heads", None), **options)
        self.project = dense((heads, head), width, ("heads", None, "embed"), **options)
        self.inner = dense(width, hidden, ("embed", "mlp"), **options)
        self.outer = dense(hidden, width, ("mlp", "embed"), **options)
        self.modulation = dense(width, (6, width), ("embed", None, None), init=_ZERO, **options)

    def __call__(
        self,
        h: Float[Array, "B N width"],
        c: Float[Array, "B width"],
        keys: Key[Array, " B"] | None = None,
        perturbed: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B N width"]:
        """Applies the block; `c` has gone through SiLU already. Where `perturbed` is 1, attention is the identity."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(self.modulation(c), 1, 0)
        with jax.named_scope("attention"):
            q, k, v = jnp.moveaxis(per_token(self.qkv, _modulate(h, shift1, scale1)), 2, 0)
            attended = attend(q, k, v, self.attention)
            if perturbed is not None:
                attended = jnp.where(perturbed[:, None, None, None] > 0, v, attended)
            h = h + gate1[:, None] * per_token(self.project, attended)
        with jax.named_scope("mlp"):
            hidden = jax.nn.gelu(per_token(self.inner, _modulate(h, shift2, scale2)))
            h = h + gate2[:, None] * per_token(self.outer, drop(hidden, self.dropout, keys))
        return h


def _apply(block: Block, h: Array, c: Array, keys: Array | None, perturbed: Array | None) -> Array:
    return block(h, c, keys, perturbed)


@fact(
    "network",
    "dit",
    "diffusion transformer for images",
    cite="peebles2022scalable",
    example=lambda: {"image_shape": (4, 4, 1), "patch": 2, "width": 8, "depth": 1, "heads": 2},
)
class DiT(nnx.Module):
    """Diffusion transformer for images (B, H, W, C).

    Patches of the image are tokens; a vector c made from the time, the optional span end and the condition
    modulates every block: h <- h + g1 * attention((1 + a1) * norm(h) + b1), h <- h + g2 * mlp((1 + a2) * norm(h)
    + b2), with (b, a, g) affine in silu(c). These affine maps and the output layer start at zero, so every block
    starts as the identity and the network as the zero function.

    The network computes in `dtype` (normalisations and softmax in at least float32), stores its parameters in
    `param_dtype` and answers in the type of x. Dense layers start Glorot-uniform with zero bias, embeddings
    as N(0, 0.02^2), modulations and the output layer at zero. Times in [0, 1] enter as sines and cosines of
    angular frequency at most `time_scale`.

    With width w, depth L, hidden width m = mlp_ratio w, p = patch^2 C, n classes and E = 2 with
    `second_time`, else 1, the number of parameters is L (10 w^2 + 2 w m + 11 w + m) + E (257 w + w^2 + w) +
    (n + 1) w + 2 w^2 + 3 w + 2 p w + p.

    With `scan`, the blocks are one module whose parameters have a leading axis "layers", and a loop of the
    compiled program runs over it: the program is compiled once per block shape, not once per block. The same seed
    gives the same parameters in both layouts, and `with_scan` converts one into the other. With `remat`, the
    backward pass recomputes the inside of each block, so that only the tokens between blocks are stored, or some of it.

    References:
        Peebles and Xie (2022), Scalable Diffusion Models with Transformers, section 3.2, arXiv:2212.09748.
        Geng et al. (2025), Mean Flows for One-step Generative Modeling, arXiv:2505.13447 (embedding of t and of
        the span).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"patch": 2, "width": 32, "depth": 2, "heads": 2, "num_classes": 10}
        >>> network = nnx.eval_shape(lambda: DiT((8, 8, 1), **options, rngs=nnx.Rngs(0)))
        >>> jax.eval_shape(DiT.__call__, network, jnp.ones((4, 8, 8, 1)), jnp.full((4,), 0.5), jnp.arange(4)).shape
        (4, 8, 8, 1)
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
        out_channels: int | None = None,
        second_time: bool = False,
        guidance: bool = False,
        velocity: bool = False,
        time_scale: float = 100.0,
        dropout: float = 0.0,
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
            patch: Side of a square patch in pixels; divides H and W.
            width: Width of a token; a multiple of 4 and of `heads`.
            depth: Number of blocks.
            heads: Number of attention heads.
            num_classes: Number of classes; label `num_classes` means "no class".
            cond_dim: Size of a condition vector; with `num_classes` too, conditions are {"label": ...,
                "vector": ...}.
            mlp_ratio: Hidden width of the feed-forward layers over `width`.
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
            scan: Whether the blocks are stacked and run by one compiled loop.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, `patch` does not divide the image, `heads` or 4 does not
                divide `width`, or the implementation of attention is unknown or cannot compute in `dtype`.
        """
        sizes(3, image_shape=image_shape)
        whole(COUNT, patch=patch, width=width, heads=heads, out_channels=1 if out_channels is None else out_channels)
        whole(DEPTH, depth=depth)
        real("(0, inf)", mlp_ratio=mlp_ratio, time_scale=time_scale)
        if round(mlp_ratio * width) < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves the feed-forward layers of width={width} without units")
        rows, columns, channels = image_shape
        check_patches(image_shape, patch)
        if width % heads or width % 4:
            raise ValueError(f"width={width} must be a multiple of 4 and of heads={heads}")
        self.image_shape, self.patch, self.dtype = (rows, columns, channels), patch, dtype
        self.remat, self.scan, self.out_channels = check_remat(remat), scan, out_channels or channels
        self.depth, self.dropout = depth, check_dropout(dropout)
        attention = check_implementation(attention, dtype)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.refines, pixels = velocity, patch * patch * channels * (2 if velocity else 1)
        self.embed = dense(pixels, width, ("patch", "embed"), **options)
        self.time = TimeEmbedding(width, scale=time_scale, **options)
        self.span = TimeEmbedding(width, scale=time_scale, **options) if second_time else None
        self.strength = TimeEmbedding(width, scale=time_scale, zero=True, **options) if guidance else None
        self.condition = Condition(width, num_classes, cond_dim, **options)

        def block(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, mlp_ratio, attention, dropout, **(options | {"rngs": rngs}))

        self.blocks = build_stacked(block, depth, rngs) if scan else nnx.data([block(rngs) for _ in range(depth)])
        self.modulation = dense(width, (2, width), ("embed", None, None), init=_ZERO, **options)
        self.unembed = dense(width, patch**2 * self.out_channels, ("embed", "patch"), init=_ZERO, **options)

    @staticmethod
    def size(name: str) -> dict[str, int]:
        """Patch, width, depth and heads of a published size, for example "XL/2": a name of `SIZES` and a patch.

        The published networks differ in what does not change these numbers: time features of highest frequency
        1000 (DiT), and twice the channels in the answer (`out_channels=8` for latents of 4).

        Raises:
            ValueError: The size is unknown.

        References:
            Peebles and Xie (2022), table 1, arXiv:2212.09748. Ma et al. (2024), SiT, arXiv:2401.08740.
        """
        known = {f"{size}/{patch}": {"patch": patch} | SIZES[size] for size in SIZES for patch in PATCHES}
        if name not in known:
            raise ValueError(f"unknown size {name!r}; known: {', '.join(known)}")
        return known[name]

    @classmethod
    def preset(cls, name: str, image_shape: tuple[int, int, int], **options: Any) -> "DiT":
        """The network of a published size: `DiT(image_shape, **DiT.size(name), **options)`.

        Example:
            >>> import jax
            >>> from flax import nnx
            >>> options = {"num_classes": 1000, "out_channels": 8, "scan": True}
            >>> shapes = jax.eval_shape(lambda: DiT.preset("XL/2", (32, 32, 4), rngs=nnx.Rngs(0), **options))
            >>> sum(a.size for a in jax.tree.leaves(shapes))
            674834720

        Raises:
            ValueError: The size is unknown, or the options do not fit.
        """
        return cls(image_shape, **(cls.size(name) | options))

    def with_scan(self, scan: bool) -> "DiT":
        """The same network with its blocks stacked (True) or in a list (False); see the class.

        Works on anything with the structure of the network: gradients, averages, optimiser moments.
        """
        network = jax.tree.map(lambda leaf: leaf, self)
        if scan != self.scan:
            network.scan = scan
            network.blocks = stack(list(network.blocks)) if scan else nnx.data(unstack(network.blocks))
        return network

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        cond: Any = None,
        end: Float[Array, " B"] | None = None,
        key: Key[Array, "..."] | None = None,
        guidance: Float[Array, " B"] | None = None,
        velocity: Float[Array, "B ..."] | None = None,
        perturbed: Float[Array, "B blocks"] | None = None,
        tokens: Int[Array, "B kept"] | None = None,
        cache: Float[Array, "depth B N width"] | None = None,
    ) -> Any:
        """Evaluates the network.

        Args:
            x: Noisy images.
            t: Times in [0, 1].
            cond: Labels, vectors or both (see `Condition`); None is the null condition.
            end: Ends of the spans, in [t, 1]; None means t. Only with `second_time`.
            key: One key per example, (B,); with them, and `dropout` above 0, values are dropped.
            guidance: Scales of guidance, (B,), at least 0; None means 1. Only with `guidance`.
            velocity: A velocity, of the shape of x. With `velocity`, and only then.
            perturbed: 1 where attention passes the values of each token on as they are, 0 where not, for the first
                blocks of each example (`flowjax.guidance.PerturbedAttention`).
            tokens: With `cache`, the numbers of the tokens that the blocks compute, different ones for each example,
                row by row of patches; a block answers the others from its cache. Attention is among these tokens.
            cache: What the blocks answered before, from `block_cache` or the call before.

        Returns:
            The answer (B, H, W, out), and with `cache` also the next cache.

        Raises:
            ValueError: Shapes do not fit, or a condition or an end is given to a network built without it.
        """
        h, c = self._embedded(x, t, cond, end, guidance, velocity)
        apply = recomputed(_apply, self.remat, self.scan)
        keys = None if key is None else layer_keys(key, x.shape[0], self.depth)
        if cache is not None:
            if keys is not None or perturbed is not None:
                raise ValueError("tokens are cached when a network is sampled plainly: leave out key= and perturbed=")
            h, cache = run_cached(self.blocks, lambda block, h: apply(block, h, c, None, None), h, tokens, cache)
        else:
            cut = None if perturbed is None else by_block(perturbed, self.depth)
            h = run_blocks(self.blocks, lambda block, h, own: apply(block, h, c, *own), h, (keys, cut))
        with jax.named_scope("unembed"):
            shift, scale = jnp.moveaxis(self.modulation(c), 1, 0)
            y = from_patches(per_token(self.unembed, _modulate(h, shift, scale)), self.image_shape, self.patch)
        y = y.astype(x.dtype)
        return y if cache is None else (y, cache)

    def _embedded(
        self, x: Array, t: Array, cond: Any, end: Any = None, guidance: Any = None, velocity: Any = None
    ) -> tuple[Array, Array]:
        """The tokens that go into the first block, and what modulates all of them."""
        check_input(x, self.image_shape, t)
        with jax.named_scope("embed"):
            h = per_token(self.embed, to_patches(beside(self, x, velocity).astype(self.dtype), self.patch))
            h = h + jnp.asarray(positions(*self.token_grid, h.shape[-1]), h.dtype)[None]
            c = embed_times(self, t, end, guidance) + self.condition(cond, x.shape[0])
        return h, jax.nn.silu(c)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_shape[0] // self.patch, self.image_shape[1] // self.patch

    def block_cache(self, batch: int) -> Float[Array, "depth B N width"]:
        """Room for what all blocks answer to a batch; see `__call__`."""
        rows, columns = self.token_grid
        return jnp.zeros((self.depth, batch, rows * columns, self.embed.out_features[-1]), self.dtype)

    def probe(
        self, x: Float[Array, "B H W C"], t: Float[Array, " B"], cond: Any = None, what: str = "block"
    ) -> Float[Array, "B N width"]:
        """What caches of whole calls look at: a cheap part of the network, from the first block.

        Args:
            x: Noisy images.
            t: Times in [0, 1].
            cond: As for a call.
            what: "modulated", what goes into the first block after the modulation by time and condition, or "block",
                what this block adds.
        """
        h, c = self._embedded(x, t, cond)
        block = jax.tree.map(lambda leaf: leaf[0], self.blocks) if self.scan else self.blocks[0]
        if choose("probe", what, ("modulated", "block")) == "block":
            return block(h, c) - h
        shift, scale = jnp.moveaxis(block.modulation(c), 1, 0)[:2]
        return _modulate(h, shift, scale)

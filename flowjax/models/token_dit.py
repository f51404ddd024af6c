"""Diffusion transformer whose conditions are tokens, with two heads: for the average velocity and the velocity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax._checks import COUNT, real, sizes, whole
from flowjax.facts import fact
from flowjax.models.attention import attend, check_implementation
from flowjax.models.embeddings import Condition, TimeEmbedding
from flowjax.models.layers import (
    DEPTH,
    check_input,
    check_patches,
    dense,
    from_patches,
    named,
    per_token,
    rms_norm,
    to_patches,
)
from flowjax.models.remat import check_remat, recomputed
from flowjax.models.stacks import build_stacked, run_blocks
from flowjax.paths.base import precision

ORDER = ("cond", "guidance", "start", "stop", "time")
"""What the tokens in front of the patches stand for."""

_ZERO = nnx.initializers.zeros_init()
_SMALL = nnx.initializers.variance_scaling(0.32**2, "fan_in", "normal")


def turns(places: np.ndarray, size: int) -> Float[np.ndarray, "tokens half"]:
    """Angles of rotary position codes of `size` numbers: token n turns pair i by places[n] * 10000^(-2i / size)."""
    return np.outer(places, 10_000.0 ** (-np.arange(0, size, 2) / size))


def rotate(
    h: Float[Array, "B N heads head"], angles: Float[np.ndarray, "N half"] | None = None
) -> Float[Array, "B N heads head"]:
    """Rotary position codes: turns each pair of numbers of a token by its angle, in at least float32.

    Args:
        h: Queries or keys.
        angles: Of each token, from `turns`; None is `turns` of the number of the token.

    References:
        Su et al. (2021), RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864.
    """
    if angles is None:
        angles = turns(np.arange(h.shape[1]), h.shape[3])
    cos, sin = (jnp.asarray(f(angles), precision(h))[None, :, None] for f in (np.cos, np.sin))
    even, odd = (h[..., i::2].astype(cos.dtype) for i in (0, 1))
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(h.shape).astype(h.dtype)


class TokenBlock(nnx.Module):
    """One transformer block; see `TokenDiT` for its formula.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        >>> block, h = TokenBlock(16, 2, 32, **options), jnp.ones((1, 3, 16))
        >>> bool(jnp.array_equal(block(h), h))  # it starts as the identity
        True
    """

    def __init__(self, width: int, heads: int, hidden: int, attention: str = "xla", **options: Any):
        self.attention, head, kernel = attention, width // heads, options | {"init": _SMALL, "bias": False}
        self.norms = nnx.data([rms_norm(width, "embed", **options) for _ in range(2)])
        self.qkv = dense(width, (3, heads, head), ("embed", None, "heads", None), **kernel)
        self.query_norm, self.key_norm = (rms_norm(head, None, **options) for _ in range(2))
        self.project = dense((heads, head), width, ("heads", None, "embed"), **kernel)
        self.inner = dense(width, (2, hidden), ("embed", None, "mlp"), **kernel)
        self.outer = dense(hidden, width, ("mlp", "embed"), **kernel)
        gates = jnp.zeros((2, width), options["param_dtype"])
        self.gates = nnx.Param(gates, **named(None, "embed"))

    def __call__(self, h: Float[Array, "B N width"]) -> Float[Array, "B N width"]:
        """Applies the block."""
        gates = self.gates[...].astype(h.dtype)[:, None, None]
        with jax.named_scope("attention"):
            q, k, v = jnp.moveaxis(per_token(self.qkv, self.norms[0](h)), 2, 0)
            q, k = rotate(self.query_norm(q)), rotate(self.key_norm(k))
            h = h + gates[0] * per_token(self.project, attend(q, k, v, self.attention))
        with jax.named_scope("mlp"):
            gate, value = jnp.moveaxis(per_token(self.inner, self.norms[1](h)), 2, 0)
            return h + gates[1] * per_token(self.outer, jax.nn.silu(gate) * value)


def _apply(block: TokenBlock, h: Array, key: None) -> Array:
    return block(h)


class _Head(nnx.Module):
    """The blocks behind the shared ones and the last layer of one answer."""

    def __init__(self, blocks: Any, width: int, pixels: int, **options: Any):
        self.blocks = blocks
        self.norm = rms_norm(width, "embed", **options)
        self.unembed = dense(width, pixels, ("embed", "patch"), init=_ZERO, **options)


@fact(
    "network",
    "token_dit",
    "transformer conditioned by tokens, with a head for u and one for v",
    cite="geng2025improved",
    example=lambda: {"image_shape": (4, 4, 1), "patch": 2, "width": 8, "depth": 1, "head_depth": 1, "heads": 2},
)
class TokenDiT(nnx.Module):
    """Diffusion transformer for images (B, H, W, C) that answers with {"u": average velocity, "v": velocity}.

    The tokens are those of the condition, of the scale of guidance, of the two ends of its interval, of the span e - t,
    and the patches of the image, in this order. Each of the first is a learned token plus the embedding of what it
    stands for: the class, 1 - 1/w, a time. There is no embedding of t: how noisy an image is, is seen in it. A block is

        h <- h + g1 * attention(rms(h)),  h <- h + g2 * W2 (silu(W1 rms(h)) * W3 rms(h)),

    with rotary positions and normalised queries and keys in the attention, and gates g (width,) that start at zero.
    `depth` blocks are shared; `head_depth` further ones, a normalisation and a dense layer, which starts at zero,
    belong to u and as many to v. Where only one answer is used (`Flow(head="u")`), a compiled program has no trace of
    the other.

    The network computes in `dtype` (normalisations and softmax in at least float32), stores its parameters in
    `param_dtype` and answers in the type of x.

    References:
        Geng et al. (2025), Improved Mean Flows, arXiv:2512.02012. Their B/2: patch 2, width 768, depth 4, head_depth 8,
        heads 12, 1,000 classes; M/2, L/2 and XL/2 have depth 16, 24 and 40, the last two width 1024 and 16 heads.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> build = lambda: TokenDiT((8, 8, 1), patch=2, width=16, depth=1, head_depth=1, heads=2, rngs=nnx.Rngs(0))
        >>> answer = jax.eval_shape(lambda x, t: build()(x, t, end=t), jnp.ones((4, 8, 8, 1)), jnp.zeros(4))
        >>> {name: value.shape for name, value in answer.items()}
        {'u': (4, 8, 8, 1), 'v': (4, 8, 8, 1)}
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        patch: int,
        width: int,
        depth: int,
        head_depth: int,
        heads: int,
        num_classes: int | None = None,
        cond_dim: int | None = None,
        *,
        mlp_ratio: float = 8 / 3,
        guidance: bool = False,
        cond_tokens: int = 8,
        guidance_tokens: int = 4,
        interval_tokens: int = 2,
        time_tokens: int = 4,
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
            patch: Side of a square patch in pixels; divides H and W.
            width: Width of a token; an even multiple of `heads`.
            depth: Number of shared blocks.
            head_depth: Number of blocks of each head.
            heads: Number of attention heads.
            num_classes: Number of classes; label `num_classes` means "no class".
            cond_dim: Size of a condition vector; with `num_classes` too, conditions are {"label": ...,
                "vector": ...}.
            mlp_ratio: Hidden width of the feed-forward layers over `width`.
            guidance: Whether the network takes a scale of guidance and its interval.
            cond_tokens: Number of tokens of the condition.
            guidance_tokens: Of the scale.
            interval_tokens: Of each end of the interval.
            time_tokens: Of the span.
            time_scale: Highest angular frequency of the features of spans, scales and ends.
            attention: "xla", "dot_product" or "cudnn"; the last has no forward derivative (see
                `flowjax.models.attention`).
            remat: Whether the backward pass recomputes the blocks instead of storing their insides, or the name of what
                they store (see `flowjax.models.remat`).
            scan: Whether the blocks of each part are stacked and run by one compiled loop.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, `patch` does not divide the image, `width` is no even multiple of
                `heads`, or the implementation of attention is unknown or cannot compute in `dtype`.
        """
        sizes(3, image_shape=image_shape)
        tokens = {"cond": cond_tokens, "guidance": guidance_tokens, "interval": interval_tokens, "time": time_tokens}
        whole(COUNT, patch=patch, width=width, heads=heads, **{f"{name}_tokens": n for name, n in tokens.items()})
        whole(DEPTH, depth=depth, head_depth=head_depth)
        real("(0, inf)", mlp_ratio=mlp_ratio, time_scale=time_scale)
        check_patches(image_shape, patch)
        hidden = int(mlp_ratio * width)
        if hidden < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves the feed-forward layers of width={width} without units")
        if width % (2 * heads):
            raise ValueError(f"width={width} must be a multiple of 2 x heads={2 * heads}")
        self.image_shape, self.patch, self.dtype = image_shape, patch, dtype
        self.remat, self.scan = check_remat(remat), scan
        attention = check_implementation(attention, dtype)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        pixels = patch * patch * image_shape[2]
        self.embed = dense(pixels, width, ("patch", "embed"), **options)
        self.condition = Condition(width, num_classes, cond_dim, **options)

        def learned(count: int) -> nnx.Param:
            values = nnx.initializers.normal(width**-0.5)(rngs.params(), (count, width), param_dtype)
            return nnx.Param(values, **named(None, "embed"))

        counts = {} if num_classes is None and cond_dim is None else {"cond": cond_tokens}
        if guidance:
            counts |= {"guidance": guidance_tokens, "start": interval_tokens, "stop": interval_tokens}
        counts["time"] = time_tokens
        self.tokens = nnx.data({name: learned(count) for name, count in counts.items()})
        self.embeddings = nnx.data(
            {name: TimeEmbedding(width, scale=time_scale, **options) for name in counts if name != "cond"}
        )

        def blocks(count: int) -> Any:
            def block(rngs: nnx.Rngs) -> TokenBlock:
                return TokenBlock(width, heads, hidden, attention, **(options | {"rngs": rngs}))

            return build_stacked(block, count, rngs) if scan else nnx.data([block(rngs) for _ in range(count)])

        self.blocks = blocks(depth)
        self.u, self.v = (_Head(blocks(head_depth), width, pixels, **options) for _ in range(2))

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        cond: Any = None,
        end: Float[Array, " B"] | None = None,
        guidance: Float[Array, " B"] | None = None,
        interval: Float[Array, "B 2"] | None = None,
    ) -> dict[str, Float[Array, "B H W C"]]:
        """Evaluates the network.

        Args:
            x: Noisy images.
            t: Times in [0, 1].
            cond: Labels, vectors or both (see `Condition`); None is the null condition.
            end: Ends of the spans, in [t, 1]; None means t.
            guidance: Scales of guidance, (B,), above 0; None means 1. Only with `guidance`.
            interval: Times (start, stop) between which the scales hold, (B, 2); None means (0, 1). Likewise.

        Raises:
            ValueError: Shapes do not fit, or a condition or a scale is given to a network built without it.
        """
        check_input(x, self.image_shape, t)
        batch, what = x.shape[0], {"time": jnp.zeros_like(t) if end is None else end - t}
        if "guidance" in self.embeddings:
            scale = jnp.ones_like(t) if guidance is None else guidance.astype(t.dtype)
            start, stop = (jnp.zeros_like(t), jnp.ones_like(t)) if interval is None else interval.astype(t.dtype).T
            what |= {"guidance": 1 - 1 / scale, "start": start, "stop": stop}
        elif guidance is not None or interval is not None:
            raise ValueError("guidance= and interval= need a network built with guidance=True")
        with jax.named_scope("embed"):
            found = {name: self.embeddings[name](value) for name, value in what.items()}
            condition = self.condition(cond, batch)
            if "cond" in self.tokens:
                found["cond"] = condition
            learned = {name: self.tokens[name][...].astype(self.dtype) for name in found}
            prefix = [learned[name][None] + found[name][:, None] for name in ORDER if name in found]
            patches = per_token(self.embed, to_patches(x.astype(self.dtype), self.patch))
            h = jnp.concatenate([*prefix, patches], axis=1)
        apply = recomputed(_apply, self.remat, self.scan)
        h = run_blocks(self.blocks, apply, h)
        answers = {}
        for name, head in (("u", self.u), ("v", self.v)):
            own = head.norm(run_blocks(head.blocks, apply, h, name=f"{name}_block")[:, -patches.shape[1] :])
            with jax.named_scope(f"{name}_unembed"):
                made = from_patches(per_token(head.unembed, own), self.image_shape, self.patch)
                answers[name] = made.astype(x.dtype)
        return answers

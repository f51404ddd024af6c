"""The transformers of solids: on grids of voxels, and on padded sets of blocks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from flowjax._checks import COUNT, real, sizes, whole
from flowjax.facts import fact
from flowjax.geometry.solids.structure import active, check_sizes, features
from flowjax.models.attention import attend, check_implementation
from flowjax.models.autoencoder import check_shape
from flowjax.models.embeddings import TimeEmbedding
from flowjax.models.layers import DEPTH, check_patches, dense, name_parameters, normalize, per_token, to_patches
from flowjax.models.remat import check_remat, recomputed
from flowjax.models.stacks import build_stacked, run_blocks

_ZERO = nnx.initializers.zeros_init()


def positions(points: Float[Array, "... 3"], width: int) -> Float[Array, "... width"]:
    """Sines and cosines of the coordinates of points, a sixth of the width for each of both and each axis.

    Angular frequencies fall from 1 to about 1/10,000 per unit of the points.
    """
    count = -(-width // 6)
    frequencies = jnp.asarray(10_000.0 ** (-np.arange(count) / count), points.dtype)
    angles = points[..., None] * frequencies.reshape((1,) * points.ndim + (-1,))
    codes = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return codes.reshape(*points.shape[:-1], -1)[..., :width]


def _attention(width: int, heads: int, inputs: str, **options: Any) -> dict[str, Any]:
    """The layers of an attention whose queries and keys are normalised."""
    head, norm = width // heads, {k: options[k] for k in ("dtype", "param_dtype", "rngs")}
    names = ("embed", "heads", None)
    kinds = {"self": ("qkv",), "cross": ("query", "memory")}[inputs]
    made: dict[str, Any] = {
        kind: dense(
            width,
            (heads, head) if kind == "query" else (3 if kind == "qkv" else 2, heads, head),
            names if kind == "query" else ("embed", None, "heads", None),
            **options,
        )
        for kind in kinds
    }
    made |= {
        name: name_parameters(nnx.RMSNorm(head, epsilon=1e-6, **norm), scale=(None,))
        for name in ("query_norm", "key_norm")
    }
    return made | {"project": dense((heads, head), width, ("heads", None, "embed"), **options)}


class SolidBlock(nnx.Module):
    """A block of a transformer on solids; see `SolidTransformer` for its formula.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        >>> block = SolidBlock(16, 2, 4.0, **options)
        >>> block.modulation.kernel.shape  # of attention and mlp: (b, a, g) twice
        (16, 6, 16)
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, attention: str = "xla", **options: Any):
        hidden, self.attention = round(mlp_ratio * width), attention
        self.own = nnx.data(_attention(width, heads, "self", **options))
        self.other = nnx.data(_attention(width, heads, "cross", **options))
        self.inner = dense(width, hidden, ("embed", "mlp"), **options)
        self.outer = dense(hidden, width, ("mlp", "embed"), **options)
        self.modulation = dense(width, (6, width), ("embed", None, None), init=_ZERO, **options)

    def __call__(
        self,
        h: Float[Array, "B N width"],
        c: Float[Array, "B width"],
        tokens: Float[Array, "B M width"],
        mask: Bool[Array, "B N"] | None,
    ) -> Float[Array, "B N width"]:
        """Applies the block; `c` has gone through SiLU, tokens that are not there are not attended."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(self.modulation(c)[:, :, None], 1, 0)
        with jax.named_scope("attention"):
            q, k, v = jnp.moveaxis(per_token(self.own["qkv"], normalize(h) * (1 + scale1) + shift1), 2, 0)
            q, k = self.own["query_norm"](q), self.own["key_norm"](k)
            h = h + gate1 * per_token(self.own["project"], attend(q, k, v, self.attention, mask))
        with jax.named_scope("cross_attention"):
            q = self.other["query_norm"](per_token(self.other["query"], normalize(h)))
            k, v = jnp.moveaxis(per_token(self.other["memory"], tokens), 2, 0)
            h = h + per_token(self.other["project"], attend(q, self.other["key_norm"](k), v, self.attention))
        with jax.named_scope("mlp"):
            hidden = jax.nn.gelu(per_token(self.inner, normalize(h) * (1 + scale2) + shift2))
            return h + gate2 * per_token(self.outer, hidden)


class SolidTransformer(nnx.Module):
    """What the transformers on solids share: tokens with three-dimensional positions, conditioned on a picture.

    Patches of the picture are tokens m of their own, which two dense layers make; times modulate every block:

        h <- h + g1 attention((1 + a1) norm(h) + b1),  h <- h + attention(norm(h) to m),
        h <- h + g2 mlp((1 + a2) norm(h) + b2)

    with (b, a, g) affine in silu(c(t)); queries and keys are normalised. These affine maps and the output start at
    zero. Conditions are a dict with "image", (B, H, W, C) in [-1, 1], grey for none.

    References:
        Xiang et al. (2024), Structured 3D Latents for Scalable and Versatile 3D Generation, section 3.3,
        arXiv:2412.01506.

    Example:
        >>> issubclass(VoxelDiT, SolidTransformer) and issubclass(VoxelSetDiT, SolidTransformer)
        True
    """

    def __init__(
        self,
        channels: int,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        image_patch: int = 8,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        *,
        mlp_ratio: float = 4.0,
        time_scale: float = 100.0,
        attention: str = "xla",
        remat: bool | str = False,
        scan: bool = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds what is shared.

        Args:
            channels: Numbers of a token.
            image_shape: (H, W, C) of pictures.
            image_patch: Pixels along a patch of a picture.
            width: Width of a token.
            depth: Number of blocks.
            heads: Heads of an attention; divides `width`.
            mlp_ratio: Hidden width of the feed-forward layers over `width`.
            time_scale: Highest angular frequency of the time features, radians per unit of time.
            attention: "xla", "dot_product" or "cudnn", see `flowjax.models.attention`.
            remat: Whether the backward pass recomputes the blocks instead of storing their insides, or the name of what
                they store (see `flowjax.models.remat`).
            scan: Whether the blocks are stacked and run by one compiled loop.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number outside its range, or sizes that do not divide each other.
        """
        sizes(3, image_shape=image_shape)
        whole(COUNT, image_patch=image_patch, width=width, heads=heads, channels=channels)
        whole(DEPTH, depth=depth)
        real("(0, inf)", mlp_ratio=mlp_ratio, time_scale=time_scale)
        check_patches(image_shape, image_patch)
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        attention = check_implementation(attention, dtype)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.image_shape, self.image_patch, self.width = tuple(image_shape), image_patch, width
        self.dtype, self.remat, self.scan = dtype, check_remat(remat), scan
        self.embed = dense(channels, width, ("patch", "embed"), **options)
        self.time = TimeEmbedding(width, scale=time_scale, **options)
        self.pixels = dense(image_patch**2 * image_shape[-1], width, ("patch", "embed"), **options)
        self.picture = dense(width, width, ("embed", None), **options)

        def block(rngs: nnx.Rngs) -> SolidBlock:
            return SolidBlock(width, heads, mlp_ratio, attention, **(options | {"rngs": rngs}))

        self.blocks = build_stacked(block, depth, rngs) if scan else nnx.data([block(rngs) for _ in range(depth)])
        self.modulation = dense(width, (2, width), ("embed", None, None), init=_ZERO, **options)
        self.unembed = dense(width, channels, ("embed", "patch"), init=_ZERO, **options)

    def _tokens(self, image: Float[Array, "B H W C"]) -> Float[Array, "B M width"]:
        """Those of pictures."""
        check_shape("pictures", image, self.image_shape)
        rows, columns = (side // self.image_patch for side in self.image_shape[:2])
        row, column = np.mgrid[:rows, :columns]
        places = np.stack([row, column, np.zeros_like(row)], axis=-1).reshape(1, -1, 3)
        m = per_token(self.pixels, to_patches(image.astype(self.dtype), self.image_patch))
        m = m + positions(jnp.asarray(places, m.dtype), self.width)
        return normalize(per_token(self.picture, jax.nn.gelu(m)))

    def _answer(
        self,
        tokens: Float[Array, "B N channels"],
        places: Num[Array, "... N 3"],
        t: Float[Array, " B"],
        cond: Any,
        mask: Bool[Array, "B N"] | None,
    ) -> Float[Array, "B N channels"]:
        """What comes out of each token.

        Args:
            tokens: What goes in.
            places: Where they are, in units of their distance; (1, N, 3) or (B, N, 3).
            t: Times.
            cond: A dict with "image"; None is grey.
            mask: Which are there.
        """
        batch = len(tokens)
        image = jnp.zeros((batch, *self.image_shape), self.dtype) if cond is None else cond["image"]
        with jax.named_scope("embed"):
            h = per_token(self.embed, tokens.astype(self.dtype))
            h = h + positions(places.astype(h.dtype), self.width)
            c, m = jax.nn.silu(self.time(t)), self._tokens(image)

        def apply(block: SolidBlock, h: Array, key: None) -> Array:
            return block(h, c, m, mask)

        apply = recomputed(apply, self.remat, self.scan)
        h = run_blocks(self.blocks, apply, h)
        with jax.named_scope("unembed"):
            shift, scale = jnp.moveaxis(self.modulation(c)[:, :, None], 1, 0)
            return per_token(self.unembed, normalize(h) * (1 + scale) + shift).astype(tokens.dtype)


def _check_conditions(cond: Any, names: tuple[str, ...]) -> None:
    if not isinstance(cond, Mapping) or set(cond) != set(names):
        given = ", ".join(map(str, cond)) if isinstance(cond, Mapping) else f"a {type(cond).__name__}"
        raise ValueError(f"conditions are a dict with the names {', '.join(names)}, got {given}")


@fact(
    "network",
    "voxel_dit",
    "transformer for grids of voxels, conditioned on a picture",
    cite="xiang2024trellis",
    more=(SolidTransformer,),
    example=lambda: {"grid_shape": (2, 2, 2, 1), "image_shape": (4, 4, 3), "image_patch": 2, "width": 12, "heads": 2},
)
class VoxelDiT(SolidTransformer):
    """Transformer for grids (B, X, Y, Z, C), conditioned on pictures; patches of the grid are its tokens.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = nnx.eval_shape(lambda: VoxelDiT((4, 4, 4, 8), rngs=nnx.Rngs(0)))
        >>> x, cond = jnp.ones((2, 4, 4, 4, 8)), {"image": jnp.zeros((2, 32, 32, 3))}
        >>> jax.eval_shape(VoxelDiT.__call__, network, x, jnp.ones(2), cond).shape
        (2, 4, 4, 4, 8)
    """

    def __init__(self, grid_shape: tuple[int, int, int, int], patch: int = 1, *, rngs: nnx.Rngs, **options: Any):
        """Builds the network.

        Args:
            grid_shape: (X, Y, Z, C).
            patch: Voxels along a patch.
            rngs: Source of the initial values.
            **options: Those of `SolidTransformer` but `channels`.

        Raises:
            ValueError: See there; `patch` does not divide the grid.
        """
        sizes(4, grid_shape=grid_shape)
        whole(COUNT, patch=patch)
        if any(side % patch for side in grid_shape[:3]):
            raise ValueError(f"patch={patch} does not divide a grid of {grid_shape[:3]} voxels")
        super().__init__(patch**3 * grid_shape[-1], rngs=rngs, **options)
        self.grid_shape, self.patch = tuple(grid_shape), patch

    def __call__(self, x: Float[Array, "B X Y Z C"], t: Float[Array, " B"], cond: Any = None) -> Float[Array, "B ..."]:
        """Evaluates the network.

        Args:
            x: Grids.
            t: Times in [0, 1].
            cond: {"image": (B, H, W, C)}; None is grey pictures.

        Raises:
            ValueError: Shapes or conditions do not fit.
        """
        check_shape("grids", x, self.grid_shape)
        if cond is not None:
            _check_conditions(cond, ("image",))
        sides, p = [side // self.patch for side in self.grid_shape[:3]], self.patch
        tokens = rearrange(x, "b (x p) (y q) (z r) c -> b (x y z) (p q r c)", p=p, q=p, r=p)
        places = np.moveaxis(np.indices(sides), 0, -1).reshape(1, -1, 3)
        answer = self._answer(tokens, jnp.asarray(places, jnp.float32), t, cond, None)
        names = dict(zip("xyz", sides, strict=True))
        return rearrange(answer, "b (x y z) (p q r c) -> b (x p) (y q) (z r) c", p=p, q=p, r=p, **names)


@fact(
    "network",
    "voxel_set_dit",
    "transformer for the details of active blocks, conditioned on structure and picture",
    cite="xiang2024trellis",
    more=(SolidTransformer,),
    example=lambda: {"resolution": 4, "image_shape": (4, 4, 3), "image_patch": 2, "width": 12, "heads": 2},
)
class VoxelSetDiT(SolidTransformer):
    """Transformer for padded sets (B, N, F) of active blocks, conditioned on their occupancy grid and a picture.

    The grid says where the blocks are and how many there are; entries behind them are neither seen nor answered: the
    answer there is 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = nnx.eval_shape(lambda: VoxelSetDiT(16, rngs=nnx.Rngs(0)))
        >>> cond = {"image": jnp.zeros((2, 32, 32, 3)), "structure": jnp.zeros((2, 16, 16, 16, 1))}
        >>> jax.eval_shape(VoxelSetDiT.__call__, network, jnp.ones((2, 100, 30)), jnp.ones(2), cond).shape
        (2, 100, 30)
    """

    def __init__(self, resolution: int, block: int = 2, *, rngs: nnx.Rngs, **options: Any):
        """Builds the network.

        Args:
            resolution: Voxels along a side of the grid.
            block: Voxels along a block.
            rngs: Source of the initial values.
            **options: Those of `SolidTransformer` but `channels`.

        Raises:
            ValueError: See there.
        """
        check_sizes(resolution, block)
        super().__init__(features(block), rngs=rngs, **options)
        self.resolution, self.block = resolution, block

    def __call__(self, x: Float[Array, "B N F"], t: Float[Array, " B"], cond: Any) -> Float[Array, "B N F"]:
        """Evaluates the network.

        Args:
            x: Features; what is in entries that are not there does not matter.
            t: Times in [0, 1].
            cond: {"image": (B, H, W, C), "structure": (B, R, R, R, 1)}.

        Raises:
            ValueError: Shapes or conditions do not fit.
        """
        _check_conditions(cond, ("image", "structure"))
        check_shape("structures", cond["structure"], (*(self.resolution,) * 3, 1))
        places, mask = jax.vmap(lambda grid: active(grid, x.shape[1], self.block))(cond["structure"])
        answer = self._answer(x, places, t, cond, mask)
        return jnp.where(mask[..., None], answer, 0)

"""Layers shared by the networks: named parameters, time features, embeddings.

Every parameter carries one logical axis name per dimension (None: never sharded) in the metadata
`out_sharding` of its `nnx.Variable`; `flowjax.training.mesh` maps the names to mesh axes. The metadata
`eager_sharding=False` keeps flax from reading the names as axes of the mesh that happens to be active while
the network is built.
"""

from collections.abc import Callable, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key

from flowjax._checks import COUNT, real, whole
from flowjax.paths.base import at_least_single, precision

DEPTH = "[1, 10000]"
"""Numbers of layers that networks accept: each costs Python time before anything can be measured."""


def named(*axes: str | None) -> dict[str, Any]:
    """Variable metadata that gives the dimensions of a parameter the logical names `axes`."""
    return {"out_sharding": axes, "eager_sharding": False}


def rename(variable: nnx.Variable, axes: tuple[str | None, ...]) -> nnx.Variable:
    """The same values in a variable whose dimensions have the logical names `axes`."""
    return type(variable)(variable[...], **{**variable.get_metadata(), **named(*axes)})


def name_parameters(layer: Any, **axes: tuple[str | None, ...]) -> Any:
    """Gives the parameters of a freshly made layer of flax, by their attributes, logical names; returns the layer."""
    for attribute, names in axes.items():
        if (variable := getattr(layer, attribute)) is not None:
            setattr(layer, attribute, rename(variable, names))
        if hasattr(layer, f"{attribute}_init"):  # flax 0.11 keeps functions, by which two equal layers would differ
            setattr(layer, f"{attribute}_init", None)
    return layer


def dense(
    inputs: int | tuple[int, ...],
    outputs: int | tuple[int, ...],
    names: tuple[str | None, ...],
    *,
    rngs: nnx.Rngs,
    init: nnx.Initializer | None = None,
    bias: bool = True,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> nnx.LinearGeneral:
    """An affine layer over the trailing axes, with named parameters.

    Args:
        inputs: Sizes of the trailing axes that are contracted.
        outputs: Sizes of the axes that replace them.
        names: Logical names of the kernel's axes, those of `inputs` first; the bias takes the last ones.
        rngs: Source of the initial values.
        init: Initialiser of the kernel seen as a matrix; Glorot-uniform unless given. The bias starts at
            zero.
        bias: Whether there is one.
        dtype: Type of the computation.
        param_dtype: Type of the stored parameters.
    """
    inputs = (inputs,) if isinstance(inputs, int) else inputs
    outputs = (outputs,) if isinstance(outputs, int) else outputs
    layer = nnx.LinearGeneral(
        inputs,
        outputs,
        axis=tuple(range(-len(inputs), 0)),
        use_bias=bias,
        kernel_init=nnx.initializers.xavier_uniform() if init is None else init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
    return name_parameters(layer, kernel=names, bias=names[len(inputs) :])


def cut() -> bool:
    """Whether examples lie on several devices each: see `training.mesh.over`."""
    return jax.sharding.get_abstract_mesh().shape.get("sequence", 1) > 1


def uncut(x: Array) -> Array:
    """The same numbers, of which a device has whole examples."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp"))) if cut() else x


class Convolution(nnx.Conv):
    """A convolution of whole examples: those of cut ones XLA computes wrongly on some meshes, and their gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> Convolution(1, 4, (3, 3), rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 1))).shape
        (2, 8, 8, 4)
    """

    def __call__(self, x: Array) -> Array:
        """The convolution of x (B, ..., channels)."""
        return uncut(super().__call__(uncut(x)))


def conv(
    inputs: int,
    outputs: int,
    side: int,
    names: tuple,
    init: nnx.Initializer | None = None,
    rank: int = 2,
    **options: Any,
) -> Convolution:
    """A convolution of `side` x `side` pixels, with named parameters; Glorot-uniform with zero bias unless `init`.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        side: Side of the kernel.
        names: Logical names of the input's and the output's channels.
        init: Initialiser of the kernel.
        rank: Number of spatial axes, 3 for voxels.
        **options: Those of `nnx.Conv`.
    """
    layer = Convolution(
        inputs,
        outputs,
        (side,) * rank,
        kernel_init=nnx.initializers.xavier_uniform() if init is None else init,
        **options,
    )
    return name_parameters(layer, kernel=(*(None,) * rank, *names), bias=names[-1:])


def per_token(layer: nnx.LinearGeneral, h: Array) -> Array:
    """A dense layer on (B, N, ...) as one matrix product; the batched form's gradients take up to 15 % longer.

    Where tokens lie on several devices, merged with the batch they would be gathered: see `training.mesh.over`.
    """
    if cut():
        return layer(h)
    return layer(h.reshape(-1, *h.shape[2:])).reshape(*h.shape[:2], *layer.out_features)


def normalize(h: Float[Array, "B *N width"]) -> Float[Array, "B *N width"]:
    """Layer normalisation without parameters, in at least float32."""
    precise = at_least_single(h)
    centred = precise - jnp.mean(precise, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)).astype(h.dtype)


def rms_norm(width: int, axis: str | None, **options: Any) -> nnx.RMSNorm:
    """Root-mean-square normalisation of the last axis with a learned scale, whose logical name is `axis`."""
    return name_parameters(nnx.RMSNorm(width, epsilon=1e-6, **options), scale=(axis,))


def to_patches(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N pixels"]:
    """Square patches of images, row by row, as vectors."""
    return einops.rearrange(x, "b (r p) (c q) k -> b (r c) (p q k)", p=patch, q=patch)


def from_patches(
    patches: Float[Array, "B N pixels"], image_shape: Sequence[int], patch: int
) -> Float[Array, "B H W C"]:
    """Undoes `to_patches` for images (H, W, any number of channels)."""
    rows = image_shape[0] // patch
    return einops.rearrange(patches, "b (r c) (p q k) -> b (r p) (c q) k", r=rows, p=patch, q=patch)


def check_patches(image_shape: Sequence[int], patch: int) -> None:
    """Raises ValueError unless square patches of this side divide the image."""
    if image_shape[0] % patch or image_shape[1] % patch:
        raise ValueError(f"patch={patch} does not divide an image of {image_shape[0]} x {image_shape[1]} pixels")


def check_dropout(dropout: float) -> float:
    """Returns a rate of dropout in [0, 1).

    Raises:
        ValueError: It is something else.
    """
    real("[0, 1)", dropout=dropout)
    return dropout


def layer_keys(key: Key[Array, "..."] | None, batch: int, layers: int) -> Any:
    """The keys of dropout in each layer, from those of the examples; a None for each layer without keys.

    Raises:
        ValueError: Not one key for each example.
    """
    if key is None:
        return [None] * layers
    if key.shape != (batch,):
        raise ValueError(
            f"key= takes one key for each of {batch} examples, such as jax.random.split(key, {batch}), got {key.shape}"
        )
    return jax.vmap(lambda i: jax.vmap(lambda k: jax.random.fold_in(k, i))(key))(jnp.arange(layers))


def drop(h: Float[Array, "B ..."], rate: float, keys: Key[Array, " B"] | None) -> Float[Array, "B ..."]:
    """Dropout: every number is 0 with probability `rate`, else h / (1 - rate); row i depends on keys[i] only.

    References:
        Srivastava et al. (2014), Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 15.
    """
    if keys is None or rate == 0:
        return h
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, h.shape[1:]))(keys)
    return jnp.where(kept, h / (1 - rate), 0)


def _rename(stacked: Any, change: Callable[[tuple], tuple]) -> Any:
    """Changes the axis names of all parameters of a freshly made module."""
    return jax.tree.map(
        lambda variable: rename(variable, change(variable.get_metadata()["out_sharding"])),
        stacked,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )


def stack(modules: Sequence[Any]) -> Any:
    """Modules of one shape as a single one, whose parameters have a leading axis named "layers"."""
    return _rename(jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules), lambda names: ("layers", *names))


def unstack(stacked: Any) -> list[Any]:
    """Undoes `stack`."""
    count = jax.tree.leaves(stacked)[0].shape[0]
    return [_rename(jax.tree.map(lambda a, i=i: a[i], stacked), lambda names: names[1:]) for i in range(count)]


def build_stacked(build: Callable[[nnx.Rngs], Any], count: int, rngs: nnx.Rngs) -> Any:
    """`stack([build(rngs), build(rngs), ...])` with the same values; compile time does not grow with `count`."""
    stream = rngs.params

    def body(drawn, _):
        local = nnx.Rngs(params=stream.key[...])
        local.params.count[...] = drawn
        module = build(local)
        return local.params.count[...], module

    stream.count[...], stacked = jax.lax.scan(body, stream.count[...], length=count)
    return _rename(stacked, lambda names: ("layers", *names))


def by_block(perturbed: Float[Array, "B blocks"], depth: int) -> Float[Array, "depth B"]:
    """What `perturbed` says of each block, 0 for those behind its last.

    Raises:
        ValueError: It has more blocks than there are.
    """
    if perturbed.shape[1] > depth:
        raise ValueError(f"block {perturbed.shape[1] - 1} is perturbed, and the network has 0 to {depth - 1}")
    return jnp.pad(perturbed.T, ((0, depth - perturbed.shape[1]), (0, 0)))


def run_blocks(blocks: Any, apply: Callable[..., Array], h: Array, keys: Any = None, name: str = "block") -> Array:
    """h <- apply(block, h, key) for each block in turn: of a list, or stacked, in one compiled loop.

    Args:
        blocks: Modules, or one made by `build_stacked`.
        apply: Applies one.
        h: (B, ...).
        keys: From `layer_keys`, or None for none; a pytree of what each block gets, blocks first, in general.
        name: What a block is called in profiles.
    """
    if isinstance(blocks, nnx.Module):
        with jax.named_scope(f"{name}s"):
            return jax.lax.scan(lambda h, layer: (apply(layer[0], h, layer[1]), None), h, (blocks, keys))[0]
    for index, block in enumerate(blocks):
        with jax.named_scope(f"{name}{index}"):
            h = apply(block, h, jax.tree.map(lambda own, index=index: own[index], keys))
    return h


def run_cached(
    blocks: Any, apply: Callable[..., Array], h: Array, tokens: Array | None, cache: Array
) -> tuple[Array, Array]:
    """`run_blocks` on some of the tokens, the others answered from what each block said before.

    Args:
        blocks: Modules, or one made by `build_stacked`.
        apply: Applies one to (B, n, C), whatever n is.
        h: (B, N, C).
        tokens: (B, n) numbers of the tokens that are computed; None for all.
        cache: (depth, B, N, C), what the blocks answered before.

    Returns:
        The answer of the last block, and the next cache.
    """

    def one(block: Any, h: Array, known: Array) -> Array:
        if tokens is None:
            return apply(block, h).astype(known.dtype)
        new = apply(block, jnp.take_along_axis(h, tokens[..., None], axis=1)).astype(known.dtype)
        return jax.vmap(lambda row, index, value: row.at[index].set(value))(known, tokens, new)

    if isinstance(blocks, nnx.Module):

        def body(h: Array, layer: Any) -> tuple[Array, Array]:
            h = one(layer[0], h, layer[1])
            return h, h

        return jax.lax.scan(body, h.astype(cache.dtype), (blocks, cache))
    found = []
    for block, known in zip(blocks, cache, strict=True):
        h = one(block, h, known)
        found.append(h)
    return h, jnp.stack(found) if found else cache


def time_features(t: Float[Array, " B"], size: int, scale: float) -> Float[Array, "B size"]:
    """Cosines and sines of times: [cos(w_i t), sin(w_i t)], w_i = scale * 10000^(-2i/size), i < size/2.

    Times are in [0, 1]; `scale` is the highest angular frequency in radians per unit of time. It bounds how
    fast a network can vary in t, and therefore the size of its time derivative.

    References:
        Vaswani et al. (2017), Attention Is All You Need, section 3.5, arXiv:1706.03762.
    """
    frequencies = scale * 10_000.0 ** (-np.arange(size // 2) / (size // 2))
    angles = at_least_single(t)[:, None] * jnp.asarray(frequencies, precision(t))[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """Time features through a two-layer SiLU network; weights start as N(0, 0.02^2), the last ones at 0 with `zero`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> embedding = TimeEmbedding(16, scale=1000.0, zero=True, rngs=nnx.Rngs(0))
        >>> float(embedding(jnp.array([0.5])).max())  # with `zero` it says nothing yet
        0.0
    """

    def __init__(
        self,
        width: int,
        *,
        scale: float,
        features: int = 256,
        zero: bool = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.features, self.scale, self.dtype = features, scale, dtype
        options = {
            "init": nnx.initializers.normal(0.02),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.inner = dense(features, width, ("time", "embed"), **options)
        if zero:
            options["init"] = nnx.initializers.zeros_init()
        self.outer = dense(width, width, ("embed", None), **options)

    def __call__(self, t: Float[Array, " B"]) -> Float[Array, "B width"]:
        """Embeds times in [0, 1]."""
        features = time_features(t, self.features, self.scale).astype(self.dtype)
        return self.outer(jax.nn.silu(self.inner(features)))


def embed_times(
    network: Any, t: Float[Array, " B"], end: Float[Array, " B"] | None, guidance: Float[Array, " B"] | None
) -> Float[Array, "B width"]:
    """Embeds what a network is asked for beside its condition: `network.time`, `network.span` and `network.strength`.

    Args:
        network: With these embeddings; `span` is that of end - t, `strength` that of w / (1 + w); or None.
        t: Times.
        end: Ends of the spans; None means t.
        guidance: Scales w of guidance; None means 1, the conditional prediction.

    Raises:
        ValueError: An end or a scale is given to a network built without it.
    """
    if network.span is None and end is not None:
        raise ValueError("end= needs a network built with second_time=True")
    if network.strength is None and guidance is not None:
        raise ValueError("guidance= needs a network built with guidance=True")
    embedded = network.time(t)
    if network.span is not None:
        embedded = embedded + network.span(jnp.zeros_like(t) if end is None else end - t)
    if network.strength is not None:
        scale = jnp.ones_like(t) if guidance is None else guidance.astype(t.dtype)
        embedded = embedded + network.strength(scale / (1 + scale))
    return embedded


def beside(network: Any, x: Array, velocity: Array | None) -> Array:
    """The input of a network with `refines`: state and velocity, one behind the other on the last axis.

    Raises:
        ValueError: A velocity is missing, of another shape, or given to a network built without it.
    """
    if network.refines != (velocity is not None):
        what = "is built with velocity=True: pass velocity=" if network.refines else "is built without velocity=True"
        raise ValueError(f"this network {what}")
    if velocity is None:
        return x
    if velocity.shape != x.shape:
        raise ValueError(f"velocity= has the shape of x, {x.shape}, got {velocity.shape}")
    return jnp.concatenate([x, velocity.astype(x.dtype)], axis=-1)


def look_up(table: Float[Array, "N width"], index: Int[Array, "..."]) -> Float[Array, "... width"]:
    """Rows of a table; NaN for an index outside 0..N-1, also for a negative one."""
    return jnp.take(table, jnp.where(index < 0, len(table), index), axis=0, mode="fill", fill_value=jnp.nan)


class Condition(nnx.Module):
    """Embeds a class label, a vector, or both, as one vector.

    With `num_classes` the condition is a label in 0..num_classes, the last of which means "no class"; with
    `cond_dim` it is a vector; with both it is a dictionary with the keys "label" and "vector". None stands
    for the null label and the zero vector. A label out of range gives NaN. The table starts as N(0, 0.02^2).

    Raises:
        ValueError: A number below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> embed = Condition(16, num_classes=10, rngs=nnx.Rngs(0))
        >>> bool(jnp.array_equal(embed(None, 2), embed(jnp.array([10, 10]), 2)))  # None is "no class"
        True
    """

    def __init__(
        self,
        width: int,
        num_classes: int | None,
        cond_dim: int | None = None,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value in (("num_classes", num_classes), ("cond_dim", cond_dim)):
            if value is not None:
                whole(COUNT, **{name: value})
        self.num_classes, self.cond_dim, self.dtype = num_classes, cond_dim, dtype
        if num_classes is not None:
            values = nnx.initializers.normal(0.02)(rngs.params(), (num_classes + 1, width), param_dtype)
            self.table = nnx.Param(values, **named("classes", "embed"))
        if cond_dim is not None:
            self.project = dense(cond_dim, width, (None, "embed"), dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, cond: Int[Array, " B"] | Float[Array, "B cond_dim"] | dict[str, Array] | None, batch: int
    ) -> Float[Array, "B width"] | float:
        """Returns the embedding; 0.0 for a network without conditions."""
        if self.num_classes is None and self.cond_dim is None:
            if cond is not None:
                raise ValueError("this network takes no condition; build it with num_classes= or cond_dim=")
            return 0.0
        parts: Any = cond
        if cond is None:
            parts = {
                "label": jnp.full((batch,), self.num_classes or 0),
                "vector": jnp.zeros((batch, self.cond_dim or 0)),
            }
        elif self.num_classes is None:
            parts = {"vector": cond}
        elif self.cond_dim is None:
            parts = {"label": cond}
        embedding = jnp.zeros((), self.dtype)
        if self.num_classes is not None:
            embedding = embedding + look_up(self.table[...], parts["label"]).astype(self.dtype)
        if self.cond_dim is not None:
            embedding = embedding + self.project(parts["vector"].astype(self.dtype))
        return embedding


def check_input(x: Array, shape: Sequence[int], t: Array) -> None:
    """Refuses swapped or misshapen arguments.

    Raises:
        ValueError: `x` is not (B, *shape) or `t` is not (B,).
    """
    if x.shape[1:] != tuple(shape) or t.shape != x.shape[:1]:
        raise ValueError(f"expected x (B, {', '.join(map(str, shape))}) and t (B,), got x {x.shape} and t {t.shape}")

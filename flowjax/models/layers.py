"""Layers shared by the networks, and their named parameters.

Every parameter carries one logical axis name per dimension (None: never sharded) in the metadata
`out_sharding` of its `nnx.Variable`; `flowjax.training.mesh` maps the names to mesh axes. The metadata
`eager_sharding=False` keeps flax from reading the names as axes of the mesh that happens to be active while
the network is built.
"""

from collections.abc import Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key

from flowjax._checks import real
from flowjax.paths.base import at_least_single

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


def check_input(x: Array, shape: Sequence[int], t: Array) -> None:
    """Refuses swapped or misshapen arguments.

    Raises:
        ValueError: `x` is not (B, *shape) or `t` is not (B,).
    """
    if x.shape[1:] != tuple(shape) or t.shape != x.shape[:1]:
        raise ValueError(f"expected x (B, {', '.join(map(str, shape))}) and t (B,), got x {x.shape} and t {t.shape}")

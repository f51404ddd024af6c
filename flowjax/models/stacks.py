"""Blocks of one shape, as a list or stacked into one module that a compiled loop runs through."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.models.layers import rename


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

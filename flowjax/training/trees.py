"""Networks as trees: by label, by name, and what of them is trained."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def by_label(tree: Any, labels: Iterable[str]) -> dict[str, Any]:
    """What is stored of networks with these labels, as a dict."""
    return {"network": tree} if set(labels) == {"network"} else tree


def bare(trees: dict[str, Any], labels: Iterable[str]) -> Any:
    """The inverse of `by_label`."""
    return trees["network"] if set(labels) == {"network"} else trees


def trainable(tree: Any) -> Any:
    """`tree` with None in place of what is not trained.

    Of modules the values of `nnx.Param`s are trained: neither statistics and other variables nor plain arrays.
    Elsewhere all floating-point arrays are.
    """

    def of(node: Any) -> Any:
        if isinstance(node, nnx.Module):
            return jax.tree.map(of_module, node, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        if isinstance(node, nnx.Variable):
            return of_module(node)
        return node if jnp.issubdtype(node.dtype, jnp.floating) else None

    def of_module(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            return leaf if isinstance(leaf, nnx.Param) else leaf.replace(None)
        return None

    return jax.tree.map(of, tree, is_leaf=lambda node: isinstance(node, nnx.Module | nnx.Variable))


def merge(whole: Any, part: Any) -> Any:
    """`whole` with the leaves of `part`, a tree of its structure, where these are not None; modules are new objects."""
    return jax.tree.map(lambda old, new: old if new is None else new, whole, part)


def set_mode(networks: Any, training: bool) -> Any:
    """The modules among `networks`, changed in place to training or evaluation mode."""
    for node in jax.tree.leaves(networks, is_leaf=lambda node: isinstance(node, nnx.Module)):
        if isinstance(node, nnx.Module):
            node.train() if training else node.eval()
    return networks

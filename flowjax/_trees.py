"""Trees of arrays: by dotted name, as checkpoints and single files have them, and conditions beside their nulls."""

from collections.abc import Callable
from typing import Any

import jax


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by dotted name; the value level of `nnx.Variable`s is left out of the names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf for path, leaf in leaves
    }


def unflatten(flat: dict[str, Any], like: Any) -> Any:
    """The inverse of `flatten` for a tree of the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


def with_parts(change: Callable[[Any, Any], Any], null: Any, cond: Any) -> Any:
    """`change(null, cond)` of each part of a condition; a part whose null condition is None stays as it is."""
    return jax.tree.map(
        lambda null, c: c if null is None else change(null, c), null, cond, is_leaf=lambda part: part is None
    )

"""What a run would need, printed before it starts."""

import math
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from flowjax.training.trees import by_label


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of their shapes."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def show(
    config: ConfigDict, state: Any, step: Any, objective: Any, batch: Any, key: Key[Array, ""], mesh: Mesh
) -> None:
    """Prints the config, the parameters of every network, and the memory of a step.

    Args:
        config: The resolved config.
        state: Shapes of the state.
        step: The step, compiled here for these shapes.
        objective: Its argument.
        batch: Its argument.
        key: Its argument.
        mesh: The devices that the state is spread over.
    """
    console = Console(width=None if Console().is_terminal else 120)
    console.print(config, highlight=False)
    for label, network in by_label(state.networks, state.counts).items():
        table = Table("parameter", "shape", "type", "numbers", title=label, show_edge=False)
        for path, leaf in jax.tree_util.tree_leaves_with_path(network):
            name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            table.add_row(name, str(leaf.shape), str(leaf.dtype), f"{math.prod(leaf.shape):,}")
        total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network))
        table.add_row("all", "", "", f"{total:,}", style="bold")
        console.print(table)
    console.print(f"batch: {jax.tree.map(lambda leaf: f'{leaf.dtype}{list(leaf.shape)}', batch)}", highlight=False)
    parts = {"networks": state.networks, "averages": state.averages, "optimizer": state.optimizer}
    parts |= {"memory of the objective": state.memory, "teachers and tables": objective, "batch": batch}
    table = Table("", "MiB", title=f"memory, all {mesh.size} device(s) together", show_edge=False)
    for name, part in parts.items():
        if nbytes(part):
            table.add_row(name, f"{nbytes(part) / 2**20:,.1f}")
    compiled = jax.jit(step).lower(state, objective, batch, key).compile().memory_analysis()
    if compiled is not None:
        table.add_row("within a step, at most", f"{compiled.temp_size_in_bytes * mesh.size / 2**20:,.1f}")
    console.print(table)

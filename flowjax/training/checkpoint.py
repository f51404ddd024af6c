"""Asynchronous Orbax checkpoints of a `TrainState`, stored by parameter name.

Each checkpoint has two items, `average` (the weights that sampling uses) and `state` (the rest), both flat
dictionaries from a dotted name such as `network.blocks.0.mlp.kernel` to an array. So a checkpoint can be read
without flowjax, sampling reads half of it, and neither depends on how flax nests its nodes. Arrays are
restored into the sharding asked for, which may differ from the one they were saved from.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flowjax.training.state import TrainState


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by dotted name; the value level of `nnx.Variable`s is left out of the names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf for path, leaf in leaves
    }


def unflatten(flat: dict[str, Any], like: Any) -> Any:
    """The inverse of `flatten` for a tree of the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


def _shapes(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of every leaf, by name."""
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in flatten(tree).items()
    }


def _parts(state: TrainState) -> tuple[Any, Any]:
    """(average, everything else) of a state."""
    return state.average, {
        "step": state.step,
        "network": state.network,
        "optimizer": state.optimizer,
        "memory": state.memory,
    }


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for unfinished writes when it closes.

    A checkpoint appears under its final name only when it is complete, so a run killed at any moment finds
    the last complete one.

    Args:
        folder: Where they lie; created if needed.
        keep: Number of newest checkpoints that are kept.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Copies the state to the host and writes it in the background."""
        average, rest = _parts(state)
        items = ocp.args.Composite(
            average=ocp.args.StandardSave(flatten(average)), state=ocp.args.StandardSave(flatten(rest))
        )
        self._manager.save(int(state.step), args=items)

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, with the structure and the shardings of `like`."""
        average, rest = _parts(like)
        items = ocp.args.Composite(
            average=ocp.args.StandardRestore(_shapes(average)), state=ocp.args.StandardRestore(_shapes(rest))
        )
        found = self._manager.restore(self.latest, args=items)
        return TrainState(average=unflatten(found["average"], average), **unflatten(found["state"], rest))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self._manager.close()


def restore_average(folder: str | Path, like: Any) -> Any:
    """The averaged network of the newest checkpoint, with the structure and the shardings of `like`.

    Raises:
        FileNotFoundError: No complete checkpoint lies in `folder`.
    """
    folder = Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoints in {folder}")
    with ocp.CheckpointManager(folder, options=options) as manager:
        if manager.latest_step() is None:
            raise FileNotFoundError(f"no complete checkpoint in {folder}")
        items = ocp.args.Composite(average=ocp.args.StandardRestore(_shapes(like)))
        return unflatten(manager.restore(manager.latest_step(), args=items)["average"], like)

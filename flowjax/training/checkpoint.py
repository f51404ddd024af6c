"""Asynchronous Orbax checkpoints of a `TrainState`, stored by parameter name.

Each checkpoint has the items `average` (the weights that sampling uses), `average-NAME` for each further average and
`state` (the rest), flat dictionaries from a dotted name such as `network.blocks.0.mlp.kernel` to an array. So a
checkpoint can be read without flowjax, sampling reads a part of it, and neither depends on how flax nests its nodes.
Arrays are restored into the sharding asked for, which may differ from the one they were saved from.

The item `manifest` has shape, dtype and checksum of every array; `index.json` beside the checkpoints has their scores
and, once they are complete, the sizes of their files. A checkpoint that does not agree with both is damaged, and the
one before it is used.
"""

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from flowjax.training.ema import combination
from flowjax.training.state import TrainState
from flowjax.training.writers import write_json


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by dotted name; the value level of `nnx.Variable`s is left out of the names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf for path, leaf in leaves
    }


def unflatten(flat: dict[str, Any], like: Any) -> Any:
    """The inverse of `flatten` for a tree of the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


class Damaged(Exception):
    """A checkpoint that is not what was written."""


def _checksum(array: jax.Array) -> jax.Array:
    """Sum of the bit patterns modulo 2^32: an integer, so it does not depend on the sharding."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[array.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(array, unsigned), dtype=jnp.uint32)


_checksums = jax.jit(lambda items: jax.tree.map(_checksum, items))


def _manifest(items: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """[shape, dtype, checksum] of every array of flat items."""
    sums = jax.device_get(_checksums(dict(items)))
    return {
        item: {name: [list(leaf.shape), str(leaf.dtype), int(sums[item][name])] for name, leaf in flat.items()}
        for item, flat in items.items()
    }


def _everywhere(good: bool) -> bool:
    """Whether `good` holds in all processes."""
    return good if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(good)).all())


class _Keep:
    """What Orbax does not delete: the newest checkpoints and the best one."""

    def __init__(self, store: "Store", keep: int):
        self.store, self.keep = store, keep

    def should_preserve(self, checkpoints: Iterable[Any], *, context: Any) -> list[bool]:
        """One answer for each checkpoint, oldest first."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep :], *self.store.ranked(steps)[:1]}
        return [step in kept for step in steps]


class Store:
    """Numbered sets of named trees of arrays, written in the background and checked when they are read.

    Args:
        folder: Where they lie.
        keep: Number of newest ones that are kept, besides the best; None keeps all.
        write: False only reads, and creates nothing.

    Raises:
        FileNotFoundError: `write` is False and there is no such folder.
    """

    def __init__(self, folder: str | Path, keep: int | None = None, write: bool = True):
        self.folder = Path(folder).absolute()
        if not write and not self.folder.is_dir():
            raise FileNotFoundError(f"no checkpoints in {self.folder}")
        try:
            self._index = {int(step): entry for step, entry in json.loads(self._path.read_text()).items()}
        except (FileNotFoundError, ValueError):
            self._index = {}
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                create=write,
                save_root_metadata=write,
                cleanup_tmp_directories=write,
                preservation_policy=None if keep is None else _Keep(self, keep),
            ),
        )

    @property
    def _path(self) -> Path:
        return self.folder / "index.json"

    @property
    def steps(self) -> list[int]:
        """All complete ones, oldest first."""
        return sorted(self._manager.all_steps())

    def ranked(self, steps: Iterable[int]) -> list[int]:
        """Those of `steps` that have a score, lowest score first; of equal ones the newest."""
        scored = [(score, -step) for step in steps if (score := self._index.get(step, {}).get("score")) is not None]
        return [-step for _, step in sorted(scored)]

    def put(self, step: int, trees: Mapping[str, Any], score: float | None = None) -> None:
        """Copies trees to the host and writes them in the background, in place of any with the same number.

        Args:
            step: Number.
            trees: Item -> tree of arrays.
            score: Lower is better; None takes no part.
        """
        self.wait()
        if step in self.steps:
            self._manager.delete(step)
        items = {item: flatten(tree) for item, tree in trees.items()}
        score = None if score is None else score if math.isfinite(score) else float("inf")
        self._index[step] = {"score": score}
        self._write_index()
        arguments = {item: ocp.args.StandardSave(flat) for item, flat in items.items()}
        self._manager.save(step, args=ocp.args.Composite(manifest=ocp.args.JsonSave(_manifest(items)), **arguments))

    def get(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """The items of `like` with number `step`, with the structure and the shardings of `like`.

        Raises:
            Damaged: They cannot be read, or are not what was written.
            ValueError: They are of another structure.
        """
        problem, manifest = None, {}
        try:
            for name, size in self._index.get(step, {}).get("sizes", {}).items():
                path = self.folder / str(step) / name
                if not path.is_file() or path.stat().st_size != size:
                    raise Damaged(f"{name} does not have its {size} bytes")
            manifest = self._manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
        except Exception as error:
            problem = str(error)
        if not _everywhere(problem is None):
            raise Damaged(problem or "another process cannot read it")
        wanted = {item: flatten(tree) for item, tree in like.items()}
        for item, flat in wanted.items():
            shapes = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in flat.items()}
            stored = {name: entry[:2] for name, entry in manifest.get(item, {}).items()}
            for name in sorted(shapes.keys() | stored.keys()):
                if (old := stored.get(name, "absent")) != (new := shapes.get(name, "absent")):
                    raise ValueError(f"checkpoint {step} does not fit: {item}/{name} is {old} there and {new} here")
        found: dict[str, Any] = {}
        try:
            arguments = {}
            for item, flat in wanted.items():
                leaves = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in flat.items()}
                arguments[item] = ocp.args.StandardRestore(leaves)
            found = dict(self._manager.restore(step, args=ocp.args.Composite(**arguments)).items())
        except Exception as error:
            problem = str(error)
        if not _everywhere(problem is None):
            raise Damaged(problem or "another process cannot read it")
        if _manifest(found) != {item: manifest[item] for item in wanted}:
            raise Damaged("the values of an array have changed")
        return {item: unflatten(found[item], tree) for item, tree in like.items()}

    def get_first(self, steps: Iterable[int], like: Mapping[str, Any]) -> tuple[int | None, dict[str, Any], list[int]]:
        """The first of `steps` that is not damaged: (its number or None, its items, the damaged ones before it)."""
        damaged: list[int] = []
        for step in steps:
            try:
                return step, self.get(step, like), damaged
            except Damaged:
                damaged.append(step)
        return None, {}, damaged

    def delete_after(self, step: int) -> None:
        """Deletes those with higher numbers."""
        for newer in [s for s in self.steps if s > step]:
            self._manager.delete(newer)

    def wait(self) -> None:
        """Waits for unfinished writes and notes the sizes of their files."""
        self._manager.wait_until_finished()
        steps = set(self.steps)
        self._index = {step: entry for step, entry in self._index.items() if step in steps}
        fresh = [step for step, entry in self._index.items() if "sizes" not in entry]
        for step in fresh:
            root = self.folder / str(step)
            sizes = {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}
            self._index[step]["sizes"] = sizes
        if fresh:
            self._write_index()

    def _write_index(self) -> None:
        if jax.process_index() == 0:
            write_json(self._path, self._index)

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                self.wait()
        finally:
            self._manager.close()


def _items(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint."""
    names = ("step", "network", "optimizer", "memory", "skipped")
    averages = {f"average-{name}": average for name, average in state.averages.items()}
    return {"average": state.average, **averages, "state": {name: getattr(state, name) for name in names}}


class Checkpoints(Store):
    """The checkpoints of one run; a context manager that waits for unfinished writes when it closes.

    A checkpoint appears under its final name only when it is complete, so a run killed at any moment finds
    the last complete one.

    Args:
        folder: Where they lie; created if needed.
        keep: Number of newest checkpoints that are kept; the one with the lowest score is kept besides them.

    Attributes:
        damaged: Steps of the damaged checkpoints that `restore` passed over and removed.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        super().__init__(folder, keep)
        self.damaged: list[int] = []

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self.steps[-1] if self.steps else None

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
            state: What is saved, under the number of its step.
            score: Lower is better; the best is what `flowjax.load(workdir, which="best")` gives.
        """
        self.put(int(state.step), _items(state), score)

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint that is not damaged, with the structure and the shardings of `like`.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is of another structure.
        """
        step, items, self.damaged = self.get_first(reversed(self.steps), _items(like))
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder} can be read (damaged: {self.damaged})")
        self.delete_after(step)
        averages = {name: items[f"average-{name}"] for name in like.averages}
        return TrainState(average=items["average"], averages=averages, **items["state"])


def restore_average(folder: str | Path, like: Any, which: str = "latest", name: str | None = None) -> Any:
    """The averaged network of a checkpoint, with the structure and the shardings of `like`.

    Damaged checkpoints are passed over with a warning.

    Args:
        folder: The folder of the checkpoints.
        like: Network of arrays or shapes with shardings.
        which: "latest", or "best" for the lowest score.
        name: A further average; None is the one that sampling uses.

    Raises:
        FileNotFoundError: No complete checkpoint lies in `folder`, or all are damaged.
        ValueError: An unknown `which`, or a checkpoint of another structure.
    """
    if which not in ("latest", "best"):
        raise ValueError(f"which must be 'latest' or 'best', got {which!r}")
    item = "average" if name is None else f"average-{name}"
    with Store(folder, write=False) as store:
        steps = store.steps[::-1] if which == "latest" else store.ranked(store.steps)
        step, found, damaged = store.get_first(steps, {item: like})
    if damaged:
        warnings.warn(f"damaged checkpoints in {folder}: {damaged}; step {step} is used", stacklevel=2)
    if step is None:
        raise FileNotFoundError(f"no {'complete' if which == 'latest' else 'scored'} checkpoint in {folder}")
    return found[item]


def reconstruct(folder: str | Path, like: Any, std: float, step: int | None = None) -> Any:
    """A power average of any length, made from the stored ones (`flowjax.training.ema.combination`).

    Args:
        folder: The folder of the snapshots of a run.
        like: Network of arrays or shapes with shardings.
        std: Relative standard deviation of its profile, in (0, 0.2886].
        step: Where it ends; the newest snapshot by default.

    Raises:
        FileNotFoundError: No snapshot lies in `folder`.
        ValueError: `std` or `step` is outside its range.
    """
    with Store(folder, write=False) as store:
        stored = [(s, path.name) for s in store.steps for path in (store.folder / str(s)).glob("power-*")]
        if not stored:
            raise FileNotFoundError(f"no snapshots of power averages in {folder}")
        step = stored[-1][0] if step is None else step
        weights = combination([(s, float(item.removeprefix("power-"))) for s, item in stored], step, std)
        total = None
        for weight, (s, item) in zip(weights.tolist(), stored):
            part = jax.tree.map(lambda leaf: weight * leaf, store.get(s, {item: like})[item])  # noqa: B023
            total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total

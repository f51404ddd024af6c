"""Asynchronous Orbax checkpoints of trees of arrays, stored by name.

Each item is a flat dictionary from a dotted name such as `network.blocks.0.mlp.kernel` to an array, so that it can be
read without flowjax and does not depend on how flax nests its nodes. Arrays are restored into the sharding asked for,
which may differ from the one they were saved from.

The item `manifest` has shape, dtype and checksum of every array; `index.json` beside the checkpoints has their scores
and, once they are complete, the sizes of their files. A checkpoint that does not agree with both is damaged, and the
one before it is used. Networks and averages with NaN or infinite values are neither written nor read.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from flowjax._trees import flatten, unflatten
from flowjax.launch import everywhere
from flowjax.training.writers import write_json

Like = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Damaged(ValueError):
    """A checkpoint that is not what was written, or is of no use.

    Example:
        >>> import tempfile
        >>> from flowjax.training.store import Damaged, Store
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     try:
        ...         store.get(7, {})
        ...     except Damaged as error:
        ...         print("damaged" in str(error))
        True
    """


def _checksum(array: jax.Array, ordered: bool) -> jax.Array:
    """Sum modulo 2^32 of the bit patterns, each scrambled together with its place: every order has another one.

    A sum of integers, so it does not depend on the sharding. Scrambling is one to one (a multiplication by an odd
    number, an exclusive or with the own upper half), so that a single changed pattern always changes the sum. Older
    checkpoints have the sum of the bare patterns, which is that without `ordered`.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    if ordered:
        stride = 1
        for axis in reversed(range(bits.ndim)):
            place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            bits += place * np.uint32(stride * 0x9E3779B1 % 2**32)
            stride *= bits.shape[axis]
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
        bits ^= bits >> np.uint32(16)
    return jnp.sum(bits, dtype=jnp.uint32)


@functools.partial(jax.jit, static_argnames="ordered")
def _look(items: Any, ordered: bool) -> tuple[Any, Any]:
    """Checksum of every array, and whether it is finite."""

    def finite(leaf: jax.Array) -> jax.Array:
        return jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.asarray(True)

    return jax.tree.map(lambda leaf: _checksum(leaf, ordered), items), jax.tree.map(finite, items)


def _manifest(
    items: Mapping[str, Mapping[str, Any]], ordered: bool = True
) -> tuple[dict[str, dict[str, list]], str | None]:
    """[shape, dtype, checksum] of every array of flat items, and a network or average that is not finite, or None.

    The checksum is written as text, without `ordered` as a number.
    """
    sums, finite = jax.device_get(_look(dict(items), ordered))
    manifest: dict[str, dict[str, list]] = {}
    bad = None
    for item, flat in items.items():
        manifest[item] = {}
        for name, leaf in flat.items():
            checksum = int(sums[item][name])
            manifest[item][name] = [list(leaf.shape), str(leaf.dtype), f"{checksum:08x}" if ordered else checksum]
            # Optimisers and memories may hold an infinite value on purpose, such as the best loss so far.
            network = name.partition(".")[0] == "network" if item == "state" else item != "memory"
            if not finite[item][name] and network:
                bad = bad or f"{item}/{name} has values that are NaN or infinite"
    return manifest, bad


def _sha256(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


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

    Attributes:
        index_lost: Whether `index.json` was there, but could not be read: scores are lost with it.

    Raises:
        FileNotFoundError: `write` is False and there is no such folder.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from flowjax.training import Store
        >>> trees = {"network": {"w": jnp.ones(2)}}
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     store.put(10, trees, score=0.5)
        ...     store.wait()
        ...     store.latest, store.get(10, trees)["network"]["w"].tolist()
        (10, [1.0, 1.0])
    """

    def __init__(self, folder: str | Path, keep: int | None = None, write: bool = True):
        self.folder = Path(folder).absolute()
        if not write and not self.folder.is_dir():
            raise FileNotFoundError(f"no checkpoints in {self.folder}")
        self._writes = write
        self._index, self.index_lost = self._read_index()
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

    def _read_index(self) -> tuple[dict[int, dict[str, Any]], bool]:
        """What `index.json` holds, and whether it is there but cannot be read."""
        try:
            index = {int(step): entry for step, entry in json.loads(self._path.read_text()).items()}
            for entry in index.values():
                if not isinstance(entry["score"], int | float | None) or not isinstance(entry.get("sizes", {}), dict):
                    raise TypeError("not an entry")
        except FileNotFoundError:
            return {}, False
        except (ValueError, AttributeError, TypeError, KeyError):
            return {}, True
        return index, False

    @property
    def steps(self) -> list[int]:
        """All complete ones, oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """Number of the newest complete one, or None."""
        return self.steps[-1] if self.steps else None

    @property
    def writing(self) -> bool:
        """Whether this process is still writing the newest one."""
        return self._manager.is_saving_in_progress()

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

        Raises:
            ValueError: A network or an average has NaN or infinite values; nothing is written.
        """
        items = {item: flatten(tree) for item, tree in trees.items()}
        manifest, bad = _manifest(items)
        if bad is not None:
            raise ValueError(f"{self.folder / str(step)} is not written: {bad}")
        self.wait()
        if step in self.steps:
            self._manager.delete(step)
        score = None if score is None else score if math.isfinite(score) else float("inf")
        self._index[step] = {"score": score}
        self._write_index()
        arguments: dict[str, Any] = {item: ocp.args.StandardSave(flat) for item, flat in items.items()}
        arguments["manifest"] = ocp.args.JsonSave({**manifest, "sha256": _sha256(manifest)})
        self._manager.save(step, args=ocp.args.Composite(**arguments))

    def get(self, step: int, like: Like) -> dict[str, Any]:
        """The items of `like` with number `step`, with the structure and the shardings of `like`.

        A function gets the manifest, item -> name -> [shape, dtype, checksum], and returns these items.

        Raises:
            Damaged: They cannot be read, are not what was written, or are a network or an average with NaN or infinite
                values.
            ValueError: They are of another structure.
        """
        problem, manifest = None, {}
        root = self.folder / str(step)
        try:
            for name, size in self._index.get(step, {}).get("sizes", {}).items():
                path = root / name
                if not path.is_file() or path.stat().st_size != size:
                    raise ValueError(f"{name} does not have its {size} bytes")
            manifest = self._manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
            if manifest.pop("sha256", None) not in (None, _sha256(manifest)):
                raise ValueError("the manifest has changed")
        except Exception as error:
            problem = str(error)
        if not everywhere(problem is None):
            raise Damaged(f"{root} is damaged: {problem or 'another process cannot read it'}")
        like = like(manifest) if callable(like) else like
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
        if not everywhere(problem is None):
            raise Damaged(f"{root} is damaged: {problem or 'another process cannot read it'}")
        expected = {item: manifest[item] for item in wanted}
        ordered = not any(isinstance(entry[2], int) for flat in expected.values() for entry in flat.values())
        now, bad = _manifest(found, ordered)
        if now != expected:
            changed = next(f"{i}/{name}" for i in expected for name in expected[i] if now[i][name] != expected[i][name])
            raise Damaged(f"{root} is damaged: the values of {changed} have changed")
        if bad is not None:
            raise Damaged(f"{root} is of no use: {bad}")
        return {item: unflatten(found[item], tree) for item, tree in like.items()}

    def get_first(self, steps: Iterable[int], like: Like) -> tuple[int | None, dict[str, Any], dict[int, str]]:
        """The first of `steps` that is not damaged: (its number or None, its items, what is wrong with others)."""
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                return step, self.get(step, like), damaged
            except Damaged as error:
                damaged[step] = str(error)
        return None, {}, damaged

    def delete_after(self, step: int) -> None:
        """Deletes those with higher numbers."""
        for newer in [s for s in self.steps if s > step]:
            self._manager.delete(newer)

    def wait(self) -> None:
        """Waits for unfinished writes and notes the sizes of their files."""
        if not self._writes:
            return  # what is unfinished is that of a run which goes on
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

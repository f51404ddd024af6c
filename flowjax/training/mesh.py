"""One mesh with four axes, and the table that says which logical axis of a parameter lies on which of them.

The axes are `data` (copies of the model, batch split), `fsdp` (model and optimiser split, batch split too), `tensor`
(one layer's products split) and `sequence` (rows of pixels, frames or tokens of each example split). A model names the
axes of its parameters ("embed", "mlp", ...) in the `out_sharding` metadata of its variables and knows nothing about
devices; the table here is the only place that does.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "sequence")
"""Names of the mesh axes, slowest first."""

RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "patch": None,
    "classes": None,
    "time": None,
    "groups": "data",
}
"""Logical axis -> mesh axis. An axis that is missing here is kept whole."""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A (data, fsdp, tensor, sequence) mesh over all devices, with automatic axes.

    Args:
        data: Number of copies of the model; -1 takes the devices that the other axes leave.
        fsdp: Number of parts into which parameters, averages and optimiser state are cut.
        tensor: Number of parts into which a single layer is cut.
        sequence: Number of parts into which an example is cut, along its first axis; see `over`.
        devices: Devices to use; all devices of all processes by default.

    Raises:
        ValueError: The product of the four is not the number of devices.
    """
    count, others = len(jax.devices() if devices is None else devices), fsdp * tensor * sequence
    if min(fsdp, tensor, sequence) < 1 or data == 0 or data < -1:
        raise ValueError(f"mesh sizes must be positive (data may be -1), got {data=}, {fsdp=}, {tensor=}, {sequence=}")
    if data == -1:
        data = max(count // others, 1)
    if data * others != count:
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} x sequence={sequence} does not use {count} devices"
        )
    return jax.make_mesh((data, fsdp, tensor, sequence), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def over(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """The surroundings in which functions are to be traced for a mesh; they matter where `sequence` is above 1.

    Dense layers merge batch and tokens into one axis, which no device could hold a part of that is cut along both.
    Within these surroundings, JAX's own of a mesh, they keep both axes, so that attention alone exchanges anything:
    the keys and values of all tokens; and convolutions are of whole examples, since XLA computes those of cut ones
    wrongly on some meshes.
    """
    return jax.set_mesh(mesh) if mesh.shape["sequence"] > 1 else contextlib.nullcontext()


def partition(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mesh, rules: Mapping[str, str | None] = RULES
) -> PartitionSpec:
    """The partition of one array from the logical names of its axes.

    A mesh axis is used once per array (the first logical axis that asks for it wins), and an axis whose
    length the mesh axis does not divide stays whole. Arrays without names, or with another number of axes,
    are replicated.
    """
    if len(names) != len(shape):
        return PartitionSpec()
    axes: list[str | None] = []
    for name, length in zip(names, shape):
        axis = None if name is None else rules.get(name)
        free = axis is not None and axis not in axes and length % mesh.shape[axis] == 0
        axes.append(axis if free else None)
    return PartitionSpec(*axes)


def shardings(tree: Any, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> Any:
    """The sharding of every array of `tree`, as a tree of the same structure.

    Args:
        tree: Arrays or shapes; `nnx.Variable`s in it may carry logical names in their `out_sharding`
            metadata. Optimiser states built from such a tree carry the same metadata and follow their
            parameters.
        mesh: From `make_mesh`.
        rules: Logical axis -> mesh axis.
    """

    def of(node):
        names = node.get_metadata().get("out_sharding") if isinstance(node, nnx.Variable) else None
        return jax.tree.map(lambda leaf: NamedSharding(mesh, partition(names or (), np.shape(leaf), mesh, rules)), node)

    return jax.tree.map(of, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


def batch_sharding(mesh: Mesh, shape: Sequence[int] = ()) -> NamedSharding:
    """Axis 0 of a batch split over `data` and `fsdp`; axis 1 over `sequence`, where there is an axis behind it.

    Args:
        mesh: From `make_mesh`.
        shape: Of the batch. An axis 1 that `sequence` does not divide stays whole.
    """
    cut = len(shape) > 2 and mesh.shape["sequence"] > 1 and shape[1] % mesh.shape["sequence"] == 0
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *(["sequence"] if cut else [])))


def count_rows(mesh: Mesh) -> int:
    """Number of parts into which the rows of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def fill(rows: int, mesh: Mesh) -> int:
    """The smallest number of rows, at least these, that can be split."""
    return -(-rows // count_rows(mesh)) * count_rows(mesh)


def check_rows(rows: int, mesh: Mesh) -> None:
    """Refuses a number of rows that cannot be split.

    Raises:
        ValueError: The number of devices along `data` and `fsdp` does not divide it.
    """
    if rows % count_rows(mesh):
        raise ValueError(f"a batch of {rows} cannot be split over {count_rows(mesh)} devices")


def local_part(mesh: Mesh, batch: int) -> tuple[int, int]:
    """Which part of a batch the devices of this process hold: part `index` of `count` equal ones.

    It is (0, 1), the whole batch, where these rows are not one of equal parts.

    Args:
        mesh: From `make_mesh`.
        batch: Rows of the global batch.

    Raises:
        ValueError: The number of devices along `data` and `fsdp` does not divide them.
    """
    check_rows(batch, mesh)
    found = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    spans = {where[0].indices(batch)[:2] for where in found if where}
    first, rows = min(low for low, _ in spans), sum(high - low for low, high in spans)
    if max(high for _, high in spans) - first != rows or batch % rows or first % rows:
        return 0, 1
    return first // rows, batch // rows


def put_batch(batch: Any, mesh: Mesh, part: tuple[int, int] = (0, 1)) -> Any:
    """Host arrays as device arrays of the global batch, split along their first axis.

    Args:
        batch: Pytree of arrays: the rows of the global batch that belong to `part`, by default all of them.
        mesh: From `make_mesh`.
        part: From `local_part`. Every process uploads the rows of its own devices only.

    Raises:
        ValueError: The number of devices along `data` and `fsdp` does not divide the rows of the global batch.
    """
    index, count = part

    def put(array: Any) -> Any:
        array = np.asarray(array)
        rows = len(array) * count
        check_rows(rows, mesh)

        def own(where: Any) -> np.ndarray:
            low, high, _ = where[0].indices(rows)
            return array[(slice(low - index * len(array), high - index * len(array)), *where[1:])]

        shape = (rows, *array.shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh, shape), own)

    return jax.tree.map(put, batch)

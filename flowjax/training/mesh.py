"""One mesh with three axes, and the table that says which logical axis of a parameter lies on which of them.

The axes are `data` (copies of the model, batch split), `fsdp` (model and optimiser split, batch split too)
and `tensor` (one layer's products split). A model names the axes of its parameters ("embed", "mlp", ...) in
the `out_sharding` metadata of its variables and knows nothing about devices; the table here is the only place
that does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
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


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh over all devices, with automatic axes.

    Args:
        data: Number of copies of the model; -1 takes the devices that the other two axes leave.
        fsdp: Number of parts into which parameters, averages and optimiser state are cut.
        tensor: Number of parts into which a single layer is cut.
        devices: Devices to use; all devices of all processes by default.

    Raises:
        ValueError: The product of the three is not the number of devices.
    """
    count = len(jax.devices() if devices is None else devices)
    if fsdp < 1 or tensor < 1 or data == 0 or data < -1:
        raise ValueError(f"mesh sizes must be positive (data may be -1), got {data=}, {fsdp=}, {tensor=}")
    if data == -1:
        data = max(count // (fsdp * tensor), 1)
    if data * fsdp * tensor != count:
        raise ValueError(f"mesh data={data} x fsdp={fsdp} x tensor={tensor} does not use {count} devices")
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 of a batch, split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def _check(rows: int, mesh: Mesh) -> None:
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        raise ValueError(f"a batch of {rows} cannot be split over {parts} devices")


def local_part(mesh: Mesh, batch: int) -> tuple[int, int]:
    """Which part of a batch the devices of this process hold: part `index` of `count` equal ones.

    It is (0, 1), the whole batch, where these rows are not one of equal parts.

    Args:
        mesh: From `make_mesh`.
        batch: Rows of the global batch.

    Raises:
        ValueError: The number of devices along `data` and `fsdp` does not divide them.
    """
    _check(batch, mesh)
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
    sharding = batch_sharding(mesh)
    index, count = part

    def put(array: Any) -> Any:
        array = np.asarray(array)
        rows = len(array) * count
        _check(rows, mesh)

        def own(where: Any) -> np.ndarray:
            low, high, _ = where[0].indices(rows)
            return array[low - index * len(array) : high - index * len(array)]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, own)

    return jax.tree.map(put, batch)

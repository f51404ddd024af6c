import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flowjax.training.mesh import fill, local_part, make_mesh, partition, put_batch


def test_rest_of_the_devices_go_to_data():
    mesh = make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": len(jax.devices()) // 4, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"fsdp": 3}, {"fsdp": 16}, {"data": 0}, {"tensor": 0}, {"data": -2}, {"sequence": 3}]
)
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="mesh"):
        make_mesh(**sizes)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("embed", "mlp"), (32, 64), ("fsdp", "tensor")),
        (("embed", "embed"), (32, 32), ("fsdp", None)),
        (("embed", "mlp"), (30, 64), (None, "tensor")),
        (("patch", None, "unheard"), (4, 4, 4), (None, None, None)),
        ((), (4, 4), ()),
    ],
)
def test_partition_follows_the_table(names, shape, expected):
    assert partition(names, shape, make_mesh(fsdp=4, tensor=2)) == PartitionSpec(*expected)


def test_batch_is_split_over_data_and_fsdp():
    x = np.arange(16.0, dtype=np.float32)
    placed = put_batch({"x1": x, "cond": None}, make_mesh(fsdp=2, tensor=2))
    assert {shard.data.shape for shard in placed["x1"].addressable_shards} == {(4,)}
    np.testing.assert_array_equal(placed["x1"], x)
    assert placed["cond"] is None


def test_examples_are_split_over_sequence():
    x = np.arange(4 * 8 * 3.0, dtype=np.float32).reshape(4, 8, 3)
    placed = put_batch({"x1": x, "cond": x[:, 0], "odd": x[:, :7]}, make_mesh(fsdp=2, sequence=4))
    shapes = {name: {shard.data.shape for shard in array.addressable_shards} for name, array in placed.items()}
    assert shapes == {"x1": {(2, 2, 3)}, "cond": {(2, 3)}, "odd": {(2, 7, 3)}}
    for name, array in (("x1", x), ("cond", x[:, 0]), ("odd", x[:, :7])):
        np.testing.assert_array_equal(placed[name], array)


def test_rows_are_filled_up_for_the_devices_that_split_them():
    assert (fill(5, make_mesh()), fill(5, make_mesh(tensor=2, sequence=2)), fill(1, make_mesh(sequence=8))) == (8, 6, 1)


def test_a_single_process_holds_the_whole_batch():
    assert local_part(make_mesh(fsdp=2, tensor=2), 16) == (0, 1)


def test_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="batch of 12 cannot be split over 8"):
        put_batch(np.zeros(12), make_mesh())
    with pytest.raises(ValueError, match="batch of 12 cannot be split over 8"):
        local_part(make_mesh(), 12)

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flowjax.training.mesh import local_part, make_mesh, partition, put_batch


def test_rest_of_the_devices_go_to_data():
    mesh = make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": len(jax.devices()) // 4, "fsdp": 2, "tensor": 2}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 3}, {"fsdp": 16}, {"data": 0}, {"tensor": 0}, {"data": -2}])
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


def test_a_single_process_holds_the_whole_batch():
    assert local_part(make_mesh(fsdp=2, tensor=2), 16) == (0, 1)


def test_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="batch of 12 cannot be split over 8"):
        put_batch(np.zeros(12), make_mesh())
    with pytest.raises(ValueError, match="batch of 12 cannot be split over 8"):
        local_part(make_mesh(), 12)

"""What the tests of the systems share."""

import re

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec


@pytest.fixture
def on_eight_devices():
    """Runs a function over a batch of problems on eight devices and checks that nothing is communicated."""

    def run(function, *batch):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
        spec = PartitionSpec("batch")
        sharded = jax.jit(jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, spec))
        program = sharded.lower(*batch).compile().as_text()
        assert not re.search(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", program)
        return sharded(*batch)

    return run


@pytest.fixture
def x64():
    """Double precision within a test."""
    with jax.enable_x64(True):
        yield

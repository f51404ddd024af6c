"""Discriminators on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import Discriminator
from flowjax.training import make_mesh
from flowjax.training.mesh import batch_sharding, over, shardings


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2}])
def test_gradients_are_the_same_on_every_mesh(sizes):
    """Of a strided convolution of 4 x 4 pixels too, which XLA gets wrong where its kernel is cut twice."""
    network = Discriminator((16, 16, 1), channels=8, layers=2, groups=2, rngs=nnx.Rngs(0))
    definition, state = nnx.split(network)
    x = jax.random.normal(jax.random.key(0), (16, 16, 16, 1))

    def loss(state, x):
        return jnp.mean(jnp.sin(nnx.merge(definition, state)(x)))

    expected = jax.grad(loss)(state, x)
    mesh = make_mesh(**sizes)
    with over(mesh):
        placed = jax.device_put(state, shardings(state, mesh))
        found = jax.jit(jax.grad(loss))(placed, jax.device_put(x, batch_sharding(mesh)))
    for a, b in zip(*map(jax.tree.leaves, (jax.device_get(found), expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))

"""Gradients of objectives, however they are computed."""

import jax
import jax.numpy as jnp
import numpy as np


def gradients_everywhere(loss, theta, draws):
    """The gradient of `loss(theta, draws)`, a mean over rows, is equal under jit on eight devices and under pmap.

    `draws` have a multiple of eight rows.
    """
    gradient = jax.grad(loss)
    expected = gradient(theta, draws)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    sharded = jax.tree.map(lambda leaf: jax.device_put(leaf, rows if leaf.ndim else whole), draws)
    parts = jax.tree.map(lambda a: a.reshape(8, -1, *a.shape[1:]) if a.ndim else jnp.broadcast_to(a, (8,)), draws)
    each = jax.pmap(lambda d: jax.lax.pmean(gradient(theta, d), "data"), axis_name="data")(parts)
    for found in (jax.jit(gradient)(theta, sharded), jax.tree.map(lambda leaf: leaf[3], each)):
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

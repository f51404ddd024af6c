"""Distances that losses add up."""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.objectives.distances import pseudo_huber


def test_pseudo_huber(x64):
    small, large, c = 1e-6, 50.0, 1e-3
    np.testing.assert_allclose(pseudo_huber(jnp.array(small), c), small**2 / (2 * c), rtol=1e-6)
    np.testing.assert_allclose(pseudo_huber(jnp.array(large), c), large - c, rtol=1e-9)
    errors = jnp.linspace(-5, 5, 101)
    np.testing.assert_allclose(pseudo_huber(errors, 0.0), jnp.abs(errors), atol=1e-15)
    slopes = jax.vmap(jax.grad(lambda e: pseudo_huber(e, c)))(errors)
    np.testing.assert_allclose(slopes, errors / jnp.sqrt(errors**2 + c**2), rtol=1e-9)
    assert float(jnp.abs(slopes).max()) <= 1
    assert jnp.isfinite(jax.grad(lambda e: pseudo_huber(e, 0.0))(jnp.array(0.0)))

"""Gradients through rows of a given form."""

import dataclasses

import jax
import jax.numpy as jnp
from pools import euler

from flowjax.calibration import forms


def test_the_gradient_keeps_one_step(pools):
    """Memory of a gradient hardly grows with the number of steps beyond the states."""
    train, _ = pools

    def temporary(steps):
        base = jax.tree.map(jnp.float32, forms.Multistep.widened(euler(steps), 2))
        value = lambda weights: forms.Multistep.sampled(  # noqa: E731
            train.field, dataclasses.replace(base, weights=weights), train.x, None
        ).sum()
        return jax.jit(jax.grad(value)).lower(base.weights).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(4), temporary(32)
    assert many - few < 28 * 8 * train.x.nbytes  # a few states for each of 28 more steps

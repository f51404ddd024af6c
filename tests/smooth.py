"""A smooth network, its draws, and the function that leads to the end of a known flow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj

LINEAR, TRIG = fj.paths.Linear(), fj.paths.Trig()


def network(theta, x, t, cond=None, guidance=None):
    """Smooth in everything."""
    shift = 0.0 if cond is None else 0.3 * cond[:, None]
    scale = 0.0 if guidance is None else 0.1 * guidance[:, None]
    return jnp.tanh(x @ theta["w"] + theta["a"] * t[:, None] + shift + scale) @ theta["v"]


def parameters(seed=0):
    rng, shapes = np.random.default_rng(seed), {"w": (2, 5), "a": (1, 5), "v": (5, 2)}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def of(theta):
    return lambda *inputs, **more: network(theta, *inputs, **more)


def batch(n=8):
    rng = np.random.default_rng(1)
    return {"x1": jnp.asarray(rng.standard_normal((n, 2))), "cond": jnp.asarray(rng.integers(1, 5, n), jnp.float64)}


def draws_of(objective, n=8, step=0):
    draws = objective.draw(jax.random.key(0), batch(n), step=step)
    return dataclasses.replace(draws, t=draws.t.astype(draws.x1.dtype))


def exact(target):
    """A network of data: where the flow leads."""
    return lambda x, t, cond=None: target.flow_map(x, t, jnp.ones_like(t))

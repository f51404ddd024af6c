"""Networks that only tests need."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from flowjax.models.layers import dense, name_parameters


class BatchNormed(nnx.Module):
    """A perceptron for points (B, dim) whose input is normalised by the statistics of the batch, in training mode.

    `network.norm.mean` and `network.norm.var` then follow those of (x, t) over the batches; after `network.eval()`
    they are used.
    """

    def __init__(self, dim: int, width: int = 8, momentum: float = 0.9, *, rngs: nnx.Rngs):
        self.norm = name_parameters(nnx.BatchNorm(dim + 1, momentum=momentum, rngs=rngs), scale=(None,), bias=(None,))
        self.inner = dense(dim + 1, width, (None, "mlp"), rngs=rngs)
        self.outer = dense(width, dim, ("mlp", None), rngs=rngs)

    def __call__(self, x: Array, t: Array, cond: None = None) -> Array:
        h = self.norm(jnp.concatenate([x, t[:, None]], -1))
        return self.outer(jax.nn.silu(self.inner(h)))

"""Networks: flax.nnx modules called as `network(x, t, cond=None, end=None)`, with times t in [0, 1]."""

from flowjax.models.dit import DiT
from flowjax.models.mlp import MLP

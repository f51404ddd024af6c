"""Residual multilayer perceptron for points in a plane and other short vectors."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from flowjax._checks import COUNT, real, whole
from flowjax.facts import fact
from flowjax.models.embeddings import Condition, TimeEmbedding, embed_times
from flowjax.models.layers import DEPTH, beside, check_dropout, check_input, dense, drop, layer_keys


class Layer(nnx.Module):
    """One residual layer; see `MLP` for its formula.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> layer = Layer(16, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 16)), jnp.ones((2, 16))).shape
        (2, 16)
    """

    def __init__(self, width: int, dropout: float = 0.0, **options: Any):
        self.dropout = dropout
        self.inner = dense(width, width, ("embed", "mlp"), **options)
        self.modulation = dense(width, width, ("embed", "mlp"), **options)
        self.outer = dense(width, width, ("mlp", "embed"), **options)

    def __call__(
        self, h: Float[Array, "B width"], c: Float[Array, "B width"], keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B width"]:
        """Applies the layer."""
        hidden = jax.nn.silu(self.inner(jax.nn.silu(h)) + self.modulation(c))
        return h + self.outer(drop(hidden, self.dropout, keys))


@fact("network", "mlp", "residual perceptron for points", example=lambda: {"dim": 2, "width": 8})
class MLP(nnx.Module):
    """Residual perceptron for points (B, dim).

    h <- h + outer(silu(inner(silu(h)) + modulation(c))), with c made from the time, the optional span end and the
    condition. The output layer starts at zero, so the network starts as the zero function.

    Computes in `dtype`, stores parameters in `param_dtype`, answers in the type of x. Dense layers start
    Glorot-uniform with zero bias, embeddings as N(0, 0.02^2), the output layer at zero. Times in [0, 1] enter
    as sines and cosines of angular frequency at most `time_scale`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> MLP(2, width=32, depth=2, rngs=nnx.Rngs(0))(jnp.ones((5, 2)), jnp.zeros(5)).shape
        (5, 2)
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        num_classes: int | None = None,
        cond_dim: int | None = None,
        *,
        outputs: int | None = None,
        second_time: bool = False,
        guidance: bool = False,
        velocity: bool = False,
        time_scale: float = 100.0,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            dim: Number of coordinates of a point.
            width: Width of the hidden layers.
            depth: Number of residual layers.
            num_classes: Number of classes; label `num_classes` means "no class".
            cond_dim: Size of a condition vector; with `num_classes` too, conditions are {"label": ...,
                "vector": ...}.
            outputs: Number of coordinates of the answer; `dim` unless given.
            second_time: Whether the network takes the end of a span (flow maps).
            guidance: Whether the network takes a scale of guidance; at the start it makes no difference.
            velocity: Whether the network takes a velocity beside x (the refiner of FlowTurbo), as further coordinates.
            time_scale: Highest angular frequency of the time features, radians per unit of time.
            dropout: Probability in [0, 1) that a hidden value is dropped, in calls with `key=`.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range.
        """
        whole(COUNT, dim=dim, width=width, outputs=dim if outputs is None else outputs)
        whole(DEPTH, depth=depth)
        real("(0, inf)", time_scale=time_scale)
        self.dim, self.dtype, self.dropout = dim, dtype, check_dropout(dropout)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.refines = velocity
        self.embed = dense(2 * dim if velocity else dim, width, (None, "embed"), **options)
        self.time = TimeEmbedding(width, scale=time_scale, features=64, **options)
        self.span = TimeEmbedding(width, scale=time_scale, features=64, **options) if second_time else None
        self.strength = TimeEmbedding(width, scale=time_scale, features=64, zero=True, **options) if guidance else None
        self.condition = Condition(width, num_classes, cond_dim, **options)
        self.layers = nnx.data([Layer(width, dropout, **options) for _ in range(depth)])
        self.unembed = dense(width, outputs or dim, ("embed", None), init=nnx.initializers.zeros_init(), **options)

    def __call__(
        self,
        x: Float[Array, "B dim"],
        t: Float[Array, " B"],
        cond: Any = None,
        end: Float[Array, " B"] | None = None,
        key: Key[Array, "..."] | None = None,
        guidance: Float[Array, " B"] | None = None,
        velocity: Float[Array, "B ..."] | None = None,
    ) -> Float[Array, "B outputs"]:
        """Evaluates the network.

        Args:
            x: Points.
            t: Times in [0, 1].
            cond: Labels, vectors or both (see `Condition`); None is the null condition.
            end: Ends of the spans, in [t, 1]; None means t. Only with `second_time`.
            key: One key per example, (B,); with them, and `dropout` above 0, values are dropped.
            guidance: Scales of guidance, (B,), at least 0; None means 1. Only with `guidance`.
            velocity: A velocity, of the shape of x. With `velocity`, and only then.

        Raises:
            ValueError: Shapes do not fit, or a condition or an end is given to a network built without it.
        """
        check_input(x, (self.dim,), t)
        h = self.embed(beside(self, x, velocity).astype(self.dtype))
        c = jax.nn.silu(embed_times(self, t, end, guidance) + self.condition(cond, x.shape[0]))
        keys = layer_keys(key, x.shape[0], len(self.layers))
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layer{index}"):
                h = layer(h, c, keys[index])
        return self.unembed(jax.nn.silu(h)).astype(x.dtype)

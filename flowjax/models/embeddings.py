"""Embeddings of times, spans, scales of guidance and conditions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flowjax._checks import COUNT, whole
from flowjax.models.layers import dense, named
from flowjax.paths.base import at_least_single, precision


def time_features(t: Float[Array, " B"], size: int, scale: float) -> Float[Array, "B size"]:
    """Cosines and sines of times: [cos(w_i t), sin(w_i t)], w_i = scale * 10000^(-2i/size), i < size/2.

    Times are in [0, 1]; `scale` is the highest angular frequency in radians per unit of time. It bounds how
    fast a network can vary in t, and therefore the size of its time derivative.

    References:
        Vaswani et al. (2017), Attention Is All You Need, section 3.5, arXiv:1706.03762.
    """
    frequencies = scale * 10_000.0 ** (-np.arange(size // 2) / (size // 2))
    angles = at_least_single(t)[:, None] * jnp.asarray(frequencies, precision(t))[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """Time features through a two-layer SiLU network; weights start as N(0, 0.02^2), the last ones at 0 with `zero`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> embedding = TimeEmbedding(16, scale=1000.0, zero=True, rngs=nnx.Rngs(0))
        >>> float(embedding(jnp.array([0.5])).max())  # with `zero` it says nothing yet
        0.0
    """

    def __init__(
        self,
        width: int,
        *,
        scale: float,
        features: int = 256,
        zero: bool = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.features, self.scale, self.dtype = features, scale, dtype
        options = {
            "init": nnx.initializers.normal(0.02),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.inner = dense(features, width, ("time", "embed"), **options)
        if zero:
            options["init"] = nnx.initializers.zeros_init()
        self.outer = dense(width, width, ("embed", None), **options)

    def __call__(self, t: Float[Array, " B"]) -> Float[Array, "B width"]:
        """Embeds times in [0, 1]."""
        return self.outer(jax.nn.silu(self.inner(self.encoded(t).astype(self.dtype))))

    def encoded(self, t: Float[Array, " B"]) -> Float[Array, "B features"]:
        """The features of times, in at least float32."""
        return time_features(t, self.features, self.scale)


class FourierEmbedding(TimeEmbedding):
    """As `TimeEmbedding`, of random Fourier features: [sin(2 pi t w), cos(2 pi t w)].

    The frequencies w start as N(0, scale^2), in periods per unit of time, and are not trained. Any number is a time,
    also one outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> embedding = FourierEmbedding(16, scale=1.0, rngs=nnx.Rngs(0))
        >>> embedding.frequencies[...].shape, embedding(jnp.array([0.5])).shape
        ((256,), (1, 16))
    """

    def __init__(
        self,
        width: int,
        *,
        scale: float,
        features: int = 512,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **more: Any,
    ):
        frequencies = scale * jax.random.normal(rngs.params(), (features // 2,), param_dtype)
        super().__init__(width, scale=scale, features=features, param_dtype=param_dtype, rngs=rngs, **more)
        self.frequencies = nnx.Variable(frequencies, **named("time"))  # no nnx.Param, and so not trained

    def encoded(self, t: Float[Array, " B"]) -> Float[Array, "B features"]:
        """The features of times, in at least float32."""
        # Constants also where somebody asks for the gradient of everything.
        frequencies = jax.lax.stop_gradient(self.frequencies[...]).astype(precision(t))
        angles = 2 * np.pi * t.astype(precision(t))[:, None] * frequencies[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def embed_times(
    network: Any, t: Float[Array, " B"], end: Float[Array, " B"] | None, guidance: Float[Array, " B"] | None
) -> Float[Array, "B width"]:
    """Embeds what a network is asked for beside its condition: `network.time`, `network.span` and `network.strength`.

    Args:
        network: With these embeddings; `span` is that of end - t, `strength` that of w / (1 + w); or None.
        t: Times.
        end: Ends of the spans; None means t.
        guidance: Scales w of guidance; None means 1, the conditional prediction.

    Raises:
        ValueError: An end or a scale is given to a network built without it.
    """
    if network.span is None and end is not None:
        raise ValueError("end= needs a network built with second_time=True")
    if network.strength is None and guidance is not None:
        raise ValueError("guidance= needs a network built with guidance=True")
    embedded = network.time(t)
    if network.span is not None:
        embedded = embedded + network.span(jnp.zeros_like(t) if end is None else end - t)
    if network.strength is not None:
        scale = jnp.ones_like(t) if guidance is None else guidance.astype(t.dtype)
        embedded = embedded + network.strength(scale / (1 + scale))
    return embedded


def look_up(table: Float[Array, "N width"], index: Int[Array, "..."]) -> Float[Array, "... width"]:
    """Rows of a table; NaN for an index outside 0..N-1, also for a negative one."""
    return jnp.take(table, jnp.where(index < 0, len(table), index), axis=0, mode="fill", fill_value=jnp.nan)


class Condition(nnx.Module):
    """Embeds a class label, a vector, or both, as one vector.

    With `num_classes` the condition is a label in 0..num_classes, the last of which means "no class"; with
    `cond_dim` it is a vector; with both it is a dictionary with the keys "label" and "vector". None stands
    for the null label and the zero vector. A label out of range gives NaN. The table starts as N(0, 0.02^2).

    Raises:
        ValueError: A number below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> embed = Condition(16, num_classes=10, rngs=nnx.Rngs(0))
        >>> bool(jnp.array_equal(embed(None, 2), embed(jnp.array([10, 10]), 2)))  # None is "no class"
        True
    """

    def __init__(
        self,
        width: int,
        num_classes: int | None,
        cond_dim: int | None = None,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value in (("num_classes", num_classes), ("cond_dim", cond_dim)):
            if value is not None:
                whole(COUNT, **{name: value})
        self.num_classes, self.cond_dim, self.dtype = num_classes, cond_dim, dtype
        if num_classes is not None:
            values = nnx.initializers.normal(0.02)(rngs.params(), (num_classes + 1, width), param_dtype)
            self.table = nnx.Param(values, **named("classes", "embed"))
        if cond_dim is not None:
            self.project = dense(cond_dim, width, (None, "embed"), dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, cond: Int[Array, " B"] | Float[Array, "B cond_dim"] | dict[str, Array] | None, batch: int
    ) -> Float[Array, "B width"] | float:
        """Returns the embedding; 0.0 for a network without conditions."""
        if self.num_classes is None and self.cond_dim is None:
            if cond is not None:
                raise ValueError("this network takes no condition; build it with num_classes= or cond_dim=")
            return 0.0
        parts: Any = cond
        if cond is None:
            parts = {
                "label": jnp.full((batch,), self.num_classes or 0),
                "vector": jnp.zeros((batch, self.cond_dim or 0)),
            }
        elif self.num_classes is None:
            parts = {"vector": cond}
        elif self.cond_dim is None:
            parts = {"label": cond}
        embedding = jnp.zeros((), self.dtype)
        if self.num_classes is not None:
            embedding = embedding + look_up(self.table[...], parts["label"]).astype(self.dtype)
        if self.cond_dim is not None:
            embedding = embedding + self.project(parts["vector"].astype(self.dtype))
        return embedding

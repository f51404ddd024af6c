"""An encoder with a dense layer behind it: logits of classes, or numbers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from flowjax._checks import COUNT, whole
from flowjax.facts import fact
from flowjax.models.embeddings import TimeEmbedding
from flowjax.models.layers import check_dropout, dense, drop
from flowjax.paths.base import at_least_single


@fact(
    "network",
    "readout",
    "an encoder and a dense layer: classes or numbers",
    parts={"encoder": "encoder"},
    example=lambda: {
        "encoder": {"name": "vector", "options": {"size": 3, "dim": 4}},
        "outputs": 2,
    },
)
class Readout(nnx.Module):
    """outputs numbers for each input: dense(drop(silu(encoder(x)))), in at least float32.

    With `timed` the features of the encoder become (1 + a(t)) features + b(t), an embedding of the time that starts at
    a = b = 0: for classifiers of noisy examples.

    The dense layer starts at zero, so that all classes are equally likely at the start.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from flowjax.models import ImageEncoder
        >>> rngs = nnx.Rngs(0)
        >>> network = Readout(ImageEncoder((8, 8, 1), 16, channels=4, rngs=rngs), 10, rngs=rngs)
        >>> network(jnp.ones((2, 8, 8, 1))).shape
        (2, 10)
    """

    def __init__(self, encoder: nnx.Module, outputs: int, *, dropout: float = 0.0, timed: bool = False, rngs: nnx.Rngs):
        """Puts a dense layer behind an encoder.

        Args:
            encoder: Called with the input, (B, ...) -> (B, encoder.dim).
            outputs: How many numbers it answers with.
            dropout: Probability in [0, 1) that a feature is dropped, in calls with `key=`.
            timed: Whether the answer depends on the time.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number outside its range.
        """
        whole(COUNT, outputs=outputs)
        self.encoder, self.dropout = encoder, check_dropout(dropout)
        self.project = dense(encoder.dim, outputs, ("embed", None), init=nnx.initializers.zeros_init(), rngs=rngs)
        self.time = TimeEmbedding(2 * encoder.dim, scale=100.0, features=64, zero=True, rngs=rngs) if timed else None

    def __call__(
        self, x: Array, t: Any = None, cond: Any = None, *, key: Key[Array, " B"] | None = None
    ) -> Float[Array, "B outputs"]:
        """The answer to each input.

        Args:
            x: What the encoder takes.
            t: Times (B,) in [0, 1], which only a `timed` readout needs.
            cond: Not taken.
            key: One key per example, (B,); with them, and `dropout` above 0, features are dropped.

        Raises:
            ValueError: A condition is given, or a time is missing.
        """
        if cond is not None:
            raise ValueError("a readout takes no condition")
        features = self.encoder(x)
        if self.time is not None:
            if t is None:
                raise ValueError("a timed readout is asked at a time")
            gain, offset = jnp.split(self.time(t).astype(features.dtype), 2, axis=-1)
            features = (1 + gain) * features + offset
        features = jax.nn.silu(features)
        return at_least_single(self.project(drop(features, self.dropout, key)))

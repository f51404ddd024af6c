"""A small classifier of point clouds: groups around key points, each summarised by PointNet, then all of them.

The key points are an argument, so that sampling rules can be changed without touching the network.

References:
    Qi, Su, Mo and Guibas (2017), PointNet, arXiv:1612.00593; Qi, Yi, Su and Guibas (2017), PointNet++,
    arXiv:1706.02413.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flowjax._checks import COUNT, whole
from flowjax.facts import fact
from flowjax.models.layers import dense


@fact(
    "network",
    "pointnet",
    "classifier of clouds of points",
    cite="li2024pointsp",
    example=lambda: {"num_classes": 3, "width": 8, "neighbours": 4},
)
class PointNet(nnx.Module):
    """Classifier of clouds (B, N, 3) with masks; see `__call__`.

    Each group holds the `neighbours` nearest points of a key point, relative to it and as they are. Dense layers start
    Glorot-uniform with zero bias. Key points and neighbours that do not exist are left out of the maxima. A cloud
    without any key point, an empty one for example, says nothing: all its logits are 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = nnx.eval_shape(lambda: PointNet(8, width=16, neighbours=4, rngs=nnx.Rngs(0)))
        >>> points, queries = jnp.ones((2, 10, 3)), jnp.zeros((2, 5), jnp.int32)
        >>> jax.eval_shape(PointNet.__call__, network, points, jnp.ones((2, 10)), queries).shape
        (2, 8)
    """

    def __init__(self, num_classes: int, width: int = 64, neighbours: int = 16, *, rngs: nnx.Rngs):
        """Builds the network: `width` features of a group, 2 width of a cloud.

        Raises:
            ValueError: A number below 1.
        """
        whole(COUNT, num_classes=num_classes, width=width, neighbours=neighbours)
        self.neighbours = neighbours
        sizes = (6, width, width), (width + 3, width, 2 * width), (2 * width, width, num_classes)
        self.groups, self.whole, self.head = (
            nnx.data([dense(i, o, (None, "mlp"), rngs=rngs) for i, o in itertools.pairwise(s)]) for s in sizes
        )

    def __call__(
        self, x: Float[Array, "B N 3"], mask: Float[Array, "B N"], key_points: Int[Array, "B S"]
    ) -> Float[Array, "B classes"]:
        """Logits of the classes.

        Args:
            x: Clouds in the unit sphere.
            mask: Nonzero for points that exist.
            key_points: Indices of the centres of groups, -1 for none; points that do not exist are none either.

        Raises:
            ValueError: Fewer points than `neighbours`.
        """
        if x.shape[1] < self.neighbours:
            raise ValueError(f"groups of {self.neighbours} neighbours need clouds of as many points, got {x.shape[1]}")
        good = (mask > 0) & jnp.isfinite(x).all(-1)
        x = jnp.where(good[..., None], x, 0)
        center = jnp.take_along_axis(x, key_points[..., None], 1)
        squares = ((center[:, :, None] - x[:, None]) ** 2).sum(-1)
        negative, index = jax.lax.top_k(jnp.where(good[:, None], -squares, -jnp.inf), self.neighbours)
        group = jax.vmap(lambda cloud, index: cloud[index])(x, index)
        h = jnp.concatenate([group - center[:, :, None], group], -1)
        h = _maximum(_perceptron(self.groups, h), jnp.isfinite(negative))
        h = _perceptron(self.whole, jnp.concatenate([center, h], -1))
        exist = (key_points >= 0) & jnp.take_along_axis(good, key_points, 1)
        logits = self.head[1](jax.nn.relu(self.head[0](_maximum(h, exist))))
        return jnp.where(exist.any(1, keepdims=True), logits, 0)


def _perceptron(layers: Any, h: Any) -> Any:
    for layer in layers:
        h = jax.nn.relu(layer(h))
    return h


def _maximum(h, valid):
    """Maximum over the last axis but one of nonnegative features."""
    return jnp.where(valid[..., None], h, 0).max(-2)

"""Conditions by name: each is turned into a vector by its encoder, and the network sees the sum."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flowjax._checks import COUNT, sizes, whole
from flowjax.facts import fact
from flowjax.models.embeddings import look_up
from flowjax.models.layers import conv, dense, named


@fact("encoder", "label", "a vector for each class", example=lambda: {"num_classes": 3, "dim": 4})
class LabelEncoder(nnx.Module):
    """A table of vectors, one for each class and one for "no class", the label `num_classes`.

    It starts as N(0, 0.02^2). A label out of range gives NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> encoder = LabelEncoder(10, 16, rngs=nnx.Rngs(0))
        >>> encoder(jnp.array([3, encoder.null])).shape, bool(jnp.isnan(encoder(jnp.array([11]))).all())
        ((2, 16), True)
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 128,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the table.

        Raises:
            ValueError: A number below 1.
        """
        whole(COUNT, num_classes=num_classes, dim=dim)
        self.shape, self.dim, self.null, self.dtype = (), dim, num_classes, dtype
        values = nnx.initializers.normal(0.02)(rngs.params(), (num_classes + 1, dim), param_dtype)
        self.table = nnx.Param(values, **named("classes", "embed"))

    def __call__(self, label: Int[Array, " B"]) -> Float[Array, "B dim"]:
        """The rows of the labels."""
        return look_up(self.table[...], label).astype(self.dtype)


@fact("encoder", "vector", "a dense layer on vectors", example=lambda: {"size": 3, "dim": 4})
class VectorEncoder(nnx.Module):
    """A dense layer on vectors, Glorot-uniform with zero bias; the zero vector stands for none.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> VectorEncoder(3, 16, rngs=nnx.Rngs(0))(jnp.ones((2, 3))).shape
        (2, 16)
    """

    null = 0.0

    def __init__(
        self, size: int, dim: int = 128, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        """Builds the layer for vectors (B, size).

        Raises:
            ValueError: A number below 1.
        """
        whole(COUNT, size=size, dim=dim)
        self.shape, self.dim, self.dtype = (size,), dim, dtype
        self.project = dense(size, dim, (None, "embed"), dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, vector: Float[Array, "B size"]) -> Float[Array, "B dim"]:
        """Applies the layer."""
        return self.project(vector.astype(self.dtype))


@fact("encoder", "image", "convolutions on images", example=lambda: {"image_shape": (4, 4, 1), "dim": 4, "channels": 2})
class ImageEncoder(nnx.Module):
    """Convolutions of stride 2 on images in the networks' scale, their mean over the pixels, a dense layer.

    Kernels start Glorot-uniform with zero bias. The grey image 0 stands for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> build = lambda: ImageEncoder((8, 8, 1), 16, channels=4, depth=2, rngs=nnx.Rngs(0))
        >>> jax.eval_shape(lambda x: build()(x), jnp.ones((2, 8, 8, 1))).shape
        (2, 16)
    """

    null = 0.0

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        dim: int = 128,
        channels: int = 32,
        depth: int = 3,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the encoder.

        Args:
            image_shape: (H, W, C).
            dim: Size of the vector.
            channels: Channels behind the first convolution; each further one has twice as many.
            depth: Number of convolutions.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range.
        """
        sizes(3, image_shape=image_shape)
        whole(COUNT, dim=dim, channels=channels)
        whole("[1, 10]", depth=depth)
        self.shape, self.dim, self.dtype = tuple(image_shape), dim, dtype
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths = [image_shape[-1], *(channels * 2**i for i in range(depth))]
        self.layers = nnx.data(
            [conv(i, o, 3, (None, "mlp"), strides=2, **options) for i, o in itertools.pairwise(widths)]
        )
        self.project = dense(widths[-1], dim, ("mlp", None), **options)

    def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B dim"]:
        """The vector of each image."""
        h = image.astype(self.dtype)
        for layer in self.layers:
            h = jax.nn.silu(layer(h))
        return self.project(jnp.mean(h, axis=(1, 2)))


@fact(
    "network",
    "conditioned",
    "another network, conditioned on named things",
    parts={"network": "network", "encoders": "{encoder}"},
    example=lambda: {
        "network": {"name": "mlp", "options": {"dim": 2, "width": 8, "cond_dim": 4}},
        "encoders": {"label": {"name": "label", "options": {"num_classes": 3, "dim": 4}}},
    },
)
class Conditioned(nnx.Module):
    """A network for vectors that is conditioned on named things.

        network(x, t, {"label": (B,), "text": (B, L), ...}) = inner(x, t, sum_name encoder_name(cond[name]))

    An encoder is a module called with one condition, (B, ...) -> (B, dim), that has `shape`, that of one example's
    condition; `dim`; and `null`, a number that fills the condition which stands for none.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from flowjax.models import MLP
        >>> rngs = nnx.Rngs(0)
        >>> encoders = {"label": LabelEncoder(10, 8, rngs=rngs), "wind": VectorEncoder(3, 8, rngs=rngs)}
        >>> network = Conditioned(MLP(2, width=16, cond_dim=8, rngs=rngs), encoders)
        >>> cond = {"label": jnp.array([3, 10]), "wind": jnp.ones((2, 3))}
        >>> network(jnp.ones((2, 2)), jnp.zeros(2), cond).shape, network.null
        ((2, 2), {'label': 10, 'wind': 0.0})
    """

    def __init__(self, network: nnx.Module, encoders: Mapping[str, nnx.Module]):
        """Puts encoders in front of a network.

        Args:
            network: Takes vectors as conditions (`cond_dim`), and no labels.
            encoders: By the names of the conditions; each makes vectors of `cond_dim` numbers.

        Raises:
            ValueError: No encoders, or vectors that the network does not take.
        """
        if not isinstance(encoders, Mapping) or not encoders:
            raise ValueError(f"encoders must be a dict of one or more encoders by name, got {encoders!r}")
        inner = getattr(network, "condition", None)
        if inner is not None and (inner.num_classes is not None or inner.cond_dim is None):
            raise ValueError("the network must be built with cond_dim= and without num_classes=, which has an encoder")
        size = None if inner is None else inner.cond_dim
        for name, encoder in encoders.items():
            size = encoder.dim if size is None else size
            if encoder.dim != size:
                raise ValueError(f"encoder {name} makes vectors of dim={encoder.dim} numbers, but {size} are expected")
        self.network, self.names = network, tuple(sorted(encoders))
        self.encoders = nnx.data(dict(encoders))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one example's condition, by name."""
        return {name: self.encoders[name].shape for name in self.names}

    @property
    def null(self) -> dict[str, float]:
        """What fills the condition that stands for none, by name."""
        return {name: self.encoders[name].null for name in self.names}

    @property
    def dropout(self) -> float:
        """That of the network."""
        return getattr(self.network, "dropout", 0.0)

    def __call__(
        self, x: Float[Array, "B ..."], t: Float[Array, " B"], cond: Any = None, **extra: Any
    ) -> Float[Array, "B ..."]:
        """Evaluates the network.

        Args:
            x: Points, images, ...
            t: Times in [0, 1].
            cond: A dict of the conditions by name, (B, ...) each; None stands for none of all.
            **extra: Passed on to the network (`end=`, `key=`).

        Raises:
            ValueError: A condition is missing, unknown or of another shape.
        """
        return self.network(x, t, self._vector(x.shape[0], cond), **extra)

    # The hooks of the network inside, where it has them.

    @property
    def probe(self) -> Callable[..., Array]:
        """What the network makes first of its input, see `flowjax.models.DiT.probe`."""
        inner = self.network.probe
        return lambda x, t, cond, what: inner(x, t, self._vector(x.shape[0], cond), what)

    @property
    def block_cache(self) -> Callable[[int], Array]:
        """Room for what each block answers."""
        return self.network.block_cache

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens."""
        return self.network.token_grid

    def _vector(self, batch: int, cond: Any) -> Float[Array, "B dim"]:
        """The sum of the encoders' vectors."""
        shapes = self.shapes
        if cond is None:
            cond = {name: jnp.full((batch, *shape), self.encoders[name].null) for name, shape in shapes.items()}
        if not isinstance(cond, Mapping) or set(cond) != set(shapes):
            given = ", ".join(map(str, cond)) if isinstance(cond, Mapping) else f"a {type(cond).__name__}"
            raise ValueError(f"conditions are a dict with the names {', '.join(shapes)}, got {given or 'none'}")
        for name, shape in shapes.items():
            if cond[name].shape != (batch, *shape):
                raise ValueError(f"condition {name} must be {(batch, *shape)}, got {cond[name].shape}")
        with jax.named_scope("encoders"):
            vectors = [self.encoders[name](cond[name]) for name in shapes]
        return sum(vectors[1:], vectors[0])

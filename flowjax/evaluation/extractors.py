"""Features in which samples and data are compared. Each extractor has a digest that every report shows.

Distances in the features of extractors with different digests cannot be compared, which is why no number here has
the name of a published one.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from flowjax import _checks
from flowjax.data import Source
from flowjax.evaluation import estimates
from flowjax.evaluation.classifier import train_classifier

_BLOCK = 500
SMALL = 2**18  # numbers in a data set that a support vector machine learns in seconds
_STANDARD = 5000  # examples whose activations are standardised


@runtime_checkable
class Extractor(Protocol):
    """Features of examples in the data's own scale, and a name for exactly these features.

    Example:
        >>> import numpy as np
        >>> from flowjax.evaluation import Extractor
        >>> class Sums:
        ...     digest = "sums"
        ...     def features(self, x):
        ...         return x.reshape(len(x), -1).sum(axis=1, keepdims=True)
        >>> isinstance(Sums(), Extractor), Sums().features(np.ones((2, 3))).tolist()
        (True, [[3.0], [3.0]])
    """

    @property
    def digest(self) -> str:
        """Short name, a hash of everything that decides the features."""

    def features(self, x: Num[np.ndarray, "N ..."]) -> Float[np.ndarray, "N F"]:
        """One row for each example."""


@dataclasses.dataclass(frozen=True)
class Raw:
    """The numbers themselves, for points and other small examples.

    Example:
        >>> import numpy as np
        >>> from flowjax.evaluation import Raw
        >>> Raw().features(np.ones((5, 2, 2))).shape
        (5, 4)
    """

    digest: str = "raw"

    def features(self, x: Num[np.ndarray, "N ..."]) -> Float[np.ndarray, "N F"]:
        """The flattened examples."""
        return estimates.rows(x)


def _blocked(function: Callable[[Any], Any], x: Num[np.ndarray, "N ..."]) -> Float[np.ndarray, "N F"]:
    """`function` on blocks of equal size, so that it compiles once.

    Raises:
        ValueError: No example, or numbers that are not finite: a network answers them with some class.
    """
    if len(x) == 0:
        raise ValueError("needs one or more examples, got none")
    found = []
    for start in range(0, len(x), _BLOCK):
        rows = np.asarray(x[start : start + _BLOCK], np.float32)
        if not np.isfinite(rows).all():
            raise ValueError(f"examples must be finite, there are others among {start} to {start + len(rows) - 1}")
        found.append(np.asarray(function(np.resize(rows, (_BLOCK, *rows.shape[1:]))))[: len(rows)])
    return np.concatenate(found).astype(np.float64)


class _Convolutions(nnx.Module):
    """Three convolutions that halve the size, a mean over the pixels, a linear map."""

    def __init__(self, channels: int, num_classes: int, width: int, *, rngs: nnx.Rngs):
        sizes = (channels, width, 2 * width, 4 * width)
        self.layers = nnx.data(
            [nnx.Conv(i, o, (3, 3), strides=2, padding="SAME", rngs=rngs) for i, o in itertools.pairwise(sizes)]
        )
        self.head = nnx.Linear(sizes[-1], num_classes, rngs=rngs)

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        for layer in self.layers:
            x = jax.nn.gelu(layer(x))
        return x.mean((1, 2))


@jax.jit
def _features(network: _Convolutions, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
    return network.features(x)


@dataclasses.dataclass(frozen=True)
class ImageClassifier:
    """Trained by `train_network`.

    Attributes:
        network: The convolutions.
        shift: Mean of the data it was trained on.
        scale: Standard deviation of it.
        centre: Mean of the activations of that data, a number for each feature.
        spread: Standard deviation of them.
        accuracy: Fraction of the examples kept out of its training that it recognises.
        digest: First 8 hexadecimal digits of a hash of its weights.

    Example:
        >>> import numpy as np
        >>> from flowjax.evaluation import train_network
        >>> x, cond = np.random.default_rng(0).normal(size=(20, 4, 4, 1)), np.arange(20) % 2
        >>> judge = train_network(x, cond, num_classes=2, steps=1, batch=4, width=1)
        >>> judge.features(x).shape, judge.predict(x).shape, len(judge.digest)
        ((20, 4), (20,), 8)
    """

    network: Any
    shift: float
    scale: float
    centre: Float[np.ndarray, " F"]
    spread: Float[np.ndarray, " F"]
    accuracy: float
    digest: str

    def _activations(self, x: Num[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N F"]:
        return _blocked(lambda rows: _features(self.network, (rows - self.shift) / np.float32(self.scale)), x)

    def features(self, x: Num[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N F"]:
        """The mean activations of the last layer, with mean 0 and deviation 1 over the training data."""
        return (self._activations(x) - self.centre) / self.spread

    def traced(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The same features in float32 within a function of JAX, which can be differentiated."""
        found = self.network.features((x - self.shift) / self.scale)
        return (found - jnp.asarray(self.centre[None], x.dtype)) / jnp.asarray(self.spread[None], x.dtype)

    def predict(self, x: Num[np.ndarray, "N H W C"]) -> Int[np.ndarray, " N"]:
        """Class of each image."""
        head = self.network.head
        logits = self._activations(x) @ np.asarray(head.kernel[...], np.float64) + np.asarray(head.bias[...])
        return logits.argmax(1).astype(np.int32)


def _optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(2e-3, steps))


@functools.partial(jax.jit, static_argnames="steps")
def _train_step(network: _Convolutions, state: Any, x: Array, labels: Array, steps: int) -> tuple[Any, Any]:
    """The network and the state of Adam after one batch of normalised images."""

    def loss(network: _Convolutions) -> Array:
        logits = network.head(network.features(x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = _optimizer(steps).update(jax.grad(loss)(network), state)
    return optax.apply_updates(network, updates), state


def train_network(
    x: Num[np.ndarray, "N H W C"],
    cond: Int[np.ndarray, " N"],
    num_classes: int,
    *,
    seed: int = 0,
    steps: int = 600,
    batch: int = 128,
    width: int = 32,
) -> ImageClassifier:
    """Trains a small convolutional classifier on real images.

    Args:
        x: Real images in the data's own scale, N >= 10; a tenth is kept out.
        cond: Their labels in [0, num_classes).
        num_classes: At least 2.
        seed: Decides initialisation, order and the images kept out.
        steps: Steps of Adam; the rate falls from 2e-3 to 0 as a cosine.
        batch: Images per step.
        width: Channels of the first layer; the features have four times as many columns.

    Raises:
        ValueError: Too few images, numbers that are not finite, labels outside their range or not one for each, or a
            count that is not positive.
    """
    x, cond = np.asarray(x, np.float32), np.asarray(cond)
    _checks.whole(_checks.COUNT, steps=steps, batch=batch, width=width)
    if cond.shape != (len(x),) or not np.isfinite(x).all():
        raise ValueError(f"{len(x)} images need as many labels, got {cond.shape}, and finite numbers")
    if len(x) < 10 or num_classes < 2 or cond.min() < 0 or cond.max() >= num_classes:
        raise ValueError(f"needs 10 images, two classes and labels in 0..{num_classes - 1}, got {len(x)} images")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    test, train = order[: len(x) // 10], order[len(x) // 10 :]
    shift, scale = float(x[train].mean()), float(x[train].std()) or 1.0
    network = _Convolutions(x.shape[-1], num_classes, width, rngs=nnx.Rngs(seed))
    state = _optimizer(steps).init(network)
    for _ in range(steps):
        rows = train[rng.integers(len(train), size=batch)]
        batch_x = (x[rows] - shift) / np.float32(scale)
        network, state = _train_step(network, state, batch_x, cond[rows].astype(np.int32), steps)
    made = ImageClassifier(network, shift, scale, np.zeros(4 * width), np.ones(4 * width), 0.0, "")
    rows = made.features(x[train[:_STANDARD]])
    centre, spread = rows.mean(0), rows.std(0)
    parts = [np.array([shift, scale]), *map(np.asarray, jax.tree.leaves(network)), centre, spread]
    return dataclasses.replace(
        made,
        centre=centre,
        spread=np.where(spread > 0, spread, 1.0),
        accuracy=float(np.mean(made.predict(x[test]) == cond[test])),
        digest=hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:8],
    )


def default_extractor(source: Source, seed: int = 0) -> Extractor:
    """The features in which samples of this data set are judged unless others are given.

    Points: the numbers themselves. Small sets of small images with classes: the support vector machine of
    `train_classifier`. Other images: a convolutional network that recognises the classes, or without classes by how
    many quarter turns an image was rotated (half turns where images are not square).

    Args:
        source: The real data; at most 20,000 examples are used.
        seed: Decides initialisation and order.

    References:
        Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations", arXiv:1803.07728.
    """
    if len(source.x.shape) != 4:
        return Raw()
    small = source.take(20_000, seed)
    x, cond, classes = np.asarray(small.x), small.cond, small.num_classes
    if cond is not None and classes is not None and x.size <= SMALL:
        if np.bincount(cond, minlength=classes).min() > 1 < classes:
            return train_classifier(x, cond, classes, seed)
    return network_extractor(source, seed)


def network_extractor(source: Source, seed: int = 0) -> ImageClassifier:
    """The convolutional network of `default_extractor`, however small the data.

    Raises:
        ValueError: The data are no images.
    """
    if len(source.x.shape) != 4:
        raise ValueError(f"a network gives features of images (N, H, W, C), these data are {source.x.shape}")
    source = source.take(20_000, seed)
    x, cond, classes = np.asarray(source.x), source.cond, source.num_classes
    if cond is not None and classes is not None and classes > 1:
        return train_network(x, cond, classes, seed=seed)
    turns = (0, 1, 2, 3) if x.shape[1] == x.shape[2] else (0, 2)
    turned = np.concatenate([np.rot90(x, k, axes=(1, 2)) for k in turns])
    return train_network(turned, np.repeat(np.arange(len(turns)), len(x)), len(turns), seed=seed)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Features of somebody else's network, from `load_extractor`; `digest` begins the hash of the weights' file.

    Example:
        >>> import numpy as np
        >>> from flowjax.evaluation import Foreign
        >>> extractor = Foreign(lambda x: x.mean(axis=(1, 2, 3))[:, None], digest="means")
        >>> extractor.features(np.ones((3, 4, 4, 1))).tolist()
        [[1.0], [1.0], [1.0]]
    """

    function: Callable[[Any], Any]
    digest: str

    def features(self, x: Num[np.ndarray, "N ..."]) -> Float[np.ndarray, "N F"]:
        """What the function gives for each example."""
        return _blocked(self.function, x)


def load_extractor(path: str | Path, sha256: str, build: Callable[[Path], Callable[[Any], Any]]) -> Foreign:
    """Features from a file of weights, for example of an Inception network, if it is the file expected.

    Args:
        path: The file.
        sha256: Its hash in hexadecimal digits.
        build: From the path to a function of float32 examples (B, ...) in the data's own scale to features (B, F).

    Raises:
        ValueError: A missing file or another hash.
    """
    if not Path(path).is_file():
        raise ValueError(f"file {path} does not exist")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}")
    return Foreign(build(Path(path)), found[:8])

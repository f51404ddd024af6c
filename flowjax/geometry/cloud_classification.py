"""Training and testing a classifier of clouds with and without the sampling protocol, for the train main.

| | training | test |
|---|---|---|
| usual | the clouds as they are, farthest points | the same |
| protocol | resampled by one random ratio per batch, weighted random points | densified, filtered farthest points |

Both are trained on clean clouds and tested on the seven corruptions of `corruptions`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from flowjax import _checks, specs
from flowjax._files import replacing
from flowjax.data import Source, shapes
from flowjax.facts import fact
from flowjax.geometry import corruptions
from flowjax.geometry import point_sampling as ps
from flowjax.geometry.pointnet import PointNet
from flowjax.objectives import Classification
from flowjax.tasks.base import Part, Task
from flowjax.training.mesh import put_batch
from flowjax.training.writers import write_json

Inputs = tuple[Float[Array, "B M 3"], Float[Array, "B M"], Int[Array, "B S"]]


def training_inputs(protocol: bool, key_points: int, k: int = 20) -> Callable[[Key[Array, ""], Array], Inputs]:
    """The function (key, clouds (B, N, 3)) -> (points, mask, key points) for training."""

    def usual(key, x):
        return x, jnp.ones(x.shape[:2], x.dtype), jax.vmap(lambda x: ps.farthest_points(x, key_points))(x)

    def resampled(key, x):
        key, key_ratio = jax.random.split(key)
        ratio = ps.draw_ratio(key_ratio, x.dtype)

        def one(key, x):
            change, choose = jax.random.split(key)
            points, mask = ps.resample(change, x, ratio, k)
            return points, mask, ps.weighted_random(choose, ps.isolation_weights(points, k, mask), key_points)

        return jax.vmap(one)(jax.random.split(key, len(x)), x)

    return resampled if protocol else usual


def evaluation_inputs(
    protocol: bool, key_points: int, points: int, k: int = 20
) -> Callable[[Key[Array, ""], Float[Array, "B M 3"], Float[Array, "B M"]], Inputs]:
    """The function (key, clouds, masks) -> (points, mask, key points) for evaluation; M is at least `points`.

    The protocol fills clouds up to `points`; larger ones stay as large as they are.

    Raises:
        ValueError: When called: M is less than `points`.
    """

    def usual(key, x, mask):
        return x, mask, ps.farthest_points(x, key_points, mask)

    def densified(key, x, mask):
        if len(x) < points:
            raise ValueError(f"clouds of {len(x)} places cannot be filled up to {points} points")
        size = jnp.maximum((mask > 0).sum(), points)
        x, mask = ps.densify(key, x, len(x), k, mask)
        mask *= (jnp.arange(len(x)) < size).astype(x.dtype)
        return x, mask, ps.filtered_farthest_points(x, key_points, k, mask=mask)

    one = densified if protocol else usual
    return lambda key, x, mask: jax.vmap(one)(jax.random.split(key, len(x)), x, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudClassification:
    """What the train main needs to train and test a `PointNet` on clouds.

    Attributes:
        source: The clean training clouds (N, points, 3).
        network: Arguments of `PointNet` but for the number of classes.
        protocol: Whether the sampling protocol is used.
        key_points: Number of groups.
        smoothing: Of the labels, in [0, 1).
        mesh: Devices, among which test clouds are split.
        size: Number of test clouds, drawn independently of the training clouds.
        levels: Levels of the corruptions, each in 0..4.

    Example:
        >>> import jax
        >>> from flowjax.data import shapes
        >>> from flowjax.training import make_mesh
        >>> source = shapes.source(size=24, points=32)
        >>> system = CloudClassification(source=source, network={"width": 16}, mesh=make_mesh(), key_points=8)
        >>> system.objective.smoothing, system.levels
        (0.2, (0, 2, 4))
    """

    source: Source
    network: Mapping[str, Any]
    mesh: Mesh
    protocol: bool = True
    key_points: int = 32
    smoothing: float = 0.2
    size: int = 256
    levels: tuple[int, ...] = (0, 2, 4)

    def __post_init__(self):
        """Checks the options.

        Raises:
            ValueError: Other data than clouds of the bodies that the test has, a count below 1, no level, or a level
                outside 0..4.
        """
        if self.source.x.shape[2:] != (3,) or self.source.num_classes != len(shapes.NAMES):
            raise ValueError(
                f"clouds are (N, points, 3) of the {len(shapes.NAMES)} bodies of flowjax.data.shapes, which the test "
                f"draws; the source has {self.source.x.shape} and {self.source.num_classes} classes"
            )
        _checks.whole(_checks.COUNT, key_points=self.key_points, size=self.size)
        if not isinstance(self.levels, tuple | list) or not self.levels:
            raise ValueError(f"levels must be one or more of 0..{corruptions.LEVELS - 1}, got {self.levels!r}")
        if not set(self.levels) <= set(range(corruptions.LEVELS)):
            raise ValueError(f"levels={self.levels} must lie in 0..{corruptions.LEVELS - 1}")

    @property
    def objective(self) -> Classification:
        """Smoothed cross-entropy of clouds prepared for training."""
        return Classification(prepare=training_inputs(self.protocol, self.key_points), smoothing=self.smoothing)

    def build_network(self, rngs: nnx.Rngs) -> PointNet:
        """A new classifier."""
        return _checks.call("PointNet", PointNet, self.network, num_classes=self.source.num_classes or 1, rngs=rngs)

    def save(self, workdir: Path) -> None:
        """Writes `classifier.json`, the arguments of the network."""
        write_json(workdir / "classifier.json", {"num_classes": self.source.num_classes, **self.network})

    @functools.cached_property
    def _test(self) -> tuple[Array, np.ndarray]:
        test = shapes.source(size=self.size, points=self.source.x.shape[1], seed=1_000_003)
        return jnp.asarray(test.x), np.asarray(test.cond)

    @functools.cached_property
    def _classify(self) -> Callable[..., Array]:
        prepare = evaluation_inputs(self.protocol, self.key_points, self.source.x.shape[1])

        def classify(network, x, mask):
            answer = network(*prepare(jax.random.key(1), x, mask)).argmax(-1)
            return jnp.where(((mask > 0) & jnp.isfinite(x).all(-1)).any(-1), answer, -1)

        return jax.jit(classify)

    def corrupted(self, name: str, level: int) -> tuple[Float[Array, "B M 3"], Float[Array, "B M"]]:
        """The test clouds under a corruption (or "clean") and their masks, with room for what corruptions add."""
        x, _ = self._test
        mask = jnp.ones(x.shape[:2], x.dtype)
        room = x.shape[1] + corruptions.portion(x.shape[1], max(self.levels))
        if name != "clean":
            keys = jax.random.split(jax.random.key(level), self.size)
            x, mask = jax.jit(jax.vmap(lambda key, x: corruptions.corrupt(key, x, name, level)))(keys, x)
        more = room - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, more), (0, 0))), jnp.pad(mask, ((0, 0), (0, more)))

    def answers(self, network: Any, name: str, level: int = 0) -> np.ndarray:
        """The class that each test cloud under a corruption is taken for; -1 for clouds without a point."""
        inputs = put_batch(self.corrupted(name, level), self.mesh)
        return multihost_utils.process_allgather(self._classify(network, *inputs), tiled=True)

    def errors(self, network: Any, name: str, level: int = 0) -> np.ndarray:
        """True for test clouds that are taken for another body."""
        return self.answers(network, name, level) != self._test[1]

    def assess(self, network: Any) -> dict[str, float]:
        """Accuracy on clean and on corrupted clouds, and the error rate under each corruption, mean over levels."""
        wrong = {
            f"error[{name}]": float(np.mean([self.errors(network, name, level) for level in self.levels]))
            for name in corruptions.CORRUPTIONS
        }
        clean = 1 - float(self.errors(network, "clean").mean())
        return {"accuracy": clean, "accuracy_corrupted": 1 - float(np.mean(list(wrong.values()))), **wrong}

    def show(self, network: Any, path: Path) -> None:
        """A picture of one cloud of each class with added points, and what it is taken for."""
        spoiled = "add_global", max(self.levels)
        answers, labels = self.answers(network, *spoiled), self._test[1]
        if jax.process_index() > 0:
            return
        x, mask = map(np.asarray, self.corrupted(*spoiled))
        first = [int(np.argmax(labels == label)) for label in range(min(self.size, len(shapes.NAMES)))]
        figure, axes = plt.subplots(2, 4, figsize=(9, 5), dpi=80)
        for place, axis in zip(first, axes.flat, strict=False):
            axis.scatter(*x[place, mask[place] > 0, :2].T, s=2)
            axis.set_title(f"{shapes.NAMES[labels[place]]}: {shapes.NAMES[answers[place]]}", fontsize=9)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        figure.tight_layout()
        with replacing(path) as part:
            figure.savefig(part)
        plt.close(figure)


@fact("task", "clouds", "a classifier of clouds of points", cite="li2024pointsp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clouds(Task):
    """The task that trains a `PointNet` on clouds, for the train main; config.test says what it is tested on.

    Attributes:
        protocol: Whether the sampling protocol is used.
        key_points: Number of groups.

    Example:
        >>> import jax
        >>> from flowjax.configs.base import base, spec
        >>> from flowjax.data import shapes
        >>> from flowjax.tasks import make_task
        >>> from flowjax.training import make_mesh
        >>> network, objective = spec("pointnet", width=16), spec("classification", smoothing=0.2)
        >>> config = base("clouds", data=spec("shapes"), network=network, objective=objective)
        >>> task = make_task(config, shapes.source(size=24, points=32), make_mesh(), jax.random.key(0))
        >>> list(task.networks()), task.objective.smoothing
        (['network'], 0.2)
    """

    protocol: bool = True
    key_points: int = 32

    sections: ClassVar[tuple[str, ...]] = ("network", "objective", "test")
    metrics: ClassVar[Mapping[str, int]] = {"accuracy": -1}

    @functools.cached_property
    def _system(self) -> CloudClassification:
        spec = self.config.network.to_dict()
        if specs.find("network", spec["name"]).make is not PointNet:
            raise ValueError(f"clouds are classified by a pointnet, got network {spec['name']!r}")
        test = self.config.test.to_dict()
        options = dict(network=spec["options"], protocol=self.protocol, key_points=self.key_points)
        options |= {"smoothing": self.build_objective().smoothing, **test}
        return _checks.call("config.test", CloudClassification, options, source=self.source, mesh=self.mesh)

    @property
    def objective(self) -> Classification:
        """Smoothed cross-entropy of clouds prepared for training."""
        return self._system.objective

    def networks(self) -> dict[str, Part]:
        """The classifier."""
        return {"network": Part(build=self._system.build_network, optimizer=self.optimizer())}

    def save(self, workdir: Path) -> None:
        """Writes `classifier.json`."""
        self._system.save(workdir)

    def show(self, networks: Mapping[str, Any], path: Path) -> None:
        """A picture of one cloud of each class with added points, and what it is taken for."""
        self._system.show(networks["network"], path)

    def assess(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy on clean and on corrupted clouds, and the error rate under each corruption."""
        return self._system.assess(networks["network"])

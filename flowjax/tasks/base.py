"""What a run trains, as the train main sees it."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from flowjax import specs
from flowjax.data import Source
from flowjax.objectives.base import turns

SHARED = ("seed", "task", "data", "optimizer", "train", "mesh")  # sections of every config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A trained network.

    Attributes:
        build: Makes it; traced, so all its arrays come from JAX calls inside.
        optimizer: Transformation of its gradients.
        averaged: Whether sampling uses an average of it.
        start: Initial weights in place of those that `build` makes, a tree like it (arguments of the state's creation,
            never constants of a program), or None.

    Example:
        >>> import optax
        >>> from flax import nnx
        >>> from flowjax.models import MLP
        >>> part = Part(build=lambda rngs: MLP(2, width=8, rngs=rngs), optimizer=optax.adam(1e-3))
        >>> part.averaged, nnx.eval_shape(lambda: part.build(nnx.Rngs(0))).embed.kernel.shape
        (True, (2, 8))
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    optimizer: optax.GradientTransformation
    averaged: bool = True
    start: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """Networks, their loss, and how they are looked at. The methods that look run on all processes.

    Attributes:
        config: All of the run's.
        source: The data.
        mesh: Where the run lives.
        key: Of all noise in pictures and measurements, so that they can be compared.
        sections: Names of the sections of the config that are read, beside those of every config.
        metrics: What the best checkpoint may be chosen by, beside the loss: 1 where small is good, -1 where large is.

    Example:
        >>> import jax
        >>> from flowjax import data
        >>> from flowjax.configs.base import base, spec
        >>> from flowjax.tasks import make_task
        >>> from flowjax.training import make_mesh
        >>> config = base(data=spec("toy2d", law="spiral"), network=spec("mlp", dim=2, width=8))
        >>> task = make_task(config, data.toy2d("spiral", size=60), make_mesh(), jax.random.key(0))
        >>> type(task).__name__, list(task.networks()), task.training.x.shape
        ('Generation', ['network'], (60, 2))
    """

    config: ConfigDict
    source: Source
    mesh: Mesh
    key: Key[Array, ""]

    sections: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self) -> None:
        """Checks the sections of the config.

        Raises:
            ValueError: One is missing, or would be ignored.
        """
        name, expected = self.config.task.name, (*SHARED, *self.sections)
        for section in expected:
            if section not in self.config:
                raise ValueError(f"the task {name} needs the section {section!r}; see flowjax.configs.base")
        for section in self.config:
            if section not in expected:
                raise ValueError(f"the task {name} does not read config.{section}; it reads {', '.join(expected)}")
        if self.source.blank and self.learns_from_data:
            raise ValueError(
                f"data {self.config.data.name!r} has no examples, and task {name} learns from them with this config: "
                "without data students learn by policy_distillation, distribution_matching without an adversary, or "
                "stored pairs"
            )
        if self.source.blank and self.config.train.best in self.metrics:
            raise ValueError(
                f"config.train.best={self.config.train.best!r} compares with examples, and data "
                f"{self.config.data.name!r} has none: take 'loss'"
            )

    @property
    def learns_from_data(self) -> bool:
        """Whether training reads more of the data than shape and conditions."""
        return True

    @property
    def training(self) -> Source:
        """What batches are cut from: the data, or what a task makes of them (a part, latents, tokens)."""
        return self.source

    @property
    @abc.abstractmethod
    def objective(self) -> Any:
        """The training loss (`flowjax.objectives`)."""

    @abc.abstractmethod
    def networks(self) -> dict[str, Part]:
        """The trained networks by label; a single one is called "network"."""

    def check(self, workdir: Path) -> None:  # noqa: B027 - nothing is a fine default
        """Compares what is frozen in this run with what it began with, before anything is written.

        Raises:
            ValueError: A teacher, base or codec has other weights now.
        """

    @abc.abstractmethod
    def save(self, workdir: Path) -> None:
        """Writes what is needed to rebuild the networks."""

    def weights(self, state: Any, raw: bool = False) -> dict[str, Any]:
        """What is looked at and exported, by label: averages, or with `raw` the trained networks themselves."""
        return state.weights(raw)

    @abc.abstractmethod
    def show(self, networks: Mapping[str, Any], path: Path) -> None:
        """Writes a picture of what the networks do."""

    @abc.abstractmethod
    def assess(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """How good they are, in numbers."""

    def finish(self, networks: Mapping[str, Any], workdir: Path) -> None:  # noqa: B027 - nothing is a fine default
        """Writes further pictures at the end of a run."""

    def of_data(self) -> dict[str, Any]:
        """What recipes say of the data."""
        data, source = self.config.data, self.source
        return {
            "data": {"name": data.name, "options": data.options.to_dict()},
            "shape": source.x.shape[1:],
            "form": source.form,
            **{name: getattr(source, name) for name in ("shift", "scale", "low", "high", "num_classes")},
        }

    def optimizer(self, label: str = "network") -> optax.GradientTransformation:
        """The transformation of `config.optimizer`: one for all, or one per label."""
        spec = self.config.optimizer.to_dict()
        if not specs.is_spec(spec):
            if label not in spec:
                raise ValueError(f"config.optimizer has no {label!r}; it has {', '.join(spec)}")
            spec = spec[label]
        moves = turns(self.objective, self.config.train.steps)
        steps = moves.get(label, self.config.train.steps)
        return specs.build("optimizer", spec, steps=max(steps, 1))  # a network may rest in the whole of a short run

    def build_objective(self, **given: Any) -> Any:
        """The objective of `config.objective`, refused where it makes no sense for this task.

        Raises:
            ValueError: An objective of another kind of task.
        """
        spec, name = self.config.objective.to_dict(), specs.plain(self.config.task.name)
        entry = specs.find("objective", spec["name"])
        if name not in map(specs.plain, entry.tasks):
            fitting = [
                key for key, other in specs.table_of("objective").items() if name in map(specs.plain, other.tasks)
            ]
            raise ValueError(
                f"objective {spec['name']!r} is not one of the task {self.config.task.name} "
                f"(it has {', '.join(fitting)}); it belongs to {', '.join(entry.tasks) or 'none'}"
            )
        return specs.build("objective", spec, **given)


def make_task(config: ConfigDict, source: Source, mesh: Mesh, key: Key[Array, ""]) -> Task:
    """The task of `config.task`, see `Task`.

    Raises:
        ValueError: An unknown task, an option that it does not have, or a config that it cannot be made from.
    """
    return specs.build("task", config.task.to_dict(), config=config, source=source, mesh=mesh, key=key)

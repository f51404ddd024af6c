"""The program of a training run: what its config asks for, built and checked, before any weights are made."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from flowjax import _checks, data
from flowjax.tasks.base import Part, Task, make_task
from flowjax.training.ema import Warmup, from_config
from flowjax.training.mesh import local_part, put_batch
from flowjax.training.state import TrainState, create_state
from flowjax.training.step import make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A task with its data, state and step.

    Attributes:
        task: What is trained.
        mesh: Where.
        parts: Its networks by label.
        averages: Laws of averages, each with the labels of the networks that are averaged.
        batches: The data in their order.
        part: Which rows of a batch this process reads.
        batch: The first batch, on the devices.
        builds: Makes the networks, by label.
        key: Of all steps.
        accumulate: Parts of a batch.

    Example:
        >>> from flowjax.configs.base import base, spec
        >>> from flowjax.training import make_mesh
        >>> config = base(data=spec("toy2d", law="spiral", size=64), network=spec("mlp", dim=2, width=8))
        >>> program = make_program(config, make_mesh())
        >>> program.shapes.networks.embed.kernel.shape, program.batch["x1"].shape
        ((2, 8), (64, 2))
    """

    task: Task
    mesh: Mesh
    parts: dict[str, Part]
    averages: dict[str, Any]
    batches: data.Batches
    part: tuple[int, int]
    batch: Any
    builds: dict[str, Callable[[], Any]]
    key: Key[Array, ""]
    accumulate: int = 1

    @property
    def optimizers(self) -> dict[str, Any]:
        """Of the networks, by label."""
        return {label: part.optimizer for label, part in self.parts.items()}

    @property
    def objective(self) -> Any:
        """The loss, an argument of the step."""
        return self.task.objective

    @functools.cached_property
    def step(self) -> Callable:
        """One step, see `make_step`."""
        return make_step(self.optimizers, self.averages, accumulate=self.accumulate)

    def create(self) -> TrainState:
        """A new state, born sharded."""
        starts = {label: part.start for label, part in self.parts.items() if part.start is not None}
        more: dict[str, Any] = {"averages": self.averages, "objective": self.objective, "batch": self.batch}
        return create_state(self.builds, self.optimizers, self.mesh, start=starts, **more)

    @functools.cached_property
    def shapes(self) -> TrainState:
        """The state in shapes; a step is traced too, so that what does not fit is refused.

        Raises:
            ValueError: Networks, objective and data do not fit each other.
        """
        shapes = jax.eval_shape(self.create)
        jax.eval_shape(self.step, shapes, self.objective, self.batch, self.key)
        return shapes


def make_program(config: ConfigDict, mesh: Mesh) -> Program:
    """Everything that a config of training asks for.

    Args:
        config: See `flowjax.configs.base`.
        mesh: Where the run lives.

    Raises:
        ValueError: Something in the config that is not allowed, or data that cannot be read.
    """
    train = config.train
    with _checks.value_errors("data"):
        source = data.load(config.data.name, **config.data.options)
    init_key, train_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)
    task = make_task(config, source, mesh, sample_key)
    _checks.choose("metric of config.train.best", train.best, {"loss": 1, **task.metrics})
    parts = task.networks()
    averaged = tuple(label for label, part in parts.items() if part.averaged)
    laws = {"average": Warmup(decay=train.ema), **from_config(train.averages, task.objective)}
    keys = {label: jax.random.fold_in(init_key, i) if i else init_key for i, label in enumerate(parts)}

    def build(label: str) -> Any:
        return parts[label].build(nnx.Rngs(keys[label]))

    part = local_part(mesh, train.batch)  # each process reads the rows of its own devices
    augment = _checks.call("augment", data.Augment, config.data.get("augment", {}))
    batches = data.Batches(task.training, train.batch, config.seed, *part, augment=augment)
    return Program(
        task=task,
        mesh=mesh,
        parts=parts,
        averages={name: (law, averaged) for name, law in laws.items()},
        batches=batches,
        part=part,
        batch=put_batch(batches.batch(0), mesh, part),
        builds={label: functools.partial(build, label) for label in parts},
        key=train_key,
        accumulate=train.accumulate,
    )

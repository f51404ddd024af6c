"""Everything that training changes, in one pytree.

Trained networks have labels. A single one, labelled "network", stands bare wherever the others are a dict by label.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from flowjax._pytree import pytree
from flowjax._trees import flatten, unflatten
from flowjax.data.records import check_memory
from flowjax.objectives import base
from flowjax.training.ema import MAIN, Average, labelled
from flowjax.training.mesh import RULES, shardings
from flowjax.training.trees import bare, by_label, set_mode, trainable

Optimizers: TypeAlias = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]


@pytree
class TrainState:
    """The state between two training steps.

    Attributes:
        step: Number of finished steps, skipped ones included.
        networks: The trained networks in evaluation mode: one callable pytree of arrays (an `nnx.Module` is one), or a
            dict of them by label.
        averages: Averages of networks by name, each like `networks` or a part of its dict. Sampling uses the one called
            "average"; "target" is the one that an objective asked for.
        optimizer: State of the optax transformation of the network, or of each label's.
        memory: What the objective remembers, otherwise None.
        counts: For each label its updates, its bad steps in a row up to now, and all its bad steps; int32, (3,). A step
            is bad where the loss, or the label's gradient or new network, is not finite.

    Example:
        >>> import optax
        >>> from flax import nnx
        >>> from flowjax.training import create_state, make_mesh
        >>> state = create_state(lambda: nnx.Linear(2, 1, rngs=nnx.Rngs(0)), optax.sgd(0.1), make_mesh())
        >>> int(state.step), list(state.averages), state.counts["network"].tolist()
        (0, ['average'], [0, 0, 0])
    """

    step: Int[Array, ""]
    networks: Any
    averages: Mapping[str, Any]
    optimizer: Any
    memory: Any = None
    counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def network(self) -> Any:
        """The trained network, or the dict of them."""
        return self.networks

    @property
    def average(self) -> Any:
        """The average that sampling uses."""
        return self.averages["average"]

    def weights(self, raw: bool = False) -> dict[str, Any]:
        """The networks by label: averages where there are any, or with `raw` none."""
        labels = self.counts or {"network": None}
        followed = by_label(self.averages["average"], labels) if "average" in self.averages and not raw else {}
        return {**by_label(self.networks, labels), **followed}


def _born(label: str, build: Callable[[], Any], start: Any) -> Any:
    """A new network, with those of its values that `start` has."""
    network = set_mode(jax.tree.map(jnp.asarray, build()), training=False)
    values = flatten(network)
    for name, leaf in values.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"network {label!r} holds a random stream, {name}: a network is given its keys at each call (key=, and "
                "nnx.Dropout without rngs=), so that a step depends on nothing but seed and number"
            )
    given = {} if start is None else flatten(start)
    for name, leaf in given.items():
        if name not in values or values[name].shape != leaf.shape:
            own = values[name].shape if name in values else "absent"
            raise ValueError(
                f"the start of network {label!r} does not fit: {name} is {leaf.shape} there and {own} here"
            )
    return unflatten({k: given[k].astype(leaf.dtype) if k in given else leaf for k, leaf in values.items()}, network)


def of_label(optimizers: Optimizers, label: str) -> optax.GradientTransformation:
    """The transformation of one label.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(optimizers, Mapping):
        return optimizers
    if label not in optimizers:
        raise ValueError(f"network {label!r} has no optimizer; there are those of {', '.join(optimizers)}")
    return optimizers[label]


def check_size(network: Any, mesh: Mesh, copies: int, rules: Mapping[str, str | None] = RULES) -> None:
    """Refuses a network that the memory of this machine cannot hold. Accelerators refuse by themselves.

    Args:
        network: Shapes, from `jax.eval_shape`.
        mesh: From `make_mesh`.
        copies: Arrays of the size of the network that training keeps.
        rules: Logical axis -> mesh axis.

    Raises:
        ValueError: See `flowjax.data.records.check_memory`.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return
    leaves = zip(jax.tree.leaves(network), jax.tree.leaves(shardings(network, mesh, rules)), strict=True)
    each = sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network))
    check_memory(f"training {count:,} parameters", copies * each * len(mesh.local_devices))


def create_state(
    build: Callable[[], Any] | Mapping[str, Callable[[], Any]],
    optimizers: Optimizers,
    mesh: Mesh,
    rules: Mapping[str, str | None] = RULES,
    *,
    averages: Mapping[str, Average | tuple[Average, tuple[str, ...]]] = MAIN,
    objective: Any = None,
    batch: Any = None,
    start: Mapping[str, Any] | None = None,
) -> TrainState:
    """A new state, born sharded: no device ever holds more than its own part.

    Args:
        build: Makes the network, or for each label one that does; traced, so all arrays must come from JAX calls inside
            it. A dict with the single label "network" is the same as its value.
        optimizers: The transformation whose state is created, or one for each label.
        mesh: From `make_mesh`.
        rules: Logical axis -> mesh axis.
        averages: Laws as for `make_step`.
        objective: Asked for its initial memory; arrays in it are arguments, never constants.
        batch: What `objective.memory` gets.
        start: For some labels the initial values of the network, or of parts of it, by the same names.

    Raises:
        ValueError: A label without optimizer, an average of an unknown label, initial values that do not fit, or a
            network that holds a random stream.
    """
    builds = dict(build) if isinstance(build, Mapping) else {"network": build}
    laws = labelled(averages, builds)
    if unknown := set(start or ()) - set(builds):
        raise ValueError(f"there is a start of {min(unknown)!r}, but no such network: {', '.join(builds)}")

    def born(start: Mapping[str, Any], objective: Any, batch: Any) -> TrainState:
        networks = {label: _born(label, make, start.get(label)) for label, make in builds.items()}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            networks=bare(networks, builds),
            averages={
                name: bare({label: jax.tree.map(jnp.copy, networks[label]) for label in labels}, builds)
                for name, (_, labels) in laws.items()
            },
            optimizer=bare({k: of_label(optimizers, k).init(trainable(v)) for k, v in networks.items()}, builds),
            memory=base.memory(objective, batch),
            counts={label: jnp.zeros(3, jnp.int32) for label in networks},
        )

    arguments = dict(start or {}), objective, batch
    return jax.jit(born, out_shardings=shardings(jax.eval_shape(born, *arguments), mesh, rules))(*arguments)

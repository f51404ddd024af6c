"""Everything that training changes, in one pytree."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from flowjax._pytree import pytree
from flowjax.training.mesh import RULES, shardings


@pytree
class TrainState:
    """The state between two training steps.

    Attributes:
        step: Number of finished steps, skipped ones included.
        network: The trained network, any callable pytree of float arrays (an `nnx.Module` is one), or a dict
            of them.
        average: Exponential moving average of `network`; what sampling uses.
        optimizer: State of the optax transformation.
        memory: The mutable memory of an objective that has one, otherwise None.
        averages: Further averages by name; "target" is the one that an objective asked for.
        skipped: Steps whose loss, gradient or new network was not finite: the last ones in a row, and all; int32, (2,).
    """

    step: Int[Array, ""]
    network: Any
    average: Any
    optimizer: Any
    memory: Any = None
    averages: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    skipped: Any = None


def create_state(
    build: Callable[[], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Mapping[str, str | None] = RULES,
    memory: Any = None,
    averages: Iterable[str] = (),
) -> TrainState:
    """A new state, born sharded: no device ever holds more than its own part.

    Args:
        build: Makes the network; traced, so all its arrays must come from JAX calls inside it.
        optimizer: The transformation whose state is created.
        mesh: From `make_mesh`.
        rules: Logical axis -> mesh axis.
        memory: Initial memory of the objective.
        averages: Names of further averages.
    """

    def born() -> TrainState:
        network = build()
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            network=network,
            average=jax.tree.map(jnp.copy, network),
            optimizer=optimizer.init(network),
            memory=memory,
            averages={name: jax.tree.map(jnp.copy, network) for name in averages},
            skipped=jnp.zeros(2, jnp.int32),
        )

    return jax.jit(born, out_shardings=shardings(jax.eval_shape(born), mesh, rules))()

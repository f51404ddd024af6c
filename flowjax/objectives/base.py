"""The optional parts of an objective, and what wraps one.

An objective has `draw(key, batch, memory=None, *, step=0) -> draws`, which holds everything random, and
`loss(networks, draws) -> (per example (B,), metrics)`, which is deterministic. Leaves of `draws` have a leading axis B
or are scalars; metrics too, and those of more than one axis are for `remember` alone. Further it may have

- `updates(step) -> {label: bool}`: which of the labelled networks move at a step; those it does not name always do.
  The optimiser and the averages of the others are skipped. Their part of the loss is not: `loss` puts it under the same
  flag, drawn as a scalar, with `jax.lax.cond`; a part that mostly rests is given as `jax.checkpoint(part)`, or else its
  backward pass is filled with zeros at rest.
- `memory(batch) -> pytree`: what steps write, such as a bank of errors: numbers, and no typed keys. Arrays that
  are split among devices are `nnx.Variable`s with logical axes: `nnx.Variable(bank, **named("groups", None))`
  (`flowjax.models.layers.named`) lies along the devices that the rows of a batch lie on.
- `head`, `guidance` and `boundary`: which answer of a network of several is sampled, the smallest and largest scale of
  guidance that it learns to answer with, and the options of `flowjax.fields.Bounded` that its field has in training.
- `policy`: what makes a policy (`flowjax.policies`) of the network's answer, where it is one.
- `refines`: that its network, of the label "refiner", lifts the velocities of the teacher, whose network stays the
  flow's.
- `masked`: that it takes the `mask` of padded sets, whose padding then changes nothing.
- `frozen_encoder`: that the encoder of its autoencoder is that of another run.
- `data_free`: that shape and conditions are all that it reads of the data.
- `labels`: of its networks, where there are several; a flow is sampled by the first, the others are partners that only
  training needs. The partner of a student starts as its teacher, whose answer `partner`, if there is one, extends.
- `remember(memory, draws, metrics, good) -> memory`: the memory after a step. A step that is not `good` must not
  change it; a mask on what is written costs less than a choice between two whole memories.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, UInt32

from flowjax._pytree import part, pytree


def updates(objective: Any, step: Int[Array, ""] | int) -> Mapping[str, Any]:
    """Which labelled networks move at a step; labels that are missing always do."""
    return objective.updates(step) if hasattr(objective, "updates") else {}


def memory(objective: Any, batch: Any) -> Any:
    """The memory before the first step, or None."""
    return objective.memory(batch) if hasattr(objective, "memory") else None


def remember(objective: Any, memory: Any, draws: Any, metrics: Any, good: Bool[Array, ""]) -> Any:
    """The memory after a step."""
    return objective.remember(memory, draws, metrics, good) if hasattr(objective, "remember") else memory


def turns(objective: Any, steps: int) -> dict[str, int]:
    """At how many of the first `steps` steps each label that `objective.updates` names moves.

    A schedule of such a label is made for this number of its own updates.
    """
    flags = jax.vmap(lambda step: {k: jnp.asarray(v) for k, v in updates(objective, step).items()})(jnp.arange(steps))
    return {label: int(flag.sum()) for label, flag in flags.items()}


def seed(key: Key[Array, ""]) -> UInt32[Array, " 2"]:
    """What draws keep of the key of one example (its dropout, its noise): numbers, stored and compared like others."""
    return jax.random.bits(key, (2,), jnp.uint32)


def keys(seeds: UInt32[Array, "B 2"]) -> Key[Array, " B"]:
    """The keys of `seed`."""
    return jax.random.wrap_key_data(seeds, impl="threefry2x32")


def with_keys(network: Callable[..., Any], seeds: UInt32[Array, "B 2"] | None) -> Callable[..., Any]:
    """The network as training calls it: one with a `dropout` above zero gets `key=`, one key per example.

    All calls of one loss share their masks, such as those of an antithetic pair.
    """
    if seeds is None or not getattr(network, "dropout", None):
        return network
    return lambda *inputs, **more: network(*inputs, key=keys(seeds), **more)


def frozen(network: Any) -> Any:
    """The network as a constant: what is asked of it moves none of its parameters."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, network)


@pytree
class Wrapped:
    """Base of objectives around another one, whose parts they keep.

    Attributes:
        objective: The inner one.

    Example:
        >>> import flowjax as fj
        >>> inner = fj.objectives.Autoencoding(start=100)
        >>> wrapped = fj.objectives.Assembled(inner, frozen={}, combine=lambda trained, frozen: trained)
        >>> bool(wrapped.updates(99)["discriminator"])  # what it does not change is the inner one's
        False
    """

    positional = ("objective",)

    objective: Any = part("objective")

    def draw(self, key: Array, batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> Any:
        """The inner objective's."""
        return self.objective.draw(key, batch, memory, step=step)

    def loss(self, networks: Any, draws: Any) -> tuple[Array, dict[str, Array]]:
        """The inner objective's."""
        return self.objective.loss(networks, draws)

    def updates(self, step: Int[Array, ""] | int) -> Mapping[str, Any]:
        """The inner objective's."""
        return updates(self.objective, step)

    def memory(self, batch: Any) -> Any:
        """The inner objective's."""
        return memory(self.objective, batch)

    def remember(self, memory: Any, draws: Any, metrics: Any, good: Bool[Array, ""]) -> Any:
        """The inner objective's."""
        return remember(self.objective, memory, draws, metrics, good)

    @property
    def target_average(self) -> Any:
        """The law of the target network, or None."""
        return getattr(self.objective, "target_average", None)

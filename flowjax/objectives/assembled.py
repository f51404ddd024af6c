"""An objective whose networks are put together from trained and frozen parts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float

from flowjax._pytree import pytree
from flowjax.objectives.base import Wrapped


def beside(networks: Any, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """All networks by label; a single trained one is "network"."""
    labelled = isinstance(networks, dict) and all(map(callable, networks.values()))
    return {**(networks if labelled else {"network": networks}), **frozen}


@pytree
class Assembled(Wrapped):
    """An objective whose networks are `combine(trained, frozen)`: teachers, adapters on a base, heads on an encoder.

    The frozen trees are leaves of the objective: arguments of the step in their own precision and sharding, without
    gradients, never saved with a run and never donated. They are used in evaluation mode, as they are.

    Args:
        objective: its loss gets what `combine` returns.
        frozen: trees by label.
        combine: plain function (trained networks, frozen) -> networks; by default both side by side, by label.

    Raises:
        ValueError: a frozen network in training mode.

    Example:
        >>> import jax, jax.numpy as jnp, flowjax as fj
        >>> inner = fj.objectives.FlowMatching(path=fj.paths.Linear())
        >>> objective = Assembled(inner, frozen={"base": {"w": 2.0}}, combine=lambda trained, frozen: (
        ...     lambda x, t, cond: (frozen["base"]["w"] + trained["w"]) * x))
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))})
        >>> objective.loss({"w": jnp.float32(0.0)}, draws)[0].shape
        (4,)
    """

    positional = ("objective",)

    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    combine: Callable[[Any, Mapping[str, Any]], Any] = beside

    def loss(self, networks: Any, draws: Any) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """The objective's loss of the networks put together."""
        return self.objective.loss(self.combine(networks, self.frozen), draws)

"""Guidance of the first channels only, as in the samplers of DiT, SiT and FlowTurbo (3 of 4 latent channels)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.guidance.base import Rule, Wrapper
from flowjax.guidance.cfg import CFG


@fact(
    "rule",
    "channels",
    "a rule for the first channels only",
    cite="peebles2022scalable",
    example=lambda: {"rule": CFG(scale=2.0), "count": 1},
)
@pytree
class Channels(Wrapper):
    """Leaves the conditional prediction in all but the first channels.

    v = the inner rule's result in the first `count` channels of the last axis, c in the others.

    Args:
        rule: the rule for the first channels.
        count: how many are guided, at least 1; 3 in the published samplers.

    Raises:
        ValueError: count below 1; when evaluated, no channel left unguided.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.Channels(rule=fj.guidance.CFG(scale=4.0), count=3)
        >>> c, u = jnp.ones((1, 4)), jnp.zeros((1, 4))
        >>> rule.combine(0.5, c, u, ())[0].tolist()
        [[4.0, 4.0, 4.0, 1.0]]
    """

    rule: Rule = part("rule")
    count: int = static(3)

    def __post_init__(self) -> None:
        """Checks the rule and the number."""
        super().__post_init__()
        whole("[1, inf)", count=self.count)

    def combine(self, t: Any, c: Array, u: Any, state: Any) -> tuple[Array, Any]:
        """The inner rule sees all channels; its result is used in the first ones."""
        if c.shape[-1] <= self.count:
            raise ValueError(f"the state has {c.shape[-1]} channels: with count={self.count} use the inner rule alone")
        guided, state = self.rule.combine(t, c, u, state)
        return jnp.concatenate([guided[..., : self.count], c[..., self.count :]], axis=-1), state

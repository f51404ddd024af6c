"""Two calls of the network in place of one on a doubled batch: less memory, equal numbers."""

from typing import Any

from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.guidance.base import Rule, Wrapper
from flowjax.guidance.cfg import CFG


@fact(
    "rule",
    "separate",
    "a rule whose predictions are calls one after the other",
    cite="ho2022classifier",
    example=lambda: {"rule": CFG(scale=2.0)},
)
@pytree
class Separate(Wrapper):
    """Asks the network for each prediction in a call of its own: half the memory of the doubled batch, equal numbers.

    Args:
        rule: the rule.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: x * cond[:, None], path=fj.paths.Linear(), null=0.0)
        >>> field = fj.guide(flow, fj.guidance.Separate(rule=fj.guidance.CFG(scale=4.0)))
        >>> field.velocity(0.5, jnp.ones((1, 2)), cond=jnp.array([2.0])).tolist()
        [[8.0, 8.0]]
    """

    rule: Rule = part("rule")

    batched = False

    def combine(self, t: Any, c: Array, u: Any, state: Any) -> tuple[Array, Any]:
        """The inner rule's."""
        return self.rule.combine(t, c, u, state)

"""Perturbed-attention guidance (Ahn et al., 2403.17377): away from what the network says when its attention is cut."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax._checks import whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strength, differs, strength
from flowjax.guidance.cfg import CFG
from flowjax.paths.base import expand


@fact(
    "rule",
    "perturbed_attention",
    "guidance away from the network with its attention cut",
    cite="ahn2024self",
    example=lambda: {"scale": 2.0, "rule": CFG(scale=1.5)},
)
@pytree
class PerturbedAttention(Rule):
    """Guidance against the network's own answer with identity attention in some of its blocks.

        v = rule(c, u) + (w - 1) (c - p)

    p is the prediction under the run's condition with `perturbed=`, where attention passes the values of each token on
    as they are. It needs no null condition, and so guides networks without any. For networks that take `perturbed=`,
    such as `flowjax.models.DiT`.

    Args:
        scale: w, as for `CFG`; 1 is without, and the paper's s is w - 1.
        blocks: numbers of the blocks whose attention is cut, from 0.
        rule: a rule for c and u; None is c alone.

    Raises:
        ValueError: a scale that is not finite, blocks that are no numbers; when evaluated, a network without the hook.

    Reference: Ahn et al. (2403.17377), eq. 15 and 16.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> def network(x, t, cond, perturbed=None):
        ...     return x if perturbed is None else jnp.where(perturbed[:, :1] > 0, 0 * x, x)
        >>> flow = fj.Flow(network, path=fj.paths.Linear())
        >>> field = fj.guide(flow, fj.guidance.PerturbedAttention(scale=3.0, blocks=(0,)))
        >>> field.velocity(0.5, jnp.ones((1, 2))).tolist()  # x + (3 - 1) (x - 0)
        [[3.0, 3.0]]
    """

    scale: Any = part("scale", 1.0)
    blocks: tuple[int, ...] = static((0,))
    rule: Any = part("rule", None)

    def __post_init__(self) -> None:
        """Checks the arguments."""
        check_strength(self.scale)
        object.__setattr__(self, "blocks", tuple(self.blocks))
        for block in self.blocks:
            whole("[0, 1000]", blocks=block)
        if not self.blocks or not isinstance(self.rule, Rule | None):
            raise ValueError(f"expected numbers of blocks and a rule or None, got {self.blocks} and {self.rule!r}")

    @property
    def space(self) -> str:
        """The inner rule's."""
        return "any" if self.rule is None else self.rule.space

    @property
    def stateless(self) -> bool:
        """The inner rule's."""
        return self.rule is None or self.rule.stateless

    @property
    def compares(self) -> bool:
        """Only where there is an inner rule that does."""
        return self.rule is not None and self.rule.compares

    @property
    def batched(self) -> bool:
        """The inner rule's."""
        return self.rule is None or self.rule.batched

    @property
    def couples_batch(self) -> bool:
        """The inner rule's."""
        return self.rule is not None and self.rule.couples_batch

    def init(self, x: Array) -> Any:
        """The inner rule's state."""
        return () if self.rule is None else self.rule.init(x)

    def report(self, state: Any) -> Any:
        """The inner rule's."""
        return None if self.rule is None else self.rule.report(state)

    def active(self, t: Any) -> Any:
        """Wherever w is not 1, or the inner rule is active."""
        own = differs(self.scale, t)
        return own if self.rule is None else own | self.rule.active(t)

    def needed(self, t: Any) -> tuple[Any, ...]:
        """What the inner rule needs, and p where w is not 1."""
        own = () if self.rule is None else self.rule.needed(t)
        return (*own, differs(self.scale, t))

    def questions(self, cond: Any, null: Any, also: tuple[Any, ...]) -> tuple[tuple[Any, dict[str, Any]], ...]:
        """What the inner rule asks, and p."""
        if also and self.rule is None:
            raise ValueError("PerturbedAttention alone knows one condition: leave out also=, or give it a rule=")
        own = () if self.rule is None else self.rule.questions(cond, null, also)
        cut = np.zeros(max(self.blocks) + 1, np.float32)
        cut[list(self.blocks)] = 1
        return (*own, (cond, {"perturbed": jnp.asarray(cut)}))

    def combine(self, t: Any, c: Array, u: Any, state: Any) -> tuple[Array, Any]:
        """The inner rule's result and (w - 1) (c - p)."""
        *own, p = u if isinstance(u, tuple) else (u,)
        value = c
        if self.rule is not None:
            value, state = self.rule.combine(t, c, own[0] if len(own) == 1 else tuple(own), state)
        return value + (expand(strength(self.scale, t), c) - 1) * (c - p), state

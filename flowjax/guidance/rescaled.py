"""Rescaled guidance (Lin et al., 2305.08891, section 3.4): another rule's result with part of its spread taken back."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import real
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.guidance.base import Rule, Wrapper
from flowjax.guidance.cfg import CFG
from flowjax.paths.base import at_least_single, divide, expand


@fact(
    "rule",
    "rescaled",
    "a rule whose result gets part of its spread back",
    cite="lin2023common",
    example=lambda: {"rule": CFG(scale=2.0)},
)
@pytree
class Rescaled(Wrapper):
    """Takes the spread of a guided prediction back towards that of the conditional one.

    With v0 the result of the inner rule and std over all axes but the batch's, v = phi (std(c)/std(v0)) v0 + (1 - phi)
    v0. Apply it last. It depends on the prediction it is applied to: here the velocity, or the inner rule's space.

    Args:
        rule: the rule whose result is rescaled.
        phi: how far, in [0, 1]; 0 is the inner rule.

    Raises:
        ValueError: another phi.

    Reference: Lin et al. (2305.08891), section 3.4.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.Rescaled(rule=fj.guidance.CFG(scale=3.0), phi=1.0)
        >>> c, u = jnp.array([[1.0, -1.0]]), jnp.array([[0.0, 0.0]])
        >>> rule.combine(0.5, c, u, ())[0].tolist()  # as far spread as c
        [[1.0, -1.0]]
    """

    rule: Rule = part("rule")
    phi: Any = 0.7

    def __post_init__(self) -> None:
        """Checks both."""
        super().__post_init__()
        real("[0, 1]", phi=self.phi)

    @property
    def space(self) -> str:
        """The inner rule's, or the velocity."""
        return "velocity" if self.rule.space == "any" else self.rule.space

    def combine(self, t: Any, c: Array, u: Any, state: Any) -> tuple[Array, Any]:
        """Phi (std(c)/std(v0)) v0 + (1 - phi) v0."""
        guided, state = self.rule.combine(t, c, u, state)
        axes = tuple(range(1, c.ndim))
        ratio = divide(*(jnp.std(at_least_single(v), axis=axes, keepdims=True) for v in (c, guided)))
        phi = expand(self.phi, c)
        return phi * ratio.astype(c.dtype) * guided + (1 - phi) * guided, state

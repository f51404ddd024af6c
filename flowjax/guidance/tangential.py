"""Tangential damping (Kwon et al., 2503.18137): the part of u that the pair has in common stands against c."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import choose
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strength, differs, inner, strength
from flowjax.paths.base import divide, expand


@fact(
    "rule",
    "tangential",
    "guidance against u without what is tangential to the pair",
    cite="kwon2025tcfg",
    example=lambda: {"scale": 2.0},
)
@pytree
class Tangential(Rule):
    """Classifier-free guidance against the projection of u on the direction that c and u share.

        u' = <u, e> e,   v = u' + w (c - u')

    e is the first right singular vector of the two rows (c, u), per sample. From the 2 x 2 matrix of their inner
    products; no decomposition of anything large.

    Args:
        scale: w, as for `CFG`; 1 is the conditional prediction.
        space: the prediction it works on, "velocity", or "noise" as in the paper, which says nothing where alpha = 0.

    Raises:
        ValueError: a scale that is not finite, or another space.

    Reference: Kwon et al. (2503.18137), algorithm 1.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.Tangential(scale=2.0)
        >>> c, u = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 1.0]])  # they share c alone: u' = 0
        >>> rule.combine(0.5, c, u, ())[0].tolist()
        [[6.0, 0.0]]
    """

    scale: Any = part("scale", 1.0)
    space: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks both."""
        check_strength(self.scale)
        choose("space", self.space, ("velocity", "noise"))

    def active(self, t: Any) -> Any:
        """Wherever w is not 1."""
        return differs(self.scale, t)

    def combine(self, t: Any, c: Array, u: Array, state: Any) -> tuple[Array, Any]:
        """U' + w (c - u')."""
        cc, cu, uu = inner(c, c), inner(c, u), inner(u, u)
        round_ = (cu == 0) & (cc == uu)  # no direction is first: that of c
        angle = jnp.arctan2(2 * cu, jnp.where(round_, 1, cc - uu)) / 2
        a, b = jnp.cos(angle), jnp.sin(angle)
        share = divide(a * cu + b * uu, a**2 * cc + 2 * a * b * cu + b**2 * uu)
        common = (share * a).astype(c.dtype) * c + (share * b).astype(u.dtype) * u
        return common + expand(strength(self.scale, t), c) * (c - common), state

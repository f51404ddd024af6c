"""CFG-Zero* (Fan et al., 2503.18886): guidance against the best multiple of u, and no motion at first."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strength, differs, inner, strength
from flowjax.paths.base import expand


@fact(
    "rule",
    "cfg_zero_star",
    "guidance against the best multiple of u, zero at first",
    cite="fan2025cfgzero",
    example=lambda: {"scale": 2.0},
)
@pytree
class CFGZeroStar(Rule):
    """Guidance with an optimised unconditional part.

    On velocities, per sample: s = <c, u>/(|u|^2 + 1e-8), which minimises |c - s u|, and v = s u + w (c - s u). In the
    first `zero_steps` evaluations v = 0.

    Args:
        scale: w, as for `CFG`; 1 is the conditional prediction (after the zeros).
        zero_steps: number of first evaluations whose velocity is zero; about 4 % of the steps is recommended.

    Raises:
        ValueError: a scale that is not finite, negative zero_steps.

    Reference: Fan et al. (2503.18886).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.CFGZeroStar(scale=3.0, zero_steps=1)
        >>> c, u = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]])
        >>> first, state = rule.combine(0.0, c, u, rule.init(c))
        >>> second, state = rule.combine(0.1, c, u, state)
        >>> first.tolist(), second.tolist()
        ([[0.0, 0.0]], [[1.0, 6.0]])
    """

    space = "velocity"

    scale: Any = part("scale", 1.0)
    zero_steps: int = static(1)

    def __post_init__(self) -> None:
        """Checks both."""
        check_strength(self.scale)
        whole("[0, inf)", zero_steps=self.zero_steps)

    @property
    def stateless(self) -> bool:
        """Only without zeros: those need the number of the evaluation."""
        return self.zero_steps == 0

    def init(self, x: Array) -> Array:
        """The number of the next evaluation."""
        return jnp.int32(0)

    def active(self, t: Any) -> Any:
        """Always with `zero_steps`, which count evaluations; otherwise wherever w is not 1."""
        return True if self.zero_steps else differs(self.scale, t)

    def combine(self, t: Any, c: Array, u: Array, state: Array) -> tuple[Array, Array]:
        """S u + w (c - s u), or zero."""
        s = (inner(c, u) / (inner(u, u) + 1e-8)).astype(c.dtype)
        guided = s * u + expand(strength(self.scale, t), c) * (c - s * u)
        return jnp.where(state < self.zero_steps, 0, guided), state + 1

"""Guidance in a limited interval (Kynkaanniemi et al., 2404.07724): a rule inside [start, end), none outside."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax._checks import real
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.guidance.base import Rule, Wrapper
from flowjax.guidance.cfg import CFG
from flowjax.paths.base import expand


@fact(
    "rule",
    "interval",
    "a rule inside an interval of times",
    cite="kynkaanniemi2024applying",
    example=lambda: {"rule": CFG(scale=2.0), "start": 0.2, "end": 0.8},
)
@pytree
class Interval(Wrapper):
    """Applies a rule for start <= t < end; outside, the conditional prediction at the cost of one evaluation.

    Args:
        rule: the rule inside.
        start: first time, in [0, 1].
        end: end of the interval, in [0, 1]. A noise level k = sigma/alpha of the paper is t = path.time(-log k).

    Raises:
        ValueError: a time outside [0, 1], an end before the start, or a later start of a rule with zeros at first.

    Reference: Kynkaanniemi et al. (2404.07724).

    Example:
        >>> import flowjax as fj
        >>> rule = fj.guidance.Interval(rule=fj.guidance.CFG(scale=4.0), start=0.2, end=0.8)
        >>> [bool(rule.active(t)) for t in (0.1, 0.2, 0.5, 0.8)]
        [False, True, True, False]
    """

    rule: Rule = part("rule")
    start: Any = 0.0
    end: Any = 1.0

    def __post_init__(self) -> None:
        """Checks the rule and the times."""
        super().__post_init__()
        real("[0, 1]", start=self.start, end=self.end)
        ends = (self.start, self.end)
        if not any(isinstance(t, jax.core.Tracer) for t in ends) and np.any(np.asarray(self.start) > self.end):
            raise ValueError(f"an interval needs start <= end, got start={self.start} and end={self.end}")
        zeros = getattr(self.rule, "zero_steps", 0)
        if zeros and not isinstance(self.start, jax.core.Tracer) and np.any(np.asarray(self.start) > 0):
            raise ValueError(
                f"zero_steps={zeros} are the first of a run, and the interval begins at {self.start}: take zero_steps=0"
            )

    def _inside(self, t: Any) -> Any:
        return (jnp.asarray(t) >= self.start) & (jnp.asarray(t) < self.end)

    def active(self, t: Any) -> Any:
        """Inside, if the inner rule is active."""
        return jnp.any(self._inside(t)) & self.rule.active(t)

    def needed(self, t: Any) -> tuple[Any, ...]:
        """Inside, what the inner rule needs."""
        return tuple(jnp.any(self._inside(t)) & needed for needed in self.rule.needed(t))

    def combine(self, t: Any, c: Array, u: Any, state: Any) -> tuple[Array, Any]:
        """The inner rule for the samples inside, c for the others."""
        value, state = self.rule.combine(t, c, u, state)
        return jnp.where(expand(self._inside(t), c).astype(bool), value, c), state

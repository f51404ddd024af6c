"""What a guidance rule is."""

import abc
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._checks import real
from flowjax.paths.base import at_least_single


class Rule(abc.ABC):
    """Combines the prediction with the condition, c, and without it, u.

    Strength is always w, with w = 1 the conditional prediction itself and v = u + w (c - u).

    Attributes:
        space: the prediction the rule is defined on, or "any" for a rule that gives the same in all of them.
        stateless: whether the rule needs nothing from one evaluation to the next.
        compares: whether it needs `against`, the null condition or a weaker model.
        batched: whether all its predictions are one call of the network on a batch that many times as large.
        couples_batch: whether a sample depends on its batch mates.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> from flowjax._pytree import pytree
        >>> @pytree
        ... class Difference(fj.guidance.Rule):
        ...     def active(self, t):
        ...         return True
        ...     def combine(self, t, c, u, state):
        ...         return c + (c - u), state  # CFG with w = 2
        >>> c, u = jnp.full((1, 2), 3.0), jnp.ones((1, 2))
        >>> [rule.combine(0.5, c, u, ())[0].tolist() for rule in (Difference(), fj.guidance.CFG(scale=2.0))]
        [[[5.0, 5.0]], [[5.0, 5.0]]]
    """

    space: str = "any"
    stateless: bool = True
    compares: bool = True
    batched: bool = True
    couples_batch: bool = False

    def init(self, x: Array) -> Any:
        """State before the first evaluation."""
        return ()

    @abc.abstractmethod
    def active(self, t: Any) -> Any:
        """Whether u is needed at time t (scalar or (B,)); where not, the evaluation without condition is saved."""

    def needed(self, t: Any) -> tuple[Any, ...]:
        """Which of the predictions that `questions` asks for are needed at time t; most rules ask for one."""
        return (self.active(t),)

    def questions(self, cond: Any, null: Any, also: tuple[Any, ...]) -> tuple[tuple[Any, dict[str, Any]], ...]:
        """What is asked beside the run's own condition: conditions, each with further arguments of the network.

        Args:
            cond: the condition of the run, (B, ...).
            null: what stands against it, likewise (B, ...); a field, where that is a weaker model.
            also: further conditions, (B, ...) each.
        """
        if also:
            raise ValueError(
                f"{type(self).__name__} knows one condition: leave out also=, or take Composed(scales=...)"
            )
        return ((null, {}),)

    @abc.abstractmethod
    def combine(self, t: Any, c: Array, u: Any, state: Any) -> tuple[Array, Any]:
        """The guided prediction (B, ...) and the next state; u is a tuple where several questions are asked.

        Of predictions that are not needed u holds c in their place.
        """

    def idle(self, state: Any) -> Any:
        """The state after an evaluation for which the rule was not asked."""
        return state

    def report(self, state: Any) -> Any:
        """What to report of an evaluation, or None."""
        return None


def strength(scale: Any, t: Any) -> Any:
    """A scale at time t: that of a function, or the number or numbers themselves."""
    return scale(t) if callable(scale) else scale


def differs(scale: Any, t: Any, neutral: float = 1.0) -> Any:
    """Whether a scale is not neutral at time t, for one of the samples."""
    return jnp.any(jnp.asarray(strength(scale, t)) != neutral)


def check_strength(scale: Any, name: str = "scale") -> None:
    """Raises ValueError for a scale that is neither a function nor made of finite numbers (traced ones pass)."""
    if not callable(scale):
        real("(-inf, inf)", **{name: scale})


def check_strengths(scales: Any, least: int) -> None:
    """Raises ValueError unless `scales` is a tuple of at least so many scales."""
    if not isinstance(scales, tuple | list) or len(scales) < least:
        raise ValueError(f"scales must hold {least} or more scales, got {scales!r}")
    for scale in scales:
        check_strength(scale, "scales")


class Wrapper(Rule):
    """A rule around a rule: everything is the inner rule's unless it says otherwise.

    Attributes:
        rule: the inner rule.

    Example:
        >>> import flowjax as fj
        >>> rule = fj.guidance.Rescaled(rule=fj.guidance.APG(scale=4.0))
        >>> rule.space, rule.stateless  # of the inner rule
        ('data', False)
    """

    rule: Rule

    def __post_init__(self) -> None:
        """Checks the inner rule.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(self.rule, Rule):
            raise ValueError(f"expected a rule, such as flowjax.guidance.CFG(scale=4.0), got {self.rule!r}")

    @property
    def space(self) -> str:
        """The inner rule's."""
        return self.rule.space

    @property
    def stateless(self) -> bool:
        """The inner rule's."""
        return self.rule.stateless

    @property
    def compares(self) -> bool:
        """The inner rule's."""
        return self.rule.compares

    @property
    def batched(self) -> bool:
        """The inner rule's."""
        return self.rule.batched

    @property
    def couples_batch(self) -> bool:
        """The inner rule's."""
        return self.rule.couples_batch

    def init(self, x: Array) -> Any:
        """The inner rule's state."""
        return self.rule.init(x)

    def active(self, t: Any) -> Any:
        """Where the inner rule is."""
        return self.rule.active(t)

    def needed(self, t: Any) -> tuple[Any, ...]:
        """What the inner rule needs."""
        return self.rule.needed(t)

    def questions(self, cond: Any, null: Any, also: tuple[Any, ...]) -> tuple[tuple[Any, dict[str, Any]], ...]:
        """What the inner rule asks."""
        return self.rule.questions(cond, null, also)

    def idle(self, state: Any) -> Any:
        """The inner rule's state."""
        return self.rule.idle(state)

    def report(self, state: Any) -> Any:
        """The inner rule's."""
        return self.rule.report(state)


def norm(x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """Euclidean norm over all axes but the first, kept as axes of length 1, in at least single precision.

    Its gradient at 0 is 0.
    """
    square = inner(x, x)
    return jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))


def inner(x: Float[Array, "batch ..."], y: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """Inner product over all axes but the first, kept as axes of length 1, in at least single precision."""
    return jnp.sum(at_least_single(x) * at_least_single(y), axis=tuple(range(1, x.ndim)), keepdims=True)

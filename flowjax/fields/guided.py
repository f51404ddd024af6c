"""A field steered by a guidance rule.

The pair with and without condition is one call of the network on a doubled batch, interleaved (c_0, u_0, c_1, u_1, ...)
so that each device of a sharded batch holds whole pairs and nothing moves. Where the rule is neutral (scale 1, outside
its interval) the half without condition is not computed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax._trees import with_parts
from flowjax.facts import fact
from flowjax.fields.wrapper import FieldWrapper, check_convertible
from flowjax.flow import Counts, Field, check_determined, check_field
from flowjax.guidance.autoguidance import Autoguidance
from flowjax.guidance.base import Rule


@fact("field", "guided", "a field steered by a rule", cite="ho2022classifier")
@pytree
class Guided(FieldWrapper):
    """A field, a rule, and what stands against the condition: another condition, or another field.

    With `guide(field, rule)`, which fills in `against`: value = rule(c, u), c the field's prediction under the
    condition, u that under the condition `against`, or of the field `against` under the same condition.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: x * cond[:, None], path=fj.paths.Linear(), null=0.0)
        >>> field = fj.guide(flow, fj.guidance.CFG(scale=4.0))
        >>> field.velocity(0.5, jnp.ones((1, 2)), cond=jnp.array([2.0])).tolist()  # u = 0, c = 2
        [[8.0, 8.0]]
    """

    positional = ("field", "rule", "against")

    field: Field = part("field")
    rule: Rule = part("rule")
    against: Any  # type: ignore[misc]

    null = None  # it is guided already: guiding it again needs an `against` of its own

    @property
    def _fields(self) -> tuple[Field, ...]:
        return (self.field, self.against) if isinstance(self.against, Field) else (self.field,)

    @property
    def stateless(self) -> bool:
        """Whether the rule and the fields are."""
        return self.rule.stateless and all(field.stateless for field in self._fields)

    @property
    def one_evaluation_per_step(self) -> bool:
        """Whether one of the fields asks for it."""
        return any(field.one_evaluation_per_step for field in self._fields)

    @property
    def convertible(self) -> bool:
        """Whether the predictions of the fields are."""
        return all(field.convertible for field in self._fields)

    def init(self, x: Array, times: Any = None) -> Any:
        """Memories of the field and of the one against it, and the rule's state."""
        own = self.field.init(x, times)
        if isinstance(self.against, Field):
            other = self.against.init(x, times)
        else:  # what a field keeps of each sample (reports of a rule inside) would not fit a doubled batch
            other = self.field.init(x, times) if any(map(jnp.ndim, jax.tree.leaves(own))) else None
        return own, other, self.rule.init(x)

    def check(self, times: Any, to: str) -> None:
        """Both fields must give what the rule works on, and that must determine `to`."""
        space = to if self.rule.space == "any" else self.rule.space
        if to == "raw" and space != "raw":
            raise ValueError(
                f"{type(self.rule).__name__} works on the {space} prediction, not on the raw network output"
            )
        for t in times:
            active = self.rule.active(t)
            if not isinstance(active, jax.core.Tracer) and not bool(active):
                self.field.check([t], to)  # the rule is not asked
                continue
            for field in self._fields:
                field.check([t], space)
                if space != to:
                    check_convertible(self.rule, field)
            if space != to:
                check_determined(self.path, space, to, float(t))

    def report(self, memory: Any) -> Any:
        """The rule's or the field's; {"rule": ..., "field": ...} where both report."""
        own, rule = self.field.report(memory[0]), self.rule.report(memory[2])
        if own is None or rule is None:
            return own if rule is None else rule
        return {"rule": rule, "field": own}

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Any]:
        """The guided prediction; the rule decides whether the pair is needed."""
        space = to if self.rule.space == "any" else self.rule.space

        def pair(memory: Any) -> tuple[Array, Any]:
            own, other, state = memory
            if isinstance(self.against, Field) or other is not None:
                rival, null = self.against, cond
                if not isinstance(rival, Field):
                    rival, null = self.field, _like(self.against, cond)
                c, own = self.field.evaluate(t, x, cond, own, to=space, **extra)
                u, other = rival.evaluate(t, x, null, other, to=space, **extra)
                other = _not_an_evaluation(other)
            else:
                doubled = _interleave(x, x)
                both, own = self.field.evaluate(
                    t if jnp.ndim(t) == 0 else _interleave(t, t),
                    doubled,
                    jax.tree.map(_interleave, cond, _like(self.against, cond)),
                    own,
                    to=space,
                    **{k: v if jnp.ndim(v) == 0 else _interleave(v, v) for k, v in extra.items() if v is not None},
                )
                # Every second row by steps would be a gather in jax 0.7, for which devices exchange rows.
                c, u = jnp.unstack(both.reshape(-1, 2, *both.shape[1:]), axis=1)
            value, state = self.rule.combine(t, c, u, state)
            if space != to:
                value = self.path.convert(value, given=space, to=to, t=t, x=x)
            return value, (own, other, state)

        def single(memory: Any) -> tuple[Array, Any]:
            own, other, state = memory
            value, own = self.field.evaluate(t, x, cond, own, to=to, **extra)
            return value, (own, other, state)

        active = self.rule.active(t)
        if not isinstance(active, jax.core.Tracer):
            return pair(memory) if bool(active) else single(memory)
        return jax.lax.cond(active, pair, single, memory)


def guide(field: Field, rule: Rule, against: Any = None) -> Guided:
    """Steers a field by a guidance rule.

    Args:
        field: a `Flow` (or another field without memory), or one around it.
        rule: from `flowjax.guidance`.
        against: what the rule compares with: a condition (a pytree like `cond` whose leaves are broadcast over the
            batch) or a field, for example a weaker model (autoguidance). None takes the flow's own `null` condition,
            also through what is around it.

    Returns:
        A field; the condition itself is given at sampling time, as for `field`.

    Raises:
        ValueError: nothing to compare with, or a field with a memory (put the guidance inside: SADA(guide(flow,
            rule))).

    Example:
        >>> import flowjax as fj
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear(), null=10)
        >>> field = fj.guide(flow, fj.guidance.CFG(scale=4.0))
    """
    check_field(field)
    if not isinstance(rule, Rule):
        raise ValueError(f"expected a rule, such as flowjax.guidance.CFG(scale=4.0), got {rule!r}")
    if against is None:
        against = field.null
        if against is None:
            raise ValueError(
                "guidance needs something to compare the condition with: pass against=, the condition that stands for "
                "none (for class labels the number of classes) or a second field, or give the Flow its null="
            )
    if isinstance(rule, Autoguidance) and not isinstance(against, Field):
        raise ValueError("autoguidance compares with a weaker model: pass it as against=, a field")
    for other in (field, against):
        if isinstance(other, Field) and not other.stateless:
            raise ValueError(f"{type(other).__name__} has a memory: put the guidance inside it, not around it")
    return Guided(field, rule, against)


def _interleave(a: Array, b: Array) -> Array:
    """Rows a_0, b_0, a_1, b_1, ..."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])


def _like(null: Any, cond: Any) -> Any:
    """The null condition broadcast to the batch of `cond`."""
    if cond is None:
        raise ValueError("guidance needs a condition: pass cond= with a leading batch axis")
    return with_parts(lambda n, c: jnp.broadcast_to(jnp.asarray(n, jnp.asarray(c).dtype), jnp.shape(c)), null, cond)


def _not_an_evaluation(memory: Any) -> Any:
    """A guided pair is one evaluation: the one against adds network calls only."""
    return jax.tree.map(
        lambda m: (
            Counts(evaluations=jnp.zeros_like(m.evaluations), network_calls=m.network_calls, batch=m.batch)
            if isinstance(m, Counts)
            else m
        ),
        memory,
        is_leaf=lambda m: isinstance(m, Counts),
    )

"""A field steered by a guidance rule.

The pair with and without condition is one call of the network on a doubled batch, interleaved (c_0, u_0, c_1, u_1, ...)
so that each device of a sharded batch holds whole pairs and nothing moves; rules that compare with several predictions
make a larger one. What a rule does not need at a time (scale 1, outside its interval) is not computed.
"""

from collections.abc import Sequence
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
    condition, u that under the condition `against`, or of the field `against` under the same condition. Some rules ask
    for more: under the conditions `also`, or with parts of the condition left out.

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
    also: tuple[Any, ...] = ()

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
        others = None
        # What a field keeps of each sample (reports of a rule inside) would not fit a doubled batch.
        if isinstance(self.against, Field) or not self.rule.batched or any(map(jnp.ndim, jax.tree.leaves(own))):
            # Without values: which questions go to the field against is known without conditions.
            asked = self.rule.needed(0.5)
            rivals = [
                self.against if isinstance(self.against, Field) and not i else self.field for i in range(len(asked))
            ]
            others = tuple(rival.init(x, times) for rival in rivals)
        return own, others, self.rule.init(x)

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
        """The guided prediction; the rule decides what of it is needed."""
        space = to if self.rule.space == "any" else self.rule.space
        needed = self.rule.needed(t)
        extra = {name: value for name, value in extra.items() if value is not None}

        def guided(count: int, memory: Any) -> tuple[Array, Any]:
            """With `count` of the questions, in one call; with all that are needed, one after the other."""
            own, others, state = memory
            questions = self._questions(cond, x.shape[0])
            if others is None:
                c, u, own = self._together(t, x, cond, own, space, extra, questions, needed, count)
            else:
                c, own = self.field.evaluate(t, x, cond, own, to=space, **extra)
                u, others = self._apart(t, x, c, cond, others, space, extra, questions, needed)
            value, state = self.rule.combine(t, c, u[0] if len(u) == 1 else tuple(u), state)
            if space != to:
                value = self.path.convert(value, given=space, to=to, t=t, x=x)
            return value, (own, others, state)

        def single(memory: Any) -> tuple[Array, Any]:
            own, others, state = memory
            value, own = self.field.evaluate(t, x, cond, own, to=to, **extra)
            return value, (own, others, self.rule.idle(state))

        count = sum(one.astype(int) if isinstance(one, jax.Array) else int(one) for one in needed)
        ways = [single, *(lambda memory, k=k: guided(k, memory) for k in range(1, len(needed) + 1))]
        if memory[1] is not None:
            ways = [single] + ways[-1:] * len(needed)
        if not isinstance(count, jax.core.Tracer):
            return ways[int(count)](memory)
        if len(set(ways)) == 2:
            return jax.lax.cond(count > 0, ways[1], single, memory)
        return jax.lax.switch(count, ways, memory)

    def _questions(self, cond: Any, batch: int) -> tuple[tuple[Any, dict[str, Any]], ...]:
        """What the rule asks, each with the same further arguments: those that one does not say are zero."""
        null = self.against
        if self.rule.compares and not isinstance(null, Field):
            null = _like(null, cond)
        found = self.rule.questions(cond, null, tuple(_like(other, cond) for other in self.also))
        none = {name: jnp.zeros_like(value) for _, more in found for name, value in more.items()}
        rows = [jax.tree.map(lambda v: jnp.broadcast_to(v, (batch, *v.shape)), none | more) for _, more in found]
        return tuple((asked, more) for (asked, _), more in zip(found, rows, strict=True))

    def _together(
        self,
        t: Any,
        x: Array,
        cond: Any,
        memory: Any,
        space: str,
        extra: dict[str, Any],
        questions: tuple[Any, ...],
        needed: tuple[Any, ...],
        count: int,
    ) -> tuple[Array, list[Array], Any]:
        """The first prediction and the others by one call on (count + 1) batches; c stands for those not needed."""
        which: Any = range(count)
        if count < len(questions):  # those that are needed, of which only their number is known here
            which = jnp.argsort(jnp.logical_not(jnp.stack([jnp.asarray(one) for one in needed])), stable=True)[:count]
            stacked = jax.tree.map(lambda *parts: jnp.stack([jnp.asarray(part) for part in parts]), *questions)
            questions = tuple(jax.tree.map(lambda part, i=i: part[which[i]], stacked) for i in range(count))
        own = {name: jnp.zeros_like(value) for name, value in questions[0][1].items()}
        asked, more = zip((cond, own), *questions, strict=True)
        k = count + 1
        many, memory = self.field.evaluate(
            t if jnp.ndim(t) == 0 else _interleave(*[t] * k),
            _interleave(*[x] * k),
            jax.tree.map(_interleave, *asked),
            memory,
            to=space,
            **{name: v if jnp.ndim(v) == 0 else _interleave(*[v] * k) for name, v in extra.items()},
            **{name: _interleave(*(one[name] for one in more)) for name in own},
        )
        # Every k-th row by steps would be a gather in jax 0.7, for which devices exchange rows.
        c, *found = jnp.unstack(many.reshape(-1, k, *many.shape[1:]), axis=1)
        if count < len(needed):
            u = jnp.stack([c] * len(needed)).at[which].set(jnp.stack(found))
            found = list(jnp.unstack(u))
        return c, found, memory

    def _apart(
        self,
        t: Any,
        x: Array,
        c: Array,
        cond: Any,
        memories: tuple[Any, ...],
        space: str,
        extra: dict[str, Any],
        questions: tuple[Any, ...],
        needed: tuple[Any, ...],
    ) -> tuple[list[Array], tuple[Any, ...]]:
        """The other predictions, each by a call of its own; c stands for those not needed."""
        found, after = [], []
        for (asked, more), memory, one in zip(questions, memories, needed, strict=True):
            rival, asked = (asked, cond) if isinstance(asked, Field) else (self.field, asked)

            def ask(memory: Any, rival: Any = rival, asked: Any = asked, more: Any = more) -> tuple[Array, Any]:
                value, memory = rival.evaluate(t, x, asked, memory, to=space, **extra, **more)
                return value, not_an_evaluation(memory)

            if len(questions) == 1:
                value, memory = ask(memory)
            else:
                value, memory = jax.lax.cond(one, ask, lambda memory: (c, memory), memory)
            found.append(value)
            after.append(memory)
        return found, tuple(after)


def guide(field: Field, rule: Rule, against: Any = None, *, also: Sequence[Any] = ()) -> Guided:
    """Steers a field by a guidance rule.

    Args:
        field: a `Flow` (or another field without memory), or one around it.
        rule: from `flowjax.guidance`.
        against: what the rule compares with: a condition (a pytree like `cond` whose leaves are broadcast over the
            batch) or a field, for example a weaker model (autoguidance). None takes the flow's own `null` condition,
            also through what is around it. A negative condition stands here: what the sample is to be led away from.
        also: further conditions, for `flowjax.guidance.Composed`.

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
    if against is None and rule.compares:
        against = field.null
        if against is None:
            raise ValueError(
                "guidance needs something to compare the condition with: pass against=, the condition that stands for "
                "none (for class labels the number of classes) or a second field, or give the Flow its null="
            )
    if against is not None and not rule.compares:
        raise ValueError(f"{type(rule).__name__} compares with no other condition: leave out against=")
    innermost: Any = rule
    while getattr(innermost, "rule", None) is not None:
        innermost = innermost.rule
    if isinstance(innermost, Autoguidance) and not isinstance(against, Field):
        raise ValueError("autoguidance compares with a weaker model: pass it as against=, a field")
    for other in (field, against):
        if isinstance(other, Field) and not other.stateless:
            raise ValueError(f"{type(other).__name__} has a memory: put the guidance inside it, not around it")
    return Guided(field, rule, against, also=tuple(also))


def _interleave(*parts: Array) -> Array:
    """Rows a_0, b_0, a_1, b_1, ..."""
    parts = tuple(jnp.asarray(part) for part in parts)
    return jnp.stack(parts, axis=1).reshape(len(parts) * parts[0].shape[0], *parts[0].shape[1:])


def _like(null: Any, cond: Any) -> Any:
    """The null condition broadcast to the batch of `cond`."""
    if cond is None:
        raise ValueError("guidance needs a condition: pass cond= with a leading batch axis")
    return with_parts(lambda n, c: jnp.broadcast_to(jnp.asarray(n, jnp.asarray(c).dtype), jnp.shape(c)), null, cond)


def not_an_evaluation(memory: Any) -> Any:
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

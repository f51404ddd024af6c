"""The base of fields that save evaluations: some steps reach the network, others are answered from what is known."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowjax._pytree import part, pytree
from flowjax.fields.wrapper import DataWrapper
from flowjax.flow import Field, check_determined
from flowjax.paths.base import precision


@pytree
class Spared:
    """Memory of a field that saves evaluations.

    Attributes:
        field: that of the inner field.
        times: the grid, (n + 1,); a single time outside of a run, where nothing is saved.
        step: number of the evaluation that comes next.
        run: how many were saved in a row.
        skipped: whether the last one was saved.
        measure: the number that decided about it.
        own: what the answers are made from.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> memory = fj.fields.EveryNth(flow, n=2).init(jnp.ones((3, 2)), fj.times.uniform(10))
        >>> int(memory.step), memory.steps
        (0, 10)
    """

    field: Any
    times: Float[Array, " times"]
    step: Int[Array, ""]
    run: Int[Array, ""]
    skipped: Bool[Array, ""]
    measure: Float[Array, ""]
    own: Any

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return self.times.shape[0] - 1


class Saving(DataWrapper):
    """A field that asks the network at some steps only.

    One decision for the whole batch, by a scalar that all devices have, and a `jax.lax.cond` around the network: a
    saved evaluation costs nothing, and is not counted. Under `jax.vmap` a condition becomes a choice between two
    computed values, and nothing is saved. `Solution.report["skipped"]` is the mask of saved steps, `["measure"]` what
    decided.

    Example:
        >>> import flowjax as fj
        >>> issubclass(fj.fields.SADA, fj.fields.Saving)
        True
    """

    positional = ("field",)

    field: Field = part("field")

    stateless = False
    one_evaluation_per_step = True

    def __post_init__(self) -> None:
        """Checks the field.

        Raises:
            ValueError: it is none, its predictions cannot be converted, or it saves evaluations itself.
        """
        super().__post_init__()
        if self.field.one_evaluation_per_step:
            raise ValueError(f"{type(self).__name__} and {type(self.field).__name__} both save evaluations: use one")

    @property
    def asked(self) -> Field:
        """What is evaluated where the network is reached."""
        return self.field

    @abc.abstractmethod
    def begin(self, x: Array, steps: int) -> Any:
        """`Spared.own` before the first of `steps` evaluations (0 outside of a run)."""

    @abc.abstractmethod
    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """Whether the evaluation at (t, x) is saved, the number that decides it, and what else `answer` is to know."""

    @abc.abstractmethod
    def answer(self, t: Any, x: Array, memory: Spared, more: Any, to: str) -> Array:
        """The prediction `to` of an evaluation that is saved."""

    @abc.abstractmethod
    def remember(self, t: Any, x: Array, value: Array, to: str, skip: Array, memory: Spared, more: Any) -> Any:
        """`Spared.own` after the prediction `to` at (t, x) was given, by the network or (skip) without."""

    def init(self, x: Array, times: Any = None) -> Spared:
        """The memory before the first step."""
        grid = jnp.zeros(1, precision(x)) if times is None else jnp.asarray(times, precision(x))
        own = self.begin(x, grid.shape[0] - 1)
        zero, no = jnp.int32(0), jnp.array(False)
        measure = jnp.zeros((), precision(x))
        return Spared(
            field=self.asked.init(x, times), times=grid, step=zero, run=zero, skipped=no, measure=measure, own=own
        )

    def check(self, times: Any, to: str) -> None:
        """All predictions must be known at every step.

        Raises:
            ValueError: at a time where one is not, or "raw" is asked for.
        """
        super().check(times, to)
        self.field.check(times, to)
        for t in times:
            check_determined(self.path, to, "velocity", float(t))
            if not self.path.has_velocity(float(t)):
                raise ValueError(
                    f"{type(self).__name__} works on the velocity, which is infinite at t = {t:g} of {self.path!r}: "
                    "move that end of the times"
                )

    def report(self, memory: Spared) -> Any:
        """{"skipped": whether the evaluation was saved, "measure": what decided}, and the field's as "field"."""
        own, inner = {"skipped": memory.skipped, "measure": memory.measure}, self.asked.report(memory.field)
        return own if inner is None else {**own, "field": inner}

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Spared, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Spared]:
        """The prediction, of the network or of what is known.

        Raises:
            ValueError: `end`, or "raw".
        """
        if extra.get("end") is not None or to == "raw":
            what = "the raw answer" if to == "raw" else "an average velocity (end=)"
            raise ValueError(f"{type(self).__name__} saves predictions at one time, and is asked for {what}")
        skip, measure, more = self.decide(t, x, cond, memory)
        skip = jnp.asarray(skip) & (memory.step > 0) & (memory.step < memory.steps)

        def save(inner: Any) -> tuple[Array, Any]:
            return self.answer(t, x, memory, more, to).astype(x.dtype), inner

        def ask(inner: Any) -> tuple[Array, Any]:
            return self.asked.evaluate(t, x, cond, inner, to=to, **self.ask_for(x, memory, more), **extra)

        value, inner = jax.lax.cond(skip, save, ask, memory.field)
        return value, Spared(
            field=inner,
            times=memory.times,
            step=memory.step + 1,
            run=jnp.where(skip, memory.run + 1, 0),
            skipped=skip,
            measure=jnp.asarray(measure, memory.measure.dtype),
            own=self.remember(t, x, value, to, skip, memory, more),
        )

    def ask_for(self, x: Array, memory: Spared, more: Any) -> dict[str, Any]:
        """What the network is asked for besides."""
        return {}

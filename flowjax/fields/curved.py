"""The field of a network that answers with a policy: velocities for a stretch of time from one evaluation."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.fields.embedded import Embedded
from flowjax.fields.wrapper import FieldWrapper
from flowjax.flow import Field, Flow, check_determined, network_times
from flowjax.policies import Head


@fact("field", "curved", "a network that answers with velocities for a stretch of time", cite="chen2025piflow")
@pytree
class Curved(FieldWrapper):
    """A field whose raw answer at (t, x) is that of a `flowjax.policies.Head`.

    Asked with `end=` it answers with the policy's mean velocity from t to there, which `flowjax.solvers.Policy` follows
    in one evaluation per step; asked without, with the velocity at t, for every other solver.

    Args:
        field: the flow of the network.
        policy: the head that makes a policy of its answer.

    Raises:
        ValueError: a field that changes what the network answers; such fields go around this one.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> policy = fj.policies.Momentum(components=1)  # a straight line: one velocity, one weight
        >>> flow = fj.Flow(lambda x, t, cond: jnp.concatenate([2 - x, x], axis=1), path=fj.paths.Linear())
        >>> field, times = fj.fields.Curved(flow, policy=policy), fj.times.uniform(2)
        >>> float(fj.solve(field, fj.solvers.Policy(), jnp.zeros((1, 1)), times).x[0, 0])
        1.5
    """

    positional = ("field",)

    field: Field = part("field")
    policy: Head = part("policy")

    def __post_init__(self) -> None:
        """Checks the field."""
        super().__post_init__()
        inner: Any = self.field
        while isinstance(inner, Embedded):
            inner = inner.field
        if not isinstance(inner, Flow):
            raise ValueError(
                f"Curved reads the network's own answers, which {type(inner).__name__} does not give: put it "
                "around the Flow, and other fields around Curved"
            )

    @property
    def network(self) -> Any:
        """That of the flow inside."""
        return self.field.network  # type: ignore[attr-defined]

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", end: Any = None, **extra: Any
    ) -> tuple[Array, Any]:
        """The mean velocity up to `end`, or the prediction that belongs to the velocity at t.

        Raises:
            ValueError: `end` with another prediction than the velocity.
        """
        if end is not None and to != "velocity":
            raise ValueError(f"up to an end there is a mean velocity, and no mean {to}")
        answer, memory = self.field.evaluate(t, x, cond, memory, to="raw", **extra)
        t = network_times(t, x)
        policy = self.policy.policy(answer, t, x)
        if end is not None:
            return policy.average_velocity(x, t, jnp.broadcast_to(jnp.asarray(end, t.dtype), t.shape)), memory
        return self.path.convert(policy.velocity(t, x), given="velocity", to=to, t=t, x=x), memory

    def check(self, times: Any, to: str) -> None:
        """The velocity must determine what is asked for.

        Raises:
            ValueError: at a time where it does not, or "raw" is asked for.
        """
        if to == "raw":
            raise ValueError("Curved works on the raw network output, and gives it to nobody else")
        for t in times:
            check_determined(self.path, "velocity", to, float(t))

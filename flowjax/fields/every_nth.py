"""Uniform skipping: every n-th step reaches the network."""

from typing import Any

from jaxtyping import Array

from flowjax._checks import whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields.held import Held
from flowjax.fields.saving import Spared
from flowjax.flow import Field


@fact("field", "every_nth", "every n-th step reaches the network")
@pytree
class EveryNth(Held):
    """A field whose network is asked at every `n`-th step only.

    Args:
        field: the field, guidance included.
        n: steps from one call to the next, at least 1.
        warmup: share of the steps at the beginning that always reach the network.
        keep: the prediction that stays what it was: "velocity", "noise" or "data".

    Raises:
        ValueError: a number or name that is not allowed; when it is bound, a solver with other evaluations than one per
            step.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> field = fj.fields.EveryNth(flow, n=2)
        >>> result = fj.solve(field, fj.solvers.Euler(), jnp.ones((1, 1)), fj.times.uniform(9))
        >>> int(result.evaluations), result.report["skipped"].tolist()[:4]
        (5, [False, True, False, True])
    """

    field: Field = part("field")
    n: Any = 2
    warmup: Any = 0.0
    keep: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        whole("[1, 10000]", n=self.n)

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """By the number of calls saved in a row."""
        run = memory.run + 1
        return self.allowed(memory) & (run < self.n), run.astype(memory.measure.dtype), ()

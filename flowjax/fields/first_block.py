"""Calls skipped while the first block of a transformer says the same (the first block cache of ParaAttention)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields.held import Held
from flowjax.fields.probed import check_probe, no_probe, probe, relative_change
from flowjax.fields.saving import Spared
from flowjax.flow import Field


@fact("field", "first_block", "calls skipped while the first block says the same", couples_batch=True)
@pytree
class FirstBlock(Held):
    """A field that asks its network when its first block answers otherwise than at the last call.

    With r the residual of the first transformer block (what it adds), a step is saved while the mean of |r - r_c| over
    everything, the batch included, is below `threshold` times that of |r_c|, r_c the residual at the last call. The
    first block is computed at every step, and once more in a call: 1/depth of a network each.

    Args:
        field: the field, guidance included; the residual is that of its condition.
        threshold: a number, not negative.
        warmup: share of the steps at the beginning that always reach the network.
        keep: the prediction that stays what it was: "velocity", "noise" or "data".

    Raises:
        ValueError: a number or name that is not allowed, or a network without `probe` (`flowjax.models.DiT` has one);
            when it is bound, a solver with other evaluations than one per step.

    Reference: the first block cache of ParaAttention (chengzeyi, 2025), whose programs keep residuals of hidden layers.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = fj.models.DiT((4, 4, 1), patch=2, width=8, depth=2, heads=2, rngs=nnx.Rngs(0))
        >>> field = fj.fields.FirstBlock(fj.Flow(network, path=fj.paths.Linear()), threshold=0.05)
        >>> x0 = fj.noise(jax.random.key(0), (2, 4, 4, 1))
        >>> result = fj.solve(field, fj.solvers.Euler(), x0, fj.times.uniform(6))
        >>> bool(result.evaluations <= 6)
        True
    """

    field: Field = part("field")
    threshold: Any = 0.1
    warmup: Any = 0.0
    keep: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("[0, inf)", threshold=self.threshold)
        check_probe(self.field, "block")

    def state(self, x: Array) -> Any:
        """The residual at the last call."""
        return no_probe(self.field, "block", x)

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """By the change since the last call."""
        before = memory.own[1]
        now = probe(self.field, "block", t, x, cond)
        change = jnp.where(memory.step > 0, relative_change(now, before), 0)
        return self.allowed(memory) & (change < self.threshold), change, (now, before)

    def after(self, skip: Array, more: Any) -> Any:
        """The residual of a call."""
        return jnp.where(skip, more[1], more[0])

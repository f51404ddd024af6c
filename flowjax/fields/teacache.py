"""Calls skipped while what goes into the network changes little (Liu et al., TeaCache, 2411.19108)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import choose, real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields.held import Held, numbers
from flowjax.fields.probed import check_probe, no_probe, probe, relative_change
from flowjax.fields.saving import Spared
from flowjax.flow import Field


@fact("field", "teacache", "calls skipped while the input changes little", cite="liu2024teacache", couples_batch=True)
@pytree
class TeaCache(Held):
    """A field that asks its network when what goes in has changed by more than a threshold since the last call.

    With I_j the indicator at step j and |.| the mean size over everything, the batch included,

        a <- a + max(p(|I_j - I_{j-1}|/|I_{j-1}|), 0),    saved while a < threshold; a call sets a = 0.

    The polynomial p turns changes of the indicator into changes of the answer. It belongs to a model: a fit may explain
    nothing. `python -m flowjax.calibrate cache` fits it, measures the fit on noise that it has not seen, and refuses
    one that does not hold. Unlike in the published programs, the prediction of the network stays what it was, not the
    residual of its hidden layers.

    Args:
        field: the field, guidance included; the indicator is that of its condition.
        threshold: a number, not negative.
        coefficients: of p, the highest power first; None is p(c) = c.
        indicator: "modulated", the input of the first block after its modulation by the time, of a network with
            `probe` (`flowjax.models.DiT`); or "input", the state itself, for every network.
        warmup: share of the steps at the beginning that always reach the network.
        keep: the prediction that stays what it was: "velocity", "noise" or "data".

    Raises:
        ValueError: a number or name that is not allowed, or a network without `probe`; when it is bound, a solver with
            other evaluations than one per step.

    Reference: Liu et al. (2024), Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model,
    arXiv:2411.19108.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> field = fj.fields.TeaCache(flow, threshold=0.25, indicator="input")
        >>> result = fj.solve(field, fj.solvers.Euler(), jnp.ones((1, 1)), fj.times.uniform(10))
        >>> result.report["skipped"].tolist()[:4], round(float(result.report["measure"][1]), 2)  # x falls by a tenth
        ([False, True, True, False], 0.1)
    """

    field: Field = part("field")
    threshold: Any = 0.1
    coefficients: Any = part("array", None)
    indicator: str = static("modulated")
    warmup: Any = 0.0
    keep: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("[0, inf)", threshold=self.threshold)
        choose("indicator", self.indicator, ("modulated", "input"))
        if self.coefficients is not None:
            numbers("coefficients", "(-inf, inf)", self.coefficients)
        check_probe(self.field, self.indicator)

    def state(self, x: Array) -> Any:
        """The last indicator, and the sum of changes."""
        return no_probe(self.field, self.indicator, x), jnp.zeros((), x.dtype)

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """By the sum of changes since the last call."""
        before, total = memory.own[1]
        now = probe(self.field, self.indicator, t, x, cond)
        change = relative_change(now, before)
        if self.coefficients is not None:
            change = jnp.maximum(jnp.polyval(jnp.asarray(self.coefficients, change.dtype), change), 0)
        total = jnp.where(memory.step > 0, total + change, 0)
        return self.allowed(memory) & (total < self.threshold), total, (now, total)

    def after(self, skip: Array, more: Any) -> Any:
        """A call begins the sum anew."""
        now, total = more
        return now, jnp.where(skip, total, 0)

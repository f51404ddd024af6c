"""Calls skipped while predictions keep their size (Ma et al., MagCache, 2506.09045)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields.held import Held, numbers
from flowjax.fields.saving import Spared
from flowjax.flow import Field


@fact(
    "field",
    "magcache",
    "calls skipped while predictions keep their size",
    cite="ma2025magcache",
    example=lambda: {"ratios": [0.97] * 10},
)
@pytree
class MagCache(Held):
    """A field that skips calls by how the size of its prediction changes from step to step, measured beforehand.

    With g_j the mean ratio of the sizes of the predictions at steps j and j - 1,

        r <- r g_j,   e <- e + |1 - r|,    saved while e < threshold, at most most_skips times; a call sets r = 1, e =
        0.

    The steps that are saved are the same for all samples. `python -m flowjax.calibrate cache` measures the ratios, and
    refuses sizes that differ too much between samples. Published are ratios of what all blocks together add to their
    input; here it is the prediction `keep`.

    Args:
        field: the field, guidance included.
        ratios: g_j, one positive number for each step of the run (the first is not used).
        threshold: a number, not negative.
        most_skips: most calls skipped in a row, at least 1.
        warmup: share of the steps at the beginning that always reach the network.
        keep: the prediction that stays what it was: "velocity", "noise" or "data".

    Raises:
        ValueError: a number or name that is not allowed; when it is bound, ratios of another number of steps, or a
            solver with other evaluations than one per step.

    Reference: Ma et al. (2025), MagCache: Fast Video Generation with Magnitude-Aware Cache, arXiv:2506.09045.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> field = fj.fields.MagCache(flow, ratios=[0.9] * 10, threshold=0.15, warmup=0.2)
        >>> result = fj.solve(field, fj.solvers.Euler(), jnp.ones((1, 1)), fj.times.uniform(10))
        >>> result.report["skipped"].tolist()  # 0.1 and 0.1 + 0.19
        [False, False, True, False, True, False, True, False, True, False]
    """

    field: Field = part("field")
    ratios: Any = part("array")
    threshold: Any = 0.1
    most_skips: Any = 4
    warmup: Any = 0.2
    keep: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("[0, inf)", threshold=self.threshold)
        whole("[1, 10000]", most_skips=self.most_skips)
        numbers("ratios", "(0, inf)", self.ratios)

    def check(self, times: Any, to: str) -> None:
        """As for all that saves, and there is a ratio for each step."""
        super().check(times, to)
        if len(self.ratios) != len(times):
            raise ValueError(
                f"these are the ratios of {len(self.ratios)} steps, and the run has {len(times)}: ratios belong to "
                "their grid (flowjax.calibrate cache measures those of another)"
            )
        if len(times) > 1 and times[0] > times[-1]:
            raise ValueError("these are the ratios of a run to the data, and this one leads to the noise")

    def state(self, x: Array) -> Any:
        """R and e."""
        return jnp.ones((), x.dtype), jnp.zeros((), x.dtype)

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """By the sum of errors since the last call."""
        r, e = memory.own[1]
        g = jnp.asarray(self.ratios, r.dtype)
        allowed = self.allowed(memory)
        r = r * g[jnp.minimum(memory.step, len(g) - 1)]
        e = e + jnp.abs(1 - r)
        return allowed & (e < self.threshold) & (memory.run < self.most_skips), e, (r, e)

    def after(self, skip: Array, more: Any) -> Any:
        """A call begins anew."""
        r, e = more
        return jnp.where(skip, r, 1), jnp.where(skip, e, 0)

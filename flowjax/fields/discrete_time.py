"""Networks that count time in training steps, 0 next to the data to N - 1 in the noise."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._pytree import pytree, static
from flowjax.paths.tabulated import Tabulated


@pytree
class DiscreteTime:
    """A network of training steps behind the call `network(x, t, cond)` with t in [0, 1].

    The step is N (1 - t) - 1, at least 0; not rounded, as in DPM-Solver, unless asked.

    Args:
        network: called as `network(x, step, cond, **extra)` with step (B,): float32 or, rounded, int32.
        path: the table.
        rounded: pass the nearest whole step (networks with an embedding table).

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.Tabulated(alphas_cumprod=fj.paths.scaled_linear_betas())
        >>> flow = fj.Flow(fj.fields.DiscreteTime(lambda x, k, cond: x, path=path), path=path, prediction="noise")
    """

    positional = ("network",)

    network: Any
    path: Tabulated
    rounded: bool = static(False)

    def __call__(
        self, x: Float[Array, "B ..."], t: Float[Array, " B"], cond: Any = None, end: Any = None, **extra: Any
    ) -> Array:
        """Calls the network at the steps of t (and of `end`, for flow maps)."""
        if end is not None:
            extra["end"] = self._step(end)
        return self.network(x, self._step(t), cond, **extra)

    def _step(self, t: Array) -> Array:
        step = self.path.step(t)
        return jnp.round(step).astype(jnp.int32) if self.rounded else step

"""An objective under a coupling: its noise is paired with the data before the loss."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Key

from flowjax._pytree import part, pytree
from flowjax.couplings import Coupling
from flowjax.facts import fact
from flowjax.objectives.base import Wrapped


@fact(
    "objective",
    "coupled",
    "an objective whose noise is paired with the data",
    cite="tong2023improving",
    couples_batch=True,
    tasks=("generation", "distillation", "adapters"),
)
@pytree
class Coupled(Wrapped):
    """An objective whose draws are paired by a coupling (OT-CFM, SB-CFM, stored pairs).

    The coupling sees the conditions before label dropout.

    Args:
        objective: one whose draws have `x0`: `FlowMatching`, `Interpolation`.
        coupling: from `flowjax.couplings`.

    Example:
        >>> import flowjax as fj
        >>> objective = Coupled(fj.objectives.FlowMatching(path=fj.paths.Linear()), fj.couplings.OptimalTransport())
    """

    positional = ("objective", "coupling")  # type: ignore[assignment]

    coupling: Coupling = part("coupling")

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> Any:
        """The objective's draws with x0 paired; depends on the whole batch.

        Raises:
            ValueError: The objective draws no x0.
        """
        for_draw, for_pairs = jax.random.split(key)
        draws = self.objective.draw(for_draw, batch, memory, step=step)
        if not hasattr(draws, "x0"):
            raise ValueError(f"a coupling pairs noise x0 with data, and {type(self.objective).__name__} draws no x0")
        return dataclasses.replace(draws, x0=self.coupling.couple(for_pairs, draws.x0, batch))

"""The map of DPM-OT from noise to training samples noised to a time, where sampling then begins."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowjax import times
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.couplings import SemidiscreteMap, fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transport(Calibration):
    """A map of noise to start states at `start`, fitted to `num` training samples (needs ott-jax).

    Attributes:
        start: The time whose states the map gives.
        end: See `Calibration`.
        num: Number of training samples.

    Example:
        >>> from flowjax.calibration.transport import Transport
        >>> Transport(start=0.6).sizes()
        {'num': 1000}
    """

    reads_data = True

    start: float = option(0.5, "Time of the states that the map gives, where sampling begins.")
    num: int = option(1000, "Training samples.")

    def check(self, recipe: Any) -> None:
        """Refuses conditions by name."""
        if recipe.conditions is not None:
            raise ValueError(f"maps are of labels without a name; this run has {', '.join(recipe.conditions)} by name")

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """Targets, heights and labels."""
        x1, cond = work.batch(0)
        classes = None if work.recipe.num_classes is None else jnp.asarray(cond, jnp.int32)
        found = fit(work.key, work.flow.path, jnp.asarray(x1), self.start, classes)
        arrays = {"targets": np.asarray(found.targets), "heights": np.asarray(found.heights)}
        return arrays | ({} if classes is None else {"labels": np.asarray(classes)})

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """The map, and equal steps from its time on by the recipe's solver."""
        targets, heights = (jnp.asarray(stored.arrays[name]) for name in ("targets", "heights"))
        labels = jnp.asarray(stored.arrays["labels"]) if "labels" in stored.arrays else None
        if not len(targets) == len(heights) == len(targets if labels is None else labels) > 0:
            raise ValueError(f"{stored.file} has {len(targets)} targets and {len(heights)} heights")
        found = SemidiscreteMap(targets=targets, heights=heights, time=stored.record["start"], labels=labels)
        return Calibrated(None, times.uniform(stored.steps, stored.record["start"]), found)

"""A regression of the field "target" of the data on its examples."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from flowjax.facts import fact
from flowjax.tasks.supervised import Supervised


@fact("task", "regression", "numbers from examples")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionTraining(Supervised):
    """Trains a network that answers with the numbers of the field "target"."""

    metrics: ClassVar[Mapping[str, int]] = {"mse": 1, "mae": 1, "r2": -1}
    answers: ClassVar[str] = "values"

    @property
    def answer(self) -> tuple[int, ...]:
        """The shape of one target.

        Raises:
            ValueError: Data without targets.
        """
        if "target" not in self.source.fields:
            known = ", ".join(self.source.fields) or "none"
            raise ValueError(f"a regression needs data with the field target; {self.config.data.name} has {known}")
        return tuple(self.source.fields["target"].shape[1:])

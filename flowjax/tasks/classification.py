"""A classifier of any data with labels."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from flowjax.facts import fact
from flowjax.tasks.supervised import Supervised


@fact("task", "classification", "a classifier of data with labels")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Supervised):
    """Trains a network that answers with one logit for each class."""

    metrics: ClassVar[Mapping[str, int]] = {"accuracy": -1, "cross_entropy": 1}
    answers: ClassVar[str] = "classes"

    @property
    def answer(self) -> tuple[int, ...]:
        """One number for each class.

        Raises:
            ValueError: Data without labels.
        """
        if self.source.num_classes is None:
            raise ValueError(f"a classifier needs data with labels, and {self.config.data.name} has none")
        return (self.source.num_classes,)

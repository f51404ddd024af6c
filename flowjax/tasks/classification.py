"""A classifier of any data with labels."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from flowjax.facts import fact
from flowjax.tasks.supervised import Supervised


@fact("task", "classification", "a classifier of data with labels")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Supervised):
    """Trains a network that answers with one logit for each class.

    Example:
        >>> import jax
        >>> from flowjax import data
        >>> from flowjax.configs.base import base, spec
        >>> from flowjax.tasks import make_task
        >>> from flowjax.training import make_mesh
        >>> network = spec("readout", encoder=spec("image", image_shape=(8, 8, 1), dim=16), outputs=10)
        >>> config = base("classification", data=spec("digits"), network=network, objective=spec("classification"))
        >>> task = make_task(config, data.digits(), make_mesh(), jax.random.key(0))
        >>> task.answer, len(task.training.x), len(task.source.x)  # a tenth is held out
        ((10,), 1617, 1797)
    """

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

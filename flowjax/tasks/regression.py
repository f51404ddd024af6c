"""A regression of the field "target" of the data on its examples."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from flowjax.facts import fact
from flowjax.tasks.supervised import Supervised


@fact("task", "regression", "numbers from examples")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionTraining(Supervised):
    """Trains a network that answers with the numbers of the field "target".

    Example:
        >>> import jax, numpy as np
        >>> from flowjax.configs.base import base, spec
        >>> from flowjax.data import Source
        >>> from flowjax.tasks import make_task
        >>> from flowjax.training import make_mesh
        >>> source = Source(x=np.ones((20, 3), "float32"), fields={"target": np.ones((20, 2), "float32")})
        >>> network = spec("readout", encoder=spec("vector", size=3, dim=16), outputs=2)
        >>> config = base("regression", data=spec("npz", path="x"), network=network, objective=spec("regression"))
        >>> make_task(config, source, make_mesh(), jax.random.key(0)).answer
        (2,)
    """

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

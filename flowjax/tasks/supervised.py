"""Networks that answer an example, with a class or with numbers."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from flowjax import specs
from flowjax.data import Source
from flowjax.evaluation import pictures
from flowjax.recipe.base import shapes_of
from flowjax.recipe.regression import RegressionRecipe
from flowjax.recipe.request import Request
from flowjax.tasks.base import Part, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Task):
    """Base of the tasks whose network answers examples; what is held out measures it.

    Attributes:
        held_out: Part of the data that training does not see, in (0, 1).

    Example:
        >>> from flowjax.tasks import ClassifierTraining, RegressionTraining
        >>> [task.answers for task in (ClassifierTraining, RegressionTraining)], sorted(RegressionTraining.metrics)
        (['classes', 'values'], ['mae', 'mse', 'r2'])
    """

    held_out: float = 0.1

    sections: ClassVar[tuple[str, ...]] = ("network", "objective")
    answers: ClassVar[str]

    def __post_init__(self) -> None:
        """Checks what the constructors of its parts cannot see.

        Raises:
            ValueError: Data without answers, or a network that gives others.
        """
        super().__post_init__()
        self.recipe.check_networks({"network": shapes_of(self.recipe.build_network)})

    @property
    @abc.abstractmethod
    def answer(self) -> tuple[int, ...]:
        """Shape of one answer."""

    @functools.cached_property
    def recipe(self) -> RegressionRecipe:
        """How the network is built and measured."""
        path = getattr(self.objective, "noise_path", None)
        return RegressionRecipe(
            network=self.config.network.to_dict(),
            **self.of_data(),
            answers=self.answers,
            answer=self.answer,
            held_out=self.held_out,
            seed=self.config.seed,
            path=None if path is None else specs.spec_of("path", path),
        )

    @functools.cached_property
    def parts(self) -> tuple[Source, Source]:
        """The data that training sees, and the part that is held out."""
        return self.recipe.parts(self.source)

    @property
    def training(self) -> Source:
        """The part that is not held out."""
        return self.parts[0]

    @functools.cached_property
    def objective(self) -> Any:
        """The loss."""
        return self.build_objective()

    def networks(self) -> dict[str, Part]:
        """The network."""
        return {"network": Part(build=self.recipe.build_network, optimizer=self.optimizer())}

    def save(self, workdir: Path) -> None:
        """Writes `recipe.json`."""
        self.recipe.save(workdir)

    def assess(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """Errors on what is held out (`RegressionRecipe.assess`)."""
        return self.recipe.assess(networks, self.source, Request(num=len(self.source.x)), mesh=self.mesh)

    def show(self, networks: Mapping[str, Any], path: Path) -> None:
        """A picture of answers against truths, on 2,000 examples of what is held out at most."""
        held = self.parts[1].take(2000)
        answers = self.recipe.predict(networks, np.asarray(held.x), mesh=self.mesh)
        if jax.process_index() > 0:
            return
        if held.cond is not None and self.answers == "classes":
            pictures.confusion(held.cond, answers.argmax(-1), path, names=held.names, classes=self.answer[0])
        else:
            pictures.scatter(np.ravel(held.fields["target"]), np.ravel(answers), path)

"""Recipes of networks that are asked under conditions: what they are, and how texts and data become them."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowjax import _checks, specs
from flowjax.conditions import Label, with_conditions
from flowjax.data import Source
from flowjax.recipe.base import Base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditional(Base):
    """A recipe with conditions by name, or with one bare label where the data have classes.

    Attributes:
        conditions: What can be asked for by name, from the catalogue; None is one bare label, where there are classes.

    Example:
        >>> from flowjax.recipe import Recipe
        >>> issubclass(Recipe, Conditional)
        True
    """

    conditions: Mapping[str, Any] | None = None

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """The conditions by name; a bare label is called "label"."""
        if self.conditions is not None:
            return {name: specs.build("condition", spec) for name, spec in self.conditions.items()}
        return {} if self.num_classes is None else {"label": Label(classes=self.num_classes)}

    @property
    def padded(self) -> str | None:
        """Which condition says what entries of padded sets there are; None where samples are no such sets."""
        return next((name for name, condition in self.inputs.items() if hasattr(condition, "mask")), None)

    @property
    def null(self) -> Any:
        """The condition that stands for none: for a bare label the number behind the last class."""
        return self._shaped({name: condition.null for name, condition in self.inputs.items()})

    def _shaped(self, conditions: dict[str, Any]) -> Any:
        """Conditions by name as the network takes them."""
        return conditions.get("label") if self.conditions is None else conditions

    def negative(self, asked: Mapping[str, str], num: int) -> Any:
        """The negative condition of `num` samples from texts by name; names that are not given are null.

        Raises:
            ValueError: See `asked_for`.
        """
        nulls = {name: condition.null for name, condition in self.inputs.items() if name not in asked}
        given = {name: np.broadcast_to(null, (num, *np.shape(null))) for name, null in nulls.items()}
        return self.read_conditions(asked, num, given)

    def balanced(self, num: int, classes: tuple[int, ...] | None = None) -> Any:
        """Conditions of samples 0..num-1: the classes in turn (all of them by default); None without conditions."""
        chosen = {name: condition.default(num) for name, condition in self.inputs.items()}
        if classes and "label" in chosen:
            chosen["label"] = np.resize(np.asarray(classes, np.int32), num)
        return self._shaped(chosen)

    def with_conditions(self, source: Source) -> Source:
        """The data with its conditions as the network takes them; as it is for a recipe without names.

        Raises:
            ValueError: Data without these conditions.
        """
        return source if self.conditions is None else with_conditions(source, self.inputs)

    def matching(self, source: Source, num: int, among: int | None = None) -> Any:
        """Conditions to compare `num` samples with data under.

        By name they are those of the data, spread evenly over the first `among` examples (all by default); a bare
        label takes the classes in turn.

        Raises:
            ValueError: Data without these conditions.
        """
        if self.conditions is None:
            return self.balanced(num)
        rows = np.arange(num) * (len(source.x) if among is None else among) // num
        held = {name: field[rows] for name, field in source.fields.items() if name in self.inputs}
        cond = None if source.cond is None else source.cond[rows]
        blank = np.zeros(num, np.float32)  # the examples themselves may lie on disk
        some = self.with_conditions(dataclasses.replace(source, x=blank, cond=cond, fields=held, conditions=()))
        return {name: some.fields[name] for name in some.conditions}

    def asked_for(self, asked: Mapping[str, str], num: int) -> dict[str, Any]:
        """Conditions of `num` samples from texts of a command line, by name.

        Raises:
            ValueError: A condition that this recipe does not have, or a text that it cannot read.
        """
        for name in asked:
            if name == "label" and name not in self.inputs:
                raise ValueError("labels are given, but the data of this run has no classes")
            _checks.choose("condition of this run", name, self.inputs)
        return {name: self.inputs[name].read(text, num) for name, text in asked.items()}

    def read_conditions(
        self, asked: Mapping[str, str], num: int, given: Mapping[str, Any] | None = None, first: int = 0
    ) -> Any:
        """Conditions of `num` samples as the network takes them; those not asked for are the default.

        Args:
            asked: Texts of a command line, by name.
            num: Number of samples.
            given: Conditions of these samples from elsewhere, by name.
            first: Number of the first of them.

        Raises:
            ValueError: See `asked_for`; a condition without default that is not asked for.
        """
        last, given = first + num, dict(given or {})
        found = self.asked_for(asked, last)
        found |= {name: c.default(last) for name, c in self.inputs.items() if name not in found and name not in given}
        return self._shaped({name: given.get(name, found.get(name, ())[first:]) for name in self.inputs})

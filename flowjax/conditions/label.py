"""A class as a condition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import _checks
from flowjax.data.sources import labels_of
from flowjax.facts import fact


@fact("condition", "label", "a class", example=lambda: {"classes": 3})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """A class.

    Attributes:
        classes: How many there are; the null is the number behind the last.
        names: Their names, which command lines may use; may be empty.

    Raises:
        ValueError: No class, or another number of names.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> label = fj.conditions.Label.learn(np.array([0, 2, 1]), names=("cat", "dog", "owl"))
        >>> label.classes, int(label.null)
        (3, 3)
    """

    classes: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _checks.whole(_checks.COUNT, classes=self.classes)
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"{self.classes} classes, but {len(self.names)} names")

    @classmethod
    def learn(cls, rows: np.ndarray, *, classes: int | None = None, names: tuple[str, ...] = ()) -> "Label":
        """The condition that the labels of the data are.

        Args:
            rows: Labels, (N,).
            classes: How many there are; by default one more than the largest label.
            names: Their names.

        Raises:
            ValueError: No integers (N,), or labels outside 0..classes - 1.
        """
        found = labels_of(np.asarray(rows), len(rows), classes, tuple(names))
        return cls(classes=found["num_classes"], names=tuple(names))

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.asarray(self.classes, np.int32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((), jnp.int32)

    @property
    def encoder(self) -> dict[str, int]:
        """Options that an encoder of it must have."""
        return {"num_classes": self.classes}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Labels of the data as networks take them, (N,).

        Raises:
            ValueError: No integers (N,), or labels outside 0..classes - 1.
        """
        return labels_of(np.asarray(rows), len(rows), self.classes)["cond"]

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The labels as they are shown."""
        return rows

    def default(self, num: int) -> np.ndarray:
        """The classes in turn, (num,)."""
        return (np.arange(num) % self.classes).astype(np.int32)

    def read(self, text: str, num: int) -> np.ndarray:
        """Numbers or names of classes, separated by commas, in turn: (num,).

        Raises:
            ValueError: One that there is not.
        """
        known = {name: i for i, name in enumerate(self.names)}
        shown = f"0 to {self.classes - 1}" + (f", or {', '.join(self.names)}" if self.names else "")
        asked = [item.strip() for item in text.split(",")]
        for item in asked:
            if item not in known:
                if not (item.isdecimal() and len(item) <= len(str(self.classes)) and int(item) < self.classes):
                    raise ValueError(f"label {item!r} is out of range (allowed: {shown})")
                known[item] = int(item)
        return np.resize(np.array([known[item] for item in asked], np.int32), num)

"""What a flow can be asked for: conditions by name, each with the shape and the null it has, read from command lines.

A recipe names them: {"label": {"name": "label", "options": {"classes": 10}}}. A network then gets the dict
{"label": (B,) int32}; recipes without names give a bare label, as `cond`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import _checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """A class.

    Attributes:
        classes: How many there are; the null is the number behind the last.
        names: Their names, which command lines may use; may be empty.

    Raises:
        ValueError: No class, or another number of names.
    """

    classes: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _checks.whole(_checks.COUNT, classes=self.classes)
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"{self.classes} classes, but {len(self.names)} names")

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.asarray(self.classes, np.int32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((), jnp.int32)

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector:
    """A vector of numbers; the null is zero.

    Attributes:
        dim: Its length.

    Raises:
        ValueError: A length below 1.
    """

    dim: int

    def __post_init__(self) -> None:
        _checks.whole(_checks.COUNT, dim=self.dim)

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.zeros(self.dim, np.float32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((self.dim,), jnp.float32)

    def default(self, num: int) -> np.ndarray:
        """Nothing in particular: the null, (num, dim)."""
        return np.zeros((num, self.dim), np.float32)

    def read(self, text: str, num: int) -> np.ndarray:
        """Vectors of numbers separated by commas, several by semicolons, in turn: (num, dim).

        Raises:
            ValueError: Not numbers, or of another length.
        """
        try:
            rows = np.array([[float(item) for item in row.split(",")] for row in text.split(";")], np.float32)
        except ValueError:
            raise ValueError(f"a vector is {self.dim} numbers separated by commas, got {text!r}") from None
        if rows.shape[1:] != (self.dim,) or not np.isfinite(rows).all():
            raise ValueError(f"a vector is {self.dim} finite numbers separated by commas, got {text!r}")
        return np.resize(rows, (num, self.dim))


def resized(cond: Any, first: int, batch: int) -> Any:
    """Conditions first, first + 1, ..., `batch` of them; a last block begins again with its own."""
    return jax.tree.map(lambda rows: np.resize(rows[first : first + batch], (batch, *rows.shape[1:])), cond)

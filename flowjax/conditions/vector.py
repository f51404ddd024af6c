"""A vector of numbers as a condition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import _checks
from flowjax.facts import fact


@fact("condition", "vector", "a vector of numbers", example=lambda: {"dim": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector:
    """A vector of numbers; the null is zero.

    Attributes:
        dim: Its length.

    Raises:
        ValueError: A length below 1.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> wind = fj.conditions.Vector.learn(np.ones((5, 3), np.float32))
        >>> wind.dim, wind.null.tolist(), wind.struct.shape
        (3, [0.0, 0.0, 0.0], (3,))
    """

    dim: int

    def __post_init__(self) -> None:
        _checks.whole(_checks.COUNT, dim=self.dim)

    @classmethod
    def learn(cls, rows: np.ndarray, *, dim: int | None = None) -> "Vector":
        """The condition that a field of the data is.

        Args:
            rows: Vectors (N, dim), or numbers (N,), which are vectors of length 1.
            dim: Their length, if it is to be checked.

        Raises:
            ValueError: Something else.
        """
        found = cls(dim=(1 if rows.ndim == 1 else rows.shape[1]) if dim is None else dim)
        found.encode(rows[:1])
        return found

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.zeros(self.dim, np.float32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((self.dim,), jnp.float32)

    @property
    def encoder(self) -> dict[str, int]:
        """Options that an encoder of it must have."""
        return {"size": self.dim}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the data as networks take them, (N, dim).

        Raises:
            ValueError: No numbers (N, dim).
        """
        found = rows[:, None] if rows.ndim == 1 else rows
        if found.dtype.kind not in "biuf" or found.shape[1:] != (self.dim,):
            raise ValueError(f"vectors are numbers (N, {self.dim}), got {rows.dtype} {rows.shape}")
        return found.astype(np.float32)

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The vectors as they are shown."""
        return rows

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

"""What edits check of what they are given."""

from typing import Any

import numpy as np

from flowjax.flow import check_field, check_state
from flowjax.paths.base import GaussianPath

GIVEN = ("field", "solver", "times", "noise", "cond", "key", "index", "picture", "mask", "second", "second_cond")
"""Arguments that whoever runs an edit fills in; all others are its settings."""


def check_given(field: Any, **examples: Any) -> None:
    """Raises ValueError for a field that does not start from noise, or examples of different shapes.

    Args:
        field: the field.
        **examples: pictures and noise by name, which must be alike.
    """
    check_field(field)
    if not isinstance(field.path, GaussianPath) or not field.convertible:
        raise ValueError(f"edits are for flows from noise, and {type(field).__name__} is none")
    (first, like), *others = examples.items()
    check_state(like)
    for name, other in others:
        check_state(other)
        if other.shape != like.shape:
            raise ValueError(f"{name} must be like {first}, {tuple(like.shape)}, got {tuple(other.shape)}")


def from_time(times: Any, start: float) -> np.ndarray:
    """The grid moved and shrunk so that it starts at another time and ends where it did: as many steps.

    Raises:
        ValueError: no times, or they end before.
    """
    grid = np.asarray(times, np.float64)
    if grid.ndim != 1 or len(grid) < 2 or np.any(np.diff(grid) <= 0):
        raise ValueError("times must be a grid that rises from noise to data, such as flowjax.times.uniform(10)")
    start = max(start, float(grid[0]))
    if start >= grid[-1]:
        raise ValueError(f"the times end at {grid[-1]:g}, and this edit starts at {start:g}: nothing is left to do")
    moved = start + (grid - grid[0]) * ((grid[-1] - start) / (grid[-1] - grid[0]))
    moved[0], moved[-1] = start, grid[-1]
    return moved

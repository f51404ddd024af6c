"""Checks of names and numbers that people give: one line that says what was given and what is allowed.

Constructors use them, so that a config, a recipe, a command line and Python meet the same limits.
"""

import difflib
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

SEED = "[0, 4294967295]"  # JAX keys keep 32 bits: 2**32 would silently be the seed 0
COUNT = "[1, 2147483647]"  # of steps, samples, elements of an axis: int32


def choose(what: str, name: Any, allowed: Iterable[Any]) -> Any:
    """Returns `name` if it is allowed.

    Raises:
        ValueError: It is not; the message has the closest name and all allowed ones.
    """
    allowed = list(allowed)
    if isinstance(name, str) and name in allowed:
        return name
    close = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {what} {str(name)!r}{hint} (allowed: {', '.join(map(str, allowed)) or 'none'})")


def whole(interval: str, **values: Any) -> None:
    """Checks whole numbers, given by name.

    Args:
        interval: Where they must lie, as in "[1, inf)".
        **values: The numbers.

    Raises:
        ValueError: One is something else; the message has its name, its value and what is allowed.
    """
    for name, value in values.items():
        if isinstance(value, bool | np.bool) or not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        _check_range(name, value, interval)


def real(interval: str, **values: Any) -> None:
    """Checks finite numbers, given by name. Arrays pass: they may be traced, and differ from element to element.

    Args:
        interval: Where they must lie, as in "(0, 1]"; infinity never does.
        **values: The numbers.

    Raises:
        ValueError: One is something else; the message has its name, its value and what is allowed.
    """
    for name, value in values.items():
        if isinstance(value, jax.Array | np.ndarray):
            continue
        if isinstance(value, bool | np.bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a number, got {value!r}")
        size: Any = abs(value)
        # Also what float32, in which networks and optimisers compute, cannot hold.
        if not size <= float(np.finfo(np.float32).max):
            raise ValueError(f"{name} must be finite, got {value}")
        _check_range(name, value, interval)


def sizes(count: int | None = None, **values: Any) -> None:
    """Checks tuples of positive whole numbers, `count` of them unless it is None.

    Raises:
        ValueError: One is something else.
    """
    for name, value in values.items():
        fits = isinstance(value, tuple | list) and (len(value) == count if count else len(value) > 0)
        if not fits:
            raise ValueError(f"{name} must hold {count or 'one or more'} whole numbers, got {value!r}")
        for item in value:
            whole(COUNT, **{name: item})


def _check_range(name: str, value: Any, interval: str) -> None:
    low, high = (float(end) for end in interval[1:-1].split(","))
    under = value < low or (value == low and interval[0] == "(")
    over = value > high or (value == high and interval[-1] == ")")
    if not (under or over):
        return
    if high <= 1e6:
        words = f"in {interval}"
    elif under:
        words = f"{'at least' if interval[0] == '[' else 'above'} {low:g}"
    else:
        words = f"at most {high:.0f}"
    raise ValueError(f"{name} must be {words}, got {value}")

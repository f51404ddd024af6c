"""Checks of names and numbers that people give: one line that says what was given and what is allowed.

Constructors use them, so that a config, a recipe, a command line and Python meet the same limits.
"""

import contextlib
import difflib
import inspect
import numbers
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

SEED = "[0, 4294967295]"  # JAX keys keep 32 bits: 2**32 would silently be the seed 0
COUNT = "[1, 2147483647]"  # of samples, steps of training, elements of an axis: int32
STEPS = "[1, 10000]"  # of a solver, in mains; their tables take 30 s for 8,000, growing with the square


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
            raise ValueError(f"{name} must be a whole number, got {reprlib.repr(value)}")
        _check_range(name, value, interval)


def real(interval: str, **values: Any) -> None:
    """Checks finite numbers and the elements of arrays, given by name. Traced numbers and arrays pass.

    Args:
        interval: Where they must lie, as in "(0, 1]"; infinity never does.
        **values: The numbers.

    Raises:
        ValueError: One is something else; the message has its name, its value and what is allowed.
    """
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer) or not getattr(value, "is_fully_addressable", True):
            continue
        if isinstance(value, jax.Array | np.ndarray):
            elements = np.asarray(value, np.float64).ravel()
            extremes = (float(elements.min()), float(elements.max())) if elements.size else ()
            for element in extremes:
                real(interval, **{name: element})
            continue
        if isinstance(value, bool | np.bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a number, got {reprlib.repr(value)}")
        size: Any = abs(value)
        # Also what float32, in which networks and optimisers compute, cannot hold.
        if not size <= float(np.finfo(np.float32).max):
            raise ValueError(f"{name} must be finite, got {reprlib.repr(value)}")
        _check_range(name, value, interval)


def pair(interval: str, /, **values: Any) -> None:
    """Checks pairs (smallest, largest) of numbers, given by name. Traced numbers pass.

    Raises:
        ValueError: One is something else.
    """
    for name, value in values.items():
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError(f"{name} must be (smallest, largest), got {reprlib.repr(value)}")
        real(interval, **{f"{name}[{i}]": number for i, number in enumerate(value)})
        if not any(isinstance(number, jax.core.Tracer) for number in value) and value[0] > value[1]:
            raise ValueError(f"{name}={value} must be (smallest, largest)")


def sizes(count: int | None = None, **values: Any) -> None:
    """Checks tuples of positive whole numbers, `count` of them unless it is None.

    Raises:
        ValueError: One is something else.
    """
    for name, value in values.items():
        fits = isinstance(value, tuple | list) and (len(value) == count if count else len(value) > 0)
        if not fits:
            raise ValueError(f"{name} must hold {count or 'one or more'} whole numbers, got {reprlib.repr(value)}")
        for item in value:
            whole(COUNT, **{name: item})


_KINDS: dict[Any, Any] = {
    bool: bool,
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
    type(None): type(None),
    tuple: (tuple, list),
    Sequence: (tuple, list),
    Mapping: Mapping,
}


def call(name: str, function: Callable[..., Any], options: Any, **given: Any) -> Any:
    """`function(**options, **given)` for options that people wrote.

    Args:
        name: of the function, for messages.
        function: a function or a class.
        options: mapping from names to values.
        **given: further arguments, which are no options.

    Raises:
        ValueError: One line: unknown, missing or wrong option.
    """
    if not hasattr(options, "keys"):
        raise ValueError(f"{name} needs a group of options, got {reprlib.repr(options)}")
    parameters = {key: p for key, p in _parameters(function).items() if key not in given}
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(parameters) or 'none'}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise ValueError(f"{name} needs its option {', '.join(missing)}")
    check_kinds(name, function, options)
    with value_errors(name):
        return function(**options, **given)


@contextlib.contextmanager
def value_errors(name: str) -> Iterator[None]:
    """Turns what constructors raise for values of a kind that annotations do not tell into ValueErrors."""
    try:
        yield
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error


def check_kinds(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses options of another kind than plain annotations of the function say.

    Raises:
        ValueError: One line with the option, its value and the annotation.
    """
    parameters = _parameters(function)
    for key, value in options.items():
        kind = parameters[key].annotation if key in parameters else Any
        if not _fits(value, kind):
            raise ValueError(f"{name}: {key} must be {getattr(kind, '__name__', kind)}, got {reprlib.repr(value)}")


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function, or of the constructor of a class."""
    own: Any = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    found = inspect.signature(own).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in found.items() if p.kind in named and name != "self"}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what annotations of plain kinds say; True for all other annotations.

    Arrays fit everywhere, as hyper-parameters may be traced; an integer is a float, a list a tuple.
    """
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kinds = {typing.get_origin(part) or part for part in parts}
    if isinstance(value, jax.Array | np.ndarray) or not kinds <= _KINDS.keys():
        return True
    if isinstance(value, bool):
        return bool in kinds
    return any(isinstance(value, _KINDS[kind]) for kind in kinds)


def _check_range(name: str, value: Any, interval: str) -> None:
    low, high = (float(end) for end in interval[1:-1].split(","))
    under = value < low or (value == low and interval[0] == "(")
    over = value > high or (value == high and interval[-1] == ")")
    if not (under or over):
        return
    if high <= 1:
        words = f"in {interval}"
    elif under:
        words = f"{'at least' if interval[0] == '[' else 'above'} {low:g}"
    else:
        words = f"{'at most' if interval[-1] == ']' else 'below'} {high:.12g}"
    raise ValueError(f"{name} must be {words}, got {reprlib.repr(value)}")

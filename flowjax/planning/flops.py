"""Products and sums of the matrix products and convolutions of a function, counted on what it traces to.

XLA's own count has the body of a loop once, and JAX runs the layers of a large network in a loop.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

_COUNTED = ("dot_general", "conv_general_dilated")


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Two for each product, over all devices: of `dot_general` and `conv_general_dilated`; nothing else is counted.

    The bodies of `scan` count as often as they run, those of `while` once, and of the branches of `cond` the longest.

    Args:
        function: Traced, not run.
        *arguments: Arrays or shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.planning import flops
        >>> flops(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 4)))
        48
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        numbers = math.prod(equation.outvars[0].aval.shape) if name in _COUNTED else 0
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * numbers * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            # For each output number: the taps of the kernel times the channels that one output sees.
            total += 2 * numbers * math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        else:
            inner = [_count(body) for body in _bodies(equation.params)]
            if name == "cond":
                total += max(inner, default=0)
            else:
                total += sum(inner) * (equation.params["length"] if name == "scan" else 1)
    return total


def _bodies(parameters: dict[str, Any]) -> Iterator[Any]:
    """The programs within an equation."""
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            body = getattr(item, "jaxpr", item)
            if hasattr(body, "eqns"):
                yield body

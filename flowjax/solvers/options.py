"""What the options of several methods mean, and the checks of them."""

import itertools
from typing import Any

import jax
import numpy as np

from flowjax import _checks

# Words of the authors' programs and of diffusers for the choices of solvers, by name of the choice.
FOREIGN = {
    "solver_type": {"heun": "taylor", "dpmsolver": "midpoint"},
    "variant": {"vary_coeff": "vary"},
    "form": {"dpmsolver++": "data", "dpmsolver": "noise", "data_prediction": "data", "noise_prediction": "noise"}
    | {"epsilon": "noise", "eps": "noise", "sample": "data", "sde-dpmsolver++": "data", "sde-dpmsolver": "noise"},
}


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        known = FOREIGN.get(name, {}).get(value) if isinstance(value, str) else None
        more = ", with eta=1" if str(value).startswith("sde-") else ""
        hint = f" ({value!r} elsewhere is {known!r} here{more})" if known in allowed and known else ""
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}{hint}")


LOWER_ORDER_FINAL = ("auto", True, False)
GROWTH = 1.25  # of the last step over the one before: up to it, extrapolation over the last step was harmless


def lowers_final_order(option: bool | str, nodes: list[float], published: int) -> bool:
    """Whether the last steps of a multistep method have lower orders: 1 in the last, at most 2 in the one before, ...

    The meaning of `lower_order_final` in all of them. "auto" is True for fewer steps than in the published code, and
    where the last step is longer than 1.25 times the step before: the last outputs are then extrapolated far beyond
    their distance, and of order 3 the error grows with the square of that ratio. (Measured on mixtures, 10 to 50 steps
    of four grids to t = 0.99 ... 0.99999: above 1.25 full orders are up to 160 times worse, below they are better or
    at most 1.3 times worse.)

    Args:
        option: the option.
        nodes: the grid in the variable in which the method extrapolates.
        published: number of steps from which on the published code has full orders.
    """
    if option != "auto":
        return bool(option)
    distinct = [node for node, _ in itertools.groupby(nodes)]
    if len(nodes) - 1 < published or len(distinct) < 3:
        return True
    before, last = (abs(b - a) for a, b in itertools.pairwise(distinct[-3:]))
    return bool(last > GROWTH * before)


def check_newest_weight(name: str, value: Any, of: str) -> None:
    """Raises ValueError unless a weight of what is new is in (0, 1], or traced."""
    if not isinstance(value, jax.core.Tracer):
        number = (
            np.asarray(value).item() if isinstance(value, jax.Array | np.ndarray) and np.ndim(value) == 0 else value
        )
        _checks.real("(0, 1]", **{f"{name}, the weight of the new {of},": number})

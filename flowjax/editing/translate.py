"""Translation from one class to another through the noise (dual diffusion implicit bridges, Su et al., 2203.08382)."""

from typing import Any

from jaxtyping import Array, Float

from flowjax.editing.interpolate import together
from flowjax.editing.invert import invert
from flowjax.facts import fact
from flowjax.solving import Solution, solve


@fact("edit", "translate", "a picture of one class as one of another, through its noise", cite="su2022dual")
def translate(
    field: Any, solver: Any, picture: Float[Array, "batch ..."], times: Any, *, cond: Any, second_cond: Any
) -> Solution:
    """Inverts a picture under the condition that it has, and samples from there under another.

    What the condition does not say (slant, stroke, colour) is in the noise, and stays.

    Args:
        field: a `Flow` from noise, or a field around one.
        solver: a deterministic solver.
        picture: (B, ...), in the scale of the flow.
        times: the grid as for sampling, from noise to data.
        cond: condition of the result.
        second_cond: condition that the picture has.

    Returns:
        A `Solution`; its counts are those of both runs.

    Raises:
        ValueError: no second_cond, a stochastic solver, a field that does not start from noise.

    Reference: Su et al. (2203.08382).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> law = fj.oracles.Mixture.default(fj.paths.Linear())
        >>> flow, times = fj.Flow(law.network(), path=law.path), fj.times.uniform(40)
        >>> first, last = jnp.array([0]), jnp.array([2])  # around -1.4, and around 1.3
        >>> x = jnp.array([[-1.4 + 0.35]])  # one standard deviation above the mean of the first
        >>> moved = fj.editing.translate(flow, fj.solvers.Heun(), x, times, cond=last, second_cond=first).x
        >>> round(float(moved[0, 0]), 1)  # one above that of the other: 1.3 + 0.3
        1.6
    """
    if second_cond is None:
        raise ValueError("translate needs second_cond, the condition that the picture has, beside that of the result")
    found = invert(field, solver, picture, times, second_cond)
    return together(solve(field, solver, found.x, times, cond), found)

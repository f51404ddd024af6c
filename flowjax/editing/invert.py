"""The noise that a picture comes from: the flow backwards (Su et al., 2203.08382)."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from flowjax.editing._given import check_given
from flowjax.solving import Solution, solve


def invert(field: Any, solver: Any, picture: Float[Array, "batch ..."], times: Any, cond: Any = None) -> Solution:
    """Integrates from data to noise; sampling from the result leads back to the picture, up to the solver's error.

    Strong guidance makes that error large: invert without, or with many steps.

    Args:
        field: a `Flow` from noise, or a field around one.
        solver: a deterministic solver.
        picture: (B, ...), in the scale of the flow.
        times: the grid as for sampling, from noise to data; it is run backwards.
        cond: condition of the picture.

    Returns:
        A `Solution` whose x is the state at times[0].

    Raises:
        ValueError: a stochastic solver, times that cannot be run backwards, a field that does not start from noise.

    Reference: Su et al. (2203.08382); Song et al. (2010.02502), section 4.3.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> flow, times = fj.Flow(law.network(), path=law.path), fj.times.uniform(40)
        >>> x0 = fj.editing.invert(flow, fj.solvers.Heun(), jnp.array([[2.5, 1.5]]), times).x
        >>> [round(float(v), 2) for v in fj.solve(flow, fj.solvers.Heun(), x0, times).x[0]]
        [2.5, 1.5]
    """
    check_given(field, picture=picture)
    return solve(field, solver, picture, np.asarray(times, np.float64)[::-1], cond, invert=True)

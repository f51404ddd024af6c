"""How far the ways of a flow are from being crossed in one step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.flow import Field
from flowjax.solvers import Heun
from flowjax.solving import solve
from flowjax.times import check_times


def straightness(field: Field, x: Float[Array, "B ..."], times: Any, cond: Any = None) -> dict[str, Float[Array, " B"]]:
    """Straightness and first-order defect along the trajectories of a field.

    With x_t on the trajectory (by Heun steps) from x_a to x_b, and F one step of DDIM from t to b,

        S = int_a^b |(x_b - x_a) / (b - a) - v(t, x_t)|^2 dt / (b - a),   D = int_a^b |F(t, x_t) - x_b|^2 dt / (b - a),

    summed over the dimensions of an example, by the trapezoidal rule. At b = 1 F is the data prediction. D = 0 where
    one step from anywhere leads to the end, on any path; on the linear path S = 0 if and only if D = 0.

    Args:
        field: A field without memory between evaluations, guided or not.
        x: States at times[0], (B, ...).
        times: Increasing times at which the field is asked; they end near the data.
        cond: Conditions, a pytree with leading axis B.

    Returns:
        {"first_order_defect": D}, and "straightness" where the velocity is bounded at both ends, (B,) each.

    Raises:
        ValueError: A field with a memory, or one that does not determine the data at an end of the times.

    References:
        Liu, Gong and Liu (2022), Flow Straight and Fast, section 2.2, arXiv:2209.03003.
        Wang et al. (2024), Rectified Diffusion, section 3.2, arXiv:2410.07303.

    Example:
        >>> import flowjax as fj
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.0, path=fj.paths.Linear())  # one point: straight lines
        >>> flow = fj.Flow(target.network("velocity"), path=target.path)
        >>> found = straightness(flow, jnp.array([[0.3]]), fj.times.uniform(20, end=0.99))
        >>> bool(found["straightness"][0] < 1e-6)
        True
    """
    grid = check_times(times)
    if not field.stateless:
        raise ValueError(f"straightness asks at single times, and {type(field).__name__} has a memory")
    field.check(grid, "data")
    found = solve(field, Heun(), x, grid, cond=cond, trajectory=True).trajectory
    bounded = all(field.path.has_velocity(float(t)) for t in (grid[0], grid[-1]))
    weights = np.convolve(np.diff(grid), [0.5, 0.5]) / (grid[-1] - grid[0])
    return _sums(field, found, cond, jnp.asarray(grid, x.dtype), jnp.asarray(weights, x.dtype), bounded)


@functools.partial(jax.jit, static_argnames="bounded")
def _sums(field: Field, ways: Array, cond: Any, grid: Array, weights: Array, bounded: bool) -> dict[str, Array]:
    path, last = field.path, ways[-1]
    straight = (last - ways[0]) / (grid[-1] - grid[0])

    def one(sums: dict[str, Array], at: tuple[Array, Array, Array]) -> tuple[dict[str, Array], None]:
        t, weight, x = at
        t = jnp.broadcast_to(t, x.shape[:1])
        given = "velocity" if bounded else "data"
        value, _ = field.evaluate(t, x, cond, field.init(x), to=given)
        data = path.convert(value, given=given, to="data", t=t, x=x)
        errors = {"first_order_defect": path.ddim_step(t, grid[-1], x, data) - last}
        if bounded:
            errors["straightness"] = value - straight
        squares = {name: jnp.sum(error**2, axis=tuple(range(1, x.ndim))) for name, error in errors.items()}
        return {name: sums[name] + weight * square for name, square in squares.items()}, None

    names = ("first_order_defect", *(("straightness",) if bounded else ()))
    zero = {name: jnp.zeros(last.shape[:1], last.dtype) for name in names}
    return jax.lax.scan(one, zero, (grid, weights, ways))[0]

"""Restoring a picture of which something was measured: filling in, sharpening, enlarging by posterior guidance."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax import specs
from flowjax._checks import real
from flowjax.editing._given import check_given, from_time
from flowjax.facts import fact
from flowjax.fields import Masked
from flowjax.solving import Solution, solve


@fact(
    "edit",
    "restore",
    "a picture of which a part, a smaller or a blurred one was measured",
    cite="rozet2024learning",
    parts={"operator": "operator"},
    example=lambda: {"operator": "masked"},
)
def restore(
    field: Any,
    solver: Any,
    picture: Float[Array, "batch ..."],
    times: Any,
    *,
    noise: Float[Array, "batch ..."],
    operator: Any,
    method: Any = "mmps(iterations=1)",
    noise_std: float = 0.05,
    measured: bool = False,
    start: float = 0.02,
    mask: Any = None,
    cond: Any = None,
    key: Any = None,
    index: Any = 0,
) -> Solution:
    """Samples pictures of which the operator gives what it gives of this one, from the posterior of the flow.

    Args:
        field: a `Flow` from noise, or a field around one.
        solver: any solver that makes no evaluation at the end of the times.
        picture: (B, ...), in the scale of the flow.
        times: the grid, from noise to data; it is moved to begin at `start` where it would begin without any data.
        noise: standard normal, like the picture (`flowjax.noise`): what the run starts from.
        operator: a function of states (B, ...), or the spec of one: masked, pooled(factor=2), blurred(std=1); see
            `flowjax.fields.operators`.
        method: the spec of a posterior field: mmps, pgdm or dps with their options. More iterations are more exact, and
            fail sooner where the network or its guidance is no derivative of a density.
        noise_std: of the measurement, in the scale of the flow; what is measured is met up to it.
        measured: whether the picture is what was measured, a blurred one for example; otherwise that is made of it.
        start: first time, in (0, 1); before, little is known of the data, and errors of the network weigh most.
        mask: for `masked`, 1 where the picture is known.
        cond: condition of the result.
        key: of a solver with noise of its own.
        index: global index of the first sample.

    Raises:
        ValueError: an operator or method that is none, a number outside its range, shapes that do not fit, a field that
            does not start from noise.

    References:
        Rozet et al. (2405.13712); Song et al. (2023); Chung et al. (2209.14687).

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=0.0, std=1.0, path=fj.paths.Linear())
        >>> flow, picture = fj.Flow(law.network(), path=law.path), jnp.full((1, 2, 2, 1), 2.0)
        >>> noise, times = fj.noise(jax.random.key(0), picture.shape), fj.times.uniform(20)
        >>> operator = fj.fields.Pooled(factor=2)
        >>> x = fj.editing.restore(flow, fj.solvers.Euler(), picture, times, noise=noise, operator=operator).x
        >>> abs(float(x.mean()) - 2) < 0.1  # of the whole; its parts are free
        True
    """
    real("(0, 1)", start=start)
    check_given(field, picture=picture, noise=noise)
    if mask is not None and callable(operator) and getattr(operator, "mask", None) is not mask:
        raise ValueError(f"a mask is given, and this {type(operator).__name__} does not use it: leave it out")
    given = {} if mask is None else {"mask": mask}
    operator = specs.build("operator", operator, **given)
    # What a mask cuts off is not measured, whatever the picture shows there.
    y = picture if measured and not isinstance(operator, Masked) else operator(picture)
    guided = specs.build("field", method, field=field, operator=operator, measured=jnp.asarray(y), noise_std=noise_std)
    grid = from_time(times, max(start, float(times[0])))
    x = field.path.interpolate(grid[0], noise, jnp.zeros_like(picture)).astype(picture.dtype)
    return solve(guided, solver, x, grid, cond, key=key, index=index)

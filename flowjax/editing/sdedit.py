"""SDEdit (Meng et al., 2108.01073): noise on a picture, and from there the flow."""

from typing import Any

from jaxtyping import Array, Float

from flowjax._checks import real
from flowjax.editing._given import check_given, from_time
from flowjax.facts import fact
from flowjax.solving import Solution, solve


@fact("edit", "sdedit", "noise on a picture, then the flow", cite="meng2021sdedit", example=lambda: {"strength": 0.5})
def sdedit(
    field: Any,
    solver: Any,
    picture: Float[Array, "batch ..."],
    times: Any,
    *,
    noise: Float[Array, "batch ..."],
    strength: float,
    cond: Any = None,
    key: Any = None,
    index: Any = 0,
) -> Solution:
    """Puts a picture on the path at time 1 - strength and integrates from there to its end.

    x = alpha(t0) picture + sigma(t0) noise with t0 = 1 - strength, then the flow on the times moved to start at t0 (as
    many steps as they have). A guide of strokes becomes a picture, a picture one like it, under a new condition one of
    that.

    Args:
        field: a `Flow` from noise, or a field around one.
        solver: any solver.
        picture: where to start, (B, ...), in the scale of the flow.
        times: the grid of a whole run, from noise to data.
        noise: standard normal, like the picture (`flowjax.noise`).
        strength: how much is changed, in (0, 1]; with 1 hardly anything of the picture is left.
        cond: condition of the result.
        key: of a solver with noise of its own.
        index: global index of the first sample.

    Raises:
        ValueError: a strength outside its range, shapes that differ, a field that does not start from noise.

    Reference: Meng et al. (2108.01073).

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=2.0, std=0.1, path=fj.paths.Linear())
        >>> flow, picture = fj.Flow(law.network(), path=law.path), jnp.zeros((1, 2))
        >>> noise = fj.noise(jax.random.key(0), picture.shape)
        >>> times, solver = fj.times.uniform(5), fj.solvers.Euler()
        >>> int(fj.editing.sdedit(flow, solver, picture, times, noise=noise, strength=0.6).evaluations)
        5
    """
    real("(0, 1]", strength=strength)
    check_given(field, picture=picture, noise=noise)
    times = from_time(times, 1 - strength)
    x = field.path.interpolate(times[0], noise, picture)
    return solve(field, solver, x.astype(picture.dtype), times, cond, key=key, index=index)

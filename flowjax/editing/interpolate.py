"""Interpolation between two pictures through the noise that they come from (Song et al., 2010.02502)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._checks import real
from flowjax.editing._given import check_given
from flowjax.editing.invert import invert
from flowjax.facts import fact
from flowjax.guidance import in_turn
from flowjax.guidance.base import inner, norm
from flowjax.paths.base import expand
from flowjax.solving import Solution, solve


@fact(
    "edit",
    "interpolate",
    "between two pictures, through their noise",
    cite="song2020denoising",
    parts={"weight": "scale"},
    example=lambda: {"weight": 0.5},
)
def interpolate(
    field: Any,
    solver: Any,
    picture: Float[Array, "batch ..."],
    second: Float[Array, "batch ..."],
    times: Any,
    *,
    weight: Any,
    cond: Any = None,
    second_cond: Any = None,
    index: Any = 0,
) -> Solution:
    """Inverts both pictures, turns one noise into the other along the sphere (`slerp`), and samples from there.

    Args:
        field: a `Flow` from noise, or a field around one.
        solver: a deterministic solver.
        picture: (B, ...), in the scale of the flow.
        second: the other pictures, likewise.
        times: the grid as for sampling, from noise to data.
        weight: how far, in [0, 1], one number or one per sample, (B,); 0 is the first picture, 1 the second. For the
            samples of a recipe in turn `each(values=[...])`.
        cond: condition of the picture and of the result.
        second_cond: condition of the second picture; None is that of the first.
        index: global index of the first sample, for weights in turn.

    Returns:
        A `Solution`; its counts are those of the three runs together.

    Raises:
        ValueError: a weight outside [0, 1], shapes that differ, a stochastic solver, a field that does not start from
            noise.

    Reference: Song et al. (2010.02502), section 5.3.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=0.0, std=0.5, path=fj.paths.Linear())
        >>> flow, times = fj.Flow(law.network(), path=law.path), fj.times.uniform(20)
        >>> one, two = jnp.array([[0.5, 0.0]]), jnp.array([[0.0, 0.5]])
        >>> half = fj.editing.interpolate(flow, fj.solvers.Heun(), one, two, times, weight=0.5)
        >>> [round(float(v), 2) for v in half.x[0]], int(half.evaluations)  # on the circle between them
        ([0.35, 0.35], 120)
    """
    check_given(field, picture=picture, second=second)
    weight = in_turn(weight, index, picture.shape[0])
    real("[0, 1]", weight=weight)
    found = [
        invert(field, solver, one, times, asked)
        for one, asked in ((picture, cond), (second, cond if second_cond is None else second_cond))
    ]
    result = solve(field, solver, slerp(found[0].x, found[1].x, weight), times, cond)
    return together(result, *found)


def slerp(a: Float[Array, "batch ..."], b: Float[Array, "batch ..."], weight: Any) -> Float[Array, "batch ..."]:
    """From a (weight 0) to b (weight 1) at a constant angle, each sample by itself; straight where they are parallel.

    sin((1 - w) angle)/sin(angle) a + sin(w angle)/sin(angle) b, with the angle between a and b.
    """
    cosine = inner(a, b) / jnp.maximum(norm(a) * norm(b), jnp.finfo(jnp.float32).tiny)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    w = expand(jnp.asarray(weight, angle.dtype), angle)
    sine = jnp.sin(angle)
    straight = sine < 1e-4
    sine = jnp.where(straight, 1, sine)
    first = jnp.where(straight, 1 - w, jnp.sin((1 - w) * angle) / sine)
    second = jnp.where(straight, w, jnp.sin(w * angle) / sine)
    return first.astype(a.dtype) * a + second.astype(b.dtype) * b


def together(result: Solution, *before: Solution) -> Solution:
    """The last of several runs, with the counts of all."""
    runs = (result, *before)
    return dataclasses.replace(
        result,
        evaluations=sum((run.evaluations for run in runs[1:]), result.evaluations),
        network_calls=sum((run.network_calls for run in runs[1:]), result.network_calls),
    )

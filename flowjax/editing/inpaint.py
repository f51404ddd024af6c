"""Inpainting by replacement: after every step the known part is put back on its path (Song et al., 2011.13456)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax._checks import real
from flowjax.editing._given import check_given
from flowjax.facts import fact
from flowjax.solving import Solution, solve


@fact("edit", "inpaint", "a picture filled in where a mask does not keep it", cite="song2020score")
def inpaint(
    field: Any,
    solver: Any,
    picture: Float[Array, "batch ..."],
    mask: Any,
    times: Any,
    *,
    noise: Float[Array, "batch ..."],
    cond: Any = None,
    key: Any = None,
    index: Any = 0,
) -> Solution:
    """Samples that agree with a picture where the mask is 1.

    After each step, at its time t,  x <- mask (alpha(t) picture + sigma(t) noise) + (1 - mask) x,  and at the last time
    mask picture + (1 - mask) x, so that what is kept is kept exactly. What a solver remembers of the steps before is
    left as it is. Samples are not those of the exact conditional law; `flowjax.fields.MMPS` comes closer.

    Args:
        field: a `Flow` from noise, or a field around one.
        solver: any solver on a fixed grid.
        picture: (B, ...), in the scale of the flow; any values where it is not kept.
        mask: 1 (or True) where the picture is kept, 0 where it is filled in; of a shape that broadcasts to the
            picture's.
        times: the grid, from noise to data.
        noise: standard normal, like the picture (`flowjax.noise`): what the run starts from.
        cond: condition of the result.
        key: of a solver with noise of its own.
        index: global index of the first sample.

    Raises:
        ValueError: a mask outside [0, 1], shapes that do not fit, a field that does not start from noise.

    Reference: Song et al. (2011.13456), appendix I.2 (imputation).

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=2.0, std=0.1, path=fj.paths.Linear())
        >>> flow, picture = fj.Flow(law.network(), path=law.path), jnp.full((1, 3), 7.0)
        >>> noise, mask = fj.noise(jax.random.key(0), picture.shape), jnp.array([[1.0, 0.0, 0.0]])
        >>> filled = fj.editing.inpaint(flow, fj.solvers.Heun(), picture, mask, fj.times.uniform(8), noise=noise).x
        >>> float(filled[0, 0]), abs(float(filled[0, 1]) - 2) < 0.5
        (7.0, True)
    """
    check_given(field, picture=picture, noise=noise)
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    real("[0, 1]", mask=mask.astype(np.float32))
    try:
        fits = np.broadcast_shapes(mask.shape, picture.shape) == picture.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask must broadcast to the picture, {tuple(picture.shape)}, got {tuple(mask.shape)}")
    mask = jnp.broadcast_to(
        jnp.asarray(mask, picture.dtype).reshape((1,) * (picture.ndim - mask.ndim) + mask.shape), picture.shape
    )
    picture = jnp.where(mask == 0, 0, picture)
    grid = np.asarray(times, np.float64)
    keep = jax.tree_util.Partial(_keep, field.path, mask, picture, noise, jnp.asarray(grid[-1], jnp.float32))
    x = keep(grid[0], field.path.start(noise, grid[0]).astype(picture.dtype))
    return solve(field, solver, x.astype(picture.dtype), times, cond, key=key, index=index, after_step=keep)


def _keep(path: Any, mask: Array, picture: Array, noise: Array, last: Array, t: Any, x: Array) -> Array:
    """The state with the known part on its path, and itself at the last time."""
    known = path.interpolate(t, noise, picture).astype(x.dtype)
    return mask * jnp.where(jnp.asarray(t, jnp.float32) >= last, picture, known) + (1 - mask) * x

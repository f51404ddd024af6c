"""Smooth camera paths: the anchored fixed point, the quadratic smoother, and a grid of local paths."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax import _checks


def gaussian_window(frames: int, sigma: float = 5.0, radius: int = 15) -> np.ndarray:
    """The matrix G (T, T) of a normalised Gaussian window whose ends repeat the first and last frame; rows sum to 1.

    Raises:
        ValueError: sigma is not positive, or radius negative.
    """
    if not sigma > 0 or radius < 0:
        raise ValueError(f"sigma={sigma} must be positive and radius={radius} not negative")
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    result = np.zeros((frames, frames))
    for t in range(frames):
        np.add.at(result[t], np.clip(t + offsets, 0, frames - 1), weights / weights.sum())
    return result


def smooth_fixed_point(
    path: Float[Array, "T d"],
    anchor: float | Float[Array, ""] = 0.9,
    *,
    sigma: float = 5.0,
    radius: int = 15,
    iterations: int | None = None,
) -> Float[Array, "T d"]:
    """The fixed point x = (1 - a) c + a G x of anchored smoothing (reconstructed), or an iterate on the way to it.

    G is row-stochastic, so the map is a contraction by a in the largest deviation and the limit is
    (I - a G)^-1 (1 - a) c. For a = 1 nothing holds the path: a few iterations smooth it well, the limit is constant.

    Args:
        path: c.
        anchor: a in [0, 1); 1 is allowed with `iterations`.
        sigma: Of the Gaussian window, frames.
        radius: Of the window, frames.
        iterations: Steps from x = c; None solves for the limit.

    Raises:
        ValueError: anchor is outside its range. Where that shows only under jit, the path is NaN.
    """
    if isinstance(anchor, (int, float)) and not (0 <= anchor < 1 or (anchor == 1 and iterations is not None)):
        raise ValueError(f"anchor={anchor} must be in [0, 1); 1 needs a number of iterations")
    g = jnp.asarray(gaussian_window(len(path), sigma, radius), path.dtype)
    a = jnp.asarray(anchor, path.dtype)
    a = jnp.where((a >= 0) & ((a < 1) if iterations is None else (a <= 1)), a, jnp.nan)
    if iterations is None:
        # An inverse, since a product stays on its device when a batch of paths is spread and a solve does not.
        return jnp.linalg.inv(jnp.eye(len(path), dtype=path.dtype) - a * g) @ ((1 - a) * path)
    return jax.lax.fori_loop(0, iterations, lambda _, x: (1 - a) * path + a * (g @ x), path)


def smooth_quadratic(path: Float[Array, "T d"], strength: float | Float[Array, ""] = 100.0) -> Float[Array, "T d"]:
    """The path x of least |x - c|^2 + strength |D^3 x|^2 (reconstructed); quadratic paths stay as they are.

    Args:
        path: c, at least 4 frames for any effect.
        strength: Weight of the third differences, >= 0.

    Raises:
        ValueError: strength is negative or not finite. Where that shows only under jit, the path is NaN.
    """
    _checks.real("[0, inf)", strength=strength)
    frames = len(path)
    if frames < 4:
        return path
    d3 = jnp.asarray(np.diff(np.eye(frames), n=3, axis=0), path.dtype)
    # Only the difference to a straight line is solved for: it keeps float32 exact for long drifts.
    ramp = jnp.linspace(0, 1, frames, dtype=path.dtype)[:, None]
    line = path[:1] + ramp * (path[-1:] - path[:1])
    strength = jnp.asarray(strength, path.dtype)
    strength = jnp.where((strength >= 0) & (strength < jnp.inf), strength, jnp.nan)
    system = jnp.eye(frames, dtype=path.dtype) + strength * (d3.T @ d3)
    # As above: an inverse keeps a spread batch of paths on its devices. Its condition is 1 + 64 strength at most.
    return line + jnp.linalg.inv(system) @ (path - line)


def jerk(path: Float[Array, "T d"]) -> Float[Array, ""]:
    """Mean absolute third difference of a path.

    Raises:
        ValueError: Fewer than 4 frames.
    """
    if len(path) < 4:
        raise ValueError(f"a third difference needs at least 4 frames, got {len(path)}")
    return jnp.abs(jnp.diff(path, n=3, axis=0)).mean()


def local_fields(
    residuals: Float[Array, "T H W 2"],
    confidences: Float[Array, "T H W"],
    smoother: Callable = smooth_quadratic,
    cells: int = 10,
) -> Float[Array, "T1 H W 2"]:
    """Displacements of the T + 1 frames that smooth what the global motion leaves (reconstructed).

    Confidence-weighted means of the residual flow over cells x cells boxes are accumulated in time and smoothed; the
    differences are interpolated bilinearly. Boxes without confident flow are not moved.

    Raises:
        ValueError: The frame is smaller than the grid.
    """
    count, height, width, _ = residuals.shape
    if min(height, width) < cells or cells < 1:
        raise ValueError(f"a grid of {cells} x {cells} boxes in frames of {height} x {width}")
    finite = jnp.isfinite(residuals).all(-1)
    weight = jnp.where(finite & jnp.isfinite(confidences), confidences, 0).clip(0, 1)
    value = jnp.where(finite[..., None], residuals, 0) * weight[..., None]
    rows, columns = (
        jnp.asarray(np.eye(cells)[np.arange(size) * cells // size], residuals.dtype) for size in (height, width)
    )
    total = jnp.einsum("thw,hi,wj->tij", weight, rows, columns)[..., None]
    mean = jnp.einsum("thwc,hi,wj->tijc", value, rows, columns) / jnp.where(total > 0, total, 1)
    path = jnp.concatenate([jnp.zeros_like(mean[:1]), jnp.cumsum(mean, 0)]).reshape(count + 1, -1)
    change = (smoother(path) - path).reshape(count + 1, cells, cells, 2)
    return jax.image.resize(change, (count + 1, height, width, 2), "linear")

"""Shaken clips of an endless painted plane, with the true camera path, flow and every view of it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._pytree import pytree
from flowjax.video.motion import grid, inverse, matrix, transform


@pytree
class Clip:
    """A clip and how it was made.

    Attributes:
        frames: Values in [0, 1].
        flows: From each frame to the next, pixels; those of a foreground disc are its own.
        confidences: 1, but for the disc where that is asked for.
        motions: True (theta, log s, dx, dy) between frames.
        path: True camera path.
        waves: The painting: sums of waves with wave vector (2), phase and three colours.

    Example:
        >>> import jax
        >>> from flowjax.video import clips
        >>> clip = jax.eval_shape(lambda key: clips.shaken(key, frames=4, height=8, width=8), jax.random.key(0))
        >>> clip.frames.shape, clip.flows.shape
        ((4, 8, 8, 3), (3, 8, 8, 2))
    """

    frames: Float[Array, "T H W 3"]
    flows: Float[Array, "T1 H W 2"]
    confidences: Float[Array, "T1 H W"]
    motions: Float[Array, "T1 4"]
    path: Float[Array, "T 4"]
    waves: Float[Array, "K 6"]


def view(
    waves: Float[Array, "K 6"], path: Float[Array, "T 4"], height: int, width: int, margin: int = 0
) -> Float[Array, "T h w 3"]:
    """What a camera on the given path sees of the painting."""
    points = grid(height, width, waves.dtype, margin)

    def one(camera):
        place = transform(inverse(camera), points)
        phase = place @ waves[:, :2].T + waves[None, None, :, 2]
        return 0.5 + 0.5 * jnp.tanh(jnp.sin(phase) @ waves[:, 3:])

    return jax.lax.map(one, path)


def shaken(
    key: Key[Array, ""],
    frames: int = 30,
    height: int = 48,
    width: int = 64,
    *,
    drift: float = 1.0,
    shake: float = 2.0,
    tilt: float = math.radians(1.0),
    disc: float = 0.0,
    trusted_disc: bool = False,
    dtype: Any = jnp.float32,
) -> Clip:
    """A random clip: steady drift plus a shake of each frame, optionally with a moving disc in front.

    Args:
        key: Random key.
        frames: Number of frames T >= 2.
        height: Of a frame, pixels.
        width: Of a frame, pixels.
        drift: Steady motion, pixels per frame.
        shake: Largest displacement of a frame from the steady path along each axis, pixels.
        tilt: Largest rotation of a frame, radians.
        disc: Radius of the foreground disc in pixels; 0 for none.
        trusted_disc: Whether the confidence is 1 on the disc, too.
        dtype: Of everything.

    Raises:
        ValueError: Fewer than two frames.
    """
    if frames < 2:
        raise ValueError(f"a clip needs at least two frames, got {frames}")
    keys = jax.random.split(key, 2)
    uniforms = jax.random.uniform(keys[0], (frames, 3), dtype, -1, 1)
    steps = jnp.arange(frames, dtype=dtype)
    position = jnp.stack([drift * steps + shake * uniforms[:, 1], shake * uniforms[:, 2]], -1)
    path = jnp.concatenate([(tilt * uniforms[:, :1]), jnp.zeros((frames, 1), dtype), position], -1)
    # The path starts at zero, as a path found from motions does.
    relative = matrix(path) @ inverse(path[0])[None]
    turn = path[:, :1] - path[:1, :1]
    path = jnp.concatenate([turn, jnp.zeros_like(turn), relative[:, :2, 2]], -1)
    motion = matrix(path[1:]) @ jax.vmap(inverse)(path[:-1])
    motions = jnp.concatenate([jnp.diff(path[:, :2], axis=0), motion[:, :2, 2]], -1)
    normals = jax.random.normal(keys[1], (24, 6), dtype)
    waves = normals * jnp.array([0.18, 0.18, 3.0, 0.25, 0.25, 0.25], dtype)[None]
    points = grid(height, width, dtype)
    flows = transform(motion, jnp.broadcast_to(points, (frames - 1, *points.shape))) - points[None]
    images = view(waves, path, height, width)
    center = jnp.stack([(steps / (frames - 1) - 0.5) * width / 2, jnp.zeros_like(steps)], -1)
    inside = ((points[None] - center[:, None, None]) ** 2).sum(-1) < disc**2
    images = jnp.where(inside[..., None], jnp.array([0.9, 0.2, 0.1], dtype)[None, None, None], images)
    flows = jnp.where(inside[:-1, ..., None], jnp.diff(center, axis=0)[:, None, None], flows)
    confident = jnp.ones(flows.shape[:3], dtype) if trusted_disc else (~inside[:-1]).astype(dtype)
    return Clip(frames=images, flows=flows, confidences=confident, motions=motions, path=path, waves=waves)

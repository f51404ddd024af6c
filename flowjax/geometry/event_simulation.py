"""Simulated events of straight lines, with the true motion."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from flowjax import _checks
from flowjax._pytree import pytree
from flowjax.geometry.event_motion import derotate, rotate


@pytree
class Scene:
    """Simulated events of L lines, N of each.

    Attributes:
        pixels: Where, (x, y) with y down.
        t: When, seconds, centred on the window.
        bearings: The same derotated, unit length.
        velocity: True velocity of the camera, metres per second.
        angular_velocity: Its angular velocity, radians per second.
        direction: True directions of the lines.
        foot: Their nearest points to the camera at t = 0, metres.
        outlier: True for events put at random places.
        visible: True for lines wholly in front of the camera where there are events.

    Example:
        >>> import jax
        >>> from flowjax.geometry import event_simulation
        >>> scene = jax.jit(lambda key: event_simulation.simulate(key, lines=2, events=5))(jax.random.key(0))
        >>> scene.pixels.shape, round(float((scene.velocity**2).sum()), 3)  # 0.5 metres per second
        ((2, 5, 2), 0.25)
    """

    pixels: Float[Array, "L N 2"]
    t: Float[Array, "L N"]
    bearings: Float[Array, "L N 3"]
    velocity: Float[Array, "3"]
    angular_velocity: Float[Array, "3"]
    direction: Float[Array, "L 3"]
    foot: Float[Array, "L 3"]
    outlier: Bool[Array, "L N"]
    visible: Bool[Array, " L"]


def simulate(
    key: Key[Array, ""],
    lines: int = 1,
    events: int = 5,
    *,
    pixel_noise: float | Float[Array, ""] = 0.0,
    outliers: float | Float[Array, ""] = 0.0,
    speed: float = 0.5,
    spin: float = math.radians(15.0),
    window: float = 0.5,
    focal: float = 320.0,
    size: tuple[int, int] = (640, 480),
    candidates: int = 64,
    dtype: Any = None,
) -> Scene:
    """Events of random lines seen by a camera with random constant velocity and rotation.

    A line is the intersection of the planes through two random image segments, one at each end of the window. The
    i-th event has its x in the i-th of N slices of the image's width and its time in a random one of N slices of the
    window; y follows from the line and may leave the image. Of `candidates` such lines the first one in front of
    the camera at all its events is taken (published simulations keep those behind it, too).

    Args:
        key: Random key.
        lines: Number of lines L.
        events: Events per line N.
        pixel_noise: Length in pixels of the displacement of each event, in a random direction.
        outliers: Probability in [0, 1] that an event lies anywhere in the image.
        speed: Length of the velocity, metres per second.
        spin: Length of the angular velocity, radians per second.
        window: Length of the window, seconds.
        focal: Focal length, pixels; the principal point is the image's centre.
        size: Width and height of the image, pixels.
        candidates: Lines tried.
        dtype: Of the result; the default float type unless given.

    Raises:
        ValueError: A count, the window or the focal length is not positive, another number negative or not finite, or
            outliers outside [0, 1].
    """
    if min(lines, events, candidates) < 1:
        raise ValueError(f"lines, events and candidates must be positive, got {lines}, {events}, {candidates}")
    _checks.real("[0, inf)", pixel_noise=pixel_noise, speed=speed, spin=spin)
    _checks.real("(0, inf)", window=window, focal=focal)
    _checks.real("[0, 1]", outliers=outliers)
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    width, height = size
    center = (width / 2, height / 2)
    corner = jnp.array([width, height], dtype)
    # Few and large random draws: each one is a long program to compile.
    key_motion, key_lines, key_noise = jax.random.split(key, 3)
    motion = jax.random.normal(key_motion, (2, 3), dtype)
    v, w = motion / jnp.linalg.norm(motion, axis=-1, keepdims=True) * jnp.array([[speed], [spin]], dtype)

    def draw_line(uniforms):
        segments = uniforms[:8].reshape(2, 2, 2) * corner[None, None]
        place, order, moment = uniforms[8:].reshape(3, events)
        ends = jnp.array([-0.5, 0.5], dtype) * window
        rays = derotate(segments.reshape(4, 2), jnp.repeat(ends, 2), w, focal, center)
        first, second = jnp.cross(rays[0], rays[1]), jnp.cross(rays[2], rays[3])
        e1 = jnp.cross(first, second)
        # The point on both planes n.(P - t v) = 0 that is orthogonal to e1.
        offsets = ends[0] * (first @ v), ends[1] * (second @ v)
        foot = (offsets[0] * jnp.cross(second, e1) + offsets[1] * jnp.cross(e1, first)) / (e1 @ e1)
        e1 /= jnp.linalg.norm(e1)
        x = (jnp.arange(events, dtype=dtype) + place) * (width / events)
        t = ((jnp.argsort(order).astype(dtype) + moment) / events - 0.5) * window
        normal = rotate(-t[:, None] * w[None], jnp.cross(e1[None], foot[None] - t[:, None] * v[None]))
        y = -((x - center[0]) * normal[:, 0] + focal * normal[:, 2]) / normal[:, 1] + center[1]
        pixels = jnp.stack([x, y], -1)
        depth = (derotate(pixels, t, w, focal, center) @ foot) * (foot @ foot - t * (v @ foot))
        return pixels, t, e1, foot, (depth > 0).all()

    def draw_visible(uniforms):
        drawn = jax.vmap(draw_line)(uniforms)
        return jax.tree.map(lambda leaf: leaf[jnp.argmax(drawn[-1])], drawn)

    uniforms = jax.random.uniform(key_lines, (lines, candidates, 8 + 3 * events), dtype)
    pixels, t, e1, foot, visible = jax.vmap(draw_visible)(uniforms)
    noise = jax.random.uniform(key_noise, (lines, events, 4), dtype)
    angle = 2 * math.pi * noise[..., 0]
    pixels += pixel_noise * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    outlier = noise[..., 1] < outliers
    pixels = jnp.where(outlier[..., None], noise[..., 2:] * corner[None, None], pixels)
    return Scene(
        pixels=pixels,
        t=t,
        bearings=jax.vmap(lambda p, s: derotate(p, s, w, focal, center))(pixels, t),
        velocity=v,
        angular_velocity=w,
        direction=e1,
        foot=foot,
        outlier=outlier,
        visible=visible,
    )

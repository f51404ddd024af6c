"""Analytic flows to test on, and particles that move with one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flowjax.science.coherent_structures.exponents import stretching


def double_gyre(t: Any, x: Float[Array, " 2"], args: Any = None) -> Float[Array, " 2"]:
    """Two counter-rotating gyres on [0, 2] x [0, 1] whose wall between them swings; stream function
    A sin(pi f) sin(pi y), f = a x^2 + (1 - 2 a) x, a = eps sin(omega t). `args` = (A, eps, omega), None: 0.1, 0.25,
    2 pi / 10.
    """  # noqa: D205
    amplitude, eps, omega = (0.1, 0.25, 2 * np.pi / 10) if args is None else args
    a = eps * jnp.sin(omega * t)
    f, slope = a * x[0] ** 2 + (1 - 2 * a) * x[0], 2 * a * x[0] + 1 - 2 * a
    u = -np.pi * amplitude * jnp.sin(np.pi * f) * jnp.cos(np.pi * x[1])
    return jnp.stack([u, np.pi * amplitude * jnp.cos(np.pi * f) * jnp.sin(np.pi * x[1]) * slope])


def abc_flow(t: Any, x: Float[Array, " 3"], args: Any = None) -> Float[Array, " 3"]:
    """The Arnold-Beltrami-Childress flow with A = sqrt(3) + sin(t/2)/2, B = sqrt(2), C = 1."""
    a, b = float(np.sqrt(3.0)) + 0.5 * jnp.sin(t / 2), float(np.sqrt(2.0))
    sin, cos = jnp.sin(x), jnp.cos(x)
    return jnp.stack([a * sin[2] + cos[1], b * sin[0] + a * cos[2], sin[1] + b * cos[0]])


def abc_frames(
    key: Key[Array, ""], particles: int, *, displacement: Any, noise: Any, gate: float = 6.0, dtype: Any = jnp.float32
) -> tuple[Float[Array, "4 N 3"], Int[Array, "N 3"], Float[Array, ""], Float[Array, ""]]:
    """Four noisy, shuffled frames of particles that start uniformly in a cube of side 2 of the ABC flow.

    Args:
        key: random key.
        particles: N.
        displacement: typical displacement per frame over the mean spacing 0.554 (8/N)^(1/3), at a speed of 2.4.
        noise: standard deviation of the positions over the spacing.
        gate: standard deviations of the noise in the prediction radius.
        dtype: of the positions.

    Returns:
        The frames, the true links, a search radius (1.2 times the largest first displacement) and a prediction radius
        (0.15 times the same plus `gate` standard deviations of the noise).

    Raises:
        ValueError: no particle, or a displacement that is not positive.
    """
    if particles < 1 or (isinstance(displacement, (int, float)) and not displacement > 0):
        raise ValueError(f"{particles=} must be at least 1 and {displacement=} positive")
    spacing = 0.554 * (8 / particles) ** (1 / 3)
    interval = displacement * spacing / 2.4
    place, shake, shuffle = jax.random.split(key, 3)
    x = jax.random.uniform(place, (particles, 3), dtype, maxval=2.0)
    exact = [x]
    for frame in range(3):
        exact.append(stretching(abc_flow, exact[-1], frame * interval, (frame + 1) * interval, steps=4).end)
    frames = jnp.stack(exact)
    largest = jnp.max(jnp.linalg.norm(frames[1] - frames[0], axis=-1))
    frames = frames + noise * spacing * jax.random.normal(shake, frames.shape, dtype)
    orders = jax.vmap(lambda k: jax.random.permutation(k, particles))(jax.random.split(shuffle, 3))
    shuffled = [frames[0], *(frame[order] for frame, order in zip(frames[1:], orders, strict=True))]
    truth = jnp.argsort(orders, axis=1).T.astype(jnp.int32)
    return jnp.stack(shuffled), truth, 1.2 * largest, 0.15 * 1.2 * largest + gate * noise * spacing

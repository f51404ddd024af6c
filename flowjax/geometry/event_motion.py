"""Relative motion of an event camera from events on straight lines.

The camera moves with constant velocity v over a short window and its rotation R(t) is known. Events of one line (unit
direction e1, nearest point to the origin P0, distance rho) are seen at times t, centred on the window, along unit
bearings f' = R(t) K^-1 (x, y, 1) in the frame of t = 0. They lie in the plane through line and camera:

    f'.b - t f'.a = 0,    b = e1 x P0 / rho,    a = e1 x v / rho.

This is linear in (a, b): five events determine the line and the part of v orthogonal to it, up to the common scale
rho (Gao et al. 2023); more events do so in the least-squares sense. In the basis e2 = b, e3, e1 = e2 x e3 of the line

    a = u_y e3 - u_z e2,    v_perp / rho = u_y e2 + u_z e3,    P0 / rho = -e3.

(a, b) and its negative describe the same planes; the sign is chosen so that the line is in front of the camera. The
component of v along a line cannot be seen (aperture problem); two or more lines give the direction of v.

All functions treat one problem and are made for `vmap`. They work in the dtype they are given. In float64, noise-free
problems are solved to about 1e-11 degrees; in float32 to about 1e-4 degrees, 0.1 % of them worse than 0.1 degrees.
Events that are masked or not finite are ignored. Degenerate input gives finite values and `degenerate = True`.

References:
    Gao, Su, Gehrig, Cannici, Scaramuzza and Kneip (2023), A 5-Point Minimal Solver for Event Camera Relative Motion
    Estimation, ICCV, arXiv:2309.17054. Reconstructed, since not given there: the choice of sign, details of RANSAC.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from flowjax._pytree import pytree
from flowjax.geometry._linear import null_vector, present

MINIMAL = 5  # events that determine a line and the motion across it


@pytree
class LineMotion:
    """A line and the motion of the camera across it, with the distance of the line as unit of length.

    Attributes:
        e1: Direction of the line.
        e2: Normal of the plane through line and camera at t = 0.
        e3: Unit vector from the line's nearest point to the camera at t = 0.
        u: (u_y, u_z) = (v.e2, v.e3) / rho, 1 / seconds.
        velocity: v_perp / rho = u_y e2 + u_z e3, the part of v orthogonal to the line.
        a: e1 x v / rho.
        b: e1 x P0 / rho = e2.
        residual: Root mean square over the events of the sine of the angle to the moving plane.
        degenerate: True if the events do not determine the result: fewer than five, crowded, or a motion along the
            line or towards it, for which e1 and e3 are arbitrary.
    """

    e1: Float[Array, "*batch 3"]
    e2: Float[Array, "*batch 3"]
    e3: Float[Array, "*batch 3"]
    u: Float[Array, "*batch 2"]
    velocity: Float[Array, "*batch 3"]
    a: Float[Array, "*batch 3"]
    b: Float[Array, "*batch 3"]
    residual: Float[Array, "*batch"]
    degenerate: Bool[Array, "*batch"]

    @property
    def foot(self) -> Float[Array, "*batch 3"]:
        """Point of the line nearest to the camera at t = 0, P0 / rho."""
        return -self.e3

    @property
    def crossings(self) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch 3"]]:
        """Points of the line with first coordinate -1 and +1, infinite for a line with e1_x = 0."""
        slide = lambda x: self.foot + self.e1 * ((x - self.foot[..., :1]) / self.e1[..., :1])  # noqa: E731
        return slide(-1), slide(1)


@pytree
class Velocity:
    """Direction of the camera's velocity.

    Attributes:
        direction: Unit vector.
        degenerate: True if the lines do not determine it: fewer than two usable ones, or all parallel.
    """

    direction: Float[Array, "*batch 3"]
    degenerate: Bool[Array, "*batch"]


def rotate(turn: Float[Array, "*batch 3"], x: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Vectors x rotated by |turn| radians about `turn`, exp([turn]x) x, by Rodrigues' formula."""
    square = (turn**2).sum(-1, keepdims=True)
    small = square < 1e-8
    angle = jnp.sqrt(jnp.where(small, 1, square))
    first = jnp.where(small, 1 - square / 6, jnp.sin(angle) / angle)
    second = jnp.where(small, 0.5 - square / 24, (1 - jnp.cos(angle)) / angle**2)
    once = jnp.cross(turn, x)
    return x + first * once + second * jnp.cross(turn, once)


def derotate(
    pixels: Float[Array, "N 2"],
    t: Float[Array, " N"],
    angular_velocity: Float[Array, "3"],
    focal: float = 320.0,
    center: tuple[float, float] = (320.0, 240.0),
) -> Float[Array, "N 3"]:
    """Unit bearings in the frame of t = 0, exp(t [w]x) K^-1 (x, y, 1), of events at pixels (x, y).

    Args:
        pixels: Pixel coordinates (x, y), y down.
        t: Times in seconds, centred on the window.
        angular_velocity: w, radians per second, of the camera-to-world rotation.
        focal: Focal length in pixels.
        center: Principal point in pixels.
    """
    rays = jnp.stack([(pixels[:, 0] - center[0]) / focal, (pixels[:, 1] - center[1]) / focal, jnp.ones_like(t)], -1)
    rays = rotate(t[:, None] * angular_velocity[None], rays)
    return rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)


def _unit(vector, fallback):
    """A vector over its length, the fallback where it is zero; and the length."""
    square = (vector**2).sum()
    good = square > jnp.finfo(vector.dtype).tiny
    length = jnp.sqrt(jnp.where(good, square, 1))
    return jnp.where(good, vector / length, fallback), jnp.where(good, length, 0)


def _orthogonal(vector):
    """Some unit vector orthogonal to a unit vector."""
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(vector)), 3, dtype=vector.dtype)
    rest = axis - vector * (axis @ vector)
    return rest / jnp.linalg.norm(rest)


def angles(line: LineMotion, bearings: Float[Array, "N 3"], t: Float[Array, " N"]) -> Float[Array, " N"]:
    """Angles in radians between bearings and the moving plane of a line, whose normal is n(t) = b - t a."""
    normal = line.b[None] - t[:, None] * line.a[None]
    square = (normal**2).sum(-1)
    length = jnp.sqrt(jnp.where(square > 0, square, 1))
    return jnp.arcsin(jnp.clip(jnp.abs((bearings * normal).sum(-1)) / length, 0, 1))


def solve_line(
    bearings: Float[Array, "N 3"],
    t: Float[Array, " N"],
    mask: Float[Array, " N"] | None = None,
    *,
    tolerance: float | None = None,
) -> LineMotion:
    """A line and the motion across it from N >= 5 of its events: exact for 5, least squares for more.

    (a, b) is the singular vector of the smallest singular value of the rows [t f', -f']; its sign (reconstructed) is
    the one for which most events see the line in front of the camera: sum of sign(-(f'.e3)(1 + t u_z)) >= 0.

    Args:
        bearings: Unit bearings in the frame of t = 0, from `derotate`.
        t: Times in seconds, centred on the window.
        mask: Nonzero for the events to use; all unless given.
        tolerance: The result is degenerate if the second smallest singular value is below this times the largest;
            64 times the resolution of the dtype unless given.

    Raises:
        ValueError: N is less than 5.
    """
    if len(t) < MINIMAL:
        raise ValueError(f"a line and the motion across it need at least {MINIMAL} events, got {len(t)}")
    weight = present(jnp.concatenate([bearings, t[:, None]], -1), mask)
    used = weight > 0
    bearings = jnp.where(used[:, None], bearings, 0)
    t = jnp.where(used, t, 0)
    z, values = null_vector(jnp.concatenate([t[:, None] * bearings, -bearings], -1))
    # Where b = 0 (a degenerate case) any finite direction will do.
    e2, scale = _unit(z[3:], jnp.array([0, 1, 0], z.dtype))
    a = z[:3] / jnp.where(scale > 0, scale, 1)
    u_z = -(a @ e2)
    limit = 64 * jnp.finfo(z.dtype).eps if tolerance is None else tolerance
    r = a + u_z * e2
    # What rounding leaves of a zero is not orthogonal to e2.
    r = jnp.where(r @ r > limit**2 * (1 + a @ a), r - (r @ e2) * e2, 0)
    e3, u_y = _unit(r, _orthogonal(e2))
    e1 = jnp.cross(e2, e3)
    depth = -(bearings @ e3) * (1 + t * u_z)
    # Not sign() of the sum: that would be zero for a tie.
    sign = jnp.where(jnp.sign(depth).sum() >= 0, 1, -1).astype(z.dtype)
    e2, e3, a = sign * e2, sign * e3, sign * a
    degenerate = (values[-2] <= limit * values[0]) | (used.sum() < MINIMAL) | (u_y <= limit) | (scale <= limit)
    line = LineMotion(
        e1=e1,
        e2=e2,
        e3=e3,
        u=jnp.stack([u_y, u_z]),
        velocity=u_y * e2 + u_z * e3,
        a=a,
        b=e2,
        residual=jnp.zeros((), z.dtype),
        degenerate=degenerate,
    )
    square = (weight * jnp.sin(angles(line, bearings, t)) ** 2).sum() / jnp.maximum(weight.sum(), 1)
    object.__setattr__(line, "residual", jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0))
    return line


def average(
    lines: LineMotion,
    mask: Float[Array, " L"] | None = None,
    *,
    normalize_rows: bool = False,
    tolerance: float | None = None,
) -> Velocity:
    """The direction of v from L >= 2 lines: the v most orthogonal to all a_l, on the side of the projected velocities.

    Rows keep their length |a_l| = |u_l| by default, which gives weight to lines with large apparent motion: on noisy
    events this is two to four times more accurate than unit rows for L >= 3 (for two lines both are the same).

    Args:
        lines: Results of `solve_line`, with a leading axis L. Degenerate ones are ignored.
        mask: Nonzero for the lines to use; all unless given.
        normalize_rows: Whether all lines get the same weight.
        tolerance: As for `solve_line`, here for the 3 singular values of the rows.

    Raises:
        ValueError: There are fewer than two lines.
    """
    if lines.a.ndim != 2 or len(lines.a) < 2:
        raise ValueError(f"a velocity needs at least two lines, a of shape (L >= 2, 3); got {lines.a.shape}")
    used = ~lines.degenerate & (present(lines.a, mask) > 0)
    rows = jnp.where(used[:, None], lines.a, 0)
    if normalize_rows:
        rows /= jnp.where(used, jnp.linalg.norm(jnp.where(used[:, None], lines.a, 1), axis=-1), 1)[:, None]
    v, values = null_vector(rows)
    along = jnp.where(used[:, None], lines.velocity, 0).sum(0) @ v
    limit = 64 * jnp.finfo(v.dtype).eps if tolerance is None else tolerance
    degenerate = (used.sum() < 2) | (values[1] <= limit * values[0])
    return Velocity(direction=jnp.where(along < 0, -v, v), degenerate=degenerate)


def ransac(
    key: Key[Array, ""],
    bearings: Float[Array, "N 3"],
    t: Float[Array, " N"],
    mask: Float[Array, " N"] | None = None,
    *,
    draws: int = 60,
    threshold: float = math.radians(0.18),
) -> tuple[LineMotion, Bool[Array, " N"]]:
    """A line from events with outliers: the best of many minimal solutions, then all its inliers (reconstructed).

    Args:
        key: Random key.
        bearings: Unit bearings in the frame of t = 0.
        t: Times in seconds, centred on the window.
        mask: Nonzero for the events to use.
        draws: Number of draws of five events; all are solved at once. With a share p of outliers a draw is clean with
            probability (1 - p)^5.
        threshold: Largest angle of an inlier, radians; the default is a pixel at focal length 320.

    Returns:
        The least-squares solution from the inliers of the best draw, and these inliers.

    Raises:
        ValueError: Fewer than 5 events, or no draw.
    """
    if draws < 1 or len(t) < MINIMAL:
        raise ValueError(f"RANSAC needs at least one draw and {MINIMAL} events, got {draws} and {len(t)}")
    used = present(jnp.concatenate([bearings, t[:, None]], -1), mask) > 0

    def attempt(key):
        scores = jnp.where(used, jax.random.uniform(key, t.shape, t.dtype), -1)
        five = jnp.argsort(-scores)[:MINIMAL]
        line = solve_line(bearings[five], t[five], used[five].astype(t.dtype))
        inliers = used & (angles(line, bearings, t) < threshold)
        return jnp.where(line.degenerate, -1, inliers.sum()), inliers

    counts, inliers = jax.vmap(attempt)(jax.random.split(key, draws))
    best = inliers[jnp.argmax(counts)]
    return solve_line(bearings, t, best.astype(t.dtype)), best

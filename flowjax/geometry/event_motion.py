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
Events that are masked or not finite are ignored. Degenerate input gives finite values and `degenerate = True`: what
rounding cannot tell from a degenerate problem counts as one, and for lines of more than five events, whose residual
shows the noise, what noise cannot tell. Five noisy events say nothing of their noise: give a `tolerance` there.

References:
    Gao, Su, Gehrig, Cannici, Scaramuzza and Kneip (2023), A 5-Point Minimal Solver for Event Camera Relative Motion
    Estimation, ICCV, arXiv:2309.17054. Reconstructed, since not given there: the choice of sign, details of RANSAC,
    the covariances.
    Desolneux, Moisan and Morel (2000), Meaningful Alignments, International Journal of Computer Vision 40 (when a
    number of inliers is more than chance), doi:10.1023/A:1026593302236.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from flowjax import _checks
from flowjax._pytree import pytree
from flowjax.facts import fact
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
        covariance: Of a, to first order, from the residual and from rounding; a constant to derivatives.
        degenerate: True if the events do not determine the result: fewer than five, crowded, no motion, or one along
            the line or towards it, for which e1 and e3 are arbitrary; as many of them in front of the camera as
            behind it; for `ransac`, no more inliers than chance gives.

    Example:
        >>> import jax
        >>> from flowjax.geometry import event_simulation
        >>> scene = jax.jit(lambda key: event_simulation.simulate(key, lines=2, events=5))(jax.random.key(0))
        >>> lines = jax.jit(jax.vmap(solve_line))(scene.bearings, scene.t)
        >>> abs((lines.e1 * scene.direction).sum(-1)).round(2).tolist()  # the cosine of the angle, but for its sign
        [1.0, 1.0]
    """

    e1: Float[Array, "*batch 3"]
    e2: Float[Array, "*batch 3"]
    e3: Float[Array, "*batch 3"]
    u: Float[Array, "*batch 2"]
    velocity: Float[Array, "*batch 3"]
    a: Float[Array, "*batch 3"]
    b: Float[Array, "*batch 3"]
    residual: Float[Array, "*batch"]
    covariance: Float[Array, "*batch 3 3"]
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
        degenerate: True if the lines do not determine it: fewer than two usable ones, or all parallel, as far as the
            errors of the lines can tell.

    Example:
        >>> import jax
        >>> from flowjax.geometry import event_simulation
        >>> scene = jax.jit(lambda key: event_simulation.simulate(key, lines=2, events=5))(jax.random.key(0))
        >>> found = jax.jit(lambda scene: average(jax.vmap(solve_line)(scene.bearings, scene.t)))(scene)
        >>> round(float((found.direction * scene.velocity).sum() / 0.5), 2)  # the cosine of the angle between them
        1.0
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
    focal: float | None = None,
    center: tuple[float, float] | None = None,
    *,
    intrinsics: Float[Array | np.ndarray, "3 3"] | None = None,
) -> Float[Array, "N 3"]:
    """Unit bearings in the frame of t = 0, exp(t [w]x) K^-1 (x, y, 1), of events at pixels (x, y).

    Args:
        pixels: Pixel coordinates (x, y), y down, without lens distortion.
        t: Times in seconds, centred on the window.
        angular_velocity: w, radians per second, of the camera-to-world rotation.
        focal: Focal length in pixels, for K without skew and with square pixels; 320 unless given.
        center: Principal point in pixels; (320, 240) unless given.
        intrinsics: The whole K = [[f_x, skew, c_x], [0, f_y, c_y], [0, 0, 1]] in pixels, instead of the two above. The
            angle of one pixel, for `ransac`, is then about 1 / f_x.

    Raises:
        ValueError: intrinsics besides focal or center, or numbers that are no camera (a transposed K, for example).
            Under jit such numbers make all bearings NaN, which count as no event.
    """
    camera: Any = intrinsics
    if intrinsics is None:
        f, (c_x, c_y) = 320.0 if focal is None else focal, (320.0, 240.0) if center is None else center
        camera = [[f, 0.0, c_x], [0.0, f, c_y], [0.0, 0.0, 1.0]]
    elif focal is not None or center is not None:
        raise ValueError("give either intrinsics or focal and center: intrinsics hold both")
    elif jnp.shape(intrinsics) != (3, 3):
        raise ValueError(f"intrinsics have the shape (3, 3), got {jnp.shape(intrinsics)}")
    known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(camera))
    if known and not _is_camera(np.asarray(camera, np.float64)):
        raise ValueError(
            "a camera has K = [[f_x, skew, c_x], [0, f_y, c_y], [0, 0, 1]], finite, with f_x and f_y not 0; got "
            f"{np.asarray(camera).tolist()}"
        )
    k = jnp.asarray(camera, t.dtype)
    k = k if known else jnp.where(_is_camera(k), k, jnp.nan)
    y = (pixels[:, 1] - k[1, 2]) / k[1, 1]
    x = (pixels[:, 0] - k[0, 2] - k[0, 1] * y) / k[0, 0]
    rays = jnp.stack([x, y, jnp.ones_like(t)], -1)
    rays = rotate(t[:, None] * angular_velocity[None], rays)
    return rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)


def _is_camera(k):
    zeros = (k[1, 0] == 0) & (k[2, 0] == 0) & (k[2, 1] == 0)
    return (abs(k) < math.inf).all() & zeros & (k[0, 0] != 0) & (k[1, 1] != 0) & (k[2, 2] == 1)


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
        ValueError: N is less than 5, or the tolerance is not in [0, 1).
    """
    if len(t) < MINIMAL:
        raise ValueError(f"a line and the motion across it need at least {MINIMAL} events, got {len(t)}")
    _checks.real("[0, 1)", tolerance=0.0 if tolerance is None else tolerance)
    weight = present(jnp.concatenate([bearings, t[:, None]], -1), mask)
    used = weight > 0
    bearings = jnp.where(used[:, None], bearings, 0)
    t = jnp.where(used, t, 0)
    z, values, vectors = null_vector(jnp.concatenate([t[:, None] * bearings, -bearings], -1))
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
    votes = jnp.sign(depth).sum()
    sign = jnp.where(votes >= 0, 1, -1).astype(z.dtype)
    e2, e3, a = sign * e2, sign * e3, sign * a
    degenerate = (values[-2] <= limit * values[0]) | (used.sum() < MINIMAL) | (u_y <= limit) | (scale <= limit)
    degenerate |= votes == 0
    line = LineMotion(
        e1=e1,
        e2=e2,
        e3=e3,
        u=jnp.stack([u_y, u_z]),
        velocity=u_y * e2 + u_z * e3,
        a=a,
        b=e2,
        residual=jnp.zeros((), z.dtype),
        covariance=_covariance(z, values, vectors, used.sum()),
        degenerate=degenerate,
    )
    square = (weight * jnp.sin(angles(line, bearings, t)) ** 2).sum() / jnp.maximum(weight.sum(), 1)
    object.__setattr__(line, "residual", jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0))
    return line


def _covariance(z, values, vectors, count):
    """First-order covariance of a = z_a / |z_b|, where A z = 0 is solved with an error of s in each row.

    With the singular values s_k and vectors v_k of A, z moves by s / s_k along each v_k but itself, independently. The
    residual s_6^2 / (N - 5) estimates s^2; rounding of the events and of the decomposition adds (eps s_1)^2.
    """
    z, values, vectors = jax.lax.stop_gradient((z, values, vectors))
    eps = jnp.finfo(z.dtype).eps
    freedom = jnp.maximum(count - MINIMAL, 1).astype(z.dtype)
    variance = values[-1] ** 2 / freedom + (eps * values[0]) ** 2
    b, scale = _unit(z[3:], jnp.zeros(3, z.dtype))
    scale = jnp.where(scale > 0, scale, 1)
    slope = jnp.concatenate([jnp.eye(3, dtype=z.dtype), -jnp.outer(z[:3], b) / scale], 1) / scale  # da / dz
    # Below rounding singular values are arbitrary; no event at all leaves them zero.
    moved = slope @ vectors[:-1].T / jnp.maximum(values[:-1], jnp.maximum(eps * values[0], eps))[None]
    return variance * moved @ moved.T


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

    The a_l of parallel lines are parallel, and v is then arbitrary in a plane. The result is degenerate if the second
    direction w in which the rows differ is not ten times what their errors put there,

        s_2^2 <= 10^2 sum_l w.C_l w,    C_l the covariance of row l:

    the standard error of the direction is above 0.1 radians. Errors alone reach a ratio of about 1, those of rounding,
    which are bounds, less.

    Args:
        lines: Results of `solve_line`, with a leading axis L. Degenerate ones are ignored.
        mask: Nonzero for the lines to use; all unless given.
        normalize_rows: Whether all lines get the same weight.
        tolerance: The result is also degenerate if s_2 is below this times s_1; 64 times the resolution of the dtype
            unless given. Lines of five noisy events need it: their covariance holds rounding only.

    Raises:
        ValueError: There are fewer than two lines, or the tolerance is not in [0, 1).
    """
    if lines.a.ndim != 2 or len(lines.a) < 2:
        raise ValueError(f"a velocity needs at least two lines, a of shape (L >= 2, 3); got {lines.a.shape}")
    _checks.real("[0, 1)", tolerance=0.0 if tolerance is None else tolerance)
    used = ~lines.degenerate & (present(lines.a, mask) > 0)
    rows = jnp.where(used[:, None], lines.a, 0)
    covariance = jnp.where(used[:, None, None], lines.covariance, 0)
    if normalize_rows:
        length = jnp.where(used, jnp.linalg.norm(jnp.where(used[:, None], lines.a, 1), axis=-1), 1)
        rows, covariance = rows / length[:, None], covariance / length[:, None, None] ** 2
    v, values, vectors = null_vector(rows)
    along = jnp.where(used[:, None], lines.velocity, 0).sum(0) @ v
    limit = 64 * jnp.finfo(v.dtype).eps if tolerance is None else tolerance
    error = vectors[1] @ covariance.sum(0) @ vectors[1]
    degenerate = (used.sum() < 2) | (values[1] <= limit * values[0]) | ~(values[1] ** 2 > 100 * error)
    return Velocity(direction=jnp.where(along < 0, -v, v), degenerate=degenerate)


@fact("system", "event_motion", "lines and camera velocity from five or more events", cite="gao2023fivepoint")
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
        The least-squares solution from the inliers of the best draw, and these inliers. It is degenerate if chance
        gives as many: five of any events fit some line, and events spread at random over their own extent have some
        more inliers. Expected is less than one solution that passes in a thousand problems without a line. So are
        seven events or fewer, often ten, and events that all lie within a few thresholds of one plane.

    Raises:
        ValueError: Fewer than 5 events, no draw, or a threshold that is not positive.
    """
    if draws < 1 or len(t) < MINIMAL:
        raise ValueError(f"RANSAC needs at least one draw and {MINIMAL} events, got {draws} and {len(t)}")
    _checks.real("(0, inf)", threshold=threshold)
    used = present(jnp.concatenate([bearings, t[:, None]], -1), mask) > 0

    def attempt(key):
        scores = jnp.where(used, jax.random.uniform(key, t.shape, t.dtype), -1)
        five = jnp.argsort(-scores)[:MINIMAL]
        line = solve_line(bearings[five], t[five], used[five].astype(t.dtype))
        inliers = used & (angles(line, bearings, t) < threshold)
        return jnp.where(line.degenerate, -1, inliers.sum()), inliers

    counts, inliers = jax.vmap(attempt)(jax.random.split(key, draws))
    best = inliers[jnp.argmax(counts)]
    line = solve_line(bearings, t, best.astype(t.dtype))
    chance = _by_chance(bearings, used, counts.max(), draws, threshold)
    return dataclasses.replace(line, degenerate=line.degenerate | chance), best


def _by_chance(bearings, used, inliers, draws, threshold):
    """Whether random events would be expected to give that many inliers in a thousandth of all problems or more.

    Each of the n = N - 5 events outside a draw is an inlier with probability p, the share that the strip of width
    2 threshold takes of the events' extent. With the share q of n that are inliers Chernoff's bound of the binomial
    tail is exp(-n KL(q || p)); the number of draws multiplies it.
    """
    n = jnp.maximum(used.sum() - MINIMAL, 1).astype(bearings.dtype)
    q = ((inliers - MINIMAL).astype(bearings.dtype) / n).clip(0, 1)
    # The extent across their best plane, as if uniform: sqrt(12) deviations. A strip through the middle of a round
    # or diagonal patch holds up to 1.8 times its share; with the factor 2 instead, 4 thresholds.
    values = null_vector(jnp.where(used[:, None], bearings, 0))[1]
    extent = jnp.sqrt(12 / jnp.maximum(used.sum(), 1).astype(bearings.dtype)) * values[-1]
    tiny = jnp.finfo(bearings.dtype).tiny
    p = (4 * threshold / jnp.maximum(extent, tiny)).clip(tiny, 1)
    exponent = jax.scipy.special.xlogy(q, q / p) + jax.scipy.special.xlogy(1 - q, (1 - q) / jnp.maximum(1 - p, tiny))
    return ~((q > p) & (math.log(draws) - n * exponent <= math.log(1e-3)))

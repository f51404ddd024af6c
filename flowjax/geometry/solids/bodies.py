"""A family of bodies by their signed distances, of random kind, size, turn and colour."""

import dataclasses

import numpy as np
from jaxtyping import Float

NAMES = ("ellipsoid", "box", "cylinder", "cone", "torus", "ell", "cross", "bowl")

COLOURS = np.array(
    [[0.85, 0.3, 0.25], [0.95, 0.65, 0.2], [0.85, 0.85, 0.35], [0.35, 0.7, 0.4], [0.3, 0.55, 0.85], [0.6, 0.4, 0.75]]
)
"""Six colours, red, orange, yellow, green, blue and violet, of which a body has one, a little changed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Body:
    """A body within the cube [-0.95, 0.95]^3.

    Attributes:
        kind: One of `NAMES`.
        size: Three lengths in (0, 1), of which a kind takes what it needs.
        turn: Angle around the z axis, radians.
        colour: In [0, 1], (3,).

    Example:
        >>> ball = Body(kind="ellipsoid", size=np.full(3, 0.5), turn=0.0, colour=np.ones(3))
        >>> ball.distance(np.array([[0.0, 0.0, 0.8], [0.25, 0.0, 0.0]])).round(3).tolist()
        [0.3, -0.25]
    """

    kind: str
    size: Float[np.ndarray, "3"]
    turn: float
    colour: Float[np.ndarray, "3"]

    def distance(self, points: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
        """Signed distances, negative inside; exact, or near the surface to first order."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        x, y, z = np.moveaxis(points, -1, 0)
        own = np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=-1)
        return _DISTANCES[self.kind](own, *self.size)

    def colours(self, points: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Its colour, everywhere."""
        return np.broadcast_to(self.colour, points.shape)


def draw(rng: np.random.Generator, kind: str) -> Body:
    """A body of this kind, at random."""
    low, high = _SIZES[kind]
    colour = np.clip(COLOURS[rng.integers(len(COLOURS))] + rng.normal(0, 0.03, 3), 0, 1)
    return Body(kind=kind, size=rng.uniform(low, high), turn=float(rng.uniform(0, 2 * np.pi)), colour=colour)


def _box(p: np.ndarray, half: np.ndarray, middle: np.ndarray | float = 0.0) -> np.ndarray:
    q = np.abs(p - middle) - half
    return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(axis=-1), 0)


def _ellipsoid(p: np.ndarray, *radii: float) -> np.ndarray:
    r = np.array(radii)
    first, second = np.linalg.norm(p / r, axis=-1), np.linalg.norm(p / r**2, axis=-1)
    return np.where(second > 1e-9, first * (first - 1) / np.maximum(second, 1e-9), -r.min())


def _rounded(radial: np.ndarray, axial: np.ndarray) -> np.ndarray:
    """Distance to the quarter plane where both are negative."""
    q = np.stack([radial, axial], axis=-1)
    return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(axis=-1), 0)


def _cylinder(p: np.ndarray, radius: float, half: float, _: float) -> np.ndarray:
    return _rounded(np.hypot(p[..., 0], p[..., 1]) - radius, np.abs(p[..., 2]) - half)


def _cone(p: np.ndarray, radius: float, half: float, _: float) -> np.ndarray:
    side = (2 * half * np.hypot(p[..., 0], p[..., 1]) + radius * (p[..., 2] - half)) / np.hypot(2 * half, radius)
    return np.maximum(side, -half - p[..., 2])


def _torus(p: np.ndarray, ring: float, tube: float, _: float) -> np.ndarray:
    return np.hypot(np.hypot(p[..., 0], p[..., 1]) - ring, p[..., 2]) - tube


def _ell(p: np.ndarray, length: float, thick: float, depth: float) -> np.ndarray:
    foot = _box(p, np.array([length, depth, thick]), np.array([0.0, 0.0, thick - length]))
    leg = _box(p, np.array([thick, depth, length]), np.array([thick - length, 0.0, 0.0]))
    return np.minimum(foot, leg)


def _cross(p: np.ndarray, length: float, thick: float, height: float) -> np.ndarray:
    bars = [[length, thick, thick], [thick, length, thick], [thick, thick, height]]
    return np.min([_box(p, np.array(bar)) for bar in bars], axis=0)


def _bowl(p: np.ndarray, radius: float, wall: float, _: float) -> np.ndarray:
    length = np.linalg.norm(p, axis=-1)
    return np.max([length - radius, radius - wall - length, p[..., 2] - 0.15], axis=0)


_DISTANCES = {
    "ellipsoid": _ellipsoid,
    "box": lambda p, *half: _box(p, np.array(half)),
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "ell": _ell,
    "cross": _cross,
    "bowl": _bowl,
}
# Smallest and largest of the three lengths: thin parts are two voxels of sixteen or more.
_SIZES = {
    "ellipsoid": ((0.4, 0.4, 0.35), (0.85, 0.85, 0.8)),
    "box": ((0.3, 0.3, 0.3), (0.62, 0.62, 0.75)),
    "cylinder": ((0.3, 0.35, 0.1), (0.65, 0.8, 0.2)),
    "cone": ((0.5, 0.5, 0.1), (0.8, 0.8, 0.2)),
    "torus": ((0.45, 0.2, 0.1), (0.6, 0.3, 0.2)),
    "ell": ((0.5, 0.16, 0.3), (0.62, 0.25, 0.6)),
    "cross": ((0.6, 0.16, 0.6), (0.85, 0.28, 0.85)),
    "bowl": ((0.65, 0.25, 0.1), (0.85, 0.35, 0.2)),
}

"""A small differentiable renderer of voxel grids: pinhole cameras, volume rendering, Lambert shading.

A grid (R, R, R, ...) fills the cube [-1, 1]^3: voxel (i, j, k) has its centre at x = (2 i + 1) / R - 1, y and z
likewise. Values between the centres are trilinear, beyond the outermost ones theirs.

A ray o + s r with |r| = 1 is cut by the cube at s_0 < s_1 and split into n parts of length h = (s_1 - s_0) / n. With
density sigma_i and albedo a_i in the middle of part i, at s_i,

    alpha_i = 1 - exp(-sigma_i h),   w_i = alpha_i prod_{j < i} (1 - alpha_j),
    opacity = sum_i w_i,   depth = sum_i w_i s_i / opacity,   normal = -g / |g| with g = sum_i w_i grad sigma_i,
    colour = (ambient + (1 - ambient) max(0, normal . light)) sum_i w_i a_i + (1 - opacity) background.

Everything is differentiable in grid, camera and light; under `vmap` there are many grids or many cameras.

References:
    Kajiya and Von Herzen (1984), Ray Tracing Volume Densities. Mildenhall et al. (2020), NeRF, section 4,
    arXiv:2003.08934.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from flowjax._checks import COUNT, real, whole
from flowjax._pytree import pytree, static

NEARLY = 1e-12  # of directions and gradients: smaller ones have no inverse in float32
_STEEP = 1e-4  # sine of the angle between two directions: below, rounding to float32 turns a picture by 1e-3 and more


@pytree
class Camera:
    """A pinhole camera.

    Attributes:
        position: The pinhole, (3,).
        rotation: Its axes in the world as columns, (3, 3): right, down, ahead.
        focal: Distance of the picture over half of its height, positive.
        height: Pixels.
        width: Pixels.

    Example:
        >>> camera = look_at((4.0, 0.0, 0.0), field_of_view=90.0, height=3, width=3)
        >>> origins, directions = camera.rays()
        >>> directions[1, 1].round(3).tolist(), camera.project(jnp.zeros(3))[0].round(3).tolist()
        ([-1.0, 0.0, 0.0], [1.0, 1.0])
    """

    position: Float[Array, "3"]
    rotation: Float[Array, "3 3"]
    focal: Float[Array, ""] | float = 1.0
    height: int = static(32)
    width: int = static(32)

    def __post_init__(self) -> None:
        """Checks the numbers of pixels.

        Raises:
            ValueError: One is below 1.
        """
        whole(COUNT, height=self.height, width=self.width)

    @property
    def size(self) -> tuple[int, int]:
        """Pixels (height, width)."""
        return self.height, self.width

    def rays(self) -> tuple[Float[Array, "H W 3"], Float[Array, "H W 3"]]:
        """Origins and unit directions of the rays through the middles of the pixels."""
        y, x = (jnp.asarray((2 * np.arange(n) + 1 - n) / self.height, self.position.dtype) for n in self.size)
        at = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None], jnp.asarray(self.focal, x.dtype)), axis=-1)
        directions = at @ self.rotation.T
        directions /= jnp.linalg.norm(directions, axis=-1, keepdims=True)
        return jnp.broadcast_to(self.position, directions.shape), directions

    def project(self, points: Float[Array, "... 3"]) -> tuple[Float[Array, "... 2"], Float[Array, "..."]]:
        """Where points are seen: (column, row) in pixels, whole numbers in their middles, and how far ahead they lie.

        Points that lie behind the camera (ahead <= 0) are not seen, whatever their pixels.
        """
        apart = points - jnp.broadcast_to(self.position, points.shape)
        right, down, ahead = jnp.moveaxis(apart @ self.rotation, -1, 0)
        scale = self.focal * self.height / (2 * ahead)
        pixels = jnp.stack([right * scale + (self.width - 1) / 2, down * scale + (self.height - 1) / 2], axis=-1)
        return pixels, ahead


def _known(*given: Any) -> bool:
    """Whether numbers are at hand, and not traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given))


def look_at(
    eye: Any,
    target: Any = (0.0, 0.0, 0.0),
    *,
    up: Any = (0.0, 0.0, 1.0),
    field_of_view: float = 40.0,
    height: int = 32,
    width: int = 32,
) -> Camera:
    """The camera at `eye` that sees `target` in its middle.

    Args:
        eye: (3,).
        target: (3,).
        up: Direction that is upwards in the picture, (3,), not that of view.
        field_of_view: Angle in degrees that the height of the picture spans, in (0, 180).
        height: Pixels.
        width: Pixels.

    Raises:
        ValueError: A number outside its range, `target` at the eye, or `up` along the direction of view.
    """
    real("(0, 180)", field_of_view=field_of_view)
    if _known(eye, target, up):
        view, upwards = np.asarray(target, float) - np.asarray(eye, float), np.asarray(up, float)
        if not np.linalg.norm(view) > NEARLY:
            raise ValueError(f"the camera at {np.asarray(eye)} is where it looks: move eye or target")
        most = np.linalg.norm(view) * np.linalg.norm(upwards)
        if not np.linalg.norm(np.cross(view, upwards)) > _STEEP * most:
            raise ValueError(f"up={upwards} is 0 or along the direction of view {view}: take another")
    eye, target, up = (jnp.asarray(point, jnp.result_type(float)) for point in (eye, target, up))
    ahead = (target - eye) / jnp.linalg.norm(target - eye)
    right = jnp.cross(ahead, up)
    right /= jnp.linalg.norm(right)
    rotation = jnp.stack([right, jnp.cross(ahead, right), ahead], axis=1)
    focal = 1 / math.tan(math.radians(field_of_view) / 2)
    return Camera(position=eye, rotation=rotation, focal=focal, height=height, width=width)


def orbit(azimuth: Any, elevation: Any, distance: Any = 4.0, **options: Any) -> Camera:
    """The camera on a sphere around the origin that looks at it, with z upwards.

    Args:
        azimuth: Angle from the x axis towards the y axis, in degrees.
        elevation: Angle above the plane z = 0, in degrees, in (-90, 90).
        distance: Radius of the sphere.
        **options: Those of `look_at`.

    Raises:
        ValueError: A number outside its range, or see `look_at`.
    """
    real("(-90, 90)", elevation=elevation)
    real("(0, inf)", distance=distance)
    a, e = (jnp.asarray(angle, jnp.result_type(float)) * (math.pi / 180) for angle in (azimuth, elevation))
    eye = distance * jnp.stack([jnp.cos(a) * jnp.cos(e), jnp.sin(a) * jnp.cos(e), jnp.sin(e)])
    return look_at(eye, **options)


@pytree
class Rendering:
    """What a camera sees.

    Attributes:
        colour: (H, W, 3).
        opacity: The silhouette, in [0, 1], (H, W).
        depth: Distance along the ray, (H, W); 0 where nothing is seen.
        normal: Unit vectors out of the body, (H, W, 3); 0 where nothing is seen or the density does not change.

    Example:
        >>> seen = render(jnp.full((4, 4, 4), 9.0), orbit(30.0, 20.0, height=8, width=8), steps=16)
        >>> seen.colour.shape, bool(seen.opacity[4, 4] > 0.99), float(seen.opacity[0, 0])
        ((8, 8, 3), True, 0.0)
    """

    colour: Float[Array, "*pixels 3"]
    opacity: Float[Array, "*pixels"]
    depth: Float[Array, "*pixels"]
    normal: Float[Array, "*pixels 3"]


def look_up(grid: Float[Array, "X Y Z C"], point: Float[Array, "3"]) -> Float[Array, " C"]:
    """The trilinear value of a grid at a point of the cube."""
    sides = np.array(grid.shape[:3])
    at = jnp.clip((point + 1) * jnp.asarray(sides / 2, point.dtype) - 0.5, 0, jnp.asarray(sides - 1, point.dtype))
    low = jnp.minimum(jnp.floor(at).astype(jnp.int32), jnp.asarray(sides - 2, jnp.int32))
    part, found = (at - low.astype(at.dtype)).astype(grid.dtype), jnp.zeros(grid.shape[3:], grid.dtype)
    for corner in np.ndindex(2, 2, 2):
        i, j, k = low + jnp.asarray(corner, jnp.int32)
        found = found + jnp.prod(jnp.where(np.array(corner) == 1, part, 1 - part)) * grid[i, j, k]
    return found


def cut(origin: Float[Array, "3"], direction: Float[Array, "3"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Distances at which a ray enters the cube and leaves it; equal ones where it misses it or the cube lies behind."""
    safe = jnp.where(jnp.abs(direction) < NEARLY, jnp.where(direction < 0, -NEARLY, NEARLY), direction)
    ends = jnp.stack([(-1 - origin) / safe, (1 - origin) / safe])
    near = jnp.maximum(jnp.max(jnp.min(ends, axis=0)), 0)
    return near, jnp.maximum(jnp.min(jnp.max(ends, axis=0)), near)


def gradient(density: Float[Array, "X Y Z"]) -> Float[Array, "X Y Z 3"]:
    """Derivatives of a density by differences of neighbouring voxels."""
    return jnp.stack([g * side / 2 for g, side in zip(jnp.gradient(density), density.shape, strict=True)], axis=-1)


def render(
    density: Shaped[Array, "..."],
    camera: Camera,
    *,
    albedo: Any = None,
    steps: int = 64,
    light: Any = (0.4, -0.3, 0.85),
    ambient: float = 0.35,
    background: Any = 1.0,
) -> Rendering:
    """Renders a grid; see the module for the formulas.

    Args:
        density: (R, R, R), or (X, Y, Z), of two voxels or more along each axis; not negative, per unit of length.
            Whole numbers and booleans, such as occupancies, are taken as numbers.
        camera: Where it is seen from.
        albedo: Colours in [0, 1], a grid of them or a single one; None is white.
        steps: Parts n of each ray, at least 1.
        light: Direction towards the light, (3,), of any length but 0.
        ambient: Part of the light that comes from everywhere, in [0, 1].
        background: Colour behind the body, a number or (3,).

    Raises:
        ValueError: A number outside its range, or a grid of another shape.
    """
    whole(COUNT, steps=steps)
    real("[0, 1]", ambient=ambient)
    if density.ndim != 3 or min(density.shape) < 2:
        raise ValueError(f"a density is a grid (R, R, R) of two voxels or more, got {density.shape}")
    if _known(light) and not np.any(light):
        raise ValueError("light is a direction, and 0 has none")
    density = jnp.asarray(density)
    if not jnp.issubdtype(density.dtype, jnp.floating):
        density = density.astype(jnp.result_type(float))
    colours = jnp.ones(3, density.dtype) if albedo is None else jnp.asarray(albedo, density.dtype)
    if colours.shape not in ((3,), (*density.shape, 3)):
        raise ValueError(f"albedo is a colour (3,) or a grid {(*density.shape, 3)} of them, got {colours.shape}")
    channels = [density[..., None], gradient(density), *([colours] if colours.ndim > 1 else [])]
    grid = jnp.concatenate(channels, axis=-1)
    towards, behind = (jnp.broadcast_to(jnp.asarray(given, density.dtype), (3,)) for given in (light, background))
    towards = towards / jnp.linalg.norm(towards)

    def one(origin: Array, direction: Array) -> Rendering:
        near, far = cut(origin, direction)
        step = (far - near) / steps
        middles = near + step * jnp.asarray(np.arange(steps) + 0.5, near.dtype)
        found = jax.vmap(lambda s: look_up(grid, origin + s * direction))(middles)
        thickness = found[:, 0] * step
        weights = -jnp.expm1(-thickness) * jnp.exp(thickness - jnp.cumsum(thickness))
        opacity = jnp.sum(weights)
        rise = weights @ found[:, 1:4]
        squares = jnp.sum(rise**2)
        seen = squares > NEARLY
        normal = jnp.where(seen, -rise * jax.lax.rsqrt(jnp.where(seen, squares, 1)), 0)
        body = weights @ found[:, 4:] if colours.ndim > 1 else opacity * colours
        shade = ambient + (1 - ambient) * jnp.maximum(normal @ towards, 0)
        return Rendering(
            colour=shade * body + (1 - opacity) * behind,
            opacity=opacity,
            depth=weights @ middles / jnp.where(opacity > 0, opacity, 1),
            normal=normal,
        )

    return jax.vmap(jax.vmap(one))(*camera.rays())


def turntable(num: int, elevation: float = 20.0, **options: Any) -> list[Camera]:
    """Cameras evenly around the z axis, for a full turn.

    Args:
        num: How many, at least 1.
        elevation: See `orbit`.
        **options: See `orbit`.
    """
    whole(COUNT, num=num)
    return [orbit(float(a), elevation, **options) for a in np.linspace(0, 360, num, endpoint=False)]

"""The renderer: closed forms, gradients, symmetries, refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from flowjax.geometry.rendering import Camera, look_at, look_up, orbit, render, turntable

SMALL = {"height": 9, "width": 11}
RNG = np.random.default_rng(0)


def chords(camera):
    """Lengths of the rays inside the cube, one by one."""
    origins, directions = map(np.asarray, camera.rays())
    found = np.zeros(origins.shape[:2])
    for index in np.ndindex(found.shape):
        with np.errstate(divide="ignore"):
            ends = np.array([(-1 - origins[index]) / directions[index], (1 - origins[index]) / directions[index]])
        found[index] = max(ends.max(0).min() - max(ends.min(0).max(), 0), 0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("eye", [(0.7, -0.3, 0.2), (3.0, 1.0, 2.0)], ids=["inside", "outside"])
def test_constant_density_has_its_closed_form(x64, eye):
    camera, sigma, albedo = look_at(eye, **SMALL), 0.8, jnp.array([0.2, 0.5, 0.9])
    seen = render(jnp.full((3, 3, 3), sigma), camera, albedo=albedo, steps=7, ambient=0.6, background=0.25)
    length = chords(camera)
    opacity = 1 - np.exp(-sigma * length)
    np.testing.assert_allclose(seen.opacity, opacity, atol=1e-12)
    assert length.max() > 1
    assert eye == (0.7, -0.3, 0.2) or length.min() == 0
    np.testing.assert_array_equal(seen.normal, 0)  # nothing says where the outside is
    expected = 0.6 * opacity[..., None] * np.asarray(albedo) + 0.25 * (1 - opacity[..., None])
    np.testing.assert_allclose(seen.colour, expected, atol=1e-12)


@pytest.mark.slow
def test_depth_of_constant_density(x64):
    """The mean of s with weights sigma exp(-sigma (s - s0)) on the chord, by many steps."""
    camera, sigma = look_at((3.0, 0.2, 0.1), **SMALL), 1.3
    seen = render(jnp.full((2, 2, 2), sigma), camera, steps=2000)
    length = chords(camera)
    inside = length > 0.1
    origins, _ = camera.rays()
    density = np.where(inside, length, 1)
    mean = 1 / sigma - density * np.exp(-sigma * density) / -np.expm1(-sigma * density)
    near = np.asarray(seen.depth) - mean
    plane = np.asarray(camera.rays()[1])[..., 0] * near + 3.0
    np.testing.assert_allclose(plane[4, 2:9], 1.0, atol=1e-5)  # rays in the middle enter through the face x = 1
    np.testing.assert_array_equal(np.asarray(seen.depth)[length == 0], 0)
    assert origins.shape == (9, 11, 3)


@pytest.mark.slow
def test_normals_and_shades_of_a_wall(x64):
    """A body below z = 0, seen from above: its normal is up, its shade the cosine to the light."""
    z = (2 * np.arange(16) + 1) / 16 - 1
    density = jnp.broadcast_to(jnp.where(z < 0, 50.0, 0.0), (16, 16, 16))
    camera = look_at((0.3, 0.0, 5.0), (0.3, 0.0, 0.0), up=(0.0, 1.0, 0.0), field_of_view=5.0, **SMALL)
    light = np.array([3.0, 0.0, 4.0])
    seen = render(density, camera, steps=256, light=light, ambient=0.1)
    np.testing.assert_allclose(seen.normal, np.broadcast_to([0.0, 0.0, 1.0], (9, 11, 3)), atol=1e-6)
    np.testing.assert_allclose(seen.colour, 0.1 + 0.9 * 0.8, atol=1e-6)
    np.testing.assert_allclose(seen.depth[4, 5], 5.0, atol=0.05)


@pytest.mark.slow
def test_trilinear_values():
    """Linear functions come back between the outermost centres, and stay beyond them."""
    grid = np.stack(np.meshgrid(*[(2 * np.arange(n) + 1) / n - 1 for n in (4, 5, 6)], indexing="ij"), -1)
    points = RNG.uniform(-0.7, 0.7, (20, 3))
    weights = np.array([1.0, 2.0, -0.5])
    look_up_all = jax.vmap(look_up, (None, 0))
    values = look_up_all(jnp.asarray(grid @ weights[:, None], jnp.float32), jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(values[:, 0], points @ weights, atol=1e-6)
    corner = look_up(jnp.asarray(grid, jnp.float32), jnp.ones(3))
    np.testing.assert_allclose(corner, [3 / 4, 4 / 5, 5 / 6], atol=1e-6)


@pytest.mark.slow
def test_gradients_by_differences(x64):
    density, albedo = (jnp.asarray(RNG.uniform(0.1, 1, shape)) for shape in ((4, 4, 4), (4, 4, 4, 3)))

    def loss(density, albedo, position, focal, light):
        given = (density, albedo, position, focal, light)
        density, albedo, position, focal, light = map(jnp.asarray, given)  # differences come with NumPy's
        camera = Camera(position=position, rotation=orbit(33.0, 21.0).rotation, focal=focal, height=3, width=4)
        seen = render(density, camera, albedo=albedo, steps=9, light=light)
        weights = jnp.cos(jnp.arange(3))
        return jnp.sum(seen.colour @ weights + seen.opacity**2 + seen.depth / 3 + seen.normal @ weights)

    inputs = (density, albedo, 3.1 * orbit(33.0, 21.0).position / 4, jnp.asarray(2.4), jnp.array([0.3, 0.1, 0.9]))
    check_grads(loss, inputs, order=1, modes=("rev", "fwd"), atol=1e-5, rtol=1e-5)


def rotations():
    """The 24 rotations of the cube, as matrices."""
    axes = [np.eye(3)[list(p)] for p in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0))]
    signs = [np.diag([a, b, c]) for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    return [s @ m for m in axes for s in signs if np.linalg.det(s @ m) > 0]


def turned(grid, rotation):
    """A grid whose voxel at R x holds what was at x; vectors in it are not turned."""
    side = grid.shape[0]
    centres = np.stack(np.meshgrid(*[np.arange(side) * 2 + 1 - side] * 3, indexing="ij"), -1)
    i, j, k = np.moveaxis((centres @ rotation + side - 1) // 2, -1, 0).astype(int)
    return grid[i, j, k]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 7, 13, 23])
def test_nothing_changes_when_camera_scene_and_light_turn_together(x64, number):
    rotation = rotations()[number]
    density, albedo = RNG.uniform(0, 2, (5, 5, 5)), RNG.uniform(0, 1, (5, 5, 5, 3))
    camera, light = orbit(40.0, 25.0, **SMALL), np.array([0.4, -0.3, 0.85])
    moved = dataclasses.replace(camera, position=rotation @ camera.position, rotation=rotation @ camera.rotation)
    plain = render(jnp.asarray(density), camera, albedo=jnp.asarray(albedo), light=light)
    other = render(
        jnp.asarray(turned(density, rotation)),
        moved,
        albedo=jnp.asarray(turned(albedo, rotation)),
        light=rotation @ light,
    )
    for name in ("colour", "opacity", "depth"):
        np.testing.assert_allclose(getattr(other, name), getattr(plain, name), atol=1e-12)
    np.testing.assert_allclose(other.normal, plain.normal @ rotation.T, atol=1e-10)
    assert not np.allclose(turned(density, rotation), density)


def test_cameras():
    camera = orbit(30.0, 20.0, 4.0, **SMALL)
    np.testing.assert_allclose(camera.rotation.T @ camera.rotation, np.eye(3), atol=1e-6)
    assert np.linalg.det(camera.rotation) > 0
    assert float(camera.rotation[2, 1]) < 0  # down in the picture is down in the world
    origins, directions = camera.rays()
    pixels, ahead = camera.project(origins + 3 * directions)
    rows, columns = np.mgrid[:9, :11]
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1), atol=1e-4)
    assert (ahead > 0).all()
    # The height spans the field of view: the middle of the upper edge lies at half of it.
    edge = camera.rotation[:, 2] - math.tan(math.radians(20)) * camera.rotation[:, 1]
    np.testing.assert_allclose(camera.project(camera.position + edge)[0], [5.0, -0.5], atol=1e-4)
    assert [c.height for c in turntable(3, height=4)] == [4, 4, 4]


@pytest.mark.slow
def test_many_cameras_and_grids_at_once():
    grids = jnp.asarray(RNG.uniform(0, 2, (2, 4, 4, 4)), jnp.float32)
    render_all = jax.jit(jax.vmap(lambda grid, a: render(grid, orbit(a, 20.0, **SMALL), steps=8).colour))
    both = render_all(grids, jnp.array([0.0, 90.0]))
    alone = render(grids[1], orbit(90.0, 20.0, **SMALL), steps=8).colour
    np.testing.assert_allclose(both[1], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=0), "steps"),
        (dict(ambient=1.5), "ambient"),
        (dict(albedo=jnp.ones((4, 3))), r"albedo is a colour \(3,\) or a grid"),
        (dict(density=jnp.ones((4, 4))), r"a density is a grid"),
        (dict(density=jnp.ones((1, 4, 4))), r"a density is a grid"),
        (dict(light=(0.0, 0.0, 0.0)), "light is a direction, and 0 has none"),
    ],
)
def test_refusals(change, message):
    density = change.pop("density", jnp.ones((4, 4, 4)))
    with pytest.raises(Exception, match=message):
        render(density, orbit(0.0, 0.0), **change)


@pytest.mark.parametrize("kind", ["uint8", "int32", "bool"])
def test_occupancies_are_taken_as_numbers(kind):
    grid, look = np.zeros((4, 4, 4)), dict(albedo=jnp.array([0.2, 0.5, 0.9]), steps=8)
    grid[1:3, 1:3, 1:3] = 1
    camera = orbit(30.0, 20.0, **SMALL)
    plain = render(jnp.asarray(grid, jnp.float32), camera, **look)
    other = render(jnp.asarray(grid.astype(kind)), camera, **look)
    np.testing.assert_array_equal(other.colour, plain.colour)
    np.testing.assert_array_equal(other.normal, plain.normal)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: look_at((0.0, 0.0, 3.0)), "along the direction of view"),
        (lambda: look_at((2.0, 0.0, 0.0), up=(0.0, 0.0, 0.0)), "up=.* is 0"),
        (lambda: look_at((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)), "is where it looks"),
        (lambda: orbit(10.0, 90.0), "elevation must be below 90"),
        (lambda: orbit(10.0, -90.0), "elevation must be above -90"),
        (lambda: orbit(10.0, 20.0, 0.0), "distance must be above 0"),
    ],
)
def test_cameras_without_a_direction(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Solids: bodies, blocks, details, meshes, networks on padded sets, what is refused."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from flax import nnx
from PIL import Image

import flowjax as fj
from flowjax.geometry import solids
from flowjax.geometry.solids import bodies, meshes, structure
from flowjax.recipe import Samples
from flowjax.training import make_mesh
from flowjax.training.mesh import batch_sharding, shardings

SMALL = {"size": 9, "resolution": 8, "voxels": 64, "view": 8}
PICTURE = {"image_shape": (8, 8, 3), "image_patch": 4, "width": 24, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def details():
    return solids.solids(part="details", **SMALL)


def network(**options):
    """A small one whose answer is not zero."""
    made = solids.VoxelSetDiT(8, **PICTURE, **options, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), made)


# -------------------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("kind", bodies.NAMES)
def test_distances_of_bodies(kind):
    """Negative inside, of slope 1 near the surface at most, and the body lies within the cube."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        body = bodies.draw(rng, kind)
        points = rng.uniform(-1, 1, (4000, 3))
        there = body.distance(points)
        assert 0.01 < (there < 0).mean() < 0.5
        assert (body.distance(np.sign(points) * 0.96 + 0 * points)[np.abs(points).max(1) > 0] > 0).all()
        steps = rng.normal(size=points.shape)
        steps *= 1e-4 / np.linalg.norm(steps, axis=1, keepdims=True)
        near = np.abs(there) < 0.05
        slope = np.abs(body.distance(points + steps) - there)[near] / 1e-4
        assert slope.max() < 1.6  # an ellipsoid's is exact on its surface
        assert np.linalg.norm(points[there < 0], axis=1).max() < 1.4
        assert np.abs(points[there < 0]).max() < 0.95


def test_volumes_in_closed_form():
    points = np.random.default_rng(0).uniform(-1, 1, (200_000, 3))
    size = np.array([0.6, 0.4, 0.3])
    exact = {
        "ellipsoid": 4 / 3 * np.pi * 0.6 * 0.4 * 0.3,
        "box": 8 * 0.6 * 0.4 * 0.3,
        "cylinder": np.pi * 0.36 * 0.8,
        "cone": np.pi * 0.36 * 0.8 / 3,
        "torus": 2 * np.pi**2 * 0.5 * 0.09,
    }
    for kind, volume in exact.items():
        own = np.array([0.5, 0.3, 0.0]) if kind == "torus" else size
        body = bodies.Body(kind=kind, size=own, turn=0.7, colour=np.ones(3))
        np.testing.assert_allclose(8 * (body.distance(points) < 0).mean(), volume, rtol=0.03)


# -------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.slow
def test_blocks_that_hold_the_surface():
    """A cube of 4 voxels in a grid of 8: its inner 2^3 are no surface."""
    grid = np.zeros((8, 8, 8, 1), np.float32)
    grid[2:6, 2:6, 2:6] = 1
    (numbers,) = structure.numbers_of(grid[None], 1)
    assert len(numbers) == 4**3 - 2**3
    places, there = structure.active(jnp.asarray(grid), 70, 1)
    assert int(there.sum()) == 56
    np.testing.assert_array_equal(np.asarray(places)[:56], numbers)
    (coarse,) = structure.numbers_of(grid[None], 2)
    np.testing.assert_array_equal(coarse, np.argwhere(np.ones((2, 2, 2))) + 1)
    assert not structure.active(jnp.zeros((8, 8, 8, 1)), 5, 2)[1].any()
    edge = np.ones((4, 4, 4, 1), np.float32)  # what the grid cuts off is a surface
    assert len(structure.numbers_of(edge[None], 1)[0]) == 4**3 - 2**3


def test_details_bring_the_surface_back(details):
    """Meshes of what is decoded are within a fifth of a voxel of the body."""
    rng = np.random.default_rng(0)
    for row in range(8):
        body = bodies.draw(rng, bodies.NAMES[row])
        full = (body.distance(structure.centres(16)) < 0)[..., None].astype(np.float32)
        (numbers,) = structure.numbers_of(full[None], 2)
        found = structure.encode(body, numbers, 16, 2).astype(np.float32)
        padded = np.concatenate([found, np.full((5, 30), 9.0, np.float32)])
        distance, colour = structure.decode(full, padded, 2)
        mesh = meshes.surface(distance, colour)
        assert mesh.is_watertight
        off = np.abs(body.distance(np.asarray(mesh.vertices)))
        assert off.mean() < 0.2 * 2 / 16
        np.testing.assert_allclose(
            mesh.visual.vertex_colors[:, :3] / 255, body.colour[None].repeat(len(off), 0), atol=0.01
        )


def test_nothing_full_is_empty():
    distance, _ = structure.decode(np.zeros((4, 4, 4, 1)), np.ones((3, 30)), 2)
    assert meshes.surface(distance, np.ones((*distance.shape, 3))) is None
    assert meshes.apart(None, None) == 0
    assert meshes.apart(None, trimesh.creation.box()) == 1


# ---------------------------------------------------------------------------------------------------------------- data


def test_sources(details):
    occupied = solids.solids(**SMALL)
    assert occupied.x.shape == (9, 8, 8, 8, 1)
    np.testing.assert_array_equal(occupied.x, details.fields["structure"])
    np.testing.assert_array_equal(occupied.fields["image"], details.fields["image"])
    assert (occupied.form, details.form, details.x.shape) == ("voxels", "solids", (9, 64, 30))
    assert occupied.cond.tolist() == [*range(8), 0]
    counts = [len(n) for n in structure.numbers_of(occupied.x, 2)]
    assert ((details.x != 0).any(-1).sum(1) == counts).all()
    assert not np.array_equal(occupied.x[0], occupied.x[8])
    # A view sees what is full: its colour stands on white.
    views = occupied.fields["image"].astype(int)
    assert (views.min(axis=(1, 2, 3)) < 200).all()
    assert (views[:, 0, 0] == 255).all()


@pytest.mark.parametrize("ending", ["ply", "obj", "glb", "stl"])
def test_meshes_from_a_folder(tmp_path, ending):
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=7.0)
    mesh.apply_translation([100.0, 0.0, 3.0])
    mesh.export(tmp_path / f"ball.{ending}")
    found = solids.of_meshes(folder=str(tmp_path), resolution=16, view=8)
    radius = np.linalg.norm(structure.centres(16), axis=-1)
    wrong = found.x[0, ..., 0] != (radius < meshes.HALF)
    assert not wrong[np.abs(radius - meshes.HALF) > 0.005].any()
    again = solids.of_meshes(folder=str(tmp_path), part="details", resolution=16, voxels=250, view=8)
    distance, colour = structure.decode(again.fields["structure"][0].astype(np.float32), again.x[0], 2)
    points = np.asarray(meshes.surface(distance, colour).vertices)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), meshes.HALF, atol=0.04)


def test_colours_of_vertices_are_kept(tmp_path):
    box = trimesh.creation.box()
    box.visual.vertex_colors = [255, 0, 0, 255]
    box.export(tmp_path / "red.ply")
    found = solids.of_meshes(folder=str(tmp_path), part="details", resolution=8, view=16)
    red, green, blue = found.fields["image"][0].reshape(-1, 3).T.astype(int)
    assert (red - green).max() > 100
    np.testing.assert_array_equal(green, blue)


def held(body):
    """The volume in which distances of a body are negative."""
    points = structure.centres(80)  # one anywhere in each voxel
    return 8 * (body.distance(points + np.random.default_rng(0).uniform(-1, 1, points.shape) / 80) < 0).mean()


def turned(mesh):
    return mesh.copy().apply_transform(trimesh.transformations.euler_matrix(0.4, 0.7, 0.2))


def shells(*radii):
    """Balls in each other, every second of which is a cavity."""
    balls = [trimesh.creation.icosphere(subdivisions=4, radius=radius) for radius in radii]
    for ball in balls[1::2]:
        ball.invert()
    return trimesh.util.concatenate(balls)


def test_bodies_of_meshes_have_their_size():
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ball = meshes.of_mesh(shells(3.0), "ball")
    radii = np.linspace(0.85, 0.95, 201)
    found = radii[(ball.distance(radii[:, None, None] * directions) < 0).sum(axis=0)]
    np.testing.assert_allclose(found.mean(), meshes.HALF, atol=0.002)
    np.testing.assert_allclose(found, meshes.HALF, atol=0.01)
    np.testing.assert_allclose(ball.distance(0.5 * directions), 0.5 - meshes.HALF, atol=0.005)
    for mesh in (turned(trimesh.creation.box((1.0, 0.6, 0.3))), turned(trimesh.creation.torus(0.6, 0.2))):
        scale = 2 * meshes.HALF / mesh.extents.max()
        np.testing.assert_allclose(held(meshes.of_mesh(mesh, "body")), mesh.volume * scale**3, rtol=0.01)


def test_insides_of_meshes():
    """Cavities are outside, what two parts share is inside, and how faces are turned does not matter."""
    radius = np.linspace(0.02, 0.88, 200)
    along = np.stack([radius, 0 * radius, 0 * radius], axis=-1)
    hollow = meshes.of_mesh(shells(0.9, 0.63, 0.3), "hollow")
    expected = np.minimum(radius - 0.3, np.maximum(radius - 0.9, 0.63 - radius))
    np.testing.assert_allclose(hollow.distance(along), expected, atol=0.015)
    assert meshes.of_mesh(shells(0.9, 0.63), "hollow").distance(np.zeros((1, 3))) > 0.58
    part = trimesh.creation.box()
    both = trimesh.util.concatenate([part, part.copy().apply_translation([0.5, 0.3, 0.2])])
    volume = (2 - 0.5 * 0.7 * 0.8) * (2 * meshes.HALF / 1.5) ** 3
    np.testing.assert_allclose(held(meshes.of_mesh(both, "both")), volume, rtol=0.01)
    ball = shells(1.0)
    faces, some = ball.faces.copy(), np.random.default_rng(0).random(len(ball.faces)) < 0.5
    faces[some] = faces[some, ::-1]
    mixed = trimesh.Trimesh(ball.vertices, faces, process=False)
    assert not mixed.is_winding_consistent
    same = [meshes.of_mesh(mesh, "ball").distances < 0 for mesh in (ball, mixed)]
    np.testing.assert_array_equal(*same)


def test_thin_plates_are_not_thickened():
    plate = trimesh.creation.box((1.0, 1.0, 0.05))
    above = np.linspace(0, 0.1, 401)
    inside = meshes.of_mesh(plate, "plate").distance(np.stack([0 * above, 0 * above, above], axis=-1)) < 0
    np.testing.assert_allclose(above[inside].max(), 0.05 * meshes.HALF, atol=0.002)
    with pytest.raises(
        ValueError, match=r"a plate is too thin, none of the 64\^3 .*: thicken it to 1/57 of its longest"
    ):
        meshes.of_mesh(trimesh.creation.box((1.0, 1.0, 0.01)), "a plate")


def seamed(visual):
    """A closed box that shares no vertices between faces, with colours."""
    box = trimesh.creation.box((1.0, 1.0, 0.6))
    box.unmerge_vertices()
    box.visual = visual(np.random.default_rng(0).random((len(box.vertices), 2)))
    return box


RED = Image.new("RGB", (4, 4), (255, 0, 0))


def test_seams_are_no_holes(tmp_path):
    visuals = trimesh.visual
    pbr = visuals.material.PBRMaterial(baseColorTexture=RED)
    seamed(lambda uv: visuals.TextureVisuals(uv=uv, material=pbr)).export(tmp_path / "textured.glb")
    seamed(lambda uv: visuals.TextureVisuals(uv=uv, image=RED)).export(tmp_path / "textured.obj")
    seamed(lambda uv: visuals.ColorVisuals()).export(tmp_path / "flat.glb", include_normals=True)
    for name, colour in (("textured.glb", (1, 0, 0)), ("textured.obj", (1, 0, 0)), ("flat.glb", (0.7, 0.7, 0.7))):
        body = meshes.read(tmp_path / name)
        assert len(body.points) > 8
        np.testing.assert_allclose(held(body), 1.8 * 1.8 * 1.08, rtol=0.01)
        np.testing.assert_array_equal(body.tints, np.tile(colour, (len(body.points), 1)))


def test_colours_of_materials(tmp_path):
    """Those without places in a texture; a picture that nothing places says nothing."""
    visuals, box = trimesh.visual, trimesh.creation.box()
    box.export(tmp_path / "red.obj")
    (tmp_path / "red.mtl").write_text("newmtl red\nKd 1 0 0\n")
    text = "mtllib red.mtl\nusemtl red\n" + (tmp_path / "red.obj").read_text()
    (tmp_path / "red.obj").write_text(text)
    made = {"red": {"baseColorFactor": [255, 0, 0, 255]}, "picture": {"baseColorTexture": RED}}
    for name, options in made.items():
        box.visual = visuals.TextureVisuals(material=visuals.material.PBRMaterial(**options))
        box.export(tmp_path / f"{name}.glb")
    for name in ("red.obj", "red.glb"):
        np.testing.assert_array_equal(meshes.read(tmp_path / name).tints, np.tile([1.0, 0.0, 0.0], (8, 1)))
    assert np.ptp(meshes.read(tmp_path / "picture.glb").tints) == 0  # grey
    box.visual = visuals.TextureVisuals(uv=np.zeros((3, 2)), image=RED)  # places for three vertices of eight
    assert np.ptp(meshes.of_mesh(box, "box").tints) == 0


@pytest.mark.parametrize("ending", ["ply", "obj", "glb", "stl"])
def test_bodies_stand_in_files(tmp_path, ending):
    """What is tall along z comes back so, and is tall along y in a GLB file, whose x remains."""
    tall = trimesh.creation.box((0.4, 0.2, 1.0)).apply_translation([0.0, 0.5, 0.0])
    meshes.write(tall, tmp_path / f"tall.{ending}")
    there = trimesh.load(tmp_path / f"tall.{ending}", force="mesh")
    glb = ending == "glb"
    np.testing.assert_allclose(there.extents, (0.4, 1.0, 0.2) if glb else (0.4, 0.2, 1.0), atol=1e-6)
    np.testing.assert_allclose(there.bounds.mean(axis=0), (0, 0, -0.5) if glb else (0, 0.5, 0), atol=1e-6)
    assert there.volume > 0
    np.testing.assert_allclose(np.ptp(meshes.read(tmp_path / f"tall.{ending}").points, axis=0), (0.72, 0.36, 1.8))
    np.testing.assert_allclose(tall.extents, (0.4, 0.2, 1.0))  # left as it was
    if ending != "stl":  # has faces only
        meshes.write(meshes.cloud(tall, 50), tmp_path / f"points.{ending}")


def test_distances_that_are_no_numbers():
    distance = np.ones((4, 4, 4))
    distance[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="1 of 64 distances are NaN"):
        meshes.surface(distance, np.ones((4, 4, 4, 3)))


def test_bad_meshes_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        solids.of_meshes(folder=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"has no meshes; \.ply, \.obj"):
        solids.of_meshes(folder=str(tmp_path))
    path = tmp_path / "a.ply"
    open_box = trimesh.creation.box()
    open_box.update_faces(np.arange(len(open_box.faces)) > 0)
    open_box.export(path)
    with pytest.raises(ValueError, match=r"a.ply is not watertight, so nothing says what is inside"):
        solids.of_meshes(folder=str(tmp_path))
    trimesh.PointCloud(np.eye(3)).export(path)
    with pytest.raises(ValueError, match=r"a.ply has no faces"):
        solids.of_meshes(folder=str(tmp_path))
    path.write_bytes(b"ply\nnonsense")
    with pytest.raises(ValueError, match=r"cannot read mesh .*a.ply"):
        solids.of_meshes(folder=str(tmp_path))
    trimesh.creation.box().export(path)
    with pytest.raises(ValueError, match=r"a.ply has \d+ active blocks, and voxels=3: give voxels=\d+ or more"):
        solids.of_meshes(folder=str(tmp_path), part="details", voxels=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "surface"}, "part"),
        ({"resolution": 9}, "does not divide"),
        ({"resolution": 1}, "resolution"),
        ({"view": 1}, "view"),
        ({"size": 0}, "size"),
        ({"part": "details", "voxels": 2}, r"body 0 has \d+ active blocks, and voxels=2: give voxels=\d+ or more"),
        ({"size": 10**9}, "memory"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        solids.solids(**{**SMALL, **options})


# ------------------------------------------------------------------------------------------------------------ networks


def asked(source, rows=4):
    """Conditions of the network for examples of a source."""
    full = source.fields["structure"][:rows].astype(np.float32)
    image = source.fields["image"][:rows].astype(np.float32) / 127.5 - 1
    return {"image": jnp.asarray(image), "structure": jnp.asarray(full)}


@pytest.mark.slow
def test_padding_changes_no_answer(details):
    """More entries, and whatever stands in them, change nothing of those that are there; the others are 0."""
    net, cond, t = network(), asked(details), jnp.array([0.1, 0.4, 0.6, 0.9])
    x = jnp.asarray(details.x[:4])
    there = np.asarray((details.x[:4] != 0).any(-1))
    assert (there.sum(1) < 64).all()
    answer = net(x, t, cond)
    assert (np.asarray(answer)[~there] == 0).all()
    assert (np.abs(np.asarray(answer)[there]).max(-1) > 0).all()
    filled = jnp.where(there[..., None], x, 100.0)
    wider = jnp.pad(filled, ((0, 0), (0, 32), (0, 0)), constant_values=-50.0)
    np.testing.assert_allclose(net(wider, t, cond)[:, :64], answer, atol=2e-5)


@pytest.mark.slow
def test_padding_changes_no_gradient(details):
    net, cond, x = network(), asked(details), details.x[:4]
    objective = fj.objectives.FlowMatching(path=fj.paths.Linear())

    def gradient(size):
        mask = np.pad((x != 0).any(-1), ((0, 0), (0, size - 64)))
        x1 = np.pad(x, ((0, 0), (0, size - 64), (0, 0)))
        draws = objective.draw(jax.random.key(0), {"x1": jnp.asarray(x1), "mask": jnp.asarray(mask), "cond": cond})
        return jax.grad(lambda net: jnp.mean(objective.loss(net, draws)[0]))(net)

    for a, b in zip(*map(jax.tree.leaves, (gradient(64), gradient(80))), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(jnp.abs(a).max())))


@pytest.mark.slow
def test_the_picture_and_the_places_are_heard(details):
    net, cond, t = network(), asked(details), jnp.full(4, 0.5)
    x = jnp.asarray(details.x[:4])
    plain = net(x, t, cond)
    assert not np.allclose(net(x, t, cond | {"image": -cond["image"]}), plain)
    assert not np.allclose(net(x, t, cond | {"structure": jnp.flip(cond["structure"], 3)}), plain)
    assert not np.allclose(net(x, t / 2, cond), plain)


@pytest.mark.slow
def test_eight_devices_learn_the_same(details):
    """Batch and parameters spread over data, fsdp and tensor: loss and gradient are those of one device."""
    student, flow = network(), fj.Flow(network(attention="dot_product"), path=fj.paths.Linear())
    objective = fj.objectives.VelocityDistillation(path=flow.path, teacher=flow)
    batch = {"x1": jnp.asarray(details.x[:8]), "cond": asked(details, 8)}
    batch["mask"] = jnp.asarray((details.x[:8] != 0).any(-1))
    draws, mesh = objective.draw(jax.random.key(0), batch), make_mesh(data=2, fsdp=2, tensor=2)

    def both(student, objective, draws):
        loss = lambda student: jnp.mean(objective.loss(student, draws)[0])  # noqa: E731
        return jax.value_and_grad(loss)(student)

    value, gradient = jax.jit(both)(student, objective, draws)
    spread = [jax.device_put(net, shardings(net, mesh)) for net in (student, flow.network)]
    rows = jax.device_put(draws, batch_sharding(mesh))
    kernel = spread[0].blocks[0].inner.kernel[...]
    assert len(kernel.addressable_shards[0].data) < len(kernel)
    taught = dataclasses.replace(objective, teacher=dataclasses.replace(flow, network=spread[1]))
    other, found = jax.jit(both)(spread[0], taught, rows)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found, gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"scan": True}, {"remat": True}, {"attention": "dot_product"}])
def test_layouts_answer_the_same(details, options):
    plain = solids.VoxelSetDiT(8, **PICTURE, rngs=nnx.Rngs(0))
    other = solids.VoxelSetDiT(8, **PICTURE, **options, rngs=nnx.Rngs(0))
    for made in (plain, other):  # zero at the start
        made.unembed.kernel[...] = jnp.ones_like(made.unembed.kernel[...])
    cond, x = asked(details), jnp.asarray(details.x[:4])
    np.testing.assert_allclose(other(x, jnp.full(4, 0.5), cond), plain(x, jnp.full(4, 0.5), cond), atol=1e-4)


def test_networks_refuse_what_does_not_fit(details):
    net, cond = network(), asked(details)
    with pytest.raises(ValueError, match="conditions are a dict with the names image, structure, got image"):
        net(jnp.zeros((4, 64, 30)), jnp.zeros(4), {"image": cond["image"]})
    with pytest.raises(ValueError, match=r"expected pictures \(B, 8, 8, 3\)"):
        net(jnp.zeros((4, 64, 30)), jnp.zeros(4), cond | {"image": jnp.zeros((4, 9, 8, 3))})
    with pytest.raises(ValueError, match=r"expected structures \(B, 8, 8, 8, 1\)"):
        net(jnp.zeros((4, 64, 30)), jnp.zeros(4), cond | {"structure": jnp.zeros((4, 4, 4, 4, 1))})
    with pytest.raises(ValueError, match="does not divide a grid"):
        solids.VoxelDiT((4, 4, 3, 1), patch=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must be a multiple of heads"):
        solids.VoxelDiT((4, 4, 4, 1), width=30, heads=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        solids.VoxelAutoencoder(6, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_the_autoencoder_learns_grids():
    """A few steps on a few bodies: reconstructions get nearer."""
    source = solids.solids(**SMALL)
    x = jnp.asarray(source.normalize(source.x), jnp.float32)
    net = solids.VoxelAutoencoder(8, widths=(16, 16), latent=4, groups=4, rngs=nnx.Rngs(0))
    loss = lambda net: jnp.mean((net.decode(net.encode(x)[0]) - x) ** 2)  # noqa: E731
    step = jax.jit(lambda net: (loss(net), jax.tree.map(lambda p, g: p - 0.3 * g, net, jax.grad(loss)(net))))
    values = []
    for _ in range(30):
        value, net = step(net)
        values.append(float(value))
    assert values[-1] < 0.6 * values[0]


# --------------------------------------------------------------------------------------------------------------- forms


def samples_of(source, **more):
    cond = {name: rows for name, rows in source.fields.items()}
    return Samples(x=source.x.astype(np.float32), cond=cond, evaluations=1, network_calls=1, **more)


def test_what_is_written(details, tmp_path):
    form = solids.Solids(mesh="ply", points=100, frames=3, size=8, most=2)
    said = form.write(samples_of(details), tmp_path)
    assert said == "2 of 9 samples as meshes (ply), points, turntables"
    for name in ("0007.ply", "12345_points.ply", "0009.glb"):
        (tmp_path / name).write_text("of an earlier run")
    others = ["0001.png", "0003_points.gif", "2024-notes.txt", "20240101.npz"]
    for name in others:
        (tmp_path / name).write_text("of somebody")
    form.write(samples_of(details), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"000{i}{end}" for i in (0, 1) for end in (".gif", ".ply", "_points.ply")
    } | set(others)
    mesh = trimesh.load(tmp_path / "0000.ply")
    assert mesh.is_watertight
    assert mesh.volume > 0  # faces look outwards
    assert len(trimesh.load(tmp_path / "0001_points.ply").vertices) == 100
    with Image.open(tmp_path / "0000.gif") as turn:
        assert (turn.n_frames, turn.size) == (3, (8, 8))


def test_meshes_are_missed_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    for work in (solids.Solids().require, lambda: solids.solids(part="details", **SMALL)):
        with pytest.raises(ValueError, match="meshes need trimesh and scikit-image"):
            work()
    assert solids.solids(**SMALL).form == "voxels"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 9, 14])
def test_contact_sheets(details, tmp_path, count):
    rows = np.arange(count) % 9
    some = samples_of(details.select(rows))
    solids.Solids(size=8).picture(some, tmp_path / "sheet.png")
    solids.Voxels(size=8).picture(
        dataclasses.replace(some, x=some.cond["structure"] * 1.0, cond=None), tmp_path / "grey.png"
    )
    for name, lines in (("sheet.png", 2 if count <= 10 else 4), ("grey.png", 1 if count <= 10 else 2)):
        with Image.open(tmp_path / name) as sheet:
            assert sheet.size == (min(count, 10) * 10 + 2, lines * 10 + 2)


def test_comparisons(details):
    own, form = samples_of(details), solids.Solids()
    same = form.compare(own, details.x)
    assert same == {"chamfer": 0.0, "colour_error": 0.0}
    moved = details.x.copy()
    moved[..., :27] += 0.1 * (details.x != 0).any(-1, keepdims=True)  # surfaces 0.1 sides of a block deeper, 0.05
    moved[..., -1:] -= 0.3 * (details.x != 0).any(-1, keepdims=True)
    other = form.compare(dataclasses.replace(own, x=moved), details.x)
    np.testing.assert_allclose(other["colour_error"], 0.05, atol=0.001)
    assert 0.01 < other["chamfer"] < 0.08
    full = samples_of(solids.solids(**SMALL))
    assert solids.Voxels().compare(full, full.x) == {"iou": 1.0}
    assert solids.Voxels().compare(full, 1 - full.x) == {"iou": 0.0}


def test_colours_of_other_structures_are_compared_block_by_block(details):
    """Features of a sample whose structure has lost blocks: those left are where they were, at other rows."""
    form, shown, made = solids.Solids(), [], np.zeros_like(details.x)
    grids = details.fields["structure"].copy()
    for row, grid in enumerate(grids):
        grid[4:] = 0
        (own,), (whole,) = (structure.numbers_of(g[None], 2) for g in (grid, details.fields["structure"][row]))
        for place, number in enumerate(own):
            there = (whole == number).all(1)
            made[row, place] = details.x[row, : len(whole)][there][0] if there.any() else 7.0
        shown.append((len(own), len(whole)))
    assert any(few != many and few for few, many in shown)
    samples = dataclasses.replace(samples_of(details), x=made, cond={"structure": grids})
    found = form.compare(samples, details.x, details.fields["structure"])
    assert found["colour_error"] == 0
    assert found["chamfer"] > 0
    made[..., -1] += 0.3  # a third of 0.3 / 2 in each block
    found = form.compare(samples, details.x, details.fields["structure"])
    np.testing.assert_allclose(found["colour_error"], 0.05, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"), [({"mesh": "stp"}, "mesh"), ({"points": -1}, "points"), ({"size": 0}, "size")]
)
def test_forms_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        fj.build("form", {"name": "solids", "options": options})


# ---------------------------------------------------------------------------------------------------------- conditions


def test_structures_as_conditions(details, tmp_path):
    condition = solids.Structure.learn(details.fields["structure"], voxels=64)
    encoded = condition.encode(details.fields["structure"])
    np.testing.assert_array_equal(condition.mask(encoded), (details.x != 0).any(-1))
    np.testing.assert_array_equal(condition.decode(encoded), details.fields["structure"])
    assert condition.null is None
    np.savez(tmp_path / "grids.npz", x=details.fields["structure"][:2].astype(np.float32))
    np.testing.assert_array_equal(condition.read(str(tmp_path / "grids.npz"), 3), encoded[[0, 1, 0]])
    with pytest.raises(ValueError, match=r"structure \d has \d+ active blocks of 2\^3 voxels, and there is room for"):
        solids.Structure(resolution=8, voxels=3).encode(details.fields["structure"])
    with pytest.raises(ValueError, match=r"details need a structure: --cond\.structure=FILE"):
        condition.default(3)
    with pytest.raises(ValueError, match="structures are grids"):
        condition.encode(np.zeros((2, 4, 4, 4, 1)))
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="structures have NaN or infinite values"):
            condition.encode(np.full((2, 8, 8, 8, 1), value))
    condition.check_details((64, 30))
    with pytest.raises(ValueError, match=r"blocks of 2\^3 voxels, with 30 numbers, and details of blocks with 11"):
        condition.check_details((64, 11))


def test_pictures_as_conditions(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    condition = fj.conditions.Picture.learn(rows)
    for i in (0, 1):
        Image.fromarray(rows[i]).save(tmp_path / f"{i}.png")
    read = condition.read(str(tmp_path), 3)
    np.testing.assert_array_equal(condition.decode(read), rows[[0, 1, 0]])
    assert np.abs(read).max() <= 1
    np.testing.assert_array_equal(condition.read(str(tmp_path / "1.png"), 1)[0], read[1])
    Image.fromarray(rows[0, :6]).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"2.png has 8 x 6 pixels; this run takes 8 x 8: scale it"):
        condition.read(str(tmp_path), 3)
    with pytest.raises(ValueError, match="is neither a picture nor a folder"):
        condition.read(str(tmp_path / "none"), 1)
    with pytest.raises(ValueError, match="pictures are bytes"):
        condition.encode(rows.astype(np.float32))

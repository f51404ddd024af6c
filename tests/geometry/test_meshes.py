"""Bodies of mesh files: their size, insides, seams, colours and axes, and what is refused."""

import numpy as np
import pytest
import trimesh
from PIL import Image

from flowjax.geometry import solids
from flowjax.geometry.solids import meshes, structure


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

"""Triangle meshes: bodies from files, and files from distances, by trimesh and scikit-image."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree

from flowjax._files import replacing

ENDINGS = (".ply", ".obj", ".glb", ".stl", ".off")
LARGEST = 2**28
"""Bytes of a file."""
FACES = 2_000_000
HALF = 0.9
"""Half of the longest side of a body from a file."""
_GRID = 64  # voxels along the cube, of which distances are measured
_SAMPLES = 100_000  # points on a surface, of which the nearest says which triangle is near
_Y_UP = (".glb", ".gltf")
"""Forms that by their standard have y upwards; everywhere else it is z."""
_TO_Y_UP = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def require() -> None:
    """Refuses work that ends in meshes before it begins.

    Raises:
        ValueError: A library is not installed.
    """
    for name in ("trimesh", "skimage.measure"):
        _library(name)


def _library(name: str) -> Any:
    """An optional library.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError('meshes need trimesh and scikit-image: pip install -e ".[meshes]"') from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshBody:
    """A body from a file, in the middle of the cube, its longest side 2 `HALF`.

    Attributes:
        distances: Signed distances on a grid of the cube, (G, G, G), negative inside.
        points: Vertices, (V, 3).
        tints: Their colours in [0, 1], (V, 3).

    Example:
        >>> import trimesh
        >>> body = of_mesh(trimesh.creation.box(extents=(1.0, 1.0, 0.6)), "a box")
        >>> body.distance(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.8]])).round(1).tolist()
        [-0.5, 0.3]
    """

    distances: Float[np.ndarray, "G G G"]
    points: Float[np.ndarray, "V 3"]
    tints: Float[np.ndarray, "V 3"]

    def distance(self, points: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
        """Signed distances, between the points of the grid trilinear."""
        at = np.moveaxis((points + 1) / 2 * len(self.distances) - 0.5, -1, 0)
        return ndimage.map_coordinates(self.distances, at, order=1, mode="nearest")

    def colours(self, points: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Those of the nearest vertices."""
        return self.tints[cKDTree(self.points).query(points)[1]]


def of_mesh(mesh: Any, name: str) -> MeshBody:
    """The body of a `trimesh.Trimesh`, which errors call `name`.

    Raises:
        ValueError: It is empty, flat, too large, too thin, or has no inside.
    """
    if not len(getattr(mesh, "faces", ())):
        raise ValueError(f"{name} has no faces: meshes of triangles are read, not clouds of points")
    if len(mesh.faces) > FACES:
        raise ValueError(f"{name} has {len(mesh.faces)} faces, and {FACES} are read at most: simplify it")
    if not np.isfinite(mesh.vertices).all() or not mesh.extents.min() > 0:
        raise ValueError(f"{name} is flat or has points that are not finite: it has no inside")
    points = (mesh.vertices - mesh.bounds.mean(axis=0)) * (2 * HALF / mesh.extents.max())
    joined = _library("trimesh").Trimesh(points, mesh.faces, process=True)  # seams of colours and normals are no holes
    joined.update_faces((joined.faces != np.roll(joined.faces, 1, axis=1)).all(axis=1))
    if not joined.is_watertight:
        raise ValueError(f"{name} is not watertight, so nothing says what is inside: close its holes")
    inside = _inside(joined)
    if not inside.any():
        raise ValueError(
            f"{name} is too thin, none of the {_GRID}^3 points of a grid lies inside: "
            f"thicken it to 1/{int(HALF * _GRID)} of its longest side or more"
        )
    distances = np.where(inside, -1, 1) * _away(joined)
    return MeshBody(distances=distances, points=np.asarray(points), tints=_tints(mesh))


def _each(counts: Int[np.ndarray, " N"]) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """For counts (2, 1): owners (0, 0, 1) and numbers (0, 1, 0)."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _inside(mesh: Any) -> Bool[np.ndarray, "G G G"]:
    """Which points of the grid lie inside a closed mesh.

    Rays along z pass the points. Inside is where a ray entered more often than it left, so that parts may overlap and
    faces of cavities look into them; in a mesh whose faces are turned at random, where it crossed an odd number.
    Comparisons are half-open and faces compute equal numbers at an edge that they share: no ray slips between them.
    """
    corners = (mesh.triangles + 1) / 2 * _GRID - 0.5  # points of the grid are at whole numbers
    first, stop = (np.ceil(end(corners[..., 1], axis=1)).astype(int) for end in (np.min, np.max))
    face, row = _each(stop - first)
    row += first[face]
    below = corners[face, :, 1] <= row[:, None]
    after = np.roll(below, -1, axis=1)
    ends = []
    for rising in (True, False):  # a plane across y meets one edge that rises in y and one that falls
        edge = np.argmax((below != after) & (below == rising), axis=1)
        low, high = corners[face, (edge + (not rising)) % 3], corners[face, (edge + rising) % 3]
        ends.append(low + ((row - low[:, 1]) / (high[:, 1] - low[:, 1]))[:, None] * (high - low))
    (x, _, z), (other_x, _, other_z) = (end.T for end in ends)
    start = np.ceil(np.minimum(x, other_x)).astype(int)
    part, column = _each(np.ceil(np.maximum(x, other_x)).astype(int) - start)
    column += start[part]
    x, z, other_x, other_z = x[part], z[part], other_x[part], other_z[part]
    height = np.ceil(z + (column - x) / (other_x - x) * (other_z - z)).astype(int)
    turned = np.where(x < other_x, 1, -1) if mesh.is_winding_consistent else np.ones(len(part))
    flat = np.ravel_multi_index((column, row[part], height), (_GRID,) * 3)
    passed = np.bincount(flat, turned, _GRID**3).reshape((_GRID,) * 3).cumsum(axis=2)
    return passed != 0 if mesh.is_winding_consistent else passed % 2 == 1


def _away(mesh: Any) -> Float[np.ndarray, "G G G"]:
    """Distances of the points of the grid from a mesh: from the triangles of the nearest of many points on it."""
    trimesh = _library("trimesh")
    there, owner = trimesh.sample.sample_surface(mesh, _SAMPLES, seed=0)
    vertices, corner = np.unique(mesh.faces, return_index=True)
    there, owner = np.concatenate([mesh.vertices[vertices], there]), np.concatenate([corner // 3, owner])
    grid = (np.moveaxis(np.indices((_GRID,) * 3), 0, -1) + 0.5) * 2 / _GRID - 1
    seeds = np.full((_GRID,) * 3, -1)
    seeds[tuple(np.floor((there.T + 1) / 2 * _GRID).astype(int))] = np.arange(len(there))
    steps, index = ndimage.distance_transform_edt(seeds < 0, return_indices=True)
    nearest = seeds[tuple(index)]
    near = steps < 3  # farther away, those of the nearest voxel are near enough, and trees are slow in balls
    nearest[near] = cKDTree(there).query(grid[near])[1]
    points, nearest = grid.reshape(-1, 3), nearest.ravel()
    with np.errstate(divide="ignore", invalid="ignore"):  # of triangles without area
        touched = trimesh.triangles.closest_point(mesh.triangles[owner[nearest]], points)
    found = np.fmin(*(np.linalg.norm(points - other, axis=-1) for other in (touched, there[nearest])))
    return found.reshape((_GRID,) * 3)


def _tints(mesh: Any) -> Float[np.ndarray, "V 3"]:
    """Colours of vertices: their own or those of the texture, else that of the material, else grey."""
    tints, visual = np.full((len(mesh.vertices), 3), 0.7), mesh.visual
    material = getattr(visual, "material", None)
    found = [lambda: visual.vertex_colors]
    if material is not None:
        found = [lambda: material.to_color(visual.uv), lambda: material.main_color]
    for colours in found if visual.defined else []:
        try:
            tints[:] = np.asarray(colours(), np.float64)[..., :3] / 255
            break
        except Exception:  # no texture or no places in it, of which libraries raise anything
            continue
    return tints


def read(path: Path) -> MeshBody:
    """The body in a file.

    Raises:
        ValueError: A file that is too large or cannot be read, or see `of_mesh`.
    """
    trimesh = _library("trimesh")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, and {LARGEST} are read at most")
    try:
        mesh = trimesh.load(path, force="mesh", process=True)
        if path.suffix.lower() in _Y_UP:
            mesh.apply_transform(_TO_Y_UP.T)
    except Exception as error:  # readers raise anything when a file is broken
        raise ValueError(f"cannot read mesh {path}: {error}") from error
    return of_mesh(mesh, str(path))


def files(folder: str) -> list[Path]:
    """The meshes of a folder and those below it, by name.

    Raises:
        ValueError: No folder, or none in it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder")
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise ValueError(f"{folder} has no meshes; {', '.join(ENDINGS)} are read")
    return found


def surface(distance: Float[np.ndarray, "F F F"], colour: Float[np.ndarray, "F F F 3"]) -> Any:
    """The mesh where distances on a grid of the cube are 0, closed at its faces; None where nothing is inside.

    Raises:
        ValueError: A distance is not a number.
    """
    trimesh = _library("trimesh")
    if np.isnan(distance).any():
        raise ValueError(f"{np.isnan(distance).sum()} of {distance.size} distances are NaN: they have no surface")
    side = len(distance)
    held = np.pad(distance, 1, constant_values=max(float(distance.max()), 2 / side))
    if not (held.min() < 0 < held.max()):
        return None
    vertices, faces, _, _ = _library("skimage.measure").marching_cubes(held, 0.0)
    index = np.clip(np.rint(vertices - 1), 0, side - 1).astype(int)
    tints = np.rint(255 * colour[tuple(index.T)]).astype(np.uint8)
    points = (2 * vertices - 1) / side - 1
    return trimesh.Trimesh(vertices=points, faces=faces, vertex_colors=tints, process=True)


def write(mesh: Any, path: Path) -> None:
    """Writes a mesh or a cloud of points; the ending says in which form."""
    if path.suffix.lower() in _Y_UP:
        mesh = mesh.copy().apply_transform(_TO_Y_UP)
    with replacing(path) as part, part.open("wb") as file:
        made = mesh.export(file_type=path.suffix[1:])
        file.write(made.encode() if isinstance(made, str) else made)


def cloud(mesh: Any, count: int, seed: int = 0) -> Any:
    """Points spread evenly over the surface of a mesh, with the colours of the nearest vertices."""
    trimesh = _library("trimesh")
    points, _ = trimesh.sample.sample_surface(mesh, count, seed=seed)
    nearest = cKDTree(mesh.vertices).query(points)[1]
    return trimesh.PointCloud(points, colors=mesh.visual.vertex_colors[nearest])


def apart(first: Any, second: Any, count: int = 20_000) -> float:
    """The chamfer distance of two surfaces: mean distance between clouds of `count` points, over both ways.

    Clouds of one surface are apart by half of sqrt(area / count) in the mean: 0.008 for bodies in the cube [-1, 1]^3.

    An empty surface is 1 from any other, and 0 from an empty one.
    """
    if first is None or second is None:
        return float((first is None) != (second is None))
    one, other = (np.asarray(cloud(mesh, count).vertices) for mesh in (first, second))
    return float(cKDTree(other).query(one)[0].mean() + cKDTree(one).query(other)[0].mean()) / 2

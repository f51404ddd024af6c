"""Triangle meshes: bodies from files, and files from distances, by trimesh and scikit-image."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
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
        ValueError: It is empty, flat, too large, or has no inside.
    """
    if not len(getattr(mesh, "faces", ())):
        raise ValueError(f"{name} has no faces: meshes of triangles are read, not clouds of points")
    if len(mesh.faces) > FACES:
        raise ValueError(f"{name} has {len(mesh.faces)} faces, and {FACES} are read at most: simplify it")
    if not np.isfinite(mesh.vertices).all() or not mesh.extents.min() > 0:
        raise ValueError(f"{name} is flat or has points that are not finite: it has no inside")
    if not mesh.is_watertight:
        raise ValueError(f"{name} is not watertight, so nothing says what is inside: close its holes")
    mesh, pitch = mesh.copy(), 2 / _GRID
    mesh.apply_translation(-mesh.bounds.mean(axis=0))
    mesh.apply_scale(2 * HALF / mesh.extents.max())
    moved = mesh.copy()
    moved.apply_translation(np.full(3, pitch / 2))  # trimesh has the middles of voxels at multiples of their side
    index = np.rint(moved.voxelized(pitch).fill().points / pitch).astype(int) + _GRID // 2 - 1
    full = np.zeros((_GRID,) * 3, bool)
    full[tuple(index.T)] = True
    # Voxels that the surface passes are full, half of them too many: the surface lies half a voxel deeper.
    distances = pitch * (ndimage.distance_transform_edt(~full) - ndimage.distance_transform_edt(full) + 0.5)
    tints = np.full((len(mesh.vertices), 3), 0.7)
    if mesh.visual.defined:
        visual = mesh.visual.to_color() if hasattr(mesh.visual, "to_color") else mesh.visual  # of a texture
        tints = np.asarray(visual.vertex_colors, np.float64)[:, :3] / 255
    return MeshBody(distances=distances, points=np.asarray(mesh.vertices), tints=tints)


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
    """The mesh where distances on a grid of the cube are 0, closed at its faces; None where nothing is inside."""
    trimesh = _library("trimesh")
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
    with replacing(path) as part, part.open("wb") as file:
        made = mesh.export(file_type=path.suffix[1:])
        file.write(made.encode() if isinstance(made, str) else made)


def cloud(mesh: Any, count: int, seed: int = 0) -> Any:
    """Points spread evenly over the surface of a mesh, with the colours of the nearest vertices."""
    trimesh = _library("trimesh")
    points, _ = trimesh.sample.sample_surface(mesh, count, seed=seed)
    nearest = cKDTree(mesh.vertices).query(points)[1]
    return trimesh.PointCloud(points, colors=mesh.visual.vertex_colors[nearest])


def apart(first: Any, second: Any, count: int = 2048) -> float:
    """The chamfer distance of two surfaces: mean distance between clouds of points, over both ways.

    An empty surface is 1 from any other, and 0 from an empty one.
    """
    if first is None or second is None:
        return float((first is None) != (second is None))
    one, other = (np.asarray(cloud(mesh, count).vertices) for mesh in (first, second))
    return float(cKDTree(other).query(one)[0].mean() + cKDTree(one).query(other)[0].mean()) / 2

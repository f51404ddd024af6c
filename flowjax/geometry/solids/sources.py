"""Solids as data: a procedural family, or meshes from a folder, each with a rendered view."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowjax._checks import COUNT, SEED, choose, whole
from flowjax.data import Source
from flowjax.data.records import check_memory
from flowjax.facts import fact
from flowjax.geometry.rendering import Camera, orbit, render
from flowjax.geometry.solids import bodies, meshes
from flowjax.geometry.solids.structure import centres, check_sizes, encode, features, numbers_of

PARTS = ("structure", "details")
VIEW = {"azimuth": 35.0, "elevation": 25.0, "distance": 4.0}
"""Where views are taken from, see `flowjax.geometry.rendering.orbit`."""
_GRID = 24  # voxels along the cube that is rendered
_AT_ONCE = 32


def camera(size: int, **changes: float) -> Camera:
    """The camera of the views, with `size` pixels along both sides."""
    return orbit(**(VIEW | changes), height=size, width=size)


def density(distance: Float[np.ndarray, "... F F F"]) -> Float[np.ndarray, "... F F F"]:
    """The density that is rendered for signed distances: dense inside, over the width of a voxel nothing."""
    side = 2 / distance.shape[-1]
    return (60 * np.clip(0.5 - distance / side, 0, 1)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="steps")
def pictures(densities: Any, colours: Any, camera: Camera, steps: int = 32) -> Any:
    """Renderings (B, H, W, 3) of many grids."""
    one = lambda pair: render(pair[0], camera, albedo=pair[1], steps=steps).colour  # noqa: E731
    return jnp.clip(jax.lax.map(one, (densities, colours), batch_size=8), 0, 1)


def _source(
    made: Iterable[Any], size: int, labels: Any, part: str, resolution: int, block: int, voxels: int, view: int
) -> Source:
    """The data of so many bodies."""
    choose("part", part, PARTS)
    if part == "details":  # by whose surfaces samples are measured
        meshes.require()
    check_sizes(resolution, block, voxels)
    whole("[4, 1024]", view=view)
    numbers = resolution**3 + 3 * view**2 + (4 * voxels * features(block) if part == "details" else 0)
    check_memory(f"{size} solids", 2 * size * numbers)
    full: np.ndarray = np.zeros((size, *(resolution,) * 3, 1), np.uint8)
    views, details = np.zeros((size, view, view, 3), np.uint8), np.zeros((size, voxels, features(block)), np.float32)
    points, shown, eye = centres(resolution), centres(_GRID), camera(view)
    waiting: list[tuple[int, np.ndarray, np.ndarray]] = []

    def take() -> None:
        rows, grids, colours = zip(*waiting, strict=True)
        filled = [np.stack([*part, *part[:1] * (_AT_ONCE - len(part))]) for part in (list(grids), list(colours))]
        seen = pictures(density(filled[0]), filled[1].astype(np.float32), eye)
        views[list(rows)] = np.rint(255 * np.asarray(seen)[: len(rows)])
        waiting.clear()

    for row, (name, body) in enumerate(made):
        full[row] = body.distance(points)[..., None] < 0
        if not full[row].any():
            raise ValueError(f"{name} fills none of the {resolution}^3 voxels: take a higher resolution")
        waiting.append((row, body.distance(shown), body.colours(shown)))
        if part == "details":
            (found,) = numbers_of(full[row : row + 1], block)
            if len(found) > voxels:
                raise ValueError(
                    f"{name} has {len(found)} active blocks, and voxels={voxels}: give voxels={len(found)} or more"
                )
            details[row, : len(found)] = encode(body, found, resolution, block)
        if len(waiting) == _AT_ONCE:
            take()
    if waiting:
        take()
    fields = {"image": views}
    if part == "structure":
        own: dict[str, Any] = dict(x=full, shift=0.5, scale=0.5, low=0.0, high=1.0, form="voxels")
    else:
        form = "solids" if block == 2 else f"solids(block={block})"  # 2 is its default
        own, fields["structure"] = dict(x=details, scale=0.5, form=form), full
    return Source(**own, **labels, fields=fields)


@fact("data", "solids", "Bodies of eight kinds, of random size, turn and colour, each with a rendered view")
def solids(
    *,
    part: str = "structure",
    size: int = 2048,
    resolution: int = 16,
    block: int = 2,
    voxels: int = 160,
    view: int = 32,
    seed: int = 0,
) -> Source:
    """Bodies of eight kinds, of random size, turn and colour, each with a rendered view.

    Args:
        part: "structure", occupancy grids (R, R, R, 1) of zeros and ones; or "details", the features (N, F) of their
            active blocks (`flowjax.geometry.solids.structure`), padded with zeros, with the field "structure".
        size: Number of bodies, at least 1; kinds come in turn and are the labels.
        resolution: Voxels R along a side.
        block: Voxels along a block; divides `resolution`.
        voxels: Number N of blocks with padding.
        view: Pixels along a side of the field "image", colours (view, view, 3) as bytes.
        seed: Equal seeds give equal bodies, different seeds independent ones.

    Raises:
        ValueError: A number outside its range, or a body with more active blocks than `voxels`.
    """
    whole(COUNT, size=size)
    whole(SEED, seed=seed)
    rng, kinds = np.random.default_rng(seed), bodies.NAMES
    made = ((f"body {row}", bodies.draw(rng, kinds[row % len(kinds)])) for row in range(size))
    cond = np.arange(size, dtype=np.int32) % len(kinds)
    labels = dict(cond=cond, num_classes=len(kinds), names=kinds)
    return _source(made, size, labels, part, resolution, block, voxels, view)


@fact("data", "meshes", "Watertight meshes in a folder, each with a rendered view")
def of_meshes(
    *,
    folder: str,
    part: str = "structure",
    resolution: int = 16,
    block: int = 2,
    voxels: int = 160,
    view: int = 32,
) -> Source:
    """Watertight meshes in a folder, each with a rendered view; without labels.

    Each is moved into the middle of the cube and scaled, its longest side to 1.8.

    Args:
        folder: With PLY, OBJ, GLB, STL or OFF files, in folders below too.
        part: See `solids`.
        resolution: See `solids`.
        block: See `solids`.
        voxels: See `solids`.
        view: See `solids`.

    Raises:
        ValueError: No meshes, one that cannot be read, is empty or not watertight, or has more active blocks than
            `voxels`; a number outside its range.
    """
    found = meshes.files(folder)
    made = ((str(path), meshes.read(path)) for path in found)
    return _source(made, len(found), {}, part, resolution, block, voxels, view)

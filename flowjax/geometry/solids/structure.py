"""Solids in two stages: which voxels are full, and what the surface looks like where it passes.

The first stage is an occupancy grid (R, R, R, 1) of the cube [-1, 1]^3. Its blocks of b^3 voxels that hold a voxel of
the surface, a full one with an empty neighbour, are the active ones, in the order of their numbers. The second stage
gives each of them (b + 1)^3 + 3 numbers, padded to a fixed number N of blocks:

    d   signed distances of the surface from the corners of the block's voxels, over the side of a block
    c   2 colour - 1, (3,)

Corners belong to several blocks, whose distances are averaged, so that there are no seams; those of no active block
say what the occupancy says. Between corners distances are trilinear, and the solid is where they are negative.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num
from scipy import ndimage
from scipy.spatial import cKDTree

from flowjax._checks import COUNT, whole

REACH = 1.0
"""Distances are clipped to so many sides of a block."""


def features(block: int) -> int:
    """Numbers of an active block."""
    return (block + 1) ** 3 + 3


def check_sizes(resolution: int, block: int, voxels: int = 1) -> None:
    """Refuses grids that cannot be cut into blocks.

    Raises:
        ValueError: A number below 1, or `block` does not divide `resolution`.
    """
    whole("[2, 256]", resolution=resolution)
    whole(COUNT, block=block, voxels=voxels)
    if resolution % block:
        raise ValueError(f"block={block} does not divide resolution={resolution}")


def blocks(structure: Float[Array, "R R R 1"], block: int) -> Bool[Array, "r r r"]:
    """Which blocks of block^3 voxels are active."""
    full = structure[..., 0] > 0.5
    around, inner = jnp.pad(full, 1), full  # outside of the grid it is empty
    for axis in range(3):
        for shift in (1, -1):
            inner = inner & jnp.roll(around, shift, axis)[1:-1, 1:-1, 1:-1]
    r = full.shape[0] // block
    return (full & ~inner).reshape(r, block, r, block, r, block).any(axis=(1, 3, 5))


def active(structure: Float[Array, "R R R 1"], voxels: int, block: int) -> tuple[Int[Array, "N 3"], Bool[Array, " N"]]:
    """Numbers (i, j, k) of the first `voxels` active blocks, and which of these entries are there.

    What does not fit is left out: `flowjax.geometry.solids.Structure` refuses such grids.
    """
    held = blocks(structure, block)
    (index,) = jnp.nonzero(held.reshape(-1), size=voxels, fill_value=held.size - 1)
    there = jnp.arange(voxels) < jnp.sum(held, dtype=jnp.int32)
    return jnp.stack(jnp.unravel_index(index, held.shape), axis=-1).astype(jnp.int32), there


_all_blocks = jax.jit(jax.vmap(blocks, (0, None)), static_argnums=1)


def numbers_of(structures: Num[np.ndarray, "B R R R 1"], block: int) -> list[Int[np.ndarray, "n 3"]]:
    """The numbers of all active blocks of each grid."""
    return [np.argwhere(held) for held in np.asarray(_all_blocks(jnp.asarray(structures, jnp.float32), block))]


def middles(numbers: Int[np.ndarray, "n 3"], resolution: int, block: int) -> Float[np.ndarray, "n 3"]:
    """Middles of blocks in the cube."""
    return (2 * numbers + 1) * (block / resolution) - 1


def centres(resolution: int) -> Float[np.ndarray, "R R R 3"]:
    """Middles of the voxels of a grid in the cube."""
    line = (2 * np.arange(resolution) + 1) / resolution - 1
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)


def corners(numbers: Int[np.ndarray, "n 3"], block: int) -> Int[np.ndarray, "n k 3"]:
    """Numbers of the (b + 1)^3 corners of each block's voxels, on the lattice of all corners."""
    own = np.stack(np.meshgrid(*[np.arange(block + 1)] * 3, indexing="ij"), axis=-1).reshape(1, -1, 3)
    return block * numbers[:, None] + own


def encode(body: Any, numbers: Int[np.ndarray, "n 3"], resolution: int, block: int) -> Float[np.ndarray, "n F"]:
    """Features of active blocks of a body, which has `distance` and `colours` of points."""
    distance = body.distance(2 * corners(numbers, block) / resolution - 1) * (resolution / (2 * block))
    colour = 2 * body.colours(middles(numbers, resolution, block)) - 1
    return np.concatenate([np.clip(distance, -REACH, REACH), colour], axis=1)


def decode(
    structure: Float[np.ndarray, "R R R 1"], details: Float[np.ndarray, "N F"], block: int, fine: int = 2
) -> tuple[Float[np.ndarray, "G G G"], Float[np.ndarray, "G G G 3"]]:
    """Distances and colours in the middles of a grid with G = fine R cells along each axis.

    Args:
        structure: Occupancy, full where above 1/2.
        details: Features of its active blocks, and padding behind them.
        block: Voxels along a block.
        fine: Cells along a voxel.

    Returns:
        Signed distances in units of the cube, and colours in [0, 1], those of the nearest active block; distances of 1
        where nothing is full.
    """
    resolution, side = len(structure), 2 * block / len(structure)
    points, (numbers,) = centres(fine * resolution), numbers_of(structure[None], block)
    numbers = numbers[: len(details)]
    if not len(numbers):
        return np.ones(points.shape[:3]), np.full(points.shape, 0.5)
    around = np.pad(structure[..., 0] > 0.5, 1).astype(float)
    share = sum(around[i:, j:, k:][(slice(resolution + 1),) * 3] for i, j, k in np.ndindex(2, 2, 2)) / 8
    lattice, count = side * REACH * np.where(share > 0.5, -1.0, 1.0), np.zeros((resolution + 1,) * 3)
    there, held = tuple(np.moveaxis(corners(numbers, block), -1, 0)), details[: len(numbers)].astype(np.float64)
    total = np.zeros_like(lattice)
    np.add.at(total, there, side * held[:, :-3])
    np.add.at(count, there, 1)
    lattice = np.where(count > 0, total / np.maximum(count, 1), lattice)
    at = np.moveaxis((points + 1) * resolution / 2, -1, 0)
    nearest = cKDTree(middles(numbers, resolution, block)).query(points)[1]
    colour = np.clip((held[nearest, -3:] + 1) / 2, 0, 1)
    return ndimage.map_coordinates(lattice, at, order=1, mode="nearest"), colour

"""From the states of a flow on latents to examples: out of their scale, whole or in tiles."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax._files import replacing
from flowjax._pytree import pytree
from flowjax.calibration.store import model_hash
from flowjax.data.files import BROKEN, read_arrays
from flowjax.recipe.autoencoder import decode

ELEMENTS = "statistics.npz"
"""Shift and scale of every entry of the latents, in the folder of a flow."""


@pytree
class Elements:
    """A codec whose latents are normalised entry by entry: (z - shift) / scale.

    Attributes:
        network: What encodes and decodes.
        shift: Of the shape of the latents of one example, float32.
        scale: Likewise; positive.

    Example:
        >>> import numpy as np
        >>> codec = Elements(network=None, shift=np.zeros((2, 2, 1)), scale=np.ones((2, 2, 1)))
        >>> len(codec.hash)
        12
    """

    network: Any
    shift: Any
    scale: Any

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits over both arrays."""
        return model_hash([self.shift, self.scale])

    def write(self, folder: str | Path) -> None:
        """Writes both arrays into the folder of a flow.

        Raises:
            OSError: They cannot be written.
        """
        with replacing(Path(folder) / ELEMENTS) as part, part.open("wb") as file:
            np.savez(file, shift=self.shift, scale=self.scale)


def unscaled(codec: Any, known: Mapping[str, Any]) -> tuple[Any, Any, Any, tuple[int, int] | None]:
    """What decodes, shift and scale of its latents, and side and overlap of tiles, where there are any.

    Args:
        codec: From `load_run`.
        known: What the recipe of the flow says of its codec.

    Raises:
        ValueError: Statistics of every entry are meant, and these are not there.
    """
    shift, scale, tiles = known["shift"], known["scale"], known.get("tiles")
    if "elements" in known:
        if not isinstance(codec, Elements):
            raise ValueError("latents of this flow are normalised entry by entry: pass codec= from load_run")
        codec, shift, scale = codec.network, codec.shift[None], codec.scale[None]
    return codec, shift, scale, None if tiles is None else tuple(tiles)


def decoded(network: Any, shift: Any, scale: Any, tiles: tuple[int, int] | None, x: Array) -> Array:
    """Normalised examples of states of a flow on latents; arguments as `unscaled` gives them."""
    z = x * scale + shift
    return decode(network, z) if tiles is None else decode_tiles(network, z, *tiles)


def read_elements(folder: str | Path, known: str, shape: tuple[int, ...], network: Any) -> Elements:
    """What `Elements.write` has written.

    Args:
        folder: Of the flow.
        known: The hash that its recipe names.
        shape: Of the latents of one example.
        network: The codec.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file that has changed, or of something else.
    """
    file = Path(folder) / ELEMENTS
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {ELEMENTS}, by which its latents are normalised: bring it back")
    try:
        found = Elements(network=network, **read_arrays(file, ["shift", "scale"]))
    except BROKEN as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if found.hash != known:
        raise ValueError(
            f"{file} has changed since the run was trained: its hash is {found.hash}, not {known}; bring it back"
        )
    if found.shift.shape != shape or found.scale.shape != shape:
        raise ValueError(f"{file} is for latents of the shape {found.shift.shape}, and those of this run are {shape}")
    return found


@functools.partial(jax.jit, static_argnames=("side", "overlap"))
def decode_tiles(network: Any, z: Float[Array, "B h w latent"], side: int, overlap: int) -> Float[Array, "B H W C"]:
    """The normalised pictures of latents, decoded tile by tile, one position of all pictures at a time.

    Tiles of `side` x `side` latents begin every side - overlap rows and columns, the last at the border. Where they
    overlap, each counts with a weight that falls linearly to its cut edges, so that no seam is seen. A pixel is that of
    the whole picture if no cut edge of a tile that covers it is within the receptive field of the decoder. Attention
    over all positions and the statistics of group normalisation reach everywhere: a decoder with these sees the tile in
    place of the picture, and colours may differ from tile to tile; larger tiles differ less.

    Args:
        network: The codec, with `decode_part(z)`.
        z: Latents in the codec's scale.
        side: Rows and columns of a tile; at most the whole picture.
        overlap: Rows and columns that neighbours share at least, below `side`.
    """
    sides = [min(side, size) for size in z.shape[1:3]]
    first = jax.eval_shape(network.decode_part, z[:, : sides[0], : sides[1]])
    factor = first.shape[1] // sides[0]
    axes = [
        [(start, _ramp(start, size, own, overlap, factor)) for start in _starts(size, own, overlap)]
        for size, own in zip(z.shape[1:3], sides, strict=True)
    ]
    tiles = [(row, column, np.outer(down, across)) for row, down in axes[0] for column, across in axes[1]]
    covered = np.zeros([factor * size for size in z.shape[1:3]])
    for row, column, weight in tiles:
        covered[factor * row :, factor * column :][: weight.shape[0], : weight.shape[1]] += weight

    def add(total: Array, tile: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, column, weight = tile
        part = jax.lax.dynamic_slice(z, (0, row, column, 0), (z.shape[0], *sides, z.shape[3]))
        place = (0, factor * row, factor * column, 0)
        before = jax.lax.dynamic_slice(total, place, first.shape)
        return jax.lax.dynamic_update_slice(total, before + weight * network.decode_part(part), place), None

    rows, columns = (jnp.asarray([tile[axis] for tile in tiles]) for axis in (0, 1))
    weights = jnp.asarray(np.stack([tile[2] for tile in tiles]), first.dtype)[:, None, ..., None]
    empty = jnp.zeros((z.shape[0], *covered.shape, first.shape[-1]), first.dtype)
    total, _ = jax.lax.scan(add, empty, (rows, columns, weights))
    return total / jnp.asarray(covered, first.dtype)[None, ..., None]


def _starts(size: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin, so that they cover `size`."""
    return sorted({*range(0, size - side, side - overlap), size - side})


def _ramp(start: int, size: int, side: int, overlap: int, factor: int) -> np.ndarray:
    """Weights of the pixels of a tile along an axis: 1, falling towards edges that are cut."""
    rising = np.minimum(1.0, (np.arange(side * factor) + 0.5) / max(1, overlap * factor))
    falling = np.ones(side * factor)
    return np.minimum(rising if start else falling, rising[::-1] if start + side < size else falling)

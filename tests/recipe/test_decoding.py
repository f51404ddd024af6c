"""Tiles that make a picture, and latents normalised entry by entry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax._pytree import pytree
from flowjax.models import Autoencoder
from flowjax.recipe.decoding import Elements, decode_tiles, read_elements
from flowjax.recipe.fixed import Patches

pytestmark = pytest.mark.standard_promotion


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytree
class Convolutions:
    """A decoder of convolutions alone: twice as many pixels, and what lies further than 3 of them plays no part.

    Its numbers are whole and small, so that sums are exact whatever their order.
    """

    first: jax.Array
    second: jax.Array

    def decode(self, z):
        h = convolve(z, self.first)  # one latent, two pixels
        h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        return convolve(h**2, self.second)  # one more

    decode_part = decode


REACH = 3


@functools.cache
def decoder():
    rng = np.random.default_rng(0)
    kernels = rng.integers(-2, 3, (3, 3, 2, 3)), rng.integers(-2, 3, (3, 3, 3, 1))
    return Convolutions(first=jnp.asarray(kernels[0], jnp.float32), second=jnp.asarray(kernels[1], jnp.float32))


def picture(rows, columns, channels=2, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, (2, rows, columns, channels)), jnp.float32)


def cuts(size, side, overlap):
    """Where tiles begin and end."""
    starts = [*range(0, size - side, side - overlap), size - side]
    return [(start, start + side) for start in sorted(set(starts))]


@pytest.mark.parametrize(("rows", "columns", "side", "overlap"), [(19, 12, 8, 3), (8, 21, 7, 0), (9, 9, 4, 2)])
def test_pixels_out_of_reach_of_a_cut_are_those_of_the_whole_picture(rows, columns, side, overlap):
    z = picture(rows, columns)
    whole = np.asarray(decoder().decode(z))
    tiled = np.asarray(decode_tiles(decoder(), z, side, overlap))
    assert tiled.shape == whole.shape

    def safe(size):
        """Pixels along an axis of which every tile that has them is right, and of which one tile alone has them."""
        right, count = np.ones(2 * size, bool), np.zeros(2 * size, int)
        for start, end in cuts(size, side, overlap):
            place = np.arange(2 * start, 2 * end)
            count[place] += 1
            if start:
                right[place[:REACH]] = False
            if end < size:
                right[place[-REACH:]] = False
        return right, right & (count == 1)

    (down, down_once), (across, across_once) = safe(rows), safe(columns)
    equal = np.outer(down_once, across_once)
    assert equal.any()
    np.testing.assert_array_equal(tiled[:, equal], whole[:, equal])
    near = np.outer(down, across)
    np.testing.assert_allclose(tiled[:, near], whole[:, near], rtol=1e-5, atol=1e-4)
    assert not np.allclose(tiled, whole)  # nearer to a cut it is another picture


def test_a_tile_as_large_as_the_picture_is_the_picture():
    z = picture(6, 10)
    np.testing.assert_array_equal(decode_tiles(decoder(), z, 10, 4), decoder().decode(z))
    np.testing.assert_array_equal(
        decode_tiles(Patches(size=2), picture(5, 7, 4), 3, 1), Patches(size=2).decode(picture(5, 7, 4))
    )


def test_seams_are_blended():
    """A decoder that answers each tile with another constant: neighbours of a pixel differ little, without steps."""

    @pytree
    class Steps:
        def decode_part(self, z):
            return jnp.broadcast_to(z[:, :1, :1], (*z.shape[:1], 8 * z.shape[1], 8 * z.shape[2], 1))

    z = jnp.broadcast_to((jnp.arange(16.0) > 0)[None, None, :, None], (1, 16, 16, 1)).astype(jnp.float32)
    y = np.asarray(decode_tiles(Steps(), z, 8, 4))[0, 0, :, 0]
    assert (y[0], y[-1]) == (0, 1)
    assert np.abs(np.diff(y)).max() < 2 / 32  # of 32 pixels that two tiles share


@pytest.mark.slow
def test_the_autoencoder_decodes_tiles():
    """With attention and group normalisation a tile differs; the whole as one tile does not."""
    network = Autoencoder((16, 16, 1), channels=4, multipliers=(1, 2), groups=2, latent=2, rngs=nnx.Rngs(0))
    z = picture(8, 8)
    whole = jax.jit(lambda network, z: network.decode(z))(network, z)
    np.testing.assert_allclose(decode_tiles(network, z, 8, 2), whole, rtol=1e-4, atol=1e-4)
    tiled = decode_tiles(network, z, 6, 2)
    assert tiled.shape == whole.shape
    apart = np.sqrt(np.mean((tiled - whole) ** 2)) / np.std(whole)
    assert 0 < apart < 1


def test_scales_of_entries_are_kept_by_their_hash(tmp_path):
    rng = np.random.default_rng(0)
    shift, scale = rng.normal(size=(2, 2, 3)).astype(np.float32), np.abs(rng.normal(size=(2, 2, 3))).astype(np.float32)
    codec = Elements(network=Patches(size=2), shift=shift, scale=scale)
    codec.write(tmp_path)
    again = read_elements(tmp_path, codec.hash, (2, 2, 3), Patches(size=2))
    np.testing.assert_array_equal(again.scale, scale)
    with pytest.raises(ValueError, match="and those of this run are"):
        read_elements(tmp_path, codec.hash, (2, 2, 4), None)
    Elements(network=None, shift=shift, scale=scale + np.float32(1e-6)).write(tmp_path)
    with pytest.raises(ValueError, match="has changed since the run was trained"):
        read_elements(tmp_path, codec.hash, (2, 2, 3), None)
    (tmp_path / "statistics.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot be read"):
        read_elements(tmp_path, codec.hash, (2, 2, 3), None)
    (tmp_path / "statistics.npz").unlink()
    with pytest.raises(FileNotFoundError, match="bring it back"):
        read_elements(tmp_path, codec.hash, (2, 2, 3), None)

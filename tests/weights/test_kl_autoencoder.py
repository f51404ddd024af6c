"""The autoencoder of Stable Diffusion: numbers of the published program, its names and layouts, and refusals."""

import functools
import hashlib
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from flowjax._trees import flatten
from flowjax.models import KLAutoencoder
from flowjax.weights import read_kl_autoencoder
from flowjax.weights.kl_autoencoder import origins

OFFICIAL = json.loads(Path(__file__).with_name("kl_autoencoder_official.json").read_text())
SMALL = {"channels": 4, "multipliers": (1, 2, 2), "blocks": 1, "latent": 2, "groups": 2}


def weights(shapes):
    """What the published program was recorded with: numbers that depend on the name of an array alone."""
    found = {}
    for name, shape in shapes.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        scale = 0.2 * values + ("norm" in name and name.endswith("weight"))
        found[name] = (scale if len(shape) == 1 else values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return found


@functools.cache
def like(image_shape=(12, 8, 3)):
    return nnx.eval_shape(lambda: KLAutoencoder(image_shape, **SMALL, rngs=nnx.Rngs(0)))


@pytest.fixture
def published(tmp_path):
    arrays = weights(OFFICIAL["shapes"])
    save_file(arrays, tmp_path / "vae.safetensors")
    return tmp_path / "vae.safetensors", arrays


def images():
    return np.random.default_rng(0).standard_normal((2, 12, 8, 3)).astype(np.float32)


def test_it_computes_what_the_published_program_does(published):
    network = read_kl_autoencoder(published[0], like())
    mean, log_variance = jax.jit(lambda network, x: network.encode(x))(network, images())
    y = jax.jit(lambda network, z: network.decode(z))(network, mean)
    for found, name in ((mean, "mean"), (log_variance, "log_variance"), (y[:, ::3, ::2], "decoded")):
        np.testing.assert_allclose(np.ravel(found), OFFICIAL[name], rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_it_computes_what_diffusers_does(published):
    """The same, where both programs are installed."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    path, arrays = published
    other = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
    )
    other.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    with torch.no_grad():
        law = other.eval().encode(torch.tensor(images().transpose(0, 3, 1, 2))).latent_dist
        there = law.mean, law.logvar, other.decode(law.mean).sample
    network = read_kl_autoencoder(path, like())
    mean, log_variance = network.encode(jnp.asarray(images()))
    for a, b in zip(there, (mean, log_variance, network.decode(mean)), strict=True):
        np.testing.assert_allclose(a.numpy().transpose(0, 2, 3, 1), b, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_the_whole_model_has_the_published_arrays():
    """Names and shapes of all 248 arrays, those of Stable Diffusion."""
    whole = nnx.eval_shape(lambda: KLAutoencoder((512, 512, 3), rngs=nnx.Rngs(0)))
    own = flatten(whole)
    assert sum(leaf.size for leaf in own.values()) == OFFICIAL["full_numbers"] == 83_653_863
    table, shapes = origins(whole.levels, whole.blocks), {}
    for name, leaf in own.items():
        names, _ = table[name]
        for there in names:
            if name.endswith("qkv.kernel"):
                shape = [leaf.shape[0], leaf.shape[0]]
            elif name.endswith("project.kernel"):
                shape = [leaf.shape[-1], leaf.shape[1]]
            elif name.endswith("kernel"):  # rows, columns, inputs, outputs
                shape = [leaf.shape[3], leaf.shape[2], *leaf.shape[:2]]
            else:
                shape = [leaf.shape[-1]]
            shapes[there] = shape
    assert len(shapes) == OFFICIAL["full_arrays"]
    assert hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest() == OFFICIAL["full_sha256"]
    assert (whole.latent_scale, whole.latent_shape) == (0.18215, (64, 64, 4))


def test_older_names_half_precision_and_other_sizes(published):
    path, arrays = published
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, array in arrays.items():
        for new, old in older.items():
            if ".attentions." in name and f".{new}." in name:
                name, array = name.replace(new, old), array.reshape(*array.shape, 1, 1) if array.ndim == 2 else array
        renamed[name] = array
    assert set(renamed) - set(arrays)
    save_file(renamed, path)
    want = flatten(read_kl_autoencoder(path, like()))
    save_file({name: array.astype(np.float16) for name, array in renamed.items()}, path)
    half = read_kl_autoencoder(path, like((16, 16, 3)))
    assert half.latent_shape == (4, 4, 2)
    for name, leaf in flatten(half).items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, want[name], rtol=1e-3, atol=1e-4)


def test_what_is_missing_or_does_not_fit_is_one_line(published, tmp_path):
    path, arrays = published
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    read_kl_autoencoder(path, like(), sha256=digest.upper())
    there = tmp_path / "none" / "vae.safetensors"
    cases = [
        (there, arrays, {}, FileNotFoundError, f"get the file and put it at {there}; stabilityai/sd-vae-ft-mse has"),
        (there, arrays, {"sha256": digest}, FileNotFoundError, f"vae.safetensors with the sha256 {digest} are not"),
        (path, arrays, {"sha256": "0" * 64}, ValueError, f"its sha256 is {digest}, not {'0' * 64}"),
        (
            path,
            {("extra" if name == "quant_conv.bias" else name): array for name, array in arrays.items()},
            {},
            ValueError,
            "does not fit: quant_conv.bias is missing; extra is not known",
        ),
        (path, {"a": np.zeros(1)}, {}, ValueError, "more are missing; a is not known"),
        (
            path,
            arrays | {"encoder.conv_in.weight": np.zeros((4, 3, 1, 1), np.float32)},
            {},
            ValueError,
            "encoder.conv_in.weight (4, 3, 1, 1) become (1, 1, 3, 4), and encoder.embed.kernel is (3, 3, 3, 4) here",
        ),
        (
            path,
            arrays | {"quant_conv.bias": np.full(4, np.nan, np.float32)},
            {},
            ValueError,
            "encoder.mix.bias has values that are NaN or infinite",
        ),
        (path, None, {}, ValueError, "is not a whole safetensors file"),
    ]
    for place, content, options, kind, message in cases:
        if content is None:
            path.write_bytes(path.read_bytes()[:-100])
        elif content is not arrays:
            save_file(content, path)
        with pytest.raises(kind) as error:
            read_kl_autoencoder(place, like(), **options)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_it_trains_like_the_other_autoencoder():
    """The last layer stands where adversarial weights look for it, and every array moves."""
    network = KLAutoencoder((8, 8, 3), 4, (1, 2), 1, 2, groups=2, rngs=nnx.Rngs(0))
    filled = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape) / 3, leaf.dtype), network
    )
    x, noise = (jnp.asarray(np.random.default_rng(1).normal(size=s), jnp.float32) for s in ((2, 8, 8, 3), (2, 4, 4, 2)))
    slopes = jax.jit(jax.grad(lambda network: jnp.sum((network(x, noise) - x) ** 2)))(filled)
    for name, slope in flatten(slopes).items():
        assert float(jnp.abs(slope).max()) > 0, name
    assert flatten(network)["decoder.unembed.kernel"].shape == (3, 3, 4, 3)

"""The encoder, the decoder of its tokens, and both together: positions, tokens, sizes, derivatives, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from flowjax.models import RepresentationAutoencoder, ViT, ViTDecoder
from flowjax.models.resampling import resampling, resized

SHAPE = (8, 4, 2)
OPTIONS = {"patch": 2, "width": 16, "depth": 2, "heads": 2}


def vit(image_shape=SHAPE, **options):
    return ViT(image_shape, **(OPTIONS | {"outputs": 3} | options), rngs=nnx.Rngs(0))


def decoder(image_shape=SHAPE, latent=16, **options):
    return ViTDecoder(image_shape, latent, **(OPTIONS | options), rngs=nnx.Rngs(0))


def both(**options):
    return RepresentationAutoencoder(vit(**options), decoder())


@functools.cache
def filled(make):
    shapes = jax.eval_shape(make)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 3, a.dtype), shapes)


encode = jax.jit(ViT.encode)


def images(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


@pytest.mark.parametrize(("size", "new"), [(12, 5), (5, 12), (37, 16), (7, 7)])
def test_antialiased_resampling_is_pillows(size, new):
    x = np.random.default_rng(0).normal(size=(1, size)).astype(np.float32)
    expected = np.asarray(Image.fromarray(x).resize((new, 1), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(x @ resampling(size, new, antialias=True).T, expected, rtol=1e-4, atol=1e-5)


def test_resampling_without_antialiasing():
    """Keys' weights for a = -3/4 at a quarter and in the middle; beyond the border the last number goes on."""
    middle = resampling(8, 4, antialias=False)
    np.testing.assert_allclose(middle[1], [0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(middle[0], [0.5, 0.59375, -0.09375, 0, 0, 0, 0, 0], atol=1e-12)
    # t = 1/4: a (t^3 - 2 t^2 + t) beside (a + 2) t^3 - (a + 3) t^2 + 1, and both from the other side with 1 - t.
    t, a = 0.25, -0.75
    near, far = (lambda t: (a + 2) * t**3 - (a + 3) * t**2 + 1), lambda t: a * (t**3 - 2 * t**2 + t)
    found = resampling(6, 12, antialias=False)[5, 1:5]
    np.testing.assert_allclose(found, [far(t), near(t), near(1 - t), far(1 - t)], atol=1e-12)
    for size, new in ((9, 4), (4, 9)):
        matrix = resampling(size, new, antialias=False)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    x = images(2, 6, 6, 3)
    by_hand = np.einsum("ih,jw,bhwc->bijc", *[resampling(6, 4, antialias=False)] * 2, x)
    np.testing.assert_allclose(resized(x, (4, 4), antialias=False), by_hand, rtol=1e-5, atol=1e-6)


def test_every_token_has_mean_zero_and_variance_one():
    z = encode(filled(vit), 10 * images(3, *SHAPE))
    assert z.shape == (3, 4, 2, 16)
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(z.var(-1), 1, atol=1e-4)


def test_the_classifier_reads_the_mean_of_the_tokens_of_images_around_zero():
    network, x = filled(vit), 2 * images(3, *SHAPE) - 1
    mean = np.asarray(encode(network, (x + 1) / 2)).mean((1, 2))
    expected = mean @ np.asarray(network.head.kernel[...]) + np.asarray(network.head.bias[...])
    np.testing.assert_allclose(jax.jit(lambda n, x: n(x))(network, x), expected, rtol=1e-4, atol=1e-4)


def test_registers_take_part_and_are_dropped():
    network, x = filled(vit), images(2, *SHAPE)
    other = jax.tree.map(lambda leaf: leaf, network)
    other.registers = other.registers.replace(-other.registers[...])
    a, b = encode(network, x), encode(other, x)
    assert a.shape == b.shape
    assert float(jnp.abs(a - b).max()) > 1e-3
    assert filled(functools.partial(vit, registers=0)).registers is None


def test_positions_tell_places_and_grow_to_other_grids():
    """An image of equal patches has equal tokens without positions; a table of another grid is interpolated."""
    network, x = filled(functools.partial(vit, table=3)), jnp.ones((1, *SHAPE))
    assert network.positions.shape == (3, 3, 16)
    tokens = np.asarray(encode(network, x)).reshape(8, 16)
    assert np.unique(tokens.round(4), axis=0).shape[0] == 8
    flat = jax.tree.map(lambda leaf: leaf, network)
    flat.positions = flat.positions.replace(jnp.ones((3, 3, 16)))
    tokens = np.asarray(encode(flat, x)).reshape(8, 16)
    np.testing.assert_allclose(tokens, np.broadcast_to(tokens[:1], (8, 16)), atol=1e-4)


def test_images_are_resized_to_a_multiple_of_the_patch():
    network = filled(functools.partial(vit, (6, 6, 2), resize=8, patch=4))
    x = images(2, 6, 6, 2)
    assert encode(network, x).shape == (2, 2, 2, 16)
    larger = filled(functools.partial(vit, (8, 8, 2), patch=4))
    expected = encode(larger, resized(x, (8, 8), antialias=False))
    np.testing.assert_allclose(encode(network, x), expected, rtol=1e-3, atol=1e-4)


def test_the_decoder_by_hand():
    """Without blocks: positions of masked autoencoders, columns first, a normalisation, patches row by row."""
    network = filled(functools.partial(decoder, depth=1))
    still = jax.tree.map(lambda leaf: leaf, network)
    for layer in (still.blocks[0].project, still.blocks[0].outer):
        layer.kernel, layer.bias = (v.replace(jnp.zeros_like(v[...])) for v in (layer.kernel, layer.bias))
    z = images(2, 4, 2, 16)
    h = np.asarray(z).reshape(2, 8, 16) @ np.asarray(still.embed.kernel[...]) + np.asarray(still.embed.bias[...])
    codes = np.zeros((8, 16))
    for row in range(4):
        for column in range(2):
            for k in range(4):
                speed = 10_000.0 ** (-k / 4)
                angles = [np.sin(column * speed), np.cos(column * speed), np.sin(row * speed), np.cos(row * speed)]
                codes[2 * row + column, [k, 4 + k, 8 + k, 12 + k]] = angles
    h = h + codes
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    h = h * np.asarray(still.norm.scale[...]) + np.asarray(still.norm.bias[...])
    pixels = h @ np.asarray(still.unembed.kernel[...]) + np.asarray(still.unembed.bias[...])
    expected = np.zeros((2, 8, 4, 2))
    for row in range(4):
        for column in range(2):
            patch = pixels[:, 2 * row + column].reshape(2, 2, 2, 2)
            expected[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch
    call = jax.jit(lambda network: network(z))
    np.testing.assert_allclose(call(still), expected, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(call(network) - call(still)).max()) > 1e-3  # and blocks do take part


@pytest.mark.slow
def test_stacked_blocks_and_recomputed_ones_change_nothing():
    z = images(2, 4, 2, 16)
    call = jax.jit(lambda network: jax.value_and_grad(lambda network: jnp.sum(network(z) ** 2))(network))
    value, gradient = call(decoder())
    for options in ({"scan": True}, {"remat": True}):
        other, changed = call(decoder(**options))
        np.testing.assert_allclose(other, value, rtol=1e-5)
        np.testing.assert_allclose(changed.token[...], gradient.token[...], rtol=1e-3, atol=1e-5)


def test_both_together_undo_the_encoders_normalisation():
    network = filled(functools.partial(both, mean=(0.2, 0.4), std=(0.1, 0.3)))
    x = 2 * images(2, *SHAPE) - 1

    @jax.jit
    def parts(n, x):
        z = n.encode(x)
        return z, n.encoder.encode((x + 1) / 2), n.decoder(z), n.decode(z)

    z, direct, inside, y = parts(network, x)
    np.testing.assert_allclose(z, direct, rtol=1e-5, atol=1e-5)
    inside = np.asarray(inside) * [0.1, 0.3] + [0.2, 0.4]
    np.testing.assert_allclose(y, 2 * inside - 1, rtol=1e-4, atol=1e-4)


def test_any_encoder_of_the_protocol_will_do():
    class Means:
        patch_size, hidden_size = 2, 4

        def encode(self, images):
            return images.reshape(len(images), 4, 2, 2, 2, 2).mean(5).swapaxes(2, 3).reshape(len(images), 4, 2, 4)

    network = RepresentationAutoencoder(Means(), decoder(latent=4))
    assert jax.eval_shape(lambda x: network.decode(network.encode(x)), jnp.zeros((2, *SHAPE))).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="the encoder, a Linear, has no encode: an encoder makes tokens"):
        RepresentationAutoencoder(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), decoder())


def test_names_and_types():
    for make in (vit, decoder, functools.partial(decoder, scan=True)):
        half = jax.eval_shape(lambda make=make: make(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
        for path, variable in nnx.to_flat_state(nnx.state(half, nnx.Param)):
            assert variable.dtype == jnp.bfloat16, path
            assert len(variable.get_metadata()["out_sharding"]) == len(variable.shape), path
    half = jax.eval_shape(lambda: both(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    y = jax.eval_shape(lambda n, x: (n.encode(x), n.decode(n.encode(x)), n.encoder(x)), half, jnp.zeros((2, *SHAPE)))
    assert {leaf.dtype for leaf in y} == {np.dtype(np.float32)}


@pytest.mark.usefixtures("x64")
def test_double_precision_stays():
    fine = jax.eval_shape(
        lambda: RepresentationAutoencoder(
            *(make(dtype=jnp.float64, param_dtype=jnp.float64) for make in (vit, decoder))
        )
    )
    x = jnp.zeros((2, *SHAPE), jnp.float64)
    assert jax.eval_shape(lambda n: n.decode(n.encode(x)), fine).dtype == jnp.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vit(patch=3), "patch=3 does not divide an image of 8 x 4 pixels"),
        (lambda: vit(heads=3), "width=16 must be a multiple of heads=3"),
        (lambda: vit(resize=8), "resize=8 is for square images, got 8 x 4"),
        (lambda: vit((8, 8, 2), resize=7), "patch=2 does not divide an image of 7 x 7"),
        (lambda: vit(std=(0.0,)), r"std\[0\] must be above 0"),
        (lambda: vit(mean=(0.1, 0.2, 0.3)), "mean has a number for each of 2 channels, or one for all"),
        (lambda: vit(registers=-1), "registers must be at least 0"),
        (lambda: vit(outputs=None)(images(2, *SHAPE)), "this ViT is an encoder alone: build it with outputs="),
        (lambda: vit()(images(2, *SHAPE), None, jnp.zeros(2)), "a ViT takes no condition"),
        (lambda: vit().encode(images(2, 8, 8, 2)), r"expected images \(B, 8, 4, 2\), got \(2, 8, 8, 2\)"),
        (lambda: ViT.size("bsae"), "unknown size 'bsae'; did you mean 'base'"),
        (lambda: decoder(patch=3), "patch=3 does not divide"),
        (lambda: decoder(width=10, heads=2), "width=10 must be a multiple of 4"),
        (lambda: decoder()(images(2, 2, 2, 16)), r"expected tokens \(B, 4, 2, 16\), got"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)

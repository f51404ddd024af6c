"""Autoencoder and discriminator: shapes, posterior, sizes, derivatives, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import Autoencoder, Discriminator

SMALL = {"image_shape": (8, 4, 2), "channels": 4, "multipliers": (1, 2), "latent": 3, "groups": 2}


def autoencoder(**options):
    return Autoencoder(**(SMALL | options), rngs=nnx.Rngs(0))


def discriminator(image_shape=(16, 12, 2), channels=4, layers=2, groups=2, **options):
    return Discriminator(image_shape, channels, layers, groups=groups, **options, rngs=nnx.Rngs(0))


def filled(make):
    shapes = jax.eval_shape(make)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 3, a.dtype), shapes)


def images(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@pytest.mark.slow
def test_latents_are_drawn_from_the_posterior_and_scaled():
    network = filled(lambda: autoencoder(latent_scale=0.25))
    x, noise = images(3, 8, 4, 2), images(3, 4, 2, 3)

    @jax.jit
    def parts(network):
        latents = network.to_latents(x, noise)
        return network.encode(x), latents, network.to_latents(x), network.to_images(latents), network(x, noise)

    (mean, log_variance), latents, middle, again, direct = parts(network)
    assert network.latent_shape == mean.shape[1:] == (4, 2, 3)
    np.testing.assert_allclose(4 * latents, mean + np.exp(log_variance / 2) * noise, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(4 * middle, mean, rtol=1e-5)
    np.testing.assert_allclose(direct, again, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda n: n.decode(4 * latents))(network), again, atol=1e-5)
    mates = jax.jit(lambda n: n(x.at[1:].add(1.0), noise))(network)
    np.testing.assert_allclose(mates[0], again[0], atol=1e-5)
    assert float(jnp.abs(mates - again)[1:].max()) > 1e-3


@pytest.mark.slow
def test_gradients_of_all_parts_and_of_the_last_layer_apart():
    """The decoder's last layer stands apart, since an adaptive adversarial weight differentiates by it alone."""
    network, critic = filled(autoencoder), filled(discriminator)
    x, noise = images(2, 8, 4, 2), images(2, 4, 2, 3)

    @jax.jit
    @jax.grad
    def slopes(both):
        network, critic = both
        return jnp.sum(network(x, noise) ** 2) / 2 + jnp.mean(critic(images(2, 16, 12, 2)))

    @jax.jit
    def by_last(network):
        features = network.decoder.features(network.to_latents(x, noise))
        y, pull = jax.vjp(lambda last: last(features), network.decoder.unembed)
        return pull(y)[0].kernel[...]

    found = slopes((network, critic))
    for path, variable in nnx.to_flat_state(nnx.state(found)):
        assert float(jnp.abs(variable[...]).max()) > 0, path
    whole = found[0].decoder.unembed.kernel[...]
    np.testing.assert_allclose(by_last(network), whole, rtol=1e-3, atol=1e-4 * float(jnp.abs(whole).max()))


def test_patchgan_has_the_published_size():
    """Three layers of 64 channels for colour images: 2,764,737 numbers with biases in place of scales and shifts.

    That is what the authors' code prints for instance normalisation without parameters; with normalisations that have
    them, and therefore no biases in front, it is 896 more. An image of 256 x 256 gives 30 x 30 logits.
    """
    network = jax.eval_shape(lambda: Discriminator((256, 256, 3), rngs=nnx.Rngs(0)))
    assert sum(a.size for a in jax.tree.leaves(network)) == 2_764_737 + (128 + 256 + 512)
    assert jax.eval_shape(lambda n: n(jnp.zeros((1, 256, 256, 3))), network).shape == (1, 30, 30, 1)


def test_a_logit_does_not_depend_on_batch_mates():
    network = filled(discriminator)
    x = images(3, 16, 12, 2)
    first, other = (jax.jit(lambda n, x: n(x))(network, a) for a in (x, x.at[1:].multiply(2.0)))
    assert first.shape == (3, 2, 1, 1)
    np.testing.assert_allclose(first[0], other[0], atol=1e-5)
    assert float(jnp.abs(first - other)[1:].max()) > 1e-3


def test_names_and_types():
    for make in (autoencoder, discriminator):
        half = jax.eval_shape(lambda make=make: make(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
        for path, variable in nnx.to_flat_state(nnx.state(half, nnx.Param)):
            assert variable.dtype == jnp.bfloat16, path
            assert len(variable.get_metadata()["out_sharding"]) == len(variable.shape), path
        y = jax.eval_shape(lambda n: n(jnp.zeros((2, *n.image_shape))), half)
        assert y.dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_double_precision_stays():
    for make in (autoencoder, discriminator):
        fine = jax.eval_shape(lambda make=make: make(dtype=jnp.float64, param_dtype=jnp.float64))
        assert jax.eval_shape(lambda n: n(jnp.zeros((2, *n.image_shape))), fine).dtype == jnp.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: autoencoder(image_shape=(6, 5, 1)), "cannot be halved 1 times"),
        (lambda: autoencoder(groups=3), "groups=3 does not divide"),
        (lambda: autoencoder(latent_scale=0.0), "latent_scale must be above 0"),
        (lambda: autoencoder(blocks=0), "blocks must be at least 1"),
        (lambda: autoencoder()(images(2, 8, 8, 2)), r"expected images \(B, 8, 4, 2\), got \(2, 8, 8, 2\)"),
        (lambda: autoencoder().decode(images(2, 8, 8, 2)), r"expected latents \(B, 4, 2, 3\), got"),
        (lambda: discriminator((8, 16, 1), layers=3), "layers=3 needs images of 24 x 24 pixels, got 8 x 16"),
        (lambda: discriminator(groups=3), "groups=3 does not divide channels=4"),
        (lambda: discriminator()(images(2, 8, 8, 2)), r"expected images \(B, 16, 12, 2\), got"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)

"""Representation autoencoding: pixels, features, noise on tokens, an adversary in two steps, and a frozen encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

from flowjax.objectives import Assembled, Autoencoding, RepresentationAutoencoding
from flowjax.objectives.distances import perceptual
from flowjax.training import create_state, make_mesh, make_step


class Encoder(nnx.Module):
    """Tokens of six pixels, two layers of features at two places each."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)

    def features(self, images):
        h = jnp.tanh(self.first(images.reshape(-1, 2, 3)))
        return h, jnp.tanh(self.second(h))

    def encode(self, images):
        return self.features(images)[-1].reshape(-1, 1, 2, 5)


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.inner, self.unembed = nnx.Linear(10, 7, rngs=rngs), nnx.Linear(7, 6, rngs=rngs)

    def __call__(self, z):
        return self.unembed(jnp.tanh(self.inner(z.reshape(-1, 10))))


class Whole(nnx.Module):
    def __init__(self, encoder, decoder):
        self.encoder, self.decoder = encoder, decoder

    def encode(self, x):
        return self.encoder.encode((x + 1) / 2)

    def decode(self, z):
        return self.decoder(z)


X = jnp.tanh(jax.random.normal(jax.random.key(1), (4, 6)))
WAIT, JUDGE, PLAY = 2, 3, 5  # steps
OBJECTIVE = RepresentationAutoencoding(discriminator_start=3, start=5)


@pytest.fixture(scope="module")
def networks():
    return {
        "autoencoder": Whole(Encoder(nnx.Rngs(1)), Decoder(nnx.Rngs(0))),
        "discriminator": nnx.Linear(6, 2, rngs=nnx.Rngs(5)),
    }


@jax.jit
def _evaluate(objective, networks, draws):
    def mean(networks):
        loss, metrics = objective.loss(networks, draws)
        return loss.mean(), (loss, metrics)

    gradient, (loss, metrics) = jax.grad(mean, has_aux=True)(networks)
    return loss, metrics, gradient


def evaluate(objective, networks, step):
    return _evaluate(objective, networks, objective.draw(jax.random.key(2), {"x1": X}, step=step))


def by_numpy(networks, z):
    """The decoder's answer in float64 on tokens with noise, and what each example costs, term by term."""
    decoder, encoder = networks["autoencoder"].decoder, networks["autoencoder"].encoder
    weights = [
        [np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)]
        for layer in (decoder.inner, decoder.unembed, encoder.first, encoder.second)
    ]

    def reconstruct(last):
        hidden = np.tanh(np.asarray(z, np.float64).reshape(-1, 10) @ weights[0][0] + weights[0][1])
        return hidden @ last + weights[1][1]

    def features(images):
        h = np.tanh(images.reshape(-1, 2, 3) @ weights[2][0] + weights[2][1])
        return h, np.tanh(h @ weights[3][0] + weights[3][1])

    def costs(y):
        x = np.asarray(X, np.float64)
        pixels = np.abs((x + 1) / 2 - (y + 1) / 2).mean(1)
        layers = []
        for a, b in zip(features((x + 1) / 2), features((y + 1) / 2), strict=True):
            # |u - v|^2 = 2 - 2 cos of the angle between two vectors of length one
            cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
            layers.append((2 - 2 * cosine).mean(1))
        return pixels, np.mean(layers, 0)

    return reconstruct, costs, weights[1][0]


def noisy(objective, networks, step):
    """Tokens with the noise that the draws say."""
    draws = objective.draw(jax.random.key(2), {"x1": X}, step=step)
    z, _, _ = objective.latents(networks["autoencoder"], draws)
    return z


def test_losses_by_hand(networks):
    loss, metrics, _ = evaluate(OBJECTIVE, networks, PLAY)
    reconstruct, costs, last = by_numpy(networks, noisy(OBJECTIVE, networks, PLAY))
    y = reconstruct(last)
    pixels, seen = costs(y)
    np.testing.assert_allclose(metrics["pixels"], pixels, rtol=1e-4)
    np.testing.assert_allclose(metrics["perceptual"], seen, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(metrics["reconstruction"], pixels + seen, rtol=1e-4)
    kernel, bias = (
        np.asarray(v[...], np.float64) for v in (networks["discriminator"].kernel, networks["discriminator"].bias)
    )
    real, fake = np.asarray(X) @ kernel + bias, y @ kernel + bias
    np.testing.assert_allclose(metrics["generator"], -fake.mean(1), rtol=1e-3, atol=1e-5)
    hinge = (np.maximum(0, 1 - real).mean(1) + np.maximum(0, 1 + fake).mean(1)) / 2
    np.testing.assert_allclose(metrics["discriminator"], hinge, rtol=1e-4)
    total = pixels + seen + 0.75 * float(metrics["lambda"]) * -fake.mean(1) + hinge
    np.testing.assert_allclose(loss, total, rtol=1e-4)


def test_lambda_by_finite_differences_of_the_last_kernel(networks):
    """Both gradients of the mean losses with respect to it, number by number."""
    _, metrics, _ = evaluate(OBJECTIVE, networks, PLAY)
    reconstruct, costs, last = by_numpy(networks, noisy(OBJECTIVE, networks, PLAY))
    kernel, bias = (
        np.asarray(v[...], np.float64) for v in (networks["discriminator"].kernel, networks["discriminator"].bias)
    )
    losses = {
        "data": lambda last: np.add(*costs(reconstruct(last))).mean(),
        "judge": lambda last: -(reconstruct(last) @ kernel + bias).mean(),
    }
    lengths = {}
    for name, function in losses.items():
        slopes = []
        for index in np.ndindex(*last.shape):
            step = np.zeros_like(last)
            step[index] = 1e-6
            slopes.append((function(last + step) - function(last - step)) / 2e-6)
        lengths[name] = np.linalg.norm(slopes)
    np.testing.assert_allclose(metrics["lambda"], lengths["data"] / (lengths["judge"] + 1e-6), rtol=1e-3)


def test_gradients_are_those_of_the_losses_written_out(networks):
    _, metrics, gradient = evaluate(OBJECTIVE, networks, PLAY)
    z, whole, weight = noisy(OBJECTIVE, networks, PLAY), networks["autoencoder"], 0.75 * metrics["lambda"]

    def build(decoder):
        y = decoder(z)
        units = [
            [h / jnp.linalg.norm(h, axis=-1, keepdims=True) for h in whole.encoder.features((v + 1) / 2)]
            for v in (X, y)
        ]
        seen = sum(((a - b) ** 2).sum(-1).mean() for a, b in zip(*units, strict=True)) / 2
        return jnp.abs(X - y).mean() / 2 + seen - weight * networks["discriminator"](y).mean()

    def judge(discriminator):
        real, fake = discriminator(X), discriminator(whole.decoder(z))
        return ((jnp.maximum(0, 1 - real) + jnp.maximum(0, 1 + fake)) / 2).mean()

    expected = jax.jit(jax.grad(build))(whole.decoder), jax.jit(jax.grad(judge))(networks["discriminator"])
    found = gradient["autoencoder"].decoder, gradient["discriminator"]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_no_gradient_reaches_the_encoder_exactly(networks):
    for objective in (OBJECTIVE, dataclasses.replace(OBJECTIVE, extractor=networks["autoencoder"].encoder)):
        _, _, gradient = evaluate(objective, networks, PLAY)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["autoencoder"].encoder))
        assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["autoencoder"].decoder))


def test_the_discriminator_learns_before_it_is_heard(networks):
    found = {step: evaluate(OBJECTIVE, networks, step) for step in (WAIT, JUDGE, PLAY)}
    moved = {
        step: any(np.any(leaf) for leaf in jax.tree.leaves(g["discriminator"])) for step, (_, _, g) in found.items()
    }
    assert moved == {WAIT: False, JUDGE: True, PLAY: True}
    heard = {step: float(np.abs(metrics["generator"]).sum()) > 0 for step, (_, metrics, _) in found.items()}
    assert heard == {WAIT: False, JUDGE: False, PLAY: True}
    assert float(found[JUDGE][1]["lambda"]) == 0
    flags = jax.vmap(lambda step: OBJECTIVE.updates(step)["discriminator"])(jnp.arange(8))
    np.testing.assert_array_equal(flags, np.arange(8) >= 3)
    alone = dataclasses.replace(OBJECTIVE, adversary=None, discriminator_start=None)
    _, plainly, own = evaluate(alone, networks["autoencoder"], WAIT)
    assert set(plainly) == {"reconstruction", "pixels", "perceptual"}
    for step in (WAIT, JUDGE):
        for a, b in zip(jax.tree.leaves(found[step][2]["autoencoder"]), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_the_two_starts_are_one_unless_told(networks):
    once, apart = Autoencoding(start=4), Autoencoding(start=4, discriminator_start=4)
    assert once.draw(jax.random.key(0), {"x1": X}, step=4).judging is None
    for step in (3, 4):
        a, b = (objective.draw(jax.random.key(0), {"x1": X}, step=step) for objective in (once, apart))
        assert bool(a.adversarial) == bool(b.adversarial) == bool(b.judging) == (step == 4)
    assert RepresentationAutoencoding(adversary=None, discriminator_start=0).updates(3) == {}


def test_the_noise_on_tokens_has_a_size_of_its_own_for_each_example(networks):
    """With 4,000 examples: sizes uniform on [0, 0.8], directions normal, the same example always the same."""
    many = jnp.tile(X, (1000, 1))
    objective = RepresentationAutoencoding(noise=0.8)
    draw = jax.jit(lambda objective, x: objective.draw(jax.random.key(0), {"x1": x}))
    latents = jax.jit(lambda objective, draws: objective.latents(networks["autoencoder"], draws)[0])
    noise = np.asarray(latents(objective, draw(objective, many)) - networks["autoencoder"].encode(many), np.float64)
    few = np.asarray(latents(objective, draw(objective, many[:2])) - networks["autoencoder"].encode(many[:2]))
    np.testing.assert_allclose(few, noise[:2], atol=1e-6)
    sizes, ten = np.sqrt((noise**2).sum((1, 2, 3))), np.random.default_rng(0).normal(size=(100_000, 10))
    uniform = np.random.default_rng(1).uniform(0, 0.8, size=100_000)
    assert stats.ks_2samp(sizes, uniform * np.linalg.norm(ten, axis=1)).pvalue > 1e-3
    np.testing.assert_allclose((noise**2).mean(), 0.8**2 / 3, rtol=0.05)
    still = RepresentationAutoencoding(noise=0.0)
    np.testing.assert_allclose(latents(still, draw(still, X)), networks["autoencoder"].encode(X), atol=1e-6)


def test_features_of_another_network_or_of_none(networks):
    other = Encoder(nnx.Rngs(9))
    _, metrics, _ = evaluate(dataclasses.replace(OBJECTIVE, extractor=other), networks, WAIT)
    _, own, _ = evaluate(OBJECTIVE, networks, WAIT)
    y = networks["autoencoder"].decode(noisy(OBJECTIVE, networks, WAIT))
    np.testing.assert_allclose(metrics["perceptual"], perceptual(other.features, (X + 1) / 2, (y + 1) / 2), rtol=1e-4)
    assert float(np.abs(metrics["perceptual"] - own["perceptual"]).min()) > 1e-4
    _, none, _ = evaluate(dataclasses.replace(OBJECTIVE, perceptual_weight=0.0), networks, WAIT)
    np.testing.assert_allclose(none["reconstruction"], own["pixels"], rtol=1e-6)
    assert "perceptual" not in none


def test_the_distance_of_features():
    """Zero for the same image, 4 for features that are opposite everywhere, blind to their length."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    np.testing.assert_allclose(perceptual(lambda h: (h, 2 * h), x, x), 0)
    np.testing.assert_allclose(perceptual(lambda h: (h, 2 * h), x, -x), 4, rtol=1e-5)
    np.testing.assert_allclose(perceptual(lambda h: (h,), x, 3 * x), 0, atol=1e-6)
    slope = jax.grad(lambda x: perceptual(lambda h: (h,), x, jnp.ones_like(x)).sum())(jnp.zeros_like(x))
    assert np.isfinite(slope).all()


@pytest.mark.standard_promotion
def test_behind_an_assembled_encoder_training_leaves_its_bits(networks):
    encoder = networks["autoencoder"].encoder
    before = jax.tree.map(np.array, encoder)

    def combine(trained, frozen):
        return {**trained, "autoencoder": Whole(frozen["encoder"], trained["autoencoder"])}

    objective = Assembled(OBJECTIVE, frozen={"encoder": encoder}, combine=combine)
    optimizers = dict.fromkeys(networks, optax.adamw(1e-2, weight_decay=0.1))
    builds = {"autoencoder": lambda: Decoder(nnx.Rngs(0)), "discriminator": lambda: nnx.Linear(6, 2, rngs=nnx.Rngs(5))}
    state = create_state(builds, optimizers, make_mesh())
    step = jax.jit(make_step(optimizers))
    for _ in range(7):
        state, metrics = step(state, objective, {"x1": X}, jax.random.key(0))
    assert float(metrics["lambda"]) > 0
    jax.tree.map(np.testing.assert_array_equal, before, objective.frozen["encoder"])
    assert {label: count.tolist() for label, count in state.counts.items()} == {
        "autoencoder": [7, 0, 0],
        "discriminator": [4, 0, 0],
    }
    assert np.any(
        np.asarray(state.networks["autoencoder"].inner.kernel[...])
        != np.asarray(Decoder(nnx.Rngs(0)).inner.kernel[...])
    )


def test_what_does_not_fit_is_refused():
    for options, message in (
        ({"noise": -0.1}, "noise must be at least 0"),
        ({"perceptual_weight": float("nan")}, "perceptual_weight must be finite"),
        ({"discriminator_start": 6, "start": 5}, "discriminator_start=6 is behind start=5"),
        ({"discriminator_start": -1}, "discriminator_start must be at least 0"),
        ({"adversary": "hing"}, "did you mean 'hinge'"),
    ):
        with pytest.raises(ValueError, match=message):
            RepresentationAutoencoding(**options)

"""Autoencoding: the losses of both players, the weight between them, who moves whom, and when."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import integrate, stats

import flowjax as fj
from flowjax.objectives import Autoencoding
from flowjax.objectives.base import keys
from flowjax.training import create_state, make_mesh, make_step


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.inner, self.unembed = nnx.Linear(2, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, z):
        return self.unembed(jnp.tanh(self.inner(z.astype(self.inner.kernel.dtype))))


class Tiny(nnx.Module):
    """Three pixels, two latents."""

    def __init__(self, rngs):
        self.encoder, self.decoder = nnx.Linear(3, 4, rngs=rngs), Decoder(rngs)

    def encode(self, x):
        return tuple(jnp.split(self.encoder(x), 2, axis=-1))

    def decode(self, z):
        return self.decoder(z)


X = jax.random.normal(jax.random.key(1), (4, 3))
ON, OFF = ({"x1": X}, 7), ({"x1": X}, 6)  # batch and step


@pytest.fixture(scope="module")
def networks():
    return {"autoencoder": Tiny(nnx.Rngs(0)), "discriminator": nnx.Linear(3, 2, rngs=nnx.Rngs(5))}


@pytest.fixture(scope="module")
def played(networks):
    """Losses, metrics and gradients of the mean loss, at step 7."""
    objective = Autoencoding(start=7, kl_weight=0.1)
    return objective, *evaluate(objective, networks, *ON)


@jax.jit
def _evaluate(objective, networks, draws):
    def mean(networks):
        loss, metrics = objective.loss(networks, draws)
        return loss.mean(), (loss, metrics)

    gradient, (loss, metrics) = jax.grad(mean, has_aux=True)(networks)
    return loss, metrics, gradient


def evaluate(objective, networks, batch, step):
    return _evaluate(objective, networks, objective.draw(jax.random.key(2), batch, step=step))


def answer(objective, networks):
    """Posterior and answer on the draws of `evaluate`."""
    draws = objective.draw(jax.random.key(2), {"x1": X}, step=7)
    mean, log_variance = networks["autoencoder"].encode(X)
    noise = jnp.stack([jax.random.normal(key, (2,)) for key in keys(draws.seeds)])
    z = mean + jnp.sqrt(jnp.exp(log_variance)) * noise
    return mean, log_variance, z, networks["autoencoder"].decode(z)


def moved(gradient):
    return any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_losses_by_hand(networks, played):
    objective, loss, metrics, _ = played
    mean, log_variance, _, y = answer(objective, networks)
    np.testing.assert_allclose(metrics["reconstruction"], np.abs(X - y).sum(1), rtol=1e-5)
    real, fake = (np.asarray(networks["discriminator"](a)) for a in (X, y))
    hinge = [np.mean([max(0, 1 - r) for r in row]) + np.mean([max(0, 1 + f) for f in fakes])
             for row, fakes in zip(real, fake, strict=True)]  # fmt: skip
    np.testing.assert_allclose(metrics["discriminator"], np.array(hinge) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["generator"], -fake.mean(1), rtol=1e-4)
    total = metrics["reconstruction"] + 0.1 * metrics["kl"] + 0.5 * metrics["lambda"] * metrics["generator"]
    np.testing.assert_allclose(loss, total + metrics["discriminator"], rtol=1e-5)

    def divergence(mean, std):
        """Of one latent from the standard normal, by quadrature."""
        law = stats.norm(mean, std)
        ratio = lambda z: law.pdf(z) * (law.logpdf(z) - stats.norm.logpdf(z))  # noqa: E731
        return integrate.quad(ratio, mean - 10 * std, mean + 10 * std)[0]

    pairs = zip(np.ravel(mean), np.exp(np.ravel(log_variance) / 2), strict=True)
    np.testing.assert_allclose(metrics["kl"], np.reshape([divergence(*p) for p in pairs], (4, 2)).sum(1), rtol=1e-4)


class Squares:
    """One layer of features: the images and their squares."""

    def features(self, images):
        return [jnp.concatenate([images, images**2], axis=-1)]


def test_the_distance_of_features_counts_for_each_number(networks):
    objective = Autoencoding(start=7, kl_weight=0.1, perceptual_weight=2.0, extractor=Squares())
    draws = objective.draw(jax.random.key(2), *ON[:1], step=7)
    y = answer(objective, networks)[3]

    def units(x):
        h = np.concatenate([(x + 1) / 2, ((x + 1) / 2) ** 2], axis=-1)
        return h / np.linalg.norm(h, axis=-1, keepdims=True)

    apart = ((units(np.asarray(X)) - units(np.asarray(y))) ** 2).sum(-1)
    _, metrics = objective.loss(networks, draws)
    np.testing.assert_allclose(metrics["perceptual"], apart, rtol=1e-4)
    np.testing.assert_allclose(metrics["reconstruction"], np.abs(X - y).sum(1) + 2 * 3 * apart, rtol=1e-4)
    with pytest.raises(ValueError, match="needs a network with features"):
        Autoencoding(perceptual_weight=1.0).loss(networks, draws)


def test_squares_and_the_vanilla_loss(networks):
    objective = Autoencoding(reconstruction="l2", adversary="vanilla", start=7)
    _, metrics, gradient = evaluate(objective, networks, *ON)
    y = answer(objective, networks)[3]
    np.testing.assert_allclose(metrics["reconstruction"], ((X - y) ** 2).sum(1), rtol=1e-5)
    real, fake = (np.asarray(networks["discriminator"](a)) for a in (X, y))
    entropy = -(np.log(1 / (1 + np.exp(-real))).mean(1) + np.log(1 - 1 / (1 + np.exp(-fake))).mean(1)) / 2
    np.testing.assert_allclose(metrics["discriminator"], entropy, rtol=1e-4)
    assert moved(gradient["discriminator"])


def test_the_adversary_pulls_the_last_layer_as_hard_as_the_data(networks, played):
    """Lambda from two gradients of the whole autoencoder, of which the entry of the last kernel is taken."""
    objective, _, metrics, _ = played
    z = answer(objective, networks)[2]

    def parts(autoencoder):
        y = autoencoder.decode(z)
        return jnp.abs(X - y).sum(1).mean(), -networks["discriminator"](y).mean()

    by_data, by_judge = (
        np.linalg.norm(jax.grad(lambda a, i=i: parts(a)[i])(networks["autoencoder"]).decoder.unembed.kernel[...])
        for i in (0, 1)
    )
    np.testing.assert_allclose(metrics["lambda"], by_data / (by_judge + 1e-4), rtol=1e-4)
    louder = {**networks, "discriminator": jax.tree.map(lambda leaf: 10 * leaf, networks["discriminator"])}
    again = evaluate(objective, louder, *ON)[1]
    np.testing.assert_allclose(again["lambda"], metrics["lambda"] / 10, rtol=2e-2)


def test_each_loss_moves_its_own_network(networks, played):
    objective, _, metrics, gradient = played
    mean, log_variance, z, y = answer(objective, networks)
    noise, weight = (z - mean) / jnp.exp(log_variance / 2), 0.5 * metrics["lambda"]

    def judge(discriminator):
        real, fake = discriminator(X), discriminator(y)
        return ((jnp.maximum(0, 1 - real) + jnp.maximum(0, 1 + fake)) / 2).mean()

    def build(autoencoder):
        mean, log_variance = autoencoder.encode(X)
        fake = autoencoder.decode(mean + jnp.exp(log_variance / 2) * noise)
        divergence = (mean**2 + jnp.exp(log_variance) - log_variance).sum(1) / 2
        own = jnp.abs(X - fake).sum(1) + 0.1 * divergence
        return own.mean() - weight * networks["discriminator"](fake).mean()

    expected = {"discriminator": jax.grad(judge)(networks["discriminator"])}
    expected["autoencoder"] = jax.grad(build)(networks["autoencoder"])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_before_the_start_there_is_no_adversary(networks):
    objective = Autoencoding(start=7, kl_weight=0.1)
    loss, metrics, gradient = evaluate(objective, networks, *OFF)
    assert not moved(gradient["discriminator"])
    assert [float(np.sum(metrics[name])) for name in ("generator", "discriminator", "lambda")] == [0, 0, 0]
    alone = Autoencoding(adversary=None, kl_weight=0.1)
    plain, plainly, own = evaluate(alone, networks["autoencoder"], *OFF)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    assert set(plainly) == {"reconstruction", "kl"}
    for a, b in zip(jax.tree.leaves(gradient["autoencoder"]), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert alone.updates(0) == {}
    flags = jax.vmap(lambda step: objective.updates(step)["discriminator"])(jnp.arange(10))
    np.testing.assert_array_equal(flags, np.arange(10) >= 7)


def test_draws(networks):
    objective = Autoencoding(start=7)
    draw = jax.jit(lambda objective, batch, step: objective.draw(jax.random.key(0), batch, step=step))
    whole, part = draw(objective, {"x1": X}, 7), draw(objective, {"x1": X[:2]}, 6)
    np.testing.assert_array_equal(whole.seeds[:2], part.seeds)
    assert (bool(whole.adversarial), bool(part.adversarial)) == (True, False)
    assert len(np.unique(whole.seeds, axis=0)) == 4
    other = dataclasses.replace(whole, x1=2 * X)
    assert objective.loss(networks, other)[0].shape == (4,)


def test_a_silent_discriminator_has_a_bounded_weight(networks):
    silent = {**networks, "discriminator": jax.tree.map(jnp.zeros_like, networks["discriminator"])}
    loss, metrics, gradient = evaluate(Autoencoding(), silent, *ON)
    assert 0 < float(metrics["lambda"]) <= 1e4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradient)))


def test_the_networks_of_the_package_fit():
    shape, rngs, options = (8, 8, 1), nnx.Rngs, {"channels": 4, "groups": 2}
    build = {
        "autoencoder": lambda: fj.models.Autoencoder(shape, multipliers=(1, 2), **options, rngs=rngs(0)),
        "discriminator": lambda: fj.models.Discriminator(shape, layers=1, **options, rngs=rngs(0)),
    }
    shapes = {label: jax.eval_shape(make) for label, make in build.items()}
    objective = Autoencoding()
    draws = jax.eval_shape(lambda: objective.draw(jax.random.key(0), {"x1": jnp.ones((3, 8, 8, 1))}))
    gradient = jax.eval_shape(jax.grad(lambda networks, d: objective.loss(networks, d)[0].mean()), shapes, draws)
    assert jax.tree.structure(gradient) == jax.tree.structure(shapes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_losses_are_in_the_precision_of_the_answer_and_at_least_single(dtype, x64):
    double = dtype == "float64"
    fine = "float64" if double else "float32"

    def loss():
        networks = {
            "autoencoder": jax.tree.map(lambda leaf: leaf.astype(dtype), Tiny(nnx.Rngs(0))),
            "discriminator": nnx.Linear(3, 2, param_dtype=fine, rngs=nnx.Rngs(1)),
        }
        objective = Autoencoding()
        draws = objective.draw(jax.random.key(0), {"x1": jnp.ones((4, 3), dtype)})
        return objective.loss(networks, draws)

    assert {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(loss))} == {fine}


@pytest.mark.standard_promotion
def test_in_training_the_discriminator_rests_until_the_start(networks):
    objective, optimizer = Autoencoding(start=2), optax.sgd(1e-2)
    optimizers = dict.fromkeys(networks, optimizer)
    builds = {"autoencoder": lambda: Tiny(nnx.Rngs(0)), "discriminator": lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(5))}
    state = create_state(builds, optimizers, make_mesh())
    step, key = jax.jit(make_step(optimizers, accumulate=2)), jax.random.key(0)
    states = [state]
    for _ in range(3):
        states.append(step(states[-1], objective, {"x1": X}, jax.random.clone(key))[0])
    kernels = [np.asarray(state.networks["discriminator"].kernel[...]) for state in states]
    assert [np.array_equal(a, b) for a, b in itertools.pairwise(kernels)] == [True, True, False]
    assert {label: count.tolist() for label, count in states[-1].counts.items()} == {
        "autoencoder": [3, 0, 0],
        "discriminator": [1, 0, 0],
    }


def test_what_does_not_fit_is_refused(networks):
    for options, message in (
        ({"reconstruction": "l3"}, "unknown reconstruction 'l3'"),
        ({"adversary": "hing"}, "unknown adversary 'hing'; did you mean 'hinge'"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0"),
        ({"start": -1}, "start must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Autoencoding(**options)
    draws = Autoencoding().draw(jax.random.key(0), {"x1": X})
    for objective, given, message in (
        (Autoencoding(), networks["autoencoder"], "'hinge' trains autoencoder and discriminator, got network"),
        (Autoencoding(), {"autoencoder": None}, "trains autoencoder and discriminator, got autoencoder"),
        (Autoencoding(adversary=None), networks, "None trains autoencoder, got autoencoder, discriminator"),
        (Autoencoding(last="decoder.out.kernel"), networks, "has no last='decoder.out.kernel'"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.loss(given, draws)

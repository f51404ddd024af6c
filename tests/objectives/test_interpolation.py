"""Interpolant objectives, recipes, Schroedinger bridge."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problem import two_gaussians
from scipy.stats import kstest

from flowjax.objectives import (
    FlowMatching,
    Interpolation,
    InterpolationDraws,
    SchroedingerBridge,
    SiTWeight,
    sd3,
    sit,
    sit_interval,
    times,
)
from flowjax.paths import VP, Interpolant, Linear, Trig
from flowjax.times import shifted

FIELDS = ("velocity", "drift", "forward_drift", "score", "denoiser", "source", "data")


def fixed(x0, x1, z, t):
    return InterpolationDraws(x0=jnp.asarray(x0), x1=jnp.asarray(x1), z=jnp.asarray(z), t=jnp.asarray(t))


def batch_of(n, seed=0):
    rng = np.random.default_rng(seed)
    z = jnp.asarray(rng.standard_normal((2, n, 1)), jnp.float32)
    return {"x0": -1 + 0.5 * z[0], "x1": 1.5 + 0.8 * z[1]}


@pytest.mark.parametrize("prediction", FIELDS)
def test_minimiser_is_the_field(prediction):
    """Best affine network at one time, by least squares through the loss itself, against the closed form."""
    interpolant, t, eps = Interpolant(), 0.4, 0.3
    objective = Interpolation(
        interpolant=interpolant,
        prediction=prediction,
        diffusion=eps,
        times=times.Uniform(start=t, end=t),
    )
    draws = objective.draw(jax.random.key(0), batch_of(40_000))

    @jax.jit
    def fitted(objective, draws):
        def loss(theta):
            return jnp.mean(objective.loss(lambda x, t, cond: theta[0] + theta[1] * x, draws)[0])

        return -jnp.linalg.solve(jax.hessian(loss)(jnp.zeros(2)), jax.grad(loss)(jnp.zeros(2)))

    a, b = fitted(objective, draws)
    energy = dataclasses.replace(objective, form="energy")
    np.testing.assert_allclose(fitted(energy, draws), (a, b), rtol=1e-3, atol=1e-3)
    target, x = two_gaussians(interpolant), jnp.array([[0.0], [1.0]])
    if prediction == "forward_drift":
        exact = target.predict("velocity", t, x) + eps * target.predict("score", t, x)
    else:
        exact = target.predict(prediction, t, x)
    np.testing.assert_allclose([a, a + b], exact[:, 0], atol=0.05)


def test_loss_values_by_hand():
    """The published losses with a fixed network, in NumPy from the formulas of the paper (t, x0, x1, z given)."""
    rng = np.random.default_rng(1)
    x0, x1, z = rng.standard_normal((3, 5, 2)).astype(np.float32)
    t = rng.uniform(0.1, 0.9, 5).astype(np.float32)
    draws = fixed(x0, x1, z, t)
    wide = t[:, None]
    g, dg = np.sqrt(wide * (1 - wide)), (1 - 2 * wide) / (2 * np.sqrt(wide * (1 - wide)))

    def network(x, t, cond):
        return 0.5 * x + t[:, None]

    def at(sign):
        x = (1 - wide) * x0 + wide * x1 + sign * g * z
        return 0.5 * x + wide

    expected = {
        "velocity": sum((0.5 * at(s) ** 2 - (x1 - x0 + s * dg * z) * at(s)).sum(1) for s in (1, -1)),
        "score": sum((0.5 * at(s) ** 2 + s / g * z * at(s)).sum(1) for s in (1, -1)),
        "denoiser": (0.5 * at(1) ** 2 - z * at(1)).sum(1),
        "drift": (0.5 * at(1) ** 2 - (x1 - x0) * at(1)).sum(1),
    }
    for prediction, value in expected.items():
        loss, metrics = Interpolation(interpolant=Interpolant(), prediction=prediction, form="energy").loss(
            network, draws
        )
        np.testing.assert_allclose(loss, value, rtol=2e-5, atol=1e-5)
        assert metrics["mse"].shape == (5,)


@pytest.mark.parametrize("prediction", ["velocity", "score"])
def test_antithetic_pairs_keep_the_mean_and_bound_the_variance(prediction):
    """Same expected gradient; near t = 1 its variance is far smaller."""
    draws_of = {}
    gradients = {}
    for antithetic in (True, False):
        objective = Interpolation(
            interpolant=Interpolant(),
            prediction=prediction,
            antithetic=antithetic,
            times=times.Uniform(start=0.999, end=0.999),
        )
        draws = draws_of.setdefault(0, objective.draw(jax.random.key(0), batch_of(4000)))

        def gradient(draw, objective=objective):
            one = jax.tree.map(lambda a: a[None], draw)

            def loss(c):
                return objective.loss(lambda x, t, cond: c * x, one)[0][0]

            return jax.grad(loss)(0.3)

        gradients[antithetic] = np.asarray(jax.jit(jax.vmap(gradient))(draws))
    plain, paired = gradients[False], gradients[True]
    assert abs(plain.mean() - paired.mean()) < 4 * plain.std() / np.sqrt(4000)
    assert paired.std() < 0.25 * plain.std()


def test_one_sided_interpolation_is_flow_matching():
    path = Trig()
    draws = Interpolation(interpolant=Interpolant(form="one_sided", path=path), prediction="velocity").draw(
        jax.random.key(0), {"x1": jnp.ones((6, 2))}
    )
    one = Interpolation(interpolant=Interpolant(form="one_sided", path=path), antithetic=False)
    matching = FlowMatching(path=path)

    def network(x, t, cond):
        return jnp.sin(x)

    flow = matching.draw(jax.random.key(1), {"x1": draws.x1})
    flow = dataclasses.replace(flow, x0=draws.z, t=draws.t)
    np.testing.assert_allclose(one.loss(network, draws)[0], matching.loss(network, flow)[0], rtol=1e-5)


def test_point_to_law_bridge_drift_is_that_of_the_paper():
    """With g = sqrt(2 a t (1 - t)) the forward drift's target is d_t I - sqrt(2 a t / (1 - t)) z."""
    a = 0.7
    objective = Interpolation(interpolant=Interpolant(scale=2 * a), prediction="forward_drift", diffusion=a)
    rng = np.random.default_rng(0)
    x0, x1, z = rng.standard_normal((3, 4, 1)).astype(np.float32)
    t = np.array([0.1, 0.4, 0.6, 0.9], np.float32)
    target = objective.target(fixed(x0, x1, z, t), jnp.asarray(z))
    wide = t[:, None]
    np.testing.assert_allclose(target, x1 - x0 - np.sqrt(2 * a * wide / (1 - wide)) * z, rtol=1e-5)


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_sit_velocity_weighting_is_the_velocity_loss(path, prediction):
    """(lamv / sigma)^2 |e' - x0|^2 equals |v' - target|^2 of the same network, converted."""
    weighted = sit(path, prediction, "velocity")
    draws = weighted.draw(jax.random.key(0), {"x1": jnp.ones((8, 3))})
    draws = dataclasses.replace(draws, t=jnp.linspace(0.2, 0.9, 8))

    def velocity(x, t, cond):
        return jnp.cos(x) * t[:, None]

    def converted(x, t, cond):
        return path.convert(velocity(x, t, cond), given="velocity", to=prediction, t=t, x=x)

    ours, _ = weighted.loss(converted, draws)
    theirs, _ = FlowMatching(path=path).loss(velocity, draws)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)


def test_sit_weights_on_straight_lines():
    """lamv = (1 - t) / t: likelihood weight 1 / (t (1 - t)), velocity weight 1 / t^2."""
    t = jnp.array([0.25, 0.5, 0.8])
    np.testing.assert_allclose(SiTWeight(path=Linear(), weighting="likelihood")(t), 1 / (t * (1 - t)), rtol=1e-5)
    np.testing.assert_allclose(SiTWeight(path=Linear(), weighting="velocity")(t), 1 / t**2, rtol=1e-5)
    score = SiTWeight(path=Linear(), prediction="score")(t)
    np.testing.assert_allclose(score, (1 - t) ** 2, rtol=1e-5)


def test_recipes():
    # `check_interval` of willisma/SiT at 947f95b, with the defaults of `create_transport`.
    inside, late = (1e-3, 1 - 1e-3), (0, 1 - 1e-5)
    for path, prediction, expected in (
        *((path, "velocity", (0, 1)) for path in (Linear(), Trig())),
        *((path, prediction, inside) for path in (Linear(), Trig()) for prediction in ("noise", "score")),
        *((VP(), prediction, late) for prediction in ("velocity", "noise", "score")),
    ):
        law = sit(path, prediction).times
        assert (law.start, law.end) == expected
        other = sit(path, prediction, times=times.Uniform(start=0.2, end=0.3))
        assert (other.times.start, other.times.end) == (0.2, 0.3)
    assert isinstance(sd3().times, times.LogitNormal)
    assert sit(label_dropout=0.1, null=3).label_dropout == 0.1
    with pytest.raises(ValueError, match="velocity, noise or score, got 'data'"):
        sit(prediction="data")
    with pytest.raises(ValueError, match="no weighting"):
        sit(weighting="velocity")
    with pytest.raises(ValueError, match="weighting"):
        sit(prediction="noise", weighting="snr")


def test_sampling_intervals_of_sit():
    """The same function with eval=True."""
    for path, prediction, options, expected in (
        (Linear(), "velocity", {}, (0, 1)),
        (Trig(), "noise", {}, (1e-3, 1 - 1e-3)),
        (VP(), "velocity", {}, (0, 1 - 1e-3)),
        (VP(), "score", {}, (0, 1 - 1e-3)),
        (Linear(), "velocity", {"diffusion": "sigma"}, (0, 1)),
        (Linear(), "velocity", {"diffusion": "sbdm", "last_step": 0.04}, (1e-3, 1)),  # SiT: 0, where it is infinite
        (Trig(), "score", {"diffusion": "linear"}, (1e-3, 1 - 1e-3)),
        (VP(), "noise", {"diffusion": "sbdm"}, (0, 1 - 1e-3)),
        (VP(), "noise", {"diffusion": "sbdm", "last_step": 0.04}, (0, 1)),
    ):
        assert sit_interval(path, prediction, **options) == expected
    for options in ({"last_step": 0.04}, {"last_step": 1.0, "diffusion": "sigma"}):
        with pytest.raises(ValueError, match="last_step"):
            sit_interval(**options)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
def test_times_of_vp_reach_as_far_as_those_of_sit(prediction):
    """Up to 1 - 1e-5, and the loss stays finite there; without an end of their own times stop at 0.999."""
    batch = {"x1": jnp.ones((64, 2))}
    for last, objective in (
        (1 - 1e-5, sit(VP(), prediction, times=times.Uniform(start=1 - 1e-4, end=1 - 1e-5))),
        (1 - 1e-4, FlowMatching(path=VP(), prediction=prediction, times=times.Uniform(start=0.9999, end=0.9999))),
        (
            1.0 if prediction == "noise" else 1 - 1e-3,
            FlowMatching(path=VP(), prediction=prediction, times=times.Uniform(start=1 - 1e-9, end=1 - 1e-9)),
        ),
    ):
        draws = jax.jit(lambda o, key: o.draw(key, batch))(objective, jax.random.key(0))
        assert float(draws.t.max()) <= last + 1e-7
        assert float(draws.t.max()) > last - 2e-5
        assert np.isfinite(objective.loss(lambda x, t, cond: 0 * x, draws)[0]).all()


def test_time_laws_of_sd3():
    """Distribution functions from the inverse maps: the noise time r falls with the uniform u."""

    def draw(law):
        return np.asarray(jax.vmap(law.sample)(jax.random.split(jax.random.key(0), 20_000)))

    grid = np.linspace(0, 1, 4001)
    noise = 1 - grid - 1.29 * (np.cos(np.pi * grid / 2) ** 2 - 1 + grid)
    t = draw(times.Mode())
    assert kstest(t, lambda v: np.interp(v, 1 - noise, grid)).pvalue > 1e-3
    assert abs(np.median(t) - 0.5) < 0.02
    noise = 1 - 1 / (np.tan(np.pi * grid[:-1] / 2) + 1)
    t = draw(times.CosMap())
    assert kstest(1 - t, lambda v: np.interp(v, noise, grid[:-1])).pvalue > 1e-3
    t, moved = draw(times.Uniform()), draw(times.Shifted(times.Uniform(), shift=3.0))
    order = np.sort(t)
    np.testing.assert_allclose(np.sort(moved), shifted(order, 3.0), atol=1e-5)


@pytest.mark.slow
def test_schroedinger_bridge_between_gaussians():
    """N(0, 1) to N(0, 1), reference sqrt(2 eps) dW: the bridge keeps Var x_(1/2) near 1, straight lines halve it.

    Known answer: the static plan has covariance c = (sqrt(4 + s^4) - s^2) / 2 with s^2 = 2 eps, and the bridge the
    variance (1 - t)^2 + t^2 + 2 t (1 - t) c + s^2 t (1 - t). The players are polynomials in t times x, (x0 + x1).
    """
    eps = 0.1
    objective = SchroedingerBridge(diffusion=eps, times=times.Uniform(start=0.0, end=0.995))

    def powers(t, n):
        return jnp.stack([t**k for k in range(n)], axis=1)

    def networks(p):
        return {
            "velocity": jax.tree_util.Partial(
                lambda w, x, t, cond: jnp.sum(powers(2 * t - 1, 6) * w[None], axis=1)[:, None] * x, p["velocity"]
            ),
            "interpolant": jax.tree_util.Partial(
                lambda w, x, t, cond: (
                    jnp.sum(powers(2 * t - 1, 3) * w[None], axis=1)[:, None] * jnp.sum(x, axis=1, keepdims=True)
                ),
                p["interpolant"],
            ),
        }

    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 1500))
    parameters = {"velocity": jnp.zeros(6), "interpolant": jnp.zeros(3)}

    def step(carry, key):
        parameters, state = carry
        for_data, for_draws = jax.random.split(key)
        x = jax.random.normal(for_data, (2, 512, 1))
        draws = objective.draw(for_draws, {"x0": x[0], "x1": x[1]})
        gradient = jax.grad(lambda p: objective.loss(networks(p), draws)[0].mean())(parameters)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), None

    keys = jax.random.split(jax.random.key(0), 1500)
    (parameters, _), _ = jax.jit(lambda c, k: jax.lax.scan(step, c, k))((parameters, optimizer.init(parameters)), keys)
    t = np.array([0.25, 0.5, 0.75])
    c = (np.sqrt(4 + (2 * eps) ** 2) - 2 * eps) / 2
    known = (1 - t) ** 2 + t**2 + 2 * t * (1 - t) * c + 2 * eps * t * (1 - t)
    w = np.asarray(parameters["interpolant"])
    bend = t * (1 - t) * sum(w[k] * (2 * t - 1) ** k for k in range(3))
    variance = (1 - t + bend) ** 2 + (t + bend) ** 2 + 2 * eps * t * (1 - t)
    np.testing.assert_allclose(variance, known, atol=0.06)
    straight = (1 - t) ** 2 + t**2 + 2 * eps * t * (1 - t)
    assert np.all(np.abs(straight - known) > 0.3)
    drift = sum(np.asarray(parameters["velocity"])[k] * (2 * t - 1) ** k for k in range(6))
    slope = -2 * (1 - t) + 2 * t + 2 * (1 - 2 * t) * c + 2 * eps * (1 - 2 * t)
    np.testing.assert_allclose(drift, (slope / 2 - eps) / known, atol=0.15)  # u = b + eps s on a Gaussian


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interpolation(interpolant=Interpolant(), prediction="eps"), "not one of"),
        (lambda: Interpolation(interpolant=Interpolant(), form="mse"), "not one of"),
        (lambda: SchroedingerBridge(diffusion=0.0), "positive"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()

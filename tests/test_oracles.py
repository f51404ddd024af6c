"""Closed-form targets: numbers of an independent derivation, and the equations that define each quantity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.stats import norm

from flowjax import oracles
from flowjax.paths import PREDICTIONS, VE, VP, Cosine, Linear, Trig

PATHS = [Linear(), Trig(), VP(), Cosine(), VE(sigma_min=0.02, sigma_max=5.0)]
by_name = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# Shared by the tests, so that a law costs one compiled program and not one per operation of an eager call.
@jax.jit
def flow_map(target, x, t, end):
    return target.flow_map(x, t, end)


@jax.jit
def mean_velocity(target, x, t, end):
    return target.mean_velocity(x, t, end)


@jax.jit
def velocity(target, t, x):
    return target.velocity(t, x)


@jax.jit
def predictions(target, t, x, cond=None):
    return {name: target.predict(name, t, x, cond) for name in PREDICTIONS}


@jax.jit
def log_density(target, t, x, cond=None):
    return target.log_density(t, x, cond)


def targets(path):
    return [
        oracles.Gaussian(mean=np.array([0.7]), std=np.array([0.4]), path=path),
        oracles.Mixture.default(path),
    ]


def points(n=7, seed=0, dim=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, dim)))


def test_gaussian_numbers_of_the_mean_flow_identity():
    """N(2, 0.5^2), linear path, x = 0.3, t = 0.2, e = 0.9; derived by hand with V(t) = t^2 s^2 + (1-t)^2."""
    target = oracles.Gaussian(mean=2.0, std=0.5, path=Linear())
    x, t, e = jnp.array([0.3]), jnp.array([0.2]), jnp.array([0.9])
    v = velocity(target, t, x)
    along = jax.jit(lambda v: jax.jvp(lambda x, t: target.mean_velocity(x, t, e), (x, t), (v, jnp.ones(1))))
    u, du = along(v)
    np.testing.assert_allclose(u[0], 2.0611754464, atol=1e-10)
    np.testing.assert_allclose(v[0], 2.1153846154, atol=1e-10)
    np.testing.assert_allclose(du[0], -0.0774416699, atol=1e-10)
    np.testing.assert_allclose(v + (e - t) * du, u, atol=1e-12)
    np.testing.assert_allclose(v - (e - t) * du, 2.1695937843, atol=1e-10)
    np.testing.assert_allclose(flow_map(target, x, 0.0, 1.0), 2.15, atol=1e-12)


def test_single_point_target_maps_everything_to_the_point():
    target = oracles.Gaussian(mean=-0.8, std=0.0, path=Linear())
    x, t = points(), jnp.linspace(0.0, 0.9, 7)
    np.testing.assert_allclose(flow_map(target, x, t, 1.0), np.full((7, 1), -0.8), atol=1e-12)
    expected = (-0.8 - x) / (1 - t)[:, None]
    for end in (0.95, 1.0):
        np.testing.assert_allclose(mean_velocity(target, x, t, end), expected, atol=1e-11)


@by_name
def test_predictions_agree_with_the_converter(path):
    x, t = points(dim=2), jnp.linspace(0.1, 0.9, 7)
    target = oracles.Mixture.default(path, dim=2)
    exact = predictions(target, t, x)

    @jax.jit
    def converted(exact):
        return {
            (given, to): path.convert(value, given=given, to=to, t=t, x=x)
            for given, value in exact.items()
            for to in PREDICTIONS
        }

    for (_, to), value in converted(exact).items():
        np.testing.assert_allclose(value, exact[to], rtol=1e-8, atol=1e-8)


@by_name
def test_score_is_the_gradient_of_the_log_density(path):
    x, t = points(dim=2), jnp.linspace(0.05, 0.95, 7)
    target = oracles.Mixture.default(path, dim=2)
    score, gradient = jax.jit(lambda x: (target.score(t, x), jax.grad(lambda x: jnp.sum(target.log_density(t, x)))(x)))(
        x
    )
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-10)


@by_name
def test_posterior_mean_by_numerical_integration(path):
    """E[x1 | x_t = x] from Bayes' rule with the definition x_t = alpha x1 + sigma x0, integrated over x1."""
    target, t, x = oracles.Mixture.default(path), 0.6, 0.4
    weights, means, stds = (
        np.array([0.3, 0.25, 0.45]),
        np.array([-1.4, 0.2, 1.3]),
        np.array([0.35, 0.25, 0.3]),
    )

    def joint(y, power):
        likelihood = norm.pdf(x, float(path.alpha(t)) * y, float(path.sigma(t)))
        return y**power * likelihood * np.sum(weights * norm.pdf(y, means, stds))

    breaks = np.linspace(-3, 3, 13)
    top, bottom = (quad(joint, -4, 4, args=(power,), points=breaks, limit=400)[0] for power in (1, 0))
    data, log = jax.jit(lambda x: (target.data(t, x), target.log_density(t, x)))(jnp.array([[x]]))
    np.testing.assert_allclose(data[0, 0], top / bottom, rtol=1e-7)
    np.testing.assert_allclose(log[0], np.log(bottom), rtol=1e-7)


@by_name
def test_density_integrates_to_one(path):
    grid = np.linspace(-30, 30, 60_001)
    for target in targets(path):
        for t in (0.0, 0.3, 1.0):
            density = np.exp(log_density(target, t, grid[:, None]))
            np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, atol=1e-8)


@by_name
def test_velocity_satisfies_the_continuity_equation(path):
    """d/dt p + d/dx (p v) = 0 by central differences."""
    h, t, x = 1e-4, 0.55, jnp.linspace(-2, 2, 9)[:, None]

    @jax.jit
    def residual(target):
        def density(t, x):
            return jnp.exp(target.log_density(t, x))

        def flux(x):
            return density(t, x) * target.velocity(t, x)[:, 0]

        return (density(t + h, x) - density(t - h, x) + flux(x + h) - flux(x - h)) / (2 * h)

    for target in targets(path):
        np.testing.assert_allclose(residual(target), 0.0, atol=2e-5)


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()], ids=lambda p: type(p).__name__)
def test_flow_map_solves_the_ode_composes_and_inverts(path):
    x = jnp.array([[-1.1], [0.05], [0.9]])
    for target in targets(path):

        def slope(t, y, target=target):
            return np.asarray(velocity(target, jnp.asarray(t), jnp.asarray(y[:, None])))[:, 0]

        solution = solve_ivp(slope, (0.1, 0.8), np.asarray(x[:, 0]), rtol=1e-10, atol=1e-12)
        image = flow_map(target, x, 0.1, 0.8)
        np.testing.assert_allclose(image[:, 0], solution.y[:, -1], atol=1e-7)
        halfway = flow_map(target, x, 0.1, 0.5)
        np.testing.assert_allclose(flow_map(target, halfway, 0.5, 0.8), image, atol=1e-10)
        np.testing.assert_allclose(flow_map(target, image, 0.8, 0.1), x, atol=1e-10)


def test_mean_velocity_composes_and_has_the_velocity_as_its_limit():
    """(e-t) U(x,t,e) = (s-t) U(x,t,s) + (e-s) U(X(x,t,s),s,e), and U(x,t,t) = v."""
    for target in targets(Linear()):
        x, t, s, e = points(5), 0.1, 0.4, 0.95
        whole = (e - t) * mean_velocity(target, x, t, e)
        first = (s - t) * mean_velocity(target, x, t, s)
        second = (e - s) * mean_velocity(target, flow_map(target, x, t, s), s, e)
        np.testing.assert_allclose(whole, first + second, atol=1e-10)
        np.testing.assert_allclose(mean_velocity(target, x, t, t), velocity(target, t, x), atol=1e-14)


def test_mixture_flow_map_is_accurate_in_the_tails():
    """Far out the flow map of a mixture is monotone and follows the outermost component."""
    target = oracles.Mixture.default(Linear())
    x = jnp.array([[-30.0], [-9.0], [-8.0], [8.0], [9.0], [30.0]])
    image = flow_map(target, x, 0.0, 1.0)
    assert bool(jnp.all(jnp.diff(image[:, 0]) > 0))
    np.testing.assert_allclose(flow_map(target, image, 1.0, 0.0), x, rtol=1e-9)


@by_name
def test_samples_and_flowed_starts_have_the_stated_moments(path):
    weights, means, stds = (
        np.array([0.3, 0.25, 0.45]),
        np.array([-1.4, 0.2, 1.3]),
        np.array([0.35, 0.25, 0.3]),
    )
    mean, n = np.sum(weights * means), 40_000
    variance = np.sum(weights * (stds**2 + means**2)) - mean**2
    target = oracles.Mixture.default(path)
    drawn = target.sample(jax.random.key(0), n)
    x0, x1 = jax.random.normal(jax.random.key(1), (4_000, 1)), target.sample(jax.random.key(2), 4_000)
    flowed = flow_map(target, path.interpolate(0.0, x0, x1), 0.0, 1.0)
    for x in (drawn, flowed):
        assert abs(float(x.mean()) - mean) < 4 * np.sqrt(variance / len(x))
        assert abs(float(x.var()) - variance) < 4 * variance * np.sqrt(2 / len(x))


def test_conditions_select_components():
    target = oracles.Mixture.default(Linear(), dim=2)
    x, t = points(4, dim=2), jnp.full(4, 0.4)
    for k in range(3):
        alone = oracles.Gaussian(mean=target.means[k], std=target.stds[k], path=Linear())
        cond = jnp.full(4, k, jnp.int32)
        selected, expected = predictions(target, t, x, cond), predictions(alone, t, x)
        for prediction in ("velocity", "noise", "data", "score"):
            np.testing.assert_allclose(selected[prediction], expected[prediction], atol=1e-12)
        np.testing.assert_allclose(log_density(target, t, x, cond), log_density(alone, t, x), atol=1e-12)
    whole = predictions(target, t, x, jnp.full(4, target.num_classes, jnp.int32))["velocity"]
    np.testing.assert_allclose(whole, predictions(target, t, x)["velocity"], atol=1e-14)
    drawn = target.sample(jax.random.key(0), 3_000, jnp.repeat(jnp.arange(3), 1_000))
    for k, group in enumerate(np.split(np.asarray(drawn), 3)):
        np.testing.assert_allclose(group.mean(0), target.means[k], atol=0.05)


@by_name
def test_everything_is_finite_at_both_ends(path):
    x = points()
    for target in targets(path):
        for t in (jnp.zeros(7), jnp.ones(7)):
            assert bool(np.all(np.isfinite(list(predictions(target, t, x).values()))))


@pytest.mark.slow
def test_network_has_the_calling_convention_and_is_a_pytree():
    target = oracles.Mixture.default(Linear())
    x, t = points(), jnp.linspace(0, 1, 7)
    call = jax.jit(lambda network, x, t: network(x, t, cond=None))
    np.testing.assert_allclose(call(target.network("noise"), x, t), predictions(target, t, x)["noise"], atol=1e-14)
    spans = jax.jit(lambda network, x, t, end=None: network(x, t, end=end))
    network = target.network("mean_velocity")
    np.testing.assert_allclose(spans(network, x, t), velocity(target, t, x), atol=1e-14)
    np.testing.assert_allclose(spans(network, x, t, jnp.ones(7)), mean_velocity(target, x, t, 1.0), atol=1e-12)


def test_float32_in_gives_float32_out():
    x = jnp.zeros((3, 1), jnp.float32)
    for target in targets(Cosine()):
        assert jax.eval_shape(target.velocity, jnp.full(3, 0.5, jnp.float32), x).dtype == jnp.float32
        assert jax.eval_shape(lambda x, target=target: target.flow_map(x, 0.1, 0.7), x).dtype == jnp.float32


def test_refuses_misuse():
    with pytest.raises(ValueError, match="unknown"):
        oracles.Mixture.default(Linear()).predict("epsilon", 0.5, points())
    with pytest.raises(ValueError, match="one-dimensional"):
        oracles.Mixture.default(Linear(), dim=2).flow_map(points(dim=2), 0.1, 0.2)
    with pytest.raises(ValueError, match="expected weights"):
        oracles.Mixture(weights=np.ones(2), means=np.zeros((3, 1)), stds=1.0, path=Linear())
    with pytest.raises(ValueError, match="expected states"):
        oracles.Mixture.default(Linear()).velocity(0.5, points(dim=2))

"""Likelihood by the probability-flow ODE, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import flowjax as fj
from flowjax.flow import Field
from flowjax.likelihood import bits_per_dim, dequantize, log_likelihood
from flowjax.oracles import Gaussian, Mixture
from flowjax.paths import VP, Linear, Trig


class Exact(Field):
    """The velocity of a closed-form target in the precision of x: a `Flow` rounds its times to float32."""

    def __init__(self, target):
        self.path, self.target = target.path, target

    def init(self, x, times=None):
        return None

    def evaluate(self, t, x, cond, memory, *, to="velocity", **extra):
        return self.target.predict(to, t, x, cond), memory


def normal(x, mean, std):
    return norm.logpdf(np.asarray(x), mean, std).sum(1)


@pytest.mark.parametrize("path", [Linear(), Trig()], ids=lambda p: type(p).__name__)
def test_gaussian_to_six_digits(path):
    """Exact divergence in float64, three dimensions, far into the tail."""
    with jax.enable_x64(True):
        x = jnp.asarray(1.5 + 0.4 * np.array([[0.3, -1.2, 2.0], [3.0, 0.0, -4.0]]))
        result = log_likelihood(Exact(Gaussian(mean=1.5, std=0.4, path=path)), x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(result.log_density, normal(x, 1.5, 0.4), atol=1e-6)
        np.testing.assert_allclose(result.x, (x - 1.5) / 0.4, atol=1e-6)


def test_single_precision_and_vp():
    x = jnp.array([[0.2, 0.9], [-0.4, 1.1]])
    flow = fj.Flow(Gaussian(mean=0.5, std=0.6, path=Linear()).network("noise"), path=Linear(), prediction="noise")
    with pytest.raises(ValueError, match="move the start"):
        log_likelihood(flow, x)
    target = Gaussian(mean=0.5, std=0.6, path=VP())
    result = log_likelihood(fj.Flow(target.network(), path=VP()), x, end=0.999)
    exact = np.asarray(target.log_density(0.999, x))
    np.testing.assert_allclose(result.log_density, exact, atol=5e-3)  # the source is N(0, 1) to 1e-5
    with pytest.raises(ValueError, match="infinite at t = 1"):
        log_likelihood(fj.Flow(target.network(), path=VP()), x)


def test_density_integrates_to_one_and_is_that_of_the_mixture():
    target = Mixture.default(Linear())
    grid = jnp.linspace(-3, 3, 241)[:, None]
    density = np.exp(log_likelihood(fj.Flow(target.network(), path=Linear()), grid).log_density)
    assert np.trapezoid(density, np.asarray(grid)[:, 0]) == pytest.approx(1, abs=2e-3)
    np.testing.assert_allclose(density, np.exp(target.log_density(1.0, grid)), atol=2e-3)


@pytest.mark.slow
def test_hutchinson_is_unbiased_with_one_probe_per_solve():
    """Linear field dx/dt = A x: divergence tr A; the estimate of one probe r is r . A r, constant over the solve."""
    a = jnp.array([[0.3, 0.8], [-0.2, 0.5]])
    flow = fj.Flow(lambda x, t, cond: x @ a.T, path=Linear())
    x = jnp.ones((400, 2))
    key = jax.random.key(0)
    estimates = log_likelihood(flow, x, divergence="hutchinson", key=key)
    exact = log_likelihood(flow, x)
    change = np.asarray(estimates.log_density - exact.log_density)  # tr A - r . A r = -(a_12 + a_21) r_1 r_2
    np.testing.assert_allclose(np.abs(change), 0.6, atol=1e-3)
    assert abs(change.mean()) < 4 * 0.6 / np.sqrt(400)
    part = log_likelihood(flow, x[7:9], divergence="hutchinson", key=key, index=7)
    np.testing.assert_allclose(part.log_density, estimates.log_density[7:9], atol=1e-4)
    gaussian = log_likelihood(flow, x, divergence="hutchinson", probe="gaussian", key=key)
    spread = np.asarray(gaussian.log_density - exact.log_density)
    assert abs(spread.mean()) < 4 * spread.std() / np.sqrt(400)


def test_there_and_back():
    flow = fj.Flow(Mixture.default(Linear()).network(), path=Linear())
    x = jnp.array([[-1.3], [0.4], [1.2]])
    start = log_likelihood(flow, x, rtol=1e-6, atol=1e-6).x
    back = fj.solve(flow, fj.solvers.Adaptive(rtol=1e-6, atol=1e-6), start, fj.times.uniform(1)).x
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_gradients():
    """d log p / dx is the score of the data; d log p / d mean is its negative. Also under a custom prior."""
    x = jnp.array([[0.2], [0.9]])

    def total(mean, x):
        flow = fj.Flow(Gaussian(mean=mean, std=0.5, path=Linear()).network(), path=Linear())
        return log_likelihood(flow, x).log_density.sum()

    by_mean, by_x = jax.grad(total, argnums=(0, 1))(jnp.float32(0.4), x)
    np.testing.assert_allclose(by_x, -(x - 0.4) / 0.25, atol=2e-3)
    np.testing.assert_allclose(by_mean, jnp.sum((x - 0.4) / 0.25), atol=2e-3)
    still = fj.Flow(lambda x, t, cond: 0 * x, path=Linear())
    same = log_likelihood(still, x, log_prior=lambda y: -jnp.abs(y[:, 0]))
    np.testing.assert_allclose(same.log_density, -jnp.abs(x[:, 0]), atol=1e-6)


def test_bits_per_dimension():
    """A uniform law over 256 levels has 8 bits per dimension, in any normalisation."""
    x = dequantize(jax.random.key(0), jnp.full((5, 3), 7.0))
    assert float(x.min()) >= 7
    assert float(x.max()) < 8
    np.testing.assert_array_equal(dequantize(jax.random.key(0), jnp.full((2, 3), 7.0), index=3), x[3:])
    log_density = jnp.full(4, -3 * np.log(256 / 127.5))  # of (y - shift) / 127.5
    np.testing.assert_allclose(bits_per_dim(log_density, 3, scale=127.5), 8, rtol=1e-6)


def test_refusals():
    flow, x = fj.Flow(lambda x, t, cond: x, path=Linear()), jnp.zeros((1, 1))
    for options, message in (
        ({"divergence": "trace"}, "not one of"),
        ({"probe": "cauchy", "divergence": "hutchinson"}, "not one of"),
        ({"divergence": "hutchinson"}, "key="),
        ({"start": 0.7, "end": 0.2}, "start < end"),
    ):
        with pytest.raises(ValueError, match=message):
            log_likelihood(flow, x, **options)

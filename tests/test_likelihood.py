"""Likelihood by the probability-flow ODE, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.linalg import expm
from scipy.stats import norm

import flowjax as fj
from flowjax.likelihood import bits_per_dim, dequantize, log_likelihood
from flowjax.models import DiT
from flowjax.oracles import Gaussian, Mixture
from flowjax.paths import VP, Linear, Trig


def normal(x, mean, std):
    return norm.logpdf(np.asarray(x), mean, std).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("path", [Linear(), Trig()], ids=lambda p: type(p).__name__)
def test_gaussian_to_the_tolerance_asked_for(path):
    """Exact divergence in float64, three dimensions, far into the tail: errors fall with the tolerance."""
    with jax.enable_x64(True):
        x = jnp.asarray(1.5 + 0.4 * np.array([[0.3, -1.2, 2.0], [3.0, 0.0, -4.0]]))
        flow = fj.Flow(Gaussian(mean=1.5, std=0.4, path=path).network(), path=path)
        for tolerance in (1e-9, 1e-11):
            result = log_likelihood(flow, x, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(result.log_density, normal(x, 1.5, 0.4), atol=50 * tolerance)
            np.testing.assert_allclose(result.x, (x - 1.5) / 0.4, atol=50 * tolerance)


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


@pytest.mark.slow
def test_density_integrates_to_one_and_the_way_leads_back():
    target = Mixture.default(Linear())
    flow, grid = fj.Flow(target.network(), path=Linear()), jnp.linspace(-3, 3, 241)[:, None]
    found = log_likelihood(flow, grid)
    density = np.exp(found.log_density)
    assert np.trapezoid(density, np.asarray(grid)[:, 0]) == pytest.approx(1, abs=2e-3)
    np.testing.assert_allclose(density, np.exp(target.log_density(1.0, grid)), atol=2e-3)
    back = fj.solve(flow, fj.solvers.Adaptive(rtol=1e-5, atol=1e-5), found.x, fj.times.uniform(1)).x
    np.testing.assert_allclose(back, grid, atol=1e-3)


def test_hutchinson_is_unbiased_with_one_probe_per_solve():
    """Field dx/dt = A x: divergence tr A = 0; the estimate of one probe r, held fixed, is r . A r = 0.6 r_1 r_2."""
    a = jnp.array([[0.0, 0.8], [-0.2, 0.0]])
    flow = fj.Flow(lambda x, t, cond: x @ a.T, path=Linear())
    x, key = jnp.ones((400, 2)), jax.random.key(0)
    start = np.asarray(x, np.float64) @ expm(-np.asarray(a, np.float64)).T
    exact = normal(start, 0, 1)  # tr A = 0
    estimates = np.asarray(log_likelihood(flow, x, divergence="hutchinson", key=key).log_density)
    np.testing.assert_allclose(np.abs(estimates - exact), 0.6, atol=2e-3)
    assert abs((estimates - exact).mean()) < 4 * 0.6 / np.sqrt(400)
    moved = log_likelihood(flow, x, divergence="hutchinson", key=key, index=7)
    np.testing.assert_allclose(moved.log_density[:-7], estimates[7:], atol=1e-5)


@pytest.mark.slow
def test_gaussian_probes_are_unbiased():
    a = jnp.array([[0.3, 0.8], [-0.2, 0.5]])
    flow, x = fj.Flow(lambda x, t, cond: x @ a.T, path=Linear()), jnp.ones((400, 2))
    found = log_likelihood(flow, x, divergence="hutchinson", probe="gaussian", key=jax.random.key(0))
    spread = np.asarray(found.log_density - log_likelihood(flow, x).log_density)
    assert abs(spread.mean()) < 4 * spread.std() / np.sqrt(400)


def test_a_second_call_compiles_nothing_and_the_prior_may_be_another():
    """Field dx/dt = -x: the start of x is e x and the divergence -1."""
    traces, x = [], jnp.asarray([[0.5], [2.0]])
    flow = fj.Flow(lambda x, t, cond: traces.append(1) or -x, path=Linear())
    found = log_likelihood(flow, x)
    np.testing.assert_allclose(found.log_density, normal(np.e * np.asarray(x), 0, 1) + 1, atol=1e-4)
    seen = len(traces)
    found = log_likelihood(flow, 2 * x, log_prior=lambda y: -jnp.abs(y[:, 0]))
    np.testing.assert_allclose(found.log_density, 1 - 2 * np.e * x[:, 0], atol=1e-4)
    assert len(traces) == seen


@pytest.mark.slow
def test_gradients():
    """d log p / dx is the score of the data; d log p / d mean is its negative."""
    x = jnp.array([[0.2], [0.9]])

    def total(mean, x):
        flow = fj.Flow(Gaussian(mean=mean, std=0.5, path=Linear()).network(), path=Linear())
        return log_likelihood(flow, x).log_density.sum()

    by_mean, by_x = jax.grad(total, argnums=(0, 1))(jnp.float32(0.4), x)
    np.testing.assert_allclose(by_x, -(x - 0.4) / 0.25, atol=2e-3)
    np.testing.assert_allclose(by_mean, jnp.sum((x - 0.4) / 0.25), atol=2e-3)


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
        ({"start": float("nan")}, "start < end"),
        ({"rtol": float("nan")}, "rtol must be finite"),
        ({"atol": -1.0}, "atol must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            log_likelihood(flow, x, **options)


def test_networks_without_forward_derivative_are_refused():
    options = {"patch": 2, "width": 8, "depth": 1, "heads": 2, "attention": "cudnn", "dtype": jnp.bfloat16}
    network = jax.eval_shape(lambda: DiT((2, 2, 1), **options, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"cudnn.*no forward derivative"):
        log_likelihood(fj.Flow(network, path=Linear()), jnp.zeros((1, 2, 2, 1)))

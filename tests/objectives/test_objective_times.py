"""Distributions of training times."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kstest, norm

from flowjax.objectives import times


def draw(law, n=20_000):
    return np.asarray(jax.vmap(law.sample)(jax.random.split(jax.random.key(0), n)))


def test_uniform_fills_its_interval():
    for start, end in ((0.0, 1.0), (0.2, 0.7)):
        t = draw(times.Uniform(start=start, end=end))
        assert t.dtype == np.float32
        assert t.min() >= start
        assert t.max() <= end
        assert kstest(t, "uniform", (start, end - start)).pvalue > 1e-3


def test_centred_logit_normal_is_symmetric():
    t = draw(times.LogitNormal())
    assert abs(t.mean() - 0.5) < 4 * t.std() / np.sqrt(len(t))
    assert abs((t < 0.5).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(t))


def test_logit_normal_has_the_stated_law():
    """P(t < c) = Phi((logit c - mean) / std); a positive mean moves towards the data."""
    t = draw(times.LogitNormal(mean=0.4, std=1.3))
    for c in (0.1, 0.5, 0.8):
        expected = norm.cdf((np.log(c / (1 - c)) - 0.4) / 1.3)
        assert abs((t < c).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(t))


def test_parameters_may_be_traced():
    sample = jax.jit(lambda law: law.sample(jax.random.key(3)))
    assert sample(times.Uniform(start=0.5, end=0.5)) == jnp.float32(0.5)
    assert sample(times.LogitNormal(mean=0.0, std=0.0)) == jnp.float32(0.5)
    assert sample._cache_size() == 2

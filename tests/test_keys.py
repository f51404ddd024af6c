"""Noise that belongs to a sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

import flowjax as fj

KEY = jax.random.key(3)


def test_a_sample_depends_on_its_global_index_only():
    whole = fj.noise(KEY, (8, 3, 2))
    assert whole.dtype == jnp.float32
    parts = [fj.noise(KEY, (4, 3, 2), 0), fj.noise(KEY, (4, 3, 2), index=4)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    for i in range(8):
        np.testing.assert_array_equal(whole[i : i + 1], fj.noise(KEY, (1, 3, 2), index=i))


def test_all_samples_and_keys_differ():
    a, b = fj.noise(KEY, (64, 2)), fj.noise(jax.random.key(4), (64, 2))
    values = np.concatenate([a, b]).ravel()
    assert len(np.unique(values)) == values.size


def test_standard_normal():
    x = np.asarray(fj.noise(KEY, (4096, 4))).astype(np.float64)
    assert kstest(x.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(np.concatenate([x[:-1], x[1:]], axis=1).T) - np.eye(8)
    assert np.abs(correlation).max() < 5 / np.sqrt(4095)


def test_under_transformations():
    eager = fj.noise(KEY, (5, 2), index=7)
    jitted = jax.jit(lambda key, index: fj.noise(key, (5, 2), index))
    np.testing.assert_array_equal(jitted(KEY, 7), eager)
    np.testing.assert_array_equal(jitted(KEY, jnp.int32(7)), eager)
    each = jax.vmap(lambda i: fj.noise(KEY, (1, 2), i))(jnp.arange(7, 12))
    np.testing.assert_array_equal(each[:, 0], eager)
    keys = jax.vmap(lambda k: fj.noise(k, (5, 2)))(jax.random.split(KEY, 2))
    assert not np.array_equal(keys[0], keys[1])


def test_large_indices_do_not_wrap():
    np.testing.assert_array_equal(fj.noise(KEY, (2, 3), index=2**32 - 2)[1:], fj.noise(KEY, (1, 3), index=2**32 - 1))
    with pytest.raises(OverflowError):
        fj.noise(KEY, (2, 3), index=2**32)


def test_other_precisions():
    assert fj.noise(KEY, (2, 3), dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert fj.noise(KEY, (4,)).shape == (4,)

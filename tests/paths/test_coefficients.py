"""Coefficients of the paths: known values, derivatives, signal-to-noise ratio and its inverse, precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths import VE, VP, Cosine, Linear, Trig

PATHS = [Linear(), Trig(), VP(), Cosine(), VE(sigma_min=0.02, sigma_max=5.0)]
by_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
INSIDE = np.linspace(0.004, 0.996, 125)
NAMES = ("alpha", "sigma", "dalpha", "dsigma", "sigma_dsigma", "lam")


@pytest.mark.parametrize(
    ("path", "alpha", "sigma"),
    [  # (at 0, at 1/2, at 1), by hand
        (Linear(), (0, 0.5, 1), (1, 0.5, 0)),
        (Trig(), (0, math.sqrt(0.5), 1), (1, math.sqrt(0.5), 0)),
        (VP(beta_min=0.1, beta_max=20.0), (math.exp(-5.025), math.exp(-19.9 / 16 - 0.025), 1), (None, None, 0)),
        (Cosine(), (0, math.cos(0.508 / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2), 1), (1, None, 0)),
        (VE(sigma_min=0.02, sigma_max=5.0), (1, 1, 1), (5.0, math.sqrt(0.02 * 5.0), 0.02)),
    ],
    ids=lambda p: type(p).__name__,
)
def test_known_values(path, alpha, sigma):
    for t, a, s in zip((0.0, 0.5, 1.0), alpha, sigma, strict=True):
        np.testing.assert_allclose(path.alpha(t), a, rtol=1e-14, atol=1e-16)
        if s is not None:
            np.testing.assert_allclose(path.sigma(t), s, rtol=1e-14)


@pytest.mark.parametrize("path", [Linear(), Trig(), VP(), Cosine()], ids=lambda p: type(p).__name__)
def test_ends_are_exact_in_both_precisions(path):
    one, zero = jnp.float32(1), jnp.float32(0)
    assert path.sigma(1.0) == 0
    assert float(path.sigma(one)) == 0
    assert path.alpha(1.0) == 1
    assert float(path.alpha(one)) == 1
    if not isinstance(path, VP):
        assert path.alpha(0.0) == 0
        assert float(path.alpha(zero)) == 0


@pytest.mark.parametrize("path", [Trig(), VP(), VP(beta_min=0.5, beta_max=0.5), Cosine(), Cosine(offset=0.1)])
def test_variance_is_preserved(path):
    np.testing.assert_allclose(path.alpha(INSIDE) ** 2 + path.sigma(INSIDE) ** 2, 1, atol=1e-14)


@by_path
def test_derivatives_by_finite_differences(path):
    h = 1e-5
    for name in ("alpha", "sigma"):
        f = getattr(path, name)
        difference = (f(INSIDE - 2 * h) - 8 * f(INSIDE - h) + 8 * f(INSIDE + h) - f(INSIDE + 2 * h)) / (12 * h)
        np.testing.assert_allclose(getattr(path, "d" + name)(INSIDE), difference, rtol=1e-8, atol=1e-9)
    product = (path.sigma(INSIDE + h) ** 2 - path.sigma(INSIDE - h) ** 2) / (4 * h)
    np.testing.assert_allclose(path.sigma_dsigma(INSIDE), product, rtol=1e-6, atol=1e-8)


@by_path
def test_product_sigma_dsigma_is_half_the_slope_of_the_variance_at_the_end(path):
    h = 1e-6
    squares = [path.sigma(1 - k * h) ** 2 for k in range(3)]
    slope = -(-3 * squares[0] + 4 * squares[1] - squares[2]) / (4 * h)
    np.testing.assert_allclose(path.sigma_dsigma(1.0), slope, rtol=1e-4, atol=1e-8)


@by_path
def test_coefficients_are_differentiable_by_jax(path):
    with jax.enable_x64(True):
        t = jnp.asarray(INSIDE)
        for name in ("alpha", "sigma"):
            _, slope = jax.jvp(getattr(path, name), (t,), (jnp.ones_like(t),))
            np.testing.assert_allclose(slope, getattr(path, "d" + name)(INSIDE), rtol=1e-9, atol=1e-11)


@by_path
def test_velocity_is_bounded_or_said_not_to_be(path):
    bounded = not isinstance(path, (VP, Cosine))
    assert path.has_velocity(1.0) == bounded
    assert path.has_velocity(0.999)
    assert path.has_velocity(0.0)
    assert np.isfinite(path.dsigma(1.0))


@by_path
def test_lam_rises_and_time_is_its_inverse(path):
    t = np.concatenate([[1e-7, 1e-4], INSIDE, [1 - 1e-4, 1 - 1e-7]])
    lam = path.lam(t)
    assert np.all(np.diff(lam) > 0)
    np.testing.assert_allclose(lam, np.log(path.alpha(t) / path.sigma(t)), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(path.time(lam), t, rtol=0, atol=1e-10)
    assert isinstance(path.time(float(lam[5])), float)
    np.testing.assert_allclose(path.time(float(lam[5])), t[5], atol=1e-10)


def test_time_of_vp_by_bisection():
    """An inverse that shares nothing with the closed form."""
    path = VP(beta_min=0.3, beta_max=12.0)
    for lam in (-2.0, 0.0, 1.5, 4.0):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if path.lam(middle) < lam else (low, middle)
        np.testing.assert_allclose(path.time(lam), low, atol=1e-12)


@pytest.mark.parametrize("path", [Linear(), Trig(), Cosine(), VP()], ids=lambda p: type(p).__name__)
def test_infinite_lam_at_the_ends(path):
    assert path.lam(1.0) == math.inf
    assert float(path.lam(jnp.float32(1))) == math.inf
    assert path.time(math.inf) == 1
    if not isinstance(path, VP):
        assert path.lam(0.0) == -math.inf
        assert float(path.lam(jnp.float32(0))) == -math.inf
        assert path.time(-math.inf) == 0
    lam = jnp.linspace(0.0, 60.0, 241)
    assert path.time(lam).max() <= 1
    assert np.all(np.isfinite(path.sigma(path.time(lam))))


@by_path
def test_float32_agrees_with_float64(path):
    """At times that float32 holds exactly; relative to each value, so that nothing cancels near the ends."""
    t = np.concatenate([2.0 ** -np.arange(1, 15), 1 - 2.0 ** -np.arange(2, 15)])
    for name in ("alpha", "sigma", "dalpha", "dsigma"):
        single = getattr(path, name)(jnp.asarray(t, jnp.float32))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, getattr(path, name)(t), rtol=2e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(path.lam(jnp.asarray(t, jnp.float32)), path.lam(t), rtol=1e-4, atol=1e-5)
    back = path.time(path.lam(jnp.asarray(t, jnp.float32)))
    np.testing.assert_allclose(back, t, atol=5e-6)


@by_path
def test_answers_in_kind(path):
    for name in NAMES:
        f = getattr(path, name)
        assert np.shape(f(0.3)) == ()
        double = f(np.array([0.3, 0.6]))
        assert isinstance(double, np.ndarray)
        assert double.dtype == np.float64
        single = f(jnp.array([0.3, 0.6]))
        assert isinstance(single, jax.Array)
        assert single.dtype == jnp.float32
        assert single.shape == (2,)
        np.testing.assert_allclose(f(0.3), double[0], rtol=1e-15)


@by_path
def test_paths_are_constants_of_a_program(path):
    assert jax.tree.leaves(path) == []
    assert hash(path) == hash(jax.tree.map(lambda x: x, path))
    assert path == jax.tree.map(lambda x: x, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP(beta_min=0.0),
        lambda: VP(beta_min=2.0, beta_max=1.0),
        lambda: Cosine(offset=0.0),
        lambda: VE(sigma_min=0.0),
        lambda: VE(sigma_min=2.0, sigma_max=1.0),
        lambda: VE(sigma_min=float("nan")),
    ],
)
def test_bad_ranges_are_refused(make):
    with pytest.raises(ValueError, match="needs"):
        make()


@by_path
def test_states(path):
    rng = np.random.default_rng(0)
    x0, x1 = rng.normal(size=(2, 3, 4, 2))
    t, h = np.array([0.2, 0.5, 0.9]), 1e-6
    x = path.interpolate(t, x0, x1)
    for i in range(3):
        np.testing.assert_allclose(x[i], path.alpha(t[i]) * x1[i] + path.sigma(t[i]) * x0[i], rtol=1e-14)
        np.testing.assert_allclose(path.interpolate(float(t[i]), x0, x1)[i], x[i], rtol=1e-14)
    slope = (path.interpolate(t + h, x0, x1) - path.interpolate(t - h, x0, x1)) / (2 * h)
    np.testing.assert_allclose(path.conditional_velocity(t, x0, x1), slope, rtol=1e-6, atol=1e-7)
    single = path.interpolate(jnp.asarray(t, jnp.float32), jnp.asarray(x0, jnp.float32), jnp.asarray(x1, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, x, rtol=1e-4, atol=1e-5)


def test_start_scales_the_noise():
    noise = jnp.ones((2, 3))
    np.testing.assert_allclose(VE(sigma_min=0.02, sigma_max=5.0).start(noise), 5.0 * np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(VE(sigma_min=0.02, sigma_max=5.0).start(noise, 1.0), 0.02 * np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(Linear().start(noise), noise)
    np.testing.assert_array_equal(Linear().start(noise, jnp.array([0.0, 0.75])), [[1] * 3, [0.25] * 3])


@by_path
def test_swapped_arguments_are_refused(path):
    t, x = jnp.full(3, 0.5), jnp.ones((3, 2))
    for call in (
        lambda: path.interpolate(x, x, t),
        lambda: path.conditional_velocity(x, x, t),
        lambda: path.convert(x, given="velocity", to="data", t=x, x=t),
        lambda: path.convert(x, given="velocity", to="velocity", t=x, x=t),
        lambda: path.convert(x, given="velocity", to="data", t=jnp.full(2, 0.5), x=x),
    ):
        with pytest.raises(ValueError, match="time first"):
            call()

"""Sub-VP, SBDM, EDM, blurred straight lines, tables of discrete steps; resolution shift and SiT's grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import flowjax as fj
from flowjax import paths, times
from flowjax.oracles import Gaussian

TABLE = paths.scaled_linear_betas()
ZERO = paths.Tabulated(alphas_cumprod=TABLE, zero_terminal_snr=True)
PATHS = [paths.SubVP(), paths.SBDM(), paths.EDM(), paths.Tabulated(alphas_cumprod=TABLE), paths.Linear(sigma_min=0.1)]
PATHS += [ZERO, paths.Tabulated(alphas_cumprod=[0.9, 0.6, 0.2, 0.0])]
INSIDE = np.array([0.0303, 0.1117, 0.4001, 0.7503, 0.9512])


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_laws(path):
    """Derivatives, the inverse of lam, monotone noise, and NumPy against JAX."""
    h = 1e-7
    for value, slope in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        difference = (value(INSIDE + h) - value(INSIDE - h)) / (2 * h)
        np.testing.assert_allclose(slope(INSIDE), difference, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(path.sigma_dsigma(INSIDE), path.sigma(INSIDE) * path.dsigma(INSIDE), rtol=1e-12)
    np.testing.assert_allclose(path.time(path.lam(INSIDE)), INSIDE, rtol=1e-10)
    fine = np.linspace(0, 1, 201)[1:-1]
    assert np.all(np.diff(path.lam(fine)) > 0)
    for method in (path.alpha, path.sigma, path.dalpha, path.dsigma, path.lam):
        compiled = jax.jit(method)(jnp.asarray(INSIDE, jnp.float32))
        np.testing.assert_allclose(compiled, method(INSIDE), rtol=1e-3, atol=1e-4)
        assert np.ndim(method(0.5)) == 0


def test_straight_lines_that_end_in_blurred_data():
    """u = (x1 - (1 - s) x) / (1 - (1 - s) t) along x = t x1 + (1 - (1 - s) t) x0 (2210.02747, eq. 20-23)."""
    s, t = 0.1, np.array([0.0, 0.3, 1.0])
    path, (x0, x1) = paths.Linear(sigma_min=s), np.random.default_rng(0).standard_normal((2, 3, 2))
    x, wide = path.interpolate(t, x0, x1), t[:, None]
    velocity = (x1 - (1 - s) * x) / (1 - (1 - s) * wide)
    np.testing.assert_allclose(path.conditional_velocity(t, x0, x1), velocity, rtol=1e-12)
    for to, exact in (("data", x1), ("noise", x0), ("score", -x0 / path.sigma(t)[:, None])):
        np.testing.assert_allclose(path.convert(velocity, given="velocity", to=to, t=t, x=x), exact, atol=1e-12)
    for bad in (-0.1, 1.0):
        with pytest.raises(ValueError, match="sigma_min < 1"):
            paths.Linear(sigma_min=bad)


def test_sub_vp_is_the_solution_of_its_sde():
    """Mean and variance of dx = -beta/2 x du + sqrt(beta (1 - e^(-2 B))) dw, B the integral of beta (2011.13456)."""
    path, u = paths.SubVP(), 0.4

    def beta(u):
        return 0.1 + u * 19.9

    def total(u):
        return quad(beta, 0, u)[0]

    variance = quad(lambda r: np.exp(total(r) - total(u)) * beta(r) * (1 - np.exp(-2 * total(r))), 0, u)[0]
    assert path.alpha(1 - u) == pytest.approx(np.exp(-total(u) / 2), rel=1e-12)
    assert path.sigma(1 - u) == pytest.approx(np.sqrt(variance), rel=1e-9)
    assert path.has_velocity(1.0)
    assert path.sigma(1.0) == 0


def test_edm_path_makes_uniform_times_the_karras_grid():
    path = paths.EDM()
    levels = path.sigma(times.uniform(10))
    expected = times.karras(paths.VE(sigma_min=0.002, sigma_max=80.0), 10, sigma_min=0.002, sigma_max=80.0)
    np.testing.assert_allclose(levels, paths.VE(sigma_min=0.002, sigma_max=80.0).sigma(expected), rtol=1e-9)
    assert levels[0] == pytest.approx(80.0)
    assert levels[-1] == pytest.approx(0.002)


def test_tables():
    """Known values: alpha_bar of Stable Diffusion and DDPM at both ends of their tables."""
    assert TABLE[0] == pytest.approx(1 - 0.00085)
    assert TABLE[-1] == pytest.approx(0.0046601, rel=1e-4)
    assert paths.linear_betas()[-1] == pytest.approx(4.0358e-05, rel=1e-4)
    path = paths.Tabulated(alphas_cumprod=TABLE)
    steps = np.array([0.0, 1.0, 250.0, 999.0])
    t = path.at_step(steps)
    np.testing.assert_allclose(path.alpha(t) ** 2, TABLE[steps.astype(int)], rtol=1e-12)
    np.testing.assert_allclose(path.step(t), steps, atol=1e-9)
    assert path.at_step(999.0) == 0
    assert path.step(1.0) == 0  # clean data lies one step before the first
    assert (path.alpha(1.0), path.sigma(1.0)) == (1, 0)
    middle = path.alpha(path.at_step(250.5)) ** 2  # log alpha linear: the geometric mean
    assert middle == pytest.approx(np.sqrt(TABLE[250] * TABLE[251]), rel=1e-12)
    assert hash(path) == hash(paths.Tabulated(alphas_cumprod=list(TABLE)))


def test_zero_terminal_signal():
    """2305.08891: sqrt(alpha_bar) moved and scaled so that the first stays and the last is 0; the end is pure noise."""
    before, after = np.sqrt(TABLE), np.sqrt(ZERO.alphas_cumprod)
    assert after[0] == pytest.approx(before[0], rel=1e-15)
    assert after[-1] == 0
    slope = (after[1:] - after[:-1]) / (before[1:] - before[:-1])
    np.testing.assert_allclose(slope, before[0] / (before[0] - before[-1]), rtol=1e-9)
    given = paths.Tabulated(alphas_cumprod=ZERO.alphas_cumprod)
    assert given.alphas_cumprod == ZERO.alphas_cumprod
    steps = np.array([999, 998, 500, 0])
    np.testing.assert_allclose(given.alpha(ZERO.at_step(steps)), after[steps], rtol=1e-12)
    for path in (ZERO, given):
        for t in (0.0, jnp.float32(0.0)):
            assert (path.alpha(t), path.sigma(t), path.lam(t)) == (0, 1, -np.inf)
        assert path.has_velocity(0.0)
        assert path.time(-np.inf) == 0
        assert path.step(0.0) == 999
        # Within the last piece and across its edge: lam rises, its inverse and the slopes fit.
        t = np.array([1e-6, 3e-4, 0.000999, 0.001, 0.001001, 0.0015])
        np.testing.assert_allclose(path.time(path.lam(t)), t, rtol=1e-9)
        assert np.all(np.diff(path.lam(t)) > 0)
        difference = (path.alpha(t[:3] + 1e-7) - path.alpha(t[:3] - 1e-7)) / 2e-7
        np.testing.assert_allclose(path.dalpha(t[:3]), difference, rtol=1e-7)
        np.testing.assert_allclose(jax.jit(path.alpha)(jnp.float32(3e-4)), path.alpha(3e-4), rtol=1e-5)


@pytest.mark.slow
def test_predictions_at_pure_noise():
    """A noise prediction is refused there; the others lead from it to the data, in NumPy and in compiled code."""
    known = {given: ZERO.determines(given, "data", 0.0) for given in paths.PREDICTIONS}
    assert known == {"velocity": True, "noise": False, "data": True, "score": False, "v": True}
    target = Gaussian(mean=0.7, std=0.6, path=ZERO)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)
    exact = {kind: target.predict(kind, 0.0, x) for kind in paths.PREDICTIONS}
    for given in ("velocity", "data", "v"):
        for to in ("velocity", "data", "noise"):
            for t in (0.0, jnp.float32(0.0)):
                value = ZERO.convert(exact[given], given=given, to=to, t=t, x=x)
                np.testing.assert_allclose(value, exact[to], rtol=1e-4, atol=1e-5, err_msg=f"{given} {to}")
    grid = times.uniform(40, 0.0, 0.999)
    for prediction in ("v", "data"):
        flow = fj.Flow(target.network(prediction), path=ZERO, prediction=prediction)
        end = fj.solve(flow, fj.solvers.DPMSolver(), x, grid).x
        np.testing.assert_allclose(end, target.flow_map(x, 0.0, 0.999), atol=0.05)
    with pytest.raises(ValueError, match="move the start"):
        fj.solve(fj.Flow(target.network("noise"), path=ZERO, prediction="noise"), fj.solvers.DDIM(), x, grid)


def test_data_of_a_velocity_at_the_end_of_a_table():
    """sigma(1) is a positive zero, so that the infinite slope of sigma has its sign."""
    path, x = paths.Tabulated(alphas_cumprod=TABLE), np.ones((2, 1))
    assert path.dsigma(1.0) == -1e12
    np.testing.assert_array_equal(path.convert(0 * x, given="velocity", to="data", t=1.0, x=x), x)


@pytest.mark.parametrize("table", [[0.9], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0, 0.0], [0.5, -0.1], [[0.5, 0.4]]])
def test_bad_tables_are_refused(table):
    with pytest.raises(ValueError, match="strictly decreasing"):
        paths.Tabulated(alphas_cumprod=table)


def test_bad_edm_range_is_refused():
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        paths.EDM(sigma_min=2.0, sigma_max=1.0)


def test_resolution_shift_keeps_the_uncertainty():
    """A constant image of n pixels c + k z: the mean estimates c with error k / sqrt(n), k = sigma / alpha.

    At the shifted times the larger image has the same error as the smaller one at the original times.
    """
    shift = times.resolution_shift(4 * 64**2, 64**2)
    assert shift == 2
    grid = times.uniform(10, 0.1, 0.9)
    path = paths.Linear()
    small = path.sigma(grid) / path.alpha(grid) / 64
    moved = times.shifted(grid, shift)
    np.testing.assert_allclose(path.sigma(moved) / path.alpha(moved) / 128, small, rtol=1e-12)
    with pytest.raises(ValueError, match="positive"):
        times.resolution_shift(0, 1)


def test_grid_with_a_last_step_is_that_of_sit():
    grid = times.with_last_step(250, 0.04)
    assert len(grid) == 251
    np.testing.assert_allclose(grid[:-1], np.linspace(0, 0.96, 250))
    assert grid[-1] == 1
    with pytest.raises(ValueError, match="size"):
        times.with_last_step(4, 1.5)

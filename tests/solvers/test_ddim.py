import itertools

import jax
import numpy as np
import pytest
from problem import PATHS, Problem, relative

import flowjax as fj
from flowjax.oracles import Gaussian
from flowjax.solvers import DDIM, run_on_arrays


@pytest.mark.parametrize("path", ["linear", "vp"])
def test_order(path):
    path = PATHS[path]
    order = Problem(path).order(DDIM(), grid=lambda n: fj.times.log_snr(path, n, 0.2, 0.8))
    assert order == pytest.approx(1, abs=0.2)


def test_is_eulers_method_in_the_noise_level():
    """In the coordinates x/alpha and k = sigma/alpha the flow is d(x/alpha)/dk = e (2010.02502, eq. 14)."""
    path = PATHS["vp"]
    problem, grid = Problem(path), fj.times.uniform(6, 0.1, 0.9)
    x = problem.state(grid[0])
    expected = run_on_arrays(DDIM(), path, grid, x, problem)[-1]
    for s, t in itertools.pairwise(grid):
        e = problem(fj.solvers.requests.Evaluate(t=float(s), x=x, to="noise"))
        k_s, k_t = (path.sigma(u) / path.alpha(u) for u in (s, t))
        x = path.alpha(t) * (x / path.alpha(s) + (k_t - k_s) * e)
    assert relative(expected, x) < 1e-12


def test_constant_data_prediction_is_exact():
    for path in PATHS.values():
        x0, m = np.array([[0.3], [-1.0]]), np.array([[2.0], [0.7]])
        x = path.alpha(0.0) * m + path.sigma(0.0) * x0
        for t, solution in zip(
            fj.times.uniform(5), run_on_arrays(DDIM(), path, fj.times.uniform(5), x, lambda r, m=m: m), strict=True
        ):
            assert np.allclose(solution, path.alpha(t) * m + path.sigma(t) * x0, atol=1e-13)


@pytest.mark.parametrize("path", ["linear", "vp", "ve"])
def test_ancestral_sampling_has_the_right_variance_on_gaussian_data(path):
    """States are kept as their coefficients on independent normals, so that the variance is exact, not sampled."""
    path, std = PATHS[path], 0.6
    predict = jax.jit(Gaussian(mean=0.0, std=std, path=path).predict, static_argnums=0)

    def variance(eta, n):
        grid = fj.times.uniform(n, 0.02, 0.98)
        x = np.zeros((1, n + 1))
        x[0, 0] = np.sqrt(path.alpha(grid[0]) ** 2 * std**2 + path.sigma(grid[0]) ** 2)
        basis = iter(np.eye(n + 1)[1:])

        def oracle(request):
            with jax.enable_x64(True):
                return np.asarray(predict(request.to, request.t, request.x))

        end = run_on_arrays(DDIM(eta=eta), path, grid, x, oracle, noise=lambda: next(basis)[None])[-1]
        assert np.count_nonzero(end) == (n + 1 if eta else 1)
        return float(np.sum(end**2)) / (path.alpha(grid[-1]) ** 2 * std**2 + path.sigma(grid[-1]) ** 2)

    for eta in (0.0, 0.5, 1.0):
        errors = [abs(variance(eta, n) - 1) for n in (100, 200)]
        assert errors[1] < 0.06
        assert errors[1] < 0.6 * errors[0]  # first order


def test_ancestral_sampling_from_pure_noise_to_data():
    """The end is alpha m without noise, whatever the key."""
    flow = fj.Flow(lambda x, t, cond: 0 * x + 1.5, path=PATHS["linear"], prediction="data")
    x = fj.noise(jax.random.key(0), (3, 2))
    for eta in (0.0, 1.0):
        result = fj.solve(flow, DDIM(eta=eta), x, fj.times.uniform(4), key=jax.random.key(5))
        assert relative(result.x, np.full((3, 2), 1.5)) < 1e-6


def test_key_matters_only_with_noise():
    flow = fj.Flow(lambda x, t, cond: 0.5 * x, path=PATHS["linear"], prediction="data")
    x, times = fj.noise(jax.random.key(0), (3, 2)), fj.times.uniform(4, 0.0, 0.9)

    def run(eta, seed):
        return np.asarray(fj.solve(flow, DDIM(eta=eta), x, times, key=jax.random.key(seed)).x)

    assert np.array_equal(run(0.0, 1), run(0.0, 2))
    assert np.array_equal(run(1.0, 1), run(1.0, 1))
    assert relative(run(1.0, 1), run(1.0, 2)) > 1e-2
    with pytest.raises(ValueError, match="stochastic"):
        fj.solve(flow, DDIM(eta=1.0), x, times)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_checked(eta):
    with pytest.raises(ValueError, match="eta must be in"):
        DDIM(eta=eta)

import numpy as np
import pytest
from laws import gaussian_variance, gaussian_variances, order_from_exact_history, same_noises
from problem import PATHS, Problem, relative

from flowjax.solvers import DDIM, ERSDE, run_on_arrays
from flowjax.solvers.er_sde import default_scale
from flowjax.times import log_snr, uniform

THREE = ["vp", "linear", "ve"]
SCALES = {"ode": lambda k: k, "ancestral": lambda k: k**2, "default": default_scale}


@pytest.mark.parametrize("name", THREE)
def test_order_one_limits(name):
    problem = Problem(PATHS[name])
    grid = log_snr(problem.path, 8, 0.1, 0.9)
    x = problem.state(grid[0])
    for scale, ddim in (("ode", DDIM()), ("ancestral", DDIM(eta=1.0))):
        ends = [
            run_on_arrays(s, problem.path, grid, x, problem, same_noises())[-1]
            for s in (ERSDE(order=1, scale=SCALES[scale]), ddim)
        ]
        assert relative(*ends) < 1e-12


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_mean_of_one_step_is_exact_for_polynomials_in_k(order, name, scale):
    """y = x/alpha obeys d(y/phi) = -m phi'/phi^2 dk in the mean; the integral by the trapezoid in log k."""
    path, phi = PATHS[name], SCALES[scale]
    levels = np.array([3.0, 2.2, 1.7, 1.0])
    grid = np.asarray(path.time(-np.log(levels)))
    k = np.exp(np.linspace(np.log(levels[2]), np.log(levels[3]), 100001))
    for degree in range(order + 1):
        values = lambda r, degree=degree: np.full((1, 1), (path.sigma(r.t) / path.alpha(r.t)) ** degree)  # noqa: E731
        solver = ERSDE(order=order, scale=phi)
        *_, x, end = run_on_arrays(solver, path, grid, np.ones((1, 1)), values, lambda: np.zeros((1, 1)))
        m = (k[1:] ** degree + k[:-1] ** degree) / 2
        mean = phi(k[-1]) / phi(k[0]) * x / path.alpha(grid[2]) + phi(k[-1]) * np.sum(m * np.diff(1 / phi(k)))
        assert (abs(float((end / path.alpha(grid[3]) - mean)[0, 0])) < 1e-8) == (degree < order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_without_noise(order):
    solver = ERSDE(order=order, scale=SCALES["ode"])
    found = order_from_exact_history(Problem(PATHS["vp"]), solver, (80, 160), known=2)
    assert order - 0.35 < found < order + 0.8


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("scale", ["ancestral", "default"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_marginals_of_gaussian_data(order, scale, name):
    path, std, errors = PATHS[name], 0.6, []
    for n in (20, 40):
        grid = log_snr(path, n, 0.1, 0.9)
        found = gaussian_variances(ERSDE(order=order, scale=SCALES[scale]), path, grid, std)
        errors.append(np.max(np.abs(found / gaussian_variance(path, grid, std) - 1)))
    assert errors[1] < (0.2 if order == 1 else 0.03)
    assert errors[0] / errors[1] > 1.6


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", THREE)
def test_from_end_to_end(name, scale):
    """Constant data are exact at sigma = 0, whatever was drawn before."""
    path, m = PATHS[name], np.array([[0.5], [-1.0]])
    grid, noises = uniform(6), same_noises(shape=(2, 1))
    x = path.start(np.ones((2, 1)), 0.0)
    solutions = run_on_arrays(ERSDE(scale=SCALES[scale]), path, grid, x, lambda r: m, noises)
    assert np.all(np.isfinite(solutions))
    assert path.sigma(1.0) > 0 or np.allclose(solutions[-1], m)


def test_noise():
    assert ERSDE(scale=SCALES["ode"]).bind(PATHS["linear"], uniform(5)).pattern.noises == 0
    assert ERSDE().bind(PATHS["linear"], uniform(5)).pattern.noises == 1
    assert ERSDE().bind(PATHS["linear"], uniform(5)).pattern.rows == 5


def test_order_is_checked():
    with pytest.raises(ValueError, match="order"):
        ERSDE(order=4)

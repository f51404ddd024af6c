import math

import numpy as np
import pytest
from laws import gaussian_variance, gaussian_variances
from problem import PATHS, Problem, relative

from flowjax.solvers import EDMHeun, run_on_arrays
from flowjax.times import karras, log_snr, uniform

THREE = ["vp", "linear", "ve"]


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_two_evaluations_per_step_but_one_at_sigma_zero(name, churn):
    path = PATHS[name]
    grid = np.append(log_snr(path, 6, 0.1, 0.9), 1.0)
    assert path.sigma(1.0) == 0 or name == "ve"
    assert EDMHeun(s_churn=churn).bind(path, grid).pattern.rows == (14 if name == "ve" else 13)
    assert EDMHeun(s_churn=churn).bind(path, grid[:-1]).pattern.rows == 12


@pytest.mark.parametrize("name", THREE)
def test_a_step_is_the_trapezoid_in_k(name):
    """Where the noise prediction is a polynomial of k = sigma/alpha alone, steps are exact up to degree 1."""
    path = PATHS[name]
    grid = np.array([0.2, 0.35, 0.5, 0.8])
    k = path.sigma(grid) / path.alpha(grid)
    for degree in (0, 1, 2):

        def data(request, degree=degree):
            level = path.sigma(request.t) / path.alpha(request.t)
            return (request.x - path.sigma(request.t) * level**degree) / path.alpha(request.t)

        end = run_on_arrays(EDMHeun(), path, grid, np.full((1, 1), 0.7), data)[-1]
        exact = 0.7 / path.alpha(grid[0]) + (k[-1] ** (degree + 1) - k[0] ** (degree + 1)) / (degree + 1)
        assert (relative(end / path.alpha(grid[-1]), np.full((1, 1), exact)) < 1e-12) == (degree < 2)


def test_order():
    path = PATHS["vp"]
    assert Problem(path).order(EDMHeun(), (40, 80, 160)) == pytest.approx(2, abs=0.2)


def test_without_churn_it_is_deterministic():
    path = PATHS["vp"]
    assert EDMHeun().bind(path, uniform(4)).pattern.noises == 0
    assert EDMHeun(s_churn=2.0).bind(path, uniform(4)).pattern.noises == 1
    assert EDMHeun(s_churn=2.0, s_tmin=1e3).bind(path, log_snr(path, 4, 0.1, 0.9)).pattern.noises == 0


def test_churn_raises_the_level_where_it_applies():
    path, asked = PATHS["ve"], []
    grid = np.asarray(path.time(-np.log([4.0, 2.0, 1.0, 0.5, 0.25])))
    solver = EDMHeun(s_churn=0.8, s_tmin=0.6, s_tmax=3.0, s_noise=1.1)

    def network(request):
        asked.append((float(path.sigma(request.t)), request.x.copy()))
        return np.zeros_like(request.x)

    run_on_arrays(solver, path, grid, np.full((1, 1), 3.0), network, lambda: np.ones((1, 1)))
    first = asked[::2]
    assert [level for level, _ in first] == pytest.approx([4.0, 2.4, 1.2, 0.5])  # 1 + 0.8/4 inside the range
    before = 3.0 / 4.0 * 2.0  # with m = 0 a state is proportional to its level
    assert float(first[1][1][0, 0]) == pytest.approx(before + 1.1 * math.sqrt(2.4**2 - 2.0**2))
    asked.clear()
    run_on_arrays(EDMHeun(s_churn=100.0), path, grid[1:], np.ones((1, 1)), network, lambda: np.ones((1, 1)))
    assert asked[0][0] == pytest.approx(2.0 * math.sqrt(2))  # at most that


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("churn", [0.2, 0.4])
def test_marginals_of_gaussian_data(churn, name):
    """The variances of all states, without sampling: in all, levels rise by 16 churn."""
    path, std, errors = PATHS[name], 0.6, []
    for n in (16, 32):
        grid = log_snr(path, n, 0.15, 0.9)
        found = gaussian_variances(EDMHeun(s_churn=churn * 16), path, grid, std)
        errors.append(np.max(np.abs(found / gaussian_variance(path, grid, std) - 1)))
    assert errors[1] < 0.1
    assert errors[0] / errors[1] > 1.5


def test_from_all_noise_to_none():
    """From alpha = 0 one DDIM step; a karras grid to sigma = 0 ends at the prediction."""
    path, m = PATHS["linear"], np.array([[0.5], [-1.0]])
    for grid in (uniform(5), karras(path, 6)):
        solutions = run_on_arrays(EDMHeun(), path, grid, path.start(np.ones((2, 1)), grid[0]), lambda r: m)
        assert np.all(np.isfinite(solutions))
        assert np.allclose(solutions[-1], m)


@pytest.mark.parametrize("options", [{"s_churn": -1.0}, {"s_tmin": 2.0, "s_tmax": 1.0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"s_churn must be at least 0|s_tmin < s_tmax"):
        EDMHeun(**options)

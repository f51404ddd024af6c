import numpy as np
import pytest
from laws import exponential_step, gaussian_variance, gaussian_variances, same_noises
from problem import PATHS, Problem, relative

from flowjax.solvers import DDIM, DPMSolver, SASolver, UniPC, run_on_arrays
from flowjax.times import log_snr, uniform

THREE = ["vp", "linear", "ve"]


def everywhere(predictor, corrector, tau):
    return SASolver(predictor_order=predictor, corrector_order=corrector, tau=tau, start=0.0, end=1.0)


@pytest.mark.parametrize("name", THREE)
def test_special_cases(name):
    problem = Problem(PATHS[name])
    grid = log_snr(problem.path, 8, 0.1, 0.9)
    x = problem.state(grid[0])

    def difference(a, b):
        return relative(*(run_on_arrays(s, problem.path, grid, x, problem, same_noises())[-1] for s in (a, b)))

    assert difference(everywhere(1, 0, 0.0), DDIM()) < 1e-12
    assert difference(everywhere(1, 0, 1.0), DDIM(eta=1.0)) < 1e-12
    for tau in (0.0, 0.6, 1.0):
        for order in (1, 2, 3):
            multistep = DPMSolver(order=order, solver_type="taylor", eta=tau**2, lower_order_final=False)
            assert difference(everywhere(order, 0, tau), multistep) < 1e-11
    for order in (1, 2, 3):
        unipc = UniPC(order=order, variant="vary", lower_order_final=False)
        assert difference(everywhere(order, order + 1, 0.0), unipc) < 1e-11
    assert difference(everywhere(2, 3, 0.0), everywhere(2, 3, 0.5)) > 1e-3


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_corrected_step_is_exact_for_polynomials(order, tau, name):
    """The step from lam = 0.8 to 1.3 with a corrector through `order` + 1 points; the mean, without the noise."""
    path = PATHS[name]
    grid = np.asarray(path.time(np.array([0.1, 0.5, 0.8, 1.3, 1.6])))
    for degree in range(order + 2):
        values = lambda r, degree=degree: np.full((1, 1), float(path.lam(r.t)) ** degree)  # noqa: E731
        solver = everywhere(order, order + 1, tau)
        solutions = run_on_arrays(solver, path, grid, np.ones((1, 1)), values, lambda: np.zeros((1, 1)))
        power = lambda lam, degree=degree: lam**degree  # noqa: E731
        exact = exponential_step(path, "data", solutions[2], grid[2], grid[3], power, tau**2)
        assert (abs(float((solutions[3] - exact)[0, 0])) < 1e-12) == (degree <= order)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 0), (2, 2), (3, 4)])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_marginals_of_gaussian_data(tau, predictor, corrector, name):
    path, std, errors = PATHS[name], 0.6, []
    for n in (20, 40):
        grid = log_snr(path, n, 0.1, 0.9)
        found = gaussian_variances(everywhere(predictor, corrector, tau), path, grid, std)
        errors.append(np.max(np.abs(found / gaussian_variance(path, grid, std) - 1)))
    assert errors[1] < (0.2 if predictor == 1 else 0.03)
    assert errors[0] / errors[1] > 1.6


def test_noise_is_drawn_between_start_and_end_only():
    path, drawn = PATHS["vp"], []

    def noise():
        drawn.append(1)
        return np.zeros((1, 1))

    run_on_arrays(SASolver(start=0.25, end=0.65), path, uniform(10), np.ones((1, 1)), lambda r: r.x, noise)
    assert len(drawn) == 4  # steps from 0.3, 0.4, 0.5 and 0.6
    assert SASolver(tau=0.0).bind(path, uniform(10)).pattern.noises == 0


def test_one_evaluation_per_step_and_none_at_the_end():
    bound = SASolver(predictor_order=3, corrector_order=4).bind(PATHS["linear"], uniform(6))
    assert bound.pattern.rows == 6
    assert np.all(np.isfinite(bound.weights))


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_infinite_ends(tau):
    path, m = PATHS["linear"], np.array([[0.5], [-1.0]])
    noises = same_noises(shape=(2, 1))
    solutions = run_on_arrays(everywhere(3, 4, tau), path, uniform(6), np.ones((2, 1)), lambda r: m, noises)
    assert np.all(np.isfinite(solutions))
    assert np.allclose(solutions[-1], m)


@pytest.mark.parametrize("options", [{"predictor_order": 0}, {"tau": -1.0}, {"start": 0.9, "end": 0.2}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"SASolver needs|must be at least"):
        SASolver(**options)

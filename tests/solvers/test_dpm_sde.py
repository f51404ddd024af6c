import numpy as np
import pytest
from laws import exponential_step, gaussian_variance, gaussian_variances, same_noises
from problem import PATHS, Problem, relative

from flowjax.solvers import DDIM, DPMSolver, run_on_arrays
from flowjax.times import log_snr, uniform

FORMS = ["data", "noise"]
THREE = ["vp", "linear", "ve"]
LAMS = np.array([0.1, 0.5, 0.8, 1.3])


def nothing():
    return np.zeros((1, 1))


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_the_mean_of_one_step_is_exact_for_polynomials(eta, form, name):
    path = PATHS[name]
    grid = np.asarray(path.time(LAMS))
    for order in (1, 2, 3):
        solver = DPMSolver(order=order, form=form, solver_type="taylor", eta=eta, lower_order_final=False)
        for degree in range(order + 1):
            values = lambda r, degree=degree: np.full((1, 1), float(path.lam(r.t)) ** degree)  # noqa: E731
            *_, x, end = run_on_arrays(solver, path, grid, np.ones((1, 1)), values, nothing)
            exact = exponential_step(path, form, x, grid[2], grid[3], lambda lam, degree=degree: lam**degree, eta)
            assert (abs(float((end - exact)[0, 0])) < 1e-13) == (degree < order)


def test_weight_of_the_second_derivative():
    """Order 3, eta = 1, a step of 0.3: half the integral of 2 e^(-2 (0.3 - u)) (u/0.3)^2 is 0.0866, not 0.0866 - 1."""
    path = PATHS["vp"]
    grid = np.asarray(path.time(np.array([0.1, 0.4, 0.7, 1.0])))
    u = np.linspace(0, 0.3, 100001)
    y = np.exp(-2 * (0.3 - u)) * (u / 0.3) ** 2
    exact = float(np.sum((y[1:] + y[:-1]) / 2) * (u[1] - u[0]))
    assert exact == pytest.approx(0.0866, abs=1e-4)

    def parabola(request):  # h^2 m'' = 1, and m = m' = 0 at the start of the last step
        return np.full((1, 1), ((float(path.lam(request.t)) - 0.7) / 0.3) ** 2 / 2)

    solver = DPMSolver(order=3, eta=1.0, lower_order_final=False)
    *_, x, end = run_on_arrays(solver, path, grid, np.zeros((1, 1)), parabola, nothing)
    decay = float(path.sigma(grid[3]) / path.sigma(grid[2])) * np.exp(-0.3)
    assert float((end - decay * x)[0, 0] / path.alpha(grid[3])) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_marginals_of_gaussian_data(eta, order, form, name):
    """The variances of all states, without sampling: they approach those of the path as the steps shrink."""
    path, std, errors = PATHS[name], 0.6, []
    for n in (20, 40):
        grid = log_snr(path, n, 0.1, 0.9)
        solver = DPMSolver(order=order, form=form, eta=eta, lower_order_final=False)
        found = gaussian_variances(solver, path, grid, std)
        errors.append(np.max(np.abs(found / gaussian_variance(path, grid, std) - 1)))
    assert errors[1] < (0.3 if order == 1 else 0.05)
    assert errors[0] / errors[1] > (1.6 if order == 1 else 2.5)


def test_without_eta_there_is_no_noise():
    assert DPMSolver(eta=0.0).bind(PATHS["vp"], uniform(4)).pattern.noises == 0
    assert DPMSolver(eta=0.5).bind(PATHS["vp"], uniform(4)).pattern.noises == 1


@pytest.mark.parametrize("name", THREE)
def test_order_one_is_ancestral_sampling(name):
    problem = Problem(PATHS[name])
    grid = log_snr(problem.path, 7, 0.1, 0.9)
    x = problem.state(grid[0])
    ancestral, same, other = (
        run_on_arrays(s, problem.path, grid, x, problem, same_noises())[-1]
        for s in (DDIM(eta=1.0), DPMSolver(order=1, eta=1.0), DPMSolver(order=1, eta=1.0, form="noise"))
    )
    assert relative(same, ancestral) < 1e-12
    assert relative(other, ancestral) > 1e-3  # exact for another constant


@pytest.mark.parametrize("order", [1, 2, 3])
def test_infinite_ends(order):
    """From alpha = 0 to sigma = 0: the first step forgets its start, the last one ends at the prediction."""
    path, m = PATHS["linear"], np.array([[0.5], [-1.0]])
    noises = same_noises(shape=(2, 1))
    solver = DPMSolver(order=order, eta=1.0)
    solutions = run_on_arrays(solver, path, uniform(5), np.full((2, 1), 1e6), lambda r: m, noises)
    assert np.all(np.abs(solutions[1]) < 10)
    assert np.allclose(solutions[-1], m)
    assert np.all(np.isfinite(solver.bind(path, uniform(5)).weights))


@pytest.mark.parametrize("options", [{"eta": -0.1}, {"eta": 1.0, "scheme": "singlestep"}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"eta (must be at least 0|> 0 is for multistep)"):
        DPMSolver(**options)

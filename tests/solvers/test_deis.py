import numpy as np
import pytest
from laws import order_from_exact_history
from problem import PATHS, Problem, relative

from flowjax.solvers import DDIM, DEIS, AdamsBashforth, DPMSolver, run_on_arrays
from flowjax.times import log_snr, uniform

THREE = ["vp", "linear", "ve"]
VARIABLES = ["time", "log_k", "k"]


@pytest.mark.parametrize("name", THREE)
def test_special_cases(name):
    problem = Problem(PATHS[name])
    for grid in (log_snr(problem.path, 9, 0.1, 0.9), np.linspace(0.1, 0.9, 10) ** 1.3):
        x = problem.state(grid[0])

        def difference(a, b, grid=grid, x=x):
            return relative(*(run_on_arrays(s, problem.path, grid, x, problem)[-1] for s in (a, b)))

        for variable in VARIABLES:
            assert difference(DEIS(order=1, variable=variable), DDIM()) < 1e-12
        for order in (2, 3):
            log_k = DEIS(order=order, variable="log_k", lower_order_final=False)
            multistep = DPMSolver(order=order, form="noise", solver_type="taylor", lower_order_final=False)
            assert difference(log_k, multistep) < 1e-11
        for order in (2, 3, 4):
            k = DEIS(order=order, variable="k", lower_order_final=False)
            assert difference(k, AdamsBashforth(order=order, form="noise", weights="variable")) < 1e-11
            assert difference(DEIS(order=order, lower_order_final=False), k) > 1e-5


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_one_step_is_exact_for_polynomials_in_its_variable(order, variable, name):
    path = PATHS[name]
    grid = np.array([0.2, 0.28, 0.37, 0.45, 0.6])

    def level(t):
        return path.sigma(t) / path.alpha(t)

    def u(t):
        return {"time": t, "k": level(t), "log_k": np.log(level(t))}[variable]

    fine = np.linspace(grid[-2], grid[-1], 200001)
    for degree in range(order + 1):
        solver = DEIS(order=order, variable=variable, lower_order_final=False)
        values = lambda r, degree=degree: np.full((1, 1), u(r.t) ** degree)  # noqa: E731
        *_, x, end = run_on_arrays(solver, path, grid, np.ones((1, 1)), values)
        y, k = u(fine) ** degree, level(fine)
        integral = np.sum((y[1:] + y[:-1]) / 2 * np.diff(k))
        exact = path.alpha(grid[-1]) * (x / path.alpha(grid[-2]) + integral)
        assert (abs(float((end - exact)[0, 0])) < 1e-9) == (degree < order)


@pytest.mark.parametrize(("order", "variable"), [(2, "time"), (3, "log_k"), (4, "time")])
def test_order_from_an_exact_history(order, variable):
    solver = DEIS(order=order, variable=variable, lower_order_final=False)
    assert order_from_exact_history(Problem(PATHS["vp"]), solver, (80, 160), known=3) > order - 0.35


@pytest.mark.parametrize("variable", VARIABLES)
def test_last_orders(variable):
    """With fewer than 15 steps the last steps have orders 2 and 1, seen in the dependence on old outputs."""
    path = PATHS["vp"]
    for n, lowered in ((14, True), (15, False)):
        grid = log_snr(path, n, 0.1, 0.9)
        plain = DEIS(variable=variable, lower_order_final=lowered)
        auto, plain = (DEIS(variable=variable).bind(path, grid), plain.bind(path, grid))
        assert np.array_equal(auto.weights, plain.weights)


@pytest.mark.parametrize("variable", VARIABLES)
def test_ends(variable):
    path, m, e = PATHS["linear"], np.array([[0.7]]), np.array([[-0.4]])
    with pytest.raises(ValueError, match=r"alpha\(0\) = 0: move the start"):
        DEIS(variable=variable).bind(path, uniform(4))
    grid = uniform(5, 0.1, 1.0)
    solver = DEIS(variable=variable, lower_order_final=False)
    end = run_on_arrays(solver, path, grid, 0.1 * m + 0.9 * e, lambda r: e)[-1]
    assert end == pytest.approx(m, rel=1e-10)


def test_repeated_times_change_nothing():
    problem, solver = Problem(PATHS["vp"]), DEIS(lower_order_final=False)
    grid = log_snr(problem.path, 8, 0.1, 0.9)
    x = problem.state(grid[0])
    for place in (0, 4, 8):
        twice = np.insert(grid, place, grid[place])
        plain, repeated = (run_on_arrays(solver, problem.path, g, x, problem)[-1] for g in (grid, twice))
        assert relative(repeated, plain) < 1e-12


@pytest.mark.parametrize("options", [{"order": 5}, {"variable": "lam"}, {"lower_order_final": "no"}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DEIS(**options)

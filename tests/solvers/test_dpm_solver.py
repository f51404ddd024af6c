import math

import numpy as np
import pytest
from laws import ends_by_lam, values_in_each_step
from problem import PATHS, Problem, relative

from flowjax.solvers import DDIM, DPMSolver, Euler, Heun, run_on_arrays
from flowjax.solvers.phi import phi
from flowjax.times import log_snr, uniform

UNEVEN = np.array([0.1, 0.17, 0.2, 0.31, 0.42, 0.44, 0.6, 0.71, 0.9])
FORMS = ["data", "noise"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["midpoint", "taylor"])
@pytest.mark.parametrize(("order", "path"), [(1, "linear"), (2, "linear"), (2, "vp")])
def test_order(order, form, kind, path):
    solver = DPMSolver(order=order, form=form, solver_type=kind, lower_order_final=False)
    path = PATHS[path]
    found = Problem(path).order(solver, (80, 160, 320, 640), lambda n: log_snr(path, n, 0.2, 0.8))
    assert found == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("form", FORMS)
def test_one_step_is_exact_for_polynomials_in_lam(form):
    """Histories at lam = 0.1, 0.5, 0.8 and the step to 1.3; the exact solution by high-order Gauss quadrature."""
    path = PATHS["vp"]
    grid = path.time(np.array([0.1, 0.5, 0.8, 1.3]))
    nodes, weights = np.polynomial.legendre.leggauss(30)

    def step(solver, degree):
        return run_on_arrays(solver, path, grid, np.ones((1, 1)), lambda r: np.full((1, 1), path.lam(r.t) ** degree))

    def exact(x, degree):
        """x' = A x + integral of the prediction against the exponential kernel (2211.01095, eq. 8)."""
        lam = 1.05 + 0.25 * nodes
        (alpha_s, sigma_s), (alpha, sigma) = ((path.alpha(t), path.sigma(t)) for t in grid[-2:])
        if form == "data":
            return sigma / sigma_s * x + sigma * 0.25 * np.sum(weights * np.exp(lam) * lam**degree)
        return alpha / alpha_s * x - alpha * 0.25 * np.sum(weights * np.exp(-lam) * lam**degree)

    def error(solver, degree):
        *_, x, end = step(solver, degree)
        return abs(float((end - exact(x, degree))[0, 0]))

    third = DPMSolver(order=3, form=form, lower_order_final=False)
    official = DPMSolver(order=3, form=form, lower_order_final=False, compat="official")
    second = DPMSolver(order=2, form=form, solver_type="taylor", lower_order_final=False)
    for degree in (0, 1, 2):
        assert error(third, degree) < 1e-13
    for degree in (0, 1):
        assert error(second, degree) < 1e-13
        assert error(official, degree) < 1e-13
    assert error(second, 2) > 1e-2
    assert 5e-3 < error(official, 2) < 5e-2
    assert error(third, 3) > 1e-3
    assert error(DPMSolver(order=2, form=form, lower_order_final=False), 1) > 1e-3  # midpoint: second order, not exact


@pytest.mark.parametrize("name", ["vp", "linear", "ve"])
def test_orders_of_whole_runs_by_their_start(name):
    """From lam = -1, where plain warm-up shows: it limits order 3 to 2; a singlestep start keeps it, at equal cost."""
    problem = Problem(PATHS[name])

    def order(counts, **options):
        solver = DPMSolver(order=3, lower_order_final=False, **options)
        grid = lambda n: np.asarray(problem.path.time(np.linspace(-1, 2, n + 1)))  # noqa: E731
        assert solver.bind(problem.path, grid(8)).pattern.rows == 8
        return problem.order(solver, counts, grid)

    assert order((160, 320)) == pytest.approx(2, abs=0.25)
    assert order((80, 160), start="singlestep") == pytest.approx(3, abs=0.3)
    if name == "vp":  # the others are the same, as only lam matters
        assert order((80, 160), start="singlestep", form="noise") == pytest.approx(3, abs=0.3)
        assert order((80, 160), start="singlestep", compat="official") == pytest.approx(2, abs=0.4)


def test_a_singlestep_start_with_an_infinite_lam_and_with_few_steps():
    """The first interval stands alone; without room for a group the orders rise as usual."""
    path = PATHS["linear"]
    solver = DPMSolver(order=3, start="singlestep", solver_type="taylor", lower_order_final=False)
    assert values_in_each_step(solver, path, uniform(7, 0.0, 0.95)) == [1, 1, 2, 3, 3, 3, 3]
    assert values_in_each_step(solver, path, uniform(3, 0.0, 0.95)) == [1, 1, 2]
    inside = uniform(5, 0.1, 0.9)
    assert values_in_each_step(solver, path, inside) == [1, 2, 3, 3, 3]
    repeated = np.insert(inside, 1, inside[1])
    assert values_in_each_step(solver, path, repeated)[:3] == [1, 0, 2]


def test_order_one_is_ddim_in_both_forms():
    for path in PATHS.values():
        problem = Problem(path)
        x = problem.state(UNEVEN[0])
        ddim, *others = (
            run_on_arrays(solver, path, UNEVEN, x, problem)[-1]
            for solver in (DDIM(), DPMSolver(order=1), DPMSolver(order=1, form="noise"))
        )
        assert all(relative(other, ddim) < 1e-12 for other in others)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_only_lam_matters(form, order):
    """On equal lam grids and equal x/alpha, x/alpha at the end is the same on every path."""
    lams = np.sort(np.random.default_rng(0).uniform(-1.5, 2.5, 12))
    first, *others = ends_by_lam(DPMSolver(order=order, form=form), ("linear", "vp", "ve", "trig"), lams)
    assert all(relative(end, first) < 1e-12 for end in others)


def test_for_runge_kutta_methods_in_time_the_path_matters():
    ends, lams = {}, np.linspace(-1.5, 2.5, 8)
    for name in ("linear", "vp"):
        path = PATHS[name]

        def velocity(request, path=path):
            m = np.tanh(request.x / path.alpha(request.t) + 0.3 * path.lam(request.t))
            return path.convert(m, given="data", to="velocity", t=request.t, x=request.x)

        grid = np.asarray(path.time(lams))
        x = path.alpha(grid[0]) * np.array([[-1.0], [0.2], [3.0]])
        for solver in (Euler(), Heun()):
            end = run_on_arrays(solver, path, grid, x, velocity)[-1] / path.alpha(grid[-1])
            ends.setdefault(type(solver).__name__, []).append(end)
    assert all(relative(*pair) > 1e-3 for pair in ends.values())


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_constant_predictions_are_exact(form, order):
    e, m = np.array([[0.3], [-1.0]]), np.array([[2.0], [0.7]])
    for path in PATHS.values():
        grid = uniform(6) if form == "data" else UNEVEN
        states = [path.alpha(t) * m + path.sigma(t) * e for t in grid]
        solutions = run_on_arrays(
            DPMSolver(order=order, form=form), path, grid, states[0], lambda r: m if r.to == "data" else e
        )
        for solution, state in zip(solutions, states, strict=True):
            assert np.allclose(solution, state, atol=1e-12)


@pytest.mark.parametrize("name", ["vp", "linear", "ve"])
@pytest.mark.parametrize("form", FORMS)
def test_gaussian_data(form, name):
    """The exact flow on N(0, s^2) scales the state with the standard deviation of the marginal."""
    path, std = PATHS[name], 0.6
    x = np.array([[0.5], [-2.0]])

    def network(request):  # both predictions are linear in x: E[x1|x] = alpha s^2 x / V, E[x0|x] = sigma x / V
        alpha, sigma = path.alpha(request.t), path.sigma(request.t)
        return (alpha * std**2 if request.to == "data" else sigma) / (alpha**2 * std**2 + sigma**2) * request.x

    def spread(t):
        return math.sqrt(path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2)

    errors = []
    for n in (80, 160):
        grid = log_snr(path, n, 0.1, 0.9)
        end = run_on_arrays(DPMSolver(order=2, form=form, lower_order_final=False), path, grid, x, network)[-1]
        errors.append(relative(end, x * spread(0.9) / spread(0.1)))
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def orders_used(solver, path, grid):
    """How many values enter each step, seen in the coefficients of one-hot network outputs."""
    n, count = len(grid) - 1, iter(range(100))
    solutions = run_on_arrays(solver, path, grid, np.zeros((1, n)), lambda r: np.eye(n)[next(count)][None])
    a = path.sigma if solver.form == "data" else path.alpha
    increments = [y - a(t) / a(s) * x for x, y, s, t in zip(solutions, solutions[1:], grid, grid[1:])]
    return [int(np.sum(np.abs(increment) > 1e-12)) for increment in increments], increments


@pytest.mark.parametrize(
    ("n", "lower", "form", "expected"),
    [
        (5, "auto", "data", [1, 2, 3, 2, 1]),
        (5, True, "noise", [1, 2, 3, 2, 1]),
        (5, False, "data", [1, 2, 3, 3, 3]),
        (9, "auto", "data", [1, 2, 3, 3, 3, 3, 3, 2, 1]),
        (10, "auto", "data", [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
        (10, True, "data", [1, 2, 3, 3, 3, 3, 3, 3, 2, 1]),
    ],
)
def test_orders_used(n, lower, form, expected):
    solver = DPMSolver(order=3, lower_order_final=lower, form=form)
    assert orders_used(solver, PATHS["vp"], log_snr(PATHS["vp"], n, 0.1, 0.9))[0] == expected


def test_orders_are_lowered_where_lam_is_infinite():
    solver = DPMSolver(order=3, lower_order_final=False)
    assert orders_used(solver, PATHS["linear"], uniform(8))[0] == [1, 1, 2, 3, 3, 3, 3, 1]
    assert orders_used(solver, PATHS["vp"], uniform(8))[0] == [1, 2, 3, 3, 3, 3, 3, 1]
    assert orders_used(solver, PATHS["ve"], uniform(8))[0] == [1, 2, 3, 3, 3, 3, 3, 3]


def test_second_order_weights_on_an_even_grid():
    path = PATHS["vp"]
    _, increments = orders_used(DPMSolver(lower_order_final=False), path, log_snr(path, 6, 0.1, 0.9))
    for increment in increments[1:]:
        weights = increment[increment != 0]
        assert list(weights / weights.sum()) == pytest.approx([-0.5, 1.5], abs=1e-10)  # oldest first


@pytest.mark.parametrize(("path", "times", "end"), [("linear", uniform(5), "start"), ("vp", uniform(5), "end")])
def test_noise_form_names_the_end_with_infinite_lam(path, times, end):
    with pytest.raises(ValueError, match=f"noise form.*move the {end}"):
        DPMSolver(form="noise").bind(PATHS[path], times)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", [0, 1, 4, 8])
def test_repeated_times_change_nothing(form, place):
    problem, solver = Problem(PATHS["vp"]), DPMSolver(order=3, form=form, lower_order_final=False)
    x, twice = problem.state(UNEVEN[0]), np.insert(UNEVEN, place, UNEVEN[place])
    plain, repeated = (run_on_arrays(solver, problem.path, grid, x, problem)[-1] for grid in (UNEVEN, twice))
    assert relative(repeated, plain) < 1e-13


def test_small_steps_do_not_cancel():
    """A step of 1e-6 in lam: the increment is known to leading order."""
    path = PATHS["vp"]
    grid = path.time(np.array([0.0, 1e-6, 2e-6, 3e-6]))
    bound = DPMSolver(order=3, lower_order_final=False).bind(path, grid)
    assert np.all(np.isfinite(bound.weights))
    end = run_on_arrays(DPMSolver(order=3), path, grid, np.zeros((1, 1)), lambda r: np.ones((1, 1)))[-1]
    assert float(end[0, 0]) == pytest.approx(path.alpha(grid[-1]) * 3e-6, rel=1e-4)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_phi_is_its_integral(k):
    """phi_k(z) = integral over [0, 1] of e^((1 - r) z) r^(k - 1) / (k - 1)!, on both sides of the series' border."""
    r, w = np.polynomial.legendre.leggauss(40)
    r, w = (r + 1) / 2, w / 2
    for z in (-6.0, -1.01, -0.99, -1e-7, 0.0, 1e-7, 0.99, 1.01, 5.0):
        exact = math.exp(z) if k == 0 else np.sum(w * np.exp((1 - r) * z) * r ** (k - 1)) / math.factorial(k - 1)
        assert phi(k, z) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {"order": 4},
        {"scheme": "free"},
        {"form": "velocity"},
        {"solver_type": "heun"},
        {"lower_order_final": "no"},
        {"start": "rk4"},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DPMSolver(**options)

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from problem import ENDS, GRIDS, PATHS, Problem, relative

import flowjax as fj
from flowjax.solvers import DPMSolver, DPMSolverV3, Euler, Statistics, run_on_arrays
from flowjax.times import log_snr, uniform

THREE = ["vp", "linear", "ve"]
RECORDED = json.loads((pathlib.Path(__file__).parent / "dpm_solver_v3_official.json").read_text())


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_recorded_runs_of_the_authors_program(name):
    """One sample of seven elements with curves of their own; times are moved to points of the curves, as there."""
    kind, grid, steps, order, *on = name.split()
    path, start = PATHS[kind], np.array(RECORDED["start"])
    lam = np.linspace(*path.lam(np.array(ENDS[kind])), 241)
    u = lam[:, None] + start / 5
    solver = DPMSolverV3(
        statistics=Statistics(lam=lam, l=1 / (1 + np.exp(-u)), s=-0.5 - 0.3 * np.tanh(u / 2), b=0.2 * np.sin(u)),
        order=int(order),
        corrector="corrector" in on,
        p_pseudo="p_pseudo" in on,
        c_pseudo="c_pseudo" in on,
        lower_order_final="lower" in on,
        half="noise" if "half" in on else None,
    )
    times = GRIDS[grid](path, int(steps), *ENDS[kind])
    times = path.time(lam[np.round(240 * (path.lam(times) - lam[0]) / (lam[-1] - lam[0])).astype(int)])
    problem = Problem(path)

    def elements(request):
        return problem(dataclasses.replace(request, x=request.x.T)).T

    end = run_on_arrays(solver, path, times, start[None], elements)[-1]
    assert relative(end[0], RECORDED["runs"][name]["x"]) < 1e-8
    assert solver.bind(path, times).pattern.rows == RECORDED["runs"][name]["evaluations"]


def statistics(path, s=0.0, l=0.0, b=0.0, points=1200, start=0.05, end=0.95):  # noqa: E741 - the paper's letter
    """Curves from numbers or functions of t."""
    lam = np.linspace(float(path.lam(start)), float(path.lam(end)), points + 1)
    t = path.time(lam)
    l, s, b = (np.asarray(c(t) if callable(c) else np.full_like(lam, c)) for c in (l, s, b))  # noqa: E741
    return Statistics(lam=lam, l=l, s=s, b=b)


def last(solver, problem, grid):
    return run_on_arrays(solver, problem.path, grid, problem.state(grid[0]), problem)[-1]


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize(("form", "curves"), [("data", {"l": 1.0}), ("noise", {"s": -1.0})])
def test_constant_statistics_are_dpm_solver(form, curves, name):
    """Up to the trapezoid rule on 1200 points, at every order (3: the one that is third order)."""
    problem = Problem(PATHS[name])
    grid = log_snr(problem.path, 10, 0.05, 0.95)
    for order in (1, 2, 3):
        mine = DPMSolverV3(
            statistics=statistics(problem.path, **curves), order=order, corrector=False, lower_order_final=False
        )
        other = DPMSolver(order=order, form=form, solver_type="taylor", lower_order_final=False)
        assert relative(last(mine, problem, grid), last(other, problem, grid)) < 3e-4
    official = DPMSolver(order=3, form=form, compat="official", solver_type="taylor", lower_order_final=False)
    assert relative(last(mine, problem, grid), last(official, problem, grid)) > 1e-3


def test_rectified_flow_statistics_are_euler():
    path = PATHS["linear"]
    problem = Problem(path)
    grid = log_snr(path, 12, 0.05, 0.95)
    curves = statistics(path, l=path.sigma, s=lambda t: -path.alpha(t))
    first = DPMSolverV3(statistics=curves, order=1, corrector=False)
    assert relative(last(first, problem, grid), last(Euler(), problem, grid)) < 1e-4


@pytest.mark.parametrize("name", THREE)
def test_one_step_is_exact_on_gaussian_data(name):
    """Data N(0.7, 0.5^2): l = sigma^2/V makes f a function of lam alone, and b is its derivative."""
    path, mean, std = PATHS[name], 0.7, 0.5

    def variance(t):
        return path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2

    def f(t):
        return -(path.sigma(t) ** 2) * mean / variance(t)

    lam = np.linspace(float(path.lam(0.05)), float(path.lam(0.95)), 4001)
    t = np.asarray(path.time(lam))
    curves = Statistics(
        lam=lam, l=path.sigma(t) ** 2 / variance(t), s=np.zeros_like(lam), b=np.gradient(f(t), lam, edge_order=2)
    )
    x = np.array([[-1.0], [0.4], [2.0]])

    def noise(request):
        alpha, sigma = path.alpha(request.t), path.sigma(request.t)
        return sigma * (request.x - alpha * mean) / variance(request.t)

    end = run_on_arrays(DPMSolverV3(statistics=curves, order=1), path, [0.05, 0.95], x, noise)[-1]
    scale = np.sqrt(variance(0.95) / variance(0.05))
    exact = path.alpha(0.95) * mean + scale * (x - path.alpha(0.05) * mean)
    assert relative(end, exact) < 1e-5


def test_the_corrector_leaves_f_and_moves_x():
    """Linear in the outputs: the last step starts from the corrected x but from f at the predicted one."""
    path = PATHS["linear"]
    problem, asked = Problem(path), []
    grid = log_snr(path, 4, 0.1, 0.9)
    curves = statistics(path, l=0.4, s=-0.5, b=0.1)
    x = problem.state(grid[0])

    def network(request):
        asked.append((request.t, request.x, problem(request)))
        return asked[-1][-1]

    solver = DPMSolverV3(statistics=curves, order=2, corrector=True)
    solutions = run_on_arrays(solver, path, grid, x, network)
    assert relative(solutions[3], asked[3][1]) > 1e-4  # evaluated at the predicted point, then corrected
    t, predicted, e = asked[3]
    f = (path.sigma(t) * e - 0.4 * predicted) / path.alpha(t)
    e_new = (path.alpha(t) * f + 0.4 * solutions[3]) / path.sigma(t)
    step = DPMSolverV3(statistics=curves, order=1, corrector=False)
    expected = run_on_arrays(step, path, grid[3:], solutions[3], lambda r: e_new)[-1]
    assert relative(solutions[4], expected) < 1e-12  # the last step has order 1


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_one_step_is_exact_for_polynomials(order, pseudo):
    """Without statistics f = sigma e/alpha is integrated; pseudo derivatives of low order see the degree above theirs.

    The integrals are those of the trapezoid rule on 20,000 points.
    """
    path, lam = PATHS["vp"], np.array([-0.4, 0.1, 0.5, 0.8, 1.3, 1.6])
    grid = np.asarray(path.time(lam))
    curves = statistics(path, points=20000)
    for corrector in (False, True):
        errors = []
        for degree in range(order + 2):

            def noise(request, degree=degree):
                t = request.t
                return np.full((1, 1), float(path.lam(t)) ** degree * path.alpha(t) / path.sigma(t))

            solver = DPMSolverV3(
                statistics=curves,
                order=order,
                corrector=corrector,
                p_pseudo=pseudo,
                c_pseudo=pseudo,
                lower_order_final=False,
            )
            x = run_on_arrays(solver, path, grid, np.ones((1, 1)), noise)
            exact = (lam[4] ** (degree + 1) - lam[3] ** (degree + 1)) / (degree + 1)
            errors.append(abs(float((x[4] / path.alpha(grid[4]) - x[3] / path.alpha(grid[3]))[0, 0]) + exact))
        exact_to = min(order + (corrector and pseudo), 2) if pseudo else order
        assert max(errors[:exact_to]) < 1e-7
        assert errors[exact_to] > 1e-4


def test_orders_of_whole_runs():
    """With smooth statistics that are none of the special ones; the first steps limit runs to order 2."""
    path = PATHS["vp"]
    problem = Problem(path)
    curves = statistics(path, points=20000, l=lambda t: t**2, s=lambda t: -0.5 * t, b=lambda t: 0.3 * np.cos(3 * t))

    def order(**options):
        solver = DPMSolverV3(statistics=curves, lower_order_final=False, **options)
        return problem.order(solver, (20, 40, 80), lambda n: log_snr(path, n, 0.1, 0.9))

    assert order(order=1, corrector=False) == pytest.approx(1, abs=0.35)
    assert order(order=2, corrector=False) == pytest.approx(2, abs=0.4)
    assert order(order=3, corrector=True, c_pseudo=False) > 1.9


def test_pseudo_derivatives():
    """With one derivative there is nothing to choose; with two the higher one is the same."""
    problem = Problem(PATHS["vp"])
    grid = log_snr(problem.path, 8, 0.1, 0.9)
    curves = statistics(problem.path, l=0.8, s=-0.2, b=0.1)

    def end(**options):
        return last(DPMSolverV3(statistics=curves, corrector=False, **options), problem, grid)

    assert np.array_equal(end(order=2, p_pseudo=True), end(order=2, p_pseudo=False))
    assert relative(end(order=3, p_pseudo=True), end(order=3, p_pseudo=False)) > 1e-5


def test_half():
    problem = Problem(PATHS["vp"])
    grid = log_snr(problem.path, 8, 0.1, 0.9)
    curves = statistics(problem.path, l=0.8, s=-0.2)

    def run(**options):
        solver = DPMSolverV3(statistics=curves, order=2, **options)
        return run_on_arrays(solver, problem.path, grid, problem.state(grid[0]), problem)

    everywhere, nowhere, noisy, clean = run(), run(corrector=False), run(half="noise"), run(half="data")
    middle = int(np.searchsorted(grid, 0.5))  # first point of the half near the data
    assert np.array_equal(noisy[middle - 1], everywhere[middle - 1])
    assert np.array_equal(clean[middle - 1], nowhere[middle - 1])
    assert not np.array_equal(noisy[middle - 1], nowhere[middle - 1])
    assert not np.array_equal(noisy[middle], everywhere[middle])


def test_curves_per_element():
    """Compiled, with curves of a sample's shape, as a loop does it; a channel of its own stays its own."""
    path = PATHS["linear"]
    rng, lam = np.random.default_rng(0), np.linspace(-3.0, 3.0, 61)
    shape = (61, 2, 3)
    curves = Statistics(lam=lam, l=rng.uniform(0, 1, shape), s=rng.uniform(-1, 0, shape), b=rng.normal(0, 0.1, shape))
    flow = fj.Flow(lambda x, t, cond: jnp.tanh(x) + t[:, None, None], path=path, prediction="noise")
    grid, x = log_snr(path, 6, 0.06, 0.94), rng.standard_normal((4, 2, 3))
    solver = DPMSolverV3(statistics=curves)
    result = fj.solve(flow, solver, jnp.asarray(x, jnp.float32), grid)
    expected = run_on_arrays(solver, path, grid, x, lambda r: np.tanh(r.x) + r.t)[-1]
    assert relative(result.x, expected) < 1e-5
    assert int(result.evaluations) == 6
    one = Statistics(lam=lam, l=curves.l[:, :1, :1], s=curves.s[:, :1, :1], b=curves.b[:, :1, :1])
    single = run_on_arrays(DPMSolverV3(statistics=one), path, grid, x, lambda r: np.tanh(r.x) + r.t)[-1]
    assert relative(single[:, 0, 0], expected[:, 0, 0]) < 1e-12
    assert relative(single[:, 1, 1], expected[:, 1, 1]) > 1e-4


@pytest.mark.parametrize(("start", "end", "word"), [(0.01, 0.9, "start"), (0.1, 0.99, "end"), (0.1, 1.0, "end")])
def test_times_outside_the_statistics_are_refused(start, end, word):
    path = PATHS["vp"]
    solver = DPMSolverV3(statistics=statistics(path))
    with pytest.raises(ValueError, match=rf"cover t from 0\.05 to 0\.95, but the {word} of the times is"):
        solver.bind(path, uniform(5, start, end))


def test_repeated_times():
    problem = Problem(PATHS["vp"])
    grid = log_snr(problem.path, 6, 0.1, 0.9)
    solver = DPMSolverV3(statistics=statistics(problem.path, l=0.7), lower_order_final=False, corrector=False)
    plain = last(solver, problem, grid)
    for place in (0, 3, 6):
        assert relative(last(solver, problem, np.insert(grid, place, grid[place])), plain) < 1e-12


@pytest.mark.parametrize("options", [{"order": 5}, {"half": "both"}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DPMSolverV3(statistics=statistics(PATHS["vp"]), **options)

import numpy as np
import pytest
from problem import PATHS, Problem, relative

from flowjax.solvers import DDIM, AdamsBashforth, Euler, run_on_arrays
from flowjax.solvers.adams_bashforth import EQUAL_STEPS, adams_weights
from flowjax.times import uniform

LINEAR, VE = PATHS["linear"], PATHS["ve"]
UNEVEN = np.array([0.1, 0.17, 0.2, 0.31, 0.42, 0.44, 0.6, 0.71, 0.9])


def equal_noise_levels(path, n, start, end):
    """A grid with equal steps in k = sigma/alpha."""
    levels = np.linspace(*(path.sigma(t) / path.alpha(t) for t in (start, end)), n + 1)
    return np.clip(path.time(-np.log(levels)), start, end)


def bent(n):
    """A smooth grid with unequal steps."""
    return 0.2 + 0.6 * uniform(n) ** 2


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("weights", ["variable", "fixed"])
def test_order_in_time(order, weights):
    solver = AdamsBashforth(order=order, weights=weights, start="rk4")
    if order == 5:  # its Runge-Kutta start is of order 4, and so is a whole run, with a small constant
        assert Problem(LINEAR).order(solver) > 3.8
    else:
        assert Problem(LINEAR).order(solver, counts=(80, 160, 320, 640)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_order_in_the_noise_level(order):
    solver = AdamsBashforth(order=order, form="noise", weights="fixed", start="rk4")
    path = PATHS["vp"]
    found = Problem(path).order(solver, (80, 160, 320, 640), lambda n: equal_noise_levels(path, n, 0.55, 0.8))
    assert found == pytest.approx(order, abs=0.2)


def test_variable_weights_keep_the_order_on_uneven_grids_and_fixed_ones_do_not():
    counts = (160, 240, 400, 640)
    variable = Problem(LINEAR).order(AdamsBashforth(order=3, start="rk4"), counts, bent)
    assert variable == pytest.approx(3, abs=0.2)
    fixed = Problem(LINEAR).order(AdamsBashforth(order=3, start="rk4", weights="fixed"), counts, bent)
    assert fixed == pytest.approx(2, abs=0.2)


def test_start_with_lower_orders_limits_the_order():
    assert Problem(LINEAR).order(AdamsBashforth(order=4), (160, 320, 640, 1280)) == pytest.approx(2, abs=0.2)


def test_weights_are_the_published_ones():
    published = {
        1: [1],
        2: np.array([3, -1]) / 2,
        3: np.array([23, -16, 5]) / 12,
        4: np.array([55, -59, 37, -9]) / 24,
        5: np.array([1901, -2774, 2616, -1274, 251]) / 720,
    }
    for order, weights in published.items():
        assert EQUAL_STEPS[order] == pytest.approx(list(weights), abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_weights_integrate_polynomials_exactly(order):
    """In both directions: times rise, noise levels fall."""
    for nodes, end in (([0.7, 0.4, 0.35, 0.1, 0.02], 1.1), ([1.5, 2.0, 3.5, 3.6, 7.0], 1.2)):
        weights, nodes = adams_weights(nodes[:order], end), np.array(nodes[:order])
        for degree in range(order):
            mean = (end ** (degree + 1) - nodes[0] ** (degree + 1)) / (degree + 1) / (end - nodes[0])
            assert np.dot(weights, nodes**degree) == pytest.approx(mean, rel=1e-10)


def test_order_one_is_euler_or_ddim():
    problem = Problem(PATHS["vp"])
    x = problem.state(UNEVEN[0])

    def run(solver):
        return run_on_arrays(solver, problem.path, UNEVEN, x, problem)[-1]

    assert relative(run(AdamsBashforth(order=1)), run(Euler())) < 1e-13
    assert relative(run(AdamsBashforth(order=1, form="noise")), run(DDIM())) < 1e-12


def test_constant_noise_prediction_is_exact_in_the_noise_form():
    for path in PATHS.values():
        e, m = np.array([[0.3], [-1.0]]), np.array([[2.0], [0.7]])
        x = path.alpha(UNEVEN[0]) * m + path.sigma(UNEVEN[0]) * e
        end = run_on_arrays(AdamsBashforth(form="noise"), path, UNEVEN, x, lambda r, e=e: e)[-1]
        assert np.allclose(end, path.alpha(UNEVEN[-1]) * m + path.sigma(UNEVEN[-1]) * e, atol=1e-12)


def test_noise_form_needs_data_in_the_state_and_reaches_sigma_zero():
    with pytest.raises(ValueError, match="move the start"):
        AdamsBashforth(form="noise").bind(LINEAR, uniform(5))
    assert AdamsBashforth(form="noise").bind(VE, uniform(5)).pattern.rows == 5
    bound = AdamsBashforth(form="noise", start="rk4").bind(LINEAR, uniform(6, 0.1, 1.0))
    assert np.all(np.isfinite(bound.weights))


def test_evaluations():
    assert AdamsBashforth(order=4).bind(LINEAR, uniform(10)).pattern.rows == 10
    assert AdamsBashforth(order=4, start="rk4").bind(LINEAR, uniform(10)).pattern.rows == 3 * 4 + 7


@pytest.mark.parametrize("form", ["velocity", "noise"])
@pytest.mark.parametrize("start", ["lower", "rk4"])
@pytest.mark.parametrize("place", [0, 1, 4, 8])
def test_repeated_times_change_nothing(form, start, place):
    problem, solver = Problem(LINEAR), AdamsBashforth(order=3, form=form, start=start)
    x, twice = problem.state(UNEVEN[0]), np.insert(UNEVEN, place, UNEVEN[place])
    plain, repeated = (run_on_arrays(solver, LINEAR, grid, x, problem)[-1] for grid in (UNEVEN, twice))
    assert relative(repeated, plain) < 1e-13


@pytest.mark.parametrize("options", [{"order": 6}, {"form": "data"}, {"weights": "free"}, {"start": "euler"}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdamsBashforth(**options)

import numpy as np
import pytest
from problem import PATHS, Problem, relative

from flowjax.solvers import AdamsBashforth, DPMSolver, Euler, HeavyBall, Nesterov, run_on_arrays
from flowjax.times import log_snr, uniform

BASES = [Euler(), AdamsBashforth(order=3), DPMSolver(order=2)]


@pytest.mark.parametrize("base", BASES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["vp", "linear", "ve"])
def test_beta_one_is_the_wrapped_method(name, base):
    problem = Problem(PATHS[name])
    grid = log_snr(problem.path, 8, 0.1, 0.9)
    x = problem.state(grid[0])
    solvers = base, Nesterov(solver=base, beta=1.0), Nesterov(solver=base, beta=0.8), HeavyBall(solver=base, beta=0.8)
    plain, same, other, heavy = (run_on_arrays(s, problem.path, grid, x, problem)[-1] for s in solvers)
    assert relative(same, plain) < 1e-13
    assert relative(other, plain) > 1e-4
    assert relative(other, heavy) > 1e-4


def test_recurrence():
    """v_n = 0.3 v_(n-1) + 0.7 d_n from v_0 = d_0, and 0.3 v_n + 0.7 d_n is used."""
    d = np.array([1.0, 2.0, -1.0, 4.0])
    values = iter(d)
    solver = Nesterov(solver=Euler(), beta=0.7)
    network = lambda r: np.full((1, 1), next(values))  # noqa: E731
    solutions = run_on_arrays(solver, PATHS["linear"], uniform(4), np.zeros((1, 1)), network)
    v1 = 0.3 * 1.0 + 0.7 * 2.0
    v2 = 0.3 * v1 - 0.7
    v3 = 0.3 * v2 + 0.7 * 4.0
    expected = [1.0, 0.3 * v1 + 0.7 * 2.0, 0.3 * v2 - 0.7, 0.3 * v3 + 0.7 * 4.0]
    assert 4 * np.diff(np.concatenate(solutions)[:, 0]) == pytest.approx(expected)


def test_order_is_one():
    found = Problem(PATHS["linear"]).order(Nesterov(solver=AdamsBashforth(order=2), beta=0.7), (80, 160, 320))
    assert found == pytest.approx(1, abs=0.2)

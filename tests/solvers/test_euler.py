import itertools

import numpy as np
import pytest
from problem import PATHS, Problem, relative

from flowjax.solvers import DDIM, Euler, run_on_arrays
from flowjax.times import uniform


@pytest.mark.parametrize("path", ["linear", "vp"])
def test_order(path):
    assert Problem(PATHS[path]).order(Euler()) == pytest.approx(1, abs=0.2)


def test_equals_ddim_on_the_linear_path_alone():
    grid = uniform(7) ** 1.3
    for name, path in PATHS.items():
        problem = Problem(path)
        inside = grid if name == "linear" else 0.05 + 0.9 * grid
        x = problem.state(inside[0])
        euler, ddim = (run_on_arrays(solver, path, inside, x, problem)[-1] for solver in (Euler(), DDIM()))
        if name == "linear":
            assert relative(euler, ddim) < 1e-12
        else:
            assert relative(euler, ddim) > 1e-3


def test_constant_velocity_is_exact():
    solutions = run_on_arrays(
        Euler(), PATHS["linear"], [0.0, 0.1, 0.7, 1.0], np.zeros((1, 1)), lambda r: np.full((1, 1), 3.0)
    )
    assert [float(x[0, 0]) for x in solutions] == pytest.approx([0, 0.3, 2.1, 3.0], abs=1e-15)


def test_evaluates_at_the_start_of_each_step():
    bound = Euler().bind(PATHS["vp"], uniform(4))
    assert list(bound.times) == [s for s, _ in itertools.pairwise(bound.grid)]

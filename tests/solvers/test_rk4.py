import numpy as np
import pytest
from problem import PATHS, Problem

from flowjax.solvers import RK4, run_on_arrays
from flowjax.times import uniform


@pytest.mark.parametrize("path", ["linear", "vp"])
def test_order(path):
    assert Problem(PATHS[path]).order(RK4(), counts=(10, 20, 40, 80)) == pytest.approx(4, abs=0.2)


def test_one_step_on_the_exponential_is_its_taylor_polynomial():
    end = run_on_arrays(RK4(), PATHS["linear"], [0.0, 0.8], np.ones((1, 1)), lambda r: r.x)[-1]
    assert float(end[0, 0]) == pytest.approx(1 + 0.8 + 0.8**2 / 2 + 0.8**3 / 6 + 0.8**4 / 24, abs=1e-15)


@pytest.mark.parametrize(("path", "evaluations"), [("linear", 20), ("vp", 18), ("cosine", 18), ("ve", 20)])
def test_last_step_is_a_midpoint_step_where_the_velocity_is_infinite(path, evaluations):
    bound = RK4().bind(PATHS[path], uniform(5))
    assert bound.pattern.rows == evaluations
    assert (1.0 in bound.times) == (evaluations == 20)

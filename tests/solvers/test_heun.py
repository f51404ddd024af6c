import numpy as np
import pytest
from problem import PATHS, Problem

from flowjax.solvers import Heun, run_on_arrays
from flowjax.times import uniform


@pytest.mark.parametrize("path", ["linear", "vp"])
def test_order(path):
    assert Problem(PATHS[path]).order(Heun()) == pytest.approx(2, abs=0.2)


def test_is_the_trapezoid():
    """v = 2 t integrates to t^2 exactly, v = 3 t^2 with the error h^2 / 2 of the trapezoid rule."""
    for power, error in ((1, 0.0), (2, 0.1**2 / 2)):
        network = lambda r, p=power: np.full((1, 1), (p + 1) * r.t**p)  # noqa: E731
        end = run_on_arrays(Heun(), PATHS["linear"], uniform(10), np.zeros((1, 1)), network)[-1]
        assert float(end[0, 0]) == pytest.approx(1 + error, abs=1e-14)


@pytest.mark.parametrize(("path", "evaluations"), [("linear", 10), ("trig", 10), ("ve", 10), ("vp", 9), ("cosine", 9)])
def test_last_step_is_euler_where_the_velocity_is_infinite(path, evaluations):
    bound = Heun().bind(PATHS[path], uniform(5))
    assert bound.pattern.rows == evaluations
    assert (1.0 in bound.times) == (evaluations == 10)
    assert Heun().bind(PATHS[path], uniform(5, 0.0, 0.99)).pattern.rows == 10

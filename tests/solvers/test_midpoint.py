import numpy as np
import pytest
from problem import PATHS, Problem

from flowjax.solvers import Midpoint, run_on_arrays
from flowjax.times import uniform


@pytest.mark.parametrize("path", ["linear", "vp"])
def test_order(path):
    assert Problem(PATHS[path]).order(Midpoint()) == pytest.approx(2, abs=0.2)


def test_is_the_midpoint_rule():
    """v = 3 t^2 is integrated with the error -h^2 / 4, half the trapezoid's and of the other sign."""
    network = lambda r: np.full((1, 1), 3 * r.t**2)  # noqa: E731
    end = run_on_arrays(Midpoint(), PATHS["linear"], uniform(10), np.zeros((1, 1)), network)[-1]
    assert float(end[0, 0]) == pytest.approx(1 - 0.1**2 / 4, abs=1e-14)


def test_never_evaluates_at_the_end():
    bound = Midpoint().bind(PATHS["vp"], uniform(4))
    assert np.allclose(bound.times, np.arange(8) / 8, atol=1e-15)

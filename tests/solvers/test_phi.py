import math
from fractions import Fraction

import pytest

from flowjax.solvers.phi import phi


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("z", [-9.5, -1.001, -0.999, -0.25, -1e-9, 0.0, 1e-3, 0.75, 0.999, 1.001, 6.0])
def test_equals_its_series_in_exact_arithmetic(k, z):
    exact = sum(Fraction(z) ** j / math.factorial(j + k) for j in range(70))
    assert phi(k, z) == pytest.approx(float(exact), rel=1e-11)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_limits(k):
    assert phi(k, -math.inf) == 0.0
    assert phi(k, 0.0) == 1 / math.factorial(k)

import numpy as np
import pytest

from flowjax.solvers.quadrature import derivative_weights, lagrange_integrals


@pytest.mark.parametrize("nodes", [[0.3], [0.3, -1.0], [0.3, 0.1, -0.4], [0.8, 0.3, 0.1, -0.4, -2.0]])
def test_integrates_polynomials_through_all_nodes_exactly(nodes):
    for degree in range(len(nodes)):
        p = np.polynomial.Polynomial(np.arange(1.0, degree + 2))
        found = np.dot(lagrange_integrals(nodes, 0.3, 1.1), [p(u) for u in nodes])
        assert found == pytest.approx(p.integ()(1.1) - p.integ()(0.3), rel=1e-12)


def test_the_kernel_weighs():
    """The integral of u e^u is (u - 1) e^u."""
    weights = lagrange_integrals([0.0, 1.0], 0.0, 2.0, np.exp)
    assert weights == pytest.approx([-2.0, np.exp(2) + 1])
    assert sum(weights) == pytest.approx(np.exp(2) - 1)


@pytest.mark.parametrize("offsets", [[-0.5], [-0.5, -1.2], [1.0, -0.5, -1.2], [1.0, -0.3, -0.9, 2.0]])
def test_derivatives_of_polynomials_are_exact(offsets):
    p = np.polynomial.Polynomial([0.7, -1.0, 2.0, 0.5, -0.3][: len(offsets) + 1])
    for k in range(1, len(offsets) + 1):
        found = np.dot(derivative_weights(offsets, k), [p(u) - p(0) for u in offsets])
        assert found == pytest.approx(p.deriv(k)(0), rel=1e-10)

"""Integrals of Lagrange polynomials, the weights of multistep methods."""

from collections.abc import Callable

import numpy as np

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def lagrange_integrals(
    nodes: list[float], start: float, end: float, kernel: Callable[[np.ndarray], np.ndarray] = np.ones_like
) -> list[float]:
    """Integrals of kernel(u) L_j(u) from `start` to `end`, L_j the Lagrange polynomials of distinct `nodes`.

    By 40-point Gauss-Legendre quadrature: exact for polynomial kernels, to rounding for smooth ones.
    """
    u = start + (end - start) * (_POINTS + 1) / 2
    weights = kernel(u) * _WEIGHTS * (end - start) / 2
    result = []
    for j, node in enumerate(nodes):
        others = [other for i, other in enumerate(nodes) if i != j]
        basis = np.prod([(u - other) / (node - other) for other in others], axis=0) if others else np.ones_like(u)
        result.append(float(np.sum(weights * basis)))
    return result

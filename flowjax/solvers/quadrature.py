"""Integrals and derivatives of interpolating polynomials: the weights of multistep methods."""

import math
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


def derivative_weights(offsets: list[float], k: int) -> list[float]:
    """Weights a_j with sum_j a_j (F(u_j) - F(0)) = F^(k)(0) for polynomials F of degree len(offsets).

    Args:
        offsets: distinct u_j, none of them 0.
        k: 1 to len(offsets).
    """
    powers = np.arange(1, len(offsets) + 1)
    matrix = np.array([[u**r / math.factorial(r) for u in offsets] for r in powers])
    return np.linalg.solve(matrix, np.eye(len(offsets))[k - 1]).tolist()

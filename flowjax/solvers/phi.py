"""The functions of exponential integrators: phi_1(z) = (e^z - 1)/z, phi_{k+1}(z) = (phi_k(z) - 1/k!)/z."""

import math


def phi(k: int, z: float) -> float:
    """phi_k(z) = sum_j z^j / (j + k)! for k >= 0 and real z, without cancellation near z = 0; 0 at z = -inf for k >= 1.

    References:
        Hochbruck and Ostermann, Exponential integrators (2010), eq. 2.10.
    """
    if abs(z) < 1:
        return math.fsum(z**j / math.factorial(j + k) for j in range(20))
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value

"""Exponential integrators: their functions phi_1(z) = (e^z - 1)/z, phi_{k+1}(z) = (phi_k(z) - 1/k!)/z, and their step.

The flow is linear in x but for one prediction f, and in lam = log(alpha/sigma) a step from s to t where f does not
change is, with h = lam_t - lam_s and eta the amount of fresh noise (0: the flow),

    noise form: f = e, x' = (alpha_t/alpha_s) x - (1 + eta) sigma_t (e^z - 1) f,          z = h
    data form:  f = m, x' = (sigma_t/sigma_s) e^(-eta h) x - alpha_t (e^z - 1) f,         z = -(1 + eta) h
"""

import math

from flowjax.paths.base import GaussianPath


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


def data_weight(path: GaussianPath, s: float, t: float, z: float) -> float:
    """-alpha_t (e^z - 1), the weight of the data in a step from s to t; its limit if an inversion ends at alpha = 0."""
    if z == math.inf:
        return float(path.alpha(t) - path.sigma(t) / path.sigma(s) * path.alpha(s))
    return -float(path.alpha(t)) * math.expm1(z)


def exponential_step(
    path: GaussianPath, form: str, s: float, t: float, h: float, eta: float = 0.0
) -> tuple[float, float, float]:
    """The weights of x and f, and z."""
    if form == "noise":
        return float(path.alpha(t) / path.alpha(s)), -(1 + eta) * float(path.sigma(t)) * math.expm1(h), h
    decay, z = math.exp(-eta * h) if eta else 1.0, -(1 + eta) * h
    return float(path.sigma(t) / path.sigma(s)) * decay, data_weight(path, s, t, z), z

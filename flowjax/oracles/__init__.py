"""Targets whose flow is known in closed form, the truth for tests of solvers, objectives and networks.

On a path x_t = alpha x1 + sigma x0 a mixture x1 ~ sum_k w_k N(m_k, S_k) with diagonal S_k has at time t the
density p_t = sum_k w_k N(alpha m_k, V_k), V_k = alpha^2 S_k + sigma^2. With the responsibilities r_k(t, x)
and u = sum_k r_k (x - alpha m_k) / V_k,

    score = -u,  noise = sigma u,  data = sum_k r_k (m_k + alpha S_k (x - alpha m_k) / V_k),
    velocity = alpha' data + sigma sigma' u,

which need no limits at either end. All functions compute in the precision of x (float64 under jax's x64
mode).

References:
    Albergo, Boffi and Vanden-Eijnden (2023), Stochastic Interpolants, appendix A, arXiv:2303.08797.
    Geng et al. (2025), Mean Flows for One-step Generative Modeling, equation 3, arXiv:2505.13447 (mean
    velocity).
"""

from flowjax.oracles.base import Network
from flowjax.oracles.gaussian import Gaussian
from flowjax.oracles.mixture import Mixture
from flowjax.oracles.two_sided import TwoSidedMixture, TwoSidedNetwork

__all__ = ["Gaussian", "Mixture", "Network", "TwoSidedMixture", "TwoSidedNetwork"]

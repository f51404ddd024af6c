"""The Frechet distance between two samples, each summarised by a Gaussian."""

import numpy as np
from jaxtyping import Float

from flowjax.evaluation import estimates


def frechet_distance(a: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."]) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the means and covariances of `a` and `b`.

        |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr (C_a^(1/2) C_b C_a^(1/2))^(1/2)

    The last trace is the sum of the singular values of R_a R_b^T, where the R are triangular factors of the
    centred samples (C = R^T R). No covariance is formed and no root of a matrix is taken, so fewer rows than
    columns and constant columns are safe. It is biased upwards for few rows: compare values for equal numbers
    of rows only.

    Args:
        a: (N, D) features, N >= 2.
        b: (M, D) features of the other sample, M >= 2.

    Raises:
        ValueError: Different numbers of columns, fewer than two rows, or values that are not finite.

    References:
        Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982; in features
        of a classifier: Heusel et al., arXiv:1706.08500.
    """
    a, b = estimates.pair(a, b)
    r_a, r_b = (np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1)).R for x in (a, b))
    cross = np.linalg.svd(r_a @ r_b.T, compute_uv=False).sum()
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(r_a**2) + np.sum(r_b**2) - 2 * cross
    return max(float(distance), 0.0)

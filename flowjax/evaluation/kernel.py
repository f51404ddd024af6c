"""The kernel distance between two samples (KID when the features are those of a classifier)."""

import numpy as np
from jaxtyping import Num

from flowjax.evaluation import estimates


def _mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy, kernel (x . y / D + 1)^3."""

    def kernel(products: np.ndarray) -> np.ndarray:
        k = products / a.shape[1] + 1
        return k * k * k  # an integer power of an array is ten times slower

    def within(x: np.ndarray) -> float:
        return (kernel(x @ x.T).sum() - kernel(np.sum(x * x, 1)).sum()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a @ b.T).mean())


def kernel_distance(
    a: Num[np.ndarray, "N D"], b: Num[np.ndarray, "M D"], *, blocks: int = 10, seed: int = 0
) -> estimates.Estimate:
    """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, without bias, and its interval.

    Both samples are split at random into `blocks` parts. The unbiased estimates of the parts are independent; their
    mean is the value, Student's interval, which takes them as normal, its uncertainty. The value may be negative, and
    is 0 in mean for samples of the same law.

    Args:
        a: Features, N >= 2 blocks.
        b: Features of the other sample, M >= 2 blocks.
        blocks: Number of parts, at least 2.
        seed: Decides the parts.

    Raises:
        ValueError: Too few rows or blocks, different numbers of columns, or values that are not finite.

    References:
        Binkowski et al., "Demystifying MMD GANs", arXiv:1801.01401; blocks: Zaremba et al., "B-tests",
        arXiv:1307.1954.
    """
    if blocks < 2:
        raise ValueError(f"needs at least two blocks, got {blocks}")
    a, b = estimates.pair(a, b, 2 * blocks)
    orders = [np.random.default_rng(seed).permutation(len(x)) for x in (a, b)]
    parts = [[x[rows] for rows in np.array_split(order, blocks)] for x, order in zip((a, b), orders)]
    return estimates.mean(np.array([_mmd(*both) for both in zip(*parts)]))

"""Distances of two samples that need no features: sliced Wasserstein and energy distance."""

import numpy as np
from jaxtyping import Float, Num
from sklearn.metrics import pairwise_distances_chunked

from flowjax.evaluation import estimates


def directions(dim: int, num: int, seed: int = 0) -> Float[np.ndarray, "num dim"]:
    """Random lines through the origin as unit vectors; each run of `dim` of them is orthonormal."""
    rng = np.random.default_rng(seed)
    frames = [np.linalg.qr(rng.normal(size=(dim, dim)))[0].T for _ in range(-(-num // dim))]
    return np.concatenate(frames)[:num]


def sliced_wasserstein(
    a: Num[np.ndarray, "N D"], b: Num[np.ndarray, "M D"], *, projections: int = 256, seed: int = 0
) -> float:
    """Root of the mean squared 2-Wasserstein distance of the projections on lines, in the units of the data.

    Exact for the two samples in each projection, also for N != M. The lines come in orthonormal frames; if
    `projections` is a multiple of D, a shift by s gives exactly |s| / sqrt(D).

    Args:
        a: A sample, N >= 1.
        b: Another, M >= 1.
        projections: Number of lines, at least 1.
        seed: Decides the lines.

    Raises:
        ValueError: Empty samples, different numbers of columns, values that are not finite, or no projections.

    References:
        Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015.
    """
    a, b = estimates.pair(a, b, 1)
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    lines = directions(a.shape[1], projections, seed)
    # Between two neighbouring jumps of the quantile functions both are constant.
    jumps = np.union1d(np.arange(1, len(a) + 1) / len(a), np.arange(1, len(b) + 1) / len(b))
    weights = np.diff(jumps, prepend=0.0)
    middles = jumps - weights / 2
    rows = [np.minimum((middles * len(x)).astype(int), len(x) - 1) for x in (a, b)]
    total = 0.0
    for block in np.array_split(lines, -(-len(lines) // 64)):
        quantiles = [np.sort(block @ x.T, axis=1)[:, row] for x, row in zip((a, b), rows)]
        total += float(np.sum(weights * (quantiles[0] - quantiles[1]) ** 2))
    return float(np.sqrt(total / len(lines)))


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(part.sum()) for part in pairwise_distances_chunked(a, b, working_memory=64)) / (len(a) * len(b))


def energy_distance(a: Num[np.ndarray, "N D"], b: Num[np.ndarray, "M D"]) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, without bias, in the units of the data.

    0 in mean for samples of the same law (single values may be negative), positive for different laws.

    Args:
        a: A sample, N >= 2.
        b: Another, M >= 2.

    Raises:
        ValueError: Fewer than two rows, different numbers of columns, or values that are not finite.

    References:
        Szekely and Rizzo, "Energy statistics", Journal of Statistical Planning and Inference, 2013.
    """
    a, b = estimates.pair(a, b)
    # Distances are made of inner products, which lose the digits that a common offset takes.
    middle = np.concatenate([a, b]).mean(0)
    a, b = a - middle, b - middle
    within = [_mean_distance(x, x) * len(x) / (len(x) - 1) for x in (a, b)]
    return 2 * _mean_distance(a, b) - within[0] - within[1]

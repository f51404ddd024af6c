"""Precision, recall, density and coverage: fidelity and variety of samples apart."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Num
from scipy.spatial.distance import cdist
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from flowjax.evaluation import estimates


def _radii(x: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each row to its `neighbours`-th nearest other row."""
    found = NearestNeighbors(n_neighbors=neighbours).fit(x).kneighbors(return_distance=False)
    # Differences, not inner products as in the search: exactly 0 for equal rows.
    distances = [np.linalg.norm(x - x[column], axis=1) for column in found.T]
    # The row on the border of the ball belongs to it, whatever rounding says.
    return np.max(distances, axis=0) * (1 + 1e-9)


def _distances(a: np.ndarray, b: np.ndarray, radius_a: np.ndarray, radius_b: np.ndarray) -> Iterator[np.ndarray]:
    """Distances of some rows of `a` after the other to all of `b`, good enough to compare with the radii.

    By inner products, which are quick, a square is known to about eps (|a|^2 + |b|^2); where that leaves a comparison
    open (equal rows, radii of 0, clusters far apart) it is made by differences.
    """
    squares_a, squares_b = np.sum(a * a, 1), np.sum(b * b, 1)
    start = 0
    for distances in pairwise_distances_chunked(a, b, working_memory=64):
        part = slice(start, start + len(distances))
        error = 64 * np.finfo(np.float64).eps * (squares_a[part, None] + squares_b)
        known = [np.abs(distances**2 - radius**2) > error for radius in (radius_a[part, None], radius_b)]
        yield distances if all(map(np.all, known)) else cdist(a[part], b)
        start += len(distances)


def manifold_report(
    x: Num[np.ndarray, "N F"], real: Num[np.ndarray, "M F"], *, neighbours: int = 5
) -> dict[str, float]:
    """How samples and real data cover each other; each row has a ball that reaches to its k-th neighbour.

    Args:
        x: Features of samples, N > `neighbours`.
        real: Features of real data, M > `neighbours`. Compare numbers for equal N and M only.
        neighbours: k, at least 1.

    Returns:
        precision: Fraction of samples in a ball of real data, in [0, 1].
        recall: Fraction of real data in a ball of samples, in [0, 1].
        density: Mean number of balls of real data around a sample, over k; 1 in mean for a perfect generator.
        coverage: Fraction of real data whose ball has a sample, in [0, 1].

    Raises:
        ValueError: Too few rows, different numbers of columns, or values that are not finite.

    References:
        Kynkaanniemi et al., arXiv:1904.06991 (precision, recall); Naeem et al., arXiv:2002.09797 (density,
        coverage).
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    x, real = estimates.pair(x, real, neighbours + 1)
    x, real = x - real.mean(0), real - real.mean(0)
    radius_x, radius_real = _radii(x, neighbours), _radii(real, neighbours)
    around = np.zeros(len(x), np.int64)
    recalled, covered = [], []
    start = 0
    for distances in _distances(real, x, radius_real, radius_x):
        inside = distances <= radius_real[start : start + len(distances), None]
        around += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= radius_x).any(1))
        start += len(distances)
    return {
        "precision": float(np.mean(around > 0)),
        "recall": float(np.concatenate(recalled).mean()),
        "density": float(around.mean() / neighbours),
        "coverage": float(np.concatenate(covered).mean()),
    }

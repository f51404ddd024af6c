"""A number with the interval that chance leaves open."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy import stats


class Estimate(NamedTuple):
    """`value` with a 95 % confidence interval from `low` to `high`.

    Example:
        >>> import numpy as np
        >>> from flowjax.evaluation import estimates
        >>> estimate = estimates.mean(np.array([1.0, 2.0, 3.0]))
        >>> round(estimate.value, 2), round(estimate.low, 2), round(estimate.high, 2)
        (2.0, -0.48, 4.48)
    """

    value: float
    low: float
    high: float


def mean(values: Num[np.ndarray, " N"]) -> Estimate:
    """Mean of independent values with Student's interval.

    Raises:
        ValueError: Fewer than two values, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"needs at least two finite values, got {len(values)} with {np.isfinite(values).sum()} finite")
    middle = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Estimate(middle, middle - half, middle + half)


def pair(a: Num[np.ndarray, "..."], b: Num[np.ndarray, "..."], least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both samples as float64.

    Raises:
        ValueError: Not (N, D) and (M, D) with N, M >= `least`, or values that are not finite, see `rows`.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0 or min(len(a), len(b)) < least:
        raise ValueError(f"needs (N, D) and (M, D) with N, M >= {least}, got {a.shape} and {b.shape}")
    return rows(a), rows(b)


def rows(x: Num[np.ndarray, "N ..."]) -> Float[np.ndarray, "N D"]:
    """Examples of any shape as rows of float64.

    Raises:
        ValueError: No example, or a number that is not real, finite and at most 1e50 (powers of larger ones overflow).
    """
    x = np.asarray(x)
    if len(x) == 0 or np.iscomplexobj(x):
        raise ValueError(f"needs one or more examples of real numbers, got shape {x.shape} of {x.dtype}")
    values = x.astype(np.float64).reshape(len(x), -1)
    bad = np.sum(~(np.abs(values) <= 1e50))
    if bad:
        raise ValueError(
            f"examples and features must be finite and at most 1e50, {bad} of {values.size} numbers are not"
        )
    return values

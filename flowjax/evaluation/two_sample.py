"""Whether a classifier can tell samples from real data."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Num
from scipy import stats
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from flowjax.evaluation import estimates


class TwoSample(NamedTuple):
    """Result of `two_sample_test`.

    Attributes:
        accuracy: Of the classifier on rows that it never saw: 0.5 when it finds no difference, 1 when it sees all.
        low: Lower end of the 95 % interval of the accuracy.
        high: Upper end.
        p_value: Probability of at least this accuracy if both samples have the same law.

    Example:
        >>> import numpy as np
        >>> from flowjax.evaluation import two_sample_test
        >>> a = np.random.default_rng(0).normal(size=(100, 2))
        >>> result = two_sample_test(a, a + 5.0)
        >>> result.accuracy, result.p_value < 1e-6
        (1.0, True)
    """

    accuracy: float
    low: float
    high: float
    p_value: float


def two_sample_test(a: Num[np.ndarray, "N D"], b: Num[np.ndarray, "M D"], *, seed: int = 0) -> TwoSample:
    """Tells `a` from `b` by the nearest rows in one half of both (the root of their number votes); counts on the other.

    The larger sample is cut to the size of the smaller.

    Args:
        a: A sample, N >= 20.
        b: Another, M >= 20.
        seed: Decides the rows and the halves.

    Raises:
        ValueError: Too few rows, different numbers of columns, or values that are not finite.

    References:
        Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", arXiv:1610.06545.
    """
    a, b = estimates.pair(a, b, 20)
    rng, size = np.random.default_rng(seed), min(len(a), len(b))
    x = np.concatenate([part[rng.permutation(len(part))[:size]] for part in (a, b)])
    y = np.repeat([0, 1], size)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.5, random_state=seed, stratify=y)
    machine = KNeighborsClassifier(int(np.sqrt(len(train_y))) // 2 * 2 + 1)  # odd, so that no vote is a tie
    right = int((machine.fit(train_x, train_y).predict(test_x) == test_y).sum())
    test = stats.binomtest(right, len(test_y), alternative="greater")
    ends = stats.binomtest(right, len(test_y)).proportion_ci(method="wilson")
    return TwoSample(right / len(test_y), float(ends.low), float(ends.high), float(test.pvalue))

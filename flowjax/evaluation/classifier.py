"""A classifier of real data that judges generated data; it trains in a second on two thousand small images.

A support vector machine with a Gaussian kernel, one for each pair of classes. On the 8x8 digits it is more
accurate than a small convolutional network and far quicker to train, and its result does not depend on an
initialisation.
"""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Float, Int, Num
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from flowjax import _checks
from flowjax.evaluation import estimates


def _shifted(x: Num[np.ndarray, "N ..."]) -> list[Num[np.ndarray, "N ..."]]:
    """Images and their moves by one pixel up, down, left and right; other data as it is."""
    if x.ndim != 4:
        return [x]
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=x.min())
    corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    return [padded[:, i : i + height, j : j + width] for i, j in corners]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Trained by `train_classifier`.

    Attributes:
        machine: The support vector machine on flattened data.
        accuracy: Fraction of the real examples kept out of its training that it recognises.
        digest: First 8 hexadecimal digits of a hash of its weights. Distances in the features of classifiers
            with different digests cannot be compared.

    Example:
        >>> import numpy as np
        >>> from flowjax.evaluation import train_classifier
        >>> x, cond = np.concatenate([np.zeros((10, 2)), np.ones((10, 2))]), np.repeat([0, 1], 10)
        >>> judge = train_classifier(x + 0.01 * np.arange(20)[:, None], cond, num_classes=2)
        >>> judge.accuracy, judge.predict(np.array([[0.0, 0.0], [1.0, 1.0]])).tolist()
        (1.0, [0, 1])
    """

    machine: SVC
    accuracy: float
    digest: str

    def predict(self, x: Num[np.ndarray, "N ..."]) -> Int[np.ndarray, " N"]:
        """Class of each example, given in the data's own scale."""
        return self.machine.predict(estimates.rows(x)).astype(np.int32)

    def features(self, x: Num[np.ndarray, "N ..."]) -> Float[np.ndarray, "N F"]:
        """Signed margins between all pairs of classes (45 for ten classes), from which the vote is taken."""
        return self.machine.decision_function(estimates.rows(x)).reshape(len(x), -1)


def train_classifier(
    x: Num[np.ndarray, "N ..."],
    cond: Int[np.ndarray, " N"],
    num_classes: int,
    seed: int = 0,
    held_out: float = 0.2,
) -> Classifier:
    """Trains on real data; images are also shown moved by one pixel.

    Time grows with the square of the number of examples: meant for up to ten thousand small images.

    Args:
        x: Real examples in the data's own scale.
        cond: Their labels in [0, num_classes); every class at least twice.
        num_classes: At least 2.
        seed: Decides which examples are kept out.
        held_out: Fraction of each class kept out to measure the accuracy, in (0, 1).

    Raises:
        ValueError: A label outside its range, a class with fewer than two examples, numbers that are not finite, or
            held_out outside (0, 1).
    """
    x, cond = np.asarray(x), np.asarray(cond)
    estimates.rows(x)
    _checks.real("(0, 1)", held_out=held_out)
    if cond.shape != (len(x),):
        raise ValueError(f"{len(x)} examples need as many labels, got {cond.shape}")
    if num_classes < 2 or cond.min() < 0 or cond.max() >= num_classes:
        raise ValueError(f"needs at least two classes and labels in 0..{num_classes - 1}, got {np.unique(cond)}")
    counts = np.bincount(cond, minlength=num_classes)
    if counts.min() < 2:
        raise ValueError(f"class {counts.argmin()} has {counts.min()} examples; at least two are needed")
    train_x, test_x, train_y, test_y = train_test_split(x, cond, test_size=held_out, random_state=seed, stratify=cond)
    copies = _shifted(train_x)
    machine = SVC(C=10.0, gamma="scale", decision_function_shape="ovo")
    machine.fit(estimates.rows(np.concatenate(copies)), np.tile(train_y, len(copies)))
    weights = (machine.support_vectors_, machine.dual_coef_, machine.intercept_)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(w).tobytes() for w in weights)).hexdigest()[:8]
    accuracy = float(machine.score(estimates.rows(test_x), test_y))
    return Classifier(machine, accuracy, digest)

"""Measures of class-conditional samples against real data, and how they are printed."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, Num
from rich.table import Table
from sklearn.neighbors import NearestNeighbors

from flowjax.evaluation import estimates
from flowjax.evaluation.classifier import Classifier
from flowjax.evaluation.extractors import Extractor, ImageClassifier
from flowjax.evaluation.frechet import frechet_distance
from flowjax.evaluation.kernel import kernel_distance
from flowjax.evaluation.manifold import manifold_report
from flowjax.evaluation.transport import energy_distance, sliced_wasserstein
from flowjax.evaluation.two_sample import two_sample_test


def _labels(x: Num[np.ndarray, "N ..."], cond: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    cond = np.asarray(cond)
    if cond.shape != (len(x),):
        raise ValueError(f"{len(x)} examples need as many labels, got {cond.shape}")
    return cond


def within_class_spread(x: Num[np.ndarray, "N ..."], cond: Int[np.ndarray, " N"]) -> dict[int, float]:
    """Root of the trace of the covariance of each class with at least two examples, in the units of `x`.

    Raises:
        ValueError: No examples, numbers that are not finite, or not a label for each.
    """
    rows, cond = estimates.rows(x), _labels(x, cond)
    classes = [int(c) for c, count in zip(*np.unique(cond, return_counts=True)) if count > 1]
    return {c: float(np.sqrt(rows[cond == c].var(0, ddof=1).sum())) for c in classes}


def nearest_distances(
    x: Num[np.ndarray, "N ..."], train_x: Num[np.ndarray, "M ..."] | None = None
) -> Float[np.ndarray, " N"]:
    """Euclidean distance of each row of `x` to the nearest of `train_x`, or else to its nearest other row.

    Raises:
        ValueError: No examples, only one and no others, or numbers that are not finite.
    """
    rows = estimates.rows(x)
    if train_x is None and len(rows) < 2:
        raise ValueError("one example has no nearest other one")
    neighbours = NearestNeighbors(n_neighbors=1).fit(rows if train_x is None else estimates.rows(train_x))
    # Without an argument scikit-learn leaves the row itself out.
    return neighbours.kneighbors(None if train_x is None else rows)[0][:, 0]


def class_report(
    classifier: Classifier | ImageClassifier,
    x: Num[np.ndarray, "N ..."],
    cond: Int[np.ndarray, " N"],
    real_x: Num[np.ndarray, "M ..."],
    real_cond: Int[np.ndarray, " M"],
    held_out_x: Num[np.ndarray, "K ..."] | None = None,
) -> dict[str, float]:
    """Compares samples with the data that the generator was trained on, both in the data's own scale.

    Copies: a sample is close if it is nearer to a training example than 99 % of fresh real examples are.
        Fresh means
    `held_out_x`, or else each training example against all others. Independent samples of the true law give
    `nearest_ratio` near 1 and `nearest_close` near 0.01; a ratio far below 1 or a fraction far above 0.01
    means copies.

    Args:
        classifier: Trained on real data.
        x: Samples.
        cond: The classes that were asked for.
        real_x: The generator's training data.
        real_cond: Their labels.
        held_out_x: Real examples that the generator was not trained on.

    Returns:
        accuracy: Fraction of samples recognised as the class asked for.
        accuracy_0, ...: The same within each class.
        FD[digest]: Frechet distance to `real_x` in the features of the classifier with that digest.
        spread: Within-class spread of the samples over that of `real_x`, 1 for a perfect generator: root of
            the ratio of the mean traces over classes that have two samples or more, and real examples that
            differ.
        spread_0, ...: The same for each of these classes.
        nearest_ratio: Median distance from a sample to the nearest training example, over that of fresh
            examples; left out where that is 0.
        nearest_close: Fraction of close samples; left out where one of a hundred fresh examples or more is a
            copy itself, which says nothing of copies then.

    Raises:
        ValueError: Fewer than two samples or real examples, numbers that are not finite, or not a label for each.
    """
    cond = _labels(x, cond)
    right = classifier.predict(x) == cond
    report = {"accuracy": float(right.mean())}
    report |= {f"accuracy_{c}": float(right[cond == c].mean()) for c in np.unique(cond)}
    report[f"FD[{classifier.digest}]"] = frechet_distance(classifier.features(x), classifier.features(real_x))

    made, real = within_class_spread(x, cond), within_class_spread(real_x, real_cond)
    shared = sorted(c for c in made.keys() & real.keys() if real[c] > 0)
    if shared:
        traces = np.array([(made[c] ** 2, real[c] ** 2) for c in shared]).mean(0)
        report["spread"] = float(np.sqrt(traces[0] / traces[1]))
        report |= {f"spread_{c}": made[c] / real[c] for c in shared}

    distances = nearest_distances(x, real_x)
    fresh = nearest_distances(real_x) if held_out_x is None else nearest_distances(held_out_x, real_x)
    if np.median(fresh) > 0:
        report["nearest_ratio"] = float(np.median(distances) / np.median(fresh))
    if np.quantile(fresh, 0.01) > 0:
        report["nearest_close"] = float(np.mean(distances < np.quantile(fresh, 0.01)))
    return report


def sample_report(
    extractor: Extractor, x: Num[np.ndarray, "N ..."], real_x: Num[np.ndarray, "M ..."], seed: int = 0
) -> dict[str, float]:
    """Compares samples with real data of any kind in the features of an extractor, both in the data's own scale.

    Args:
        extractor: Its digest is in the names of the distances that are known under other features too.
        x: Samples, N >= 20.
        real_x: Real data, M >= 20. Compare numbers for equal N and M only.
        seed: Decides projections, blocks and halves.

    Returns:
        FD[digest], KID[digest] with KID_low and KID_high, precision, recall, density, coverage, sliced_W2, energy,
        C2ST (the accuracy) with C2ST_low and C2ST_high.
    """
    a, b = (np.asarray(extractor.features(part), np.float64) for part in (x, real_x))
    kid, c2st = kernel_distance(a, b, seed=seed), two_sample_test(a, b, seed=seed)
    return {
        f"FD[{extractor.digest}]": frechet_distance(a, b),
        f"KID[{extractor.digest}]": kid.value,
        "KID_low": kid.low,
        "KID_high": kid.high,
        **manifold_report(a, b),
        "sliced_W2": sliced_wasserstein(a, b, seed=seed),
        "energy": energy_distance(a, b),
        "C2ST": c2st.accuracy,
        "C2ST_low": c2st.low,
        "C2ST_high": c2st.high,
    }


def table(values: Mapping[str, float], title: str | None = None) -> Table:
    """A table of names and numbers for `rich.print`; `name_0, name_1, ...` become one row."""
    result = Table("measure", "value", title=title, show_edge=False)
    result.columns[1].justify = "right"
    classes: dict[str, list[str]] = {}
    for name, value in values.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        stem, _, suffix = name.rpartition("_")
        if suffix.isdigit():
            classes.setdefault(stem, []).append(text if not isinstance(value, float) else f"{value:.2f}")
        else:
            # An escaped bracket, or rich would take FD[...] for its markup.
            result.add_row(name.replace("_", " ").replace("[", "\\["), text)
    for stem, texts in classes.items():
        result.add_row(f"{stem} by class", " ".join(texts))
    return result

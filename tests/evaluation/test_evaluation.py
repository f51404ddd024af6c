import inspect
import io

import numpy as np
import pytest
from rich.console import Console

from flowjax import data, evaluation


@pytest.fixture(scope="module")
def digits():
    return data.digits()


@pytest.fixture(scope="module")
def classifier(digits):
    return evaluation.train_classifier(digits.x, digits.cond, digits.num_classes)


@pytest.fixture(scope="module")
def halves(digits):
    """Two disjoint random halves of the digits."""
    order = np.random.default_rng(0).permutation(len(digits.x))
    return [(digits.x[i], digits.cond[i]) for i in np.array_split(order, 2)]


def test_classifier_knows_digits_it_never_saw(classifier):
    assert classifier.accuracy >= 0.985


def test_classifier_is_deterministic_and_its_digest_tells_it_apart(digits, classifier):
    again = evaluation.train_classifier(digits.x, digits.cond, digits.num_classes)
    assert again.digest == classifier.digest
    np.testing.assert_array_equal(again.features(digits.x[:9]), classifier.features(digits.x[:9]))
    assert classifier.features(digits.x[:9]).shape == (9, 45)
    small = evaluation.train_classifier(digits.x[:400], digits.cond[:400], digits.num_classes)
    assert small.digest != classifier.digest


def test_classifier_of_points_with_two_classes():
    x = np.random.default_rng(0).normal(size=(60, 2)) + 5 * np.repeat([[0], [1]], 30, 0)
    machine = evaluation.train_classifier(x, np.repeat([0, 1], 30), 2)
    assert machine.accuracy == 1.0
    assert machine.features(x).shape == (60, 1)


@pytest.mark.parametrize(("cond", "num_classes"), [([0, 0, 1, 2], 2), ([0, 0, 0, 1], 2), ([0, 0, 1, 1], 1)])
def test_classifier_refuses(cond, num_classes):
    with pytest.raises(ValueError, match="at least two"):
        evaluation.train_classifier(np.zeros((4, 2)), np.array(cond), num_classes)


def exact_sample(rng, mean, root, size):
    """Rows whose sample mean and covariance are exactly `mean` and root root^T."""
    z = rng.normal(size=(size, len(mean)))
    q = np.linalg.qr(z - z.mean(0))[0] * np.sqrt(size - 1)
    return mean + q @ root.T


def test_frechet_distance_of_commuting_gaussians():
    # Equal eigenvectors: the distance is |difference of means|^2 + |difference of the standard deviations|^2.
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    a = exact_sample(rng, np.zeros(4), turn * [1.0, 2.0, 3.0, 0.0], 50)
    b = exact_sample(rng, np.array([1.0, 0, 0, 2.0]), turn * [4.0, 2.0, 1.0, 1e-3], 70)
    np.testing.assert_allclose(evaluation.frechet_distance(a, b), 5.0 + 9.0 + 4.0 + 1e-6, rtol=1e-10)


def test_frechet_distance_of_two_correlated_gaussians_in_the_plane():
    # In two dimensions tr (C_a C_b)^(1/2) = sqrt(tr(C_a C_b) + 2 sqrt(det(C_a C_b))).
    rng = np.random.default_rng(1)
    roots = rng.normal(size=(2, 2, 2))
    c = [r @ r.T for r in roots]
    product = c[0] @ c[1]
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    a, b = (exact_sample(rng, np.zeros(2), root, 30) for root in roots)
    expected = np.trace(c[0]) + np.trace(c[1]) - 2 * cross
    np.testing.assert_allclose(evaluation.frechet_distance(a, b), expected, rtol=1e-9)


def test_frechet_distance_laws():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(20, 40)), 1 + rng.normal(size=(25, 40))
    assert evaluation.frechet_distance(a, a) < 1e-10
    np.testing.assert_allclose(evaluation.frechet_distance(a, b), evaluation.frechet_distance(b, a))
    np.testing.assert_allclose(evaluation.frechet_distance(a, a[::-1] + 0.5), 40 * 0.25)
    with pytest.raises(ValueError, match="finite"):
        evaluation.frechet_distance(a, np.full((3, 40), np.nan))
    with pytest.raises(ValueError, match=r"\(20, 40\) and \(3, 39\)"):
        evaluation.frechet_distance(a, np.zeros((3, 39)))


def test_spread_is_that_of_independent_pixels():
    rng = np.random.default_rng(0)
    x = 10 * np.repeat([0, 1], 4000)[:, None] + rng.normal(size=(8000, 9)) * np.repeat([1.0, 3.0], 4000)[:, None]
    spread = evaluation.within_class_spread(np.vstack([x, x[:1]]), np.append(np.repeat([0, 1], 4000), 2))
    assert list(spread) == [0, 1]
    np.testing.assert_allclose([spread[0], spread[1]], [3.0, 9.0], rtol=0.02)


def test_report_accepts_fresh_real_digits(classifier, halves):
    (train_x, train_y), (fresh_x, fresh_y) = halves
    for held_out in (None, fresh_x):
        report = evaluation.class_report(classifier, fresh_x, fresh_y, train_x, train_y, held_out)
        assert report["accuracy"] > 0.99
        assert 0.97 < report["spread"] < 1.03
        assert 0.95 < report["nearest_ratio"] < 1.05
        assert report["nearest_close"] < 0.03
        assert report[f"FD[{classifier.digest}]"] < 0.6  # 0.34 with other halves
        assert all(type(value) is float for value in report.values())
        assert {f"{name}_{c}" for name in ("accuracy", "spread") for c in range(10)} < report.keys()


@pytest.mark.slow
def test_report_flags_copies_noise_collapse_and_wrong_labels(classifier, halves):
    (train_x, train_y), (fresh_x, fresh_y) = halves
    rng = np.random.default_rng(0)

    def report(x, cond):
        return evaluation.class_report(classifier, x, cond, train_x, train_y)

    fresh = report(fresh_x, fresh_y)
    distance = f"FD[{classifier.digest}]"
    near_copies = report(train_x + rng.normal(size=train_x.shape).astype(np.float32) * 0.5, train_y)
    assert near_copies["nearest_ratio"] < 0.5
    assert near_copies["nearest_close"] > 0.9
    a_tenth = np.concatenate([train_x[:90], fresh_x[90:]]), np.concatenate([train_y[:90], fresh_y[90:]])
    assert report(*a_tenth)["nearest_close"] > 0.09
    noisy = report(fresh_x + 3 * rng.normal(size=fresh_x.shape).astype(np.float32), fresh_y)
    assert noisy[distance] > 5 * fresh[distance]
    assert noisy["nearest_ratio"] > 1.2
    means = np.stack([train_x[train_y == c].mean(0) for c in range(10)])[fresh_y]
    narrow = report(means + 0.5 * (fresh_x - means), fresh_y)
    np.testing.assert_allclose(narrow["spread"], 0.5, atol=0.02)
    assert narrow[distance] > 5 * fresh[distance]
    assert report(fresh_x, (fresh_y + 1) % 10)["accuracy"] < 0.01
    assert report(fresh_x[fresh_y != 3], fresh_y[fresh_y != 3]).keys() == fresh.keys() - {
        "accuracy_3",
        "spread_3",
    }


def test_reports_leave_out_what_repeated_examples_hide():
    """Where real examples repeat, a distance of 0 is no copy; where a class is one point, it has no spread."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 3)) + 5 * np.repeat([0, 1], 60)[:, None], np.repeat([0, 1], 60)
    machine = evaluation.train_classifier(x, y, 2)
    names = evaluation.class_report(machine, x, y, np.repeat([[0.0, 0, 0], [5, 5, 5]], 60, 0), y).keys()
    assert not {"nearest_ratio", "nearest_close", "spread", "spread_0"} & names
    some = np.concatenate([x[:-2], x[:2]])  # two of a hundred and twenty repeat
    names = evaluation.class_report(machine, x + 0.1, y, some, y).keys()
    assert {"nearest_ratio", "spread", "spread_0"} <= names
    assert "nearest_close" not in names


@pytest.mark.standard_promotion
def test_examples_that_are_not_finite_are_refused_and_not_classified(classifier):
    images = np.random.default_rng(0).normal(size=(30, 8, 8, 1))
    network = evaluation.train_network(images, np.arange(30) % 2, 2, steps=1, width=2)
    bad = images.copy()
    bad[4, 2, 2] = np.nan
    for call in (classifier.predict, classifier.features, network.predict, network.features):
        with pytest.raises(ValueError, match="finite"):
            call(bad)
        with pytest.raises(ValueError, match="one or more examples"):
            call(bad[:0])
    labels = np.arange(30) % 2
    for train in map(inspect.unwrap, (evaluation.train_classifier, evaluation.train_network)):
        with pytest.raises(ValueError, match="finite"):
            train(bad, labels, 2)
        with pytest.raises(ValueError, match="need as many labels"):
            train(images, labels[:12], 2)
    with pytest.raises(ValueError, match="held_out must be"):
        evaluation.train_classifier(images, labels, 2, held_out=1.0)
    with pytest.raises(ValueError, match="steps must be"):
        evaluation.train_network(images, labels, 2, steps=0)
    with pytest.raises(ValueError, match="no nearest other one"):
        evaluation.nearest_distances(images[:1])


def test_table_shows_every_number():
    out = io.StringIO()
    values = {"accuracy": 0.98765, "accuracy_0": 0.5, "accuracy_1": 1.0, "FD[ab12cd34]": 0.123, "steps": 7}
    Console(file=out, width=80).print(evaluation.table(values, "digits"))
    text = out.getvalue()
    for piece in ("digits", "0.9877", "FD[ab12cd34]", "0.123", "accuracy by class", "0.50 1.00", "steps"):
        assert piece in text

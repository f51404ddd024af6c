"""Distances against closed forms, and the laws that each must obey."""

import inspect

import numpy as np
import pytest
from scipy import special, stats

from flowjax import evaluation
from flowjax.evaluation import estimates, transport


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# Kernel distance


def test_kernel_distance_of_point_masses():
    # All rows equal: k(x, x) + k(y, y) - 2 k(x, y), in every block.
    a, b = np.full((40, 2), 1.0), np.array([[1.0, -3.0]] * 60)
    estimate = evaluation.kernel_distance(a, b)
    np.testing.assert_allclose(estimate, (1 + 1) ** 3 + (5 + 1) ** 3 - 2 * (-1 + 1) ** 3)


def test_kernel_distance_of_two_laws_in_one_dimension():
    # For X, Y of mean zero: E (X Y + 1)^3 = 1 + 3 E X^2 E Y^2 + (E X^3)(E Y^3); signs +-1 against +-2 give
    # (1 + 3) + (1 + 48) - 2 (1 + 12) = 27.
    rng = np.random.default_rng(0)
    a, b = rng.choice([-1.0, 1.0], size=(4000, 1)), rng.choice([-2.0, 2.0], size=(4000, 1))
    estimate = evaluation.kernel_distance(a, b)
    np.testing.assert_allclose(estimate.value, 27, atol=0.5)


@pytest.mark.slow
def test_kernel_distance_is_zero_in_mean_and_its_interval_covers_zero():
    found = [evaluation.kernel_distance(normal(i, 120, 3), normal(1000 + i, 80, 3), seed=i) for i in range(100)]
    values = np.array([estimate.value for estimate in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert values.min() < 0
    covered = np.mean([estimate.low <= 0 <= estimate.high for estimate in found])
    assert 0.9 < covered < 0.99
    shifted = evaluation.kernel_distance(normal(0, 500, 3), 0.7 + normal(1, 500, 3))
    assert shifted.low > 0


# Sliced Wasserstein distance


@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_sliced_distance_of_a_shift(dim):
    shift = np.arange(1.0, dim + 1)
    x = normal(0, 50, dim)
    distance = evaluation.sliced_wasserstein(x, x + shift, projections=4 * dim)
    np.testing.assert_allclose(distance, np.linalg.norm(shift) / np.sqrt(dim))


def test_sliced_distance_of_unequal_sizes_is_that_of_the_laws():
    # Repeating every row changes no law; a mass at 0 against half at 1 and half at -2 costs (1 + 4) / 2.
    a, b = normal(0, 6, 3), normal(1, 4, 3)
    value = evaluation.sliced_wasserstein(a, b)
    np.testing.assert_allclose(evaluation.sliced_wasserstein(np.repeat(a, 5, 0), np.repeat(b, 2, 0)), value)
    np.testing.assert_allclose(evaluation.sliced_wasserstein(np.zeros((3, 1)), np.array([[1.0], [-2.0]])) ** 2, 2.5)
    np.testing.assert_allclose(
        evaluation.sliced_wasserstein(np.array([[0.0], [1], [2]]), np.array([[0.0], [3]])) ** 2, 7 / 6
    )


def test_sliced_distance_of_scaled_gaussians():
    x, y = normal(0, 40_000, 2), 3 * normal(1, 40_000, 2)
    np.testing.assert_allclose(evaluation.sliced_wasserstein(x, y), 2.0, rtol=0.02)


def test_directions_are_frames():
    lines = transport.directions(4, 10)
    np.testing.assert_allclose(lines[:4] @ lines[:4].T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(lines, axis=1), 1.0)
    assert lines.shape == (10, 4)
    # Lines in the plane, uniform.
    angles = np.arctan2(*transport.directions(2, 2000)[::2].T) / np.pi
    assert stats.kstest(angles % 1, "uniform").pvalue > 1e-3


# Energy distance


def test_energy_distance_of_known_laws():
    np.testing.assert_allclose(evaluation.energy_distance(np.zeros((5, 3)), np.ones((7, 3))), 2 * np.sqrt(3))
    # Uniform on [0, 1] against its shift by 1: 2 * 1 - 1/3 - 1/3.
    rng = np.random.default_rng(0)
    a, b = rng.random((4000, 1)), 1 + rng.random((4000, 1))
    np.testing.assert_allclose(evaluation.energy_distance(a, b), 4 / 3, rtol=0.04)  # six standard errors
    # Standard normal in d dimensions: E|X - Y| = 2 gamma((d + 1) / 2) / gamma(d / 2), and sqrt((1 + 9) / 2) times it
    # between standard deviations 1 and 3.
    unit = 2 * special.gamma(2.0) / special.gamma(1.5)
    expected = 2 * np.sqrt(5) * unit - unit - 3 * unit
    np.testing.assert_allclose(
        evaluation.energy_distance(normal(1, 4000, 3), 3 * normal(2, 4000, 3)), expected, rtol=0.05
    )


def test_energy_distance_is_zero_in_mean_under_equality():
    values = np.array([evaluation.energy_distance(normal(i, 40, 2), normal(500 + i, 30, 2)) for i in range(200)])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert values.min() < 0


# Manifolds


def test_identical_and_disjoint_sets():
    a = normal(0, 60, 4)
    same = evaluation.manifold_report(a, a)
    assert (same["precision"], same["recall"], same["coverage"]) == (1.0, 1.0, 1.0)
    # Each row counts itself too, and lies in k other balls on average.
    np.testing.assert_allclose(same["density"], (5 + 1) / 5)
    far = evaluation.manifold_report(a, a + 100)
    assert set(far.values()) == {0.0}


def test_two_clusters_of_which_one_is_missing():
    real = np.concatenate([normal(0, 50, 2), 100 + normal(1, 50, 2)])
    report = evaluation.manifold_report(normal(2, 100, 2), real)
    assert report["precision"] > 0.8
    assert 0.35 < report["recall"] <= 0.5
    assert 0.35 < report["coverage"] <= 0.5
    assert report["density"] > 0.7
    spread = evaluation.manifold_report(100 * normal(3, 100, 2), real)
    assert spread["precision"] < 0.2


def test_density_is_one_under_equality():
    values = [evaluation.manifold_report(normal(i, 200, 3), normal(100 + i, 200, 3))["density"] for i in range(20)]
    np.testing.assert_allclose(np.mean(values), 1.0, atol=0.05)


# Two-sample test


def test_two_sample_test_under_equality_and_shift():
    same = [evaluation.two_sample_test(normal(i, 300, 2), normal(50 + i, 300, 2), seed=i) for i in range(12)]
    assert 0.46 < np.mean([test.accuracy for test in same]) < 0.54
    assert sum(test.low <= 0.5 <= test.high for test in same) >= 10
    assert sum(test.p_value < 0.05 for test in same) <= 3
    # A shift by 3 along one axis: no classifier beats Phi(1.5) = 0.933.
    far = evaluation.two_sample_test(normal(0, 2000, 2), normal(1, 1500, 2) + np.array([3.0, 0.0]))
    assert 0.90 < far.accuracy < 0.95
    assert far.p_value < 1e-6
    # Equal means and variances, but another law.
    ring = normal(2, 1000, 2)
    ring *= np.sqrt(2) / np.linalg.norm(ring, axis=1, keepdims=True)
    assert evaluation.two_sample_test(ring, normal(3, 1000, 2)).low > 0.7


# Likelihood


def test_likelihood_of_a_gaussian():
    x = 5 + 2 * normal(0, 1030, 3)
    exact = -stats.norm(5, 2).logpdf(x).sum(1)
    shapes = set()

    def log_prob(z):
        shapes.add((z.shape, z.dtype.name))
        return stats.norm.logpdf(z.astype(np.float64)).sum(1)

    found = evaluation.negative_log_likelihood(log_prob, x, shift=5.0, scale=2.0)
    assert shapes == {((200, 3), "float32")}
    np.testing.assert_allclose(found.value, exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.high - found.value, 1.962 * exact.std(ddof=1) / np.sqrt(1030), rtol=1e-3)
    entropy = 3 * np.log(2 * np.sqrt(2 * np.pi * np.e))
    assert found.low < entropy < found.high
    bits = evaluation.bits_per_dimension(found, 3)
    np.testing.assert_allclose(bits, np.array(found) / (3 * np.log(2)))
    with pytest.raises(ValueError, match="5 with 4 finite"):
        evaluation.negative_log_likelihood(lambda z: np.where(np.arange(200) == 2, -np.inf, 0.0), x[:5])


@pytest.mark.parametrize(
    ("options", "log_prob", "message"),
    [
        ({"scale": 0.0}, lambda z: np.zeros(200), "scale must be above 0"),
        ({"shift": np.nan}, lambda z: np.zeros(200), "shift must be finite"),
        ({"block": 0}, lambda z: np.zeros(0), "block must be"),
        ({}, lambda z: np.zeros((200, 1)), r"one number for each of 200 examples, got \(200, 1\)"),
        ({}, lambda z: 0.0, r"one number for each"),
    ],
)
def test_likelihoods_that_are_none(options, log_prob, message):
    with pytest.raises(ValueError, match=message):
        evaluation.negative_log_likelihood(log_prob, normal(0, 9, 2), **options)
    for x in (normal(0, 0, 2), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="examples"):
            evaluation.negative_log_likelihood(lambda z: np.zeros(200), x)
    with pytest.raises(ValueError, match="size must be"):
        evaluation.bits_per_dimension(estimates.Estimate(1.0, 0.0, 2.0), 0)


# Equal rows and far offsets


def test_equal_rows_are_at_distance_zero():
    """Three points twenty times each, of a set made by the same three: all of it is covered."""
    three = np.repeat(normal(0, 3, 24) + 7, 20, 0)
    report = evaluation.manifold_report(three, three[::-1].copy())
    assert (report["precision"], report["recall"], report["coverage"]) == (1, 1, 1)
    np.testing.assert_allclose(report["density"], 20 / 5)
    off = evaluation.manifold_report(three + 1e-3, three)  # radii of 0 reach nothing else
    assert set(off.values()) == {0.0}


def test_a_far_offset_changes_no_distance():
    a, b = 1e-3 * normal(0, 60, 3), 1e-3 * normal(1, 60, 3)
    shift = np.array([1e6, -3e6, 2e6])
    for distance in (evaluation.energy_distance, evaluation.sliced_wasserstein, evaluation.frechet_distance):
        np.testing.assert_allclose(distance(a + shift, b + shift), distance(a, b), rtol=1e-5)
    assert evaluation.manifold_report(a + shift, b + shift) == evaluation.manifold_report(a, b)
    # Clusters far apart: what is near is still told apart.
    two = np.concatenate([a, a + shift]), np.concatenate([b, b + shift])
    once = evaluation.manifold_report(a, b)
    for name, value in evaluation.manifold_report(*two).items():
        np.testing.assert_allclose(value, once[name], err_msg=name)


# All of them


@pytest.mark.parametrize(
    "distance",
    [
        evaluation.energy_distance,
        evaluation.sliced_wasserstein,
        evaluation.frechet_distance,
        lambda a, b: inspect.unwrap(evaluation.kernel_distance)(a, b, blocks=2).value,
    ],
)
def test_distances_are_symmetric_and_refuse(distance):
    a, b = normal(0, 60, 3), 1 + normal(1, 60, 3)
    np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-9)
    with pytest.raises(ValueError, match="finite"):
        distance(a, np.full((60, 3), np.nan))
    distance = inspect.unwrap(distance)  # as users have it, without the types checked
    for bad in (b[:0], b[:, :0], b[:, 0], 1j * b):
        with pytest.raises(ValueError, match="needs"):
            distance(a[:, :0] if bad.shape == (60, 0) else a, bad)
    with pytest.raises(ValueError, match="at most 1e50"):
        distance(a, 1e60 * b)


def test_euclidean_distances_ignore_rotations_shifts_and_the_order():
    a, b = normal(0, 90, 3), 1 + normal(1, 60, 3)
    turn = np.linalg.qr(normal(2, 3, 3))[0]
    moved = [np.random.default_rng(3).permutation(x) @ turn + 7 for x in (a, b)]
    np.testing.assert_allclose(evaluation.energy_distance(*moved), evaluation.energy_distance(a, b))
    before, after = evaluation.manifold_report(a, b), evaluation.manifold_report(*moved)
    np.testing.assert_allclose(list(after.values()), list(before.values()))
    np.testing.assert_allclose(evaluation.energy_distance(3 * a, 3 * b), 3 * evaluation.energy_distance(a, b))


def test_refusals_of_numbers():
    with pytest.raises(ValueError, match=r"needs \(N, D\) and \(M, D\) with N, M >= 2, got \(60, 3\) and \(60, 2\)"):
        estimates.pair(normal(0, 60, 3), normal(0, 60, 2))
    a = normal(0, 30, 2)
    for call, message in (
        (lambda: evaluation.kernel_distance(a, a, blocks=1), "at least two blocks"),
        (lambda: evaluation.kernel_distance(a, a, blocks=16), ">= 32"),
        (lambda: evaluation.sliced_wasserstein(a, a, projections=0), "at least 1"),
        (lambda: evaluation.manifold_report(a, a, neighbours=0), "at least 1"),
        (lambda: evaluation.manifold_report(a, a[:5]), ">= 6"),
        (lambda: evaluation.two_sample_test(a, a[:19]), ">= 20"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

import types

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_sample_images

from flowjax import data

LAWS = ("checkerboard", "eight_gaussians", "spiral", "two_moons")


def test_digits_are_the_1797_images_in_their_own_scale():
    source = data.load("digits")
    assert source.x.shape == (1797, 8, 8, 1)
    assert (source.x.min(), source.x.max()) == (source.low, source.high) == (0.0, 16.0)
    assert source.cond.dtype == np.int32
    assert sorted(set(source.cond.tolist())) == list(range(source.num_classes)) == [int(n) for n in source.names]
    normalised = source.normalize(source.x)
    assert (normalised.min(), normalised.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(source.denormalize(normalised), source.x)


@pytest.mark.parametrize("law", LAWS)
def test_laws_are_keyed_centred_and_of_unit_size(law):
    source = data.toy2d(law, size=200_000, seed=1)
    assert source.x.shape == (200_000, 2)
    assert source.cond is None
    np.testing.assert_array_equal(source.x, data.toy2d(law, size=200_000, seed=1).x)
    assert not np.array_equal(source.x, data.toy2d(law, size=200_000, seed=2).x)
    z = source.normalize(source.x.astype(np.float64))
    np.testing.assert_allclose(np.mean(z**2), 1.0, atol=0.01)
    if law != "spiral":
        np.testing.assert_allclose(z.mean(0), 0.0, atol=0.01)


def test_eight_gaussians_have_equal_weights_and_radial_noise():
    x = data.toy2d("eight_gaussians", size=80_000).x.astype(np.float64)
    angle = np.arctan2(x[:, 1], x[:, 0])
    nearest = np.rint(angle / (np.pi / 4)).astype(int) % 8
    assert stats.chisquare(np.bincount(nearest)).pvalue > 1e-3
    centre = 4 * np.stack([np.cos(nearest * np.pi / 4), np.sin(nearest * np.pi / 4)], 1)
    assert stats.kstest(((x - centre) / 0.3).ravel(), "norm").pvalue > 1e-3


def test_checkerboard_is_uniform_on_eight_squares():
    x = data.toy2d("checkerboard", size=80_000).x.astype(np.float64)
    column, row = np.floor((x + 4) / 2).astype(int).T
    assert np.all((column + row) % 2 == 0)
    counts = np.bincount(4 * column + row, minlength=16)
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-3
    assert np.count_nonzero(counts) == 8
    assert stats.kstest((x / 2 % 1).ravel(), "uniform").pvalue > 1e-3


def test_moons_and_spiral_lie_on_their_curves():
    x = data.toy2d("two_moons", size=20_000).x.astype(np.float64)
    upper = np.linalg.norm(x + np.array([0.5, 0.25]), axis=1) - 1
    lower = np.linalg.norm(x - np.array([0.5, 0.25]), axis=1) - 1
    assert np.quantile(np.minimum(abs(upper), abs(lower)), 0.99) < 0.3
    x = data.toy2d("spiral", size=20_000).x.astype(np.float64)
    radius, angle = np.linalg.norm(x, axis=1), np.arctan2(x[:, 1], x[:, 0])
    turns = (3 * radius / 8 - angle / (2 * np.pi)) % 1
    outside = radius > 1
    assert np.quantile(np.minimum(turns, 1 - turns)[outside], 0.99) < 0.13


def test_load_names_the_closest():
    with pytest.raises(
        ValueError,
        match=r"unknown data set 'digit'; did you mean 'digits'\? \(allowed: digits, images, npz, shapes, tfds, toy2d",
    ):
        data.load("digit")
    with pytest.raises(ValueError, match="did you mean 'two_moons'"):
        data.load("toy2d", law="two_moon")
    with pytest.raises(ValueError, match="option of toy2d 'sed'; did you mean 'seed'"):
        data.load("toy2d", law="spiral", sed=1)
    with pytest.raises(ValueError, match="allowed: none"):
        data.load("digits", size=3)
    with pytest.raises(ValueError, match="needs the option 'law'"):
        data.load("toy2d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=np.zeros((0, 2))), "at least one"),
        (dict(scale=0.0), "positive"),
        (dict(num_classes=None), "together"),
        (dict(num_classes=2), r"0\.\.1, got 0\.\.2"),
        (dict(names=("a",)), "1 names"),
    ],
)
def test_source_refuses(change, message):
    good = dict(x=np.zeros((3, 2)), cond=np.arange(3, dtype=np.int32), num_classes=3)
    data.Source(**good)
    if "x" in change:
        good |= dict(cond=None, num_classes=None)
    with pytest.raises(ValueError, match=message):
        data.Source(**(good | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shift=float("nan")), "shift must be finite"),
        (dict(scale=float("inf")), "finite"),
        (dict(scale=float("nan")), "positive"),
        (dict(low=1.0, high=1.0), "low must be less than high"),
        (dict(low=float("-inf")), "both finite"),
    ],
)
def test_source_refuses_scales_that_are_not_finite(change, message):
    with pytest.raises(ValueError, match=message):
        data.Source(x=np.zeros((3, 2)), **change)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("images", dict(folder="a", size="64"), r"option size of data set 'images' must be int or NoneType, got '64'"),
        ("images", dict(folder=None), "option folder of data set 'images' must be str, got None"),
        ("images", dict(folder="a", classes=3), "must be Sequence or NoneType, got 3"),
        ("toy2d", dict(law="spiral", size=99999999999999), r"size=99999999999999 would take .* GiB, more than half"),
        ("shapes", dict(size=99999999999999), "would take .* more than half of the memory"),
    ],
)
def test_load_refuses_options_of_another_type_or_size(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, **options)


def test_data_of_a_run_may_not_have_changed():
    run = dict(shape=(2,), num_classes=None, shift=3.0, scale=2.0)
    source = data.Source(x=np.ones((3, 2)))
    found = data.as_trained(source, types.SimpleNamespace(**run))
    np.testing.assert_array_equal(found.normalize(found.x), -np.ones((3, 2)))
    for change, message in (
        (dict(shape=(4,)), r"shape of the examples is \(2,\), not \(4,\)"),
        (dict(num_classes=3), "number of classes is None, not 3"),
    ):
        with pytest.raises(ValueError, match=f"the data changed since training: the {message}"):
            data.as_trained(source, types.SimpleNamespace(**(run | change)))


def test_laws_are_independent_points_of_unit_size():
    source = data.load("laws", size=100_000, seed=3)
    target = data.toy2d("two_moons", size=100_000, seed=3)
    np.testing.assert_array_equal(source.x, target.x)
    x0 = source.fields["x0"].astype(np.float64)
    np.testing.assert_allclose(np.mean(x0**2), 1.0, atol=0.01)
    # On the circle of the eight Gaussians, and not the points that they have under the same seed.
    radius = np.linalg.norm(x0, axis=1)
    np.testing.assert_allclose(radius.mean() / radius.std(), 4 / 0.3, rtol=0.05)
    other = data.toy2d("eight_gaussians", size=100_000, seed=3)
    assert np.abs(x0[:9] - other.normalize(other.x[:9])).max() > 0.1
    moons = source.normalize(source.x.astype(np.float64))
    assert np.abs(np.corrcoef(x0.T, moons.T)[:2, 2:]).max() < 0.02
    swapped = data.laws("two_moons", "spiral", size=10)
    np.testing.assert_array_equal(swapped.x, data.toy2d("spiral", size=10).x)
    with pytest.raises(ValueError, match="unknown law 'moons'"):
        data.load("laws", source="moons")


def with_fields(**fields):
    return data.Source(x=np.arange(6.0).reshape(3, 2), fields=fields)


def test_a_subset_keeps_its_fields():
    x0, text = np.arange(6.0).reshape(3, 2) + 10, np.array(["a", "b", "c"])
    part = with_fields(x0=x0, text=text).take(2, seed=1)
    np.testing.assert_array_equal(part.fields["x0"], part.x + 10)
    assert [ord(letter) - ord("a") for letter in part.fields["text"]] == (part.x[:, 0] / 2).tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(text=np.array(["a", "b"])), r"3 examples need as many rows of the field text, got \(2,\)"),
        (dict(text=np.array("abc")), "as many rows"),
        (dict(text=np.array([["a"], ["b"], ["c"]])), r"numbers or texts \(N,\), got <U1 \(3, 1\)"),
        (dict(words=np.array([["a"], ["b", "c"], []], dtype=object)), "numbers or texts"),
        (dict(x0=np.zeros((3, 1))), r"field x0 must have the shape \(3, 2\), got \(3, 1\)"),
        (dict(wind=np.array([0.0, np.nan, 1.0])), "the field wind must be finite"),
        (dict(cond=np.zeros(3)), "not x1 or cond, got 'cond'"),
        ({"a b": np.zeros(3)}, "named like a variable"),
    ],
)
def test_source_refuses_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        with_fields(**fields)


def test_fields_are_not_lost_in_prepared_sets(tmp_path):
    with pytest.raises(ValueError, match="x0 would be lost"):
        data.store(with_fields(x0=np.zeros((3, 2))), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_patches_of_photographs_lie_where_their_number_says():
    china, flower = load_sample_images().images
    source = data.load("photographs", size=16, stride=100)
    assert source.x.shape == (2 * 5 * 7, 16, 16, 3)
    np.testing.assert_array_equal(source.x[7 + 2], china[100:116, 200:216])
    np.testing.assert_array_equal(source.x[35 + 7 + 2], flower[100:116, 200:216])
    assert source.cond.tolist() == [0] * 35 + [1] * 35
    assert (source.names, source.normalize(np.array([255.0])).tolist()) == (("china", "flower"), [1.0])
    with pytest.raises(ValueError, match="size must be at most 427"):
        data.load("photographs", size=428)
    assert len(data.load("photographs", size=427, stride=1000).x) == 2


def test_synthetic_examples_are_normal_noise_by_number():
    source = data.load("synthetic", shape=(4, 4, 2), num_classes=3, size=1000)
    x = source.x[np.array([7, 2])]
    np.testing.assert_array_equal(x[1], source.x[np.array([2])][0])
    assert not np.array_equal(x[0], x[1])
    assert stats.kstest(np.asarray(source.x).ravel(), "norm").pvalue > 0.001
    assert source.cond[:4].tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="size"):
        data.load("synthetic", shape=(2,), size=0)

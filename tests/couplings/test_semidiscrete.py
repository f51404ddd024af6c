"""Semi-discrete maps: masses, monotonicity, blocks, angles, classes, the two ends of t*, and starts between modes."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS
from scipy.stats import norm, wasserstein_distance

import flowjax as fj
from flowjax.couplings import SemidiscreteMap, fit, optimal_heights
from flowjax.couplings.semidiscrete import rescaled
from flowjax.oracles import Mixture

pytestmark = pytest.mark.standard_promotion  # ott-jax


def key(seed=0):
    return jax.random.key(seed)


def some_map(n=37, shape=(3,), seed=0, **options):
    rng = np.random.default_rng(seed)
    targets = jnp.asarray(rng.standard_normal((n, *shape)), jnp.float32)
    heights = jnp.asarray(rng.standard_normal(n), jnp.float32)
    return SemidiscreteMap(**{"targets": targets, "heights": heights, "time": 0.5} | options)


def test_where_there_is_no_target_there_is_no_start():
    of_two = some_map(n=6, labels=jnp.array([0, 0, 0, 2, 2, 2]), block=4)
    x, cond = jax.random.normal(key(3), (4, 3)), jnp.array([0, 1, 2, 2])
    with pytest.raises(ValueError, match="no targets of class 1"):
        of_two.start(x, 0.5, cond)
    x = x.at[3, 0].set(jnp.nan)
    start = jax.jit(lambda m, x, c: (m.start(x, 0.5, c), m.nearest(x, c)))
    with_labels = jax.tree.map(jnp.asarray, of_two)
    points, found = start(with_labels, x, cond)
    assert np.isfinite(points).all(1).tolist() == [True, False, True, False]
    assert (found[:, 0] >= 0).tolist() == [True, False, True, False]
    mixed = some_map().start(x, 0.5, key=key(1), k=3)
    assert np.isfinite(mixed).all(1).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: some_map(heights=jnp.full(37, jnp.nan)), "heights must be finite"),
        (lambda: some_map(n=0), "0 targets"),
        (lambda: some_map(block=0), "block must be"),
        (lambda: some_map().start(jnp.zeros((2, 4)), 0.5), "targets have"),
        (lambda: some_map().start(jnp.zeros((2, 3)), 0.5, threshold=2.0), "threshold must be"),
        (lambda: some_map().masses(key(), 0), "num must be"),
        (lambda: fit(key(), fj.paths.Linear(), jnp.full((3, 1), jnp.nan), 0.5), "finite data"),
        (lambda: optimal_heights(key(), jnp.zeros((2, 1)), jnp.array([1.0, 0.0])), "positive masses"),
        (lambda: optimal_heights(key(), jnp.zeros((2, 1)), jnp.array([0.5, 0.4])), "sum to 1"),
        (lambda: optimal_heights(key(), jnp.zeros((2, 1)), rate=-1.0), "rate must be"),
        (lambda: optimal_heights(key(), jnp.zeros((2, 1)), steps=0), "steps must be"),
    ],
)
def test_numbers_that_make_no_map(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def fitted(*arguments, **options):
    """`fit` with its warning about the data."""
    with pytest.warns(UserWarning, match="training samples, noised to t"):
        return fit(key(), *arguments, **options)


@pytest.mark.slow
def test_two_points_in_one_dimension():
    """Masses 0.3 and 0.7 of N(0, 1) at -1 and 1: the border is the 0.3 quantile, (h_0 - h_1)/2."""
    y = jnp.array([[-1.0], [1.0]])
    heights, error = optimal_heights(key(), y, jnp.array([0.3, 0.7]), steps=600, batch=4096, threshold=0.0)
    border = float(norm.ppf(0.3))
    assert (heights[0] - heights[1]) / 2 == pytest.approx(border, abs=0.01)
    g = 2 * heights + 1
    assert (g[0] - g[1]) / 4 == pytest.approx(border, abs=0.01)
    assert abs(heights.sum()) < 1e-9
    assert abs(error) < 1e-3
    found = SemidiscreteMap(targets=y, heights=jnp.asarray(heights, jnp.float32), time=0.0)
    assert found.masses(jax.random.key(1), 20_000)[0] == pytest.approx(0.3, abs=0.012)
    again, _ = optimal_heights(
        key(), y, jnp.array([0.3, 0.7]), heights=heights, steps=600, batch=4096, rate=1e-4, threshold=0.0
    )
    assert again == pytest.approx(heights, abs=0.01)  # a fit that goes on from its result stays there


@pytest.mark.slow
def test_uniform_source_on_a_line():
    """n equal masses in their order: cells of length 1/n, that is h_{j+1} - h_j = -(j + 1)/n (y_{j+1} - y_j)."""
    y = np.array([0.9, -0.5, 0.2, 0.4, 2.0])
    heights, _ = optimal_heights(
        key(), jnp.asarray(y[:, None], jnp.float32), source="uniform", steps=600, batch=4096, threshold=0.0
    )
    order = np.argsort(y)
    borders = -np.diff(heights[order]) / np.diff(y[order])
    assert borders == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.02)
    found = SemidiscreteMap(
        targets=jnp.asarray(y[:, None], jnp.float32),
        heights=jnp.asarray(heights, jnp.float32),
        time=0.0,
        source="uniform",
    )
    x = jnp.linspace(0.03, 0.97, 48)[:, None]
    assert np.array_equal(found.nearest(x)[:, 0], order[np.searchsorted(borders, np.asarray(x)[:, 0])])
    assert float(found.of_source(fj.noise(key(), (4000, 1))).mean()) == pytest.approx(0.5, abs=0.02)


def test_any_map_is_monotone_and_does_not_see_a_constant():
    found = some_map()
    x, z = (fj.noise(jax.random.key(k), (200, 3)) for k in (1, 2))
    t_x, t_z = (found.start(v, 0.5) for v in (x, z))
    assert float(jnp.sum((t_x - t_z) * (x - z), axis=1).min()) >= 0
    moved = some_map(heights=found.heights + 3.0)
    assert np.array_equal(moved.start(x, 0.5), t_x)
    assert found.masses(key(), 500).sum() == pytest.approx(1.0)  # so the gradient, masses - 1/n, sums to zero


@pytest.mark.parametrize("block", [1, 5, 36, 37, 1000])
def test_blocks_do_not_matter(block):
    found, x = some_map(block=block), fj.noise(key(), (50, 3))
    scores = np.asarray(x) @ np.asarray(found.targets).T + np.asarray(found.heights)
    assert np.array_equal(found.nearest(x, k=4), np.argsort(-scores, axis=1)[:, :4])
    assert np.array_equal(found.nearest(x)[:, 0], np.argmax(scores, axis=1))


def test_images_are_flattened():
    found, x = some_map(shape=(4, 4, 1)), fj.noise(key(), (6, 4, 4, 1))
    flat = some_map(shape=(16,))
    assert np.array_equal(found.start(x, 0.5).reshape(6, -1), flat.start(x.reshape(6, -1), 0.5))


def test_angles_and_their_threshold():
    y = np.random.default_rng(3).standard_normal((8, 3)).astype(np.float32)
    y[1] = y[0]
    found = some_map(targets=jnp.asarray(y), heights=jnp.zeros(8))
    pairs = jnp.array([[0, 1], [0, 2], [3, 4], [5, 6]])
    angles = np.asarray(found.angles(pairs))[:, 0]
    normal = np.concatenate([y, -np.ones((8, 1))], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    assert angles == pytest.approx([np.arccos(min(1, normal[i] @ normal[j])) for i, j in np.asarray(pairs)], abs=1e-3)
    assert angles[0] == 0
    assert np.all((angles >= 0) & (angles < np.pi))
    unit = np.asarray(rescaled(jnp.asarray(angles)[:, None]))[:, 0]
    assert np.sum(unit <= 1) == 4
    assert list(np.flatnonzero(unit <= 0)) == [0]
    assert np.array_equal(rescaled(jnp.ones((3, 1))), np.zeros((3, 1)))


@pytest.mark.slow
def test_mixing_stays_between_accepted_neighbours():
    found, x = some_map(n=20, shape=(2,)), fj.noise(key(), (64, 2))
    plain = np.asarray(found.start(x, 0.5))
    top = np.asarray(found.nearest(x, k=2))
    assert np.array_equal(top[:, 0], found.nearest(x)[:, 0])
    mixed = np.asarray(found.start(x, 0.5, key=key(5), k=2, threshold=1.0))
    assert np.all(np.any(mixed != plain, axis=1))
    first, second = (np.asarray(found.targets)[top[:, i]] for i in (0, 1))
    weight = np.linalg.norm(mixed - first, axis=1) / np.linalg.norm(second - first, axis=1)
    assert np.all(weight < 1)
    assert mixed == pytest.approx(first + weight[:, None] * (second - first), abs=1e-5)
    few = np.asarray(found.start(x, 0.5, key=key(5), k=2, threshold=0.4))
    rejected = np.asarray(rescaled(found.angles(jnp.asarray(top))))[:, 0] > 0.4
    assert 0 < rejected.sum() < 64
    assert np.array_equal(few[rejected], plain[rejected])
    assert np.array_equal(few[~rejected], mixed[~rejected])
    assert len(np.unique(found.start(x, 0.5, key=key(5), k=4), axis=0)) > len(np.unique(plain, axis=0))


@pytest.mark.slow
def test_the_two_ends_of_the_time():
    """At t* = 1 the targets are the data; at t* = 0 of the linear path they are a set of noises."""
    x1 = 5 + fj.noise(jax.random.key(1), (12, 2))
    for time, expected in ((1.0, x1), (0.0, None)):
        found = fitted(PATHS["linear"], x1, time, steps=100)
        assert found.time == time
        start = np.asarray(found.start(fj.noise(key(), (30, 2)), time))
        targets = np.asarray(found.targets)
        assert all(np.any(np.all(targets == row, axis=1)) for row in start)
        if expected is None:
            assert abs(targets.mean()) < 1.2
            assert np.abs(targets - np.asarray(x1)).min() > 1
        else:
            assert np.array_equal(targets, expected)


@functools.cache
def two_modes():
    x1 = np.concatenate([np.full((60, 1), -2.0), np.full((60, 1), 2.0)]) + 0.1 * np.asarray(fj.noise(key(), (120, 1)))
    labels = jnp.asarray(np.repeat([0, 1], 60), jnp.int32)
    return jnp.asarray(x1, jnp.float32), labels


@pytest.mark.slow
def test_no_start_lies_between_modes():
    x1, _ = two_modes()
    path, time = PATHS["linear"], 0.7
    found = fitted(path, x1, time, steps=600)
    z = fj.noise(jax.random.key(2), (400, 1))
    start = np.asarray(found.start(z, time))[:, 0]
    nearest = np.abs(start[:, None] - np.asarray(found.targets)[None, :, 0]).min(axis=1)
    assert nearest.max() == 0
    middle = 0.2  # the modes are at 1.4 with a spread of 0.31
    assert np.mean(np.abs(start) < middle) == np.mean(np.abs(np.asarray(found.targets)) < middle)
    std = float(np.std(np.asarray(found.targets)))
    assert np.mean(np.abs(std * np.asarray(z)) < middle) > np.mean(np.abs(start) < middle) + 0.05


@pytest.mark.slow
def test_one_map_per_class():
    x1, labels = two_modes()
    found = fitted(PATHS["vp"], x1, 0.8, labels, steps=600, batch=2048)
    z = fj.noise(jax.random.key(2), (500, 1))
    for label, sign in ((0, -1), (1, 1)):
        cond = jnp.full(500, label, jnp.int32)
        index = np.asarray(found.nearest(z, cond))[:, 0]
        assert np.all(np.asarray(labels)[index] == label)
        assert np.mean(np.sign(np.asarray(found.start(z, 0.8, cond))) == sign) > 0.95
        masses = found.masses(jax.random.key(3), 60_000, label)
        own = np.asarray(labels) == label
        assert masses[~own].sum() == 0
        assert 60 * np.sum(masses[own] ** 2) - 1 < 0.1
        assert abs(float(np.asarray(found.heights)[own].mean())) < 1e-5
    mixed = np.asarray(labels)[np.asarray(found.nearest(z, jnp.asarray(np.arange(500) % 2, jnp.int32), k=3))]
    assert np.array_equal(mixed, np.tile((np.arange(500) % 2)[:, None], (1, 3)))


@pytest.mark.slow
def test_sampling_starts_at_the_time_of_the_targets():
    """Fewer steps and the law of the data, on the mixture, with the start and the grid from one t*."""
    path = PATHS["vp"]
    target = Mixture.default(path)
    x1 = target.sample(jax.random.key(7), 120)
    found = fitted(path, x1, 0.6, steps=600)
    flow, times = fj.Flow(target.network("velocity"), path=path), fj.times.uniform(5, found.time, 1 - 1e-3)
    x = fj.solve(flow, fj.solvers.DPMSolver(), found.start(fj.noise(key(), (512, 1)), times[0]), times).x
    assert wasserstein_distance(np.asarray(x)[:, 0], np.asarray(x1)[:, 0]) < 0.15
    with pytest.raises(ValueError, match=r"targets are at t = 0\.6: start the times there, not at 0"):
        found.start(fj.noise(key(), (4, 1)), 0.0)


@pytest.mark.slow
def test_convergence_in_32_dimensions():
    """512 targets y ~ 2 N(0, I): from more than 10 (16, 93 on another seed) to counting noise, and no cell is empty."""
    y = 2 * fj.noise(jax.random.key(1), (512, 32))
    start = SemidiscreteMap(targets=y, heights=-jnp.sum(y**2, axis=1) / 2, time=0.0)
    heights, _ = optimal_heights(key(), y, steps=2000, batch=1024, threshold=0.0)
    end = SemidiscreteMap(targets=y, heights=jnp.asarray(heights, jnp.float32), time=0.0)
    before, after = (m.masses(jax.random.key(9), 50 * 512) for m in (start, end))
    assert 512 * np.sum(before**2) - 1 > 10
    assert 512 * np.sum(after**2) - 1 < 1 / 50 + 0.03  # 1/50 is the counting noise of 50 draws per cell
    assert before.min() == 0
    assert after.min() > 0


def test_uneven_masses_are_told():
    x1 = 5 + fj.noise(key(1), (12, 2))
    with pytest.warns(UserWarning, match=".") as caught:
        fit(key(), PATHS["linear"], x1, 0.0, steps=100, rate=1e-6)
    # ott-jax warns of jaxopt where it is imported first.
    told = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert "starts of this map are 12 training samples" in told[0]
    assert "masses of the cells are uneven" in told[1]


@pytest.mark.slow
def test_starts_are_as_precise_as_the_data(x64):
    x1 = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
    found = fitted(PATHS["linear"], x1, 1.0, steps=100, batch=32)
    start = found.start(fj.noise(key(1), (4, 2), 0, jnp.float64), 1.0)
    assert start.dtype == jnp.float64
    assert np.all(np.any(np.all(np.asarray(start)[:, None] == np.asarray(x1)[None], axis=2), axis=1))


def test_refusals(monkeypatch):
    found, x = some_map(), fj.noise(key(), (2, 3))
    labelled = some_map(labels=jnp.asarray(np.arange(37) % 3, jnp.int32))
    for make, message in (
        (lambda: some_map(source="cauchy"), "source='cauchy' is not one of normal, uniform"),
        (lambda: optimal_heights(key(), found.targets, source="cauchy"), "not one of"),
        (lambda: some_map(time=1.5), "time must be in"),
        (lambda: found.nearest(x, k=38), "k must be 1 to 37"),
        (lambda: labelled.nearest(x, jnp.zeros(2, jnp.int32), k=13), "k must be 1 to 12"),
        (lambda: labelled.nearest(x), "pass cond= exactly if"),
        (lambda: found.nearest(x, jnp.zeros(2, jnp.int32)), "pass cond= exactly if"),
        (lambda: found.start(x, 0.5, k=2), "pass key="),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    monkeypatch.setitem(sys.modules, "ott.geometry.semidiscrete_pointcloud", None)
    with pytest.raises(ImportError, match="pip install ott-jax"):
        optimal_heights(key(), found.targets)

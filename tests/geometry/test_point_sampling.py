"""Sampling rules of point clouds: what is kept, what is lost, how outliers fare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.stats import ks_2samp

from flowjax.geometry import corruptions, shapes
from flowjax.geometry import point_sampling as ps

N, KEY_POINTS = 1024, 512
FPS = jax.jit(ps.farthest_points, static_argnums=1)
FFPS = jax.jit(ps.filtered_farthest_points, static_argnums=1)
WEIGHTS = jax.jit(ps.isolation_weights, static_argnums=1)
WRS = jax.jit(ps.weighted_random, static_argnums=2)
STEP = jax.jit(ps.tangent_step, static_argnums=2)


def sphere(rng, count):
    x = rng.normal(size=(count, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cloud_with_outliers(seed, outliers):
    rng = np.random.default_rng(seed)
    cube = rng.uniform(-1, 1, (100 * outliers, 3))
    far = cube[np.abs(np.linalg.norm(cube, axis=1) - 1) > 0.15][:outliers]
    x = np.concatenate([sphere(rng, N - outliers), far])
    order = rng.permutation(N)
    return jnp.asarray(x[order], jnp.float32), order >= N - outliers


@pytest.mark.parametrize("outliers", [6, 9, 17, 25, 33])
def test_outliers_become_key_points_only_without_the_filter(outliers):
    x, bad = cloud_with_outliers(outliers, outliers)
    assert bad[FPS(x, KEY_POINTS)].sum() >= 0.9 * outliers
    assert bad[FFPS(x, KEY_POINTS)].sum() <= max(0.1 * outliers, 1)
    weights = WEIGHTS(x, 20)
    drawn = bad[WRS(jax.random.key(outliers), weights, KEY_POINTS)].sum()
    assert drawn < outliers / 2 or outliers < 9
    assert np.isclose(weights.sum(), 1, atol=1e-5)
    ratio = np.median(weights[~bad]) / np.median(weights[bad])
    assert 7 <= ratio <= 13  # 10 neighbours near against the point itself


def test_order_of_the_rules():
    shares = []
    for seed in range(30):
        x, bad = cloud_with_outliers(500 + seed, 20)
        keys = jax.random.split(jax.random.key(seed))
        chosen = (
            FPS(x, KEY_POINTS),
            WRS(keys[0], jnp.ones(N), KEY_POINTS),
            WRS(keys[1], WEIGHTS(x, 20), KEY_POINTS),
            FFPS(x, KEY_POINTS),
        )
        shares.append([bad[c].mean() * KEY_POINTS / 20 for c in chosen])
    assert (np.diff(np.array(shares)[:, :3]) < 0).mean() > 0.9  # in single clouds
    fps, uniform, wrs, ffps = np.mean(shares, 0)
    assert fps > 0.96
    assert 0.4 < uniform < 0.6
    assert ffps < wrs < 0.11
    assert ffps < 0.06


def test_against_scipy():
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    distance, index = cKDTree(x).query(x, 20)
    mine, squares = ps.neighbours(jnp.asarray(x))
    np.testing.assert_array_equal(mine, index)
    np.testing.assert_array_equal(mine[:, 0], np.arange(200))
    np.testing.assert_allclose(np.sqrt(squares), distance, rtol=1e-4, atol=1e-6)
    tau = np.median((distance**2).mean(1))
    counts = (distance**2 <= tau).sum(1)
    np.testing.assert_allclose(WEIGHTS(jnp.asarray(x), 20), counts / counts.sum(), rtol=1e-6)
    chosen = [0]
    for _ in range(29):
        chosen.append(int(((x[:, None] - x[chosen][None]) ** 2).sum(-1).min(1).argmax()))
    np.testing.assert_array_equal(FPS(jnp.asarray(x), 30), chosen)


def test_invariances():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(150, 3)))
        turn = jnp.asarray(Rotation.from_rotvec([0.5, 1.0, -0.3]).as_matrix())
        weights = WEIGHTS(x, 20)
        np.testing.assert_allclose(WEIGHTS(2.5 * x @ turn.T + 7.0, 20), weights)
        order = rng.permutation(150)
        np.testing.assert_allclose(WEIGHTS(x[order], 20), weights[order])
        moved = STEP(jax.random.key(0), 2.5 * x @ turn.T, 20)
        np.testing.assert_allclose(moved, 2.5 * STEP(jax.random.key(0), x, 20) @ turn.T, atol=1e-9)
        np.testing.assert_array_equal(FPS(2.5 * x @ turn.T, 40), FPS(x, 40))


@pytest.mark.slow
def test_padding_changes_nothing():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(150, 3)), jnp.float32)
    for filling in (100.0, 0.0, np.nan):
        padded = jnp.concatenate([x, jnp.full((50, 3), filling, jnp.float32)])
        mask = (jnp.arange(200) < 150).astype(jnp.float32)
        given = None if np.isnan(filling) else mask
        weights = WEIGHTS(padded, 20, given)
        np.testing.assert_array_equal(weights[:150], WEIGHTS(x, 20))
        assert not weights[150:].any()
        for rule in (FPS, FFPS):
            np.testing.assert_array_equal(rule(padded, 40, mask=given), rule(x, 40))
        index, squares = ps.neighbours(padded, 20, given)
        np.testing.assert_array_equal(index[:150], ps.neighbours(x)[0])
        assert np.isinf(squares[150:]).all()
        assert np.isfinite(STEP(jax.random.key(0), padded, 20, given)).all()
        drawn = WRS(jax.random.key(0), weights, 180)
        assert sorted(drawn[:150].tolist()) == list(range(150))
        assert (drawn[150:] == -1).all()
        assert (FPS(padded, 160, mask=given)[150:] == -1).all()


def test_farthest_points_start_and_origin():
    x = jnp.asarray([[0.0, 0, 0], [1, 0, 0], [0, 0.9, 0], [-0.8, 0, 0]])
    assert FPS(x, 2).tolist() == [0, 1]
    assert ps.farthest_points(x, 4, skip_origin=True).tolist() == [1, 3, 2, -1]
    assert FPS(x, 3, jnp.asarray([0.0, 0, 1, 1])).tolist() == [2, 3, -1]


def test_filter_keeps_its_share_with_ties_by_place():
    x = jnp.asarray(sphere(np.random.default_rng(3), 200), jnp.float32)
    weights = np.asarray(WEIGHTS(x, 20))
    kept = ps.trusted(x)
    expected = np.zeros(200, bool)
    expected[np.argsort(-weights, kind="stable")[:190]] = True
    np.testing.assert_array_equal(kept, expected)
    assert ps.trusted(x, mask=(jnp.arange(200) < 101).astype(jnp.float32)).sum() == 95


@pytest.mark.slow
def test_tangent_steps():
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        basis = Rotation.random(rng=np.random.default_rng(5)).as_matrix()
        plane = jnp.asarray(rng.uniform(-1, 1, (N, 2)) @ basis[:2])
        np.testing.assert_allclose(STEP(jax.random.key(0), plane, 20) @ basis[2], 0, atol=1e-12)
    flat = STEP(jax.random.key(0), plane.astype(jnp.float32), 20)
    np.testing.assert_allclose(flat @ jnp.asarray(basis[2], jnp.float32), 0, atol=2e-6)
    x = jnp.asarray(sphere(rng, N), jnp.float32)
    new = STEP(jax.random.key(1), x, 20)
    step = np.linalg.norm(new - x, axis=1)
    error = np.abs(np.linalg.norm(new, axis=1) - 1).mean()
    assert error < 0.0045
    chords = jnp.asarray(x[ps.neighbours(x)[0][:, 1:]] + x[:, None]) / 2
    assert error < np.abs(np.linalg.norm(chords, axis=-1) - 1).mean()  # halfway along a chord, 0.0046
    anywhere = x + step[:, None] * sphere(rng, N)
    assert np.abs(np.linalg.norm(anywhere, axis=1) - 1).mean() > 8 * error
    median = np.sqrt(np.sort(ps.neighbours(x)[1], 1)[:, 9])
    assert (step <= median * (1 + 1e-5)).all()
    assert 0.02 < (step == 0).mean() < 0.09  # one in twenty draws itself


def test_gradient_of_tangent_steps():
    with jax.enable_x64(True):
        x = jnp.asarray(sphere(np.random.default_rng(6), 30))
        value = jax.jit(lambda x: (ps.tangent_step(jax.random.key(3), x, 8) ** 3).sum())
        gradient = jax.grad(value)(x)
        for index in ((0, 0), (11, 2), (25, 1)):
            h = 1e-6
            slope = (value(x.at[index].add(h)) - value(x.at[index].add(-h))) / (2 * h)
            np.testing.assert_allclose(gradient[index], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ratio", [0.5, 0.7, 1.0])
def test_balanced_drop(ratio):
    cloud = np.random.default_rng(7).normal(size=(400, 3)).astype(np.float32)
    x = jnp.asarray(cloud)
    drop = jax.jit(ps.balanced_drop)
    for seed, spread in ((0, 0.0), (1, 0.4), (2, 1.0), (3, None)):
        kept = np.asarray(drop(jax.random.key(seed), x, ratio, spread=spread)) > 0
        assert kept.sum() == 400 - int(np.float32(400) * np.float32(1 - np.float32(ratio)))
        if spread == 0.0 and ratio < 1:
            radii = np.linalg.norm(cloud[:, None] - cloud[None], axis=-1)
            # One of the points is nearer to every removed point than to every kept one.
            assert (radii[:, ~kept].max(1) <= radii[:, kept].min(1)).any()
    if ratio == 0.5:
        mask = (jnp.arange(400) < 300).astype(jnp.float32)
        assert drop(jax.random.key(0), x, 0.5, mask).sum() == 150
        assert not drop(jax.random.key(0), x, 0.5, mask)[300:].any()


def test_global_drop_has_the_same_law_everywhere():
    x = jnp.asarray(np.random.default_rng(8).normal(size=(2000, 3)), jnp.float32)
    kept = np.asarray(ps.balanced_drop(jax.random.key(0), x, 0.5, spread=1.0)) > 0
    radius = np.linalg.norm(x, axis=1)
    assert ks_2samp(radius[kept], radius[~kept]).pvalue > 0.01


def test_resample_counts():
    x = jnp.asarray(sphere(np.random.default_rng(9), 100), jnp.float32)
    run = jax.jit(ps.resample)
    for ratio, count in ((0.5, 50), (0.75, 75), (1.0, 100), (1.5, 150), (2.0, 200)):
        points, mask = run(jax.random.key(0), x, ratio)
        assert points.shape == (200, 3)
        assert mask.sum() == count
        np.testing.assert_array_equal(points[:100], x)
        if ratio >= 1:
            assert mask[:100].all()
    ratios = jax.vmap(ps.draw_ratio)(jax.random.split(jax.random.key(1), 500))
    assert 0.5 <= ratios.min() < 0.55
    assert 1.9 < ratios.max() <= 2
    assert 0.4 < (ratios < 1).mean() < 0.6


def test_densify():
    x = jnp.asarray(sphere(np.random.default_rng(10), 100), jnp.float32)
    run = jax.jit(ps.densify, static_argnums=(2, 3))
    points, mask = run(jax.random.key(0), x, 256, 20)
    assert mask.all()
    np.testing.assert_array_equal(points[:100], x)
    assert np.abs(np.linalg.norm(points, axis=1) - 1).mean() < 0.06
    assert len(np.unique(np.asarray(points).round(6), axis=0)) > 235  # few steps lead nowhere, the others differ
    np.testing.assert_array_equal(run(jax.random.key(0), x, 60, 20)[0], x[:60])
    holes = (jnp.arange(100) % 5 == 0).astype(jnp.float32)
    points, _ = run(jax.random.key(0), x, 256, 20, holes)
    np.testing.assert_array_equal(points[:20], x[::5])
    assert len(np.unique(np.asarray(points).round(6), axis=0)) > 150
    points, mask = run(jax.random.key(0), x, 256, 20, jnp.zeros(100))
    assert not mask.any()
    assert np.isfinite(points).all()


@pytest.mark.slow
def test_empty_clouds_are_answered_with_minus_one():
    x, none = jnp.ones((30, 3)), jnp.zeros(30)
    assert (FPS(x, 5, none) == -1).all()
    assert (FFPS(x, 5, mask=none) == -1).all()
    assert not WEIGHTS(x, 20, none).any()
    assert (WRS(jax.random.key(0), WEIGHTS(x, 20, none), 5) == -1).all()
    assert (ps.fixed_size(x, 5, none) == -1).all()
    assert ps.fixed_size(x, 3, none.at[4].set(1)).tolist() == [4, -1, -1]
    assert len(set(ps.fixed_size(x, 30, key=jax.random.key(0)).tolist())) == 30
    assert (FPS(jnp.full((30, 3), jnp.nan), 5) == -1).all()


@pytest.mark.slow
def test_corruptions_of_clouds_with_few_points():
    x = jnp.asarray(0.1 * np.random.default_rng(12).normal(size=(40, 3)), jnp.float32)
    for name in ("add_local", "add_global"):
        run = jax.jit(lambda x, mask: corruptions.corrupt(jax.random.key(0), x, name, 4, mask))  # noqa: B023
        assert not run(x, jnp.zeros(40))[1].any()  # nothing is added to nothing
        few = x.at[3:].set(jnp.nan)
        points, mask = run(few, jnp.ones(40))
        np.testing.assert_array_equal(mask[:40], jnp.arange(40) < 3)
        assert mask[40:].all()
        assert np.isfinite(points[40:]).all()
        if name == "add_local":
            assert np.linalg.norm(points[40:, None] - few[None, :3], axis=-1).min(1).max() < 0.8


@pytest.mark.slow
def test_ratios_under_jit_are_refused_by_an_empty_mask():
    x = jnp.asarray(np.random.default_rng(13).normal(size=(40, 3)), jnp.float32)
    drop, resample = jax.jit(ps.balanced_drop), jax.jit(ps.resample)
    for bad in (-0.5, 2.5, np.nan):
        assert not drop(jax.random.key(0), x, bad).any()
        assert not drop(jax.random.key(0), x, 0.5, spread=bad).any()
        assert not resample(jax.random.key(0), x, bad)[1].any()
        for call in (ps.balanced_drop, ps.resample):
            with pytest.raises(ValueError, match="must be in"):
                call(jax.random.key(0), x, bad)
    assert drop(jax.random.key(0), x, 0.5).sum() == 20


def test_errors():
    x = jnp.ones((10, 3))
    with pytest.raises(ValueError, match=r"k must be in \[1, 10\]"):
        ps.neighbours(x, 20)
    with pytest.raises(ValueError, match="at least one point"):
        ps.farthest_points(x, 0)
    with pytest.raises(ValueError, match=r"keep=0.0 must be in \(0, 1\]"):
        ps.trusted(x, 5, 0.0)
    with pytest.raises(ValueError, match="use one of scale, jitter"):
        corruptions.corrupt(jax.random.key(0), x, "blur", 0)
    with pytest.raises(ValueError, match="levels 0 to 4"):
        corruptions.corrupt(jax.random.key(0), x, "scale", 5)
    with pytest.raises(ValueError, match="points=0"):
        shapes.sample(jax.random.key(0), jnp.int32(0), 0)


def test_batches_are_loops_and_spread_over_devices(on_eight_devices):
    x = jnp.asarray(np.random.default_rng(11).normal(size=(8, 60, 3)), jnp.float32)

    def one(x):
        return ps.filtered_farthest_points(x, 20), ps.tangent_step(jax.random.key(0), x)

    index, moved = on_eight_devices(one, x)
    single = jax.jit(one)
    for i in (0, 5):
        np.testing.assert_array_equal(index[i], single(x[i])[0])
        np.testing.assert_allclose(moved[i], single(x[i])[1], atol=1e-5)


@pytest.mark.slow
def test_corruptions():
    x = jax.vmap(lambda key: shapes.sample(key, jnp.int32(0), N, stretch=1))(jax.random.split(jax.random.key(0), 1))[0]
    radius = np.linalg.norm(x, axis=1)
    assert 0.9 < radius.min()
    assert np.isclose(radius.max(), 1)
    corrupt = jax.jit(corruptions.corrupt, static_argnums=(2, 3))
    for name in corruptions.CORRUPTIONS:
        worst = 0.0
        for level in (0, 4) if name == "jitter" else (4,):
            y, mask = corrupt(jax.random.key(level), x, name, level)
            assert np.isfinite(y).all()
            left, added = int(mask[:N].sum()), len(y) - N
            lost, more = {
                "drop_global": (N - int(N * (0.25 + 0.125 * level)), 0),
                "drop_local": (N - 100 * (level + 1), 0),
                "add_global": (N, 10 * (level + 1)),
                "add_local": (N, 100 * (level + 1)),
            }.get(name, (N, 0))
            assert (left, added) == (lost, more), name
            if "drop" in name or "add" in name:
                np.testing.assert_array_equal(y[:N], x)
            if "add" in name:
                assert np.linalg.norm(y, axis=1).max() <= 1 + 1e-5
            change = float(np.abs(y[:N] - x).mean())
            assert change >= worst
            worst = change
        if name == "rotate":
            np.testing.assert_allclose(np.linalg.norm(y, axis=1), radius, atol=1e-5)
        if name == "jitter":
            assert np.isclose(np.std(y - x), 0.05, rtol=0.05)
        if name == "scale":
            assert np.isclose(np.linalg.norm(y, axis=1).max(), 1)


def test_shapes():
    labels = jnp.arange(len(shapes.NAMES), dtype=jnp.int32)
    run = jax.jit(jax.vmap(lambda k, c: shapes.sample(k, c, 512)))
    clouds = run(jax.random.split(jax.random.key(0), len(labels)), labels)
    np.testing.assert_allclose(np.linalg.norm(clouds, axis=-1).max(1), 1, atol=1e-5)
    np.testing.assert_allclose(clouds.mean(1), 0, atol=1e-5)
    eigenvalues = np.linalg.eigvalsh(np.einsum("bni,bnj->bij", clouds, clouds) / 512)
    assert eigenvalues[5, 0] < 0.02 * eigenvalues[5, 2]  # the disc is flat, the sphere is not
    assert eigenvalues[0, 0] > 0.3 * eigenvalues[0, 2]

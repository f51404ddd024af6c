"""Couplings: optimality, marginals, classes, and the bias of plain transport in conditional models."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from flowjax import couplings
from flowjax.couplings import minibatch
from flowjax.objectives import Classification, Coupled, FlowMatching, Interpolation
from flowjax.paths import Interpolant, Linear


def two_classes(n=256, seed=0):
    """Classes at -2 and 2 in one dimension, and independent normal noise."""
    rng = np.random.default_rng(seed)
    cond = jnp.asarray(np.arange(n) % 2, jnp.int32)
    x1 = jnp.asarray(4.0 * (np.arange(n) % 2)[:, None] - 2.0 + 0.3 * rng.standard_normal((n, 1)), jnp.float32)
    return jnp.asarray(rng.standard_normal((n, 1)), jnp.float32), {"x1": x1, "cond": cond}


def test_assignment_is_the_best_of_all_permutations():
    cost = np.random.default_rng(0).random((6, 6)).astype(np.float32)
    best = min(cost[list(p), range(6)].sum() for p in itertools.permutations(range(6)))
    rows = np.asarray(jax.jit(minibatch.assignment)(cost))
    assert sorted(rows) == list(range(6))
    assert cost[rows, range(6)].sum() == pytest.approx(best, rel=1e-6)
    cost = np.random.default_rng(1).random((96, 96)).astype(np.float32)
    theirs = cost[linear_sum_assignment(cost)].sum()
    assert cost[np.asarray(minibatch.assignment(jnp.asarray(cost))), range(96)].sum() == pytest.approx(theirs, rel=1e-5)


def test_optimal_transport_in_one_dimension_sorts():
    x0, batch = two_classes(64)
    paired = couplings.OptimalTransport().couple(jax.random.key(0), x0, batch)
    order = np.argsort(np.asarray(batch["x1"])[:, 0])
    np.testing.assert_array_equal(np.asarray(paired)[order, 0], np.sort(np.asarray(x0)[:, 0]))


def test_costs_are_ordered_and_marginals_kept():
    key = jax.random.key(1)
    x0 = jax.random.normal(jax.random.key(2), (64, 2))
    batch = {"x1": 3 * jax.random.normal(jax.random.key(3), (64, 2)) + 1, "cond": jnp.arange(64) % 3}

    def cost(coupling):
        return float(jnp.sum((coupling.couple(key, x0, batch) - batch["x1"]) ** 2))

    best, conditional, none = (
        cost(c) for c in (couplings.OptimalTransport(), couplings.ConditionalOT(), couplings.Independent())
    )
    assert best < conditional < none
    assert best < cost(couplings.Sinkhorn(epsilon=0.5)) < none
    for coupling in (couplings.OptimalTransport(), couplings.ConditionalOT()):
        paired = coupling.couple(key, x0, batch)
        np.testing.assert_array_equal(np.sort(np.asarray(paired)[:, 0]), np.sort(np.asarray(x0)[:, 0]))


@pytest.mark.slow
def test_conditional_transport_cures_the_bias_of_plain_transport():
    """Plain transport gives class 1 the right half of the noise; a model of it fails on noise of N(0, 1).

    The model is the best affine map from the paired noise to the data of one class; sampled from N(0, 1) it must
    have the class's mean 2 and spread 0.3. After plain transport its mean is off by more than a spread (0.35 to 0.44 on
    six seeds), and its spread too large (0.44 to 0.52).
    """
    x0, batch = two_classes(400)
    of_class = np.asarray(batch["cond"]) == 1
    fresh = np.random.default_rng(9).standard_normal(4000)

    def sampled(coupling):
        paired = np.asarray(coupling.couple(jax.random.key(0), x0, batch))[of_class, 0]
        slope, offset = np.polyfit(paired, np.asarray(batch["x1"])[of_class, 0], 1)
        return paired.mean(), np.mean(offset + slope * fresh), np.std(offset + slope * fresh)

    noise_mean, mean, spread = sampled(couplings.OptimalTransport())
    assert noise_mean > 0.6  # the mean of the right half of N(0, 1) is 0.8; 0.71 to 0.84 in these batches
    assert abs(mean - 2) > 0.25
    assert spread > 0.37
    noise_mean, mean, spread = sampled(couplings.ConditionalOT())
    assert abs(noise_mean) < 4 / np.sqrt(200)
    assert abs(mean - 2) < 0.05
    assert abs(spread - 0.3) < 0.05


def test_conditional_transport_stays_inside_classes_and_with_weight_zero_is_plain():
    x0, batch = two_classes(64)
    key = jax.random.key(0)
    paired = np.asarray(couplings.ConditionalOT().couple(key, x0, batch))[:, 0]
    for label in (0, 1):
        own = np.asarray(batch["cond"]) == label
        np.testing.assert_array_equal(np.sort(paired[own]), np.sort(np.asarray(x0)[own, 0]))
    plain = couplings.OptimalTransport().couple(key, x0, batch)
    np.testing.assert_array_equal(couplings.ConditionalOT(weight=0.0).couple(key, x0, batch), plain)
    real = batch | {"cond": {"text": batch["x1"], "size": jnp.ones((64, 2))}}
    near = couplings.ConditionalOT(weight=1e4).couple(key, x0, real)
    np.testing.assert_array_equal(near, x0)  # all conditions differ: nothing may move


def test_sinkhorn_plan():
    """Uniform marginals; the closed form of entropic transport between Gaussians; the limits of epsilon."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(np.sort(rng.standard_normal((400, 1)), axis=0), jnp.float32) for _ in range(2))
    epsilon = 1.0
    plan = np.exp(np.asarray(minibatch.sinkhorn(minibatch.squared_distances(a, b), epsilon)))
    np.testing.assert_allclose(plan.sum(0), 1 / 400, rtol=1e-3)
    np.testing.assert_allclose(plan.sum(1), 1 / 400, rtol=1e-3)
    x, y = (np.asarray(v, np.float64)[:, 0] for v in (a, b))
    covariance = (x - x.mean()) @ plan @ (y - y.mean())
    product = np.var(x) * np.var(y)
    assert covariance == pytest.approx((np.sqrt(4 * product + epsilon**2 / 4) - epsilon / 2) / 2, abs=0.02)
    broken = minibatch.sinkhorn(jnp.full((4, 4), jnp.inf), 1.0)
    np.testing.assert_allclose(np.exp(broken), 1 / 16, rtol=1e-6)


@pytest.mark.slow
def test_coupled_objectives():
    x0, batch = two_classes(64)
    key = jax.random.key(4)
    objective = Coupled(FlowMatching(path=Linear(), label_dropout=0.5, null=2), couplings.ConditionalOT())
    draws = jax.jit(lambda o, key, batch: o.draw(key, batch))(objective, key, batch)
    np.testing.assert_array_equal(draws.x1, batch["x1"])
    per_example, _ = objective.loss(lambda x, t, cond: jnp.zeros_like(x), draws)
    assert per_example.shape == (64,)
    stored = Coupled(FlowMatching(path=Linear()), couplings.Stored())
    np.testing.assert_array_equal(stored.draw(jax.random.key(5), batch | {"x0": x0}).x0, x0)
    bridge = Coupled(Interpolation(interpolant=Interpolant(scale=0.25)), couplings.Sinkhorn(epsilon=0.5, iterations=50))
    draws = bridge.draw(jax.random.key(6), batch | {"x0": x0})
    assert np.isin(np.asarray(draws.x0), np.asarray(x0)).all()


def test_what_draws_no_noise_has_no_coupling():
    objective = Coupled(Classification(), couplings.Stored())
    with pytest.raises(ValueError, match="Classification draws no x0"):
        objective.draw(jax.random.key(0), {"x1": jnp.zeros((2, 3)), "cond": jnp.zeros(2, jnp.int32)})


def test_straighter_flow():
    """Paths of pairs cross less: the variance of x1 - x0 given x_t, which curves the flow, falls."""
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * rng.integers(0, 8, 256) / 8
    x1 = np.stack([np.cos(angle), np.sin(angle)], 1) * 3 + 0.1 * rng.standard_normal((256, 2))
    batch, x0 = {"x1": jnp.asarray(x1, jnp.float32)}, jnp.asarray(rng.standard_normal((256, 2)), jnp.float32)

    def crossing(coupling):
        paired = np.asarray(coupling.couple(jax.random.key(0), x0, batch))
        middle, velocity = (paired + x1) / 2, x1 - paired
        nearest = np.argsort(((middle[:, None] - middle[None]) ** 2).sum(2), axis=1)[:, 1]
        return np.mean(np.sum((velocity - velocity[nearest]) ** 2, axis=1))

    assert crossing(couplings.OptimalTransport()) < 0.3 * crossing(couplings.Independent())


@pytest.mark.parametrize(
    "coupling",
    [couplings.OptimalTransport(), couplings.ConditionalOT(), couplings.Sinkhorn(epsilon=0.5)],
    ids=lambda coupling: type(coupling).__name__,
)
def test_pairs_by_costs_that_are_none_are_nan(coupling):
    x0, batch = two_classes(8)
    run = jax.jit(lambda c, x1, x0: c.couple(jax.random.key(0), x0, batch | {"x1": x1}))
    assert np.isfinite(run(coupling, batch["x1"], x0)).all()
    for bad in (jnp.nan, jnp.inf, 1e30):  # the last overflows
        assert np.isnan(run(coupling, batch["x1"].at[3].set(bad), x0)).all()
    for other in (x0[:4], jnp.zeros((8, 2)), jnp.zeros((0, 1))):
        with pytest.raises(ValueError, match="noise and data of one shape"):
            run(coupling, batch["x1"] if len(other) else other, other)


def test_numbers_that_show_under_jit_only_make_nan():
    x0, batch = two_classes(8)
    for kind, name in ((couplings.Sinkhorn, "epsilon"), (couplings.ConditionalOT, "weight")):
        run = jax.jit(lambda coupling: coupling.couple(jax.random.key(0), x0, batch))
        good = kind(**{name: 0.5})
        assert np.isfinite(run(good)).all()
        for bad in (-1.0, np.nan):
            assert np.isnan(run(jax.tree.map(lambda _: bad, good))).all()  # noqa: B023
            with pytest.raises(ValueError, match=f"{name} must be"):
                kind(**{name: bad})
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        couplings.Sinkhorn(epsilon=1.0, iterations=0)


@pytest.mark.parametrize(
    ("coupling", "batch", "message"),
    [
        (couplings.Stored(), {}, "stored pairs need"),
        (couplings.ConditionalOT(), {}, "needs batch"),
        (couplings.ConditionalOT(), {"cond": jnp.zeros((4, 1))}, "finite weight"),
    ],
)
def test_refusals(coupling, batch, message):
    with pytest.raises(ValueError, match=message):
        coupling.couple(jax.random.key(0), jnp.zeros((4, 1)), {"x1": jnp.ones((4, 1))} | batch)

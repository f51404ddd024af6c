"""Rescaled guidance, CFG-Zero*, RAAG and autoguidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.guidance import APG, CFG, RAAG, Autoguidance, CFGZeroStar, Channels, Interval, Rescaled
from flowjax.oracles import Mixture

RNG = np.random.default_rng(0)
C, U = (jnp.asarray(RNG.normal(size=(5, 4, 3)), jnp.float32) for _ in range(2))


def combine(rule, c=C, u=U):
    return rule.combine(0.5, c, u, rule.init(c))[0]


def at_ratio(rho):
    """A pair with |c - u|/|u| = rho."""
    u = jnp.ones((1, 16))
    return u + rho * jnp.tile(jnp.array([[1.0, -1.0]]), (1, 8)), u


@pytest.mark.parametrize(("rho", "scale"), [(0.1, 6.1203), (0.3, 1.46450), (1.0, 1.000104)])
def test_raag_scales_are_the_published_ones(rho, scale):
    c, u = at_ratio(rho)
    rule = RAAG(w_max=18.0, alpha=12.0)
    value, state = rule.combine(0.5, c, u, rule.init(c))
    np.testing.assert_allclose(state["ratio"], rho, rtol=1e-5)
    np.testing.assert_allclose(state["scale"], scale, rtol=1e-4)
    np.testing.assert_allclose(value, u + state["scale"][0] * (c - u), rtol=1e-6)


@pytest.mark.parametrize("rule", [CFG(scale=3.0), APG(scale=3.0)], ids=["cfg", "apg"])
def test_only_the_first_channels_are_guided(rule):
    """The inner rule sees all of them."""
    guided = combine(Channels(rule=rule, count=2))
    np.testing.assert_array_equal(guided[..., :2], combine(rule)[..., :2])
    np.testing.assert_array_equal(guided[..., 2], C[..., 2])
    np.testing.assert_allclose(combine(Channels(rule=CFG(scale=1.0), count=1)), C, rtol=1e-6)
    with pytest.raises(ValueError, match="use the inner rule alone"):
        combine(Channels(rule=rule))
    with pytest.raises(ValueError, match="count must be at least 1"):
        Channels(rule=rule, count=0)


@pytest.mark.slow
def test_raag_limits_and_invariances():
    rule = RAAG(w_max=7.0, alpha=3.0)
    np.testing.assert_allclose(combine(RAAG(w_max=7.0, alpha=0.0)), combine(CFG(scale=7.0)), rtol=1e-5)
    np.testing.assert_allclose(combine(RAAG(w_max=1.0)), C, rtol=1e-5, atol=1e-6)
    scales = [float(rule.combine(0.5, *at_ratio(r), rule.init(C[:1]))[1]["scale"][0]) for r in (0.0, 0.1, 0.5, 2.0)]
    assert scales[0] == pytest.approx(7.0)
    assert scales == sorted(scales, reverse=True)
    assert all(s > 1 for s in scales)
    np.testing.assert_allclose(combine(rule, 3 * C, 3 * U), 3 * combine(rule), rtol=1e-5)
    np.testing.assert_allclose(combine(rule)[::-1], combine(rule, C[::-1], U[::-1]), rtol=1e-6)
    np.testing.assert_allclose(combine(rule, C[:1], U[:1]), combine(rule)[:1], rtol=1e-6)
    for u in (U, 0 * U):
        assert np.array_equal(combine(rule, u, u), u)
    assert np.isfinite(jax.grad(lambda c: combine(rule, c).sum())(C)).all()
    original = RAAG(w_max=6.0, alpha=3.0, form="original")
    np.testing.assert_allclose(combine(original), combine(rule), rtol=1e-5)  # w_max counts from 1 or from 0
    with pytest.raises(ValueError, match="unknown form"):
        RAAG(form="squared")


@pytest.mark.slow
def test_raag_does_not_commute_with_the_prediction_so_it_converts():
    path = fj.paths.Linear()
    target = Mixture.default(path)
    flow = fj.Flow(target.network("noise"), path=path, prediction="noise", null=target.num_classes)
    field = fj.guide(flow, RAAG(w_max=5.0, alpha=2.0))
    x, cond = fj.noise(jax.random.key(0), (6, 1)), jnp.zeros(6, jnp.int32)
    c, u = (flow.velocity(0.4, x, label) for label in (cond, jnp.full(6, target.num_classes, jnp.int32)))
    np.testing.assert_allclose(field.velocity(0.4, x, cond), combine(field.rule, c, u), rtol=1e-3, atol=1e-3)
    result = fj.solve(field, fj.solvers.Euler(), x, fj.times.uniform(5, 0.1, 0.9), cond=cond)
    assert result.report["ratio"].shape == (5, 6)
    assert int(result.evaluations) == 5


def test_raag_overshoots_less_in_few_steps():
    path = fj.paths.Linear()
    target = Mixture(
        weights=jnp.array([0.5, 0.5]), means=jnp.array([[-1.0] * 8, [1.0] * 8]), stds=jnp.full((2, 8), 0.3), path=path
    )
    flow = fj.Flow(target.network("velocity"), path=path, null=2)
    cond = jnp.ones(256, jnp.int32)
    errors = []
    for rule in (CFG(scale=12.0), RAAG(w_max=12.0, alpha=8.0)):
        x = fj.noise(jax.random.key(3), (256, 8))
        x = fj.solve(fj.guide(flow, rule), fj.solvers.Euler(), x, fj.times.uniform(8), cond=cond).x
        errors.append(float(jnp.linalg.norm(x.mean(0) - 1.0)))
    assert errors[1] < 0.5 * errors[0]


def test_cfg_zero_star():
    plain = CFGZeroStar(scale=4.0, zero_steps=0)
    s = np.sum(C * U, axis=(1, 2), keepdims=True) / np.sum(U * U, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(np.sum((C - s * U) * U, axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(combine(plain), s * U + 4 * (C - s * U), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(combine(plain, 2.5 * U, U), 2.5 * U, rtol=1e-5)  # parallel: no guidance whatever w
    rule, state, norms = CFGZeroStar(scale=4.0, zero_steps=2), jnp.int32(0), []
    for _ in range(4):
        value, state = rule.combine(0.5, C, U, state)
        norms.append(float(jnp.abs(value).max()))
    assert norms[:2] == [0, 0]
    assert min(norms[2:]) > 0
    assert plain.stateless
    assert not rule.stateless
    flow = fj.Flow(lambda x, t, cond: cond[:, None] + 0 * x, path=fj.paths.Linear(), null=1.0)
    x, cond = jnp.zeros((3, 2)), jnp.full(3, 2.0)
    field = fj.guide(flow, CFGZeroStar(scale=1.0, zero_steps=1))
    np.testing.assert_allclose(fj.solve(field, fj.solvers.Euler(), x, fj.times.uniform(4), cond=cond).x, 1.5)
    with pytest.raises(ValueError, match="zero_steps"):
        CFGZeroStar(zero_steps=-1)


def test_rescaled():
    strong = CFG(scale=6.0)
    np.testing.assert_allclose(combine(Rescaled(rule=strong, phi=0.0)), combine(strong), rtol=1e-6)
    whole = np.asarray(combine(Rescaled(rule=strong, phi=1.0)))
    np.testing.assert_allclose(whole.std(axis=(1, 2)), np.asarray(C).std(axis=(1, 2)), rtol=1e-5)
    half = combine(Rescaled(rule=strong, phi=0.5))
    np.testing.assert_allclose(half, (whole + combine(strong)) / 2, rtol=1e-5, atol=1e-6)
    inner = Interval(rule=APG(scale=2.0), start=0.0, end=1.0)
    assert Rescaled(rule=inner).space == "data"
    assert not Rescaled(rule=inner).stateless


def test_autoguidance_compares_with_a_field():
    path = fj.paths.Linear()
    good, weak = (fj.Flow(lambda x, t, cond, k=k: k * x, path=path) for k in (2.0, 1.0))
    field = fj.guide(good, Autoguidance(scale=3.0), against=weak)
    x = jnp.ones((2, 2))
    np.testing.assert_allclose(field.velocity(0.5, x), 4.0)  # 1 + 3 (2 - 1)
    result = fj.solve(field, fj.solvers.Euler(), x, fj.times.uniform(3))
    assert (int(result.evaluations), int(result.network_calls)) == (3, 6)
    with pytest.raises(ValueError, match="weaker model"):
        fj.guide(good, Autoguidance(scale=2.0), against=5)


def test_where_the_second_evaluation_is_saved_the_scale_is_one():
    law = Mixture.default(fj.paths.Linear())
    flow = fj.Flow(law.network("velocity"), path=law.path, null=law.num_classes)
    x, cond = jnp.linspace(-1, 1, 4)[:, None], jnp.array([0, 1, 0, 1])
    field = fj.guide(flow, Interval(rule=RAAG(w_max=5.0), start=0.3, end=0.7))
    report = fj.solve(field, fj.solvers.Euler(), x, fj.times.uniform(10, 1e-3), cond).report
    outside = np.array([True] * 3 + [False] * 4 + [True] * 3)
    assert np.all(report["scale"][outside] == 1)
    assert np.array_equal(np.isnan(report["ratio"]), np.tile(outside[:, None], (1, 4)))


def test_zeros_at_first_belong_to_the_whole_run():
    Interval(rule=CFGZeroStar(scale=2.0), end=0.5), Interval(rule=CFGZeroStar(scale=2.0, zero_steps=0), start=0.2)
    with pytest.raises(ValueError, match=r"zero_steps=1 are the first of a run, and the interval begins at 0\.2"):
        Interval(rule=CFGZeroStar(scale=2.0), start=0.2)


def test_numbers_of_each_sample_belong_to_it():
    """As many samples as entries of the last axis, which they must not be taken for."""
    c, u = C[:3], U[:3]
    numbers = jnp.array([0.5, 1.0, 2.0])
    for make in (
        lambda a: RAAG(w_max=7.0, alpha=a),
        lambda a: APG(scale=3.0, r=a),
        lambda a: APG(scale=3.0, eta=a, beta=a),
    ):
        together = combine(make(numbers), c, u)
        for row, number in enumerate(numbers):
            alone = combine(make(float(number)), c[row : row + 1], u[row : row + 1])
            np.testing.assert_allclose(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)


def test_the_ratio_is_large_at_the_noise_and_falls_along_the_flow():
    """Two classes at -m and m: at t = 0 both predictions know the mean only, c - u is m, and u is -x0."""
    law = Mixture(weights=np.ones(2), means=np.array([[-2.0, 0.0], [2.0, 0.0]]), stds=0.1, path=fj.paths.Linear())
    flow = fj.Flow(law.network("velocity"), path=law.path, null=law.num_classes)
    x, cond = fj.noise(jax.random.key(0), (64, 2)), jnp.arange(64) % 2
    field = fj.guide(flow, RAAG(w_max=1.0 + 1e-6))
    report = fj.solve(field, fj.solvers.Euler(), x, fj.times.uniform(20, 0.0, 0.95), cond).report
    np.testing.assert_allclose(report["ratio"][0], 2 / np.linalg.norm(x, axis=1), rtol=1e-3)
    means = np.mean(report["ratio"], axis=1)
    peak = int(np.argmax(means))
    assert peak < 8
    assert np.all(np.diff(means[peak:]) <= 0)
    assert means[-1] < 0.01 * means[0]

"""Laws of the guidance rules, on predictions drawn at random and along whole runs."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax import oracles
from flowjax.guidance import APG, CFG, Interval, Rule

RNG = np.random.default_rng(0)
C, U, M = (jnp.asarray(RNG.normal(size=(5, 4, 3)), jnp.float32) for _ in range(3))
CFG_LIKE = APG(scale=3.0, eta=1.0, beta=0.0, r=math.inf)
RULES = [CFG(scale=3.0), Interval(rule=CFG(scale=3.0), start=0.2, end=0.8), APG(scale=3.0), CFG_LIKE]


def combine(rule, c=C, u=U, state=None, t=0.5):
    return rule.combine(t, c, u, rule.init(c) if state is None else state)


def dot(a, b):
    return np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64), axis=(1, 2))


def test_numbers_by_hand():
    c, u = jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 4.0]])
    np.testing.assert_allclose(combine(CFG(scale=2.0), c, u)[0], [[5.0, 4.0]])
    # d = (2, 0); its part along c is 6/25 c = (0.72, 0.96); the rest (1.28, -0.96) is added once
    np.testing.assert_allclose(combine(APG(scale=2.0, beta=0.0), c, u)[0], [[4.28, 3.04]], rtol=1e-6)
    np.testing.assert_allclose(combine(APG(scale=2.0, beta=0.0, r=1.0), c, u)[0], [[3.64, 3.52]], rtol=1e-6)
    out, m = combine(APG(scale=2.0, beta=-0.5, eta=1.0), c, u, jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(m, [[1.5, -1.0]])
    np.testing.assert_allclose(out, [[4.5, 3.0]], rtol=1e-6)


def test_special_cases_are_plain_guidance():
    plain = combine(CFG(scale=3.0))[0]
    np.testing.assert_allclose(plain, U + 3 * (C - U), rtol=1e-6)
    for rule in (Interval(rule=CFG(scale=3.0), start=0.0, end=1.0), CFG_LIKE):
        np.testing.assert_allclose(combine(rule)[0], plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [CFG(scale=1.0), APG(scale=1.0), Interval(rule=CFG(scale=9.0), start=0.6, end=0.9)])
def test_neutral_rules_return_the_conditional_prediction(rule):
    np.testing.assert_allclose(combine(rule)[0], C, rtol=1e-5, atol=1e-6)
    assert not bool(rule.active(0.5))


def test_neutral_scales():
    np.testing.assert_allclose(combine(CFG(scale=0.0))[0], U, rtol=1e-6)
    assert bool(CFG(scale=0.0).active(0.5))
    assert bool(CFG(scale=jnp.array([1.0, 2.0])).active(0.5))
    assert not bool(CFG(scale=jnp.ones(2)).active(0.5))


def test_interval_is_closed_at_its_start_and_open_at_its_end():
    rule = Interval(rule=CFG(scale=2.0), start=0.25, end=0.75)
    for t, inside in ((0.0, 0), (0.2499, 0), (0.25, 1), (0.5, 1), (0.7499, 1), (0.75, 0), (1.0, 0)):
        assert bool(rule.active(t)) == inside
        assert bool(rule.active(jnp.float32(t))) == inside
        np.testing.assert_allclose(combine(rule, t=t)[0], U + (1 + inside) * (C - U), rtol=1e-4, atol=1e-5)
    t = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    value = combine(rule, t=t)[0]
    np.testing.assert_array_equal(value[jnp.array([0, 3, 4])], C[jnp.array([0, 3, 4])])
    np.testing.assert_allclose(value[1:3], (2 * C - U)[1:3], rtol=1e-5, atol=1e-6)
    assert not bool(dataclasses.replace(rule, start=0.5, end=0.5).active(0.5))


def test_interval_takes_space_and_state_of_its_rule():
    rule = Interval(rule=APG(scale=2.0))
    assert (rule.space, rule.stateless) == ("data", False)
    assert Interval(rule=CFG()).space == "any"
    value, m = combine(rule, state=M)
    expected = combine(APG(scale=2.0), state=M)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(m, expected[1], rtol=1e-6)


def test_projection():
    """eta = 0: what is added to c is orthogonal to it, and no longer than (w - 1) r."""
    out, _ = combine(APG(scale=4.0, eta=0.0, beta=-0.5, r=0.7), state=M)
    np.testing.assert_allclose(dot(out - C, C), 0, atol=1e-4)
    assert np.all(np.sqrt(dot(out - C, out - C)) <= 3 * 0.7 * (1 + 1e-5))
    out, _ = combine(APG(scale=2.0, eta=1.0, beta=0.0, r=0.7))
    np.testing.assert_allclose(np.sqrt(dot(out - C, out - C)), 0.7, rtol=1e-5)
    small = combine(APG(scale=2.0, eta=1.0, beta=0.0, r=1e3))[0]
    np.testing.assert_allclose(small, 2 * C - U, rtol=1e-4, atol=1e-5)


def test_eta_is_linear_between_orthogonal_and_whole():
    values = [combine(APG(scale=3.0, eta=eta, beta=0.0))[0] for eta in (0.0, 0.25, 1.0)]
    np.testing.assert_allclose(values[1], 0.75 * values[0] + 0.25 * values[2], rtol=1e-4, atol=1e-5)


def test_momentum_is_a_geometric_sum():
    rule, state = APG(scale=2.0, beta=-0.5), jnp.zeros_like(C)
    for _ in range(4):
        _, state = combine(rule, state=state)
    np.testing.assert_allclose(state, (C - U) * (1 - 0.5 + 0.25 - 0.125), rtol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_laws_of_every_rule(rule):
    value, state = combine(rule)
    assert isinstance(rule, Rule)
    assert value.dtype == jnp.float32
    assert jax.tree.structure(state) == jax.tree.structure(rule.init(C))
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(combine(rule, C[order], U[order])[0], value[order], rtol=1e-6)
    np.testing.assert_allclose(combine(rule, C[:1], U[:1])[0], value[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(combine)(rule)[0], value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(combine(rule, C, C)[0], C, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("c", [C, 0 * C], ids=["somewhere", "zero"])
def test_equal_predictions_are_no_hole_in_the_gradient(rule, c):
    """c = u is the rule for samples of the null class, and zero its harshest case."""

    def loss(c, u):
        return jnp.sum(combine(rule, c, u)[0] ** 2 + combine(rule, c, u)[0])

    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(c, c)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(s)) for s in slopes)


def test_gradient_by_finite_differences():
    with jax.enable_x64(True):
        c, u, d = (jnp.asarray(np.asarray(a), jnp.float64) for a in (C, U, M))
        rule = APG(scale=3.0, r=50.0)
        out = jax.jit(lambda c: combine(rule, c, u)[0])
        _, slope = jax.jvp(out, (c,), (d,))
        difference = (out(c + 1e-3 * d) - out(c - 1e-3 * d)) / 2e-3
        np.testing.assert_allclose(slope, difference, rtol=1e-2, atol=1e-2)


def test_apg_under_solve_is_the_loop_of_its_paper():
    """Data prediction, momentum carried from step to step, Euler on the velocity (m - x) / (1 - t), in NumPy."""
    target = oracles.Mixture.default(fj.paths.Linear(), dim=2)
    x = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
    cond = jnp.array([0, 1, 2, 0, 1, 3])
    w, eta, beta, r = 3.0, 0.3, -0.6, 0.8
    times, data = fj.times.uniform(8), jax.jit(target.data)
    state, m = np.asarray(x, np.float64), 0.0
    for s, t in itertools.pairwise(times):
        c, u = (
            np.asarray(data(jnp.float32(s), jnp.asarray(state, jnp.float32), k), np.float64)
            for k in (cond, jnp.full_like(cond, 3))
        )
        m = c - u + beta * m
        d = m * np.minimum(1, r / np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-30))
        along = np.sum(d * c, 1, keepdims=True) / np.sum(c * c, 1, keepdims=True) * c
        state = state + (t - s) * (c + (w - 1) * (d - along + eta * along) - state) / (1 - s)
    rule = APG(scale=w, eta=eta, beta=beta, r=r)
    for prediction in ("velocity", "data"):
        flow = fj.Flow(target.network(prediction), path=target.path, prediction=prediction, null=3)
        result = fj.solve(fj.guide(flow, rule), fj.solvers.Euler(), x, times, cond=cond)
        np.testing.assert_allclose(result.x, state, rtol=1e-3, atol=1e-3)


def test_guided_run_reaches_the_class_of_its_condition():
    """Scale 0 samples without condition, scale 1 the class, more of it beyond the class on the far side."""
    path = fj.paths.Linear()
    target = oracles.Mixture.default(path)
    flow = fj.Flow(target.network(), path=path, null=3)
    x0 = fj.noise(jax.random.key(0), (64, 1))
    cond = jnp.zeros(64, jnp.int32)
    run = {
        w: fj.solve(fj.guide(flow, CFG(scale=w)), fj.solvers.Midpoint(), x0, fj.times.uniform(40), cond=cond).x
        for w in (0.0, 1.0, 3.0)
    }
    np.testing.assert_allclose(run[0.0], target.flow_map(x0, 0.0, 1.0), atol=0.05)
    np.testing.assert_allclose(run[1.0], target.flow_map(x0, 0.0, 1.0, cond), atol=0.02)
    assert float(jnp.mean(run[3.0])) < float(jnp.mean(run[1.0])) - 0.05


def test_rules_are_pytrees_of_their_numbers():
    assert jax.tree.leaves(APG(scale=2.0, eta=0.1, beta=-0.5, r=3.0)) == [2.0, 0.1, -0.5, 3.0]
    assert jax.tree.leaves(Interval(rule=CFG(scale=2.0), start=0.1, end=0.9)) == [2.0, 0.1, 0.9]
    with pytest.raises(TypeError):
        CFG(2.0)

"""Laws of the guidance rules, on predictions drawn at random and along whole runs."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flowjax as fj
from flowjax import oracles
from flowjax.guidance import APG, CFG, RAAG, Autoguidance, CFGZeroStar, Channels, Interval, Rescaled, Rule

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


def late(t):
    """Guidance of strength 1 + 4 t behind the middle, of any kind of time."""
    return jnp.where(jnp.asarray(t) < 0.5, 1.0, 1.0 + 4.0 * jnp.asarray(t))


@pytest.mark.parametrize("make", [CFG, APG, lambda scale: CFGZeroStar(scale=scale, zero_steps=0), Autoguidance])
def test_a_scale_may_be_a_function_of_time(make):
    """At one time it is the rule with that number; per sample with their times; neutral where it is 1."""
    rule = make(scale=late)
    for t, w in ((0.25, 1.0), (0.5, 3.0), (np.float64(0.75), 4.0), (jnp.float32(1.0), 5.0)):
        np.testing.assert_allclose(combine(rule, t=t)[0], combine(make(scale=w), t=t)[0], rtol=1e-5, atol=1e-6)
        assert bool(rule.active(t)) == (w != 1)
    t = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    each = make(scale=jnp.array([1.0, 1.0, 3.0, 4.0, 5.0]))
    np.testing.assert_allclose(combine(rule, t=t)[0], combine(each, t=t)[0], rtol=1e-5, atol=1e-6)
    assert bool(rule.active(t))
    assert not bool(rule.active(t[:2]))


def test_a_function_of_time_in_a_run():
    """The second half is saved where the scale is 1, also behind an interval, and numbers beside it stay traced."""
    flow = fj.Flow(lambda x, t, cond: (cond[:, None] - x) * jnp.cos(t)[:, None], path=fj.paths.Linear(), null=0.0)
    x, cond, times = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32), jnp.arange(4.0), fj.times.uniform(10)
    result = fj.solve(fj.guide(flow, CFG(scale=late)), fj.solvers.Euler(), x, times, cond=cond)
    state = np.asarray(x, np.float64)
    for s, t in itertools.pairwise(times):
        c, u = ((k - state) * np.cos(s) for k in (np.arange(4.0)[:, None], 0.0))
        state = state + (t - s) * (u + (1 if s < 0.5 else 1 + 4 * s) * (c - u))
    np.testing.assert_allclose(result.x, state, rtol=1e-4, atol=1e-5)
    assert (int(result.evaluations), int(result.network_calls)) == (10, 15)
    gate = Interval(rule=CFG(scale=late), start=0.0, end=0.75)
    assert int(fj.solve(fj.guide(flow, gate), fj.solvers.Euler(), x, times, cond=cond).network_calls) == 13
    traces = []

    @jax.jit
    def run(field):
        traces.append(1)
        return field.velocity(0.75, x, cond)

    values = [run(fj.guide(flow, APG(scale=late, r=r))) for r in (0.1, 10.0)]
    assert len(traces) == 1
    assert not np.allclose(*values)
    pull = fj.fields.Gradient(lambda x, t, cond: -jnp.sum(x**2, -1) / 2, path=fj.paths.Linear(), scale=late)
    np.testing.assert_allclose(pull.score(0.75, x), -4 * x, rtol=1e-5)


NAN, INF = math.nan, math.inf
FLOW = fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear())


@pytest.mark.parametrize(
    ("make", "name", "bad"),
    [
        (CFG, "scale", [NAN, INF, -INF, "4", True, np.array([1.0, NAN]), jnp.array(NAN)]),
        (Autoguidance, "scale", [NAN]),
        (CFGZeroStar, "scale", [NAN, INF]),
        (CFGZeroStar, "zero_steps", [-1, 1.5, NAN]),
        (APG, "scale", [NAN]),
        (APG, "eta", [NAN, INF]),
        (APG, "beta", [NAN, INF]),
        (APG, "r", [NAN, -1.0, 0.0, -INF, jnp.array(-1.0)]),
        (RAAG, "w_max", [NAN, INF]),
        (RAAG, "alpha", [NAN, -1.0, INF]),
        (lambda **o: Rescaled(rule=CFG(), **o), "phi", [NAN, -0.1, 1.1]),
        (lambda **o: Interval(rule=CFG(), **o), "start", [NAN, -0.1, 1.1]),
        (lambda **o: Interval(rule=CFG(), **o), "end", [NAN, -0.1, 1.1]),
        (lambda **o: Channels(rule=CFG(), **o), "count", [0, 1.5, NAN]),
        (lambda **o: fj.fields.Gradient(lambda x, t, c: x, path=FLOW.path, **o), "scale", [NAN, INF]),
        (lambda **o: fj.fields.Thresholded(FLOW, **o), "quantile", [NAN, 0.0, 1.1]),
        (lambda **o: fj.paths.Interpolant(**o), "scale", [NAN, INF, 0.0]),
        (lambda **o: fj.solvers.Diffusion(**o), "norm", [NAN, INF, -1.0]),
    ],
)
def test_bad_numbers_are_refused_where_they_are_given(make, name, bad):
    for value in bad:
        with pytest.raises((ValueError, TypeCheckError), match=name) as error:
            make(**{name: value})
        assert isinstance(error.value, TypeCheckError) or "\n" not in str(error.value)


def test_an_interval_does_not_end_before_it_starts():
    for ends in ((0.7, 0.3), (jnp.array(0.7), 0.3), (0.5, np.array([0.6, 0.4]))):
        with pytest.raises(ValueError, match="start <= end"):
            Interval(rule=CFG(), start=ends[0], end=ends[1])


@pytest.mark.parametrize("make", [lambda r: Interval(rule=r), lambda r: Rescaled(rule=r), lambda r: Channels(rule=r)])
def test_rules_around_rules_only(make):
    with pytest.raises((ValueError, TypeCheckError), match=r"expected a rule|Type-check error"):
        make(4.0)


@pytest.mark.slow
def test_traced_numbers_pass():
    """Also where they are made inside of compiled code, under vmap and under a gradient."""

    def total(w, a, b):
        rules = (CFG(scale=w), APG(scale=w, r=b, eta=a), RAAG(w_max=w, alpha=b), CFGZeroStar(scale=w, zero_steps=0))
        rules += (Rescaled(rule=CFG(scale=w), phi=a), Interval(rule=CFG(scale=w), start=a, end=b))
        return sum(jnp.sum(combine(rule)[0]) for rule in rules)

    assert np.isfinite(jax.jit(jax.grad(total))(2.0, 0.3, 0.9))
    assert np.all(np.isfinite(jax.vmap(total)(jnp.ones(2), jnp.zeros(2), jnp.ones(2))))


def test_rules_are_pytrees_of_their_numbers():
    assert jax.tree.leaves(APG(scale=2.0, eta=0.1, beta=-0.5, r=3.0)) == [2.0, 0.1, -0.5, 3.0]
    assert jax.tree.leaves(Interval(rule=CFG(scale=2.0), start=0.1, end=0.9)) == [2.0, 0.1, 0.9]
    with pytest.raises(TypeError):
        CFG(2.0)

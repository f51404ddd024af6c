"""The guided field: what it calls, in which order, how it counts, what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax import oracles
from flowjax.guidance import APG, CFG, Interval

LINEAR = fj.paths.Linear()
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
Y = jnp.array([0, 1, 2, 0])


def by_label(x, t, cond):
    """c = (1 + label) x + t for labels, u = x for label 9."""
    label = jnp.where(cond == 9, 0, cond + 1).astype(x.dtype)
    return (1 + label[:, None]) * x + t[:, None]


FLOW = fj.Flow(by_label, path=LINEAR, null=9)


def counting(rows):
    """A flow that notes the rows of each call really executed, in compiled code too."""

    def network(x, t, cond):
        jax.debug.callback(lambda: rows.append(x.shape[0]), ordered=False)
        return by_label(x, t, cond)

    return fj.Flow(network, path=LINEAR, null=9)


def executed(rows, field, solver=None, times=None):
    rows.clear()
    times = fj.times.uniform(10) if times is None else times
    result = fj.solve(field, solver or fj.solvers.Euler(), X, times, cond=Y)
    jax.block_until_ready(result)
    jax.effects_barrier()
    return sorted(rows), int(result.evaluations), int(result.network_calls)


def test_pairs_are_interleaved():
    seen = {}

    def network(x, t, cond, end=None, velocity=None):
        seen.update(x=x, t=t, cond=cond, end=end, velocity=velocity)
        return x

    flow = fj.Flow(network, path=LINEAR, null={"label": 9, "text": jnp.full(2, -1.0)})
    field = fj.guide(flow, CFG(scale=2.0))
    t = jnp.array([0.1, 0.2, 0.3, 0.4])
    cond = {"label": Y, "text": jnp.ones((4, 2))}
    field.velocity(t, X, cond, end=t + 0.5, velocity=-X)
    np.testing.assert_array_equal(seen["x"], np.repeat(X, 2, axis=0))
    np.testing.assert_array_equal(seen["velocity"], np.repeat(-X, 2, axis=0))
    np.testing.assert_array_equal(seen["t"], np.repeat(t, 2))
    np.testing.assert_array_equal(seen["end"], np.repeat(t + 0.5, 2))
    np.testing.assert_array_equal(seen["cond"]["label"], [0, 9, 1, 9, 2, 9, 0, 9])
    np.testing.assert_array_equal(seen["cond"]["text"], [[1, 1], [-1, -1]] * 4)
    assert seen["cond"]["label"].dtype == Y.dtype
    field.velocity(0.5, X, cond, end=0.75)
    np.testing.assert_array_equal(seen["end"], np.full(8, 0.75))
    assert seen["velocity"] is None


def test_against_a_condition_for_all_or_for_each():
    t = 0.5
    c, u = by_label(X, jnp.full(4, t), Y), by_label(X, jnp.full(4, t), jnp.full(4, 1))
    np.testing.assert_allclose(fj.guide(FLOW, CFG(scale=3.0), against=1).velocity(t, X, Y), u + 3 * (c - u), rtol=1e-5)
    other = jnp.array([1, 0, 9, 2])
    u = by_label(X, jnp.full(4, t), other)
    value = fj.guide(FLOW, CFG(scale=3.0), against=other).velocity(t, X, Y)
    np.testing.assert_allclose(value, u + 3 * (c - u), rtol=1e-5)


def test_a_pair_is_one_evaluation_and_two_calls():
    rows = []
    flow = counting(rows)
    assert executed(rows, fj.guide(flow, CFG(scale=2.0))) == ([8] * 10, 10, 20)
    assert executed(rows, fj.guide(flow, CFG(scale=2.0)), fj.solvers.Heun(), fj.times.uniform(5)) == ([8] * 10, 10, 20)


def test_the_second_half_is_saved_where_the_rule_is_neutral():
    """Seen in the network itself: 4 rows a call instead of 8."""
    rows = []
    flow = counting(rows)
    assert executed(rows, flow) == ([4] * 10, 10, 10)
    assert executed(rows, fj.guide(flow, CFG(scale=1.0))) == ([4] * 10, 10, 10)
    assert executed(rows, fj.guide(flow, APG(scale=1.0))) == ([4] * 10, 10, 10)
    gate = Interval(rule=CFG(scale=2.0), start=0.25, end=0.65)  # Euler asks at 0, 0.1, ..., 0.9
    assert executed(rows, fj.guide(flow, gate)) == ([4] * 6 + [8] * 4, 10, 14)
    assert executed(rows, fj.guide(flow, dataclasses.replace(gate, rule=CFG(scale=1.0)))) == ([4] * 10, 10, 10)


def test_against_a_field_is_one_evaluation_and_two_calls():
    rows, others = [], []
    weak = counting(others)
    field = fj.guide(counting(rows), CFG(scale=2.0), against=weak)
    assert executed(rows, field) == ([4] * 10, 10, 20)
    assert others == [4] * 10
    others.clear()
    saved = fj.guide(counting(rows), Interval(rule=CFG(scale=2.0), start=0.45, end=0.75), against=weak)
    assert executed(rows, saved) == ([4] * 10, 10, 13)
    assert others == [4] * 3


def test_autoguidance_takes_any_two_fields():
    """The weaker model has another prediction; no condition is needed."""
    good, bad = (oracles.Gaussian(mean=m, std=0.5, path=LINEAR) for m in (1.0, -0.5))
    field = fj.guide(
        fj.Flow(good.network("velocity"), path=LINEAR),
        CFG(scale=2.5),
        against=fj.Flow(bad.network("noise"), path=LINEAR, prediction="noise"),
    )
    expected = bad.velocity(0.3, X) + 2.5 * (good.velocity(0.3, X) - bad.velocity(0.3, X))
    np.testing.assert_allclose(field.velocity(0.3, X), expected, rtol=1e-4, atol=1e-5)


def test_guidance_of_guidance_counts_all_rows():
    inner = fj.guide(FLOW, CFG(scale=2.0))
    field = fj.guide(inner, CFG(scale=1.5), against=1)
    result = fj.solve(field, fj.solvers.Euler(), X, fj.times.uniform(3), cond=Y)
    assert (int(result.evaluations), int(result.network_calls)) == (3, 12)
    t = jnp.full(4, 0.4)
    null, own, other = (by_label(X, t, jnp.broadcast_to(jnp.asarray(y), (4,))) for y in (9, Y, 1))
    c, u = (null + 2.0 * (a - null) for a in (own, other))
    np.testing.assert_allclose(field.velocity(0.4, X, Y), u + 1.5 * (c - u), rtol=1e-5)


def test_cfg_commutes_with_the_change_of_prediction():
    """One law told by networks of all five kinds: the guided velocity, and what follows from it, is the same."""
    target = oracles.Mixture.default(LINEAR, dim=2)
    x, t = X[:, :2], jnp.array([0.2, 0.4, 0.6, 0.8])
    kinds = ("velocity", "data", "noise", "score")

    @jax.jit
    def run(target, x):
        c, u = target.velocity(t, x, Y), target.velocity(t, x, jnp.full(4, 3))
        expected = [LINEAR.convert(u + 3.0 * (c - u), given="velocity", to=to, t=t, x=x) for to in kinds]
        fields = [
            fj.guide(fj.Flow(target.network(given), path=LINEAR, prediction=given, null=3), CFG(scale=3.0))
            for given in fj.paths.PREDICTIONS
        ]
        return expected, [[getattr(field, to)(t, x, Y) for to in kinds] for field in fields]

    expected, values = run(target, x)
    for given, value in zip(fj.paths.PREDICTIONS, values, strict=True):
        for to, a, b in zip(kinds, value, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3, err_msg=f"{given} {to}")


def test_new_scales_times_and_conditions_do_not_trace_again():
    traces = []

    def network(x, t, cond):
        traces.append(x.shape[0])
        return by_label(x, t, cond)

    flow = fj.Flow(network, path=LINEAR, null=9)
    results, counts = [], []
    for scale, start in ((2.0, 0.2), (3.0, 0.2), (1.0, 0.2), (3.0, 0.5)):
        for null in (9, 1):
            field = fj.guide(flow, Interval(rule=CFG(scale=scale), start=start, end=0.8), against=null)
            results.append(float(fj.solve(field, fj.solvers.Euler(), X, fj.times.uniform(5), cond=Y).x[0, 0]))
            counts.append(len(traces))
    assert len(set(counts)) == 1
    assert len(set(results)) == 7  # with scale 1 what stands against the condition does not matter


def test_scales_are_differentiable():
    def loss(scale):
        field = fj.guide(FLOW, CFG(scale=scale))
        return jnp.sum(fj.solve(field, fj.solvers.Euler(), X, fj.times.uniform(4), cond=Y).x)

    slope = jax.grad(loss)(2.0)
    np.testing.assert_allclose(slope, (loss(2.01) - loss(1.99)) / 0.02, rtol=1e-2)


def test_samples_do_not_see_each_other():
    scales = jnp.array([1.0, 2.0, 3.0, 4.0])
    t = jnp.array([0.1, 0.3, 0.5, 0.7])
    for rule, alone in (
        (CFG(scale=scales), lambda i: CFG(scale=scales[i])),
        (
            Interval(rule=CFG(scale=3.0), start=0.2, end=0.6),
            lambda i: Interval(rule=CFG(scale=3.0), start=0.2, end=0.6),
        ),
        (APG(scale=scales, r=0.5), lambda i: APG(scale=scales[i], r=0.5)),
    ):
        run = jax.jit(lambda rule, t, x, y: fj.guide(FLOW, rule).velocity(t, x, y))
        whole = run(rule, t, X, Y)
        for i in range(4):
            one = run(alone(i), t[i : i + 1], X[i : i + 1], Y[i : i + 1])
            np.testing.assert_allclose(whole[i : i + 1], one, rtol=1e-5, atol=1e-6)


def test_raw_needs_a_rule_for_raw_output():
    field = fj.guide(FLOW, CFG(scale=2.0))
    value, _ = field.evaluate(0.5, X, Y, field.init(X), to="raw")
    np.testing.assert_allclose(value, field.velocity(0.5, X, Y), rtol=1e-6)
    with pytest.raises(ValueError, match="APG works on the data prediction"):
        fj.guide(FLOW, APG(scale=2.0)).check([0.5], "raw")


def test_an_end_at_which_the_rule_cannot_answer_is_refused():
    """APG steers the data prediction, which at t = 1 is the state itself and says nothing of the velocity."""
    field = fj.guide(FLOW, APG(scale=2.0))
    with pytest.raises(ValueError, match=r"'data' prediction does not determine the velocity at t = 1.*move the end"):
        fj.solve(field, fj.solvers.Heun(), X, fj.times.uniform(4), cond=Y)
    fj.solve(field, fj.solvers.Heun(), X, fj.times.uniform(4, end=0.99), cond=Y)
    fj.solve(field, fj.solvers.Euler(), X, fj.times.uniform(4), cond=Y)
    gate = Interval(rule=APG(scale=2.0), start=0.0, end=0.9)
    assert np.all(np.isfinite(fj.solve(fj.guide(FLOW, gate), fj.solvers.Heun(), X, fj.times.uniform(4), cond=Y).x))


def test_both_fields_are_checked():
    noisy = fj.Flow(by_label, path=LINEAR, prediction="noise")
    for field in (fj.guide(noisy, CFG(scale=2.0), against=FLOW), fj.guide(FLOW, CFG(scale=2.0), against=noisy)):
        with pytest.raises(ValueError, match="move the start"):
            field.check([0.0], "velocity")


def test_refusals():
    with pytest.raises(ValueError, match="pass against="):
        fj.guide(fj.Flow(by_label, path=LINEAR), CFG(scale=2.0))
    with pytest.raises(ValueError, match="pass against="):
        fj.guide(fj.guide(FLOW, CFG(scale=2.0)), CFG(scale=2.0))
    with pytest.raises(ValueError, match="put the guidance inside"):
        fj.guide(fj.guide(FLOW, APG(scale=2.0)), CFG(scale=2.0), against=9)
    with pytest.raises(ValueError, match="pass cond="):
        fj.guide(FLOW, CFG(scale=2.0)).velocity(0.5, X)


def test_stateless_is_told():
    assert fj.guide(FLOW, CFG()).stateless
    assert not fj.guide(FLOW, APG()).stateless
    assert not fj.guide(FLOW, Interval(rule=APG())).stateless
    assert fj.guide(FLOW, Interval(rule=CFG())).stateless
    assert fj.guide(FLOW, CFG()).path == LINEAR

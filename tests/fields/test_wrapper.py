"""Every field around every other: what the inner one says of itself comes through."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flowjax as fj
from flowjax.fields import (
    MMPS,
    Added,
    Bounded,
    Converted,
    Curved,
    DriftPlusScore,
    Embedded,
    FieldWrapper,
    Gradient,
    Guided,
    InterpolantFlow,
    Posterior,
    Thresholded,
    sde_terms,
)
from flowjax.fields.pruned import Pruned
from flowjax.fields.saving import Saving
from flowjax.fields.wrapper import DataWrapper
from flowjax.flow import Counts, Field
from flowjax.guidance import APG, CFG, RAAG
from flowjax.oracles import TwoSidedMixture
from flowjax.policies import Momentum

LINEAR, TRIG = fj.paths.Linear(), fj.paths.Trig()
X = fj.noise(jax.random.key(0), (4, 2))
COND = jnp.arange(4.0)


class Probe(Field):
    """A field that says something of itself everywhere."""

    path, null, stateless, one_evaluation_per_step = LINEAR, 7.0, False, True

    def init(self, x, times=None):
        return {"times": times, "seen": jnp.zeros(()), "counts": Counts.zero(x.shape[0])}

    def evaluate(self, t, x, cond, memory, *, to="velocity", **extra):
        return 0.1 * x, memory | {"seen": memory["seen"] + 1, "counts": memory["counts"].plus(x.shape[0])}

    def check(self, times, to):
        if any(0.45 < t < 0.55 for t in times):
            raise ValueError("the probe refuses")

    def report(self, memory):
        return memory["seen"]


WRAPPERS = {
    "guided": lambda field: Guided(field, CFG(scale=2.0), 0.0),
    "converted": lambda field: Converted(field, path=LINEAR),
    "thresholded": lambda field: Thresholded(field, max=2.0),
    "drift": lambda field: DriftPlusScore(field, diffusion=0.3),
    "embedded": lambda field: Embedded(field, guidance=2.0),
    "bounded": lambda field: Bounded(field),
    "added": lambda field: Added(field, added=Gradient(lambda x, t, cond: -jnp.sum(x**2, 1), path=LINEAR)),
    "mmps": lambda field: MMPS(field, operator=jnp.tanh, measured=np.zeros((1, 2)), noise_std=0.5, iterations=1),
}
AROUND_DRIFTS = ("guided", "embedded")
PAIRS = [  # the drift of an SDE is not converted any more, and a network takes one scale
    (outer, inner)
    for outer, inner in itertools.product(WRAPPERS, WRAPPERS)
    if (inner != "drift" or outer in AROUND_DRIFTS) and (outer, inner) != ("embedded", "embedded")
]
OUTSIDE = [(outer, "drift") for outer in WRAPPERS if outer not in AROUND_DRIFTS]


def wrapped(outer, inner, field=None):
    return WRAPPERS[outer](WRAPPERS[inner](field or Probe()))


def test_the_list_of_wrappers_is_complete():
    made = {type(make(Probe())) for make in WRAPPERS.values()} - {MMPS} | {Posterior}
    known = {*FieldWrapper.__subclasses__(), *DataWrapper.__subclasses__()} - {DataWrapper}
    own = {c for c in known if c.__module__.startswith("flowjax")}
    # Doctests may have made others.
    assert made | {Curved, Pruned, Saving} == {c for c in own if vars(sys.modules[c.__module__]).get(c.__name__) is c}


def curved(flow=None):
    """The one wrapper that goes around networks alone: the velocity 2 - x up to any end."""
    line = flow or fj.Flow(lambda x, t, cond: jnp.concatenate([2 - x, x[:, :1]], axis=1), path=LINEAR, null=7.0)
    return Curved(line, policy=Momentum(components=1))


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_network_that_answers_with_a_policy_is_innermost(name):
    if name == "embedded":
        flow = fj.Flow(
            lambda x, t, cond, guidance: jnp.concatenate([guidance[:, None] - x, x[:, :1]], axis=1), path=LINEAR
        )
        np.testing.assert_allclose(curved(Embedded(flow, guidance=2.0)).velocity(0.5, X), 2 - X, rtol=1e-6)
        return
    with pytest.raises(ValueError, match=r"reads the network's own answers, which \w+ does not give"):
        curved(WRAPPERS[name](fj.Flow(lambda x, t, cond: x, path=LINEAR)))
    around = WRAPPERS[name](curved())
    assert (around.null, around.path) == (None if name == "guided" else 7.0, LINEAR)
    times = fj.times.uniform(2, 0.1, 0.5)
    if name in ("converted", "thresholded", "bounded"):
        with pytest.raises(ValueError, match="no mean"):
            fj.solve(around, fj.solvers.Policy(), X, times)


def test_no_mean_but_of_velocities():
    field = curved()
    mean, _ = field.evaluate(0.2, X, None, field.init(X), end=0.7)
    np.testing.assert_allclose(mean, 2 - X, rtol=1e-6)
    with pytest.raises(ValueError, match="no mean data"):
        field.evaluate(0.2, X, None, field.init(X), to="data", end=0.7)


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_what_a_field_says_comes_through(outer, inner):
    field = wrapped(outer, inner)
    assert field.path == LINEAR
    assert not field.stateless
    assert field.one_evaluation_per_step
    assert field.null == (None if "guided" in (outer, inner) else 7.0)
    assert field.convertible == ("drift" not in (outer, inner))
    with pytest.raises(ValueError, match="the probe refuses"):
        field.check([0.3, 0.5], "velocity")
    field.check([0.3, 0.7], "velocity")
    memory = field.init(X, np.linspace(0.1, 0.9, 3))
    assert float(field.report(memory)) == 0
    _, memory = field.evaluate(0.3, X, COND, memory)
    assert float(field.report(memory)) == 1
    with pytest.raises(ValueError, match="carries a memory"):
        fj.term(field)


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_solvers_hear_of_it(outer, inner):
    """One evaluation per step is asked for, the inner refusal is heard, and the report is stacked."""
    field = wrapped(outer, inner)
    with pytest.raises(ValueError, match="one evaluation per step"):
        fj.solve(field, fj.solvers.Heun(), X, fj.times.uniform(2, 0.1, 0.4), cond=COND)
    with pytest.raises(ValueError, match="the probe refuses"):
        fj.solve(field, fj.solvers.Euler(), X, fj.times.uniform(4, 0.1, 0.9), cond=COND)


def test_a_network_takes_one_scale():
    for inner in (Embedded(Probe()), Thresholded(Embedded(Probe()))):
        with pytest.raises(ValueError, match="has its scale already"):
            Embedded(inner, guidance=2.0)


@pytest.mark.parametrize(("outer", "inner"), OUTSIDE)
def test_a_drift_stays_outside(outer, inner):
    """Converted to data and back it would be the velocity again, without a word."""
    with pytest.raises(ValueError, match=r"DriftPlusScore (does not allow|does not determine)"):
        wrapped(outer, inner)
    guided = fj.guide(WRAPPERS["drift"](fj.Flow(lambda x, t, cond: x, path=LINEAR)), APG(scale=2.0), against=0)
    with pytest.raises(ValueError, match="APG makes one prediction from another"):
        guided.check([0.5], "velocity")
    with pytest.raises(ValueError, match="monitor= is shown the data prediction"):
        fj.solve(guided.field, fj.solvers.Euler(), X, fj.times.uniform(2), monitor=lambda t, x, data: None)


@pytest.mark.parametrize("outer", WRAPPERS)
def test_only_fields_are_wrapped(outer):
    with pytest.raises((ValueError, TypeCheckError), match=r"expected a field|Type-check error"):
        WRAPPERS[outer](lambda x, t, cond: x)


def test_a_network_that_says_nothing_at_an_end_is_refused_through_everything():
    noise = fj.Flow(lambda x, t, cond: x, path=LINEAR, prediction="noise", null=0.0)
    euler, times = fj.solvers.EulerMaruyama(diffusion=0.3, drift="field"), fj.times.uniform(4, 0.0, 0.9)
    for name, make in WRAPPERS.items():
        if name != "converted":  # the data prediction of noise at lam = -inf
            with pytest.raises(ValueError, match="move the start"):
                fj.solve(make(noise), euler, X, times, cond=COND, key=jax.random.key(0))
    with pytest.raises(ValueError, match="move the start"):
        fj.solve(WRAPPERS["converted"](noise), euler, X, times, cond=COND, key=jax.random.key(0))
    with pytest.raises(ValueError, match="move the start"):
        sde_terms(DriftPlusScore(noise, diffusion=0.3), X, jax.random.key(0), end=0.9)
    velocity = fj.Flow(lambda x, t, cond: x, path=LINEAR)
    with pytest.raises(ValueError, match="does not determine the score at t = 1"):
        DriftPlusScore(velocity, diffusion=0.3).check([1.0], "velocity")
    DriftPlusScore(velocity, diffusion="sigma").check([0.0, 1.0], "velocity")  # no score where eps = 0
    with pytest.raises(ValueError, match=r"is inf at t = 0"):
        DriftPlusScore(velocity, diffusion="sbdm").check([0.0], "velocity")


def test_null_is_found_through_wrappers():
    flow = fj.Flow(lambda x, t, cond: cond[:, None] * x, path=LINEAR, prediction="data", null=0.0)
    field = fj.guide(Thresholded(flow), CFG(scale=3.0))
    assert field.against == 0.0
    np.testing.assert_allclose(field.data(0.5, 0.1 * X, COND), 0.3 * COND[:, None] * X, rtol=1e-5)
    with pytest.raises(ValueError, match="pass against="):
        fj.guide(Thresholded(fj.guide(flow, CFG(scale=2.0))), CFG(scale=2.0))


def test_reports_of_rules_inside_rules():
    """The inner report is that of the samples, not of what they are compared with."""
    flow = fj.Flow(lambda x, t, cond: cond[:, None] * x, path=LINEAR, null=1.0)
    inner, times = fj.guide(flow, RAAG(w_max=3.0, alpha=1.0)), fj.times.uniform(3)
    alone = fj.solve(inner, fj.solvers.Euler(), X, times, cond=COND + 2).report
    around = fj.solve(fj.guide(inner, CFG(scale=1.0), against=9.0), fj.solvers.Euler(), X, times, cond=COND + 2)
    np.testing.assert_allclose(around.report["scale"], alone["scale"], rtol=1e-5)
    double = fj.guide(inner, CFG(scale=2.0), against=9.0)
    result = fj.solve(double, fj.solvers.Euler(), X, times, cond=COND + 2)
    assert result.report["ratio"].shape == (3, 4)
    np.testing.assert_allclose(result.report["ratio"][0], alone["ratio"][0], rtol=1e-5)
    assert (int(result.evaluations), int(result.network_calls)) == (3, 12)
    both = fj.solve(fj.guide(inner, RAAG(w_max=2.0), against=9.0), fj.solvers.Euler(), X, times, cond=COND + 2).report
    assert both["rule"]["ratio"].shape == both["field"]["ratio"].shape == (3, 4)


def test_interpolants_say_what_they_give():
    bridge = fj.paths.Interpolant()
    laws = {"weights0": np.ones(1), "means0": -np.ones((1, 2)), "stds0": np.full((1, 2), 0.5)}
    laws |= {"weights1": np.ones(1), "means1": np.ones((1, 2)), "stds1": np.full((1, 2), 0.8)}
    target = TwoSidedMixture(**laws, interpolant=bridge)
    field = InterpolantFlow(target.network("velocity"), path=bridge, second=target.network("denoiser"))
    with pytest.raises(ValueError, match=r"velocity, score, noise, not 'data'"):
        field.check([0.5], "data")
    with pytest.raises(ValueError, match="pass second="):
        InterpolantFlow(target.network("velocity"), path=bridge).check([0.5], "score")
    times = fj.times.uniform(4, 0.0, 0.9)
    drift = DriftPlusScore(field, diffusion=0.5)
    with pytest.raises(ValueError, match="denoiser does not determine the score at t = 0"):
        fj.solve(drift, fj.solvers.EulerMaruyama(diffusion=0.5, drift="field"), X, times, key=jax.random.key(0))
    scored = InterpolantFlow(
        target.network("velocity"), path=bridge, second=target.network("score"), second_prediction="score"
    )
    DriftPlusScore(scored, diffusion=0.5).check(times, "velocity")
    driven = InterpolantFlow(
        target.network("drift"), path=bridge, prediction="drift", second=target.network("denoiser")
    )
    for end, grid in ((0, times), (1, fj.times.uniform(4, 0.1, 1.0))):
        with pytest.raises(ValueError, match=f"denoiser does not determine the velocity at t = {end}, where gamma = 0"):
            fj.solve(driven, fj.solvers.Heun(), X, grid)
        memory = driven.init(X)
        for to in ("velocity", "score"):  # a flag where nobody can look at the times
            value = jax.jit(lambda t, f, to=to: f.evaluate(t, X, None, memory, to=to)[0])  # noqa: B023
            assert np.isnan(value(jnp.float32(end), driven)).all()
            assert np.isfinite(value(jnp.float32(0.5), driven)).all()
    # Where g' is finite the product g' etaz is 0 with etaz.
    flat = fj.paths.Interpolant(gamma="quadratic")
    target = TwoSidedMixture(**laws, interpolant=flat)
    driven = InterpolantFlow(target.network("drift"), path=flat, prediction="drift", second=target.network("denoiser"))
    driven.check([0.0, 1.0], "velocity")
    np.testing.assert_allclose(
        driven.evaluate(0.0, X, None, driven.init(X))[0], target.predict("velocity", 0.0, X), rtol=1e-5
    )
    for make in (Thresholded, lambda f: Converted(f, path=LINEAR)):
        with pytest.raises(ValueError, match="InterpolantFlow does not allow"):
            make(field)
    # Guidance goes around the drift, which is linear in what it is made of.
    with pytest.raises(ValueError, match="guide the drift"):
        DriftPlusScore(fj.guide(field, CFG(scale=2.0), against=0))
    weak = DriftPlusScore(scored, diffusion=0.5)
    guided = fj.guide(drift, CFG(scale=2.0), against=weak)
    np.testing.assert_allclose(guided.velocity(0.4, X), drift.velocity(0.4, X), rtol=1e-4)
    with pytest.raises(ValueError, match="pass log_prior="):
        fj.log_likelihood(field, X)
    with pytest.raises(ValueError, match="another density"):
        fj.log_likelihood(guided, X, log_prior=lambda x: x[:, 0])

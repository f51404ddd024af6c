import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, relative

import flowjax as fj
from flowjax.fields import Thresholded
from flowjax.times import uniform

X = fj.noise(jax.random.key(0), (3, 4, 5))
PREDICTIONS = ["velocity", "noise", "data", "score", "v"]


def flow(scale, path=PATHS["vp"]):
    return fj.Flow(lambda x, t, cond=None: scale * jnp.tanh(x), path=path, prediction="data")


@pytest.mark.parametrize("name", ["vp", "linear", "ve"])
@pytest.mark.parametrize("to", PREDICTIONS)
def test_predictions_within_one_stay_as_they_are(to, name):
    plain = flow(0.9, PATHS[name])
    for t in (0.3, 0.8):
        a, b = (f.evaluate(t, X, None, f.init(X), to=to)[0] for f in (Thresholded(plain), plain))
        assert relative(a, b) < 2e-5


def test_each_sample_has_its_own_quantile():
    field = Thresholded(flow(jnp.array([0.5, 3.0, 20.0])[:, None, None]), quantile=0.9)
    m, _ = field.evaluate(0.5, X, None, field.init(X), to="data")
    raw = np.array([0.5, 3.0, 20.0])[:, None, None] * np.tanh(np.asarray(X))
    for mine, of_network in zip(np.asarray(m), raw, strict=True):
        q = max(1.0, np.quantile(np.abs(of_network), 0.9))
        assert mine == pytest.approx(np.clip(of_network, -q, q) / q, abs=1e-5)
        assert np.abs(mine).max() <= 1.0
    assert np.mean(np.abs(m[2]) == 1.0) == pytest.approx(0.1, abs=0.06)
    assert relative(m[0], raw[0]) < 1e-6


def test_the_largest_quantile_is_limited():
    """m <- clip(m, -q, q)/q with q between 1 and max; max = 1 clips to [-1, 1]."""
    factors = jnp.array([0.5, 3.0, 20.0])[:, None, None]
    raw = np.asarray(factors * jnp.tanh(X))
    for most in (1.0, 2.0, 1e6):
        found = Thresholded(flow(factors), quantile=0.9, max=most).data(0.5, X)
        q = np.clip(np.quantile(np.abs(raw), 0.9, axis=(1, 2), keepdims=True), 1, most)
        np.testing.assert_allclose(found, np.clip(raw, -q, q) / q, rtol=1e-5)
    np.testing.assert_allclose(Thresholded(flow(factors), max=1).data(0.5, X), np.clip(raw, -1, 1), rtol=1e-6)
    run, plain = jax.jit(lambda field: field.data(0.5, X)), flow(3.0)
    for most in (1.5, 2.5):  # traced
        expected = Thresholded(plain, max=most).data(0.5, X)
        np.testing.assert_allclose(run(Thresholded(plain, max=most)), expected, rtol=1e-5)
    assert run._cache_size() == 1


@pytest.mark.parametrize("to", PREDICTIONS)
def test_all_predictions_belong_to_the_thresholded_data(to):
    path, field = PATHS["vp"], Thresholded(flow(5.0))
    value, _ = field.evaluate(0.4, X, None, field.init(X), to=to)
    m, _ = field.evaluate(0.4, X, None, field.init(X), to="data")
    assert relative(path.convert(value, given=to, to="data", t=0.4, x=X), m) < 1e-4


def test_of_a_guided_field():
    """Guidance first, one threshold after it; a pair counts once."""
    network = lambda x, t, cond=None: (1 + cond[:, None, None]) * jnp.tanh(x)  # noqa: E731
    plain = fj.Flow(network, path=PATHS["vp"], prediction="data", null=0.0)
    guided = fj.guide(plain, fj.guidance.CFG(scale=4.0))
    cond = jnp.array([1.0, 0.1, 2.0])
    field = Thresholded(guided, quantile=1.0)
    m, _ = field.evaluate(0.5, X, cond, field.init(X), to="data")
    raw, _ = guided.evaluate(0.5, X, cond, guided.init(X), to="data")
    largest = jnp.abs(raw).max(axis=(1, 2), keepdims=True)
    assert relative(m, raw / jnp.maximum(largest, 1.0)) < 1e-5
    result = fj.solve(field, fj.solvers.DPMSolver(), X, uniform(4), cond=cond)
    assert (int(result.evaluations), int(result.network_calls)) == (4, 8)
    assert np.abs(result.x).max() <= 1.0 + 1e-5  # the last step ends at the thresholded prediction


def test_noise_form_works_too():
    times = uniform(5, 0.05, 0.95)
    ends = [
        fj.solve(Thresholded(flow(5.0)), fj.solvers.DPMSolver(order=1, form=form), X, times).x
        for form in ("data", "noise")
    ]
    assert relative(*ends) < 1e-4


def test_refusals():
    for quantile in (0.0, 1.1):
        with pytest.raises(ValueError, match="quantile must be in"):
            Thresholded(flow(1.0), quantile=quantile)
    for most in (0.9, -1.0, float("nan"), float("inf"), jnp.array(0.5)):
        with pytest.raises(ValueError, match=r"max must be (at least 1|finite)"):
            Thresholded(flow(1.0), max=most)
    with pytest.raises(ValueError, match="raw"):
        Thresholded(flow(1.0)).check([0.5], "raw")

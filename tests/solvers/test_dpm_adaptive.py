import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Executions

import flowjax as fj
from flowjax.oracles import Mixture
from flowjax.solvers import DPMAdaptive

EXECUTIONS = Executions()
NAMES = ["vp", "linear", "ve"]


def setting(name, n=32):
    """A flow, states at lam = -3 (where the mixture is one blob) and their exact images at t = 0.99."""
    path = PATHS[name]
    target = Mixture.default(path)
    start, end = float(path.time(-3.0 if name != "ve" else -1.5)), 0.99
    x = path.alpha(start) * 0.3 + path.sigma(start) * fj.noise(jax.random.key(0), (n, 1))
    return fj.Flow(target.network("velocity"), path=path), x, np.array([start, end]), target.flow_map(x, start, end)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("order", "form"), [(2, "data"), (3, "noise"), (3, "data")])
def test_error_falls_with_the_tolerance_and_evaluations_rise(order, form, name):
    flow, x, times, exact = setting(name)
    solver = DPMAdaptive(order=order, form=form)
    found = []
    for rtol, atol in ((0.05, 0.0078), (1e-3, 1e-4)):
        result = fj.solve(flow, dataclasses.replace(solver, rtol=rtol, atol=atol), x, times)
        assert int(result.evaluations) % order == 0
        found.append((float(jnp.abs(result.x - exact).max()), int(result.evaluations)))
    assert found[0][0] < 0.25
    assert found[1][0] < 5e-3
    assert found[1][0] < found[0][0] / 5
    assert 15 < found[0][1] < 120
    assert found[0][1] < found[1][1] < 600


@pytest.mark.slow
def test_evaluations_are_executed():
    flow, x, times, _ = setting("vp", n=4)
    counted = fj.Flow(EXECUTIONS.wrap(flow.network), path=flow.path)
    EXECUTIONS.take()
    result = fj.solve(counted, DPMAdaptive(), x, times)
    result.x.block_until_ready()
    assert EXECUTIONS.take() == int(result.evaluations) == int(result.network_calls)


def test_it_gives_up_loudly():
    flow, x, times, _ = setting("vp", n=4)
    assert np.all(np.isnan(fj.solve(flow, DPMAdaptive(max_trials=3), x, times).x))


def test_refusals():
    flow, x, times, _ = setting("linear", n=4)
    for bad, word in ((np.array([0.0, 0.9]), "start"), (np.array([0.1, 1.0]), "end")):
        with pytest.raises(ValueError, match=f"finite lam.*move the {word}"):
            fj.solve(flow, DPMAdaptive(), x, bad)
    with pytest.raises(ValueError, match="no trajectory"):
        fj.solve(flow, DPMAdaptive(), x, times, trajectory=True)
    with pytest.raises(ValueError, match="fixed grids"):
        fj.solve(flow, DPMAdaptive(), x, times, after_step=lambda t, x: x)
    with pytest.raises(ValueError, match="order"):
        DPMAdaptive(order=1)
    with pytest.raises(ValueError, match="form"):
        DPMAdaptive(form="velocity")


@pytest.mark.parametrize("invert", [False, True])
def test_it_ends_where_it_is_told_to(invert):
    """The first step leaves 5e-6 of lam; with no data predicted x shrinks like sigma, whatever the steps."""
    path, times = PATHS["linear"], np.array([0.2, 0.9])[:: -1 if invert else 1]
    lam = np.abs(np.diff(path.lam(times)))[0]
    flow = fj.Flow(lambda x, t, cond: jnp.zeros_like(x), path=path, prediction="data")
    with jax.enable_x64(True):
        x = jnp.ones((2, 1), jnp.float64)
        found = fj.solve(flow, DPMAdaptive(first=lam - 5e-6), x, times, invert=invert).x
    np.testing.assert_allclose(found, path.sigma(times[1]) / path.sigma(times[0]), rtol=1e-12)

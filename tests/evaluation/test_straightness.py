"""Straightness and first-order defect along trajectories."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import flowjax as fj
from flowjax.evaluation import straightness

MEAN, STD = 0.7, 0.5


@pytest.mark.slow
@pytest.mark.parametrize("path", [fj.paths.Linear(), fj.paths.Trig(), fj.paths.VP()], ids=lambda p: type(p).__name__)
def test_of_gaussian_data_against_quadrature(x64, path):
    target = fj.oracles.Gaussian(mean=MEAN, std=STD, path=path)
    flow = fj.Flow(target.network("velocity"), path=path)
    x0, end = jnp.array([[0.3], [-1.2]]), 0.95
    start = target.flow_map(path.interpolate(1e-3, x0, MEAN + STD * x0), 1e-3, 0.05)
    found = straightness(flow, start, np.linspace(0.05, end, 401))
    for i in range(2):
        at = lambda t, i=i: target.flow_map(start[i : i + 1], 0.05, t)  # noqa: E731
        last = float(at(end)[0, 0])
        slope = (last - float(start[i, 0])) / (end - 0.05)

        def defect(t, at=at, last=last):
            x, data = at(t), target.data(t, at(t))
            ratio = path.sigma(end) / path.sigma(t)
            return float((ratio * x + (path.alpha(end) - ratio * path.alpha(t)) * data)[0, 0] - last) ** 2

        def bend(t, at=at, slope=slope):
            return float(target.velocity(t, at(t))[0, 0] - slope) ** 2

        for name, integrand in (("first_order_defect", defect), ("straightness", bend)):
            expected = quad(integrand, 0.05, end, epsabs=1e-6, limit=30)[0] / (end - 0.05)
            np.testing.assert_allclose(found[name][i], expected, rtol=2e-3)


@pytest.mark.parametrize("path", [fj.paths.Linear(), fj.paths.Trig(), fj.paths.VP()], ids=lambda p: type(p).__name__)
def test_pairs_of_noise_and_data_have_no_defect_and_on_lines_no_bend(x64, path):
    def network(x, t, cond=None):
        return (x - path.alpha(t)[:, None] * MEAN) / (path.alpha(t) * STD + path.sigma(t))[:, None]

    flow, x0 = fj.Flow(network, path=path, prediction="noise"), jnp.array([[0.3], [-1.2]])
    x = path.interpolate(0.1, x0, MEAN + STD * x0)
    found = straightness(flow, x, np.linspace(0.1, 0.95, 51))
    assert float(found["first_order_defect"].max()) < 1e-6  # the error of Heun steps
    assert (float(found["straightness"].max()) < 1e-12) == isinstance(path, fj.paths.Linear)


def test_what_cannot_be_measured_is_refused():
    path, x = fj.paths.Linear(), jnp.ones((2, 1))
    with pytest.raises(ValueError, match="does not determine the data at t = 0"):
        straightness(fj.Flow(lambda x, t, cond: x, path=path, prediction="noise"), x, fj.times.uniform(4))
    flow = fj.Flow(lambda x, t, cond: x, path=path, null=0)
    field = fj.guide(flow, fj.guidance.APG(scale=2.0, beta=-0.5))
    with pytest.raises(ValueError, match="has a memory"):
        straightness(field, x, fj.times.uniform(4), jnp.zeros(2, jnp.int32))
    found = straightness(fj.Flow(lambda x, t, cond: x, path=fj.paths.VP(), prediction="data"), x, fj.times.uniform(4))
    assert set(found) == {"first_order_defect"}  # the velocity of VP has no bound at the data

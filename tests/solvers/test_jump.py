"""Jumps along average velocities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj

TARGET = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
FLOW = fj.Flow(TARGET.network("mean_velocity"), path=TARGET.path)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps_is_the_flow_itself(steps):
    x = jnp.array([[0.3], [-1.0]])
    result = fj.solve(FLOW, fj.solvers.Jump(), x, fj.times.uniform(steps), trajectory=True)
    np.testing.assert_allclose(result.x, 2.0 + 0.5 * x, rtol=1e-6)
    assert int(result.evaluations) == steps
    for t, state in zip(fj.times.uniform(steps)[1:], result.trajectory[1:], strict=True):
        np.testing.assert_allclose(state, TARGET.flow_map(x, 0.0, float(t)), rtol=1e-6)


def test_one_point_of_data_is_reached_exactly():
    point = jnp.array([[0.7, -1.2]])
    network = lambda x, t, cond=None, end=None: (point - x) / (1 - t)[:, None]  # noqa: E731
    x = jax.random.normal(jax.random.key(0), (4, 2))
    found = fj.solve(fj.Flow(network, path=fj.paths.Linear()), fj.solvers.Jump(), x, [0.0, 1.0]).x
    np.testing.assert_allclose(found, jnp.broadcast_to(point, (4, 2)), rtol=1e-6)


def test_what_does_not_fit_is_refused():
    x = jnp.ones((1, 1))
    plain = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
    with pytest.raises(ValueError, match=r"takes \(x, t, cond\) and no end=, as networks of average velocities do"):
        fj.solve(plain, fj.solvers.Jump(), x, fj.times.uniform(1))
    with pytest.raises(ValueError, match=r"Jump goes from noise to data.*invert with another solver"):
        fj.solve(FLOW, fj.solvers.Jump(), x, fj.times.uniform(2)[::-1], invert=True)
    with pytest.raises(ValueError, match="HeavyBall cannot act on Jump"):
        fj.solvers.HeavyBall(solver=fj.solvers.Jump())


@pytest.mark.slow
def test_velocities_of_such_a_network_are_inverted_and_have_a_likelihood():
    """Asked without an end it answers with the velocity."""
    x = jnp.array([[1.7], [2.4]])
    back = fj.solve(FLOW, fj.solvers.RK4(), x, fj.times.uniform(64)[::-1], invert=True).x
    np.testing.assert_allclose(back, (x - 2) / 0.5, rtol=1e-4)
    found = fj.log_likelihood(FLOW, x, rtol=1e-5, atol=1e-5)
    exact = jax.scipy.stats.norm.logpdf(x[:, 0], 2.0, 0.5)
    np.testing.assert_allclose(found.log_density, exact, atol=1e-3)

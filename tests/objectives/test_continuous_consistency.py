"""Continuous-time consistency against differences, its discrete limit, and a function that is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth import TRIG, batch, draws_of, exact, network, of, parameters

import flowjax as fj
from flowjax.objectives import ContinuousConsistency


def function_of(theta, draws, t):
    """f on the trajectory of the example."""
    x = TRIG.interpolate(t, draws.x0, draws.x1)
    return fj.Flow(of(theta), path=TRIG).data(t, x, draws.cond)


def test_continuous_consistency_by_differences(x64):
    """The tangent cos(r) df/dr, with r = pi/2 (1 - t), along the example."""
    theta, objective = parameters(), ContinuousConsistency(path=TRIG)
    draws = draws_of(objective)
    h = 1e-5
    slope = (function_of(theta, draws, draws.t + h) - function_of(theta, draws, draws.t - h)) / (2 * h)
    tangent = np.asarray(jnp.sin(jnp.pi / 2 * draws.t)[:, None] * slope * (-2 / jnp.pi))
    size = np.sqrt(np.sum(tangent**2, 1))
    loss, metrics = objective.loss(of(theta), draws)
    np.testing.assert_allclose(metrics["tangent"], size, rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean((tangent / (size + 0.1)[:, None]) ** 2, 1), rtol=1e-5)
    plain = dataclasses.replace(objective, c=None).loss(of(theta), draws)[0]
    np.testing.assert_allclose(plain, np.mean(tangent**2, 1), rtol=1e-5)


def test_it_is_the_limit_of_neighbouring_times(x64):
    """Its gradient is that of mean |f(r) - stop_gradient(f(r - d))|^2 / (d tan r) for d to 0."""
    theta, objective = parameters(), ContinuousConsistency(path=TRIG, c=None)
    draws = draws_of(objective)
    found = jax.grad(lambda theta: jnp.mean(objective.loss(of(theta), draws)[0]))(theta)
    angle, distances = jnp.pi / 2 * (1 - draws.t), []
    for d in (1e-3, 1e-4):

        def discrete(theta, d=d):
            near = function_of(theta, draws, draws.t + 2 / jnp.pi * d)
            error = function_of(theta, draws, draws.t) - jax.lax.stop_gradient(near)
            return jnp.mean(jnp.mean(error**2, 1) / (d * jnp.tan(angle)))

        limit = jax.grad(discrete)(theta)
        distances.append(max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, limit)))))
    assert distances[1] < 1e-3
    assert distances[0] / distances[1] == pytest.approx(10, rel=0.05)


@pytest.mark.slow
def test_the_exact_function_has_no_tangent_along_a_teacher(x64):
    target = fj.oracles.Gaussian(mean=0.7, std=0.5, path=TRIG)
    objective = ContinuousConsistency(path=TRIG, teacher=fj.Flow(target.network(), path=TRIG))

    def velocity(x, t, cond=None):  # with which f = cos(r) x + 2/pi sin(r) v is where the flow leads
        return jnp.pi / 2 * (exact(target)(x, t) - TRIG.alpha(t)[:, None] * x) / TRIG.sigma(t)[:, None]

    draws = objective.draw(jax.random.key(0), {"x1": batch(64)["x1"]})
    np.testing.assert_allclose(objective.loss(velocity, draws)[1]["tangent"], 0, atol=1e-9)
    wrong = objective.loss(lambda *inputs: 1.1 * velocity(*inputs), draws)[1]["tangent"]
    assert float(wrong.mean()) > 0.05


def test_the_warm_up_begins_with_flow_matching(x64):
    """At its start the tangent is cos(r)^2 (u - F), and the gradient pulls to the velocity."""
    theta, objective = parameters(), ContinuousConsistency(path=TRIG, warmup=10, c=None)
    draws, done = draws_of(objective, step=0), draws_of(objective, step=10)
    assert (float(draws.warm), float(draws_of(objective, step=5).warm), float(done.warm)) == (0, 0.5, 1)
    x = TRIG.interpolate(draws.t, draws.x0, draws.x1)
    error = (
        2 / np.pi * (network(theta, x, draws.t, draws.cond) - TRIG.conditional_velocity(draws.t, draws.x0, draws.x1))
    )
    expected = jnp.sin(jnp.pi / 2 * draws.t) ** 4 * jnp.mean(error**2, 1)
    np.testing.assert_allclose(objective.loss(of(theta), draws)[0], expected, rtol=1e-9)
    complete = dataclasses.replace(objective, warmup=0)
    np.testing.assert_array_equal(objective.loss(of(theta), done)[0], complete.loss(of(theta), done)[0])
    central = dataclasses.replace(complete, derivative="central").loss(of(theta), done)[0]
    np.testing.assert_allclose(central, complete.loss(of(theta), done)[0], rtol=1e-2)

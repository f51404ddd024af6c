"""Regression: its minimisers, its metrics, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.objectives import FlowMatching, Interpolation, Regression

TARGET = jnp.asarray(np.random.default_rng(0).exponential(size=(501, 1)), jnp.float32)
BATCH = {"x1": jnp.zeros((501, 3)), "target": TARGET}


@pytest.mark.parametrize(("form", "best"), [("mse", np.mean), ("mae", np.median)])
def test_the_best_constant_is_the_mean_or_the_median(form, best):
    objective = Regression(form=form)
    draws = objective.draw(jax.random.key(0), BATCH)
    constants = best(TARGET) + jnp.linspace(-0.1, 0.1, 21)
    losses = jax.vmap(lambda c: objective.loss(lambda x, t, cond: jnp.full_like(TARGET, c), draws)[0].mean())(constants)
    assert losses.argmin() == 10


def test_network_sees_data_at_time_one_and_its_condition():
    objective = Regression()
    batch = {"x1": jnp.arange(6.0).reshape(3, 2), "target": jnp.ones((3, 4)), "cond": jnp.array([1.0, 2.0, 3.0])}

    def network(x, t, cond):
        np.testing.assert_array_equal(t, np.ones(3, np.float32))
        return (x.sum(1) + cond)[:, None] * jnp.ones((1, 4))

    loss, metrics = objective.loss(network, objective.draw(jax.random.key(0), batch, step=5))
    np.testing.assert_allclose(loss, (np.array([1, 5, 9]) + np.array([1, 2, 3]) - 1.0) ** 2)
    np.testing.assert_allclose(metrics["mae"], np.sqrt(loss))
    np.testing.assert_array_equal(metrics["mse"], loss)


def test_times_have_the_precision_of_the_input(x64):
    seen = []
    draws = Regression().draw(jax.random.key(0), {"x1": jnp.ones((2, 3)), "target": jnp.ones((2, 3))})
    Regression().loss(lambda x, t, cond: seen.append(t.dtype) or x, draws)
    assert seen == [jnp.float64]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"unknown form of a regression 'mes'; did you mean 'mse'"):
        Regression(form="mes")
    with pytest.raises(ValueError, match=r"needs data with a field 'target'; this has x1"):
        Regression().draw(jax.random.key(0), {"x1": jnp.zeros((3, 2))})
    draws = Regression().draw(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match=r"answers with shape \(501,\), but its targets have \(501, 1\)"):
        Regression().loss(lambda x, t, cond: x[:, 0], draws)


@pytest.mark.parametrize(
    "objective", [FlowMatching(path=fj.paths.Linear()), Interpolation(interpolant=fj.paths.Interpolant())]
)
def test_answers_are_never_broadcast_in_objectives_of_flows_either(objective):
    draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 3))})
    with pytest.raises(ValueError, match=r"answers with shape \(4, 1\), but its targets have \(4, 3\)"):
        objective.loss(lambda x, t, cond: x[:, :1], draws)

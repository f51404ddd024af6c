"""The refiner of FlowTurbo: its loss, and a run that lifts a teacher's velocities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import gradients_everywhere

import flowjax as fj
from flowjax.objectives import Refiner

LINEAR = fj.paths.Linear()
TARGET = fj.oracles.Gaussian(mean=0.7, std=0.5, path=LINEAR)


def teacher_of(theta=1.0):
    """Depends on a class, and on a number in the place of weights."""
    network = lambda x, t, cond: theta * jnp.sin(x + t[:, None]) + cond[:, None]  # noqa: E731
    return fj.Flow(network, path=LINEAR, null=9.0)


def batch(n=16):
    rng = np.random.default_rng(0)
    return {"x1": jnp.asarray(rng.standard_normal((n, 2))), "cond": jnp.arange(n) / n}


def draws_of(objective, n=16, **changes):
    draws = objective.draw(jax.random.key(0), batch(n))
    floats = {name: jnp.asarray(getattr(draws, name), jnp.float64) for name in ("x0", "t", "gap")}
    return dataclasses.replace(draws, **floats, **changes)


@pytest.mark.parametrize("drop_both", [False, True])
def test_the_loss_by_hand(x64, drop_both):
    objective = Refiner(teacher=teacher_of(), label_dropout=0.5, null=9.0, drop_both=drop_both)
    draws = draws_of(objective)
    dropped = np.asarray(draws.later) == 9
    assert 0 < dropped.sum() < 16
    np.testing.assert_array_equal(draws.cond, draws.later if drop_both else batch()["cond"])
    t, d = np.asarray(draws.t)[:, None], float(draws.gap)
    x = t * np.asarray(draws.x1) + (1 - t) * np.asarray(draws.x0)
    v = np.sin(x + t) + np.asarray(draws.cond)[:, None]
    moved = x + d * v
    lifted = np.sin(moved + t + d) + np.asarray(draws.later)[:, None]
    seen = []

    def network(x, t, cond, velocity):
        seen.append((x, t, cond, velocity))
        return jnp.cos(x) * velocity

    loss, metrics = objective.loss({"refiner": network}, draws)
    np.testing.assert_allclose(loss, np.mean((v + np.cos(moved) * v - lifted) ** 2, 1), rtol=1e-10)
    np.testing.assert_allclose(metrics["unrefined"], np.mean((lifted - v) ** 2, 1), rtol=1e-10)
    for found, expected in zip(seen[0], (moved, (t + d)[:, 0], draws.later, v), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_loss_without_a_refiner_is_the_change_of_velocity_and_an_exact_one_has_none(x64):
    """Card, 6."""
    objective = Refiner(teacher=fj.Flow(TARGET.network("velocity"), path=LINEAR))
    draws = draws_of(objective)
    loss, metrics = objective.loss(lambda x, t, cond, velocity: jnp.zeros_like(x), draws)
    np.testing.assert_array_equal(loss, metrics["unrefined"])
    exact = lambda x, t, cond, velocity: TARGET.velocity(t, x) - velocity  # noqa: E731
    assert float(objective.loss(exact, draws)[0].max()) < 1e-25


def test_gaps_and_times():
    kinds = {past_end: Refiner(teacher=teacher_of(), gap=(0.1, 0.5), past_end=past_end) for past_end in (False, True)}
    for past_end, objective in kinds.items():
        many = [objective.draw(jax.random.key(i), batch(64)) for i in range(40)]
        gaps = np.array([draws.gap for draws in many])
        assert gaps.min() > 0.1 - 1e-6 and gaps.max() <= 0.5  # noqa: PT018 - one range
        assert gaps.std() > 0.08
        last = np.array([(draws.t + draws.gap).max() for draws in many])
        assert (last.max() > 1) == past_end
        assert last.max() > 0.97
    plain = kinds[False].draw(jax.random.key(0), {**batch(64)})
    np.testing.assert_array_equal(kinds[False].draw(jax.random.key(0), batch(8)).t, plain.t[:8])


def test_gradients_by_differences_and_everywhere(x64):
    theta = {"w": jnp.asarray(np.random.default_rng(1).standard_normal((4, 2)))}
    objective = Refiner(teacher=teacher_of(), label_dropout=0.3, null=9.0)

    def loss(theta, draws):
        network = lambda x, t, cond, velocity: jnp.tanh(jnp.concatenate([x, velocity], 1) @ theta["w"])  # noqa: E731
        return jnp.mean(objective.loss(network, draws)[0])

    draws = draws_of(objective)
    found, shift = jax.grad(loss)(theta, draws)["w"], jnp.zeros((4, 2)).at[3, 1].set(1e-6)
    both = [float(loss({"w": theta["w"] + sign * shift}, draws)) for sign in (1, -1)]
    np.testing.assert_allclose(found[3, 1], (both[0] - both[1]) / 2e-6, rtol=1e-6)
    gradients_everywhere(loss, theta, draws)


def test_weights_of_the_teacher_get_no_gradient(x64):
    def loss(theta):
        objective = Refiner(teacher=teacher_of(theta))
        return jnp.mean(objective.loss(lambda x, t, cond, velocity: x, draws_of(objective))[0])

    assert float(jax.grad(loss)(1.0)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap": (0.2, 0.1)}, "gap"),
        ({"gap": (0.0, 1.5)}, "gap"),
        ({"label_dropout": 0.1}, "label_dropout needs null="),
        (
            {"teacher": fj.guide(teacher_of(), fj.guidance.CFG(scale=2.0)), "label_dropout": 0.1, "null": 9.0},
            "guided when it samples, and this teacher is guided already",
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Refiner(**({"teacher": teacher_of()} | options))

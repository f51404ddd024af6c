"""alpha-Flow, shortcut models, terminal velocity matching: other identities of average velocities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import gradients_everywhere

import flowjax as fj
from flowjax.objectives import AlphaFlow, ImprovedMeanFlow, MeanFlow, Shortcut, TerminalVelocity
from flowjax.objectives.spans import in_precision
from flowjax.training.ema import Constant

LINEAR = fj.paths.Linear()
TARGET = fj.oracles.Gaussian(mean=0.7, std=0.5, path=LINEAR)
KINDS = [AlphaFlow, Shortcut, TerminalVelocity]


def network(theta, x, t, cond=None, end=None):
    """Smooth in everything."""
    return jnp.tanh(x @ theta["w"] + theta["a"] * t[:, None] + theta["b"] * (end - t)[:, None]) @ theta["v"]


def parameters(seed=0):
    rng, shapes = np.random.default_rng(seed), {"w": (2, 5), "a": (1, 5), "b": (1, 5), "v": (5, 2)}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def draws_of(objective, n=8, step=0):
    x1 = jnp.asarray(np.random.default_rng(1).standard_normal((n, 2)))
    return in_precision(objective.draw(jax.random.key(0), {"x1": x1}, step=step))


def loss_of(objective, draws, theta):
    return objective.loss(lambda *a, **k: network(theta, *a, **k), draws)[0]


def gradient(objective, draws, theta):
    return jax.grad(lambda theta: jnp.mean(loss_of(objective, draws, theta)))(theta)


def state_and_velocity(draws):
    return draws.t[:, None] * draws.x1 + (1 - draws.t)[:, None] * draws.x0, draws.x1 - draws.x0


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_span_are_flow_matching(x64, kind, power):
    theta = parameters()
    objective, plain = (k(path=LINEAR, frac_flow_matching=1.0, power=power) for k in (kind, MeanFlow))
    draws = draws_of(objective)
    both = (gradient(each, draws, theta) for each in (objective, plain))
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [Shortcut, TerminalVelocity])
def test_exact_average_velocities_have_no_loss(x64, kind):
    objective = kind(path=LINEAR, frac_flow_matching=0.0, power=0.0)
    draws = draws_of(objective, 64)
    loss, _ = objective.loss(TARGET.network("mean_velocity"), draws)
    split = np.asarray(draws.end - draws.t) > 1 / 128  # halves of the shortest are velocities
    assert split.sum() > 40
    np.testing.assert_allclose(loss[split], 0, atol=1e-9)
    wrong, _ = objective.loss(lambda x, t, cond, end: 1.1 * TARGET.network("mean_velocity")(x, t, cond, end), draws)
    assert float(wrong.mean()) > 1e-5


def test_alpha_goes_from_flow_matching_to_meanflow(x64):
    theta = parameters()
    draws = draws_of(AlphaFlow(path=LINEAR, frac_flow_matching=0.0))
    x, v = state_and_velocity(draws)

    def at(alpha, power=0.0):
        return AlphaFlow(path=LINEAR, power=power), dataclasses.replace(draws, alpha=jnp.asarray(alpha))

    np.testing.assert_allclose(
        loss_of(*at(1.0), theta), jnp.sum((network(theta, x, draws.t, None, draws.end) - v) ** 2, 1), rtol=1e-12
    )
    half = (draws.end - draws.t) / 2
    aim = (v + network(theta, x + half[:, None] * v, draws.t + half, None, draws.end)) / 2
    np.testing.assert_allclose(
        loss_of(*at(0.5), theta),
        2 * jnp.sum((network(theta, x, draws.t, None, draws.end) - aim) ** 2, 1),
        rtol=1e-12,
    )
    mean = gradient(MeanFlow(path=LINEAR), draws, theta)
    distances = []
    for alpha in (1e-3, 1e-4):
        found = gradient(*at(alpha, power=1.0), theta)
        distances.append(max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, mean)))))
    assert distances[1] < 1e-3
    assert distances[0] / distances[1] == pytest.approx(10, rel=0.05)


def test_the_curriculum_of_alpha():
    objective = AlphaFlow(path=LINEAR, alpha=0.01, curriculum=(100, 300))
    found = [float(draws_of(objective, step=k).alpha) for k in (0, 100, 200, 250, 300, 1000)]
    np.testing.assert_allclose(found[:3], [1, 1, 0.5], atol=1e-5)
    assert 0.009 < found[3] < 0.5
    np.testing.assert_allclose(found[4:], 0.01, rtol=1e-6)


def test_shortcuts_by_hand(x64):
    theta, objective = parameters(), Shortcut(path=LINEAR, sections=4, frac_flow_matching=0.25)
    draws = draws_of(objective, 64)
    length = np.asarray(draws.end - draws.t)
    moved = length > 0
    assert moved.mean() == 0.75
    assert {*length[moved]} == {0.25, 0.5, 1.0}
    np.testing.assert_array_equal(np.mod(np.asarray(draws.t)[moved], length[moved]), 0)
    x, v = state_and_velocity(draws)
    expected = []
    for i in range(64):
        call = lambda x, t, end: network(theta, x[None], t[None], None, end[None])[0]  # noqa: E731
        t, end = draws.t[i], draws.end[i]
        middle = (t + end) / 2
        if not moved[i]:
            aim = v[i]
        elif length[i] > 0.25:
            first = call(x[i], t, middle)
            aim = (first + call(x[i] + (middle - t) * first, middle, end)) / 2
        else:  # halves of the shortest are velocities
            first = call(x[i], t, t)
            aim = (first + call(x[i] + (middle - t) * first, middle, middle)) / 2
        expected.append(float(jnp.sum((call(x[i], t, end) - aim) ** 2)))
    np.testing.assert_allclose(loss_of(objective, draws, theta), expected, rtol=1e-9)


def test_terminal_velocities_by_differences(x64):
    theta, objective = parameters(), TerminalVelocity(path=LINEAR, power=0.0, frac_flow_matching=0.5)
    draws = draws_of(objective)
    x, v = state_and_velocity(draws)

    def displacement(theta, end):
        return (end - draws.t)[:, None] * network(theta, x, draws.t, None, end)

    def by_hand(theta, fixed):
        d = 1e-4
        slope = (displacement(theta, draws.end + d) - displacement(theta, draws.end - d)) / (2 * d)
        there = network(fixed, x + displacement(fixed, draws.end), draws.end, None, draws.end)
        return jnp.sum((slope - jnp.where((draws.end == draws.t)[:, None], v, there)) ** 2, 1)

    np.testing.assert_allclose(loss_of(objective, draws, theta), by_hand(theta, theta), rtol=1e-6)
    expected = jax.grad(lambda p: jnp.mean(by_hand(p, theta)))(theta)  # the velocity at the end is a constant
    for a, b in zip(*map(jax.tree.leaves, (gradient(objective, draws, theta), expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def heads(theta, x, t, cond=None, end=None):
    """Both answers of improved MeanFlow."""
    return {"u": network(theta, x, t, cond, end), "v": network(theta, 2 * x, t, cond, end)}


@pytest.mark.parametrize("kind", [MeanFlow, ImprovedMeanFlow, *KINDS])
def test_gradients_are_equal_under_jit_pmap_and_on_eight_devices(x64, kind):
    objective, theta = kind(path=LINEAR, frac_flow_matching=0.5), parameters()
    draws = draws_of(objective, 16)
    answer = heads if kind is ImprovedMeanFlow else network

    def loss(theta, draws):
        return jnp.mean(objective.loss(lambda *a, **k: answer(theta, *a, **k), draws)[0])

    gradients_everywhere(loss, theta, draws)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_may_come_from_an_average(x64, kind):
    objective = kind(path=LINEAR, power=0.0, frac_flow_matching=0.0)
    draws, (one, other) = draws_of(objective), (parameters(0), parameters(1))
    call = lambda theta: lambda *a, **k: network(theta, *a, **k)  # noqa: E731
    both, _ = objective.loss({"network": call(one), "target": call(other)}, draws)
    same, _ = objective.loss({"network": call(one), "target": call(one)}, draws)
    np.testing.assert_array_equal(same, objective.loss(call(one), draws)[0])
    assert not np.allclose(both, same, rtol=1e-3)
    kept = jax.grad(lambda theta: jnp.mean(objective.loss({"network": call(one), "target": call(theta)}, draws)[0]))(
        other
    )
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("kind", [Shortcut, TerminalVelocity])
def test_an_objective_with_an_average_is_an_argument_of_a_program(kind):
    objective = kind(path=LINEAR, target_average=Constant(decay=0.99))
    jax.jit(lambda objective: objective.draw(jax.random.key(0), {"x1": jnp.ones((2, 2))}))(objective)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AlphaFlow(path=LINEAR, alpha=0.0), "alpha"),
        (lambda: AlphaFlow(path=LINEAR, curriculum=(5, 5)), r"curriculum=\(5, 5\) must be steps \(first, last\)"),
        (lambda: Shortcut(path=LINEAR, sections=12), "sections=12 must be a power of two"),
        (lambda: TerminalVelocity(path=fj.paths.VP()), "the velocity of VP is infinite at an end"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()

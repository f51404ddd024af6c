"""Consistency mid-training: targets between states of a teacher's trajectories."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import gradients_everywhere

import flowjax as fj
from flowjax.objectives import ConsistencyMidTraining
from flowjax.times import shifted, uniform

LINEAR = fj.paths.Linear()
TARGET = fj.oracles.Gaussian(mean=0.7, std=0.5, path=LINEAR)
PAIRS = [(i, j) for i in range(16) for j in range(i + 1, 16)]


def field(x, t, cond=None):
    """A velocity that is no straight line, of this package or of NumPy."""
    c = 0.0 if cond is None else 0.3 * cond.reshape(-1, *(1,) * (x.ndim - 1))
    return 0.5 * x**2 / (1 + x**2) - (1 + t.reshape(-1, *(1,) * (x.ndim - 1))) * x + c


def student(theta, x, t, cond=None, end=None):
    """Smooth in everything."""
    shift = 0.0 if cond is None else 0.3 * cond[:, None]
    return jnp.tanh(x @ theta["w"] + theta["a"] * t[:, None] + theta["b"] * (end - t)[:, None] + shift) @ theta["v"]


def parameters():
    rng, shapes = np.random.default_rng(0), {"w": (2, 5), "a": (1, 5), "b": (1, 5), "v": (5, 2)}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def objective_of(**options):
    return ConsistencyMidTraining(teacher=fj.Flow(field, path=LINEAR), **options)


def batch(n=8):
    return {"x1": jnp.zeros((n, 2)), "cond": jnp.arange(1.0, n + 1)}


def walk(x, times, cond):
    """Euler's method by hand: all states."""
    states = [np.asarray(x)]
    for s, t in itertools.pairwise(times):
        states.append(states[-1] + (t - s) * field(states[-1], np.full(len(x), s), np.asarray(cond)))
    return np.array(states)


def every_pair(draws, pairs):
    """Draws of one example each, of these pairs."""
    rows = jnp.asarray([PAIRS.index(pair) for pair in pairs], jnp.int32)[:, None]
    same = [jnp.broadcast_to(a[:1], (len(pairs), *a.shape[1:])) for a in (draws.x0, draws.cond)]
    return dataclasses.replace(draws, x0=same[0], cond=same[1], pairs=rows, seeds=None)


def target_of(objective, draws):
    """What a student that answers zero is far from: the targets, seen through the loss's own call."""
    seen = {}

    def zero(x, t, cond, end):
        seen.update(x=x, t=t, end=end, cond=cond)
        return jnp.zeros_like(x)

    loss, _ = objective.loss(zero, draws)
    return loss, seen


@pytest.mark.parametrize("official", [False, True])
def test_loss_and_gradient_on_fixed_inputs(x64, official):
    """By Euler's method and the pairs in NumPy; and by differences in the parameters."""
    options = {"grid": uniform(15, end=0.999), "told": uniform(15)} if official else {}
    objective, theta = objective_of(shift=4.0, pairs=3, null=0.0, label_dropout=0.3, **options), parameters()
    draws = objective.draw(jax.random.key(0), batch())
    u = 1 - np.linspace(0, 0.999 if official else 1, 16)
    times = 1 - 4 * u / (1 + 3 * u)
    np.testing.assert_allclose(objective.grid_for((2,)), times, atol=1e-15)
    labels = np.linspace(0, 1, 16) if official else times
    states = walk(draws.x0, times, draws.cond)
    expected = []
    for b in range(8):
        errors = []
        for i, j in (PAIRS[k] for k in np.asarray(draws.pairs[b])):
            asked = [jnp.asarray(a)[None] for a in (states[i, b], labels[i], draws.cond[b], labels[j])]
            target = (states[j, b] - states[i, b]) / (labels[j] - labels[i])
            errors.append(np.mean((np.asarray(student(theta, *asked))[0] - target) ** 2))
        expected.append(np.mean(errors))

    @jax.jit
    def loss(theta):
        return objective.loss(lambda *a, **k: student(theta, *a, **k), draws)[0]

    np.testing.assert_allclose(loss(theta), expected, rtol=1e-10)
    slope = jax.jit(jax.grad(lambda theta: jnp.mean(loss(theta))))(theta)
    for name in theta:
        ahead, behind = (theta | {name: theta[name] + d} for d in (1e-5, -1e-5))
        np.testing.assert_allclose(slope[name].sum(), jnp.mean(loss(ahead) - loss(behind)) / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_targets_are_velocities_ways_to_the_end_and_add_up(x64):
    """Check 6 of the method: neighbours, the last state, and the sum over one-step targets."""
    objective = objective_of(shift=3.0)
    times = objective.grid_for((2,))
    assert (times[0], times[-1]) == (0, 1)
    draws = every_pair(objective.draw(jax.random.key(0), batch(1)), PAIRS)
    loss, seen = target_of(objective, draws)
    states = walk(draws.x0[:1], times, draws.cond[:1])[:, 0]
    numbers = {pair: row for row, pair in enumerate(PAIRS)}
    np.testing.assert_allclose(seen["x"], [states[i] for i, _ in PAIRS], rtol=1e-12)
    np.testing.assert_allclose(seen["t"], [times[i] for i, _ in PAIRS])
    np.testing.assert_allclose(seen["end"], [times[j] for _, j in PAIRS])
    # A network that answers with what the target should be has no loss.
    neighbours = every_pair(draws, [(i, i + 1) for i in range(15)])
    velocity, _ = objective.loss(lambda x, t, cond, end: field(x, t, cond), neighbours)
    np.testing.assert_allclose(velocity, 0, atol=1e-20)
    to_the_end = every_pair(draws, [(i, 15) for i in range(15)])
    last = states[[15]]
    ways, _ = objective.loss(lambda x, t, cond, end: (last - x) / (1 - t)[:, None], to_the_end)
    np.testing.assert_allclose(ways, 0, atol=1e-20)
    steps = [(times[i + 1] - times[i]) * field(states[[i]], times[[i]], np.ones(1))[0] for i in range(15)]
    np.testing.assert_allclose(np.sum(steps, 0), states[15] - states[0], rtol=1e-12)
    np.testing.assert_allclose(loss[numbers[0, 15]], np.mean((states[15] - states[0]) ** 2), rtol=1e-10)


def test_pairs_are_drawn_evenly_and_conditions_dropped():
    objective = objective_of(pairs=6, label_dropout=0.2, null=-1.0)
    draws = jax.jit(objective.draw)(jax.random.key(0), batch(4000))
    counts = np.bincount(np.asarray(draws.pairs).ravel(), minlength=120)
    assert len(counts) == 120
    assert np.sum((counts - 200) ** 2 / 200) < 119 + 5 * np.sqrt(2 * 119)  # chi squared
    assert abs(np.mean(draws.cond == -1) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)
    few = objective.draw(jax.random.key(0), batch(3))
    for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(draws), strict=True):
        np.testing.assert_allclose(a, b[:3], rtol=1e-6)


def test_the_shift_is_that_of_the_dimension_unless_given():
    large = objective_of().grid_for((16, 16, 768))
    np.testing.assert_allclose(1 - large[[0, 15]], [1, 0])
    np.testing.assert_array_equal(large, shifted(uniform(15), np.sqrt(48)))
    np.testing.assert_allclose(objective_of().grid_for((8, 8, 1)), uniform(15), atol=1e-15)
    own = objective_of(grid=(0.1, 0.4, 1.0), shift=1.0)
    np.testing.assert_allclose(own.grid_for((2,)), [0.1, 0.4, 1.0], atol=1e-15)
    # The released program ends at a noise level of 0.00689.
    official = objective_of(grid=uniform(15, end=0.999)).grid_for((16, 16, 768))
    np.testing.assert_allclose(1 - official[-1], 0.00689, atol=5e-6)


def test_the_exact_flow_map_is_the_limit_of_finer_teachers():
    """Each halving of the steps of a second-order teacher leaves a sixteenth of the loss of the exact answer."""
    found = []
    for n in (8, 16):
        teacher = fj.Flow(TARGET.network("velocity"), path=LINEAR)
        solver = fj.solvers.Heun()
        objective = ConsistencyMidTraining(teacher=teacher, grid=uniform(n), solver=solver, pairs=64)
        draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((64, 1))})
        loss = jax.jit(lambda draws, o=objective: o.loss(TARGET.network("mean_velocity"), draws)[0])
        found.append(float(jnp.mean(loss(draws))))
    assert 8 < found[0] / found[1] < 32


def test_gradients_do_not_depend_on_the_devices(x64):
    objective = objective_of(pairs=2, grid=uniform(4))
    draws = objective.draw(jax.random.key(0), batch())
    loss = lambda theta, draws: jnp.mean(objective.loss(lambda *a, **k: student(theta, *a, **k), draws)[0])  # noqa: E731
    gradients_everywhere(loss, parameters(), draws)


def test_a_pair_that_is_none_has_no_loss():
    objective = objective_of(grid=uniform(3), pairs=1)
    draws = objective.draw(jax.random.key(0), batch(4))
    draws = dataclasses.replace(draws, pairs=jnp.array([[0], [5], [6], [-1]], jnp.int32))
    loss = jax.jit(lambda d: objective.loss(lambda x, t, cond, end: x, d)[0])(draws)
    np.testing.assert_array_equal(jnp.isnan(loss), [False, False, True, True])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (0.0, 0.5, 0.5, 1.0)}, "the times of grid must rise"),
        ({"told": (0.0, 1.0)}, "told has 2 times, and grid 16"),
        ({"pairs": 0}, "pairs"),
        ({"shift": 0.0}, "shift"),
        ({"label_dropout": 0.1}, "label_dropout needs null="),
        ({"solver": fj.solvers.EulerMaruyama(diffusion=0.1)}, "EulerMaruyama draws noise"),
        ({"teacher": fj.Flow(field, path=LINEAR, prediction="noise")}, "does not determine"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        ConsistencyMidTraining(**{"teacher": fj.Flow(field, path=LINEAR)} | options)

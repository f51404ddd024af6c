"""MeanFlow distillation and bootstrapping: their losses, their targets, their draws, and what mid-training is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import gradients_everywhere

import flowjax as fj
from flowjax.objectives import ConsistencyMidTraining, MeanFlowDistillation, SpanDraws
from flowjax.objectives.spans import along, in_precision

LINEAR = fj.paths.Linear()
TARGET = fj.oracles.Gaussian(mean=0.7, std=0.5, path=LINEAR)
D = 5e-3


def student(theta, x, t, cond=None, end=None):
    """Smooth in everything."""
    shift = 0.0 if cond is None else 0.3 * cond[:, None]
    return jnp.tanh(x @ theta["w"] + theta["a"] * t[:, None] + theta["b"] * (end - t)[:, None] + shift) @ theta["v"]


def teacher(x, t, cond=None):
    """Another smooth function."""
    return jnp.sin(x[:, ::-1] + t[:, None]) - x + (0.0 if cond is None else 0.2 * cond[:, None])


def parameters(seed=0):
    rng, shapes = np.random.default_rng(seed), {"w": (2, 5), "a": (1, 5), "b": (1, 5), "v": (5, 2)}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def objective_of(**options):
    return MeanFlowDistillation(**{"teacher": fj.Flow(teacher, path=LINEAR)} | options)


def draws_of(objective, n=8):
    rng = np.random.default_rng(1)
    batch = {"x1": jnp.asarray(rng.standard_normal((n, 2))), "cond": jnp.asarray(rng.integers(1, 4, n), jnp.float64)}
    return in_precision(objective.draw(jax.random.key(0), batch))


def of(theta):
    return lambda *a, **k: student(theta, *a, **k)


@pytest.mark.parametrize("velocity", ["teacher", "conditional"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_loss_and_gradient_on_fixed_inputs(x64, velocity, power):
    """In times that count from the data, as published, and by differences of a loss whose target stays."""
    objective, theta = (
        objective_of(velocity=velocity, power=power, shift=2.0, null=0.0, label_dropout=0.3),
        parameters(),
    )
    draws = draws_of(objective)
    tau, r = 1 - draws.t, 1 - draws.end
    z = (1 - tau)[:, None] * draws.x1 + tau[:, None] * draws.x0
    v = draws.x0 - draws.x1 if velocity == "conditional" else -teacher(z, 1 - tau, draws.cond)
    u = lambda theta, z, r, tau: -np.asarray(student(theta, z, 1 - tau, draws.cond, 1 - r))  # noqa: E731
    slope = (u(theta, z + D * v, r, tau + D) - u(theta, z - D * v, r, tau - D)) / (2 * D)
    target = np.asarray(v) - np.asarray(tau - r)[:, None] * slope

    def squares(theta):
        return np.sum((u(theta, z, r, tau) - target) ** 2, 1)

    weight = 1 / (squares(theta) ** 2 + 1e-3) ** power
    loss, metrics = jax.jit(objective.loss)(jax.tree_util.Partial(student, theta), draws)
    np.testing.assert_allclose(loss, squares(theta) ** 2 * weight, rtol=1e-10)
    np.testing.assert_allclose(metrics["mse"], squares(theta) / 2, rtol=1e-10)
    found = jax.jit(jax.grad(lambda theta: jnp.sum(objective.loss(of(theta), draws)[0])))(theta)
    for name in theta:
        ahead, behind = (squares(theta | {name: theta[name] + d}) ** 2 * weight for d in (1e-5, -1e-5))
        np.testing.assert_allclose(found[name].sum(), np.sum(ahead - behind) / 2e-5, rtol=1e-5)


def test_halving_the_difference_divides_the_error_by_four(x64):
    """Check 4 of the method, with a linear velocity of the teacher."""
    theta, flow = parameters(), fj.Flow(TARGET.network("velocity"), path=LINEAR)
    draws = draws_of(objective_of(teacher=flow))
    x = LINEAR.interpolate(draws.t, draws.x0, draws.x1)
    velocity = flow.velocity(draws.t, x)
    _, exact = along(of(theta), draws, x, velocity, "forward")
    errors = [
        float(jnp.abs(along(of(theta), draws, x, velocity, "central", difference=d)[1] - exact).max())
        for d in (2 * D, D, D / 2)
    ]
    assert errors[1] < 1e-3
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.01)
    whole = {"teacher": flow, "frac_flow_matching": 0.0, "power": 0.0}
    draws = draws_of(objective_of(**whole))
    close, far = (objective_of(**whole, difference=d).loss(of(theta), draws)[0] for d in (1e-5, 0.3))
    forward = objective_of(**whole, derivative="forward").loss(of(theta), draws)[0]
    np.testing.assert_allclose(close, forward, rtol=1e-6)
    assert float(jnp.abs(far - forward).max()) > 1e-3


@pytest.mark.parametrize("path", [LINEAR, fj.paths.Trig()], ids=["linear", "trig"])
def test_the_exact_average_velocity_has_no_loss(path):
    """Check 5."""
    target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=path)
    objective = MeanFlowDistillation(teacher=fj.Flow(target.network("velocity"), path=path), frac_flow_matching=0.2)
    draws = objective.draw(jax.random.key(0), {"x1": target.sample(jax.random.key(1), 64)[:, None]})
    velocity = target.network("velocity")
    networks = target.network("mean_velocity"), lambda x, t, cond, end: velocity(x, t, cond)
    exact, straight = (jax.jit(lambda draws, n=n: objective.loss(n, draws)[0])(draws) for n in networks)
    assert float(exact.max()) < 1e-6
    assert float(straight.max()) > 0.1


def test_targets_of_the_teacher_have_no_variance_and_those_of_examples_the_same_mean(x64):
    """Check 7: at one state and time, over the examples that lead there."""
    t, n, rng = 0.4, 200_000, np.random.default_rng(0)
    x = jnp.full((n, 1), 0.3)
    total = t**2 * 0.25 + (1 - t) ** 2
    mean = 0.7 + t * 0.25 * (0.3 - t * 0.7) / total
    x1 = jnp.asarray(mean + np.sqrt(0.25 * (1 - t) ** 2 / total) * rng.standard_normal((n, 1)))
    draws = SpanDraws(x0=(x - t * x1) / (1 - t), x1=x1, t=jnp.full(n, t), end=jnp.full(n, t))
    flow = fj.Flow(TARGET.network("velocity"), path=LINEAR)
    seen = {}
    for velocity in ("teacher", "conditional"):
        objective = objective_of(teacher=flow, velocity=velocity)
        # The rows have e = t, and the answer is zero: what is to become zero is minus the target.
        zero = lambda x, t, cond, end: jnp.zeros_like(x)  # noqa: E731
        goal = objective.goal(zero, draws, x, LINEAR.conditional_velocity(draws.t, draws.x0, draws.x1))
        seen[velocity] = -np.asarray(objective.compare(zero, zero, draws, x, goal)[1])
    assert np.ptp(seen["teacher"]) == 0
    spread = seen["conditional"].std()
    assert spread > 0.5
    np.testing.assert_allclose(seen["conditional"].mean(), seen["teacher"][0, 0], atol=4 * spread / np.sqrt(n))
    assert (objective_of(velocity="conditional").teacher, objective_of().teacher is None) == (None, False)


def test_both_kinds_of_rows_by_chance_and_labels_dropped_in_both():
    objective = objective_of(null=9.0, label_dropout=0.1, shift=1.0)
    n = 20_000
    batch = {"x1": jnp.zeros((n, 1)), "cond": (jnp.arange(n) % 4).astype(jnp.float32)}
    draws = jax.jit(objective.draw)(jax.random.key(0), batch)
    still, dropped = np.asarray(draws.end == draws.t), np.asarray(draws.dropped)
    sigma = lambda p: 4 * np.sqrt(p * (1 - p) / n)  # noqa: E731
    assert abs(still.mean() - 0.75) < sigma(0.75)
    assert abs(dropped.mean() - 0.1) < sigma(0.1)
    assert abs((dropped & still).mean() - 0.075) < sigma(0.075)
    np.testing.assert_array_equal(dropped, draws.cond == 9)
    assert (np.asarray(draws.end - draws.t)[~still] > 0).all()
    # t is the smaller, e the larger of two uniform times.
    assert abs(np.mean(draws.t) - 1 / 3) < 4 * np.sqrt(1 / 18 / n)
    assert abs(np.mean(draws.end[~still]) - 2 / 3) < 4 * np.sqrt(1 / 18 / (~still).sum())
    few = objective.draw(jax.random.key(0), jax.tree.map(lambda a: a[:3], batch))
    for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(draws), strict=True):
        np.testing.assert_allclose(a, b[:3], rtol=1e-6)


def test_times_are_shifted_by_the_dimension():
    """Those of latents (16, 16, 768), against the same draws without a shift."""
    batch, drawn = {"x1": jnp.zeros((32, 16, 16, 768))}, {}
    for shift in (None, 1.0):
        objective = objective_of(shift=shift)
        draw = lambda batch, o=objective: (lambda d: (d.t, d.end))(o.draw(jax.random.key(0), batch))  # noqa: E731
        drawn[shift] = np.asarray(jax.jit(draw)(batch), np.float64)
    a, u = np.sqrt(48), 1 - drawn[1.0]
    np.testing.assert_allclose(1 - drawn[None], a * u / (1 + (a - 1) * u), rtol=1e-5, atol=1e-6)
    assert not np.any(drawn[None][1] < drawn[None][0])


def test_gradients_do_not_depend_on_the_devices(x64):
    objective = objective_of()
    draws = draws_of(objective)
    loss = lambda theta, draws: jnp.mean(objective.loss(of(theta), draws)[0])  # noqa: E731
    gradients_everywhere(loss, parameters(), draws)


def test_the_two_states_of_a_difference_have_no_backward_pass():
    """A step costs the student 3 forward calls and a backward one, not three of both."""
    theta = {"w": jnp.ones((2, 320)), "v": jnp.ones((320, 2))}
    objective = objective_of()
    draws = objective.draw(jax.random.key(0), {"x1": jnp.ones((64, 2))})

    def network(theta):
        return lambda x, t, cond, end: jnp.tanh(x @ theta["w"] + (end - t)[:, None]) @ theta["v"]

    def flops(loss):
        return jax.jit(jax.grad(loss)).lower(theta).compile().cost_analysis()["flops"]

    whole = flops(lambda theta: jnp.mean(objective.loss(network(theta), draws)[0]))
    plain = flops(lambda theta: jnp.mean(network(theta)(draws.x1, draws.t, None, draws.end) ** 2))
    assert whole < 2.2 * plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": None}, "velocity='teacher' needs teacher="),
        ({"teacher": None, "velocity": "conditional"}, "without a teacher path= is needed"),
        ({"path": fj.paths.Trig()}, "the teacher's path is"),
        ({"velocity": "mine"}, "unknown velocity 'mine'"),
        ({"difference": 0.0}, "difference"),
        ({"shift": -1.0}, "shift"),
        ({"label_dropout": 0.1}, "need null="),
        ({"teacher": fj.Flow(teacher, path=fj.paths.VP())}, "does not determine|is infinite at an end"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        objective_of(**options)


def train(objective, model, data, steps, seed):
    """The trained model, and the norm of its gradient at each step; clipped as published."""
    import optax

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, b2=0.95))

    def run(carry, key):
        model, state = carry
        draws = objective.draw(key, {"x1": data})
        gradient = jax.grad(lambda model: jnp.mean(objective.loss(model, draws)[0]))(model)
        change, state = optimizer.update(gradient, state, model)
        return (optax.apply_updates(model, change), state), optax.tree.norm(gradient)

    keys = jax.random.split(jax.random.key(seed), steps)
    (model, _), norms = jax.jit(lambda *a: jax.lax.scan(run, *a))((model, optimizer.init(model)), keys)
    return model, np.asarray(norms)


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mid_training_tames_the_gradient(seed):
    """Check 8: on latents of 1,024 dimensions that lie near a plane, over the first 200 steps."""
    from flax import nnx

    size, rng = 1024, np.random.default_rng(seed)
    basis = rng.standard_normal((16, size)) / 4
    data = jnp.asarray(rng.standard_normal((256, 16)) @ basis + 0.05 * rng.standard_normal((256, size)), jnp.float32)
    # The law of the data is normal, so that the teacher is exact.
    covariance = basis.T @ basis + 0.05**2 * np.eye(size)
    values, vectors = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(covariance))

    def velocity(x, t, cond=None):
        along_axes = x @ vectors
        s, u = t[:, None], (1 - t)[:, None]
        return (along_axes * (s * values[None] - u) / (s**2 * values[None] + u**2)) @ vectors.T

    flow = fj.Flow(velocity, path=LINEAR)
    new = fj.models.MLP(size, width=256, depth=2, second_time=True, time_scale=1.0, rngs=nnx.Rngs(seed))
    bootstrap = MeanFlowDistillation(path=LINEAR, velocity="conditional", shift=4.0)
    mid = ConsistencyMidTraining(teacher=flow, shift=4.0)
    begun, _ = train(mid, new, data[:16], 400, seed)
    scratch, warm = (train(bootstrap, model, data, 200, 10 + seed)[1].max() for model in (new, begun))
    print(scratch, warm)
    assert warm < 0.9 * scratch

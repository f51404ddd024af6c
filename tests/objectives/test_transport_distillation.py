"""Velocity matching and velocity distillation: numbers of the exact transport, gradients, modes, sets, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import gradients_everywhere

import flowjax as fj
from flowjax.objectives import TransportDraws, VelocityDistillation, VelocityMatching
from flowjax.objectives.flow_matching import average

LINEAR = fj.paths.Linear()
TARGET = fj.oracles.Gaussian(mean=2.0, std=0.5, path=LINEAR)
TEACHER = fj.Flow(TARGET.network("velocity"), path=LINEAR)
RNG = np.random.default_rng(0)
EXACT = {"teacher": TEACHER, "normalized": False}


def transport(x, t, cond=None):
    """The exact average velocity to the data end of Gaussian data."""
    return TARGET.network("mean_velocity")(x, t, cond, end=jnp.ones_like(t))


def student(theta, x, t, cond=None):
    """Smooth in everything; conditions shift it."""
    shift = 0.0 if cond is None else 0.3 * cond[:, None].astype(x.dtype)
    return jnp.tanh(x @ theta["w"] + theta["a"] * t[:, None] + shift) @ theta["v"]


def parameters():
    rng = np.random.default_rng(1)
    return {k: jnp.asarray(rng.standard_normal(s)) for k, s in (("w", (2, 5)), ("a", (1, 5)), ("v", (5, 2)))}


def called(theta):
    return lambda *inputs, **more: student(theta, *inputs, **more)


def guided_teacher(x, t, cond=None):
    """A velocity that depends on its condition; -1 stands for none."""
    shift = jnp.where(cond < 0, 0.0, cond)[:, None].astype(x.dtype)
    return jnp.cos(x + t[:, None]) + shift * x


WITH_NULL = fj.Flow(guided_teacher, path=LINEAR, null=-1.0)


def some_draws(objective, n=8, dim=2):
    batch = {"x1": jnp.asarray(RNG.standard_normal((n, dim))), "cond": jnp.asarray(RNG.uniform(0.5, 1, n))}
    draws = objective.draw(jax.random.key(0), batch)
    return dataclasses.replace(draws, t=draws.t.astype(jnp.float64))


# --------------------------------------------------------------------------------------------------------- fixed point


def test_the_exact_transport_has_no_loss(x64):
    objective = VelocityMatching(path=LINEAR, mode="continuous", **EXACT)
    draws = objective.draw(jax.random.key(0), {"x1": jnp.asarray(2 + 0.5 * RNG.standard_normal((64, 1)))})
    loss, _ = objective.loss(transport, dataclasses.replace(draws, t=draws.t.astype(jnp.float64)))
    assert float(loss.max()) < 1e-10
    # Its formula, written out.
    x, t = 0.3, 0.2
    variance = (1 - t) ** 2 + 0.25 * t**2
    expected = (2.0 + (x - 2.0 * t) * 0.5 / np.sqrt(variance) - x) / (1 - t)
    np.testing.assert_allclose(transport(jnp.array([[x]]), jnp.array([t]))[0, 0], expected, rtol=1e-12)


@pytest.mark.parametrize(("gap", "residual"), [(0.02, 1.3469e-3), (0.01, 6.694e-4), (0.005, 3.337e-4)])
def test_differences_leave_a_residual_of_the_gap(x64, gap, residual):
    objective = VelocityMatching(path=LINEAR, gap=gap, **EXACT)
    x, t = jnp.array([[0.3]]), jnp.array([0.2])
    draws = TransportDraws(x0=x, x1=x, t=t)
    value, target, reach = objective.identity(transport, draws, x, None, None)
    np.testing.assert_allclose(value - target, [[residual]], rtol=2e-4)
    assert reach is None


@pytest.mark.parametrize("mode", ["discrete", "continuous"])
def test_normalized_derivatives_are_shorter_than_one(x64, mode):
    """|target - v| < 1 - t for each example, whatever the network: the published bound."""
    objective = VelocityMatching(path=LINEAR, teacher=WITH_NULL, mode=mode)
    draws = some_draws(objective, n=64)
    x = LINEAR.interpolate(draws.t, draws.x0, draws.x1)
    steep = {k: 30 * v for k, v in parameters().items()}
    _, target, _ = objective.identity(called(steep), draws, x, None, None)
    length = np.linalg.norm(target - WITH_NULL.velocity(draws.t, x, draws.cond), axis=1)
    assert (length < 1 - draws.t).all()
    assert length.max() > 0.5


# ------------------------------------------------------------------------------------------------ values and gradients


def by_hand(theta, draws, x, goal, objective):
    """G and its target of each example in a loop, the derivative in continuous mode by differences."""
    gap = objective.gap if objective.mode == "discrete" else 1e-5
    values, targets = [], []
    for i in range(len(x)):
        one = lambda x, t, i=i: student(theta, x[None], jnp.asarray(t)[None], draws.cond[i : i + 1])[0]  # noqa: E731
        here = one(x[i], draws.t[i])
        ahead = one(x[i] + gap * goal[i], draws.t[i] + gap)
        behind = here if objective.mode == "discrete" else one(x[i] - gap * goal[i], draws.t[i] - gap)
        slope = (ahead - behind) / (gap if objective.mode == "discrete" else 2 * gap)
        if objective.normalized:
            slope = slope / (np.linalg.norm(slope) + 0.1)
        values.append(here)
        targets.append(goal[i] + (1 - draws.t[i]) * slope)
    return np.stack(values), np.stack(targets)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("mode", ["discrete", "continuous"])
def test_losses_and_gradients_on_fixed_inputs(x64, mode, normalized):
    theta = parameters()
    objective = VelocityDistillation(
        path=LINEAR,
        teacher=WITH_NULL,
        mode=mode,
        normalized=normalized,
        guidance=3.0,
        distillation_guidance=5.0,
        weight=0.7,
    )
    draws = some_draws(objective)

    def velocity(x, scale):
        with_cond, without = (guided_teacher(x, draws.t, c) for c in (draws.cond, -jnp.ones_like(draws.cond)))
        return without + scale * (with_cond - without)

    x = LINEAR.interpolate(draws.t, draws.x0, draws.x1)
    value, target = by_hand(theta, draws, x, velocity(x, 3.0), objective)
    jump = student(theta, draws.fresh, jnp.zeros(8), draws.cond)
    fake = LINEAR.interpolate(draws.t, draws.x0, draws.fresh + jump)
    own, goal = by_hand(theta, draws, fake, velocity(fake, 5.0), objective)
    loss, metrics = objective.loss(called(theta), draws)
    tolerance = 1e-9 if mode == "discrete" else 1e-6
    np.testing.assert_allclose(metrics["matching"], np.mean((value - target) ** 2, 1), rtol=tolerance)
    np.testing.assert_allclose(metrics["distillation"], np.mean((own - goal) ** 2, 1), rtol=tolerance)
    np.testing.assert_allclose(loss, metrics["matching"] + 0.7 * metrics["distillation"], rtol=1e-12)

    # Targets and the student's word on its own samples are constants: 2 (G - T) is what the samples are moved by.
    def with_constants(theta):
        matching = jnp.mean((student(theta, x, draws.t, draws.cond) - target) ** 2, axis=1)
        moved = jnp.mean(2 * (own - goal) * student(theta, draws.fresh, jnp.zeros(8), draws.cond), axis=1)
        return jnp.mean(matching + 0.7 * moved)

    def mean(theta):
        return jnp.mean(objective.loss(called(theta), draws)[0])

    expected = jax.grad(with_constants)(theta)
    for compute in (jax.grad(mean), jax.jit(jax.grad(mean))):
        for a, b in zip(*map(jax.tree.leaves, (compute(theta), expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=max(tolerance, 1e-7), atol=1e-9)
    for name, leaf in theta.items():  # and by differences of the loss with these constants
        for index in np.ndindex(leaf.shape):
            up, down = (with_constants({**theta, name: leaf.at[index].add(s * 1e-5)}) for s in (1, -1))
            np.testing.assert_allclose(expected[name][index], (up - down) / 2e-5, rtol=1e-5, atol=1e-8)


def test_gradients_are_the_same_on_eight_devices(x64):
    objective = VelocityDistillation(path=LINEAR, teacher=WITH_NULL, guidance=2.0)
    draws = some_draws(objective, n=16)
    gradients_everywhere(lambda theta, draws: jnp.mean(objective.loss(called(theta), draws)[0]), parameters(), draws)


@pytest.mark.slow
def test_distillation_is_zero_in_the_mean_where_the_laws_agree(x64):
    """A student that is the transport samples the teacher's law: the mean of its pull is within three errors of zero.

    With a teacher of another mean it pulls towards that.
    """
    n, shift = 100_000, jnp.asarray(0.0)
    objective = VelocityDistillation(path=LINEAR, mode="continuous", matching=0.0, **EXACT)
    draws = objective.draw(jax.random.key(1), {"x1": jnp.zeros((n, 1))})
    draws = dataclasses.replace(draws, t=draws.t.astype(jnp.float64))

    def pulls(objective):
        moved = lambda s: jnp.sum(objective.loss(lambda x, t, c: transport(x, t) + s[:, None], draws)[0])  # noqa: E731
        return np.asarray(jax.grad(moved)(jnp.full(n, shift)))

    same = pulls(objective)
    assert (
        same.std() > 0.01 or np.abs(same).max() < 1e-9
    )  # without an error of its own: the gradient is zero throughout
    assert abs(same.mean()) <= 3 * same.std() / np.sqrt(n) + 1e-9
    other = fj.Flow(fj.oracles.Gaussian(mean=3.0, std=0.5, path=LINEAR).network("velocity"), path=LINEAR)
    away = pulls(dataclasses.replace(objective, teacher=other))
    assert away.mean() < -20 * away.std() / np.sqrt(n)  # descent moves samples up, to the mean of 3


# ----------------------------------------------------------------------------------------------------- the other modes


@pytest.mark.slow
@pytest.mark.parametrize("phases", [1, 4])
def test_consistency_of_end_points(x64, phases):
    theta, gap = parameters(), 0.05
    objective = VelocityMatching(path=LINEAR, teacher=WITH_NULL, mode="consistency", gap=gap, phases=phases)
    draws = some_draws(objective, n=32)
    x = LINEAR.interpolate(draws.t, draws.x0, draws.x1)
    ahead = x + gap * WITH_NULL.velocity(draws.t, x, draws.cond)
    later = draws.t + gap
    bounds = np.arange(phases + 1) / phases
    end = np.array([min(b for b in [*bounds, 1.0] if b > t or b == 1.0) for t in np.asarray(later)])
    goal = ahead + (end - later)[:, None] * student(theta, ahead, later, draws.cond)

    def written_out(theta):
        made = x + (end - draws.t)[:, None] * student(theta, x, draws.t, draws.cond)
        return jnp.mean(jnp.sum((made - jax.lax.stop_gradient(goal)) ** 2, 1) / 2)

    mean = lambda theta: jnp.mean(objective.loss(called(theta), draws)[0])  # noqa: E731
    np.testing.assert_allclose(mean(theta), written_out(theta), rtol=1e-10)
    for a, b in zip(*map(jax.tree.leaves, (jax.grad(mean)(theta), jax.grad(written_out)(theta))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def test_small_gaps_have_the_gradient_of_a_consistency_loss(x64):
    """(f(x, t) - f(x', t')) / D goes to the derivative of f along the flow; at the data end f is x'."""
    theta, x1 = parameters(), jnp.asarray(RNG.standard_normal((8, 2)))
    draws = TransportDraws(x0=x1, x1=x1, t=jnp.full(8, 0.5), cond=jnp.ones(8))
    velocity = WITH_NULL.velocity(draws.t, x1, draws.cond)
    end = lambda theta, x, t: x + (1 - t)[:, None] * student(theta, x, t, draws.cond)  # noqa: E731
    _, slope = jax.jvp(lambda x, t: end(theta, x, t), (x1, draws.t), (velocity, jnp.ones(8)))
    expected = jax.grad(lambda theta: jnp.mean(-2 * slope * end(theta, x1, draws.t)))(theta)

    def found(gap):
        objective = VelocityMatching(path=LINEAR, teacher=WITH_NULL, mode="consistency", gap=gap)
        grads = jax.grad(lambda theta: jnp.mean(objective.loss(called(theta), draws)[0]))(theta)
        return jax.tree.map(lambda g: g / gap, grads)

    errors = [
        max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found(gap), expected)), strict=True))
        for gap in (1e-3, 5e-4)
    ]
    assert errors[0] < 0.02
    np.testing.assert_allclose(errors[1] / errors[0], 0.5, atol=0.05)
    last = VelocityMatching(path=LINEAR, teacher=WITH_NULL, mode="consistency", gap=0.1)
    near = dataclasses.replace(draws, t=jnp.full(8, 0.9))
    value, target, reach = last.identity(called(theta), near, x1, velocity, None)
    np.testing.assert_allclose(x1 + reach[:, None] * target, x1 + 0.1 * velocity, rtol=1e-12)
    assert value.shape == x1.shape


def test_published_guidance_is_one_more(x64):
    theta, options = parameters(), {"path": LINEAR, "teacher": WITH_NULL}
    draws = some_draws(VelocityMatching(**options))
    value = lambda **more: VelocityMatching(**options, **more).loss(called(theta), draws)[0]  # noqa: E731
    np.testing.assert_allclose(value(guidance=7.5, convention="one_more"), value(guidance=8.5), rtol=1e-12)
    for w in (0.0, -3.0):
        np.testing.assert_allclose(value(guidance=w, convention="one_more"), value(), rtol=1e-12)
    assert not np.allclose(value(guidance=7.5), value(guidance=8.5))


def test_without_a_teacher_it_learns_from_examples(x64):
    theta = parameters()
    objective = VelocityMatching(path=LINEAR, normalized=False)
    draws = some_draws(objective)
    x = LINEAR.interpolate(draws.t, draws.x0, draws.x1)
    value, target = by_hand(theta, draws, x, draws.x1 - draws.x0, objective)
    np.testing.assert_allclose(objective.loss(called(theta), draws)[0], np.mean((value - target) ** 2, 1), rtol=1e-9)


def test_two_steps_keep_the_noise(x64):
    """The state between two steps of Euler is half the noise and half the predicted data."""
    x0 = jnp.asarray(RNG.standard_normal((5, 1)))
    flow = fj.Flow(transport, path=LINEAR)
    result = fj.solve(flow, fj.solvers.Euler(), x0, fj.times.uniform(2), trajectory=True)
    ends = x0 + transport(x0, jnp.zeros(5))
    np.testing.assert_allclose(result.trajectory[1], (x0 + ends) / 2, rtol=1e-6)
    np.testing.assert_allclose(ends, 2 + 0.5 * x0, rtol=1e-6)  # one step is exact for the exact transport
    np.testing.assert_allclose(result.x, fj.solve(flow, fj.solvers.DDIM(), x0, fj.times.uniform(2)).x, rtol=1e-5)


def test_two_steps_with_fresh_noise_keep_the_law(x64):
    """Of the exact transport; with the noise kept a deviation of s = 1/2 becomes (1 + s) s / sqrt(1 + s^2)."""
    flow, times = fj.Flow(transport, path=LINEAR), fj.times.uniform(2)
    kept = fj.solve(flow, fj.solvers.Euler(), jnp.asarray([[-1.0], [1.0]]), times).x[:, 0]
    np.testing.assert_allclose((kept[1] - kept[0]) / 2, 0.75 * 0.5 / np.sqrt(0.3125), rtol=1e-6)
    x0, key = fj.noise(jax.random.key(0), (40_000, 1)), jax.random.key(1)
    fresh = fj.solve(flow, fj.solvers.Consistency(), x0, times, key=key).x
    np.testing.assert_allclose([fresh.mean(), fresh.std()], [2.0, 0.5], atol=0.01)  # 4 standard errors
    one = fj.solve(flow, fj.solvers.Consistency(), x0, fj.times.uniform(1), key=key).x
    np.testing.assert_allclose(one, fj.solve(flow, fj.solvers.Euler(), x0, fj.times.uniform(1)).x, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- sets


def of_sets(theta, x, t, mask):
    """A network of padded sets: the mean over what is there, and each entry."""
    there = mask[..., None].astype(x.dtype)
    mean = jnp.sum(x * there, axis=1, keepdims=True) / jnp.sum(there, axis=1, keepdims=True)
    return jnp.tanh((x + mean) * theta["w"] + t[:, None, None]) * there


@pytest.mark.slow
@pytest.mark.parametrize("make", [VelocityMatching, VelocityDistillation, fj.objectives.FlowMatching])
def test_padding_changes_neither_draws_nor_loss_nor_gradient(x64, make):
    """What is there has its numbers, whatever the size of the padding and what stands in it."""
    teacher = lambda x, t, cond: -x * cond[..., None]  # noqa: E731
    options = {} if make is fj.objectives.FlowMatching else {"teacher": fj.Flow(teacher, path=LINEAR)}
    objective, count = make(path=LINEAR, **options), np.array([3, 5, 1, 4])
    entries = RNG.standard_normal((4, 5, 2))

    def results(size, filling):
        mask = np.arange(size) < count[:, None]
        x1 = np.where(mask[..., None], np.pad(entries, ((0, 0), (0, size - 5), (0, 0))), filling)
        batch = {"x1": jnp.asarray(x1), "mask": jnp.asarray(mask), "cond": jnp.asarray(mask, x1.dtype)}
        draws = objective.draw(jax.random.key(3), batch)
        draws = dataclasses.replace(draws, t=draws.t.astype(jnp.float64))
        loss = lambda theta: objective.loss(lambda x, t, c: of_sets(theta, x, t, c > 0), draws)[0]  # noqa: E731
        theta = {"w": jnp.array([0.7, -1.2])}
        gradient = jax.jacobian(lambda w: loss({"w": jnp.broadcast_to(w, (1, 1, 2))}))(theta["w"])
        return np.asarray(draws.x0)[:, :5], loss({"w": theta["w"].reshape(1, 1, 2)}), gradient

    noise, loss, gradient = results(5, 0.0)
    other_noise, other_loss, other_gradient = results(9, 50.0)
    np.testing.assert_array_equal(noise, other_noise)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-12)
    np.testing.assert_allclose(other_gradient, gradient, rtol=1e-10)
    assert len(set(np.round(np.asarray(loss), 6))) == 4


def test_means_of_sets():
    values = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(average(values, mask), [1.5, 0.0])
    np.testing.assert_allclose(average(values), [2.5, 8.5])


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (VelocityMatching, {"path": fj.paths.Trig()}, "take Linear"),
        (VelocityMatching, {"path": fj.paths.Linear(), "mode": "cm"}, "mode"),
        (VelocityMatching, {"path": LINEAR, "gap": 1.0}, "gap"),
        (VelocityMatching, {"path": LINEAR, "phases": 2}, "is of mode='consistency'"),
        (VelocityMatching, {"path": LINEAR, "guidance": 2.0}, "guides a teacher with a null condition"),
        (VelocityMatching, {"path": LINEAR, "teacher": TEACHER, "guidance": 2.0}, "guides a teacher with a null"),
        (VelocityMatching, {"path": LINEAR, "teacher": WITH_NULL, "guidance": -1.0}, "guidance"),
        (VelocityMatching, {"path": LINEAR, "teacher": fj.Flow(transport, path=fj.paths.Trig())}, "teacher's path"),
        (VelocityMatching, {"path": LINEAR, "convention": "published"}, "convention"),
        (VelocityDistillation, {"path": LINEAR}, "needs a teacher"),
        (VelocityDistillation, {"path": LINEAR, "teacher": TEACHER, "weight": -1.0}, "weight"),
    ],
)
def test_refusals(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_answers_of_another_shape_are_refused():
    for mode in ("discrete", "continuous", "consistency"):
        objective = VelocityMatching(path=LINEAR, teacher=TEACHER, mode=mode)
        draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 1))})
        with pytest.raises(ValueError, match="answers with shape"):
            objective.loss(lambda x, t, c: x[:, 0], draws)


def test_distillation_alone_needs_no_data():
    assert VelocityDistillation(path=LINEAR, teacher=TEACHER, matching=0.0).data_free
    assert not VelocityDistillation(path=LINEAR, teacher=TEACHER).data_free

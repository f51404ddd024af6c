"""Policy distillation against the rules of the trajectory, written out, and on a flow that is known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flowjax as fj
from flowjax.objectives import PolicyDistillation
from flowjax.policies import Mixture, Momentum
from flowjax.training import create_state, make_mesh, make_step

PATH = fj.paths.Linear()
TEACHER = fj.Flow(lambda x, t, cond: jnp.cos(2 * x) - t[:, None] * x, path=PATH)


def student(components, seed=0):
    """A function of x and t with the answers of a momentum policy for states of one number."""
    weights = jax.random.normal(jax.random.key(seed), (3, 3 * components - 1))
    return lambda x, t, cond: jnp.sin(jnp.concatenate([x, t[:, None], jnp.ones_like(x)], axis=1) @ weights)


def drawn(objective, batch=64, step=0, seed=0):
    return objective.draw(jax.random.key(seed), {"x1": jnp.zeros((batch, 1))}, step=step)


def spied(objective):
    """The objective with a teacher that tells where it was asked, and the list it tells it to."""
    asked = []

    def network(x, t, cond):
        jax.debug.callback(lambda t, x: asked.append((np.asarray(t), np.asarray(x))), t, x, ordered=True)
        return TEACHER.network(x, t, cond)

    return dataclasses.replace(objective, teacher=fj.Flow(network, path=PATH)), asked


def by_hand(objective, network, draws):
    """The loss of one example after another, with plain loops and sums over 4,000 times in place of closed forms.

    No component may be left out.
    """
    length, losses = 1 / objective.segments, []
    time = lambda r: 1 - objective.shift * (1 - r) / (1 + (objective.shift - 1) * (1 - r))  # noqa: E731
    window = objective.window * length / round(length * objective.substeps)
    for i, x0 in enumerate(np.asarray(draws.x0)):
        total, x = 0.0, float(x0[0])
        for number in range(objective.segments):
            begin = number * length
            answer = np.asarray(network(jnp.array([[x]]), jnp.array([time(begin)]), None), np.float64)[0]
            k = objective.policy.components
            v, w = answer[:k], np.exp(answer[k : 2 * k])
            rates = np.concatenate([[0.0], objective.policy.rate_scale * answer[2 * k :]])
            velocity = lambda t: np.sum(w / w.sum() * v * np.exp(rates * (t - time(begin))))  # noqa: B023, E731

            def displacement(a, b):
                grid = a + (b - a) * (np.arange(4000) + 0.5) / 4000
                return (b - a) * np.mean([velocity(t) for t in grid])  # noqa: B023

            own = np.diff(np.asarray(draws.own)[i, number], prepend=0) * (1 - float(draws.share)) * (length - window)
            ends = np.asarray(draws.taught)[i, number]
            taught = np.diff(ends, prepend=0, append=1) * float(draws.share) * (length - window)
            clock = begin
            for student_jump, teacher_jump in zip(own, taught, strict=True):
                a, b = clock + student_jump, clock + student_jump + teacher_jump
                x += displacement(time(clock), time(a))
                target = float(TEACHER.velocity(time(a), jnp.array([[x]]))[0, 0])
                mean = displacement(time(a), time(b + window)) / (time(b + window) - time(a))
                total += (mean - target) ** 2 / objective.states / objective.segments
                x += (time(b) - time(a)) * target
                clock = b
            x += displacement(time(clock), time(begin + length))
        losses.append(total)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(("step", "shift"), [(0, 1.0), (40, 3.2), (100, 1.0)])
def test_the_loss_is_the_trajectory_written_out(x64, step, shift):
    objective = PolicyDistillation(
        teacher=TEACHER, policy=Momentum(components=3), shift=shift, states=3, decay=100, dropout=0.0
    )
    draws, network = drawn(objective, batch=2, step=step), student(3)
    found, metrics = objective.loss(network, draws)
    np.testing.assert_allclose(found, by_hand(objective, network, draws), rtol=1e-6)
    assert float(metrics["teacher_share"]) == pytest.approx(1 - step / 100)


@pytest.mark.slow
def test_the_teacher_leads_at_first_and_the_student_in_the_end():
    objective, asked = spied(PolicyDistillation(teacher=TEACHER, policy=Momentum(components=2), segments=1, decay=10))
    states = []
    for step in (0, 10):
        for seed in (0, 1):
            asked.clear()
            jax.block_until_ready(objective.loss(student(2, seed), drawn(objective, step=step))[0])
            states.append(np.stack([x for _, x in asked]))
            times = np.stack([t for t, _ in asked])
            assert len(asked) == 4  # one evaluation for each state
            assert np.all(np.diff(times, axis=0) >= 0)
            assert times.max() <= 1 - 3 / 128 + 1e-6
    np.testing.assert_array_equal(states[0], states[1])  # all of it the teacher's
    assert np.abs(states[2] - states[3]).max() > 0.1
    draws = drawn(objective, step=10)
    raw = student(2)(draws.x0, jnp.zeros(64), None)
    policy = objective.policy.policy(raw, jnp.zeros(64), draws.x0)
    plain = dataclasses.replace(objective, dropout=0.0)
    asked.clear()
    jax.block_until_ready(plain.loss(student(2), draws)[0])
    for t, x in asked:
        np.testing.assert_allclose(x, policy.rollout(draws.x0, jnp.zeros(64), jnp.asarray(t)), atol=1e-6)


@pytest.mark.slow
def test_jumps_and_window_fit_into_their_segment():
    for segments, substeps, window in ((2, 128, 3), (3, 100, 200), (5, 3, 1)):
        objective, asked = spied(
            PolicyDistillation(
                teacher=TEACHER,
                policy=Momentum(components=1),
                segments=segments,
                substeps=substeps,
                window=window,
                decay=4,
            )
        )
        for step in (0, 2, 4):
            asked.clear()
            jax.block_until_ready(objective.loss(student(1), drawn(objective, batch=8, step=step))[0])
            for number in range(segments):
                times = np.stack([t for t, _ in asked[4 * number : 4 * number + 4]])
                assert times.min() >= number / segments - 1e-6
                assert times.max() <= (number + 1) / segments + 1e-6


@pytest.mark.slow
def test_gradients_are_finite_differences_with_the_trajectory_held(x64):
    objective = PolicyDistillation(teacher=TEACHER, policy=Momentum(components=2), segments=1, decay=4)
    draws = drawn(objective, batch=4, step=4)
    raw = student(2)(draws.x0, jnp.zeros(4), None)
    loss = lambda shift, held: objective.loss(  # noqa: E731
        lambda x, t, cond: held + shift[None], draws
    )[0].sum()
    gradient = jax.grad(loss)(jnp.zeros(5), raw)
    # The student leads: held where it is by another draw of nothing, only the compared velocity moves.
    policy = objective.policy.policy(raw, jnp.zeros(4), draws.x0)
    spy, asked = spied(objective)
    jax.block_until_ready(spy.loss(lambda x, t, cond: raw, draws)[0])
    window = 3 / 128

    def compared(shift):
        moved = objective.policy.policy(raw + shift[None], jnp.zeros(4), draws.x0)
        errors = [
            moved.average_velocity(jnp.asarray(x), jnp.asarray(t), jnp.asarray(t) + window)
            - TEACHER.velocity(jnp.asarray(t), jnp.asarray(x))
            for t, x in asked
        ]
        return sum(jnp.sum(error**2) for error in errors) / 4

    step = 1e-6 * jnp.eye(5)
    differences = [(compared(row) - compared(-row)) / 2e-6 for row in step]
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-9)
    assert policy.rates.shape == (4, 2)


@pytest.mark.slow
def test_draws_belong_to_their_example_and_data_are_not_read():
    objective = PolicyDistillation(teacher=TEACHER, decay=0)
    few, many = drawn(objective, batch=3), drawn(objective, batch=8)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:3] if b.ndim else b), few, many)
    other = dataclasses.replace(many, x1=jnp.full((8, 1), jnp.nan))
    assert np.isfinite(objective.loss(student(16), other)[0]).all()
    assert float(many.share) == 0  # decay=0: never the teacher
    begun = dataclasses.replace(objective, from_data=True)
    draws = drawn(begun)
    assert set(np.asarray(draws.segment)) == {0, 1}
    assert np.isnan(begun.loss(student(16), dataclasses.replace(draws, x1=jnp.full((64, 1), jnp.nan)))[0]).any()


def test_refusals():
    for options, message in (
        ({"segments": 0}, "segments"),
        ({"shift": 0.0}, "shift"),
        ({"dropout": 1.0}, "dropout"),
        ({"decay": -1}, "decay"),
        ({"policy": Mixture(path=fj.paths.Trig())}, "the policy's path is Trig"),
    ):
        with pytest.raises(ValueError, match=message):
            PolicyDistillation(**({"teacher": TEACHER} | options))
    objective = PolicyDistillation(teacher=TEACHER)
    with pytest.raises(ValueError, match="needs an answer of shape"):
        objective.loss(student(2), drawn(objective))


def trained(head, seed, outputs, steps=600):
    """Error at the end of two evaluations, of a network trained on the flow to N(1.5, 0.4^2)."""
    target = fj.oracles.Gaussian(mean=1.5, std=0.4, path=PATH)
    teacher = fj.Flow(target.network("velocity"), path=PATH)
    objective = PolicyDistillation(teacher=teacher, policy=head, decay=100, dropout=0.0)
    build = lambda: fj.models.MLP(1, width=32, depth=2, outputs=outputs, rngs=nnx.Rngs(seed))  # noqa: E731
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    state = create_state(build, optimizer, mesh)
    network = state.networks
    bias = head.grown(jnp.zeros(1), 1, jax.random.key(seed))
    network.unembed.bias = network.unembed.bias.replace(bias)
    step = jax.jit(make_step(optimizer), donate_argnums=0)
    for _ in range(steps):
        state, _ = step(state, objective, {"x1": jnp.zeros((128, 1))}, jax.random.key(seed))
    x0 = jnp.linspace(-2.5, 2.5, 101)[:, None]
    exact = 1.5 + 0.4 * x0
    field = fj.fields.Curved(fj.Flow(state.networks, path=PATH), policy=head)
    found = fj.solve(field, fj.solvers.Policy(), x0, fj.times.uniform(2)).x
    euler = fj.solve(teacher, fj.solvers.Euler(), x0, fj.times.uniform(2)).x
    return (float(jnp.sqrt(jnp.mean((x - exact) ** 2))) for x in (found, euler))


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_two_evaluations_beat_euler_and_momenta_beat_a_straight_line():
    """Medians over three seeds; K = 1 is linear distillation. Measured: see the assertions' margins."""
    errors = {k: [] for k in (1, 2, 4)}
    for k, found in errors.items():
        for seed in range(3):
            error, euler = trained(Momentum(components=k), seed, 3 * k - 1)
            found.append(error)
    medians = {k: float(np.median(found)) for k, found in errors.items()}
    assert medians[4] < medians[2] < medians[1], medians
    assert medians[2] < euler / 2, (medians, euler)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_a_mixture_learns_the_same_flow():
    error, euler = trained(Mixture(components=2, steps=16), 0, 5, steps=400)
    assert error < euler / 2, (error, euler)

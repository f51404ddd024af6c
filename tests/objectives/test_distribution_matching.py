"""Distribution matching against its formulas written out, and on Gaussians whose scores are known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flowjax as fj
from flowjax.objectives import DistributionMatching
from flowjax.objectives.distribution_matching import WEIGHTS, Judged, direction
from flowjax.training import create_state, make_mesh, make_step

PATH = fj.paths.Linear()
TEACHER = fj.Flow(lambda x, t, cond: jnp.cos(2 * x) - t[:, None] * x, path=PATH)
DIVERGENCES = tuple(WEIGHTS)


def networks(judges=False):
    """Parameters of a student and a fake network, and the functions they stand for."""

    def student(theta, x, t, cond):
        return jnp.sin(theta["a"] * x + theta["b"] * t[:, None] + cond[:, None])

    def fake(theta, x, t, cond):
        answer = theta["a"] * jnp.cos(x + t[:, None])
        return jnp.concatenate([answer, theta["b"] * jnp.tanh(x[:, :1] - 0.3)], axis=1) if judges else answer

    parameters = {"student": {"a": 0.7, "b": 0.4}, "fake": {"a": 0.9, "b": 1.3}}
    build = lambda p: {  # noqa: E731
        "student": jax.tree_util.Partial(student, p["student"]),
        "fake": jax.tree_util.Partial(fake, p["fake"]),
    }
    return jax.tree.map(jnp.asarray, parameters), build


def drawn(objective, batch=6, step=4, seed=0):
    x1 = jnp.asarray(np.random.default_rng(1).standard_normal((batch, 2)))
    return objective.draw(jax.random.key(seed), {"x1": x1, "cond": jnp.linspace(0, 1, batch)}, step=step)


def by_hand(objective, parameters, draws):
    """Both losses and their gradients in the student's and the fake's parameters, by loops and central differences."""
    _, build = networks(objective.adversary)
    draws = dataclasses.replace(draws, t=draws.t.astype(float), compared_t=draws.compared_t.astype(float))
    grid, size = objective.grid, draws.x0.shape[1]

    def samples(theta, still):
        live, old = (build({**parameters, "student": p})["student"] for p in (theta, still))
        x = draws.x0
        for number in range(int(draws.last)):
            t = jnp.full(len(x), grid[number])
            data = x + (1 - t)[:, None] * old(x, t, draws.cond)
            later = grid[number + 1]
            x = later * data + (1 - later) * draws.renewed[:, number]
        t = jnp.full(len(x), grid[int(draws.last)])
        return x + (1 - t)[:, None] * live(x, t, draws.cond)

    def fake_loss(theta, x):
        fake = build({**parameters, "fake": theta})["fake"]
        t = draws.t[:, None]
        answer = fake(t * x + (1 - t) * draws.z, draws.t, draws.cond)
        loss = np.mean((answer[:, :size] - (x - draws.z)) ** 2, axis=1)
        if objective.adversary:
            real = fake(t * draws.x1 + (1 - t) * draws.z, draws.t, draws.cond)[:, -1]
            loss += objective.judge_weight * (np.log1p(np.exp(answer[:, -1])) + np.log1p(np.exp(-real)))
        return np.asarray(loss, np.float64)

    def compared(x):
        fake, t = build(parameters)["fake"], draws.compared_t[:, None]
        y = t * x + (1 - t) * draws.compared_z
        answer = fake(y, draws.compared_t, draws.cond)
        mine = y + (1 - t) * answer[:, :size]
        theirs = y + (1 - t) * TEACHER.network(y, draws.compared_t, draws.cond)
        g = (mine - theirs) / np.mean(np.abs(x - theirs), axis=1, keepdims=True)
        if not objective.adversary:
            return np.asarray(g), np.zeros(len(x))
        ratio = np.exp(np.asarray(answer[:, -1]))
        h = {
            "reverse_kl": np.ones_like(ratio),
            "forward_kl": ratio,
            "jensen_shannon": ratio / (1 + ratio),
            "hellinger": np.sqrt(ratio) / 4,
        }[objective.divergence]
        return np.asarray(g) * (h / h.mean())[:, None], np.log1p(1 / ratio)

    still = parameters["student"]
    x = samples(still, still)
    g, term = compared(x)

    def difference(of, theta):
        found = {}
        for name in theta:
            ends = [of({**theta, name: theta[name] + step}) for step in (1e-5, -1e-5)]
            found[name] = (ends[0] - ends[1]) / 2e-5
        return found

    def own(theta):
        moved = samples(theta, still)
        weight = objective.adversary_weight if objective.adversary else 0.0
        return float(np.sum(g * (moved - x)) / size + weight * np.sum(compared(moved)[1])) / len(x)

    gradient = {
        "student": difference(own, still),
        "fake": difference(lambda theta: fake_loss(theta, x).mean(), parameters["fake"]),
    }
    loss = fake_loss(parameters["fake"], x) + np.mean(g**2, axis=1) / 2
    return loss + objective.adversary_weight * term * objective.adversary, gradient


@pytest.mark.parametrize(
    ("options", "seed"),
    [
        ({}, 0),
        ({"grid": (0.0, 0.3, 0.7, 1.0)}, 1),
        ({"grid": (0.0, 0.3, 0.7, 1.0)}, 2),
        *(({"adversary": True, "adversary_weight": 0.3, "judge_weight": 0.2, "divergence": d}, 0) for d in DIVERGENCES),
    ],
)
def test_losses_and_gradients_are_the_formulas(x64, options, seed):
    """The gradient of the student comes from the last step alone."""
    objective = DistributionMatching(teacher=TEACHER, **options)
    parameters, build = networks(objective.adversary)
    draws = drawn(objective, seed=seed)
    if len(objective.grid) > 2:
        assert int(draws.last) == {1: 2, 2: 1}[seed]
    expected, gradient = by_hand(objective, parameters, draws)
    found = jax.jit(lambda p: objective.loss(build(p), draws)[0])(parameters)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    moved = jax.jit(jax.grad(lambda p: objective.loss(build(p), draws)[0].mean()))(parameters)
    for label in moved:
        for name, value in moved[label].items():
            np.testing.assert_allclose(value, gradient[label][name], rtol=1e-5, atol=1e-9, err_msg=f"{label}.{name}")


def test_weights_are_those_of_the_divergences(x64):
    """r^2 f''(r) by finite differences of f, up to the constants of their published forms."""
    f = {
        "reverse_kl": lambda r: -np.log(r),
        "forward_kl": lambda r: r * np.log(r),
        "jensen_shannon": lambda r: r * np.log(r) - (1 + r) * np.log((1 + r) / 2),
        "hellinger": lambda r: 1 - np.sqrt(r),
    }
    for name, weight in WEIGHTS.items():
        for r in (0.2, 1.0, 5.0):
            second = (f[name](r + 1e-4) - 2 * f[name](r) + f[name](r - 1e-4)) / 1e-8
            np.testing.assert_allclose(weight(jnp.log(jnp.float64(r))), r**2 * second, rtol=1e-5)


def test_nothing_moves_where_fake_and_teacher_agree():
    objective = DistributionMatching(teacher=TEACHER)
    parameters, build = networks()
    same = lambda p: {"student": build(p)["student"], "fake": TEACHER.network}  # noqa: E731
    draws = drawn(objective)
    gradient = jax.grad(lambda p: objective.loss(same(p), draws)[0].mean())(parameters)
    assert gradient["student"] == {"a": 0.0, "b": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("mean", [2.0, -2.0])
def test_a_gaussian_moves_towards_the_data(divergence, mean):
    """Data N(0, 1), samples N(mean, 1), and a fake network that knows their scores and densities exactly."""
    law, target = (fj.oracles.Gaussian(mean=m, std=1.0, path=PATH) for m in (mean, 0.0))
    teacher = fj.Flow(lambda x, t, cond: target.velocity(t, x), path=PATH)
    objective = DistributionMatching(
        teacher=teacher, adversary=divergence != "reverse_kl", divergence=divergence, adversary_weight=0.0
    )

    def fake(x, t, cond):
        answer = law.velocity(t, x)
        if not objective.adversary:
            return answer
        middle, variance = mean * t[:, None], t[:, None] ** 2 + (1 - t[:, None]) ** 2
        ratio = ((x - middle) ** 2 - x**2) / (2 * variance)  # log density of noised data over that of noised samples
        return jnp.concatenate([answer, ratio], axis=1)

    draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((512, 1))}, step=4)
    loss = lambda m: objective.loss(  # noqa: E731
        {"student": lambda x, t, cond: jnp.full_like(x, m), "fake": fake}, draws
    )[0].mean()
    slope = float(jax.grad(loss)(mean))  # samples are x0 + mean
    assert np.sign(slope) == np.sign(mean)
    assert abs(slope) > 0.05


def test_the_normaliser_is_that_of_a_sample_and_guarded():
    fake, teacher, x = (jax.random.normal(jax.random.key(i), (4, 3, 2)) for i in range(3))
    g = direction(fake, teacher, x)
    far = direction(fake, teacher, x.at[0].mul(100.0))
    np.testing.assert_array_equal(far[1:], g[1:])
    assert float(jnp.abs(far[0]).max()) < float(jnp.abs(g[0]).max()) / 10
    known = direction(fake.at[1].set(teacher[1]), teacher, x.at[1].set(teacher[1]).at[2].set(teacher[2]))
    np.testing.assert_array_equal(known[1:3], 0)
    np.testing.assert_array_equal(known[0], g[0])
    slope = jax.grad(lambda x: direction(fake, teacher, x).sum())(x.at[2].set(teacher[2]))
    assert np.isfinite(slope).all()


def test_the_student_rests_and_what_rests_is_not_computed():
    """The teacher is asked once in five steps, the student's network once in each, and once more where it learns."""
    asked = {"teacher": 0, "student": 0, "fake": 0}

    def counted(name, network):
        def call(x, t, cond):
            jax.debug.callback(lambda: asked.__setitem__(name, asked[name] + 1))
            return network(x, t, cond)

        return call

    objective = DistributionMatching(teacher=fj.Flow(counted("teacher", TEACHER.network), path=PATH))
    parameters, build = networks()
    live = lambda p: {label: counted(label, network) for label, network in build(p).items()}  # noqa: E731
    step = jax.jit(jax.value_and_grad(lambda p, draws: objective.loss(live(p), draws)[0].mean()))
    found = []
    for number in range(5):
        for name in asked:
            asked[name] = 0
        _, gradient = jax.block_until_ready(step(parameters, drawn(objective, step=number)))
        jax.effects_barrier()
        found.append((asked["teacher"], asked["student"], asked["fake"], bool(gradient["student"]["a"] == 0)))
    assert found == [(0, 1, 1, True)] * 4 + [(1, 2, 2, False)]


def test_states_before_the_last_step_are_those_of_the_solver():
    """With the noise of the draws in place of the solver's."""
    grid = (0.0, 0.4, 0.8, 1.0)
    objective = DistributionMatching(teacher=TEACHER, grid=grid)
    parameters, build = networks()
    network = build(parameters)["student"]
    draws = dataclasses.replace(drawn(objective), last=jnp.asarray(2))
    heard = []
    spy = {"student": network, "fake": lambda x, t, cond: heard.append((x, t)) or 0 * x}
    objective.loss(spy, dataclasses.replace(draws, moves=jnp.asarray(False)))
    noised, t = heard[0]
    x = (noised - (1 - t[:, None]) * draws.z) / t[:, None]
    field, (updates, answer) = fj.Flow(network, path=PATH), (None, None)
    updates = fj.solvers.Consistency().updates(PATH, list(grid), draws.x0)
    number, request = 0, next(updates)
    while True:
        kind = type(request).__name__.lower()
        if kind == "evaluate":
            answer, _ = field.evaluate(request.t, request.x, draws.cond, field.init(request.x), to=request.to)
        elif kind == "noise":
            answer, number = draws.renewed[:, number], number + 1
        else:
            answer = request.x
        try:
            request = updates.send(answer)
        except StopIteration:
            break
    np.testing.assert_allclose(x, answer, rtol=1e-4, atol=1e-5)


def test_an_adversary_begins_as_the_teacher_with_a_logit_of_zero():
    kernel = jnp.arange(24.0).reshape(3, 8)  # four pixels of two channels
    wide = Judged.grown(kernel, 2, jax.random.key(0))
    assert wide.shape == (3, 12)
    np.testing.assert_array_equal(wide.reshape(3, 4, 3)[..., :2], kernel.reshape(3, 4, 2))
    np.testing.assert_array_equal(wide.reshape(3, 4, 3)[..., 2], 0)
    np.testing.assert_array_equal(Judged.grown(kernel[0], 2, jax.random.key(0)), wide[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "unknown divergence .kl."),
        ({"divergence": "forward_kl"}, "set adversary=True"),
        ({"every": 0}, "every"),
        ({"judge_weight": -1.0}, "judge_weight"),
        ({"grid": (1.0, 0.0)}, "times"),
        ({"prediction": "noise", "teacher": fj.Flow(lambda x, t, cond: x, path=PATH)}, "data"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DistributionMatching(**{"teacher": TEACHER, **options})


def test_networks_that_do_not_fit_are_refused():
    objective = DistributionMatching(teacher=TEACHER, adversary=True)
    network = lambda x, t, cond: x  # noqa: E731
    with pytest.raises(ValueError, match="trains the networks student and fake, got one"):
        objective.loss(network, drawn(objective))
    with pytest.raises(ValueError, match=r"answers .* with a channel more"):
        objective.loss({"student": network, "fake": network}, drawn(objective))


class Affine(nnx.Module):
    """x -> a x + b t + c: a student of it can make every Gaussian of noise, in one evaluation from t = 0."""

    def __init__(self, rngs):
        self.weight = nnx.Linear(2, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x, t, cond=None):
        return self.weight(jnp.concatenate([x, t[:, None]], axis=1))


class Curve(nnx.Module):
    """A small network of x and t."""

    def __init__(self, rngs):
        self.inner, self.outer = nnx.Linear(2, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x, t, cond=None):
        return self.outer(jnp.tanh(self.inner(jnp.concatenate([x, 4 * t[:, None] - 2], axis=1))))


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_a_student_learns_a_gaussian_without_data():
    """N(1.5, 0.5^2) from its exact scores: mean and deviation within 0.15, from those of N(0, 1) at the start."""
    target = fj.oracles.Gaussian(mean=1.5, std=0.5, path=PATH)
    objective = DistributionMatching(teacher=fj.Flow(lambda x, t, cond: target.velocity(t, x), path=PATH), every=2)
    optimizers = {"student": optax.adam(1e-2, b1=0.0), "fake": optax.adam(1e-2, b1=0.5)}
    state = create_state(
        {"student": lambda: Affine(nnx.Rngs(0)), "fake": lambda: Curve(nnx.Rngs(1))},
        optimizers,
        make_mesh(),
        averages={},
    )
    batch = {"x1": jnp.zeros((256, 1))}
    step = jax.jit(make_step(optimizers, {}))
    for _ in range(1500):
        state, _ = step(state, objective, batch, jax.random.key(1))
    student = state.networks["student"]
    x0 = jax.random.normal(jax.random.key(2), (4000, 1))
    x = fj.solve(fj.Flow(student, path=PATH), fj.solvers.Consistency(), x0, [0.0, 1.0], key=jax.random.key(3)).x
    assert abs(float(x.mean()) - 1.5) < 0.15
    assert abs(float(x.std()) - 0.5) < 0.15

"""Consistency objectives against derivations of their own, and against functions that are known."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from gradients import gradients_everywhere
from smooth import LINEAR, TRIG, batch, draws_of, exact, network, of, parameters

import flowjax as fj
from flowjax.fields import Bounded
from flowjax.objectives import Consistency, ContinuousConsistency, LatentConsistency
from flowjax.objectives.self_consistency import ddim
from flowjax.training.ema import Constant

BETAS = fj.paths.scaled_linear_betas()
TABLE = fj.paths.Tabulated(alphas_cumprod=BETAS)


def slopes(loss, theta, fixed):
    """Directional derivative of a loss(theta, fixed) by differences of the first argument alone."""
    flat, rebuild = jax.flatten_util.ravel_pytree(theta)
    way, h = jnp.asarray(np.random.default_rng(2).standard_normal(flat.size)), 1e-5
    there, here = (jnp.mean(loss(rebuild(flat + sign * h * way), fixed)) for sign in (1, -1))
    return float((there - here) / (2 * h)), way


def along(gradient, way):
    return float(jax.flatten_util.ravel_pytree(gradient)[0] @ way)


# ------------------------------------------------------------------------------------------------- latent consistency


def published(table, student, teacher, k, noise, data, w, metric):
    """The loss of latent consistency models from their authors' description, on integer steps k, row by row."""
    losses = []
    for i, step in enumerate(k):
        before = max(step - 20, 0)
        x = np.sqrt(table[step]) * data[i] + np.sqrt(1 - table[step]) * noise[i]

        def split(e, x=x, step=step):  # a noise prediction as data and noise
            return (x - np.sqrt(1 - table[step]) * e) / np.sqrt(table[step]), e

        (x1c, ec), (x10, e0) = (split(teacher(x, step, i, null)) for null in (False, True))
        x1, e = x1c + w[i] * (x1c - x10), ec + w[i] * (ec - e0)
        previous = np.sqrt(table[before]) * x1 + np.sqrt(1 - table[before]) * e

        def function(y, step, i=i):
            skip = 0.25 / ((10 * step) ** 2 + 0.25)
            out = 10 * step / np.sqrt((10 * step) ** 2 + 0.25)
            e = student(y, step, i)
            return skip * y + out * (y - np.sqrt(1 - table[step]) * e) / np.sqrt(table[step])

        d = function(x, step) - function(previous, before)
        losses.append(np.mean(np.sqrt(d**2 + 1e-6) - 1e-3) if metric == "pseudo_huber" else np.mean(d**2))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["pseudo_huber", "l2"])
def test_latent_consistency_as_published(x64, metric):
    theta, own = parameters(0), parameters(1)
    teacher = fj.Flow(of(own), path=TABLE, prediction="noise", null=0.0)
    boundary = {"scale": 1e4, "end": 0.999}
    objective = LatentConsistency(
        path=TABLE, prediction="noise", teacher=teacher, guidance=(6.0, 16.0), boundary=boundary, metric=metric
    )
    draws = draws_of(objective, 64)
    k, after = (np.rint(1000 * (1 - np.asarray(t)) - 1).astype(int) for t in (draws.t, draws.end))
    assert set(k) <= set(range(19, 1000, 20))
    assert len(set(k)) > 30
    np.testing.assert_array_equal(after, np.maximum(k - 20, 0))
    w = np.asarray(draws.guidance) - 1  # the authors' w
    assert 5 <= w.min() < 7 < 13 < w.max() <= 15

    def call(theta, y, step, i, null=False, guidance=None):
        t = jnp.asarray([1 - (step + 1) / 1000])
        cond = jnp.zeros(1) if null else draws.cond[i : i + 1]
        return np.asarray(network(theta, jnp.asarray(y)[None], t, cond, guidance)[0])

    expected = published(
        BETAS,
        lambda y, step, i: call(theta, y, step, i, guidance=draws.guidance[i : i + 1]),
        lambda y, step, i, null: call(own, y, step, i, null),
        k,
        np.asarray(draws.x0),
        np.asarray(draws.x1),
        w,
        metric,
    )
    loss, metrics = objective.loss(of(theta), draws)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    if metric == "l2":
        np.testing.assert_allclose(metrics["mse"], loss, rtol=1e-12)


OBJECTIVES = {
    "latent": lambda: LatentConsistency(
        path=LINEAR, teacher=fj.Flow(of(parameters(1)), path=LINEAR, null=0.0), guidance=(1.0, 4.0)
    ),
    "training": lambda: Consistency(path=LINEAR, grid=fj.times.uniform(20)),
    "distillation": lambda: Consistency(
        path=LINEAR, grid=fj.times.uniform(20), teacher=fj.Flow(of(parameters(1)), path=LINEAR)
    ),
}
EVERYWHERE = OBJECTIVES | {
    "continuous": lambda: ContinuousConsistency(path=TRIG),
    "continuous_distillation": lambda: ContinuousConsistency(
        path=TRIG, teacher=fj.Flow(of(parameters(1)), path=TRIG), warmup=10
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYWHERE)
def test_gradients_are_equal_under_jit_pmap_and_on_eight_devices(x64, name):
    objective = EVERYWHERE[name]()
    gradients_everywhere(
        lambda theta, draws: jnp.mean(objective.loss(of(theta), draws)[0]),
        parameters(),
        draws_of(objective, 16, step=3),
    )


def test_an_objective_with_an_average_is_an_argument_of_a_program():
    objective = Consistency(path=LINEAR, target_average=Constant(decay=0.95))
    jax.jit(lambda objective: objective.draw(jax.random.key(0), {"x1": jnp.ones((2, 2))}))(objective)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_the_first_function_alone(x64, name):
    """By differences, with the second one fixed; an average in its place gets none, and no teacher does."""
    objective, theta = OBJECTIVES[name](), parameters()
    draws = draws_of(objective)

    def loss(theta, fixed):
        return objective.loss({"network": of(theta), "target": of(fixed)}, draws)[0]

    expected, way = slopes(loss, theta, theta)
    found = jax.grad(lambda theta: jnp.mean(objective.loss(of(theta), draws)[0]))(theta)
    assert along(found, way) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(loss(theta, theta), objective.loss(of(theta), draws)[0])
    assert not np.allclose(loss(theta, parameters(3)), loss(theta, theta), rtol=1e-3)
    kept = jax.grad(lambda fixed: jnp.mean(loss(theta, fixed)))(parameters(3))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(kept))


@pytest.mark.slow
def test_weights_of_a_teacher_get_no_gradient(x64):
    def value(own, kind, path, **more):
        teacher = fj.Flow(jax.tree_util.Partial(network, own), path=path)
        objective = kind(path=path, teacher=teacher, **more)
        return jnp.mean(objective.loss(of(parameters()), draws_of(objective))[0])

    for kind, path in ((LatentConsistency, LINEAR), (Consistency, LINEAR), (ContinuousConsistency, TRIG)):
        gradient = jax.grad(value)(parameters(1), kind, path)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
        assert value(parameters(1), kind, path) != value(parameters(4), kind, path)


# -------------------------------------------------------------------------------------------- functions that are known


def errors_of_grids(make, counts):
    """Root mean square of the difference on grids of n steps, for the exact function."""
    found = []
    for n in counts:
        objective, function = make(n)
        draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((512, 1))})
        x1 = 0.7 + 0.5 * jnp.asarray(np.random.default_rng(3).standard_normal((512, 1)))
        draws = dataclasses.replace(draws, x1=x1, x0=draws.x0.astype(x1.dtype))
        found.append(float(jnp.sqrt(jnp.mean(objective.loss(function, draws)[1]["mse"]))))
    return -np.polyfit(np.log(counts), np.log(found), 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("path", [LINEAR, TRIG, fj.paths.VP()])
def test_the_exact_function_is_a_zero_up_to_the_error_of_the_teacher_steps(x64, path):
    """Single steps of DDIM err by 1/N^2, of Heun by 1/N^3: N of them by one power less."""
    target = fj.oracles.Gaussian(mean=0.7, std=0.5, path=path)
    teacher = fj.Flow(target.network("noise"), path=path, prediction="noise")
    options = {"path": path, "prediction": "data", "teacher": teacher, "boundary": {}}

    def grid(n):  # noise says nothing of the data where there is noise alone
        return fj.times.uniform(n, start=0.05)

    make = lambda n: (LatentConsistency(grid=grid(n), **options), exact(target))  # noqa: E731
    assert errors_of_grids(make, (40, 80, 160)) == pytest.approx(2, abs=0.25)
    if path.has_velocity(1.0):
        smooth = options | {"teacher": fj.Flow(target.network("velocity"), path=path)}
        make = lambda n: (Consistency(grid=grid(n), **smooth), exact(target))  # noqa: E731
        assert errors_of_grids(make, (20, 40, 80)) == pytest.approx(3, abs=0.35)


def test_a_step_without_guidance_is_ddim(x64):
    teacher = fj.Flow(of(parameters()), path=fj.paths.VP(), prediction="noise", null=0.0)
    x, cond = batch()["x1"], batch()["cond"]
    t, end = jnp.full(8, 0.4), jnp.full(8, 0.55)
    expected = fj.solve(teacher, fj.solvers.DDIM(), x, [0.4, 0.55], cond=cond).x
    np.testing.assert_allclose(ddim(teacher, t, end, x, cond), expected, rtol=1e-10)
    guided = fj.guide(teacher, fj.guidance.CFG(scale=jnp.ones(8)))  # w = 0
    np.testing.assert_allclose(ddim(guided, t, end, x, cond), expected, rtol=1e-10)


# -------------------------------------------------------------------------------- consistency training and distillation


@pytest.mark.slow
def test_consistency_training_by_hand(x64):
    theta, objective = parameters(), Consistency(path=LINEAR, grid=fj.times.uniform(8))
    draws = draws_of(objective, 32)
    np.testing.assert_allclose(draws.end - draws.t, 1 / 8, rtol=1e-12)
    assert len(set(np.asarray(draws.t).tolist())) == 8

    def function(t):
        x = t[:, None] * draws.x1 + (1 - t)[:, None] * draws.x0
        return x + (1 - t)[:, None] * network(theta, x, t, draws.cond)  # the data of a velocity

    d = np.asarray(function(draws.t) - function(draws.end))
    c = 0.00054 * np.sqrt(2)
    expected = 8 * (np.sqrt(np.sum(d**2, 1) + c**2) - c)
    np.testing.assert_allclose(objective.loss(of(theta), draws)[0], expected, rtol=1e-9)


def test_the_steps_of_a_teacher_by_hand(x64):
    velocity = fj.Flow(lambda x, t, cond: jnp.sin(x) + t[:, None], path=LINEAR)
    x, t, end = batch()["x1"], jnp.full(8, 0.4), jnp.full(8, 0.6)
    found = {}
    for step in ("heun", "ddim"):
        objective = Consistency(path=LINEAR, teacher=velocity, step=step)
        found[step], asked = objective.neighbour(dataclasses.replace(draws_of(objective), t=t, end=end), x)
        assert asked == {}
    first = jnp.sin(x) + 0.4
    np.testing.assert_allclose(found["ddim"], x + 0.2 * first, rtol=1e-10)  # on straight lines Euler's
    second = jnp.sin(x + 0.2 * first) + 0.6
    np.testing.assert_allclose(found["heun"], x + 0.1 * (first + second), rtol=1e-10)


def test_the_curriculum_doubles_up_to_the_grid():
    grid = fj.times.quadratic(40)
    objective = Consistency(path=LINEAR, grid=grid, curriculum=(5, 100))
    for step, n in ((0, 5), (99, 5), (100, 10), (250, 20), (300, 40), (10_000, 40)):
        draws = jax.jit(objective.draw)(jax.random.key(0), {"x1": jnp.zeros((400, 1))}, step=step)
        own = grid[:: 40 // n].astype(np.float32)
        assert set(np.asarray(draws.t).tolist()) == set(own[:-1].tolist())
        np.testing.assert_allclose(draws.end, own[np.searchsorted(own, draws.t) + 1], rtol=1e-6)


@pytest.mark.slow
def test_an_interval_is_as_likely_as_a_time_in_it():
    law = fj.objectives.times.LogitNormal(mean=1.0, std=0.5)
    objective = Consistency(path=LINEAR, grid=fj.times.uniform(4), times=law)
    draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4000, 1))})
    found = np.bincount(np.rint(4 * np.asarray(draws.t)).astype(int), minlength=4) / 4000
    edges = jax.scipy.stats.norm.cdf((jax.scipy.special.logit(jnp.linspace(0, 1, 5)) - 1) / 0.5)
    np.testing.assert_allclose(found, np.diff(edges), atol=0.04)  # five standard errors


# -------------------------------------------------------------------------------------------------------- in training


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_four_steps_of_a_student_beat_four_of_its_teacher(seed):
    """Of a mixture in the plane, trained as the authors do: towards an average, which is then sampled."""
    law = fj.oracles.Mixture.default(LINEAR, dim=2)
    velocity, steps = law.network(), 1500
    teacher, optimizer = fj.Flow(velocity, path=LINEAR), optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    objective = LatentConsistency(path=LINEAR, teacher=teacher)

    def student(model):  # what a network adds to the teacher
        return lambda x, t, cond: velocity(x, t) + model(x, t)

    def step(carry, key):
        model, average, state = carry
        for_data, for_draws = jax.random.split(key)
        draws = objective.draw(for_draws, {"x1": law.sample(for_data, 256)})

        def loss(model):
            return jnp.mean(objective.loss({"network": student(model), "target": student(average)}, draws)[0])

        change, state = optimizer.update(jax.grad(loss)(model), state, model)
        model = optax.apply_updates(model, change)
        return (model, jax.tree.map(lambda a, b: 0.95 * a + 0.05 * b, average, model), state), None

    @jax.jit
    def run(model, key):
        return jax.lax.scan(step, (model, model, optimizer.init(model)), jax.random.split(key, steps))[0][1]

    model = fj.models.MLP(2, width=64, depth=2, time_scale=1.0, rngs=nnx.Rngs(seed))
    flow = fj.Flow(student(run(model, jax.random.key(seed))), path=LINEAR)
    x, times = fj.noise(jax.random.key(10 + seed), (2000, 2)), fj.times.uniform(4)
    samples = {
        "student": fj.solve(flow, fj.solvers.Consistency(), x, times, key=jax.random.key(30 + seed)).x,
        "teacher": fj.solve(teacher, fj.solvers.DDIM(), x, times).x,
    }
    real = np.asarray(law.sample(jax.random.key(20 + seed), 2000))
    found = {who: float(fj.evaluation.energy_distance(np.asarray(own), real)) for who, own in samples.items()}
    assert found["student"] < found["teacher"] / 1.5


# --------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Consistency(path=LINEAR, prediction="data"),
            r"must be x at its last time.* of a data is not at t = 1",
        ),
        (lambda: Consistency(path=fj.paths.Linear(sigma_min=0.1)), "give boundary="),
        (lambda: Consistency(path=LINEAR, boundary={"end": 0.9}, grid=(0.0, 0.5)), "must be x at its last time"),
        (lambda: Consistency(path=LINEAR, boundary={"ende": 1.0}), "boundary has no option ende"),
        (lambda: Consistency(path=LINEAR, prediction="noise"), "move the start of the times"),
        (lambda: Consistency(path=LINEAR, grid=(0.0, 0.0, 1.0)), "the times of grid must rise"),
        (lambda: Consistency(path=LINEAR, grid=(0.5, 0.0)), "times must increase"),
        (lambda: Consistency(path=LINEAR, curriculum=(12, 100)), "doubling 12 steps does not lead to the 1280 of grid"),
        (lambda: Consistency(path=LINEAR, step="euler"), "unknown step 'euler'"),
        (
            lambda: Consistency(path=fj.paths.VP(), teacher=fj.Flow(of({}), path=fj.paths.VP())),
            "infinite at the end: take step='ddim'",
        ),
        (lambda: LatentConsistency(path=LINEAR, teacher=fj.Flow(of({}), path=TRIG)), "the teacher's path is Trig"),
        (lambda: LatentConsistency(path=LINEAR, teacher=fj.Flow(of({}), path=LINEAR), metric="l1"), "metric 'l1'"),
        (
            lambda: LatentConsistency(path=LINEAR, teacher=fj.Flow(of({}), path=LINEAR), guidance=(1.0, 2.0)),
            "without a null condition",
        ),
        (lambda: ContinuousConsistency(path=LINEAR), r"is for the path Trig\(\), got Linear"),
        (
            lambda: ContinuousConsistency(path=TRIG, teacher=fj.Flow(of({}), path=LINEAR)),
            "the teacher's path is Linear",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_function_is_bounded_where_it_is_asked_for():
    objective = Consistency(path=LINEAR, prediction="data", boundary={"scale": 20.0}, grid=fj.times.uniform(10))
    field = objective.function(lambda x, t, cond: x)
    assert isinstance(field, Bounded)
    assert (field.scale, field.data_std, field.end) == (20.0, 0.5, 1.0)
    assert isinstance(Consistency(path=LINEAR).function(lambda x, t, cond: x), fj.Flow)

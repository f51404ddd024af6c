"""Rectified diffusion, reflow, and its phased version."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from gradients import gradients_everywhere

import flowjax as fj
from flowjax.objectives import PhasedRectified, Rectified

PATHS = [fj.paths.Linear(), fj.paths.VP(), fj.paths.Cosine(), fj.paths.Trig()]
MEAN, STD = 0.7, 0.5


def pairs(n=64, seed=0):
    """Those of the exact flow to N(0.7, 0.5^2)."""
    x0 = jnp.asarray(np.random.default_rng(seed).standard_normal((n, 1)))
    return {"x0": x0, "x1": MEAN + STD * x0}


def paired(path):
    """The noise that every state of the pairs' ways belongs to."""
    return lambda x, t, cond=None: (x - expand(path.alpha(t)) * MEAN) / expand(path.alpha(t) * STD + path.sigma(t))


def expand(coefficient):
    return jnp.asarray(coefficient)[..., None]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_ddim_with_one_noise_composes_and_is_euler_on_lines(x64, path):
    noise, x = jnp.array([[0.3]]), jnp.array([[0.9]])
    s, r, t = (jnp.array([value]) for value in (0.2, 0.5, 0.9))

    def first_order(x, t, to):
        return path.ddim_step(t, to, x, (x - expand(path.sigma(t)) * noise) / expand(path.alpha(t)))

    np.testing.assert_allclose(first_order(first_order(x, s, r), r, t), first_order(x, s, t), rtol=1e-12)
    if isinstance(path, fj.paths.Linear):
        data = (x - 0.8 * noise) / 0.2
        np.testing.assert_allclose(first_order(x, s, t), x + 0.7 * (data - noise), rtol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("prediction", ["noise", "data", "velocity", "v"])
def test_the_optimum_of_pairs_has_no_loss_and_needs_one_step(x64, path, prediction):
    """Card, 3: on pairs of the exact flow the noise is a function of the state."""
    end = 1.0 if prediction != "velocity" or path.has_velocity(1.0) else 0.999

    def network(x, t, cond=None):
        noise = paired(path)(x, t)
        return path.target(prediction, t, noise, MEAN + STD * noise)

    objective = Rectified(path=path, prediction=prediction, times=fj.objectives.times.Uniform(end=end))
    draws = objective.draw(jax.random.key(0), pairs())
    np.testing.assert_array_equal(draws.x0, pairs()["x0"])
    loss, metrics = objective.loss(network, draws)
    assert float(loss.max()) < 1e-12
    assert float(metrics["mse"].max()) < 1e-20
    flow = fj.Flow(network, path=path, prediction=prediction)
    x0, start = pairs()["x0"], 1e-3 if prediction == "noise" and path.alpha(0.0) == 0 else 0.0
    x = path.interpolate(start, x0, MEAN + STD * x0)
    for steps in (1, 3):
        made = fj.solve(flow, fj.solvers.DDIM(), x, fj.times.uniform(steps, start=start, end=end)).x
        exact = path.interpolate(end, x0, MEAN + STD * x0)
        np.testing.assert_allclose(made, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_least_squares_on_pairs_finds_the_optimum_and_on_shuffled_ones_the_mean(x64, shuffled):
    """Card, 4: the pairing is the whole effect. An affine network at one time, by its normal equations."""
    path, t, both = fj.paths.VP(), 0.4, pairs(20_000)
    if shuffled:
        both["x0"] = jnp.asarray(np.random.default_rng(1).permutation(both["x0"]))
    objective = Rectified(path=path, prediction="noise", space="noise", metric="l2")
    draws = dataclasses.replace(objective.draw(jax.random.key(0), both), t=jnp.full(20_000, t))

    def loss(theta):
        return jnp.mean(objective.loss(lambda x, t, cond: theta[0] * x + theta[1], draws)[0])

    gradient, hessian = jax.grad(loss)(jnp.zeros(2)), jax.hessian(loss)(jnp.zeros(2))
    slope, shift = -jnp.linalg.solve(hessian, gradient)
    alpha, sigma = path.alpha(t), path.sigma(t)
    expected = sigma / (sigma**2 + alpha**2 * STD**2) if shuffled else 1 / (alpha * STD + sigma)
    tolerance = 0.03 if shuffled else 1e-9  # of 20,000 pairs: 4 standard errors
    np.testing.assert_allclose((slope, shift), (expected, -expected * alpha * MEAN), rtol=tolerance)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_one_phase_of_a_first_order_teacher_is_its_pairs(x64, path):
    """Card, 7: the phase's noise is that of the pair, and the optimum has no loss."""
    network = lambda x, t, cond=None: MEAN + STD * paired(path)(x, t)  # noqa: E731
    teacher = fj.Flow(network, path=path, prediction="data")
    objective = PhasedRectified(teacher=teacher, prediction="data", phases=1, steps=7)
    x0 = pairs()["x0"]
    draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros_like(x0)})
    draws = dataclasses.replace(draws, x0=x0)
    seen = []
    loss, _ = objective.loss(lambda x, t, cond: seen.append(x) or network(x, t), draws)
    assert float(loss.max()) < 1e-12
    if path.alpha(0.0) == 0:
        np.testing.assert_allclose(seen[0], path.interpolate(draws.t, x0, MEAN + STD * x0), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS[:2], ids=lambda path: type(path).__name__)
def test_phases_by_hand(x64, path):
    """The steps of the card, with numpy and the ratios of its formulas, for a student that answers something."""
    target = fj.oracles.Gaussian(mean=MEAN, std=STD, path=path)
    teacher = fj.Flow(target.network("noise"), path=path, prediction="noise")
    grid = np.array([0.02, 0.1, 0.3, 0.4, 0.6, 0.7, 0.9])
    objective = PhasedRectified(teacher=teacher, prediction="noise", phases=3, steps=2, grid=grid, c=0.1)
    draws = objective.draw(jax.random.key(0), {"x1": pairs(9)["x1"]})
    draws = dataclasses.replace(draws, t=jnp.linspace(0.02, 0.89, 9))
    loss, metrics = objective.loss(lambda x, t, cond: jnp.sin(x) + t[:, None], draws)
    a, b = (lambda t, f=f: float(f(t)) for f in (path.alpha, path.sigma))
    for i, t in enumerate(map(float, draws.t)):
        phase = max(k for k in range(3) if grid[2 * k] <= t)
        times = grid[2 * phase : 2 * phase + 3]
        x = start = a(times[0]) * float(draws.x1[i, 0]) + b(times[0]) * float(draws.x0[i, 0])
        for now, then in itertools.pairwise(times):
            noise = float(target.noise(now, jnp.array([[x]]))[0, 0])
            x = a(then) / a(now) * x + a(then) * noise * (b(then) / a(then) - b(now) / a(now))
        s, e = times[0], times[-1]
        own = (x / a(e) - start / a(s)) / (b(e) / a(e) - b(s) / a(s))
        between = a(t) * (start / a(s) + (b(t) / a(t) - b(s) / a(s)) * own)
        answer = np.sin(between) + t
        end = a(e) * (between / a(t) + (b(e) / a(e) - b(t) / a(t)) * answer)
        np.testing.assert_allclose(metrics["mse"][i], (end - x) ** 2, rtol=1e-6)
        np.testing.assert_allclose(loss[i], np.sqrt((end - x) ** 2 + 0.01) - 0.1, rtol=1e-6)


def network(theta, x, t, cond=None):
    return jnp.tanh(x @ theta["w"] + theta["a"] * t[:, None]) @ theta["v"]


def parameters(seed=0):
    rng, shapes = np.random.default_rng(seed), {"w": (1, 5), "a": (1, 5), "v": (5, 1)}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def phased(theta):
    teacher = fj.Flow(lambda x, t, cond: network(theta, x, t), path=fj.paths.Linear())
    return PhasedRectified(teacher=teacher, phases=2, steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rectified", "phased"])
def test_gradients_by_differences_and_everywhere(x64, kind):
    """The teacher has the student's own weights, and only the student's side moves."""
    theta = parameters()
    objective = Rectified(path=fj.paths.Linear()) if kind == "rectified" else phased(theta)
    draws = objective.draw(jax.random.key(0), pairs(16))

    def loss(theta, draws):
        return jnp.mean(objective.loss(lambda x, t, cond: network(theta, x, t), draws)[0])

    found = jax.grad(loss)(theta, draws)
    for name, value in theta.items():
        shift = jnp.zeros_like(value).at[0, 2 if name != "v" else 0].set(1e-6)
        both = [float(loss(theta | {name: value + sign * shift}, draws)) for sign in (1, -1)]
        np.testing.assert_allclose(jnp.sum(found[name] * shift) / 1e-6, (both[0] - both[1]) / 2e-6, rtol=1e-4)
    gradients_everywhere(loss, theta, draws)


def test_weights_of_the_teacher_get_no_gradient(x64):
    def loss(theta):
        objective = phased(theta)
        draws = objective.draw(jax.random.key(0), pairs(8))
        return jnp.mean(objective.loss(lambda x, t, cond: jnp.cos(x), draws)[0])

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.grad(loss)(parameters())))


LAW = {"weights": jnp.ones(3), "means": jnp.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]]), "stds": 0.3}


def fit(objective, batch, steps):
    """A network after some steps of Adam on random rows of a batch."""
    optimizer, network = optax.adam(3e-3), fj.models.MLP(2, width=96, depth=3, rngs=nnx.Rngs(0))

    def step(carry, key):
        network, state = carry
        rows = jax.random.randint(key, (256,), 0, len(batch["x1"]))
        draws = objective.draw(jax.random.fold_in(key, 1), {name: held[rows] for name, held in batch.items()})
        loss = lambda network: jnp.mean(objective.loss(network, draws)[0])  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(network), state)
        return (jax.tree.map(jnp.add, network, updates), state), None

    keys = jax.random.split(jax.random.key(2), steps)
    return jax.jit(lambda start, keys: jax.lax.scan(step, start, keys))((network, optimizer.init(network)), keys)[0][0]


@pytest.mark.slow
@pytest.mark.standard_promotion  # optax promotes
def test_pairs_make_one_step_good_and_straighten_a_mixture():
    """Card, 5 and 8: on exact pairs of a mixture in the plane, against the same training on shuffled ones."""
    path = fj.paths.Linear()
    target = fj.oracles.Mixture(**LAW, path=path)
    exact = fj.Flow(target.network("velocity"), path=path)
    times = fj.times.uniform(50, end=1 - 1e-3)
    solved = lambda x: fj.solve(exact, fj.solvers.Heun(), x, times).x  # noqa: E731
    x0 = jax.random.normal(jax.random.key(0), (20_000, 2))
    x1, test = solved(x0), jax.random.normal(jax.random.key(1), (1000, 2))
    mixed = jax.random.permutation(jax.random.key(3), x0)
    paired, shuffled = (fj.Flow(fit(Rectified(path=path), {"x0": x, "x1": x1}, 1500), path=path) for x in (x0, mixed))
    errors = [
        float(jnp.mean((fj.solve(flow, fj.solvers.Euler(), test, fj.times.uniform(1)).x - solved(test)) ** 2))
        for flow in (paired, shuffled)
    ]
    assert 5 * errors[0] < errors[1]
    grid = fj.times.uniform(40, end=0.99)
    before, after = (fj.evaluation.straightness(flow, test, grid) for flow in (exact, paired))
    for name, values in before.items():
        assert 5 * float(after[name].mean()) < float(values.mean()), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rectified(path=fj.paths.Linear(), space="image"), "space='image' is not a prediction"),
        (lambda: Rectified(path=fj.paths.Linear(), metric="l1"), "metric"),
        (lambda: Rectified(path=fj.paths.Linear(), c=-1.0), "c must be at least 0, got -1.0"),
        (lambda: Rectified(path=fj.paths.Linear(), label_dropout=0.1), "label_dropout needs null="),
        (
            lambda: Rectified(path=fj.paths.Linear()).draw(jax.random.key(0), {"x1": jnp.zeros((2, 1))}),
            r'rectified learns pairs.*the batch has none.*coupling="stored\(path=.FOLDER.\)"',
        ),
        (lambda: dataclasses.replace(phased(parameters()), grid=[0.0, 0.5, 1.0]), "2 phases of 3 steps need 7 increas"),
        (
            lambda: PhasedRectified(teacher=fj.Flow(lambda x, t, c: x, path=fj.paths.Linear(), prediction="noise")),
            "does not determine the data at t = 0",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()

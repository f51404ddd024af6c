"""MeanFlow: its identity, its gradients, its guidance, its draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax.models import DiT
from flowjax.objectives import FlowMatching, MeanFlow, SpanDraws
from flowjax.objectives.spans import along, differentiable, in_precision

LINEAR = fj.paths.Linear()
TARGET = fj.oracles.Gaussian(mean=2.0, std=0.5, path=LINEAR)


def network(theta, x, t, cond=None, end=None):
    """Smooth in everything; conditions shift it."""
    h = end - t if end is not None else jnp.zeros_like(t)
    shift = 0.0 if cond is None else 0.3 * cond[:, None].astype(x.dtype)
    return jnp.tanh(x @ theta["w"] + theta["a"] * t[:, None] + theta["b"] * h[:, None] + shift) @ theta["v"]


def parameters():
    rng = np.random.default_rng(0)
    return {
        k: jnp.asarray(rng.standard_normal(s)) for k, s in (("w", (2, 5)), ("a", (1, 5)), ("b", (1, 5)), ("v", (5, 2)))
    }


def some_draws(objective, n=8, cond=None):
    batch = {"x1": jnp.asarray(np.random.default_rng(1).standard_normal((n, 2)))} | (
        {} if cond is None else {"cond": cond}
    )
    return in_precision(objective.draw(jax.random.key(0), batch))


def by_hand(theta, draws, goal, power, offset):
    """The loss with the derivative along the flow by a difference of high order."""
    call = lambda x, t: network(theta, x, t, draws.cond, draws.end)  # noqa: E731
    x = draws.t[:, None] * draws.x1 + (1 - draws.t)[:, None] * draws.x0
    d = 1e-3
    shifted = [call(x + k * d * goal, draws.t + k * d) for k in (-2, -1, 1, 2)]
    slope = (shifted[0] - 8 * shifted[1] + 8 * shifted[2] - shifted[3]) / (12 * d)
    target = goal + (draws.end - draws.t)[:, None] * slope
    squares = np.sum(np.asarray(call(x, draws.t) - target) ** 2, 1)
    return squares / (squares + offset) ** power, target


@pytest.mark.parametrize("derivative", ["forward", "central"])
def test_identity_in_numbers(x64, derivative):
    x, t, end = jnp.array([[0.3]]), jnp.array([0.2]), jnp.array([0.9])
    draws = SpanDraws(x0=x, x1=x, t=t, end=end)
    velocity = TARGET.velocity(t, x)
    value, slope = along(TARGET.network("mean_velocity"), draws, x, velocity, derivative)
    tolerance = 1e-9 if derivative == "forward" else 5e-6
    np.testing.assert_allclose(velocity, [[2.1153846154]], atol=1e-9)
    np.testing.assert_allclose(value, [[2.0611754464]], atol=1e-9)
    np.testing.assert_allclose(slope, [[-0.0774416699]], atol=tolerance)
    np.testing.assert_allclose(velocity + 0.7 * slope, value, atol=tolerance)


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_loss_and_gradient_on_fixed_inputs(x64, power):
    theta, objective = parameters(), MeanFlow(path=LINEAR, power=power)
    draws = some_draws(objective)
    loss, metrics = objective.loss(lambda *a, **k: network(theta, *a, **k), draws)
    expected, target = by_hand(theta, draws, draws.x1 - draws.x0, power, 0.01)
    np.testing.assert_allclose(loss, expected, rtol=1e-8)
    assert power < 1 or (loss < 1).all()
    np.testing.assert_allclose(metrics["mse"] * 2 / (metrics["mse"] * 2 + 0.01) ** power, loss, rtol=1e-9)

    # The target and the weight are constants.
    def mean(theta, draws=draws):
        return jnp.mean(objective.loss(lambda *a, **k: network(theta, *a, **k), draws)[0])

    def with_constants(theta):
        x = LINEAR.interpolate(draws.t, draws.x0, draws.x1)
        squares = jnp.sum((network(theta, x, draws.t, None, draws.end) - target) ** 2, 1)
        return jnp.mean(squares / (jax.lax.stop_gradient(squares) + 0.01) ** power)

    for compute in (jax.grad(mean), jax.jit(jax.grad(mean))):
        for a, b in zip(jax.tree.leaves(compute(theta)), jax.tree.leaves(jax.grad(with_constants)(theta)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12)


def test_rows_without_a_span_are_flow_matching(x64):
    theta, objective = parameters(), MeanFlow(path=LINEAR, frac_flow_matching=1.0, power=0.0)
    draws = some_draws(objective)
    np.testing.assert_array_equal(draws.end, draws.t)
    loss, metrics = objective.loss(lambda *a, **k: network(theta, *a, **k), draws)
    plain = FlowMatching(path=LINEAR)
    same = dataclasses.replace(plain.draw(jax.random.key(0), {"x1": draws.x1}), x0=draws.x0, t=draws.t)
    expected, _ = plain.loss(lambda x, t, cond: network(theta, x, t, cond, t), same)
    np.testing.assert_allclose(loss, 2 * expected, rtol=1e-12)
    np.testing.assert_allclose(metrics["velocity_mse"], expected, rtol=1e-12)


@pytest.mark.parametrize("path", [LINEAR, fj.paths.Trig()], ids=["linear", "trig"])
def test_fixed_point_of_gaussian_data_is_the_exact_average_velocity(x64, path):
    """The regression of the targets on the state, at one span, is the average velocity that made them."""
    n, t, end = 200_000, 0.3, 0.8
    target = fj.oracles.Gaussian(mean=0.7, std=0.5, path=path)
    rng = np.random.default_rng(0)
    x0, x1 = jnp.asarray(rng.standard_normal((n, 1))), jnp.asarray(0.7 + 0.5 * rng.standard_normal((n, 1)))
    draws = SpanDraws(x0=x0, x1=x1, t=jnp.full(n, t), end=jnp.full(n, end))
    x, velocity = path.interpolate(t, x0, x1), path.conditional_velocity(t, x0, x1)
    value, slope = along(target.network("mean_velocity"), draws, x, velocity, "forward")
    targets = velocity + (end - t) * slope
    fit = np.polyfit(np.asarray(x)[:, 0], np.asarray(targets)[:, 0], 1)
    exact = np.polyfit(np.asarray(x)[:, 0], np.asarray(value)[:, 0], 1)
    np.testing.assert_allclose(fit, exact, atol=0.02)


def test_one_point_of_data_has_its_minimiser_without_an_error(x64):
    objective = MeanFlow(path=LINEAR, power=0.0)
    draws = some_draws(objective)
    point = jnp.array([[0.7, -1.2]])
    draws = dataclasses.replace(draws, x1=jnp.broadcast_to(point, draws.x1.shape))
    loss, _ = objective.loss(lambda x, t, cond, end: (point - x) / (1 - t)[:, None], draws)
    np.testing.assert_allclose(loss, 0, atol=1e-20)


@pytest.mark.parametrize(("omega", "kappa"), [(2.0, 0.0), (1.0, 0.5), (1.5, 0.25)])
def test_guided_velocities(x64, omega, kappa):
    theta, cond = parameters(), jnp.arange(8) % 3
    objective = MeanFlow(
        path=LINEAR, omega=omega, kappa=kappa, null=3, power=0.0, start=0.2, stop=0.6, label_dropout=0.2
    )
    draws = some_draws(objective, cond=cond)
    draws = dataclasses.replace(draws, t=jnp.linspace(0.0, 0.9, 8), end=jnp.linspace(0.1, 1.0, 8), cond=cond)
    draws = dataclasses.replace(draws, dropped=jnp.arange(8) == 3)
    loss, _ = objective.loss(lambda *a, **k: network(theta, *a, **k), draws)
    x = draws.t[:, None] * draws.x1 + (1 - draws.t)[:, None] * draws.x0
    v, u, c = draws.x1 - draws.x0, network(theta, x, draws.t, jnp.full(8, 3)), network(theta, x, draws.t, cond)
    guided = u + omega * (v - u) if kappa == 0 else omega * v + (1 - omega - kappa) * u + kappa * c
    on = (draws.t >= 0.2) & (draws.t <= 0.6) & ~draws.dropped
    expected, _ = by_hand(theta, draws, jnp.where(on[:, None], guided, v), 0.0, 0.01)
    assert 1 < int(on.sum()) < 7
    np.testing.assert_allclose(loss, expected, rtol=1e-8)
    # What the network's own velocity is once it equals its target: one scale for both forms.
    mean, scale = 0.3, omega / (1 - kappa)
    fixed = u + scale * (mean - u)
    again = u + omega * (mean - u) if kappa == 0 else omega * mean + (1 - omega - kappa) * u + kappa * fixed
    np.testing.assert_allclose(again, fixed, rtol=1e-12)


def test_neutral_guidance_asks_nothing_more(x64):
    calls = []
    theta, cond = parameters(), jnp.arange(8) % 3
    objective = MeanFlow(path=LINEAR, null=3)
    objective.loss(lambda *a, **k: calls.append(1) or network(theta, *a, **k), some_draws(objective, cond=cond))
    assert len(calls) == 1


def test_draws_belong_to_their_index_and_drop_labels_where_nothing_else_is_learned():
    objective = MeanFlow(path=LINEAR, null=10, label_dropout=0.3, frac_flow_matching=0.5)
    batch = {"x1": jnp.zeros((4000, 1)), "cond": jnp.arange(4000) % 10}
    draws = objective.draw(jax.random.key(0), batch)
    half = np.arange(4000) % 2 == 1
    np.testing.assert_array_equal(draws.end[half], draws.t[half])
    assert (np.asarray(draws.end - draws.t)[~half] > 0).all()
    np.testing.assert_array_equal(draws.dropped, draws.cond == 10)
    assert not np.asarray(draws.dropped)[~half].any()
    assert abs(np.mean(draws.dropped) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    both = np.sort(np.concatenate([draws.t[~half], draws.end[~half]]))
    logits = np.log(both / (1 - both))
    assert abs(logits.mean() - 0.4) < 4 / np.sqrt(4000)
    assert abs(logits.std() - 1) < 4 / np.sqrt(4000)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    lie = jax.NamedSharding(mesh, jax.P("data"))
    again = jax.jit(objective.draw)(jax.random.key(0), jax.device_put(batch, lie))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(draws), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_span_that_ends_before_it_starts_has_no_loss():
    objective = MeanFlow(path=LINEAR)
    draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))})
    draws = dataclasses.replace(draws, t=jnp.full(4, 0.5), end=jnp.array([0.5, 0.4, 0.6, 1.0]))
    loss = jax.jit(lambda d: objective.loss(lambda x, t, cond, end: x, d)[0])(draws)
    np.testing.assert_array_equal(jnp.isnan(loss), [False, True, False, False])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": fj.paths.VP()}, "the velocity of VP is infinite at an end"),
        ({"omega": 2.0}, "label_dropout and guidance need null="),
        ({"kappa": 1.0, "null": 3}, "kappa"),
        ({"label_dropout": 0.5, "frac_flow_matching": 0.4, "null": 3}, "is more than frac_flow_matching=0.4"),
        ({"derivative": "reverse"}, "derivative"),
        ({"power": float("nan")}, "power"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        MeanFlow(**{"path": LINEAR} | options)


@pytest.mark.slow
def test_derivatives_are_in_float32_and_by_attention_that_has_them():
    def build(**options):
        made = DiT((4, 4, 1), 2, 8, 1, 2, second_time=True, rngs=nnx.Rngs(0), **options)
        return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), made)

    x, t = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), jnp.array([0.2, 0.4, 0.6])
    draws = SpanDraws(x0=x, x1=x, t=t, end=t + 0.3)
    full, half = build(), build(dtype=jnp.bfloat16)
    assert differentiable(full) is full
    exact, slope = along(full, draws, x, x, "forward")
    value, low = along(half, draws, x, x, "forward")
    np.testing.assert_allclose(low, slope, rtol=1e-6, atol=1e-6)
    assert 1e-5 < float(jnp.abs(value - exact).max()) < 0.1  # the network itself computes as it was built
    half.blocks[0].attention = "cudnn"
    with pytest.warns(UserWarning, match="attention='cudnn' has no forward derivative: 'xla' takes its place"):
        other = differentiable(half)
    assert (other.blocks[0].attention, half.blocks[0].attention) == ("xla", "cudnn")


def train(objective, seed, steps, flow_map):
    """A perceptron on points; its optimiser is that of the recipes."""
    import optax

    model = fj.models.MLP(2, width=64, depth=2, second_time=flow_map, rngs=nnx.Rngs(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    target = fj.oracles.Mixture.default(LINEAR, dim=2)

    @jax.jit
    def run(model, key):
        def step(carry, key):
            model, state = carry
            data, noise = jax.random.split(key)
            draws = objective.draw(noise, {"x1": target.sample(data, 256)})
            gradient = jax.grad(lambda model: jnp.mean(objective.loss(model, draws)[0]))(model)
            change, state = optimizer.update(gradient, state, model)
            return (optax.apply_updates(model, change), state), None

        return jax.lax.scan(step, (model, optimizer.init(model)), jax.random.split(key, steps))[0][0]

    return run(model, jax.random.key(seed)), target


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_jump_beats_one_euler_step_of_flow_matching(seed):
    """Energy distance at least three times smaller."""
    found = {}
    for name, objective in (("mean", MeanFlow(path=LINEAR)), ("flow", FlowMatching(path=LINEAR))):
        model, target = train(objective, seed, 2000, name == "mean")
        solver = fj.solvers.Jump() if name == "mean" else fj.solvers.Euler()
        x = fj.noise(jax.random.key(10 + seed), (4000, 2))
        samples = fj.solve(fj.Flow(model, path=LINEAR), solver, x, fj.times.uniform(1)).x
        real = target.sample(jax.random.key(20 + seed), 4000)
        found[name] = float(fj.evaluation.energy_distance(np.asarray(samples), np.asarray(real)))
    print(found)
    assert found["mean"] < found["flow"] / 3

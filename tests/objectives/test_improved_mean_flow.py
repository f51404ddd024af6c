"""Improved MeanFlow: two heads, the network's own direction, guidance as an input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.objectives import ImprovedMeanFlow, MeanFlow
from flowjax.objectives.spans import in_precision

LINEAR = fj.paths.Linear()
TARGET = fj.oracles.Gaussian(mean=2.0, std=0.5, path=LINEAR)


def network(theta, x, t, cond=None, end=None, guidance=None, interval=None):
    """Smooth in everything, with two heads."""
    more = 0.0 if cond is None else 0.3 * cond[:, None].astype(x.dtype)
    if guidance is not None:
        more += 0.2 * guidance[:, None] + interval @ theta["i"]
    h = jnp.tanh(x @ theta["w"] + theta["a"] * t[:, None] + theta["b"] * (end - t)[:, None] + more)
    return {"u": h @ theta["u"], "v": h @ theta["v"]}


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (2, 5), "a": (1, 5), "b": (1, 5), "i": (2, 5), "u": (5, 2), "v": (5, 2)}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def bound(theta):
    return lambda *a, **k: network(theta, *a, **k)


def some_draws(objective, n=8, **batch):
    x1 = jnp.asarray(np.random.default_rng(1).standard_normal((n, 2)))
    return in_precision(objective.draw(jax.random.key(0), {"x1": x1} | batch))


def state_and_velocity(draws):
    return draws.t[:, None] * draws.x1 + (1 - draws.t)[:, None] * draws.x0, draws.x1 - draws.x0


@pytest.mark.parametrize("guidance", [None, (1.0, 8.0)])
def test_loss_by_hand(x64, guidance):
    """Derivatives by differences of high order, guidance written out; gradients with every target as a constant."""
    theta, cond = parameters(), jnp.arange(8) % 3
    objective = ImprovedMeanFlow(path=LINEAR, guidance=guidance, null=3, power=0.75, label_dropout=0.2)
    draws = dataclasses.replace(some_draws(objective, cond=cond), t=jnp.linspace(0.0, 0.9, 8))
    draws = dataclasses.replace(draws, end=jnp.linspace(0.1, 1.0, 8), cond=cond, dropped=jnp.arange(8) == 3)
    x, v = state_and_velocity(draws)
    asked, whole = {}, jnp.tile(jnp.array([[0.0, 1.0]]), (8, 1))
    own, aim = network(theta, x, draws.t, cond, draws.t)["v"], v
    if guidance:
        draws = dataclasses.replace(draws, interval=jnp.tile(jnp.array([[0.2, 0.6]]), (8, 1)))
        asked = {"guidance": draws.guidance, "interval": draws.interval}
        scale = jnp.where((draws.t >= 0.2) & (draws.t <= 0.6), draws.guidance, 1.0)
        own = network(theta, x, draws.t, cond, draws.t, scale, whole)["v"]
        none = network(theta, x, draws.t, jnp.full(8, 3), draws.t, jnp.ones(8), whole)["v"]
        aim = v + jnp.where(draws.dropped, 0.0, 1 - 1 / scale)[:, None] * (own - none)
        assert 1 < int((scale > 1).sum()) < 7
    d = 1e-3
    steps = [network(theta, x + k * d * own, draws.t + k * d, cond, draws.end, **asked)["u"] for k in (-2, -1, 1, 2)]
    slope = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * d)

    def by_hand(theta, constants):
        answer = network(theta, x, draws.t, cond, draws.end, **asked)
        compound = answer["u"] - (draws.end - draws.t)[:, None] * slope
        squares = [jnp.sum((value - aim) ** 2, 1) for value in (compound, answer["v"])]
        return jnp.stack([s / (w + 0.01) ** 0.75 for s, w in zip(squares, constants or squares, strict=True)]), squares

    expected, weights = by_hand(theta, None)
    loss, metrics = objective.loss(bound(theta), draws)
    np.testing.assert_allclose(loss, expected.sum(0), rtol=1e-8)
    np.testing.assert_allclose(metrics["mse"], weights[0] / 2, rtol=1e-7)
    found = jax.grad(lambda theta: jnp.mean(objective.loss(bound(theta), draws)[0]))(theta)
    exact = jax.grad(lambda theta: jnp.mean(by_hand(theta, weights)[0].sum(0)))(theta)
    for a, b in zip(*map(jax.tree.leaves, (found, exact)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-10)


def test_along_the_examples_velocity_it_is_meanflow(x64):
    """Data of one point: the velocity of the example is the marginal one, and a second head that knows it adds 0."""
    theta, point = parameters(), jnp.array([[0.7, -1.2]])
    both = [kind(path=LINEAR, frac_flow_matching=0.25, power=0.5) for kind in (ImprovedMeanFlow, MeanFlow)]
    draws = some_draws(both[0])
    draws = dataclasses.replace(draws, x1=jnp.broadcast_to(point, draws.x1.shape))

    def loss(theta, objective, heads):
        def call(x, t, cond, end):
            u = network(theta, x, t, cond, end)["u"]
            return {"u": u, "v": (point - x) / (1 - t)[:, None]} if heads else u

        return jnp.mean(objective.loss(call, draws)[0])

    found = [jax.value_and_grad(loss)(theta, objective, heads) for objective, heads in zip(both, (True, False))]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_exact_average_velocities_make_the_exact_velocity(x64):
    """V of the exact U is the marginal velocity, so that both terms agree; the other sign does not."""
    objective = ImprovedMeanFlow(path=LINEAR, frac_flow_matching=0.0)
    draws = some_draws(objective, 64)
    x, v = state_and_velocity(draws)
    heads = [TARGET.network("mean_velocity"), TARGET.network("velocity")]
    call = lambda x, t, cond, end: {"u": heads[0](x, t, cond, end), "v": heads[1](x, t, cond)}  # noqa: E731
    _, compound, own = objective.compare(call, call, draws, x, v)
    np.testing.assert_allclose(compound, own, atol=1e-9)
    np.testing.assert_allclose(own + v, TARGET.velocity(draws.t, x), atol=1e-12)


def test_the_fixed_point_is_guidance_of_the_scale(x64):
    """Data of one point, whose velocity is exact: with v_u + w (E[v] - v_u) as its own v there is nothing to learn."""
    point = jnp.array([[0.7, -1.2]])
    objective = ImprovedMeanFlow(path=LINEAR, guidance=(1.0, 8.0), null=3, frac_flow_matching=1.0)
    draws = some_draws(objective, cond=jnp.arange(8) % 3)
    draws = dataclasses.replace(draws, x1=jnp.broadcast_to(point, draws.x1.shape))

    def guided_by(power):
        def call(x, t, cond, end, guidance, interval):
            none = jnp.cos(x)
            scale = jnp.where(cond == 3, 0.0, guidance**power)[:, None]
            value = none + scale * ((point - x) / (1 - t)[:, None] - none)
            return {"u": value, "v": value}

        return call

    exact, other = (objective.loss(guided_by(power), draws)[0] for power in (1, 2))
    np.testing.assert_allclose(exact, 0, atol=1e-18)
    assert float(other.min()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_draws(beta):
    objective = ImprovedMeanFlow(path=LINEAR, guidance=(1.0, 8.0), beta=beta, null=10, label_dropout=0.1)
    batch = {"x1": jnp.zeros((4000, 1)), "cond": jnp.arange(4000) % 10}
    draws = objective.draw(jax.random.key(0), batch)
    still = np.asarray(draws.end == draws.t)
    assert still.mean() == 0.5
    np.testing.assert_array_equal(np.asarray(draws.interval)[still], np.tile([0.0, 1.0], (2000, 1)))
    start, stop = np.asarray(draws.interval)[~still].T
    for uniform in (2 * start, 2 * stop - 1, quantile(np.asarray(draws.guidance), beta)):
        assert 0 <= uniform.min() <= uniform.max() <= 1
        n = len(uniform)
        assert abs(uniform.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / n)
        assert abs((uniform**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    again = jax.jit(objective.draw)(jax.random.key(0), jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data"))))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(draws), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def quantile(scale, beta):
    """The distribution function of a density proportional to w^-beta on [1, 8], whose values are uniform."""
    return np.log(scale) / np.log(8) if beta == 1 else (1 - 1 / scale) / (1 - 1 / 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": (1.0, 8.0)}, "label_dropout and guidance need null="),
        ({"guidance": (0.5, 8.0), "null": 3}, r"guidance\[0\]"),
        ({"guidance": (8.0, 1.0), "null": 3}, r"guidance=\(8.0, 1.0\) must be \(smallest, largest\)"),
        ({"derivative": "reverse"}, "derivative"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        ImprovedMeanFlow(path=LINEAR, **options)


def test_a_network_of_one_head_is_refused():
    objective = ImprovedMeanFlow(path=LINEAR)
    with pytest.raises(ValueError, match="needs a network of two heads, which answers with u and v"):
        objective.loss(lambda x, t, cond, end: x, objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))}))

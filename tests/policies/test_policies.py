"""Policies in float64 against quadrature, finite differences, Bayes' rule on a grid, and what published ones keep."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import flowjax as fj
from flowjax.policies import Mixture, MixturePolicy, Momentum, MomentumPolicy

pytestmark = pytest.mark.usefixtures("x64")
A, B = np.array([0.1, 0.3, 0.5]), np.array([0.9, 1.0, 0.51])


def momentum(components=5, scale=1.5, seed=0):
    """A policy of three samples of 4 x 4 x 2 with random numbers, and states."""
    head = Momentum(components=components)
    answer = scale * jax.random.normal(jax.random.key(seed), (3, 4, 4, head.channels(2)), jnp.float64)
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2), jnp.float64)
    return head.policy(answer, jnp.array([0.0, 0.2, 0.5]), x), x


@pytest.mark.slow
def test_the_closed_form_is_the_integral_of_the_velocity():
    policy, x = momentum()
    nodes, weights = np.polynomial.legendre.leggauss(64)
    integral = sum(w / 2 * policy.velocity(jnp.asarray(A + (B - A) * (n + 1) / 2), x) for n, w in zip(nodes, weights))
    np.testing.assert_allclose(policy.average_velocity(x, jnp.asarray(A), jnp.asarray(B)), integral, rtol=0, atol=1e-13)


def test_velocities_are_written_out():
    policy, x = momentum(components=3)
    t = np.asarray(policy.start) + 0.25
    w = np.exp(policy.logits) / np.exp(policy.logits).sum(-1, keepdims=True)
    by_hand = sum(
        w[..., k, None] * policy.basic[..., k, :] * np.exp(0.25 * policy.rates[..., k, None]) for k in range(3)
    )
    np.testing.assert_allclose(policy.velocity(jnp.asarray(t), x), by_hand, rtol=1e-13)
    assert not np.any(policy.rates[..., 0])  # the first component is a straight line


def test_parts_of_a_way_add_up_and_the_slope_is_the_velocity():
    policy, x = momentum()
    a, b = jnp.asarray(A), jnp.asarray(B)
    middle = (a + b) / 2
    whole = policy.rollout(x, a, b)
    np.testing.assert_allclose(policy.rollout(policy.rollout(x, a, middle), middle, b), whole, rtol=0, atol=1e-13)
    slope = (policy.rollout(x, a, b + 1e-5) - policy.rollout(x, a, b - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, policy.velocity(b, x), rtol=0, atol=1e-8)


def test_without_momentum_it_is_an_euler_step():
    policy, x = momentum()
    policy = MomentumPolicy(
        start=policy.start, logits=policy.logits, basic=policy.basic, rates=jnp.zeros_like(policy.rates)
    )
    a, b = jnp.asarray(A), jnp.asarray(B)
    euler = x + (b - a)[:, None, None, None] * policy.velocity(policy.start, x)
    np.testing.assert_allclose(policy.rollout(x, a, b), euler, rtol=0, atol=1e-14)


def test_the_example_of_two_components():
    zero, one = jnp.zeros(1), jnp.ones(1)
    policy = MomentumPolicy(
        start=zero, logits=jnp.zeros((1, 2)), basic=jnp.ones((1, 2, 1)), rates=jnp.array([[0.0, math.log(4)]])
    )
    x = jnp.zeros((1, 1))
    assert float(policy.velocity(one, x)[0, 0]) == pytest.approx(2.5, abs=1e-14)
    assert float(policy.rollout(x, zero, one)[0, 0]) == pytest.approx(0.5 + 1.5 / math.log(4), abs=1e-14)


def test_k_components_match_k_velocities_and_two_an_exponential():
    rates, times = np.array([0.0, -1.2, 0.4, 1.1]), np.array([0.0, 0.2, 0.5, 0.8])
    wanted = np.array([1.0, -2.0, 0.5, 3.0])
    basic = np.linalg.solve(np.exp(rates * times[:, None]), wanted) * 4  # the weights are 1/4
    policy = MomentumPolicy(
        start=jnp.zeros(4),
        logits=jnp.zeros((4, 4)),
        basic=jnp.broadcast_to(jnp.asarray(basic)[:, None], (4, 4, 1)),
        rates=jnp.broadcast_to(jnp.asarray(rates), (4, 4)),
    )
    np.testing.assert_allclose(policy.velocity(jnp.asarray(times), jnp.zeros((4, 1)))[:, 0], wanted, atol=1e-12)
    c = -1.7  # v = 2 + 3 exp(c t)
    policy = MomentumPolicy(
        start=jnp.zeros(1),
        logits=jnp.zeros((1, 2)),
        basic=jnp.array([[[4.0], [6.0]]]),
        rates=jnp.array([[0.0, c]]),
    )
    end = policy.rollout(jnp.zeros((1, 1)), jnp.zeros(1), jnp.ones(1))
    assert float(end[0, 0]) == pytest.approx(2 + 3 * math.expm1(c) / c, abs=1e-13)


@pytest.mark.parametrize("rate", [0.0, 1e-9, 1e-3, 0.019999, 0.020001, -0.7, 3.0])
def test_gradients_of_the_closed_form_are_finite_differences(rate):
    def end(rate):
        policy = MomentumPolicy(
            start=jnp.zeros(1),
            logits=jnp.array([[0.3, -0.2]]),
            basic=jnp.array([[[1.0], [2.0]]]),
            rates=jnp.stack([jnp.zeros_like(rate), rate])[None],
        )
        return policy.rollout(jnp.zeros((1, 1)), jnp.full(1, 0.2), jnp.full(1, 0.9))[0, 0]

    rate = jnp.asarray(rate)
    difference = (end(rate + 1e-5) - end(rate - 1e-5)) / 2e-5
    assert float(jax.grad(end)(rate)) == pytest.approx(float(difference), rel=1e-8)


def mixture(start, spread=0.5, steps=64):
    """Two components of one number."""
    return MixturePolicy(
        start=jnp.array([start]),
        logits=jnp.log(jnp.array([[0.3, 0.7]])),
        origin=jnp.array([[0.4]]),
        means=jnp.array([[[-1.0], [2.0]]]),
        spread=jnp.array([spread]),
        path=fj.paths.Linear(),
        steps=steps,
    )


@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("t", [0.31, 0.6, 0.95])
def test_the_mixture_follows_bayes_rule(start, t):
    grid, x = np.linspace(-8, 8, 100_001), 0.7
    prior = 0.3 * stats.norm.pdf(grid, -1, 0.5) + 0.7 * stats.norm.pdf(grid, 2, 0.5)
    weight = prior * stats.norm.pdf(x, t * grid, 1 - t) / stats.norm.pdf(0.4, start * grid, 1 - start)
    mean = np.sum(grid * weight) / np.sum(weight)
    policy = mixture(start)
    assert float(policy.data(jnp.array([t]), jnp.array([[x]]))[0, 0]) == pytest.approx(mean, abs=1e-9)
    assert float(policy.velocity(jnp.array([t]), jnp.array([[x]]))[0, 0]) == pytest.approx((mean - x) / (1 - t))


def test_the_mixture_begins_at_its_mean_and_its_steps_converge():
    policy = mixture(0.3)
    begin = policy.data(policy.start, policy.origin)
    assert float(begin[0, 0]) == pytest.approx(0.3 * -1 + 0.7 * 2, abs=1e-14)
    a, b = jnp.array([0.4]), jnp.array([1.0])
    x = jnp.array([[0.5]])
    errors = [mixture(0.3, steps=n).rollout(x, a, b) - mixture(0.3, steps=4096).rollout(x, a, b) for n in (64, 128)]
    assert 0 < abs(float(errors[1][0, 0])) < 0.6 * abs(float(errors[0][0, 0])) < 0.02
    one, (u, v) = jnp.array([0.7]), (policy.rollout(x, a, b), policy.average_velocity(x, a, b))
    np.testing.assert_allclose(u, x + 0.6 * v, atol=1e-14)
    np.testing.assert_allclose(policy.average_velocity(x, one, one), policy.velocity(one, x), atol=1e-14)


def test_the_mixture_of_one_component_is_the_flow_of_a_gaussian():
    target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
    policy = MixturePolicy(
        start=jnp.zeros(2),
        logits=jnp.zeros((2, 1)),
        origin=jnp.array([[0.3], [-1.0]]),
        means=jnp.full((2, 1, 1), 2.0),
        spread=jnp.full(2, 0.5),
        path=target.path,
        steps=8,
    )
    t, x = jnp.array([0.0, 0.6]), jnp.array([[0.3], [1.0]])
    np.testing.assert_allclose(
        policy.velocity(t, x), fj.Flow(target.network("velocity"), path=target.path).velocity(t, x), atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: momentum(4)[0], lambda: mixture(0.3)])
def test_components_are_left_out_but_never_all(make):
    policy = make()
    batch, count = policy.logits.shape[0], policy.logits.shape[-1]
    one = jax.random.split(jax.random.key(0), 4000)
    out = jax.vmap(lambda key: jnp.isneginf(policy.dropout(jax.random.split(key, batch), 0.5).logits))(one)
    out = np.asarray(out).reshape(4000, batch, -1, count)
    assert np.all(out == out[:, :, :1])  # a component is left out of a whole sample
    out = out[:, :, 0]
    assert not out.all(-1).any()
    # 1/2 but for the samples that would have lost all; a standard deviation is below 0.01
    assert np.abs(out.mean((0, 1)) - (0.5 - 0.5**count)).max() < 0.04
    assert jax.tree.all(
        jax.tree.map(jnp.array_equal, policy.dropout(jax.random.split(jax.random.key(0), batch), 0.0), policy)
    )


@pytest.mark.parametrize("head", [Momentum(components=3), Mixture(components=3), Mixture(components=2, logstd=-1.0)])
@pytest.mark.parametrize("patch", [1, 4])
def test_a_grown_layer_begins_as_the_velocity_it_comes_from(head, patch):
    channels, width = 2, 6
    kernel = jax.random.normal(jax.random.key(0), (width, patch * channels))
    bias = jax.random.normal(jax.random.key(1), (patch * channels,))
    h = jax.random.normal(jax.random.key(2), (5, width))
    old = (h @ kernel + bias[None]).reshape(5, patch, channels)
    more = head.grown(kernel, channels, jax.random.key(3)), head.grown(bias, channels, jax.random.key(4))
    answer = (h @ more[0] + more[1][None]).reshape(5, patch, head.channels(channels))
    t = jnp.full(5, 0.25)
    policy = head.policy(answer, t, old)
    found = policy.velocity(t, old)
    noise = np.asarray(found - old)
    np.testing.assert_allclose(noise, np.broadcast_to(noise[:1, :1], noise.shape), atol=1e-12)  # one for each channel
    assert 0 < np.abs(noise).max() < 0.2
    if isinstance(policy, MomentumPolicy):
        np.testing.assert_allclose(np.exp(policy.rates[0, 0]), [1.0, 0.2, 4.0])
    else:
        np.testing.assert_allclose(policy.spread, 0.75 * np.exp(head.logstd or 0.0))


def test_refusals():
    head, x = Momentum(components=3), jnp.zeros((2, 4, 4, 1))
    with pytest.raises(ValueError, match=r"momentum policy of 3 components needs an answer of shape \(2, 4, 4, 8\)"):
        head.policy(jnp.zeros((2, 4, 4, 1)), jnp.zeros(2), x)
    with pytest.raises(ValueError, match="components"):
        Mixture(components=0)
    flow = fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear())
    with pytest.raises(ValueError, match="raw network output"):
        fj.fields.Curved(flow, policy=head).check([0.0], "raw")


def test_a_policy_of_the_teachers_velocity_is_euler_and_counts_its_evaluations():
    def network(x, t, cond):
        return jnp.concatenate([jnp.sin(3 * x) - t[:, None] * x, jnp.zeros_like(x)], axis=1)

    flow = fj.Flow(network, path=fj.paths.Linear())
    teacher = fj.Flow(lambda x, t, cond: network(x, t, cond)[:, :1], path=fj.paths.Linear())
    field = fj.fields.Curved(flow, policy=Momentum(components=1))
    x, times = jnp.linspace(-1, 1, 5)[:, None], fj.times.shifted(fj.times.uniform(3), 3.2)
    found = fj.solve(field, fj.solvers.Policy(), x, times)
    np.testing.assert_allclose(found.x, fj.solve(teacher, fj.solvers.Euler(), x, times).x, atol=1e-14)
    assert (int(found.evaluations), int(found.network_calls)) == (3, 3)
    heun = fj.solve(field, fj.solvers.Heun(), x, times).x  # plain velocities for every other solver
    np.testing.assert_allclose(heun, fj.solve(teacher, fj.solvers.Heun(), x, times).x, atol=1e-14)

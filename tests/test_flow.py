"""The Flow, its counters, its checks, and networks of every kind."""

import dataclasses
import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import TypeCheckError

import flowjax as fj
from flowjax import oracles
from flowjax.flow import Counts, count

LINEAR = fj.paths.Linear()
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)


@fj._pytree.pytree
class Affine:
    """A network w x + t + cond that notes each trace."""

    w: object
    traces: list = fj._pytree.static()

    def __call__(self, x, t, cond=None):
        self.traces.append(x.shape)
        value = self.w * x + t[:, None]
        return value if cond is None else value + cond[:, None]

    def __hash__(self):
        return id(self)


class Log(list):
    """A list that is static data: equal only to itself."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def affine(w=2.0):
    return Affine(w=jnp.float32(w), traces=Log())


def test_network_gets_float32_times_of_the_batch():
    seen = []

    def network(x, t, cond):
        seen.append((x.shape, t.shape, t.dtype, np.asarray(t).tolist(), cond))
        return x

    flow = fj.Flow(network, path=LINEAR)
    for t in (0.25, np.float64(0.25), np.full(4, 0.25), jnp.float32(0.25), jnp.full(4, 0.25)):
        flow.velocity(t, X, "anything")
    assert seen == [((4, 3), (4,), jnp.float32, [0.25] * 4, "anything")] * 5


def test_predictions_are_those_of_the_oracle():
    target = oracles.Gaussian(mean=0.5, std=0.7, path=LINEAR)
    t = jnp.array([0.1, 0.4, 0.6, 0.9])
    for given in fj.paths.PREDICTIONS:
        flow = fj.Flow(target.network(given), path=LINEAR, prediction=given)
        for to in ("velocity", "data", "noise", "score"):
            expected = target.predict(to, t, X)
            np.testing.assert_allclose(getattr(flow, to)(t, X), expected, rtol=2e-4, atol=2e-4, err_msg=f"{given} {to}")


def test_raw_is_the_networks_own_output():
    def two_heads(x, t, cond):
        return {"mean": x, "weights": t}

    value, memory = fj.Flow(two_heads, path=LINEAR).evaluate(0.5, X, None, Counts.zero(4), to="raw")
    np.testing.assert_array_equal(value["mean"], X)
    assert value["weights"].shape == (4,)
    assert int(memory.evaluations) == 1


def test_counts():
    flow = fj.Flow(affine(), path=LINEAR)
    memory = flow.init(X)
    assert tuple(map(int, count(memory))) == (0, 0)
    _, memory = flow.evaluate(0.5, X, None, memory)
    assert tuple(map(int, count(memory))) == (1, 1)
    _, memory = flow.evaluate(0.5, jnp.concatenate([X, X, X]), None, memory)
    assert tuple(map(int, count(memory))) == (2, 4)
    assert tuple(map(int, count((memory, {"other": memory}, jnp.ones(3))))) == (4, 8)
    result = fj.solve(flow, fj.solvers.Midpoint(), X, fj.times.uniform(3))
    assert (int(result.evaluations), int(result.network_calls)) == (6, 6)


def test_extra_arguments_reach_the_network():
    seen = {}

    def network(x, t, cond, end=None, velocity=None):
        seen.update(end=end, velocity=velocity)
        return x

    flow = fj.Flow(network, path=LINEAR)
    flow.velocity(0.25, X, end=0.75, velocity=2 * X)
    np.testing.assert_array_equal(seen["end"], jnp.full(4, 0.75))
    assert seen["end"].dtype == jnp.float32
    np.testing.assert_array_equal(seen["velocity"], 2 * X)
    flow.velocity(0.25, X, end=jnp.linspace(0.5, 1.0, 4))
    np.testing.assert_array_equal(seen["end"], jnp.linspace(0.5, 1.0, 4))
    flow.velocity(0.25, X, end=None)
    assert seen["end"] is None


def test_half_precision_networks_keep_a_single_precision_state():
    def network(x, t, cond):
        return (x.astype(jnp.bfloat16) * t.astype(jnp.bfloat16)[:, None]).astype(jnp.bfloat16)

    for prediction in ("velocity", "data", "noise"):
        flow = fj.Flow(network, path=LINEAR, prediction=prediction)
        assert flow.velocity(0.5, X).dtype == jnp.float32
        assert flow.data(0.5, X).dtype == jnp.float32
        result = fj.solve(flow, fj.solvers.Euler(), X, fj.times.uniform(4, 0.1, 0.9), trajectory=True)
        assert result.x.dtype == jnp.float32
        assert result.trajectory.dtype == jnp.float32
        assert result.trajectory.shape == (5, 4, 3)


def test_new_weights_do_not_trace_again():
    flow = fj.Flow(affine(1.0), path=LINEAR, null=7)
    run = jax.jit(lambda flow, t, x: flow.velocity(t, x))
    first = run(flow, 0.5, X)
    other = dataclasses.replace(flow, network=dataclasses.replace(flow.network, w=jnp.float32(3.0)))
    np.testing.assert_allclose(run(other, 0.25, X), 3 * X + 0.25, rtol=1e-6)
    np.testing.assert_allclose(first, X + 0.5, rtol=1e-6)
    assert len(flow.network.traces) == 1
    results, traces = [], []
    for w, times in ((1.0, fj.times.uniform(4)), (2.0, fj.times.uniform(4)), (1.0, fj.times.quadratic(4, 0.1, 0.8))):
        other = dataclasses.replace(flow, network=dataclasses.replace(flow.network, w=jnp.float32(w)))
        results.append(float(fj.solve(other, fj.solvers.Euler(), X, times).x[0, 0]))
        traces.append(len(flow.network.traces))
    assert len(set(results)) == 3
    assert len(set(traces)) == 1


def test_flow_is_a_pytree():
    flow = fj.Flow(affine(1.0), path=LINEAR, prediction="data", null=jnp.zeros(2))
    assert len(jax.tree.leaves(flow)) == 2
    doubled = jax.tree.map(lambda a: 2 * a, flow)
    assert float(doubled.network.w) == 2
    assert (doubled.prediction, doubled.path) == ("data", LINEAR)
    slope = jax.grad(lambda flow: jnp.sum(flow.velocity(0.5, X)))(flow)
    assert isinstance(slope, fj.Flow)
    assert np.isfinite(slope.network.w)
    with pytest.raises(dataclasses.FrozenInstanceError):
        flow.prediction = "noise"


def test_plain_functions_and_modules_are_networks():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x, t, cond=None):
            return self.layer(x) * t[:, None]

    times = fj.times.uniform(3)
    modules = [Net(nnx.Rngs(seed)) for seed in range(2)]
    for net in modules:
        flow = fj.Flow(net, path=LINEAR)
        x = np.asarray(X)
        for s, t in itertools.pairwise(times):
            x = x + np.float32(t - s) * (x @ np.asarray(net.layer.kernel[...]) + np.asarray(net.layer.bias[...])) * s
        np.testing.assert_allclose(fj.solve(flow, fj.solvers.Euler(), X, times).x, x, rtol=1e-5, atol=1e-6)
    result = fj.solve(fj.Flow(lambda x, t, cond: -x, path=LINEAR), fj.solvers.Euler(), X, times)
    np.testing.assert_allclose(result.x, X * (2 / 3) ** 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("prediction", "to", "t", "message"),
    [
        ("noise", "velocity", 0.0, r"alpha = 0: move the start of the times above it.*start=1e-3"),
        ("score", "data", 0.0, r"alpha = 0: move the start"),
        ("data", "velocity", 1.0, r"sigma = 0: move the end of the times below it.*end=1 - 1e-3"),
        ("velocity", "score", 1.0, r"'velocity' prediction does not determine the score at t = 1"),
    ],
)
def test_check_names_the_end(prediction, to, t, message):
    flow = fj.Flow(affine(), path=LINEAR, prediction=prediction)
    with pytest.raises(ValueError, match=message):
        flow.check([0.5, t], to)
    flow.check([0.5], to)
    flow.check([0.5, t], prediction)
    flow.check([0.5, t], "raw")


def test_solve_refuses_at_once():
    flow = fj.Flow(affine(), path=LINEAR, prediction="noise")
    with pytest.raises(ValueError, match="move the start"):
        fj.solve(flow, fj.solvers.Euler(), X, fj.times.uniform(4))
    assert flow.network.traces == []
    fj.solve(flow, fj.solvers.Euler(), X, fj.times.uniform(4, start=1e-3))
    heun = fj.Flow(affine(), path=LINEAR, prediction="data")
    with pytest.raises(ValueError, match="move the end"):
        fj.solve(heun, fj.solvers.Heun(), X, fj.times.uniform(4))


def test_bad_input():
    with pytest.raises(ValueError, match=r"prediction='epsilon'.*velocity, noise, data, score, v"):
        fj.Flow(affine(), path=LINEAR, prediction="epsilon")
    with pytest.raises((ValueError, TypeCheckError), match=r"path must be|'linear'"):
        fj.Flow(affine(), path="linear")
    flow = fj.Flow(affine(), path=LINEAR)
    with pytest.raises(ValueError, match="time first"):
        flow.velocity(X, jnp.full(4, 0.5))
    with pytest.raises(ValueError, match="time first"):
        flow.velocity(jnp.full(3, 0.5), X)
    with pytest.raises(ValueError, match="raw"):
        flow.evaluate(0.5, X, None, flow.init(X), to="flow")
    with pytest.raises(TypeError):
        fj.Flow(affine(), LINEAR)


def test_term_for_diffrax():
    """dx/dt = -x of diffrax's own solver, and the refusal of fields with a memory."""
    flow = fj.Flow(lambda x, t, cond: cond[:, None] * x, path=LINEAR, null=0.0)
    rate = jnp.array([-1.0, 0.0, 0.5, 1.0])
    solution = diffrax.diffeqsolve(fj.term(flow), diffrax.Tsit5(), 0.0, 1.0, 0.05, X, rate)
    np.testing.assert_allclose(solution.ys[0], X * jnp.exp(rate)[:, None], rtol=1e-5)
    with pytest.raises(ValueError, match="memory"):
        fj.term(fj.guide(flow, fj.guidance.APG(scale=2.0)))

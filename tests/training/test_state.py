"""What is trained of a network, and what else a state holds: running statistics, dropout, initial values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from flowjax._trees import flatten
from flowjax.models import MLP
from flowjax.objectives import Assembled, FlowMatching, Interpolation, Regression, with_keys
from flowjax.paths import Interpolant, Linear
from flowjax.training import Checkpoints, compile_step, create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Constant
from flowjax.training.trees import merge, trainable

pytestmark = pytest.mark.standard_promotion

ONE = {"average": Constant(decay=0.5)}


def data(rows=64):
    return np.random.default_rng(0).normal(3, 2, (rows, 2)).astype(np.float32)


def trained(build, objective, batch, steps, devices=1, accumulate=1, optimizer=None, state=None):
    """The state after some steps on one batch, and the metrics of each."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    optimizer, batch, key = optimizer or optax.adamw(1e-2, weight_decay=0.1), put_batch(batch, mesh), jax.random.key(1)
    if state is None:
        state = create_state(build, optimizer, mesh, averages=ONE, objective=objective, batch=batch)
    step, reports = compile_step(make_step(optimizer, ONE, accumulate=accumulate), state, objective, batch, key), []
    for _ in range(steps):
        state, metrics = step(state, objective, batch, key)
        reports.append(jax.device_get(metrics))
    return state, reports


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, momentum=0.8, rngs=rngs)
        self.out = nnx.Linear(2, 2, rngs=rngs)
        self.table = nnx.data(jnp.arange(2.0))  # an array of a module is a constant

    def __call__(self, x, t, cond):
        return self.out(self.norm(x)) + self.table[None]


def test_running_statistics_reach_those_of_the_data(tmp_path):
    x = data()
    batch = {"x1": x, "target": np.zeros_like(x)}
    state, reports = trained(lambda: Normed(nnx.Rngs(0)), Regression(), batch, 40)
    for network in (state.network, state.average):
        # Neither the optimiser nor the decay of weights moves them.
        np.testing.assert_allclose(network.norm.mean[...], x.mean(0), rtol=1e-3)
        np.testing.assert_allclose(network.norm.var[...], x.var(0), rtol=1e-3)
        np.testing.assert_array_equal(network.table, [0.0, 1.0])
        assert network.norm.use_running_average
    assert reports[-1]["loss"] < reports[0]["loss"]
    # In evaluation mode rows do not see each other.
    np.testing.assert_allclose(state.average(x[:1], 1.0, None), state.average(x, 1.0, None)[:1], rtol=1e-5)
    assert not {"norm.mean", "norm.var", "table"} & set(flatten(trainable(state.network)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        restored = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((restored, state)))


@pytest.mark.slow
def test_statistics_of_averages_parts_and_devices():
    x = data()
    batch = {"x1": x, "target": np.zeros_like(x)}
    build = lambda: Normed(nnx.Rngs(0))  # noqa: E731
    alone, spread, parts = (
        jax.device_get(trained(build, Regression(), batch, 2, optimizer=optax.sgd(0.1), **options)[0])
        for options in ({}, {"devices": 8}, {"accumulate": 2})
    )
    # After one step 0.2 of the data's, after two 0.36; the average is half way behind each.
    np.testing.assert_allclose(alone.network.norm.mean[...], 0.36 * x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(alone.average.norm.mean[...], (0.1 + 0.36) / 2 * x.mean(0), rtol=1e-4)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, spread, alone)
    np.testing.assert_allclose(parts.network.norm.mean[...], alone.network.norm.mean[...], rtol=1e-4)
    np.testing.assert_allclose(
        parts.network.norm.var[...],
        0.64 + 0.36 * (x[::2].var(0) + x[1::2].var(0)) / 2,
        rtol=1e-4,
    )
    # A bad step leaves them alone.
    spoiled, _ = trained(build, Regression(), {**batch, "x1": np.full_like(x, np.nan)}, 1)
    np.testing.assert_array_equal(spoiled.network.norm.mean[...], 0)
    assert spoiled.counts["network"].tolist() == [0, 1, 1]


def dropping(rate):
    return lambda: MLP(2, width=16, depth=1, dropout=rate, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_dropout_draws_its_keys_with_the_step():
    objective, batch = FlowMatching(path=Linear()), {"x1": data(16)}
    (alone, m), (spread, n), (parts, k) = (
        trained(dropping(0.5), objective, batch, 3, **options) for options in ({}, {"devices": 8}, {"accumulate": 4})
    )
    for state, reports in ((spread, n), (parts, k)):
        np.testing.assert_allclose([r["loss"] for r in reports], [r["loss"] for r in m], rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            *jax.device_get((state.networks, alone.networks)),
        )
    _, plain = trained(dropping(0.0), objective, batch, 3)
    # The output layer starts at zero: the first loss knows of no dropout.
    np.testing.assert_allclose(plain[0]["loss"], m[0]["loss"], rtol=1e-6)
    assert abs(plain[2]["loss"] - m[2]["loss"]) > 1e-3
    # Outside of training nothing is dropped, and the masks of a step are its own.
    x, t = jnp.ones((4, 2)), jnp.zeros(4)
    np.testing.assert_array_equal(alone.network(x, t)[0], alone.network(x, t)[1])
    draws = [objective.draw(jax.random.key(i), {"x1": x}) for i in range(2)]
    a, b = (with_keys(alone.network, d.seeds)(x, t) for d in draws)
    assert not np.allclose(a, b)
    assert not np.allclose(a[0], a[1])
    np.testing.assert_array_equal(with_keys(alone.network, None)(x, t), alone.network(x, t))
    with jax.debug_key_reuse(True):  # both halves of an antithetic pair have the same masks
        pairs = Interpolation(interpolant=Interpolant())
        loss, _ = pairs.loss(alone.network, pairs.draw(jax.random.key(0), {"x1": x}))
    assert np.isfinite(loss).all()


def test_networks_with_a_random_stream_of_their_own_are_refused():
    class Streaming(nnx.Module):
        def __init__(self):
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match=r"network 'network' holds a random stream, drop\..*key=.*without rngs="):
        create_state(Streaming, optax.sgd(1.0), make_mesh(devices=jax.devices()[:1]))


def test_parts_of_a_start_are_taken_and_misfits_refused():
    mesh, teacher = make_mesh(devices=jax.devices()[:1]), dropping(0.0)()
    build = lambda: MLP(2, width=16, depth=2, rngs=nnx.Rngs(7))  # noqa: E731
    state = create_state(build, optax.sgd(1.0), mesh, start={"network": teacher})
    old, new, fresh = (flatten(tree) for tree in (teacher, state.network, build()))
    assert set(old) < set(new)
    for name, leaf in new.items():
        np.testing.assert_array_equal(leaf, old.get(name, fresh[name]))
    narrow = lambda: MLP(2, width=8, depth=1, rngs=nnx.Rngs(0))  # noqa: E731
    with pytest.raises(ValueError, match=r"start of network 'network' does not fit: \S+ is \(.*\) there and \(.*\) h"):
        create_state(narrow, optax.sgd(1.0), mesh, start={"network": teacher})
    with pytest.raises(ValueError, match=r"does not fit: wings is \(2,\) there and absent here"):
        create_state(build, optax.sgd(1.0), mesh, start={"network": {"wings": jnp.ones(2)}})


def test_what_is_trained_of_plain_trees():
    tree = {"w": jnp.ones(2), "index": jnp.arange(3), "net": nnx.Linear(1, 1, rngs=nnx.Rngs(0))}
    part = trainable(tree)
    assert set(flatten(part)) == {"w", "net.kernel", "net.bias"}
    again = merge(tree, jax.tree.map(lambda leaf: leaf + 1, part))
    np.testing.assert_array_equal(again["w"], 2)
    np.testing.assert_array_equal(again["index"], tree["index"])
    assert jax.tree.structure(again) == jax.tree.structure(tree)


def test_frozen_parts_are_arguments_that_stay():
    """Adapters on a base: only they are trained, and another base needs no other program."""
    base = {"kernel": jnp.full((2, 2), 0.5, jnp.bfloat16)}

    def combine(adapter, frozen):
        kernel = frozen["base"]["kernel"].astype(jnp.float32) + adapter["kernel"]
        return lambda x, t, cond: x @ kernel

    objective = Assembled(FlowMatching(path=Linear()), frozen={"base": base}, combine=combine)
    mesh, key = make_mesh(devices=jax.devices()[:1]), jax.random.key(0)
    batch = put_batch({"x1": data(8)}, mesh)
    optimizer = optax.sgd(0.1)
    state = create_state(lambda: {"kernel": jnp.zeros((2, 2))}, optimizer, mesh, averages=ONE, start=None)
    step = compile_step(make_step(optimizer, ONE), state, objective, batch, key)
    losses = []
    for frozen in (base, {"kernel": base["kernel"] * 2}):
        given = Assembled(objective.objective, frozen={"base": frozen}, combine=combine)
        state, metrics = step(state, given, batch, key)
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1]
    np.testing.assert_array_equal(base["kernel"], 0.5)  # not donated
    assert set(flatten(state.network)) == {"kernel"}
    both = Assembled(objective.objective, frozen={"teacher": base})
    assert set(both.combine(dropping(0.0)(), base)) == {"network", "kernel"}
    assert set(both.combine({"student": dropping(0.0)()}, base)) == {"student", "kernel"}

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax import specs
from flowjax.objectives import FlowMatching
from flowjax.paths import Linear
from flowjax.training.ema import Constant, Power, Warmup
from flowjax.training.step import make_step

# optax promotes types inside its transformations; the keys of a step are reused on purpose: folded with the step.
pytestmark = pytest.mark.standard_promotion

COLLECTIVE = r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def collectives(program):
    """(operation, number of values) of every collective of a compiled program."""
    return [(kind, len(re.findall(r"\w+\[", shapes))) for shapes, kind in re.findall(COLLECTIVE, program)]


def test_options_out_of_range_are_refused(problem):
    with pytest.raises(ValueError, match="'average' is to follow 'b', but networks are network"):
        problem(averages={"average": (Warmup(decay=0.9), ("b",))})
    with pytest.raises(ValueError, match="accumulate must be at least 1"):
        make_step(optax.sgd(1.0), accumulate=0)
    with pytest.raises(ValueError, match="batch of 64 cannot be accumulated in 3 parts"):
        problem(accumulate=3)


@pytest.mark.slow
def test_loss_falls_and_average_follows(problem):
    p = problem()
    first = jax.device_get(p.state.network)
    rows = jax.tree.map(lambda a: jnp.repeat(a, 50, axis=0), p.batch)
    draws = p.objective.draw(jax.random.key(2), rows)  # a step has the noise of 64 rows: 12 % of its loss
    loss = jax.jit(lambda network: jnp.mean(p.objective.loss(network, draws)[0]))
    state, _ = p.run(p.state, 1)
    # After one update the average has moved 90 % of the way: decay(0) = 1 / 10.
    new, average = jax.device_get((state.network, state.average))
    expected = jax.tree.map(lambda a, b: a + 0.9 * (b - a), first, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, expected)
    state, after = p.run(state, 150)
    assert float(loss(state.network)) < 0.9 * float(loss(first))  # 0.80 to 0.84 on five seeds
    assert set(after) == {"loss", "gradient_norm", "mse", "skipped"}


def test_data_parallel_step_reduces_gradient_and_loss_only(problem):
    p = problem(devices=8)
    found = collectives(p.program)
    leaves = len(jax.tree.leaves(p.state.network))
    assert {kind for kind, _ in found} == {"all-reduce"}
    # One value per parameter, the loss and the one metric of the objective; XLA may merge equal or small ones.
    assert sum(count for _, count in found) <= leaves + 2


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_training_equals_one_device(problem, sizes):
    alone, spread = problem(), problem(devices=8, **sizes)
    if "fsdp" in sizes:
        kernel = spread.state.network.layers[0].inner.kernel
        assert kernel.sharding.spec[0] == "fsdp"
        assert kernel.addressable_shards[0].data.shape[0] == kernel.shape[0] // sizes["fsdp"]
    results = [jax.device_get(p.run(p.state, 5)[0]) for p in (alone, spread)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *results)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), *jax.device_get((a, b)))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_accumulated_step_equals_the_large_batch(problem, devices):
    whole, parts = problem(devices=devices), problem(devices=devices, accumulate=4)
    (a, m), (b, n) = whole.run(whole.state, 1), parts.run(parts.state, 1)
    # Adam divides by the root of the second moment: tiny gradients would magnify rounding, so moments are compared.
    close(a.optimizer, b.optimizer, rtol=1e-4, atol=1e-7)
    close(m, n, rtol=1e-5)
    (a, _), (b, _) = whole.run(a, 4), parts.run(b, 4)
    close(a.network, b.network, rtol=2e-4, atol=2e-5)
    if devices > 1:
        # The rows of a part lie where they were: no example changes its device.
        assert {kind for kind, _ in collectives(parts.program)} == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"devices": 1}, {"devices": 8}, {"devices": 8, "fsdp": 2, "tensor": 2}])
def test_steps_that_are_not_finite_change_nothing_but_counters(problem, sizes):
    p = problem(averages={"slow": Constant(decay=0.99), "power": Power(std=0.1)}, **sizes)
    state, _ = p.run(p.state, 2)
    before = jax.device_get(state)
    state, metrics = p.run(state, 2, spoil={2, 3})
    after = jax.device_get(state)
    assert not np.isfinite(metrics["loss"])
    assert (int(after.step), after.counts["network"].tolist(), float(metrics["skipped"])) == (4, [2, 2, 2], 2.0)
    for name in ("networks", "optimizer", "averages"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    state, metrics = p.run(state, 2, spoil={5})
    assert jax.device_get(state).counts["network"].tolist() == [3, 1, 3]
    state, metrics = p.run(state, 1)
    assert jax.device_get(state).counts["network"].tolist() == [4, 0, 3]
    assert np.isfinite(metrics["loss"])


@pytest.mark.slow
def test_gradient_that_is_not_finite_is_noticed_behind_a_finite_loss(problem):
    class Kink(FlowMatching):
        def loss(self, networks, draws):
            loss, metrics = super().loss(networks, draws)
            return loss + jax.numpy.sqrt(0 * loss), metrics

    jax.tree_util.register_pytree_node(Kink, lambda o: ((), o), lambda o, _: o)
    p = problem(objective=Kink(path=Linear()))
    first = jax.device_get(p.state.network)
    state, metrics = p.run(p.state, 1)
    assert np.isfinite(metrics["loss"])
    assert jax.device_get(state).counts["network"].tolist() == [0, 1, 1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.network), first)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [np.nan, np.inf])
def test_updates_that_are_not_finite_are_noticed_behind_a_finite_gradient(problem, rate):
    p = problem(optimizer=optax.sgd(rate))
    first = jax.device_get(p.state.network)
    state, metrics = p.run(p.state, 1)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["gradient_norm"])
    assert jax.device_get(state).counts["network"].tolist() == [0, 1, 1]
    for tree in (state.network, state.average):
        close(tree, first, rtol=0)


@pytest.mark.slow
def test_several_averages_follow_their_laws(problem):
    laws = {"slow": Constant(decay=0.99), "power": Power(std=0.1), "same": Warmup(decay=0.9)}
    p = problem(averages=laws)
    state, expected = p.state, dict.fromkeys(laws, jax.device_get(p.state.network))
    for step in range(3):
        state, _ = p.run(state, 1)
        for name, law in laws.items():
            weight = float(law.weight(jax.numpy.int32(step)))
            pair = expected[name], jax.device_get(state.network)
            expected[name] = jax.tree.map(lambda a, b, w=weight: (1 - w) * a + w * b, *pair)
    for name in laws:
        close(state.averages[name], expected[name], atol=1e-5)
    close(state.averages["same"], state.average, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_objectives_that_ask_get_a_target_network(problem, accumulate):
    """The loss is the distance to the target, which must be the average before the step and have no gradient."""

    class Distance(FlowMatching):
        def loss(self, networks, draws):
            assert set(networks) == {"network", "target"}
            arguments = draws.x1, draws.t, draws.cond
            error = (networks["network"](*arguments) - networks["target"](*arguments) + 1) ** 2
            return error.mean(1), {}

    jax.tree_util.register_pytree_node(Distance, lambda o: ((), o), lambda o, _: o)
    p = problem(objective=Distance(path=Linear()), averages={"target": Constant(decay=0.5)}, accumulate=accumulate)
    start = jax.device_get(p.state.network)
    state, metrics = p.run(p.state, 1)
    np.testing.assert_allclose(metrics["loss"], 1.0, rtol=1e-6)
    close(
        state.averages["target"],
        jax.tree.map(lambda a, b: (a + b) / 2, start, jax.device_get(state.network)),
        atol=1e-6,
    )
    _, metrics = p.run(state, 1)
    assert float(metrics["loss"]) < 0.999


@pytest.mark.slow
def test_loss_runs_under_pmap(problem):
    p = problem()
    network, objective = p.state.network, p.objective
    draws = objective.draw(jax.random.key(0), p.batch)
    split = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(8, -1, *leaf.shape[1:]), draws)

    def mean(network, draws):
        return jax.lax.pmean(objective.loss(network, draws)[0].mean(), "devices")

    together = jax.pmap(mean, axis_name="devices", in_axes=(None, 0))(jax.device_get(network), split)
    np.testing.assert_allclose(together, objective.loss(network, draws)[0].mean(), rtol=1e-5)


def test_long_gradients_are_cut_to_the_length_of_the_config():
    """Adam forgets the length of a single gradient, not that of one among others."""

    def updates(clip, *gradients):
        optimizer = specs.build("optimizer", {"name": "adamw", "options": {"rate": 2e-3, "clip": clip}}, steps=2)
        state = optimizer.init(jnp.ones(2))
        for gradient in gradients:
            update, state = optimizer.update(gradient, state, jnp.ones(2))
        return update

    g, h = jnp.array([30.0, -40.0]), jnp.array([0.1, 0.2])
    np.testing.assert_allclose(updates(2.0, g, h), updates(1e9, g / 25, h), rtol=1e-5)
    assert not np.allclose(updates(2.0, g, h), updates(1e9, g, h), rtol=0.1)

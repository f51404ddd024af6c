import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.training.step import ema_decay, make_step

# optax promotes types inside its transformations; the keys of a step are reused on purpose: folded with the step.
pytestmark = pytest.mark.standard_promotion

COLLECTIVE = r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def collectives(program):
    """(operation, number of values) of every collective of a compiled program."""
    return [(kind, len(re.findall(r"\w+\[", shapes))) for shapes, kind in re.findall(COLLECTIVE, program)]


def test_average_forgets_the_start_and_reaches_its_limit():
    decays = [float(ema_decay(jnp.int32(n), 0.99)) for n in (0, 90, 10_000)]
    np.testing.assert_allclose(decays, [0.1, 0.91, 0.99], rtol=1e-6)
    with pytest.raises(ValueError, match="decay"):
        make_step(optax.sgd(1.0), 1.0)


def test_loss_falls_and_average_follows(problem):
    p = problem()
    first = jax.device_get(p.state.network)
    state, before = p.run(p.state, 1)
    # After one update the average has moved 90 % of the way: decay(0) = 1 / 10.
    new, average = jax.device_get((state.network, state.average))
    expected = jax.tree.map(lambda a, b: a + 0.9 * (b - a), first, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, expected)
    state, after = p.run(state, 150)
    assert float(after["loss"]) < 0.9 * float(before["loss"])
    assert set(after) == {"loss", "gradient_norm", "mse"}


def test_data_parallel_step_reduces_gradient_and_loss_only(problem):
    p = problem(devices=8)
    found = collectives(p.program)
    leaves = len(jax.tree.leaves(p.state.network))
    assert {kind for kind, _ in found} == {"all-reduce"}
    # One value per parameter, the loss and the one metric of the objective; XLA may merge equal or small ones.
    assert sum(count for _, count in found) <= leaves + 2


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_training_equals_one_device(problem, sizes):
    alone, spread = problem(), problem(devices=8, **sizes)
    if "fsdp" in sizes:
        kernel = spread.state.network.layers[0].inner.kernel
        assert kernel.sharding.spec[0] == "fsdp"
        assert kernel.addressable_shards[0].data.shape[0] == kernel.shape[0] // sizes["fsdp"]
    results = [jax.device_get(p.run(p.state, 5)[0]) for p in (alone, spread)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *results)


def test_loss_runs_under_pmap(problem):
    p = problem()
    network, objective = p.state.network, p.objective
    draws = objective.draw(jax.random.key(0), p.batch)
    split = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(8, -1, *leaf.shape[1:]), draws)

    def mean(network, draws):
        return jax.lax.pmean(objective.loss(network, draws)[0].mean(), "devices")

    together = jax.pmap(mean, axis_name="devices", in_axes=(None, 0))(jax.device_get(network), split)
    np.testing.assert_allclose(together, objective.loss(network, draws)[0].mean(), rtol=1e-5)

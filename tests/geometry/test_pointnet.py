"""The classifier of clouds: symmetries, masks, and a few steps of training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from flowjax import training
from flowjax.geometry import PointNet, shapes
from flowjax.geometry import point_sampling as ps
from flowjax.objectives import Classification


@pytest.fixture(scope="module")
def network():
    return PointNet(4, width=16, neighbours=8, rngs=nnx.Rngs(0))


def clouds(count=3, points=40):
    return jax.random.normal(jax.random.key(1), (count, points, 3))


@pytest.mark.slow
def test_order_and_padding_do_not_matter(network):
    x = clouds()
    mask, index = jnp.ones((3, 40)), jnp.broadcast_to(jnp.arange(10, dtype=jnp.int32), (3, 10))
    logits = network(x, mask, index)
    assert logits.shape == (3, 4)
    np.testing.assert_allclose(network(x, mask, index[:, ::-1]), logits, atol=1e-5)
    order = np.random.default_rng(0).permutation(40)
    place = jnp.asarray(np.argsort(order), jnp.int32)[index]
    np.testing.assert_allclose(network(x[:, order], mask, place), logits, atol=1e-5)
    for filling in (9.0, np.nan):
        padded = jnp.concatenate([x, jnp.full((3, 5, 3), filling)], 1)
        with_none = jnp.concatenate([index, jnp.full((3, 2), -1, jnp.int32)], 1)
        given = jnp.concatenate([mask, jnp.zeros((3, 5))], 1)
        np.testing.assert_allclose(network(padded, given, with_none), logits, atol=1e-5)
    assert np.isfinite(network(x, jnp.zeros((3, 40)), jnp.full((3, 10), -1, jnp.int32))).all()


@pytest.mark.slow
def test_a_cloud_does_not_see_the_others(network):
    x = clouds()
    mask, index = jnp.ones((3, 40)), jnp.zeros((3, 4), jnp.int32)
    np.testing.assert_allclose(network(x[1:2], mask[1:2], index[1:2]), network(x, mask, index)[1:2], atol=1e-5)


def test_key_points_must_exist_and_without_one_nothing_is_known(network):
    x = clouds().at[0, 7].set(jnp.nan)
    mask = jnp.ones((3, 40)).at[1, 7].set(0)
    with_it, without = (jnp.broadcast_to(jnp.array(row, jnp.int32), (3, 4)) for row in ([1, 2, 3, 7], [1, 2, 3, -1]))
    both = jax.jit(lambda index: network(x, mask, index))
    np.testing.assert_allclose(both(with_it)[:2], both(without)[:2], atol=1e-6)
    assert np.abs(both(with_it)[2] - both(without)[2]).max() > 1e-3
    assert not both(jnp.full((3, 4), -1, jnp.int32)).any()
    with pytest.raises(ValueError, match="groups of 8 neighbours need clouds of as many points, got 5"):
        network(x[:, :5], mask[:, :5], jnp.zeros((3, 4), jnp.int32))


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_training_by_the_engine_separates_shapes():
    def prepare(key, x):
        return x, jnp.ones(x.shape[:2]), jax.vmap(lambda x: ps.farthest_points(x, 8))(x)

    optimizer = optax.adam(1e-2)
    mesh = training.make_mesh(devices=jax.devices()[:1])
    state = training.create_state(lambda: PointNet(4, 16, 8, rngs=nnx.Rngs(0)), optimizer, mesh)
    step = jax.jit(training.make_step(optimizer))
    labels = jnp.arange(32, dtype=jnp.int32) % 4
    draw = jax.jit(lambda key: jax.vmap(lambda k, c: shapes.sample(k, c, 48))(jax.random.split(key, 32), labels))
    accuracy = []
    for i in range(40):
        batch = {"x1": draw(jax.random.fold_in(jax.random.key(0), i)), "cond": labels}
        state, report = step(state, Classification(prepare=prepare, smoothing=0.1), batch, jax.random.key(1))
        accuracy.append(float(report["accuracy"]))
    assert np.mean(accuracy[-5:]) > 0.5  # four classes
    assert np.mean(accuracy[-5:]) > np.mean(accuracy[:5]) + 0.2

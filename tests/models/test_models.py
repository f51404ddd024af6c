"""Networks: initial values, symmetries, derivatives, names and types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import MLP, DiT
from flowjax.models.dit import positions
from flowjax.models.layers import time_features

NAMES = {"embed", "mlp", "heads", "patch", "classes", "time", None}


@functools.cache
def dit(**options):
    options = {"num_classes": 3} | options
    return jax.jit(lambda: DiT((8, 4, 2), patch=2, width=16, depth=2, heads=2, rngs=nnx.Rngs(0), **options))()


@functools.cache
def mlp(**options):
    options = {"num_classes": 3} | options
    return jax.jit(lambda: MLP(2, width=16, depth=2, rngs=nnx.Rngs(0), **options))()


@jax.jit
def call(network, x, t, cond=None, end=None):
    return network(x, t, cond, end=end)


def inputs(network, batch=5):
    shape = (8, 4, 2) if isinstance(network, DiT) else (2,)
    x = jax.random.normal(jax.random.key(1), (batch, *shape))
    return x, jnp.linspace(0.1, 0.9, batch), jnp.arange(batch, dtype=jnp.int32) % 4


@jax.jit
def awake(network):
    """The network with every parameter moved off its initial value, so that zero layers take part."""
    leaves, tree = jax.tree.flatten(network)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return jax.tree.unflatten(tree, [a + 0.2 * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys)])


both = pytest.mark.parametrize("build", [dit, mlp])


def test_dit_parameter_count():
    """Counted by hand from the layers of the paper, for two settings."""
    for w, depth, m, p, second in ((16, 2, 64, 8, 1), (16, 2, 32, 8, 2)):
        network = dit(mlp_ratio=m / w, second_time=second == 2)
        attention = (w * 3 * w + 3 * w) + (w * w + w)
        feed_forward = (w * m + m) + (m * w + w)
        modulation = w * 6 * w + 6 * w
        times = second * ((256 * w + w) + (w * w + w))
        ends = (p * w + w) + (w * p + p) + (w * 2 * w + 2 * w)
        expected = depth * (attention + feed_forward + modulation) + times + ends + 4 * w
        documented = (
            depth * (10 * w * w + 2 * w * m + 11 * w + m)
            + second * (257 * w + w * w + w)
            + (3 + 1) * w + 2 * w * w + 3 * w + 2 * p * w + p
        )  # fmt: skip
        assert sum(a.size for a in jax.tree.leaves(network)) == expected == documented


@both
def test_starts_as_the_zero_function(build):
    network = build()
    assert not np.any(call(network, *inputs(network)))


@both
def test_every_parameter_names_its_axes(build):
    network = build(second_time=True, cond_dim=4)
    found = set()
    for path, variable in nnx.to_flat_state(nnx.state(network, nnx.Param)):
        names = variable.get_metadata()["out_sharding"]
        assert len(names) == variable[...].ndim, path
        assert set(names) <= NAMES, path
        found |= set(names)
    assert len(jax.tree.leaves(network)) == len(nnx.to_flat_state(nnx.state(network, nnx.Param)))
    assert found >= {"embed", "mlp", "time", "classes"}


@both
def test_builds_inside_a_mesh_and_inside_jit(build):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(build.__wrapped__)
    for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(build())):
        assert a.shape == b.shape


@both
def test_jit_equals_eager_and_batch_mates_do_not_matter(build):
    network = awake(build())
    x, t, cond = inputs(network)
    y = network(x, t, cond)
    assert y.shape == x.shape
    assert float(jnp.std(y)) > 1e-3
    np.testing.assert_allclose(call(network, x, t, cond), y, atol=2e-5)
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(call(network, x[order], t[order], cond[order]), y[order], atol=2e-5)
    np.testing.assert_allclose(call(network, x[1:3], t[1:3], cond[1:3]), y[1:3], atol=2e-5)


@both
def test_inputs_matter(build):
    network = awake(build())
    x, t, cond = inputs(network)
    y = call(network, x, t, cond)
    for other in ((x + 0.1, t, cond), (x, t + 0.05, cond), (x, t, (cond + 1) % 4)):
        assert float(jnp.min(jnp.max(jnp.abs(call(network, *other) - y).reshape(5, -1), axis=1))) > 1e-5


@both
def test_gradients_and_tangents_are_finite_and_right(build):
    network = awake(build(second_time=True))
    x, t, cond = inputs(network)

    @jax.jit
    def derivatives(network, x, t):
        def f(x, t):
            return network(x, t, cond, end=jnp.full(5, 0.95))

        return f(x, t), jax.jvp(f, (x, t), (jnp.ones_like(x), jnp.ones_like(t)))[1]

    h = 2e-3
    slope = derivatives(network, x, t)[1]
    numeric = (derivatives(network, x + h, t + h)[0] - derivatives(network, x - h, t - h)[0]) / (2 * h)
    assert float(jnp.linalg.norm(slope - numeric)) < 0.02 * float(jnp.linalg.norm(slope))

    def loss(network):
        return jnp.mean(jax.jvp(lambda x: network(x, t, cond, end=t), (x,), (jnp.ones_like(x),))[1] ** 2)

    gradient = jax.jit(jax.grad(loss))(network)
    assert isinstance(gradient, type(network))
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(gradient))
    assert all(bool(jnp.any(a != 0)) for a in jax.tree.leaves(gradient.unembed.kernel))


@both
def test_end_defaults_to_the_time_itself(build):
    network = awake(build(second_time=True))
    x, t, cond = inputs(network)
    np.testing.assert_allclose(call(network, x, t, cond), call(network, x, t, cond, end=t), atol=1e-6)
    assert float(jnp.max(jnp.abs(call(network, x, t, cond, end=jnp.ones(5)) - call(network, x, t, cond)))) > 1e-4
    with pytest.raises(ValueError, match="second_time"):
        call(build(), x, t, cond, end=t)


@both
def test_conditions(build):
    network = awake(build())
    x, t, _ = inputs(network)
    null = jnp.full(5, 3, jnp.int32)
    np.testing.assert_allclose(call(network, x, t), call(network, x, t, null), atol=1e-6)
    assert bool(jnp.all(jnp.isnan(call(network, x, t, jnp.full(5, 4, jnp.int32)))))
    vector = awake(build(num_classes=None, cond_dim=4))
    assert float(jnp.max(jnp.abs(call(vector, x, t, jnp.ones((5, 4))) - call(vector, x, t)))) > 1e-4
    two = awake(build(cond_dim=4))
    np.testing.assert_allclose(
        call(two, x, t), call(two, x, t, {"label": null, "vector": jnp.zeros((5, 4))}), atol=1e-6
    )
    with pytest.raises(ValueError, match="takes no condition"):
        call(build(num_classes=None), x, t, null)


@both
def test_types(build):
    network = awake(build(dtype=jnp.bfloat16))
    x, t, cond = inputs(network)
    assert {a.dtype for a in jax.tree.leaves(network)} == {jnp.dtype("float32")}
    y = call(network, x, t, cond)
    assert y.dtype == jnp.float32
    reference = call(awake(build()), x, t, cond)
    assert float(jnp.linalg.norm(y - reference)) < 0.1 * float(jnp.linalg.norm(reference))
    assert {a.dtype for a in jax.tree.leaves(build(param_dtype=jnp.bfloat16))} == {jnp.dtype("bfloat16")}


@both
def test_pmap_takes_the_network_as_an_argument(build):
    network = awake(build())
    x, t, cond = inputs(network, batch=4)
    shards = [a.reshape(2, 2, *a.shape[1:]) for a in (x, t, cond)]
    replicated = jax.tree.map(lambda a: jnp.stack([a, a]), network)
    y = jax.pmap(lambda n, x, t, c: n(x, t, c), devices=jax.devices()[:2])(replicated, *shards)
    np.testing.assert_allclose(y.reshape(x.shape), call(network, x, t, cond), atol=2e-5)


@both
def test_refuses_misshapen_inputs(build):
    network = build()
    x, t, cond = inputs(network)
    with pytest.raises(ValueError, match="expected x"):
        call(network, x[:, :1], t, cond)


def test_dit_refuses_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="does not divide"):
        DiT((8, 7, 1), patch=2, width=16, depth=1, heads=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="multiple"):
        DiT((8, 8, 1), patch=2, width=16, depth=1, heads=3, rngs=nnx.Rngs(0))


def test_dit_sees_where_patches_are():
    """Swapping the halves of an image does not just swap the output: positions are known."""
    network = awake(dit())
    x, t, cond = inputs(network)
    swapped = jnp.concatenate([x[:, 4:], x[:, :4]], axis=1)
    y, z = call(network, x, t, cond), call(network, swapped, t, cond)
    assert float(jnp.max(jnp.abs(jnp.concatenate([z[:, 4:], z[:, :4]], axis=1) - y))) > 1e-3
    codes = positions(4, 2, 16)
    assert codes.shape == (8, 16)
    assert len(np.unique(codes.round(6), axis=0)) == 8


def test_time_features_have_the_stated_frequencies():
    t = np.array([0.0, 0.37])
    features = time_features(jnp.asarray(t, jnp.float32), 8, 50.0)
    frequencies = 50.0 / np.array([1.0, 10.0, 100.0, 1000.0])
    expected = np.concatenate([np.cos(np.outer(t, frequencies)), np.sin(np.outer(t, frequencies))], axis=1)
    np.testing.assert_allclose(features, expected, atol=1e-5)

"""Networks: initial values, symmetries, derivatives, names and types."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import BatchNormed

from flowjax.models import MLP, DiT, UNet
from flowjax.models.dit import positions
from flowjax.models.embeddings import Condition, TimeEmbedding, embed_times, time_features
from flowjax.models.layers import drop

NAMES = {"layers", "embed", "mlp", "heads", "patch", "classes", "time", None}
SMALL_DIT = {"image_shape": (8, 4, 2), "patch": 2, "width": 16, "depth": 2, "heads": 2}
SMALL_UNET = {"image_shape": (4, 2, 3), "channels": 8, "multipliers": (1, 1), "blocks": 0, "attention_at": (2,)}
NETWORKS = {
    "MLP": functools.partial(MLP, dim=2, width=16, depth=2),
    "DiT": functools.partial(DiT, **SMALL_DIT),
    "scanned": functools.partial(DiT, **SMALL_DIT, scan=True),
    "UNet": functools.partial(UNet, **SMALL_UNET, head=4, groups=4),
}


def make(name, **options):
    return NETWORKS[name](**({"num_classes": 3} | options), rngs=nnx.Rngs(0))


@functools.cache
def network(name, **options):
    """A network with random parameters, none at its initial value, so that zero layers take part; compiles nothing."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(make, name, **options))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 4, a.dtype), shapes)


@jax.jit
def call(network, x, t, cond, end, key=None):
    return network(x, t, cond, end=end, key=key)


def inputs(name, batch=4):
    shape = NETWORKS[name].keywords.get("image_shape", (2,))
    x = np.random.default_rng(1).normal(size=(batch, *shape)).astype(np.float32)
    return jnp.asarray(x), jnp.linspace(0.1, 0.8, batch), jnp.arange(batch, dtype=jnp.int32)


each = pytest.mark.parametrize("name", NETWORKS)


@each
def test_starts_as_the_zero_function(name):
    """The output layer starts at zero, whatever the layers in front of it."""
    start = jax.tree.map(lambda a: a, network(name))
    start.unembed = jax.jit(lambda: make(name).unembed)()
    assert not np.any(call(start, *inputs(name), None))
    assert np.any(call(network(name), *inputs(name), None))


@each
def test_every_parameter_names_its_axes(name):
    shapes = jax.eval_shape(functools.partial(make, name, second_time=True, cond_dim=4))
    variables = nnx.to_flat_state(nnx.state(shapes, nnx.Param))
    found = set()
    for path, variable in variables:
        names = variable.get_metadata()["out_sharding"]
        assert len(names) == len(variable.shape), path
        assert set(names) <= NAMES, path
        assert ("layers" in names) == (name == "scanned" and path[0] == "blocks"), path
        found |= set(names)
    assert len(jax.tree.leaves(shapes)) == len(variables)
    assert found >= {"embed", "mlp", "time", "classes"}


@each
def test_builds_inside_a_mesh_and_inside_jit(name):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(functools.partial(make, name))
    for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(network(name))):
        assert a.shape == b.shape


def test_jit_equals_eager():
    x, t, cond = inputs("MLP")
    end = jnp.full(4, 0.9)
    both = network("MLP", second_time=True)
    np.testing.assert_allclose(call(both, x, t, cond, end), both(x, t, cond, end=end), atol=2e-5)


@each
def test_every_input_matters_and_batch_mates_do_not(name):
    everything = network(name, second_time=True, cond_dim=4)
    x, t, label = inputs(name)
    vector, end = jnp.ones((4, 4)), jnp.full(4, 0.9)
    y = call(everything, x, t, {"label": label, "vector": vector}, end)
    assert float(jnp.std(y)) > 1e-3
    for other in (
        (x + 0.1, t, label, vector, end),
        (x, t + 0.05, label, vector, end),
        (x, t, (label + 1) % 4, vector, end),
        (x, t, label, vector + 0.1, end),
        (x, t, label, vector, end + 0.1),
    ):
        first = [jnp.concatenate([a[:2], b[2:]]) for a, b in zip((x, t, label, vector, end), other)]
        z = call(everything, first[0], first[1], {"label": first[2], "vector": first[3]}, first[4])
        np.testing.assert_allclose(z[:2], y[:2], atol=2e-5)
        assert float(jnp.min(jnp.max(jnp.abs(z - y)[2:].reshape(2, -1), axis=1))) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MLP", "scanned"])
def test_tangents_are_right(name):
    """Along a direction in all inputs, against central differences of the same program."""
    several = jax.tree.map(lambda a: a / 2, network(name, second_time=True, time_scale=5.0))
    x, t, cond = inputs(name)

    @jax.jit
    def along(h):
        def f(h):
            return several(x + h, t + h, cond, end=jnp.full(4, 0.9))

        return jax.jvp(f, (h,), (jnp.ones(()),))

    h = 2e-3
    slope = along(jnp.zeros(()))[1]
    numeric = (along(jnp.asarray(h))[0] - along(jnp.asarray(-h))[0]) / (2 * h)
    assert float(jnp.linalg.norm(slope - numeric)) < 0.02 * float(jnp.linalg.norm(slope))


@each
def test_gradients_of_tangents(name):
    """Mean-flow losses differentiate a network's tangent by its parameters; computed for one, traced for all."""
    several = network(name)
    x, t, cond = inputs(name)

    def loss(network):
        return jnp.mean(jax.jvp(lambda x: network(x, t, cond), (x,), (jnp.ones_like(x),))[1] ** 2)

    gradient = jax.jit(jax.grad(loss))(several) if name == "MLP" else jax.eval_shape(jax.grad(loss), several)
    assert isinstance(gradient, type(several))
    if name == "MLP":
        assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(gradient))
        assert bool(jnp.any(gradient.unembed.kernel[...] != 0))


@pytest.mark.parametrize("name", ["MLP", "scanned", "UNet"])
def test_pmap_and_vmap(name):
    """One sample at a time, on two devices, is the same as the batch."""
    several = network(name)
    x, t, cond = inputs(name)
    shards = [a.reshape(2, 2, *a.shape[1:]) for a in (x, t, cond)]
    replicated = jax.tree.map(lambda a: jnp.stack([a, a]), several)

    def samples(network, *shard):
        return jax.vmap(lambda x, t, c: network(x[None], t[None], c[None])[0])(*shard)

    y = jax.pmap(samples, devices=jax.devices()[:2])(replicated, *shards)
    np.testing.assert_allclose(y.reshape(x.shape), call(several, x, t, cond, None), atol=2e-5)


@each
def test_types(name):
    half = network(name, dtype=jnp.bfloat16)
    x, t, cond = inputs(name)
    assert {a.dtype for a in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    y, reference = call(half, x, t, cond, None), call(network(name), x, t, cond, None)
    assert y.dtype == jnp.float32
    assert 0 < float(jnp.linalg.norm(y - reference)) < 0.1 * float(jnp.linalg.norm(reference))
    stored = jax.eval_shape(functools.partial(make, name, param_dtype=jnp.bfloat16))
    assert {a.dtype for a in jax.tree.leaves(stored)} == {jnp.dtype("bfloat16")}


@each
def test_refuses_misuse(name):
    x, t, cond = inputs(name)
    with pytest.raises(ValueError, match="expected x"):
        call(network(name), x[:, :1], t, cond, None)
    with pytest.raises(ValueError, match="second_time"):
        call(network(name), x, t, cond, t)


@each
def test_dropout(name):
    """With one key per example: a row depends on its own key, not on its batch mates; without keys nothing drops."""
    x, t, cond = inputs(name)
    half = network(name, dropout=0.5)
    keys = jax.random.split(jax.random.key(0), 4)
    y = call(half, x, t, cond, None, keys)
    other = call(half, x, t, cond, None, jnp.concatenate([keys[:2], jax.random.split(jax.random.key(1), 2)]))
    np.testing.assert_array_equal(other[:2], y[:2])
    assert float(jnp.min(jnp.max(jnp.abs(other - y)[2:].reshape(2, -1), axis=1))) > 1e-3
    plain = call(network(name), x, t, cond, None)
    assert float(jnp.min(jnp.max(jnp.abs(plain - y).reshape(4, -1), axis=1))) > 1e-3
    np.testing.assert_array_equal(call(half, x, t, cond, None), plain)
    with pytest.raises(ValueError, match=r"one key for each of 4 examples, such as jax.random.split\(key, 4\), got"):
        call(half, x, t, cond, None, jax.random.key(0))
    with pytest.raises(ValueError, match="dropout must be in"):
        make(name, dropout=1.0)


def test_dropout_is_the_same_in_both_layouts_and_when_recomputed():
    x, t, cond = inputs("scanned")
    keys = jax.random.split(jax.random.key(0), 4)
    scanned = network("scanned", dropout=0.5)
    recomputed = scanned.with_scan(True)
    recomputed.remat = True
    y = call(scanned, x, t, cond, None, keys)
    for other in (scanned.with_scan(False), recomputed):
        np.testing.assert_allclose(call(other, x, t, cond, None, keys), y, atol=2e-5)


def test_dropped_values_keep_their_mean():
    h = jnp.full((2, 10_000), 3.0)
    y = np.asarray(drop(h, 0.2, jax.random.split(jax.random.key(0), 2)))
    assert set(np.unique(y).round(4)) == {0.0, 3.75}
    np.testing.assert_allclose((y == 0).mean(1), 0.2, atol=0.02)  # five standard deviations


def test_end_defaults_to_the_time_itself():
    time, span = (TimeEmbedding(8, scale=10.0, features=16, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    network = types.SimpleNamespace(time=time, span=span, strength=None)
    t = jnp.linspace(0.1, 0.9, 3)
    plain = embed_times(network, t, t, None)
    np.testing.assert_allclose(embed_times(network, t, None, None), plain, atol=1e-7)
    assert float(jnp.max(jnp.abs(embed_times(network, t, t + 0.1, None) - plain))) > 1e-6


def test_scales_of_guidance_make_no_difference_at_first():
    """A student with this input begins as its teacher; once it has learned, the scale matters, and None is 1."""
    time = TimeEmbedding(8, scale=10.0, features=16, rngs=nnx.Rngs(0))
    strength = TimeEmbedding(8, scale=10.0, features=16, zero=True, rngs=nnx.Rngs(1))
    network, t, scale = (
        types.SimpleNamespace(time=time, span=None, strength=strength),
        jnp.full(3, 0.5),
        jnp.arange(3.0),
    )
    np.testing.assert_array_equal(embed_times(network, t, None, scale), time(t))
    strength.outer.kernel[...] += 1.0
    moved = embed_times(network, t, None, scale)
    assert float(jnp.min(jnp.abs(moved[1:] - moved[:-1]).max(-1))) > 1e-3
    np.testing.assert_array_equal(embed_times(network, t, None, None)[1], moved[1])
    network.strength = None
    with pytest.raises(ValueError, match="guidance= needs a network built with guidance=True"):
        embed_times(network, t, None, scale)


def test_conditions():
    options = {"width": 8, "rngs": nnx.Rngs(0)}
    label, vector, both = (
        Condition(num_classes=3, **options),
        Condition(num_classes=None, cond_dim=4, **options),
        Condition(num_classes=3, cond_dim=4, **options),
    )
    null, ones = jnp.full(5, 3, jnp.int32), jnp.ones((5, 4))

    def vectors(condition, cond):
        return jnp.broadcast_to(condition(cond, 5), (5, 8))

    np.testing.assert_array_equal(vectors(label, None), vectors(label, null))
    assert bool(jnp.any(vectors(label, null) != vectors(label, null - 1)))
    assert bool(jnp.all(jnp.isnan(vectors(label, null + 1))))
    np.testing.assert_array_equal(vectors(vector, None), np.zeros((5, 8)))
    assert bool(jnp.any(vectors(vector, ones) != 0))
    np.testing.assert_array_equal(vectors(both, None), vectors(both, {"label": null, "vector": 0 * ones}))
    assert bool(jnp.any(vectors(both, {"label": null, "vector": ones}) != vectors(both, None)))
    with pytest.raises(ValueError, match="takes no condition"):
        Condition(num_classes=None, **options)(null, 5)


def test_time_features_have_the_stated_frequencies():
    t = np.array([0.0, 0.37])
    features = time_features(jnp.asarray(t, jnp.float32), 8, 50.0)
    frequencies = 50.0 / np.array([1.0, 10.0, 100.0, 1000.0])
    expected = np.concatenate([np.cos(np.outer(t, frequencies)), np.sin(np.outer(t, frequencies))], axis=1)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_dit_sees_where_patches_are():
    """Swapping the halves of an image does not just swap the output: positions are known."""
    x, t, cond = inputs("DiT")
    swapped = jnp.concatenate([x[:, 4:], x[:, :4]], axis=1)
    y, z = (call(network("DiT"), a, t, cond, None) for a in (x, swapped))
    assert float(jnp.max(jnp.abs(jnp.concatenate([z[:, 4:], z[:, :4]], axis=1) - y))) > 1e-3
    codes = positions(4, 2, 16)
    assert codes.shape == (8, 16)
    assert len(np.unique(codes.round(6), axis=0)) == 8


def test_a_network_whose_running_statistics_reach_those_of_the_data():
    """The one that tests of training use: in a plain loop, and unchanged in evaluation mode."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * rng.normal(size=(2000, 2)), jnp.float32)
    t = jnp.asarray(rng.random(2000), jnp.float32)
    several = BatchNormed(2, momentum=0.5, rngs=nnx.Rngs(0))
    for _ in range(12):
        several(x, t)
    np.testing.assert_allclose(several.norm.mean[...][:2], x.mean(0), rtol=5e-3)
    np.testing.assert_allclose(several.norm.var[...][:2], x.var(0), rtol=5e-3)
    several.eval()
    before = several.norm.mean[...]
    several(x + 1, t)
    np.testing.assert_array_equal(several.norm.mean[...], before)

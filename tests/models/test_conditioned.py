"""Conditions by name: encoders, sums, what stands for none, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax.models import MLP, Conditioned, ImageEncoder, LabelEncoder, TextEncoder, VectorEncoder
from flowjax.models.embeddings import Condition

ENCODERS = {
    "label": lambda **o: LabelEncoder(3, 4, **o),
    "wind": lambda **o: VectorEncoder(2, 4, **o),
    "text": lambda **o: TextEncoder(260, 3, 4, 8, 1, 2, **o),
    "sketch": lambda **o: ImageEncoder((4, 6, 1), 4, 2, 2, **o),
}


def filled(make):
    shapes = jax.eval_shape(make)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 2, a.dtype), shapes)


def build(**options):
    rngs = nnx.Rngs(0)
    encoders = {name: make(rngs=rngs, **options) for name, make in ENCODERS.items()}
    return Conditioned(MLP(2, width=8, depth=1, cond_dim=4, second_time=True, dropout=0.5, rngs=rngs), encoders)


@pytest.fixture(scope="module")
def network():
    return filled(build)


@jax.jit
def call(network, x, t, cond, end=None, key=None):
    return network(x, t, cond, end=end, key=key)


X, T = jnp.ones((4, 2)), jnp.linspace(0.1, 0.9, 4)


def conditions():
    rng = np.random.default_rng(1)
    return {
        "label": jnp.array([0, 1, 2, 3], jnp.int32),
        "wind": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32),
        "text": jnp.asarray(rng.integers(1, 260, size=(4, 3)), jnp.int32),
        "sketch": jnp.asarray(rng.normal(size=(4, 4, 6, 1)), jnp.float32),
    }


@pytest.mark.slow
def test_is_the_network_at_the_sum_of_the_vectors(network):
    cond = conditions()
    vector = sum(np.asarray(network.encoders[name](cond[name]), np.float64) for name in ENCODERS)
    direct = call(network.network, X, T, jnp.asarray(vector, jnp.float32))
    np.testing.assert_allclose(call(network, X, T, cond), direct, atol=1e-5)


def test_every_condition_matters_and_batch_mates_do_not(network):
    cond = conditions()
    y = call(network, X, T, cond)
    for name in ENCODERS:
        other = cond | {name: jnp.concatenate([cond[name][:2], cond[name][:2]])}
        z = call(network, X, T, other)
        np.testing.assert_allclose(z[:2], y[:2], atol=1e-6)
        assert float(jnp.min(jnp.max(jnp.abs(z - y)[2:], axis=1))) > 1e-4, name
    end, key = T + 0.05, jax.random.split(jax.random.key(0), 4)
    assert float(jnp.abs(call(network, X, T, cond, end) - y).max()) > 1e-4
    assert float(jnp.abs(call(network, X, T, cond, None, key) - y).max()) > 1e-4


def test_null_is_what_no_condition_means(network):
    assert network.null == {"label": 3, "sketch": 0.0, "text": 0, "wind": 0.0}
    assert network.shapes == {"label": (), "sketch": (4, 6, 1), "text": (3,), "wind": (2,)}
    cond = jax.tree.map(lambda c, null: jnp.full(c.shape, null, c.dtype), conditions(), network.null)
    np.testing.assert_array_equal(call(network, X, T, None), call(network, X, T, cond))


@pytest.mark.slow
def test_label_dropout_and_guidance_take_its_null(network):
    objective = fj.objectives.FlowMatching(path=fj.paths.Linear(), label_dropout=1.0, null=network.null)
    cond = objective.draw(jax.random.key(0), {"x1": X, "cond": conditions()}).cond
    np.testing.assert_array_equal(call(network, X, T, cond), call(network, X, T, None))
    flow = fj.Flow(network, path=fj.paths.Linear(), null=network.null)
    guided = fj.guide(flow, fj.guidance.CFG(scale=3.0))
    with_cond, without = flow.velocity(0.3, X, conditions()), flow.velocity(0.3, X, cond)
    expected = without + 3 * (with_cond - without)
    np.testing.assert_allclose(guided.velocity(0.3, X, conditions()), expected, atol=1e-4)


def test_labels_out_of_range_give_nan_also_below_zero(network):
    labels = jnp.array([0, 3, 4, -1], jnp.int32)
    bad = np.isnan(call(network, X, T, conditions() | {"label": labels})).any(1)
    np.testing.assert_array_equal(bad, [False, False, True, True])
    single = Condition(8, 3, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(np.isnan(single(labels, 4)).any(1), bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["label"], "a dict with the names label, sketch, text, wind, got a "),
        (lambda c: {"label": c["label"]}, "names label, sketch, text, wind, got label"),
        (lambda c: {**c, "colour": c["wind"]}, "label, sketch, text, wind, got .*colour"),
        (lambda c: {**c, "text": c["text"][:, :2]}, r"condition text must be \(4, 3\), got \(4, 2\)"),
        (lambda c: {**c, "label": c["label"][:2]}, r"condition label must be \(4,\), got \(2,\)"),
    ],
)
def test_refuses_conditions(network, change, message):
    with pytest.raises(ValueError, match=message) as error:
        network(X, T, change(conditions()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("conditioned(network=mlp(dim=2), encoders={'a': label(num_classes=3, dim=4)})", "built with cond_dim="),
        (
            "conditioned(network=mlp(dim=2, cond_dim=4, num_classes=3), encoders={'a': vector(size=3, dim=4)})",
            "without num_classes=, which has an encoder",
        ),
        (
            "conditioned(network=mlp(dim=2, cond_dim=4), encoders={'a': vector(size=3)})",
            "encoder a makes vectors of dim=128 numbers, but 4 are expected",
        ),
        ("conditioned(network=mlp(dim=2, cond_dim=4), encoders={})", "one or more encoders"),
        ("conditioned(network=mlp(dim=2, cond_dim=4), encoders={'a': vektor(size=3)})", "unknown encoder 'vektor'"),
    ],
)
def test_refuses_parts(spec, message):
    with pytest.raises(ValueError, match=message):
        fj.build("network", spec, rngs=nnx.Rngs(0))


def test_types_and_names():
    half = jax.eval_shape(lambda: build(param_dtype=jnp.bfloat16, dtype=jnp.bfloat16))
    for path, variable in nnx.to_flat_state(nnx.state(half.encoders, nnx.Param)):
        assert variable.dtype == jnp.bfloat16, path
        assert len(variable.get_metadata()["out_sharding"]) == len(variable.shape), path
    y = jax.eval_shape(lambda n: n(X, T, conditions()), half)
    assert (y.shape, y.dtype) == ((4, 2), jnp.float32)

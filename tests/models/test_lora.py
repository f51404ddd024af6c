"""Low-rank adapters: what they add, to which layers, and that a base stays what it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax.models import MLP, DiT, UNet, lora
from flowjax.models.layers import dense

RNG = np.random.default_rng(0)


def filled(build, seed=0):
    """What `build` makes, with random numbers so that nothing is zero; nothing is computed to make it."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(build))
    rng = np.random.default_rng(seed)
    return structure.unflatten([jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves])


def make_mlp(**options):
    return filled(lambda: MLP(2, width=8, depth=2, rngs=nnx.Rngs(0), **options))


def make_adapters(base, seed=1, **options):
    return filled(lambda: lora.add(base, rngs=nnx.Rngs(0), **options), seed)


@pytest.fixture(scope="module")
def mlp():
    return make_mlp()


def close(a, b, **options):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), **options)


def test_new_adapters_change_nothing(mlp):
    adapters = lora.add(mlp, rank=3, rngs=nnx.Rngs(1))
    close(lora.merge(mlp, adapters), mlp, rtol=0)
    inner = adapters.layers["layers.0.inner"]
    assert (inner.down.shape, inner.up.shape) == ((8, 3), (3, 8))
    assert adapters.layers["unembed"].down.shape == (8, 2)  # no more than the layer has outputs
    assert 0.1 < float(jnp.std(adapters.layers["time.inner"].down[...])) * 8 < 2
    assert not np.any(inner.up[...])


LAYERS = {
    "dense": (lambda: nnx.Linear(5, 4, rngs=nnx.Rngs(0)), (2, 5)),
    "several axes": (lambda: dense((2, 3), (4, 5), (None,) * 4, rngs=nnx.Rngs(0)), (2, 2, 3)),
    "convolution": (lambda: nnx.Conv(3, 5, (3, 3), rngs=nnx.Rngs(0)), (2, 6, 6, 3)),
    "strided": (lambda: nnx.Conv(3, 5, (4, 4), strides=2, use_bias=False, rngs=nnx.Rngs(0)), (2, 6, 6, 3)),
}


class Holder(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_merged_layer_is_the_layer_and_its_branch_of_two(name):
    """The branch is applied factor by factor, with layers of flax that know nothing of kernels' axes."""
    make, shape = LAYERS[name]
    base = Holder(filled(make))
    adapters = make_adapters(base, rank=2, alpha=6.0)
    x, factors = jnp.asarray(RNG.normal(size=shape), jnp.float32), adapters.layers["layer"]
    if isinstance(base.layer, nnx.Conv):
        first = nnx.Conv(3, 2, base.layer.kernel_size, strides=base.layer.strides, use_bias=False, rngs=nnx.Rngs(0))
        second = nnx.Conv(2, 5, (1, 1), use_bias=False, rngs=nnx.Rngs(0))
        first.kernel[...], second.kernel[...] = factors.down[...], factors.up[...][None, None]
        branch = second(first(x))
    else:
        count = x.ndim - 1
        hidden = np.tensordot(x, factors.down[...], (tuple(range(1, 1 + count)), tuple(range(count))))
        branch = np.tensordot(hidden, factors.up[...], 1)
    merged = lora.merge(base, adapters, 0.5)
    np.testing.assert_allclose(merged(x), base(x) + 0.5 * 3 * branch, rtol=2e-5, atol=2e-5)
    close(lora.unmerge(merged, adapters, 0.5), base, rtol=1e-5, atol=1e-6)


def test_adapters_of_one_base_add_up_in_any_order(mlp):
    first, second = (make_adapters(mlp, rank=r, seed=r) for r in (1, 2))
    one = lora.merge(lora.merge(mlp, first, 0.8), second)
    close(one, lora.merge(lora.merge(mlp, second), first, 0.8), rtol=1e-5, atol=1e-6)
    close(lora.merge(mlp, first, 0.0), mlp, rtol=0)
    close(lora.merge(mlp, first, 0.8), jax.jit(lora.merge)(mlp, first, 0.8), rtol=1e-5, atol=1e-6)


def test_patterns_choose_layers(mlp):
    chosen = lambda *patterns: set(make_adapters(mlp, patterns=patterns).layers)  # noqa: E731
    assert chosen("layers.*.inner", "unembed") == {"layers.0.inner", "layers.1.inner", "unembed"}
    assert chosen("time.*") == {"time.inner", "time.outer"}
    options = {"multipliers": (1,), "blocks": 1, "groups": 2, "attention_at": (4,), "head": 4}
    network = jax.eval_shape(lambda: UNet((4, 4, 1), channels=4, rngs=nnx.Rngs(0), **options))
    assert {name.rsplit(".")[-1] for name in make_adapters(network, patterns="*.conv?").layers} == {"conv1", "conv2"}


def test_stacked_layers_get_factors_each_and_axes_their_names():
    options = {"patch": 2, "width": 8, "depth": 3, "heads": 2}
    stacked = filled(lambda: DiT((4, 4, 1), scan=True, rngs=nnx.Rngs(0), **options))
    adapters = make_adapters(stacked, rank=2, patterns=("blocks.*",))
    qkv = adapters.layers["blocks.qkv"]
    assert (qkv.down.shape, qkv.up.shape) == ((3, 8, 2), (3, 2, 3, 2, 4))
    assert qkv.down.get_metadata()["out_sharding"] == ("layers", "embed", None)
    assert qkv.up.get_metadata()["out_sharding"] == ("layers", None, None, "heads", None)
    assert adapters.layers["blocks.project"].down.shape == (3, 2, 4, 2)
    kernel = lora.merge(stacked, adapters).blocks.qkv.kernel
    assert kernel.get_metadata()["out_sharding"] == stacked.blocks.qkv.kernel.get_metadata()["out_sharding"]
    for i in range(3):
        delta = np.tensordot(qkv.down[i], qkv.up[i], 1)
        np.testing.assert_allclose(kernel[i], stacked.blocks.qkv.kernel[i] + delta, rtol=1e-5, atol=1e-6)


def test_only_shapes_of_the_base_are_read(mlp):
    abstract = jax.eval_shape(lambda: MLP(2, width=8, depth=2, rngs=nnx.Rngs(0)))
    add = lambda base: lora.add(base, patterns="layers.*", rngs=nnx.Rngs(1))  # noqa: E731
    close(add(abstract), add(mlp), rtol=0)
    close(jax.jit(lambda: add(abstract))(), add(mlp), rtol=1e-6)


def test_training_moves_adapters_only(mlp):
    adapters = make_adapters(mlp, rank=2)
    before = jax.tree.map(jnp.copy, mlp)
    objective = fj.objectives.FlowMatching(path=fj.paths.Linear())
    draws = objective.draw(jax.random.key(0), {"x1": jnp.ones((4, 2))})

    @jax.jit
    def gradient(adapters, base):
        assembled = fj.objectives.Assembled(objective, frozen={"network": base}, combine=lora.combine)
        return jax.grad(lambda a: assembled.loss(a, draws)[0].mean())(adapters)

    found = gradient(adapters, mlp)
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found))
    close(before, mlp, rtol=0)


def test_layers_that_are_trained_whole_take_the_place_of_the_bases(mlp):
    adapters = lora.add(mlp, rank=2, patterns="layers.*", whole="unembed", rngs=nnx.Rngs(1))
    assert list(adapters.whole) == ["unembed"]
    assert "unembed" not in adapters.layers
    close(lora.merge(mlp, adapters), mlp, rtol=0)
    adapters.whole["unembed"]["bias"] = adapters.whole["unembed"]["bias"].replace(jnp.array([3.0, 4.0]))
    merged = lora.merge(mlp, adapters)
    np.testing.assert_array_equal(merged.unembed.bias[...], [3.0, 4.0])
    close(lora.combine(adapters, {"network": mlp}), merged, rtol=0)
    # One that answers with more numbers than the base: only its shapes are known when the adapters are made.
    wide = jax.eval_shape(lambda: MLP(2, width=8, depth=2, outputs=5, rngs=nnx.Rngs(0)))
    grown = lora.merge(mlp, lora.add(wide, rank=2, patterns="layers.*", whole="unembed", rngs=nnx.Rngs(1)))
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(grown(x, x[:, 0]), np.zeros((3, 5)))
    for undo in (lambda: lora.unmerge(mlp, adapters), lambda: lora.merge(mlp, adapters, 0.5)):
        with pytest.raises(ValueError, match=r"'unembed' was trained whole.*scale must be 1"):
            undo()
    with pytest.raises(ValueError, match="no dense layer or convolution has a path like 'head'"):
        lora.add(mlp, whole="head", rngs=nnx.Rngs(1))


def test_combine_by_label(mlp):
    adapters, other = (make_adapters(mlp, rank=1, seed=s) for s in (1, 2))
    right = lora.merge(mlp, adapters)
    close(lora.combine(adapters, {"network": mlp}), right, rtol=1e-6)
    beside = lora.combine(adapters, {"network": mlp, "teacher": mlp})
    assert set(beside) == {"network", "teacher"}
    assert beside["teacher"] is mlp
    several = lora.combine({"network": adapters, "critic": other, "head": mlp.unembed}, {"network": mlp})
    close(several["network"], right, rtol=1e-6)
    close(several["critic"], lora.merge(mlp, other), rtol=1e-6)
    assert several["head"] is mlp.unembed


def test_a_base_of_low_precision_keeps_its_type_when_merged_and_does_not_round_what_is_learned():
    base = make_mlp(param_dtype=jnp.bfloat16)
    adapters = make_adapters(base, rank=1, patterns=("unembed",))
    adapters = jax.tree.map(lambda leaf: 1e-2 * leaf, adapters)
    assert lora.merge(base, adapters).unembed.kernel.dtype == jnp.bfloat16
    kernel = lora.combine(adapters, {"network": base}).unembed.kernel
    delta = adapters.layers["unembed"].delta()
    np.testing.assert_allclose(kernel[...] - base.unembed.kernel[...].astype(jnp.float32), delta, atol=1e-7)


def test_what_does_not_fit_is_refused(mlp):
    add = lambda **options: make_adapters(mlp, **options)  # noqa: E731
    for options, message in (
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"patterns": ("layers.*", "blocks.*")}, r"path like 'blocks\.\*'; there are .*layers\.0\.inner"),
        ({"patterns": ()}, "no dense layer or convolution"),
    ):
        with pytest.raises(ValueError, match=message):
            add(**options)
    small = filled(lambda: MLP(2, width=4, depth=1, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"for a kernel of shape \(2, 8\), the network's has \(2, 4\)"):
        lora.merge(small, add(patterns=("embed",)))
    with pytest.raises(ValueError, match=r"layer 'layers\.1\.inner' that the network has not; it has embed"):
        lora.merge(small, add(patterns=("layers.1.inner",)))
    with pytest.raises(ValueError, match="the adapters 'network' need a frozen base; frozen are teacher"):
        lora.combine(add(), {"teacher": mlp})


def test_from_a_spec(mlp):
    adapters = fj.build("adapters", "lora(rank=2, alpha=1, patterns=['unembed'])", network=mlp, rngs=nnx.Rngs(0))
    assert adapters.layers["unembed"].factor == 0.5

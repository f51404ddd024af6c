"""Diffusion transformer: published sizes, stacked and recomputed blocks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import DiT

SMALL = {"image_shape": (4, 4, 1), "patch": 2, "width": 8, "depth": 2, "heads": 2, "num_classes": 3}


def build(**options):
    return DiT(**(SMALL | options), rngs=nnx.Rngs(0))


def shapes(**options):
    return jax.eval_shape(lambda: build(**options))


def filled(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 4, a.dtype), tree)


def loss(network, x):
    return jnp.mean((network(x, jnp.full(2, 0.3), jnp.arange(2, dtype=jnp.int32)) - 1) ** 2)


def size(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


def by_hand(w, depth, m, inputs, outputs, classes, second):
    """Weights and biases, layer by layer as the paper draws them."""
    attention = (w * 3 * w + 3 * w) + (w * w + w)
    feed_forward = (w * m + m) + (m * w + w)
    modulation = w * 6 * w + 6 * w
    times = (1 + second) * ((256 * w + w) + (w * w + w))
    ends = (inputs * w + w) + (w * outputs + outputs) + (w * 2 * w + 2 * w)
    return depth * (attention + feed_forward + modulation) + times + ends + (classes + 1) * w


def test_parameter_count_of_other_settings():
    for m, second in ((64, False), (24, True)):
        network = shapes(mlp_ratio=m / 8, second_time=second, out_channels=2)
        assert size(network) == by_hand(8, 2, m, 4, 8, 3, second)


@pytest.mark.parametrize(
    ("letter", "width", "depth", "millions"),
    [
        ("S", 384, 12, {2: 33, 4: 33, 8: 33}),
        ("B", 768, 12, {2: 130, 4: 130, 8: 131}),
        ("L", 1024, 24, {2: 458, 4: 458, 8: 459}),
        ("XL", 1152, 28, {2: 675, 4: 675, 8: 676}),
    ],
)
def test_published_sizes(letter, width, depth, millions):
    """Peebles and Xie (2022), table 4: latents 32 x 32 x 4, noise and variance as output, 1000 classes.

    The fixed position codes, one vector per token, are not in the table; with them DiT-XL/2 has 675,129,632
    entries, which the authors' training script prints. SiT (2401.08740) has the same networks.
    """
    options = {"num_classes": 1000, "out_channels": 8, "scan": True}
    for patch, published in millions.items():
        preset = functools.partial(DiT.preset, f"{letter}/{patch}", (32, 32, 4), **options)
        count = size(jax.eval_shape(lambda preset=preset: preset(rngs=nnx.Rngs(0))))
        assert count == by_hand(width, depth, 4 * width, 4 * patch**2, 8 * patch**2, 1000, False)
        assert round(count / 1e6) == published
        if (letter, patch) == ("XL", 2):
            assert count + (32 // patch) ** 2 * width == 675_129_632


def test_refuses_sizes_that_do_not_exist_or_do_not_divide():
    with pytest.raises(ValueError, match="unknown size 'XL/3'; known: S/2"):
        DiT.size("XL/3")
    with pytest.raises(ValueError, match="does not divide"):
        build(image_shape=(4, 3, 1))
    with pytest.raises(ValueError, match="multiple"):
        build(heads=3)


def test_one_seed_gives_the_same_parameters_in_both_layouts():
    """Also for what is drawn behind the blocks; and the conversion is its own inverse, names included."""
    both = jax.jit(lambda: (build(), build(scan=True)))()
    loop, stacked = both
    for a, b in ((loop.with_scan(True), stacked), (stacked.with_scan(False), loop)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert all(np.array_equal(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
    kernel = stacked.blocks.qkv.kernel
    assert kernel.get_metadata()["out_sharding"] == ("layers", "embed", None, "heads", None)
    assert not np.array_equal(kernel[...][0], kernel[...][1])
    assert jax.tree.structure(loop.with_scan(False)) == jax.tree.structure(loop)


@pytest.mark.slow
def test_loop_scan_and_remat_have_the_same_values_and_gradients():
    network = filled(shapes())
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 1)), jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(loss))(network, x)
    assert min(float(jnp.max(jnp.abs(a))) for a in jax.tree.leaves(gradient.blocks)) > 0

    for scan, remat in ((True, False), (True, True), (True, "dots_saveable"), (False, "dots_saveable")):
        other = network.with_scan(scan)
        other.remat = remat
        found, slopes = jax.jit(jax.value_and_grad(loss))(other, x)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(slopes.with_scan(False)), jax.tree.leaves(gradient)):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_stores_less(scan):
    """The memory of the backward pass is what `vjp` keeps; parameters are kept either way."""
    x = jnp.ones((2, 4, 4, 1))

    def kept(remat):
        network = shapes(scan=scan, remat=remat)
        return size(jax.eval_shape(lambda n: jax.vjp(lambda n: loss(n, x), n)[1], network)) - size(network)

    sizes = [kept(remat) for remat in (False, "dots_saveable", "dots_with_no_batch_dims_saveable", True)]
    assert all(more > fewer for more, fewer in itertools.pairwise(sizes))
    assert sizes[-1] < 0.5 * sizes[0]


def test_a_scanned_program_does_not_grow_with_depth():
    x = jnp.ones((2, 4, 4, 1))

    def lines(depth, scan):
        network = shapes(depth=depth, scan=scan)
        trained = str(jax.make_jaxpr(jax.grad(loss))(network, x)).count("\n")
        return trained, str(jax.make_jaxpr(lambda: jax.tree.leaves(build(depth=depth, scan=scan)))()).count("\n")

    assert lines(2, True) == lines(9, True)
    assert all(a < b for a, b in zip(lines(2, False), lines(4, False)))

"""U-Net: published size, layers, recomputed blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import UNet
from flowjax.models.unet import Block, GroupNorm, double, halve


def build(**options):
    small = {"image_shape": (4, 4, 1), "channels": 4, "multipliers": (1,), "blocks": 1, "attention_at": ()}
    return UNet(**(small | {"head": 4, "groups": 2} | options), rngs=nnx.Rngs(0))


def size(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


def by_hand(image, channels, multipliers, blocks, attention_at, inputs, outputs, embeddings, second=False):
    """Weights and biases of the U-Net of ADM, from the description of its levels."""
    vector = 4 * channels

    def block(a, b, attends=False):
        norms, kernels = 2 * a + 2 * b, (9 * a + 1) * b + (9 * b + 1) * b
        shortcut = 0 if a == b else (a + 1) * b
        attention = 2 * b + (b + 1) * 3 * b + (b + 1) * b
        return norms + kernels + (vector + 1) * 2 * b + shortcut + attends * attention

    times = (channels + 1) * vector + (vector + 1) * vector
    total = (1 + second) * times + embeddings * vector
    total += (9 * inputs + 1) * channels + 2 * channels * multipliers[0] + (9 * channels * multipliers[0] + 1) * outputs
    width, skips = channels, [channels]
    last = len(multipliers) - 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            total += block(width, channels * multiplier, image >> level in attention_at)
            width = channels * multiplier
            skips += [width]
        if level < last:
            total += block(width, width)
            skips += [width]
    total += block(width, width, True) + block(width, width)
    for level in range(last, -1, -1):
        for _ in range(blocks + 1):
            total += block(width + skips.pop(), channels * multipliers[level], image >> level in attention_at)
            width = channels * multipliers[level]
        if level > 0:
            total += block(width, width)
    return total


@pytest.mark.slow
def test_published_size():
    """ADM for ImageNet 64 x 64, 296M in table 4 of Dhariwal and Nichol (2021); here with one more class, "none"."""
    settings = {"channels": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention_at": (32, 16, 8)}
    network = jax.eval_shape(
        lambda: UNet((64, 64, 3), **settings, head=64, num_classes=1000, out_channels=6, rngs=nnx.Rngs(0))
    )
    published = by_hand(64, **settings, inputs=3, outputs=6, embeddings=1000)
    assert round(published / 1e6) == 296
    assert size(network) == published + 4 * 192


def test_parameter_count_of_other_settings():
    settings = {"channels": 4, "multipliers": (1, 3), "blocks": 2, "attention_at": (4, 2)}
    network = jax.eval_shape(lambda: build(**settings, num_classes=2, second_time=True))
    assert size(network) == by_hand(4, **settings, inputs=1, outputs=1, embeddings=3, second=True)


def test_group_normalisation():
    """Mean 0 and variance 1 over the pixels and channels of a group, whatever the scale and shift of the group."""
    h = np.random.default_rng(0).normal(size=(2, 3, 5, 6)).astype(np.float32)
    norm = GroupNorm(6, 2, "embed", jnp.float32)
    y = np.asarray(norm(jnp.asarray(h)))
    for group in (y[..., :3], y[..., 3:]):
        np.testing.assert_allclose(group.mean((1, 2, 3)), 0.0, atol=1e-6)
        np.testing.assert_allclose(group.var((1, 2, 3)), 1.0, atol=1e-4)
    moved = h * np.repeat([3.0, 0.5], 3).astype(np.float32) + np.repeat([1.0, -2.0], 3).astype(np.float32)
    np.testing.assert_allclose(norm(jnp.asarray(moved)), y, atol=1e-4)


def test_halving_undoes_doubling_and_keeps_means():
    h = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    assert double(h).shape == (2, 8, 12, 3)
    np.testing.assert_allclose(halve(double(h)), h, atol=1e-6)
    np.testing.assert_array_equal(double(h)[:, 2:4, 6:8], jnp.broadcast_to(h[:, 1:2, 3:4], (2, 2, 2, 3)))
    np.testing.assert_allclose(jnp.mean(halve(h), (1, 2)), jnp.mean(h, (1, 2)), atol=1e-6)


def test_tangents_of_blocks_are_right():
    """A halving block, and a doubling one that attends, along all inputs against central differences."""
    rng = np.random.default_rng(0)
    options = {"conditions": 3, "groups": 2, "attention": "xla", "dtype": jnp.float32, "param_dtype": jnp.float32}

    def fill(**more):
        shapes = jax.eval_shape(lambda: Block(4, 4, rngs=nnx.Rngs(0), **options, **more))
        return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 3, a.dtype), shapes)

    first, second = fill(resample="halve"), fill(resample="double", head=2)
    x, c = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 4, 4, 4), (2, 3)))

    @jax.jit
    def along(h):
        return jax.jvp(lambda h: second(first(x + h, c + h), c + h), (h,), (jnp.ones(()),))

    h = 3e-3
    slope = along(jnp.zeros(()))[1]
    numeric = (along(jnp.asarray(h))[0] - along(jnp.asarray(-h))[0]) / (2 * h)
    assert float(jnp.linalg.norm(slope - numeric)) < 0.01 * float(jnp.linalg.norm(slope))


def random_pair():
    """The same network without and with recomputed blocks, and a loss."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: build(blocks=0))
    plain = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 4, a.dtype), shapes)
    remat = jax.tree.map(lambda a: a, plain)
    remat.remat = True
    x, t = jnp.asarray(rng.normal(size=(2, 4, 4, 1)), jnp.float32), jnp.full(2, 0.3)
    return plain, remat, lambda network: jnp.mean((network(x, t) - 1) ** 2)


def test_remat_stores_less():
    *networks, loss = random_pair()
    kept = [size(jax.eval_shape(lambda n: jax.vjp(loss, n)[1], n)) - size(n) for n in networks]
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.slow
def test_remat_has_the_same_values_and_gradients():
    *networks, loss = random_pair()
    (value, gradient), (again, slopes) = (jax.jit(jax.value_and_grad(loss))(n) for n in networks)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(gradient)):
        assert float(jnp.max(jnp.abs(b))) > 0
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_refuses_settings_that_do_not_fit():
    for options, message in (
        ({"image_shape": (4, 6, 1), "multipliers": (1, 1, 1)}, "halved 2 times"),
        ({"groups": 3}, "groups=3 does not divide"),
        ({"attention_at": (8,)}, "not among the heights"),
        ({"head": 3}, "head=3 does not divide"),
        ({"attention": "flash"}, "none of"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)

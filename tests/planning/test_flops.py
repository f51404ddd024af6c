"""Counted FLOPs against formulas, and against XLA's count of a network without loops."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from flowjax.models import DiT
from flowjax.planning import flops


def test_products_convolutions_and_loops():
    a, b = jnp.ones((5, 2, 3)), jnp.ones((5, 3, 4))
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b) == 2 * 5 * 2 * 3 * 4
    x, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 3, 10))  # two groups
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert flops(convolve, x, kernel) == 2 * (2 * 4 * 4 * 10) * 9 * 3
    square = jnp.ones((4, 4))
    looped = lambda m: jax.lax.scan(lambda c, _: (c @ m, None), m, length=7)[0]  # noqa: E731
    assert flops(looped, square) == 7 * 2 * 4**3
    either = lambda m, p: jax.lax.cond(p, lambda m: m @ m @ m, lambda m: m @ m, m)  # noqa: E731
    assert flops(either, square, True) == 2 * 2 * 4**3
    # The forward pass is one of three products of the gradient, and with recomputation there are four.
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))  # noqa: E731
    plain = flops(jax.grad(loss, argnums=(0, 1)), square, square)
    assert plain == 3 * 2 * 4**3
    twice = lambda w, x: jnp.sum(jax.checkpoint(lambda w, x: jnp.tanh(x @ w) @ w)(w, x))  # noqa: E731
    assert flops(jax.grad(twice), square, square) == (2 + 1 + 3) * 2 * 4**3


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_a_transformer_against_the_count_of_xla(scan):
    """XLA counts additions and exponentials too, a few percent; unrolled it sees every layer."""
    options = dict(width=64, depth=3, heads=4, patch=2, num_classes=10, rngs=nnx.Rngs(0))
    network, plain = DiT((16, 16, 4), scan=scan, **options), DiT((16, 16, 4), scan=False, **options)
    x, t, y = jnp.ones((4, 16, 16, 4)), jnp.ones(4), jnp.zeros(4, jnp.int32)

    def loss(network, x, t, y):
        return jnp.mean(network(x, t, y) ** 2)

    counted = flops(jax.grad(loss), network, x, t, y)
    analysis = jax.jit(jax.grad(loss)).lower(plain, x, t, y).compile().cost_analysis()
    assert 0.85 < counted / analysis["flops"] < 1.02
    tokens, width, depth = 64, 64, 3
    # The blocks alone: qkv, project and the two feed-forward layers, and the scores, three times each.
    blocks = 3 * 4 * depth * (2 * tokens * width * 12 * width + 4 * tokens**2 * width)
    assert 1.0 < counted / blocks < 1.1

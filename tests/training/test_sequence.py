"""Examples cut over devices: the numbers of one device, and attention alone exchanges tokens."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import UNet
from flowjax.models.dit import DiT
from flowjax.models.token_dit import TokenDiT
from flowjax.planning.collectives import collectives
from flowjax.training import make_mesh, over, put_batch, shardings

BATCH, SIDE, WIDTH = 4, 8, 16


def dit(**options):
    return DiT((SIDE, SIDE, 1), 2, WIDTH, 2, 2, num_classes=3, scan=True, **options, rngs=nnx.Rngs(0))


def token_dit():
    sizes = dict(patch=2, width=WIDTH, depth=1, head_depth=1, heads=2)
    return TokenDiT((SIDE, SIDE, 1), **sizes, num_classes=3, rngs=nnx.Rngs(0))


def unet():
    sizes = dict(channels=8, multipliers=(1, 2), blocks=1, attention_at=(4,), head=8, groups=4)
    return UNet((SIDE, SIDE, 1), **sizes, num_classes=3, rngs=nnx.Rngs(0))


def filled(build):
    """A network without zeros, so that every part of it has a gradient."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 4, a.dtype), jax.eval_shape(build))


def loss(network, batch):
    answers = jax.tree.leaves(network(batch["x1"], batch["t"], batch["cond"]))
    return sum(jnp.mean((answer - 1) ** 2) for answer in answers)


def batch():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCH, SIDE, SIDE, 1)).astype(np.float32)
    return {"x1": x, "t": np.linspace(0.1, 0.9, BATCH, dtype=np.float32), "cond": np.arange(BATCH, dtype=np.int32) % 3}


def compiled(network, mesh):
    """The gradient, compiled for a mesh, and its arguments there."""
    placed = jax.device_put(network, shardings(network, mesh)), put_batch(batch(), mesh)
    with over(mesh):
        return jax.jit(jax.value_and_grad(loss)).lower(*placed).compile(), placed


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"sequence": 4}, {"sequence": 2, "fsdp": 2, "tensor": 2}], ids=["long", "all axes"])
@pytest.mark.parametrize("build", [dit, lambda: dit(remat="dots_saveable"), token_dit, unet])
def test_values_and_gradients_are_those_of_one_device(build, sizes):
    network = filled(build)
    value, gradient = jax.jit(jax.value_and_grad(loss))(network, batch())
    program, placed = compiled(network, make_mesh(**sizes))
    found, slopes = program(*placed)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest)


def test_attention_alone_gathers_tokens():
    mesh, tokens = make_mesh(data=2, sequence=4), (SIDE // 2) ** 2
    text = compiled(filled(dit), mesh)[0].as_text()
    gathered = re.findall(r"= \(?f32\[([\d,]*)\]\S* all-gather", text)
    # Keys and values of the examples of a device, (rows, tokens, heads, head), in the loops of both passes.
    assert set(gathered) == {f"{BATCH // 2},{tokens},2,{WIDTH // 2}"}
    assert {one.kind for one in collectives(text)} == {"all-gather", "all-reduce"}
    assert all(one.size <= BATCH // 2 * tokens * WIDTH * 4 for one in collectives(text) if one.kind == "all-gather")

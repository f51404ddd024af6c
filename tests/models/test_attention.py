"""Attention: its definition, its derivatives, and the refusal where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import MLP, DiT, UNet, require_jvp
from flowjax.models.attention import IMPLEMENTATIONS, attend

SMALL = {"image_shape": (8, 8, 1), "patch": 4, "width": 16, "depth": 1, "heads": 2}


@pytest.mark.parametrize("name", [name for name, has_jvp in IMPLEMENTATIONS.items() if has_jvp])
def test_values_and_tangents_are_those_of_the_definition(name):
    """Softmax and its tangent written out in float64: da = a (ds - sum(a ds))."""
    rng = np.random.default_rng(0)
    q, k, v, dq, dk, dv = rng.normal(size=(6, 2, 5, 3, 4))
    scores, slopes = (
        sum(np.einsum("bnhd,bmhd->bhnm", *pair) for pair in pairs) / 2 for pairs in ([(q, k)], [(dq, k), (q, dk)])
    )
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    change = weights * (slopes - (weights * slopes).sum(-1, keepdims=True))
    value = np.einsum("bhnm,bmhd->bnhd", weights, v)
    tangent = np.einsum("bhnm,bmhd->bnhd", change, v) + np.einsum("bhnm,bmhd->bnhd", weights, dv)
    primals, tangents = (tuple(jnp.asarray(a, jnp.float32) for a in group) for group in ((q, k, v), (dq, dk, dv)))
    found = jax.jit(lambda p, d: jax.jvp(lambda *a: attend(*a, implementation=name), p, d))(primals, tangents)
    np.testing.assert_allclose(found[0], value, atol=1e-5)
    np.testing.assert_allclose(found[1], tangent, atol=1e-5)


def test_a_kernel_without_forward_derivative_is_refused_where_one_is_needed():
    def dit(**options):
        return jax.eval_shape(lambda: DiT(**SMALL, **options, rngs=nnx.Rngs(0)))

    fused = {"attention": "cudnn", "dtype": jnp.bfloat16}
    for network in (
        dit(**fused),
        dit(**fused, scan=True),
        {"teacher": dit(), "student": dit(**fused)},
        jax.eval_shape(
            lambda: UNet((4, 4, 1), 4, (1,), 1, (), head=4, groups=2, **fused, rngs=nnx.Rngs(0)),
        ),
    ):
        with pytest.raises(ValueError, match=r"cudnn.*no forward derivative"):
            require_jvp(network)
    for network in (dit(), dit(attention="dot_product"), lambda x, t: x, MLP(2, width=4, depth=1, rngs=nnx.Rngs(0))):
        require_jvp(network)


def test_refuses_what_cannot_be_computed():
    with pytest.raises(ValueError, match="'flash' is none of xla, dot_product, cudnn"):
        DiT(**SMALL, attention="flash", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        DiT(**SMALL, attention="cudnn", rngs=nnx.Rngs(0))

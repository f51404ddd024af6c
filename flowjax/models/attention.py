"""Softmax attention, and which of its implementations have a forward derivative.

    name         implementation                                          forward derivative (jvp)
    xla          two matrix products and a softmax                        yes
    dot_product  jax.nn.dot_product_attention, compiled by XLA            yes
    cudnn        jax.nn.dot_product_attention with the cuDNN flash kernel  no

A flash kernel never stores the scores, so its memory grows linearly with the number of tokens. It is written as a
custom reverse derivative, and JAX cannot push tangents through one: mean-flow objectives, consistency models in
continuous time and exact divergences need another implementation, or finite differences.

References:
    Dao et al. (2022), FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness, arXiv:2205.14135.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flowjax.paths.base import precision

IMPLEMENTATIONS = {"xla": True, "dot_product": True, "cudnn": False}
"""Implementation -> whether it has a forward derivative."""


def attend(
    q: Float[Array, "B N heads head"],
    k: Float[Array, "B M heads head"],
    v: Float[Array, "B M heads head"],
    implementation: str = "xla",
    mask: Bool[Array, "B M"] | None = None,
) -> Float[Array, "B N heads head"]:
    """Softmax attention with scores q k / sqrt(head); the softmax is computed in at least float32.

    Tokens where `mask` is False are not attended; where it is False for all of them, the answer has no meaning, but is
    finite.
    """
    seen = None if mask is None else mask[:, None, None]
    if implementation != "xla":
        kind: Any = "cudnn" if implementation == "cudnn" else "xla"
        return jax.nn.dot_product_attention(q, k, v, mask=seen, implementation=kind)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=precision(q)) / math.sqrt(q.shape[-1])
    if seen is not None:
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def check_implementation(implementation: str, dtype: Any) -> str:
    """Returns the name of an implementation that exists and can compute in `dtype`.

    Raises:
        ValueError: It cannot.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention={implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "cudnn" and jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"attention='cudnn' computes in bfloat16 or float16, not in dtype={jnp.dtype(dtype)}")
    return implementation


def require_jvp(network: Any) -> None:
    """Refuses a network whose attention has no forward derivative; for whatever is about to call `jax.jvp`.

    Networks that are not made of the modules of this package pass.

    Example:
        >>> from flax import nnx
        >>> from flowjax.models import MLP
        >>> require_jvp(MLP(2, width=8, depth=1, rngs=nnx.Rngs(0)))

    Raises:
        ValueError: A module of the network attends by a kernel without forward derivative.
    """
    for root in jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, nnx.Module)):
        for path, module in nnx.iter_graph(root) if isinstance(root, nnx.Module) else ():
            name = getattr(module, "attention", None)
            if isinstance(name, str) and not IMPLEMENTATIONS.get(name, True):
                where = f"{type(root).__name__}.{'.'.join(map(str, path))}"
                raise ValueError(
                    f"{where} uses attention={name!r}, which has no forward derivative (jvp); build the network with "
                    f"attention='xla' or 'dot_product'"
                )

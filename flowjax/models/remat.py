"""What the blocks of a network keep for the backward pass, and what it computes again.

    remat                              kept                                   recomputed
    False                              everything                             nothing
    dots_saveable                      all matrix products                    all else
    dots_with_no_batch_dims_saveable   products with weights                  attention, and all else
    True                               the tokens between blocks              everything within a block

The names are JAX's (`jax.checkpoint_policies`). Values and gradients are the same.

References:
    Chen et al. (2016), Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

from collections.abc import Callable
from typing import Any

import jax

from flowjax._checks import choose

POLICIES = {
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""By name, those that keep some of a block, the larger first."""


def check_remat(remat: bool | str) -> bool | str:
    """Returns what is True, False or a name of `POLICIES`.

    Raises:
        ValueError: It is something else.
    """
    return remat if isinstance(remat, bool) else choose("remat", remat, POLICIES)


def recomputed(apply: Callable[..., Any], remat: bool | str, scan: bool = False) -> Callable[..., Any]:
    """A block as a function whose inside the backward pass computes again, but for what it keeps.

    Args:
        apply: The block.
        remat: See above.
        scan: Whether it runs in a loop, whose two passes the compiler cannot merge.
    """
    return jax.checkpoint(apply, prevent_cse=not scan, policy=POLICIES.get(str(remat))) if remat else apply

"""Classifier-free guidance (Ho and Salimans, 2207.12598).

v = u + w (c - u): linear, so the same in every prediction.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._pytree import pytree
from flowjax.guidance.base import Rule
from flowjax.paths.base import expand


@pytree
class CFG(Rule):
    """Constant guidance.

    Args:
        scale: w, a number or one per sample (B,); 1 is the conditional prediction and saves the second evaluation.
    """

    scale: Any = 1.0

    def active(self, t: Any) -> Any:
        """Wherever w is not 1."""
        return jnp.any(jnp.asarray(self.scale) != 1)

    def combine(self, t: Any, c: Array, u: Array, state: Any) -> tuple[Array, Any]:
        """U + w (c - u)."""
        return u + expand(self.scale, c) * (c - u), state

"""Classifier-free guidance (Ho and Salimans, 2207.12598)."""

from typing import Any

from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strength, differs, strength
from flowjax.paths.base import expand


@fact("rule", "cfg", "classifier-free guidance", cite="ho2022classifier", example=lambda: {"scale": 2.0})
@pytree
class CFG(Rule):
    """Guidance of one strength, or of one that changes with time.

    v = u + w (c - u): linear, so the same in every prediction.

    Args:
        scale: w, a number, one per sample (B,), or a function of t (scalar or (B,), a float, NumPy or JAX) that returns
            either; 1 is the conditional prediction and saves the second evaluation. Numbers are traced; a function is
            compiled in. The catalogue has functions with names, such as `Ramp`, whose numbers are traced, and `Each`,
            scales for the samples of a recipe in turn.

    Raises:
        ValueError: a scale that is not finite.

    Reference: Ho and Salimans (2207.12598).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.CFG(scale=lambda t: jnp.where(t < 0.5, 1.0, 4.0))
    """

    scale: Any = part("scale", 1.0)

    def __post_init__(self) -> None:
        """Checks the scale."""
        check_strength(self.scale)

    def active(self, t: Any) -> Any:
        """Wherever w is not 1."""
        return differs(self.scale, t)

    def combine(self, t: Any, c: Array, u: Array, state: Any) -> tuple[Array, Any]:
        """U + w (c - u)."""
        return u + expand(strength(self.scale, t), c) * (c - u), state

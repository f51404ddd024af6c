"""Adaptive projected guidance (Sadat et al., 2410.02416), on the data prediction."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import real
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strength, differs, inner, norm, strength
from flowjax.paths.base import divide, expand


@fact("rule", "apg", "adaptive projected guidance", cite="sadat2024eliminating", example=lambda: {"scale": 2.0})
@pytree
class APG(Rule):
    """Guidance along the part of c - u that is orthogonal to c, with reverse momentum.

        m <- (c - u) + beta m          (m = 0 at the start; beta < 0 is reverse momentum)
        d = m min(1, r / |m|),   par = (<d, c>/|c|^2) c,   orth = d - par
        out = c + (w - 1) (orth + eta par)

    eta = 1, beta = 0, r = inf is plain guidance. Norms and inner products are per sample, over all axes but the
    batch's.

    Args:
        scale: w, as for `CFG`; 1 is the conditional prediction.
        eta: weight of the parallel part; 1 keeps all of it.
        beta: momentum, usually negative.
        r: largest norm of the guidance direction, positive; infinity does not limit it.

    Raises:
        ValueError: a number outside its range.

    Reference: Sadat, Hilliges and Weber (2410.02416).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.APG(scale=3.0, beta=0.0)
        >>> c, u = jnp.array([[1.0, 0.0]]), jnp.array([[0.5, -1.0]])
        >>> rule.combine(0.5, c, u, rule.init(c))[0]  # only the part of c - u across c is amplified
        Array([[1., 2.]], dtype=float32)
    """

    space = "data"
    stateless = False

    scale: Any = part("scale", 1.0)
    eta: Any = 0.0
    beta: Any = -0.5
    r: Any = 15.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        check_strength(self.scale)
        real("(-inf, inf)", eta=self.eta, beta=self.beta)
        real("(0, inf)", r=1.0 if isinstance(self.r, float) and self.r == math.inf else self.r)

    def init(self, x: Array) -> Array:
        """Momentum zero, of the state's shape."""
        return jnp.zeros_like(x)

    def active(self, t: Any) -> Any:
        """Wherever w is not 1."""
        return differs(self.scale, t)

    def combine(self, t: Any, c: Array, u: Array, state: Array) -> tuple[Array, Array]:
        """C + (w - 1) (orth + eta par)."""
        m = (c - u) + expand(self.beta, c) * state
        size = norm(m)
        d = m * jnp.minimum(1.0, expand(self.r, size) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)).astype(m.dtype)
        parallel = divide(inner(d, c), inner(c, c)).astype(c.dtype) * c
        return c + (expand(strength(self.scale, t), c) - 1) * (d - parallel + expand(self.eta, c) * parallel), m

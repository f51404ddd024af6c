"""RAAG (2508.03442; later MAMBO-G): a scale that falls with the relative size of the guidance direction."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import real
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.guidance.base import Rule, norm
from flowjax.paths.base import precision


@fact("rule", "raag", "a scale that falls with the size of the guidance direction", cite="zhu2025raag")
@pytree
class RAAG(Rule):
    """Ratio-aware adaptive guidance.

    On velocities, per sample, with norms over all axes but the batch's:

        rho = |c - u|/(|u| + 1e-8),   w(rho) = 1 + (w_max - 1) exp(-alpha rho),   v = u + w(rho) (c - u)

    so that the first steps of a short run, where c - u is a generic direction, do not overshoot. The norm is not
    squared. With `form="original"` (the later text), w(rho) = 1 + w_max exp(-alpha rho). No state; the ratio and the
    scale are reported.

    Args:
        w_max: scale reached where c - u vanishes, a number; much larger than a constant scale would be.
        alpha: how fast the scale falls, not negative; 0 is constant guidance with w_max.
        form: "interpolating" or "original".

    Raises:
        ValueError: another form, or a number outside its range.

    Reference: 2508.03442; "original" as in its later text, MAMBO-G.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.RAAG(w_max=18.0, alpha=12.0)
        >>> u = jnp.ones((2, 4))
        >>> c = u * jnp.array([[1.001], [2.0]])  # hardly different, and as different as u is large
        >>> rule.combine(0.5, c, u, rule.init(u))[1]["scale"].round(2)
        Array([17.8,  1. ], dtype=float32)
    """

    space = "velocity"

    w_max: Any = 18.0
    alpha: Any = 12.0
    form: str = static("interpolating")

    def __post_init__(self) -> None:
        """Checks the form and the numbers."""
        real("(-inf, inf)", w_max=self.w_max)
        real("[0, inf)", alpha=self.alpha)
        if self.form not in ("interpolating", "original"):
            raise ValueError(f"form must be 'interpolating' or 'original', got {self.form!r}")

    def init(self, x: Array) -> dict[str, Array]:
        """Room for what is reported."""
        zero = jnp.zeros(x.shape[0], precision(x))
        return {"ratio": zero, "scale": zero}

    def active(self, t: Any) -> Any:
        """Wherever the scale can differ from 1."""
        return True if self.form == "original" else jnp.any(jnp.asarray(self.w_max) != 1)

    def combine(self, t: Any, c: Array, u: Array, state: Any) -> tuple[Array, dict[str, Array]]:
        """U + w(rho) (c - u)."""
        ratio = norm(c - u) / (norm(u) + 1e-8)
        ceiling = self.w_max - 1 if self.form == "interpolating" else self.w_max
        scale = 1 + ceiling * jnp.exp(-self.alpha * ratio)
        report = {"ratio": ratio.reshape(-1), "scale": scale.reshape(-1)}
        return u + scale.astype(c.dtype) * (c - u), report

    def report(self, state: dict[str, Array]) -> dict[str, Array]:
        """Ratio and scale of every sample, (B,) each."""
        return state

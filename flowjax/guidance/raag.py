"""RAAG and MAMBO-G (2508.03442): a scale that falls with the relative size of the guidance direction."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import choose, real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strength, differs, norm, strength
from flowjax.paths.base import expand, precision


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
        w_max: scale reached where c - u vanishes, as for `CFG`; much larger than a constant scale would be.
        alpha: how fast the scale falls, not negative; 0 is constant guidance with w_max.
        form: "interpolating" or "original".
        ratio: "sample", each has a scale of its own, or "batch", all have that of the mean ratio: then a sample depends
            on its batch mates.

    Raises:
        ValueError: another form, or a number outside its range.

    Reference: 2508.03442; "original" as in its later text, MAMBO-G. The mean ratio is that of video programs.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> rule = fj.guidance.RAAG(w_max=18.0, alpha=12.0)
        >>> u = jnp.ones((2, 4))
        >>> c = u * jnp.array([[1.001], [2.0]])  # hardly different, and as different as u is large
        >>> rule.combine(0.5, c, u, rule.init(u))[1]["scale"].round(2)
        Array([17.8,  1. ], dtype=float32)
    """

    space = "velocity"

    w_max: Any = part("scale", 18.0)
    alpha: Any = 12.0
    form: str = static("interpolating")
    ratio: str = static("sample")

    def __post_init__(self) -> None:
        """Checks the words and the numbers."""
        check_strength(self.w_max, "w_max")
        real("[0, inf)", alpha=self.alpha)
        choose("form", self.form, ("interpolating", "original"))
        choose("ratio", self.ratio, ("sample", "batch"))

    @property
    def couples_batch(self) -> bool:
        """With the mean ratio."""
        return self.ratio == "batch"

    def init(self, x: Array) -> dict[str, Array]:
        """Room for what is reported."""
        zero = jnp.zeros(x.shape[0], precision(x))
        return {"ratio": zero, "scale": zero}

    def idle(self, state: Any) -> dict[str, Array]:
        """Scale 1, and a ratio that nobody knows."""
        one = jnp.ones_like(state["scale"])
        return {"ratio": jnp.full_like(one, jnp.nan), "scale": one}

    def active(self, t: Any) -> Any:
        """Wherever the scale can differ from 1."""
        return differs(self.w_max, t, 1.0 if self.form == "interpolating" else 0.0)

    def combine(self, t: Any, c: Array, u: Array, state: Any) -> tuple[Array, dict[str, Array]]:
        """U + w(rho) (c - u)."""
        ratio = norm(c - u) / (norm(u) + 1e-8)
        if self.ratio == "batch":
            ratio = jnp.broadcast_to(jnp.mean(ratio), ratio.shape)
        ceiling = expand(strength(self.w_max, t), ratio) - (1 if self.form == "interpolating" else 0)
        scale = 1 + ceiling * jnp.exp(-expand(self.alpha, ratio) * ratio)
        report = {"ratio": ratio.reshape(-1), "scale": scale.reshape(-1)}
        return u + scale.astype(c.dtype) * (c - u), report

    def report(self, state: dict[str, Array]) -> dict[str, Array]:
        """Ratio and scale of every sample, (B,) each; NaN and 1 where the second evaluation was saved."""
        return state


@fact("rule", "mambo_g", "RAAG under its later name, with the settings of that text", cite="zhu2025raag")
@pytree
class MAMBOG(RAAG):
    """Magnitude-aware mitigation for boosted guidance: `RAAG` under its later name, with w_max = 10 and alpha = 8.

    These are the settings for Qwen-Image in 10 steps; `Rescaled(rule=MAMBOG(), phi=1.0)` is its published combination.
    The text has form="original", w(rho) = 1 + w_max exp(-alpha rho), and the authors' program by default the
    interpolating one, which is the default here too; arguments as for `RAAG`.

    Reference: 2508.03442, version 4.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> c, u = jnp.full((1, 4), 1.5), jnp.ones((1, 4))
        >>> for form in ("interpolating", "original"):
        ...     rule = fj.guidance.MAMBOG(form=form)
        ...     print(round(float(rule.combine(0.5, c, u, rule.init(u))[1]["scale"][0]), 3))
        1.165
        1.183
    """

    w_max: Any = part("scale", 10.0)
    alpha: Any = 8.0

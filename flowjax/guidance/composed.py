"""Several conditions side by side, each with a scale, negative ones too (Liu et al., 2206.01714)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strengths, strength
from flowjax.paths.base import expand


@fact(
    "rule",
    "composed",
    "several conditions side by side, with a scale each",
    cite="liu2022compositional",
    example=lambda: {"scales": (2.0, -1.0)},
)
@pytree
class Composed(Rule):
    """The condition of the run and others beside it, each with a scale of its own; a negative one leads away.

        v = u + w_1 (c_1 - u) + w_2 (c_2 - u) + ...

    with c_1 the prediction under the run's condition, and c_2, ... under those of `guide(..., also=(second, ...))`.
    Predictions of weight zero are not computed. Linear, so the same in every prediction.

    Args:
        scales: two or more, as for `CFG`, that of the run's condition first.

    Raises:
        ValueError: fewer; when evaluated, another number of conditions.

    Reference: Liu et al. (2206.01714), section 4: conjunction, and negation with a negative scale.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: x + cond[:, None], path=fj.paths.Linear(), null=0.0)
        >>> field = fj.guide(flow, fj.guidance.Composed(scales=(2.0, -1.0)), also=(5.0,))
        >>> field.velocity(0.5, jnp.zeros((1, 1)), jnp.array([1.0])).tolist()  # 2 * 1 - 5
        [[-3.0]]
    """

    scales: Any = part("scale")

    def __post_init__(self) -> None:
        """Checks the scales."""
        check_strengths(self.scales, 2)

    def _weights(self, t: Any) -> list[Any]:
        """Those of u, c_2, ...; c_1 has the rest of 1."""
        scales = [jnp.asarray(strength(scale, t)) for scale in self.scales]
        return [1 - sum(scales[1:], scales[0]), *scales[1:]]

    def active(self, t: Any) -> Any:
        """Wherever the sum is not the first prediction alone."""
        return jnp.any(jnp.stack(self.needed(t)))

    def needed(self, t: Any) -> tuple[Any, ...]:
        """The predictions whose weight is not zero."""
        return tuple(jnp.any(weight != 0) for weight in self._weights(t))

    def questions(self, cond: Any, null: Any, also: tuple[Any, ...]) -> tuple[tuple[Any, dict[str, Any]], ...]:
        """The null condition and the others."""
        if len(also) != len(self.scales) - 1:
            raise ValueError(
                f"Composed has {len(self.scales)} scales, the first for the run's own condition: give also= "
                f"{len(self.scales) - 1} further conditions, got {len(also)}"
            )
        return ((null, {}), *((other, {}) for other in also))

    def combine(self, t: Any, c: Array, u: Any, state: Any) -> tuple[Array, Any]:
        """The weighted sum."""
        value = expand(strength(self.scales[0], t), c) * c
        for weight, f in zip(self._weights(t), u, strict=True):
            value = value + expand(weight, c) * f
        return value, state

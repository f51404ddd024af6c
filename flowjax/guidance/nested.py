"""Two conditions, or more, with a scale each, one on top of the other (InstructPix2Pix, Brooks et al., 2211.09800)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import choose
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.guidance.base import Rule, check_strengths, strength
from flowjax.paths.base import expand


@fact(
    "rule",
    "nested",
    "a scale for each of several conditions by name",
    cite="brooks2022instructpix2pix",
    example=lambda: {"names": ("image", "text"), "scales": (1.5, 2.0)},
)
@pytree
class Nested(Rule):
    """Conditions by name, added one after the other, each with a scale of its own.

    With f_k the prediction under the first k names, the others of them null,

        v = f_0 + w_1 (f_1 - f_0) + w_2 (f_2 - f_1) + ...

    A prediction whose weight w_k - w_(k+1) is zero (w_0 = 1) is not computed: none with all scales 1, two in all with
    equal scales, which are plain guidance. Conditions that are not named are never dropped. Linear, so the same in
    every prediction.

    Args:
        names: of conditions of the run, two or more, in the order in which they are added; (image, text) is that of the
            paper.
        scales: one for each, as for `CFG`.

    Raises:
        ValueError: other numbers of scales, names that come twice; when evaluated, a name that is no condition of the
            run.

    Reference: Brooks, Holynski and Efros (2211.09800), eq. 3.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> null, network = {"image": 0.0, "text": 0.0}, lambda x, t, cond: x + (cond["image"] + cond["text"])[:, None]
        >>> flow = fj.Flow(network, path=fj.paths.Linear(), null=null)
        >>> field = fj.guide(flow, fj.guidance.Nested(names=("image", "text"), scales=(2.0, 3.0)))
        >>> cond = {"image": jnp.array([1.0]), "text": jnp.array([10.0])}
        >>> field.velocity(0.5, jnp.zeros((1, 1)), cond).tolist()  # 2 * 1 + 3 * 10
        [[32.0]]
    """

    names: tuple[str, ...] = static()
    scales: Any = part("scale")

    def __post_init__(self) -> None:
        """Checks names and scales."""
        object.__setattr__(self, "names", tuple(self.names))
        check_strengths(self.scales, 2)
        if len(set(self.names)) != len(self.names) or len(self.names) != len(self.scales):
            raise ValueError(f"each name has one scale, got names={self.names} and {len(self.scales)} scales")

    def _weights(self, t: Any) -> list[Any]:
        """Those of f_0, ..., f_(K-1)."""
        scales = [1.0, *(strength(scale, t) for scale in self.scales)]
        return [jnp.asarray(scales[k]) - jnp.asarray(scales[k + 1]) for k in range(len(self.names))]

    def active(self, t: Any) -> Any:
        """Wherever a scale is not 1."""
        return jnp.any(jnp.stack(self.needed(t)))

    def needed(self, t: Any) -> tuple[Any, ...]:
        """The predictions whose weight is not zero."""
        return tuple(jnp.any(weight != 0) for weight in self._weights(t))

    def questions(self, cond: Any, null: Any, also: tuple[Any, ...]) -> tuple[tuple[Any, dict[str, Any]], ...]:
        """None of the names, then one more each time."""
        super().questions(cond, null, also)
        if not isinstance(cond, dict) or not isinstance(null, dict):
            raise ValueError(f"Nested needs conditions by name, a dict with {', '.join(self.names)}, and their nulls")
        for name in self.names:
            choose("condition of this run", name, cond)
        return tuple(
            ({name: null[name] if name in self.names[k:] else own for name, own in cond.items()}, {})
            for k in range(len(self.names))
        )

    def combine(self, t: Any, c: Array, u: Any, state: Any) -> tuple[Array, Any]:
        """The weighted sum."""
        value = expand(strength(self.scales[-1], t), c) * c
        for weight, f in zip(self._weights(t), u, strict=True):
            value = value + expand(weight, c) * f
        return value, state

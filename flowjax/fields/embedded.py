"""A field whose network answers with guidance in one call: the scale is one of its inputs."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import pair, real
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.fields.wrapper import FieldWrapper
from flowjax.flow import Field
from flowjax.paths.base import precision


@fact("field", "embedded", "a network that answers with guidance in one call", cite="meng2022distillation")
@pytree
class Embedded(FieldWrapper):
    """A field that is asked with `guidance=`, the scale that its network has learned to answer with.

    Args:
        field: the field of a network that takes `guidance=`, (B,).
        guidance: the scale, a number or one per sample (B,); 1 is the conditional prediction.
        interval: times (start, stop) between which the scale holds, for a network that takes `interval=`, (B, 2), such
            as `flowjax.models.TokenDiT`; None asks without.

    Raises:
        ValueError: a scale that is negative or not finite, an interval that is none, or a field inside that has a
            scale.

    References:
        Meng et al. (2022), On Distillation of Guided Diffusion Models, section 3.1, arXiv:2210.03142. Geng et al.
        (2025), Improved Mean Flows, arXiv:2512.02012 (intervals).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond, guidance=None: guidance[:, None] * x, path=fj.paths.Linear())
        >>> fj.fields.Embedded(flow, guidance=2.0).velocity(0.5, jnp.ones((1, 2))).tolist()
        [[2.0, 2.0]]
    """

    positional = ("field",)

    field: Field = part("field")
    guidance: Any = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Checks the field and a concrete scale."""
        super().__post_init__()
        real("[0, inf)", guidance=self.guidance)
        if self.interval is not None:
            pair("[0, 1]", interval=self.interval)
        inner: Any = self.field
        while isinstance(inner, FieldWrapper):
            if isinstance(inner, Embedded):
                raise ValueError("an Embedded field has its scale already: give one, the network takes one")
            inner = inner.field

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Any, Any]:
        """The field's answer for this scale."""
        extra["guidance"] = jnp.broadcast_to(jnp.asarray(self.guidance, precision(x)), x.shape[:1])
        if self.interval is not None:
            extra["interval"] = jnp.broadcast_to(jnp.asarray(self.interval, precision(x)), (x.shape[0], 2))
        return self.field.evaluate(t, x, cond, memory, to=to, **extra)

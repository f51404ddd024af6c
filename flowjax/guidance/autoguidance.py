"""Autoguidance (Karras et al., 2406.02507): the formula of plain guidance against a weaker model."""

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.guidance.cfg import CFG


@fact(
    "rule", "autoguidance", "guidance against a weaker model", cite="karras2024guiding", example=lambda: {"scale": 2.0}
)
@pytree
class Autoguidance(CFG):
    """Guidance away from a weaker copy of the model; arguments as for `CFG`.

    v = v_weak + w (v - v_weak), both with the condition; the weak model is smaller or less trained. Use it with
    `guide(flow, Autoguidance(scale=w), against=weak_flow)`.

    Reference: Karras et al. (2406.02507).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: 3 * x, path=fj.paths.Linear())
        >>> weak = fj.Flow(lambda x, t, cond: 2 * x, path=fj.paths.Linear())
        >>> field = fj.guide(flow, fj.guidance.Autoguidance(scale=2.0), against=weak)
        >>> field.velocity(0.5, jnp.ones((1, 2)), cond=jnp.zeros(1)).tolist()
        [[4.0, 4.0]]
    """

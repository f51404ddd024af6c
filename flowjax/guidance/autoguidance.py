"""Autoguidance (Karras et al., 2406.02507): the formula of plain guidance against a weaker model.

v = v_weak + w (v - v_weak), both with the condition; the weak model is smaller or less trained. Use it with
`guide(flow, Autoguidance(scale=w), against=weak_flow)`.
"""

from flowjax._pytree import pytree
from flowjax.guidance.cfg import CFG


@pytree
class Autoguidance(CFG):
    """Guidance away from a weaker copy of the model; arguments as for `CFG`."""

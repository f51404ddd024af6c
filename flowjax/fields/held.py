"""The base of fields that answer some steps with the last prediction of the network: what people compare SADA with."""

import reprlib
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import choose, real
from flowjax.fields.saving import Saving, Spared


class Held(Saving):
    """A saved evaluation is answered by the last prediction of the network, of the kind `keep`.

    The first and the last step reach the network, and the first `warmup` of all. What differs is the decision.

    Example:
        >>> import flowjax as fj
        >>> issubclass(fj.fields.MagCache, fj.fields.Held)
        True
    """

    warmup: Any
    keep: str

    def __post_init__(self) -> None:
        """Checks the field and the options."""
        super().__post_init__()
        choose("keep", self.keep, ("velocity", "noise", "data"))
        real("[0, 1]", warmup=self.warmup)

    def state(self, x: Array) -> Any:
        """What the decision keeps."""
        return ()

    def begin(self, x: Array, steps: int) -> Any:
        """No prediction yet."""
        return jnp.zeros_like(x), self.state(x)

    def allowed(self, memory: Spared) -> Array:
        """Whether the step that comes may be saved at all."""
        share = jnp.asarray(self.warmup, jnp.float32) * memory.steps
        first = jnp.ceil(share - 1e-3).astype(jnp.int32)  # 0.15 of 100 steps are 15, whatever the rounding says
        return (memory.step >= first) & (memory.step < memory.steps - 1) & (memory.step > 0)

    def answer(self, t: Any, x: Array, memory: Spared, more: Any, to: str) -> Array:
        """The prediction kept."""
        return self.path.convert(memory.own[0], given=self.keep, to=to, t=t, x=x)

    def remember(self, t: Any, x: Array, value: Array, to: str, skip: Array, memory: Spared, more: Any) -> Any:
        """The prediction of a call."""
        new = self.path.convert(value, given=to, to=self.keep, t=t, x=x)
        return jnp.where(skip, memory.own[0], new), self.after(skip, more)

    def after(self, skip: Array, more: Any) -> Any:
        """What the decision keeps after a step."""
        return ()


def numbers(name: str, interval: str, values: Any) -> None:
    """Raises ValueError unless `values` are a list of numbers, or a line of them in an array."""
    if not isinstance(values, list | tuple) and getattr(values, "ndim", None) != 1:
        raise ValueError(f"{name} must be a list of numbers, got {reprlib.repr(values)}")
    for number in values if isinstance(values, list | tuple) else (values,):
        real(interval, **{name: number})

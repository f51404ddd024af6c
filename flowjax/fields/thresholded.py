"""Dynamic thresholding of the data prediction (Saharia et al., Imagen, 2205.11487, section 2.3).

Per sample, q = max(1, quantile of |m|) over all its elements, and m <- clip(m, -q, q)/q. For data in [-1, 1] in pixel
space, under strong guidance; never for latents.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.flow import Field, check_determined
from flowjax.paths.base import GaussianPath


@pytree
class Thresholded(Field):
    """A field whose data prediction is thresholded at every evaluation, whatever prediction is asked for.

    Args:
        field: the field, guidance included.
        quantile: in (0, 1].

    Raises:
        ValueError: another quantile.
    """

    positional = ("field",)

    field: Field = part("field")
    quantile: float = 0.995

    def __post_init__(self) -> None:
        """Checks the quantile if it is concrete."""
        if isinstance(self.quantile, int | float) and not 0 < self.quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1], got {self.quantile}")

    @property
    def path(self) -> GaussianPath:
        """The field's."""
        return self.field.path

    @property
    def stateless(self) -> bool:
        """Whether the field is."""
        return self.field.stateless

    @property
    def one_evaluation_per_step(self) -> bool:
        """Whether the field asks for it."""
        return self.field.one_evaluation_per_step

    def init(self, x: Array, times: Any = None) -> Any:
        """The field's memory."""
        return self.field.init(x, times)

    def report(self, memory: Any) -> Any:
        """The field's."""
        return self.field.report(memory)

    def check(self, times: Any, to: str) -> None:
        """The data prediction must be known, and determine what is asked for.

        Raises:
            ValueError: at a time where it is not, or "raw" is asked for.
        """
        if to == "raw":
            raise ValueError("Thresholded works on the data prediction, not on the raw network output")
        self.field.check(times, "data")
        for t in times:
            check_determined(self.path, "data", to, float(t))

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Any]:
        """The prediction that belongs to the thresholded data prediction."""
        m, memory = self.field.evaluate(t, x, cond, memory, to="data", **extra)
        size = jnp.quantile(jnp.abs(m.astype(jnp.float32)).reshape(m.shape[0], -1), self.quantile, axis=1)
        q = jnp.maximum(size, 1.0).reshape(-1, *(1,) * (m.ndim - 1)).astype(m.dtype)
        m = jnp.clip(m, -q, q) / q
        return self.path.convert(m, given="data", to=to, t=t, x=x), memory

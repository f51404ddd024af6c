"""Dynamic thresholding of the data prediction (Saharia et al., Imagen, 2205.11487, section 2.3)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import real
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.fields.wrapper import DataWrapper
from flowjax.flow import Field
from flowjax.paths.base import at_least_single


@fact("field", "thresholded", "dynamic thresholding of the data prediction", cite="saharia2022photorealistic")
@pytree
class Thresholded(DataWrapper):
    """A field whose data prediction is thresholded at every evaluation, whatever prediction is asked for.

    Per sample, q = the quantile of |m| over all its elements, moved into [1, max], and m <- clip(m, -q, q)/q. For data
    in [-1, 1] in pixel space, under strong guidance; never for latents.

    Args:
        field: the field, guidance included.
        quantile: in (0, 1].
        max: largest q, at least 1, so that a few extreme elements do not darken the others; 1 clips to [-1, 1]. None
            does not limit it. (`sample_max_value` in diffusers, whose default is 1.)

    Raises:
        ValueError: a number outside its range, or a field whose predictions cannot be converted.

    Reference: Saharia et al. (2205.11487), section 2.3.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: 2 * x, path=fj.paths.Linear(), prediction="data")
        >>> field = fj.fields.Thresholded(flow, quantile=1.0)
        >>> field.data(0.5, jnp.array([[1.0, 0.5, -0.25]])).tolist()  # 2 x over its largest element
        [[1.0, 0.5, -0.25]]
    """

    positional = ("field",)
    couples_entries = True  # of a sample, by the quantile

    field: Field = part("field")
    quantile: Any = 0.995
    max: Any = None

    def __post_init__(self) -> None:
        """Checks the field and the numbers."""
        super().__post_init__()
        real("(0, 1]", quantile=self.quantile)
        real("[1, inf)", max=1.0 if self.max is None else self.max)

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Any]:
        """The prediction that belongs to the thresholded data prediction."""
        m, memory = self.field.evaluate(t, x, cond, memory, to="data", **extra)
        sizes = jnp.abs(at_least_single(m)).reshape(m.shape[0], -1)
        q = jnp.maximum(jnp.quantile(sizes, jnp.asarray(self.quantile, sizes.dtype), axis=1), 1.0)
        if self.max is not None:
            q = jnp.minimum(q, jnp.asarray(self.max, q.dtype))
        q = q.reshape(-1, *(1,) * (m.ndim - 1)).astype(m.dtype)
        m = jnp.clip(m, -q, q) / q
        return self.path.convert(m, given="data", to=to, t=t, x=x), memory

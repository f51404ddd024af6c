"""The consistency function of a network: its data prediction, held at the state itself where the data are reached."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import real
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.fields.wrapper import DataWrapper
from flowjax.flow import Field
from flowjax.paths.base import check_time_and_state, expand


@fact("field", "bounded", "a data prediction that ends at the state itself", cite="luo2023latent")
@pytree
class Bounded(DataWrapper):
    """A field whose data prediction m becomes f(x, t) = c_skip x + c_out m, whatever prediction is asked for.

    With s = scale max(end - t, 0) and d = data_std,

        c_skip = d^2 / (s^2 + d^2),   c_out = s / sqrt(s^2 + d^2),

    so that f(x, t) = x exactly from `end` on, without a gradient for the network, and c_skip + c_out^2 = 1. Consistency
    models whose data prediction does not end at x itself are trained and sampled with it: networks that predict the
    data, and tables of N steps, of which the last, 1 - 1/N, holds some noise. The published latent consistency models
    have s = 10 k at step k of 1,000: scale=10,000 and end=0.999.

    Args:
        field: the field.
        scale: of the time that is left, positive.
        data_std: d, positive.
        end: first time at which f(x, t) = x, in (0, 1].

    Raises:
        ValueError: a number outside its range, or a field whose predictions cannot be converted.

    Reference: Luo et al. (2023), Latent Consistency Models, section 4.1, arXiv:2310.04378. Consistency models
    (2303.01469) have the factor d in c_out, too.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: 0 * x + 5, path=fj.paths.Linear(), prediction="data")
        >>> field, x = fj.fields.Bounded(flow), jnp.array([[2.0]])
        >>> [round(float(field.data(t, x)[0, 0]), 3) for t in (0.0, 0.5, 1.0)]
        [5.0, 5.0, 2.0]
    """

    positional = ("field",)

    field: Field = part("field")
    scale: Any = 1e4
    data_std: Any = 0.5
    end: Any = 1.0

    def __post_init__(self) -> None:
        """Checks the field and the numbers."""
        super().__post_init__()
        real("(0, inf)", scale=self.scale, data_std=self.data_std)
        real("(0, 1]", end=self.end)

    @property
    def network(self) -> Any:
        """That of the flow inside."""
        return self.field.network  # type: ignore[attr-defined]

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Any]:
        """The prediction that belongs to f."""
        t = jnp.asarray(check_time_and_state(t, x))
        m, memory = self.field.evaluate(t, x, cond, memory, to="data", **extra)
        scale, std, end = (jnp.asarray(value, t.dtype) for value in (self.scale, self.data_std, self.end))
        s = scale * jnp.maximum(end - t, 0)
        skip, out = std**2 / (s**2 + std**2), s * jax.lax.rsqrt(s**2 + std**2)
        f = expand(skip, x) * x + expand(out, x) * m
        return self.path.convert(f, given="data", to=to, t=t, x=x), memory

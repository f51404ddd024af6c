"""What fields for inverse problems share: the score of a measurement, added to that of the data.

A measurement is y = A(x1) + noise_std e with standard normal e. By Bayes' rule the score of x_t given y is that of the
field plus the gradient of log p(y | x_t). With the field's data prediction m and the law of x1 given x_t taken for a
Gaussian of mean m and covariance V,

    p(y | x_t) = N(A m, noise_std^2 + A V A^T),   d log p(y | x_t)/dx = J^T A^T (noise_std^2 + A V A^T)^-1 (y - A m)

with J = dm/dx. It moves the data prediction by sigma^2/alpha times itself. What V is tells the methods apart. An
operator that is not linear is linearised at m.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._checks import real
from flowjax._pytree import part, pytree
from flowjax.fields.wrapper import DataWrapper
from flowjax.flow import Field, check_determined
from flowjax.guidance.base import check_strength, inner, strength
from flowjax.paths.base import divide, expand

Map = Callable[[Array], Array]


@pytree
class Posterior(DataWrapper):
    """A field given a measurement; subclasses say how they solve for the covariance.

    Attributes:
        operator: the function A of states (B, ...), each sample by itself; `flowjax.fields.operators` has some.
        measured: y, what the operator answers with, (B, ...), or (1, ...) for all samples.
        noise_std: standard deviation of its noise, positive, in the scale of the flow.
        scale: factor of the score of the measurement, as for `CFG`; 1 is Bayes' rule.

    Example:
        >>> import flowjax as fj
        >>> issubclass(fj.fields.MMPS, Posterior)
        True
    """

    positional = ("field",)
    couples_entries = True  # of a sample, by the measurement

    field: Field = part("field")
    operator: Any = part("operator")
    measured: Any = part("array")
    noise_std: Any = 0.05
    scale: Any = part("scale", 1.0)

    def __post_init__(self) -> None:
        """Checks what can be checked.

        Raises:
            ValueError: no field whose predictions can be converted, an operator that is no function, or a number
                outside its range.
        """
        super().__post_init__()
        if not callable(self.operator):
            raise ValueError(f"operator must be a function of states (B, ...), got {self.operator!r}")
        real("(0, inf)", noise_std=self.noise_std)
        real("(-inf, inf)", measured=self.measured)
        check_strength(self.scale)

    def check(self, times: Any, to: str) -> None:
        """As any change of the data prediction; and where alpha = 0, the state says nothing of the data.

        Raises:
            ValueError: at such a time, or "raw" is asked for.
        """
        super().check(times, to)
        for t in times:
            check_determined(self.path, "score", "data", float(t))

    @abc.abstractmethod
    def solve(self, t: Any, residual: Array, forward: Map, backward: Map, covariance: Map) -> Array:
        """(noise_std^2 + A V A^T)^-1 (y - A m), of the shape of the measurement.

        Args:
            t: the time.
            residual: y - A m.
            forward: A.
            backward: A^T.
            covariance: sigma^2/alpha J^T, by Tweedie's formula the covariance of x1 given x_t.
        """

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Any]:
        """The prediction that belongs to the data prediction given the measurement; one evaluation, and derivatives."""
        m, pull, memory = jax.vjp(
            lambda x: self.field.evaluate(t, x, cond, memory, to="data", **extra), x, has_aux=True
        )
        answer, forward = jax.linearize(self.operator, m)
        if jnp.shape(self.measured) not in (answer.shape, (1, *answer.shape[1:])):
            raise ValueError(f"the operator answers {answer.shape}, and measured has {jnp.shape(self.measured)}")
        transposed = jax.linear_transpose(forward, m)
        ratio = expand(divide(self.path.sigma(t) ** 2, self.path.alpha(t)), x)

        def backward(v: Array) -> Array:
            return transposed(v)[0]

        def covariance(v: Array) -> Array:
            return ratio * pull(v)[0]

        solved = self.solve(t, jnp.asarray(self.measured, m.dtype) - answer, forward, backward, covariance)
        m = m + expand(strength(self.scale, t), x) * covariance(backward(solved))
        return self.path.convert(m, given="data", to=to, t=t, x=x), memory


def conjugate_gradients(apply: Map, b: Float[Array, "B ..."], iterations: int) -> Float[Array, "B ..."]:
    """The solution of apply(v) = b, each sample by itself, NaN where b is; `apply` is symmetric and positive."""
    enough = 1e-12 * inner(b, b)

    def step(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        v, r, p, rr = carry
        q = apply(p)
        curvature = inner(p, q)
        going = (rr > enough) & (curvature > 0)
        a = jnp.where(going, rr / jnp.where(going, curvature, 1), 0).astype(b.dtype)
        v, r = v + a * p, r - a * q
        new = inner(r, r)
        p = jnp.where(going, r + (new / jnp.where(going, rr, 1)).astype(b.dtype) * p, p)
        return v, r, p, jnp.where(going, new, 0)

    v = jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b, inner(b, b)))[0]
    return jnp.where(jnp.isfinite(inner(b, b)), v, jnp.nan)

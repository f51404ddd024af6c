"""Moment matching posterior sampling (Rozet et al., 2405.13712): the covariance of the data by Tweedie's formula."""

from typing import Any

from jaxtyping import Array

from flowjax._checks import whole
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.fields.posterior import Map, Posterior, conjugate_gradients


@fact("field", "mmps", "samples given a measurement, with the covariance of the data", cite="rozet2024learning")
@pytree
class MMPS(Posterior):
    """Moment matching posterior sampling: V = sigma^2/alpha J^T in the formula of `flowjax.fields.posterior`.

    That is the covariance of x1 given x_t, exactly: for Gaussian data and a linear operator the samples are those of
    the posterior, however precise the measurement. The system is solved by conjugate gradients, one derivative of the
    network each.

    Args:
        field: the field, guidance included.
        operator: the function A of states (B, ...).
        measured: y = A(x1) + noise, (B, ...), or (1, ...) for all samples.
        noise_std: of the noise, positive; the smaller, the more steps near t = 1 are needed.
        scale: factor of the score of the measurement, as for `CFG`; 1 is Bayes' rule.
        iterations: of conjugate gradients, at least 1; as many as numbers are measured are exact.

    Raises:
        ValueError: no field whose predictions can be converted, an operator that is no function, a number outside its
            range; when evaluated, a measurement of another shape, or a time with alpha = 0.

    Reference: Rozet et al. (2405.13712), section 4.2.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=0.0, std=1.0, path=fj.paths.Linear())
        >>> flow, first = fj.Flow(law.network(), path=law.path), lambda x: x[:, :1]
        >>> field = fj.fields.MMPS(flow, operator=first, measured=jnp.array([[3.0]]), noise_std=0.5)
        >>> [round(float(v), 2) for v in field.data(1e-3, jnp.zeros((1, 2)))[0]]  # the posterior mean 3/(1 + 0.25)
        [2.4, 0.0]
    """

    iterations: int = static(3)

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        whole("[1, inf)", iterations=self.iterations)

    def solve(self, t: Any, residual: Array, forward: Map, backward: Map, covariance: Map) -> Array:
        """By conjugate gradients."""
        return conjugate_gradients(
            lambda v: self.noise_std**2 * v + forward(covariance(backward(v))), residual, self.iterations
        )

"""Pseudoinverse-guided sampling (Song et al., 2023): the data given x_t with one variance in all directions."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import real, whole
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.fields.posterior import Map, Posterior, conjugate_gradients
from flowjax.paths.base import divide, expand


@fact("field", "pgdm", "samples given a measurement, with one variance of the data", cite="pokle2023training")
@pytree
class PGDM(Posterior):
    """Pseudoinverse guidance: V = r^2 I in the formula of `flowjax.fields.posterior`.

        r^2 = sigma^2 s^2/(sigma^2 + alpha^2 s^2)

    is the variance of x1 given x_t for data N(0, s^2). One derivative of the network, however many iterations. Exact
    for such data, and for others as good as this variance. The published program weights the score by r^2 beside that;
    for flows it is better without.

    Args:
        field: the field, guidance included.
        operator: the function A of states (B, ...).
        measured: y = A(x1) + noise, (B, ...), or (1, ...) for all samples.
        noise_std: of the noise, positive.
        scale: factor of the score of the measurement, as for `CFG`; 1 is Bayes' rule.
        data_std: s, positive; 1 in the paper.
        iterations: of conjugate gradients for A A^T, at least 1; one is exact for masks and means of squares.

    Raises:
        ValueError: no field whose predictions can be converted, an operator that is no function, a number outside its
            range; when evaluated, a measurement of another shape, or a time with alpha = 0.

    References: Song et al. (2023), Pseudoinverse-Guided Diffusion Models for Inverse Problems, eq. 7. Pokle et al.
    (2310.04432), the same for flows.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=0.0, std=1.0, path=fj.paths.Linear())
        >>> flow, first = fj.Flow(law.network(), path=law.path), lambda x: x[:, :1]
        >>> field = fj.fields.PGDM(flow, operator=first, measured=jnp.array([[3.0]]), noise_std=0.5)
        >>> [round(float(v), 2) for v in field.data(1e-3, jnp.zeros((1, 2)))[0]]  # the posterior mean 3/(1 + 0.25)
        [2.4, 0.0]
    """

    data_std: Any = 1.0
    iterations: int = static(3)

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        real("(0, inf)", data_std=self.data_std)
        whole("[1, inf)", iterations=self.iterations)

    def solve(self, t: Any, residual: Array, forward: Map, backward: Map, covariance: Map) -> Array:
        """By conjugate gradients."""
        noise, spread = self.path.sigma(t) ** 2, jnp.asarray(self.data_std) ** 2
        variance = expand(divide(noise * spread, noise + self.path.alpha(t) ** 2 * spread), residual)
        return conjugate_gradients(
            lambda v: self.noise_std**2 * v + variance * forward(backward(v)), residual, self.iterations
        )

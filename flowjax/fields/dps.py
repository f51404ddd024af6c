"""Diffusion posterior sampling (Chung et al., 2209.14687): the measurement of the data prediction itself."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import choose
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.fields.posterior import Map, Posterior
from flowjax.guidance.base import norm
from flowjax.paths.base import divide, expand


@fact("field", "dps", "samples given a measurement, as if its data prediction were the data", cite="chung2022diffusion")
@pytree
class DPS(Posterior):
    """Diffusion posterior sampling: V = 0 in the formula of `flowjax.fields.posterior`.

    With `form="likelihood"` the score of the measurement is -1/(2 noise_std^2) d|y - A m|^2/dx. That overrates the
    measurement as long as m is uncertain, the more the smaller noise_std is: it then needs a scale below 1, and its
    samples are those of no posterior. With `form="norm"`, what the published program does, noise_std is not used: the
    velocity changes by -scale d|y - A m|/dx, which is a step of size scale/n in each of n uniform steps; there it
    is one of size about 1 in each of 1,000.

    Args:
        field: the field, guidance included.
        operator: the function A of states (B, ...); it need not be linear.
        measured: y = A(x1) + noise, (B, ...), or (1, ...) for all samples.
        noise_std: of the noise, positive.
        scale: factor of the score of the measurement, as for `CFG`.
        form: "likelihood" or "norm".

    Raises:
        ValueError: no field whose predictions can be converted, an operator that is no function, another form, a number
            outside its range; when evaluated, a measurement of another shape, or a time with alpha = 0.

    Reference: Chung et al. (2209.14687), eq. 11 and algorithm 1.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> law = fj.oracles.Gaussian(mean=0.0, std=1.0, path=fj.paths.Linear())
        >>> flow, first = fj.Flow(law.network(), path=law.path), lambda x: x[:, :1]
        >>> field = fj.fields.DPS(flow, operator=first, measured=jnp.array([[3.0]]), noise_std=2.0)
        >>> [round(float(v), 2) for v in field.data(1e-3, jnp.zeros((1, 2)))[0]]  # 3/4 where the mean is 3/5
        [0.75, 0.0]
    """

    form: str = static("likelihood")

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        choose("form", self.form, ("likelihood", "norm"))

    def solve(self, t: Any, residual: Array, forward: Map, backward: Map, covariance: Map) -> Array:
        """The residual over the variance; in the other form what moves the velocity by the gradient of its norm."""
        if self.form == "likelihood":
            return residual / jnp.asarray(self.noise_std, residual.dtype) ** 2
        # The score s moves the velocity by b s, and the data prediction by sigma^2/alpha s.
        _, b = self.path.weights("score", "velocity", t)
        return expand(divide(jnp.ones_like(b), b), residual) * divide(residual, norm(residual).astype(residual.dtype))

"""More one-sided Gaussian paths of diffusion models.

| path  | alpha(t)       | sigma(t)                                     | source                         |
|-------|----------------|----------------------------------------------|--------------------------------|
| SubVP | that of VP     | 1 - alpha^2                                  | score SDEs                     |
| SBDM  | t              | sqrt(1 - t^2)                                | stochastic interpolants        |
| EDM   | 1              | (a + t (b - a))^rho, a^rho, b^rho: its ends  | EDM                            |
"""

import math

from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath, Time, namespace
from flowjax.paths.gaussian import VP, _VariancePreserving


@fact("path", "sub_vp", "sub-VP diffusion", cite="song2020score")
@pytree
class SubVP(VP):
    """The sub-variance-preserving path: alpha of `VP`, sigma = 1 - alpha^2 (2011.13456, eq. 34-35).

    sigma' is finite everywhere, so that the velocity is bounded up to t = 1.

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.SubVP()
        >>> path.has_velocity(1.0), fj.paths.VP().has_velocity(1.0)
        (True, False)
    """

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise, without cancellation near t = 1."""
        return -namespace(t).expm1(2 * self.log_alpha(t))

    def dsigma(self, t: Time) -> Time:
        """Derivative -2 alpha alpha'."""
        return -2 * self.alpha(t) * self.dalpha(t)

    def sigma_dsigma(self, t: Time) -> Time:
        """The product sigma sigma'."""
        return self.sigma(t) * self.dsigma(t)

    def time(self, lam: Time) -> Time:
        """From the positive root of alpha^2 + alpha e^-lam - 1 = 0."""
        xp = namespace(lam)
        half = xp.exp(-lam) / 2
        small = -xp.arcsinh(half)  # log alpha, since alpha = sqrt(1 + half^2) - half
        width = self.beta_max - self.beta_min
        q = -4 * small
        return 1.0 - q / (xp.sqrt(self.beta_min**2 + q * width) + self.beta_min)


@fact("path", "sbdm", "SiT's variance-preserving path", cite="ma2024sit")
@pytree
class SBDM(_VariancePreserving):
    """alpha = t, sigma = sqrt(1 - t^2): score-based diffusion in the time of its data (2303.08797, table 4).

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.SBDM()
        >>> path.alpha(0.6), round(float(path.sigma(0.6)), 3)
        (0.6, 0.8)
    """

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data, t."""
        return 1.0 * t

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise, without cancellation near t = 1."""
        return namespace(t).sqrt((1.0 - t) * (1.0 + t))

    def dalpha(self, t: Time) -> Time:
        """Derivative 1."""
        return namespace(t).ones_like(t, dtype=getattr(t, "dtype", float))

    def time(self, lam: Time) -> Time:
        """(1 + e^(-2 lam))^(-1/2)."""
        xp = namespace(lam)
        return xp.exp(-xp.logaddexp(xp.zeros_like(lam), -2 * lam) / 2)


@fact("path", "edm", "EDM's sigma", cite="karras2022elucidating")
@pytree
class EDM(GaussianPath):
    """Data plus noise whose level falls along EDM's grid (2206.00364, eq. 5): uniform times are EDM's steps.

    alpha = 1, sigma = (a + t (b - a))^rho with a = sigma_max^(1/rho), b = sigma_min^(1/rho). Runs start at scale
    sigma_max: use `start`.

    Args:
        sigma_min: noise at t = 1, positive.
        sigma_max: noise at t = 0, above sigma_min.
        rho: positive; larger values spend more time at small noise.

    Raises:
        ValueError: a range that is empty, or rho not positive.

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.EDM()
        >>> [round(path.sigma(t), 3) for t in (0.0, 0.5, 1.0)]
        [80.0, 2.515, 0.002]
    """

    sigma_min: float = static(0.002)
    sigma_max: float = static(80.0)
    rho: float = static(7.0)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not (0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.rho < math.inf):
            raise ValueError(f"EDM needs 0 < sigma_min < sigma_max < inf and 0 < rho < inf, got {self}")

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data, 1."""
        return namespace(t).ones_like(t, dtype=getattr(t, "dtype", float))

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise."""
        first, last = self._ends
        return (first + t * (last - first)) ** self.rho

    def dalpha(self, t: Time) -> Time:
        """Derivative 0."""
        return 0.0 * self.alpha(t)

    def dsigma(self, t: Time) -> Time:
        """Derivative of sigma, negative."""
        first, last = self._ends
        return self.rho * (last - first) * (first + t * (last - first)) ** (self.rho - 1)

    def time(self, lam: Time) -> Time:
        """Inverse of lam = -log sigma."""
        first, last = self._ends
        return (namespace(lam).exp(-lam / self.rho) - first) / (last - first)

"""The one-sided Gaussian paths in common use.

| path   | alpha(t)                         | sigma(t)                    | source                              |
|--------|----------------------------------|-----------------------------|-------------------------------------|
| Linear | t                                | 1 - (1 - sigma_min) t       | flow matching, rectified flow, SD3  |
| Trig   | sin(pi t / 2)                    | cos(pi t / 2)               | stochastic interpolants, GVP of SiT |
| VP     | exp(-(b1-b0) u^2 / 4 - b0 u / 2) | sqrt(1 - alpha^2)           | DDPM, score SDEs; u = 1 - t         |
| Cosine | sin(a t) / sin(a)                | sqrt(1 - alpha^2)           | improved DDPM; a = pi/2 / (1 + s)   |
| VE     | 1                                | sigma_max^(1-t) sigma_min^t | NCSN, score SDEs, EDM               |
"""

import math

import numpy as np

from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import INFINITE_SLOPE, GaussianPath, Time, namespace


@fact(
    "path",
    "linear",
    "straight lines: x_t = alpha(t) x1 + sigma(t) x0 with alpha = t, sigma = 1 - t",
    cite="lipman2022flow",
)
@pytree
class Linear(GaussianPath):
    """Straight lines from noise to data (2210.02747, 2209.03003): alpha = t, sigma = 1 - (1 - sigma_min) t.

    Args:
        sigma_min: noise left at t = 1, in [0, 1); above 0 the path ends in data blurred by that much.

    Raises:
        ValueError: sigma_min outside its range.

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.Linear()
        >>> path.alpha(0.25), path.sigma(0.25), float(path.conditional_velocity(0.25, x0=1.0, x1=3.0))
        (0.25, 0.75, 2.0)
    """

    sigma_min: float = static(0.0)

    def __post_init__(self) -> None:
        """Checks the range."""
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"Linear needs 0 <= sigma_min < 1, got {self.sigma_min}")

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data, t."""
        return 1.0 * t

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise, 1 - (1 - sigma_min) t."""
        return 1.0 - (1.0 - self.sigma_min) * t

    def dalpha(self, t: Time) -> Time:
        """Derivative 1."""
        return namespace(t).ones_like(t, dtype=getattr(t, "dtype", float))

    def dsigma(self, t: Time) -> Time:
        """Derivative -(1 - sigma_min)."""
        return (self.sigma_min - 1.0) * self.dalpha(t)

    def determinant(self, t: Time) -> Time:
        """Exactly -1."""
        return -self.dalpha(t)

    def time(self, lam: Time) -> Time:
        """1 / (1 - sigma_min + e^-lam)."""
        xp = namespace(lam)
        return xp.exp(-xp.logaddexp(xp.full_like(lam, math.log1p(-self.sigma_min)), -lam))


@fact("path", "trig", "variance-preserving, trigonometric", cite="albergo2023stochastic")
@pytree
class Trig(GaussianPath):
    """Constant-speed rotation (2303.08797; GVP of 2401.08740): alpha = sin(pi t / 2), sigma = cos(pi t / 2).

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.Trig()
        >>> round(float(path.alpha(0.5) ** 2 + path.sigma(0.5) ** 2), 3), round(float(path.time(0.0)), 3)
        (1.0, 0.5)
    """

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data."""
        return namespace(t).sin(math.pi / 2 * t)

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise; written as a sine so that sigma(1) is exactly 0."""
        return namespace(t).sin(math.pi / 2 * (1.0 - t))

    def dalpha(self, t: Time) -> Time:
        """Derivative pi/2 cos(pi t / 2)."""
        return math.pi / 2 * self.sigma(t)

    def dsigma(self, t: Time) -> Time:
        """Derivative -pi/2 sin(pi t / 2)."""
        return -math.pi / 2 * self.alpha(t)

    def time(self, lam: Time) -> Time:
        """2/pi arctan(e^lam)."""
        xp = namespace(lam)
        return 2 / math.pi * xp.arctan(xp.exp(lam))


class _VariancePreserving(GaussianPath):
    """alpha^2 + sigma^2 = 1 with sigma ~ sqrt(1 - t) at the end, where sigma' is infinite."""

    def sigma_dsigma(self, t: Time) -> Time:
        """Sigma sigma' = -alpha alpha'."""
        return -self.alpha(t) * self.dalpha(t)

    def dsigma(self, t: Time) -> Time:
        """Derivative -alpha alpha' / sigma, bounded by 1e12."""
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return xp.maximum(xp.asarray(self.sigma_dsigma(t)) / self.sigma(t), -INFINITE_SLOPE)


@fact("path", "vp", "variance-preserving diffusion, linear betas", cite="song2020score")
@pytree
class VP(_VariancePreserving):
    """Variance-preserving diffusion with linear beta(u) = beta_min + u (beta_max - beta_min), u = 1 - t.

    With B(u) the integral of beta from 0 to u, alpha = exp(-B(u)/2) and sigma^2 = 1 - alpha^2. alpha(0) is small but
    not 0.

    Reference: Song et al., Score-Based Generative Modeling through SDEs (2011.13456), eq. 32-33.

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.VP()
        >>> round(float(path.alpha(0.0)), 4), round(float(path.sigma(0.0)), 4)
        (0.0066, 1.0)
    """

    beta_min: float = static(0.1)
    beta_max: float = static(20.0)

    def __post_init__(self) -> None:
        """Checks the range of beta."""
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"VP needs 0 < beta_min <= beta_max < inf, got {self.beta_min} and {self.beta_max}")

    def log_alpha(self, t: Time) -> Time:
        """log alpha(t) = -(beta_max - beta_min) u^2 / 4 - beta_min u / 2."""
        u = 1.0 - t
        return -(self.beta_max - self.beta_min) / 4 * u**2 - self.beta_min / 2 * u

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data."""
        return namespace(t).exp(self.log_alpha(t))

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise, without cancellation near t = 1."""
        xp = namespace(t)
        return xp.sqrt(-xp.expm1(2 * self.log_alpha(t)))

    def dalpha(self, t: Time) -> Time:
        """Derivative alpha beta(u) / 2."""
        return self.alpha(t) * ((self.beta_max - self.beta_min) * (1.0 - t) + self.beta_min) / 2

    def time(self, lam: Time) -> Time:
        """Root of log alpha = -log(1 + e^(-2 lam)) / 2 in closed form."""
        xp = namespace(lam)
        width = self.beta_max - self.beta_min
        q = 2 * xp.logaddexp(xp.zeros_like(lam), -2 * lam)
        return 1.0 - q / (xp.sqrt(self.beta_min**2 + q * width) + self.beta_min)


@fact("path", "cosine", "improved diffusion's cosine schedule", cite="nichol2021improved")
@pytree
class Cosine(_VariancePreserving):
    """The cosine schedule of Nichol and Dhariwal (2102.09672), eq. 17, in continuous time.

    alpha = cos((u + s)/(1 + s) pi/2) / cos(s/(1 + s) pi/2) with u = 1 - t and offset s, which keeps sigma'(t) moderate
    near the data. alpha(0) = 0 exactly.

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.Cosine()
        >>> float(path.alpha(0.0)), round(float(path.alpha(0.5)), 3), float(path.sigma(1.0))
        (0.0, 0.703, 0.0)
    """

    offset: float = static(0.008)

    def __post_init__(self) -> None:
        """Checks the offset."""
        if not 0 < self.offset < math.inf:
            raise ValueError(f"Cosine needs 0 < offset < inf, got {self.offset}")

    @property
    def _angle(self) -> float:
        """Angle reached at t = 1, so that alpha(t) = sin(angle t) / sin(angle)."""
        return math.pi / 2 / (1 + self.offset)

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data."""
        return namespace(t).sin(self._angle * t) / math.sin(self._angle)

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise; the difference of squared sines as a product, so that sigma(1) is exactly 0."""
        xp = namespace(t)
        product = xp.sin(self._angle * (1.0 - t)) * xp.sin(self._angle * (1.0 + t))
        return xp.sqrt(product) / math.sin(self._angle)

    def dalpha(self, t: Time) -> Time:
        """Derivative angle cos(angle t) / sin(angle)."""
        return self._angle * namespace(t).cos(self._angle * t) / math.sin(self._angle)

    def time(self, lam: Time) -> Time:
        """Arcsine of alpha = (1 + e^(-2 lam))^(-1/2)."""
        xp = namespace(lam)
        alpha = xp.exp(-xp.logaddexp(xp.zeros_like(lam), -2 * lam) / 2)
        return xp.minimum(xp.arcsin(alpha * math.sin(self._angle)) / self._angle, 1.0)  # not above 1 by rounding


@fact("path", "ve", "variance-exploding diffusion", cite="song2020score")
@pytree
class VE(GaussianPath):
    """Variance-exploding path: alpha = 1, sigma falls geometrically from sigma_max to sigma_min.

    sigma = sigma_max^(1-t) sigma_min^t, so that lam = -log sigma is linear in t.

    Defaults as for CIFAR-10 in Song et al. (2011.13456). Runs start at scale sigma_max: use `start`.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> path = fj.paths.VE(sigma_min=0.01, sigma_max=100.0)
        >>> round(float(path.sigma(0.5)), 3), path.start(np.ones((1, 2)))
        (1.0, array([[100., 100.]]))
    """

    sigma_min: float = static(0.01)
    sigma_max: float = static(50.0)

    def __post_init__(self) -> None:
        """Checks the range of sigma."""
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"VE needs 0 < sigma_min < sigma_max < inf, got {self.sigma_min} and {self.sigma_max}")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data, 1."""
        return namespace(t).ones_like(t, dtype=getattr(t, "dtype", float))

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise."""
        return self.sigma_max * namespace(t).exp(-self._log_ratio * t)

    def dalpha(self, t: Time) -> Time:
        """Derivative 0."""
        return 0.0 * self.alpha(t)

    def dsigma(self, t: Time) -> Time:
        """Derivative -sigma log(sigma_max / sigma_min)."""
        return -self._log_ratio * self.sigma(t)

    def lam(self, t: Time) -> Time:
        """-log sigma, linear in t."""
        return self._log_ratio * t - math.log(self.sigma_max)

    def time(self, lam: Time) -> Time:
        """Inverse of lam."""
        return (lam + math.log(self.sigma_max)) / self._log_ratio

"""Paths of models trained on a table of discrete steps (DDPM, Stable Diffusion)."""

import functools
from typing import Any

import numpy as np

from flowjax._checks import real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths.base import Time, namespace
from flowjax.paths.gaussian import _VariancePreserving


@fact("array", "linear_betas", "DDPM's table")
def linear_betas(n: int = 1000, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """The n values of DDPM (2006.11239): beta in (0, 1) equally spaced; returns alpha_bar for `Tabulated`."""
    real("(0, 1)", start=start, end=end)
    return np.cumprod(1 - np.linspace(start, end, n))


@fact("array", "scaled_linear_betas", "the table of latent diffusion")
def scaled_linear_betas(n: int = 1000, start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    """The n values of Stable Diffusion (2112.10752): sqrt(beta) equally spaced; returns alpha_bar for `Tabulated`."""
    real("(0, 1)", start=start, end=end)
    return np.cumprod(1 - np.linspace(start**0.5, end**0.5, n) ** 2)


@fact(
    "path",
    "tabulated",
    "a table of betas of a discrete-time model",
    cite="song2020denoising",
    example=lambda: {"alphas_cumprod": [0.9, 0.5, 0.1]},
)
@pytree
class Tabulated(_VariancePreserving):
    """The path through a table of alpha_bar.

    The table holds alpha_bar_k = prod (1 - beta_i), i = 0..k, of N steps, with k = 0 next to the data. Step k is the
    time

        t = 1 - (k + 1) / N,   alpha(t)^2 = alpha_bar_k,   sigma^2 = 1 - alpha^2,

    and between steps log alpha is linear in t, as in DPM-Solver (2206.00927, appendix D.4). t = 1, one step after
    k = 0, is clean data: alpha = 1, sigma = 0. Where a table ends in alpha_bar = 0 (zero terminal signal-to-noise
    ratio), its last piece, t < 1 / N, has alpha itself linear in t: t = 0 is pure noise, at which a noise prediction
    says nothing of the data; velocity, data and v predictions do.

    Args:
        alphas_cumprod: N strictly decreasing values in (0, 1), from the data to the noise; the last may be 0.
        zero_terminal_snr: shift and scale the values of alpha so that the last is 0 and the first stays (2305.08891,
            section 3.1), for networks that were trained on such a table.

    Raises:
        ValueError: another table.

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.Tabulated(alphas_cumprod=fj.paths.scaled_linear_betas())
        >>> round(float(path.step(path.at_step(999.0))))
        999
    """

    alphas_cumprod: Any = part("array", static=True)
    zero_terminal_snr: bool = static(False)

    def __post_init__(self) -> None:
        """Checks the table and keeps it as a tuple, which compiled programs can be looked up by."""
        table = np.asarray(self.alphas_cumprod, np.float64)
        falls = table.ndim == 1 and len(table) > 1 and np.all(np.diff(np.r_[1.0, table]) < 0) and table[-1] >= 0
        if not falls:
            raise ValueError(
                "alphas_cumprod must hold at least two strictly decreasing values in (0, 1), from data to noise (the "
                f"last may be 0); got shape {table.shape}"
            )
        if self.zero_terminal_snr:
            alpha = np.sqrt(table)
            table = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
        object.__setattr__(self, "alphas_cumprod", tuple(table.tolist()))

    @property
    def steps(self) -> int:
        """N."""
        return len(self.alphas_cumprod)

    def step(self, t: Time) -> Time:
        """The training step N (1 - t) - 1 that belongs to time t, a real number in [0, N - 1]."""
        return namespace(t).maximum(self.steps * (1.0 - t) - 1.0, 0.0)

    def at_step(self, step: Time) -> Time:
        """The time 1 - (k + 1) / N of training step k."""
        return 1.0 - (step + 1.0) / self.steps

    @property
    def _slope(self) -> float:
        """alpha' in the last piece of a table that ends in 0."""
        return self.steps * float(np.exp(-_falls(self.alphas_cumprod)[-1]))

    def _piece(self, t: Time) -> tuple[Any, Any, Any]:
        """At t: -log alpha, its increment over the piece of the table, and whether alpha is linear there instead."""
        xp = namespace(t)
        position = self.steps * (1.0 - xp.asarray(t))
        index = xp.clip(xp.floor(position), 0, self.steps - 1).astype(int)
        falls = xp.asarray(_falls(self.alphas_cumprod), dtype=position.dtype)
        fall, increment = falls[index], falls[index + 1] - falls[index]
        linear = (self.alphas_cumprod[-1] == 0) & (index == self.steps - 1)
        return fall + (position - index.astype(position.dtype)) * increment, increment, linear

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data."""
        xp = namespace(t)
        fall, _, linear = self._piece(t)
        return xp.where(linear, self._slope * t, xp.exp(-fall))[()]

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise, without cancellation near t = 1."""
        xp, alpha = namespace(t), self.alpha(t)
        fall, _, linear = self._piece(t)
        return xp.sqrt(xp.where(linear, (1.0 - alpha) * (1.0 + alpha), -xp.expm1(-2 * fall)))

    def dalpha(self, t: Time) -> Time:
        """Derivative; at a step of the table that of its noisier side."""
        _, increment, linear = self._piece(t)
        return namespace(t).where(linear, self._slope, self.steps * increment * self.alpha(t))[()]

    def time(self, lam: Time) -> Time:
        """Inverse of lam, within the table."""
        xp = namespace(lam)
        fall = xp.logaddexp(xp.zeros_like(lam), -2 * lam) / 2  # -log alpha
        falls = _falls(self.alphas_cumprod)
        table, number = (xp.asarray(a, dtype=fall.dtype) for a in (falls, np.arange(self.steps + 1)))
        t = 1.0 - xp.interp(fall, table, number) / self.steps
        linear = (self.alphas_cumprod[-1] == 0) & (fall >= table[-1])
        return xp.where(linear, xp.exp(-fall) / self._slope, t)[()]


@functools.lru_cache(maxsize=64)
def _falls(alphas_cumprod: tuple[float, ...]) -> np.ndarray:
    """-log alpha at position 0 (clean), 1, ..., N; at a 0 that of the value before."""
    values = np.r_[1.0, alphas_cumprod]
    return np.log(1 / np.where(values == 0, np.roll(values, 1), values)) / 2

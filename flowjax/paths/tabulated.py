"""Paths of models trained on a table of discrete steps (DDPM, Stable Diffusion).

The table holds alpha_bar_k = prod (1 - beta_i), i = 0..k, of N steps, with k = 0 next to the data. Step k is the time

    t = 1 - (k + 1) / N,   alpha(t)^2 = alpha_bar_k,   sigma^2 = 1 - alpha^2,

and between steps log alpha is linear in t, as in DPM-Solver (2206.00927, appendix D.4). t = 1, one step after k = 0, is
clean data: alpha = 1, sigma = 0.
"""

import functools
from typing import Any

import numpy as np

from flowjax._pytree import part, pytree
from flowjax.paths.base import Time, namespace
from flowjax.paths.gaussian import _VariancePreserving


def linear_betas(n: int = 1000, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """The n values of DDPM (2006.11239): beta equally spaced; returns alpha_bar for `Tabulated`."""
    return np.cumprod(1 - np.linspace(start, end, n))


def scaled_linear_betas(n: int = 1000, start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    """The n values of Stable Diffusion (2112.10752): sqrt(beta) equally spaced; returns alpha_bar for `Tabulated`."""
    return np.cumprod(1 - np.linspace(start**0.5, end**0.5, n) ** 2)


@pytree
class Tabulated(_VariancePreserving):
    """The path through a table of alpha_bar.

    Args:
        alphas_cumprod: N strictly decreasing values in (0, 1), from the data to the noise.

    Raises:
        ValueError: another table. (A table that ends in alpha_bar = 0 has no finite log alpha there.)

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.Tabulated(alphas_cumprod=fj.paths.scaled_linear_betas())
        >>> round(float(path.step(path.at_step(999.0))))
        999
    """

    alphas_cumprod: Any = part("array", static=True)

    def __post_init__(self) -> None:
        """Checks the table and keeps it as a tuple, which compiled programs can be looked up by."""
        table = np.asarray(self.alphas_cumprod, np.float64)
        if table.ndim != 1 or len(table) < 2 or not np.all(np.diff(np.r_[1.0, table, 0.0]) < 0):
            raise ValueError(
                "alphas_cumprod must hold at least two strictly decreasing values in (0, 1), from data to noise; "
                f"got shape {table.shape}"
            )
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

    def _piece(self, t: Time) -> tuple[Any, Any, Any]:
        """The piece of the table that t lies in: log alpha at its data end, its increment, and how far t is in it."""
        xp = namespace(t)
        position = self.steps * (1.0 - xp.asarray(t))
        index = xp.clip(xp.floor(position), 0, self.steps - 1).astype(int)
        logs = xp.asarray(_logs(self.alphas_cumprod), dtype=position.dtype)
        return logs[index], logs[index + 1] - logs[index], position - index.astype(position.dtype)

    def log_alpha(self, t: Time) -> Time:
        """log alpha(t), piecewise linear."""
        log, increment, inside = self._piece(t)
        return log + inside * increment

    def alpha(self, t: Time) -> Time:
        """Coefficient of the data."""
        return namespace(t).exp(self.log_alpha(t))

    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise, without cancellation near t = 1."""
        xp = namespace(t)
        return xp.sqrt(-xp.expm1(2 * self.log_alpha(t)))

    def dalpha(self, t: Time) -> Time:
        """Derivative; at a step of the table that of its noisier side."""
        return -self.steps * self._piece(t)[1] * self.alpha(t)

    def time(self, lam: Time) -> Time:
        """Inverse of lam, within the table."""
        xp = namespace(lam)
        fall = xp.logaddexp(xp.zeros_like(lam), -2 * lam) / 2  # -log alpha
        dtype = fall.dtype
        table, number = (xp.asarray(a, dtype=dtype) for a in (-_logs(self.alphas_cumprod), np.arange(self.steps + 1)))
        return 1.0 - xp.interp(fall, table, number) / self.steps


@functools.lru_cache(maxsize=64)
def _logs(alphas_cumprod: tuple[float, ...]) -> np.ndarray:
    """log alpha at position 0 (clean), 1, ..., N."""
    return np.log(np.r_[1.0, alphas_cumprod]) / 2

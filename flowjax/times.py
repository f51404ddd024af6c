"""Grids of sampling times: n steps are n + 1 increasing float64 values in [0, 1], from noise to data.

A grid read backwards (`times[::-1]`) takes data to noise, where `invert=True` asks for it.

They are NumPy arrays made on the host: a solver turns them into coefficients in float64. This is the only module that
shifts times.
"""

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flowjax.facts import fact
from flowjax.paths.base import GaussianPath

Times = np.ndarray


@fact("times", "uniform", "equal steps")
def uniform(n: int, start: float = 0.0, end: float = 1.0) -> Times:
    """n equal steps from `start` to `end`."""
    _check(n, start, end)
    return np.linspace(start, end, n + 1)


@fact("times", "quadratic", "equal steps in sqrt(1 - t)", cite="lu2022dpmsolver")
def quadratic(n: int, start: float = 0.0, end: float = 1.0) -> Times:
    """Uniform in sqrt(1 - t): small steps near the data (`time_quadratic` of DPM-Solver, 2206.00927)."""
    _check(n, start, end)
    return _exact_ends(1 - np.linspace(np.sqrt(1 - start), np.sqrt(1 - end), n + 1) ** 2, start, end)


@fact("times", "circular", "equal steps of a quarter circle, small ones near the noise", cite="kim2025inference")
def circular(n: int, start: float = 0.0, end: float = 1.0) -> Times:
    """Points t = 1 - sqrt(1 - q^2) with equal steps in q: small steps near the noise ("exp" of RBF, 2503.19385)."""
    _check(n, start, end)
    q = np.linspace(np.sqrt(1 - (1 - start) ** 2), np.sqrt(1 - (1 - end) ** 2), n + 1)
    return _exact_ends(1 - np.sqrt(1 - q**2), start, end)


@fact("times", "log_snr", "equal steps in log(alpha/sigma)", cite="lu2022dpmsolver")
def log_snr(path: GaussianPath, n: int, start: float = 1e-3, end: float = 1 - 1e-3) -> Times:
    """Uniform in lam = log(alpha / sigma) (`logSNR` of DPM-Solver, 2206.00927).

    Raises:
        ValueError: lam is infinite at `start` or `end`; the message says which one to move.
    """
    _check(n, start, end)
    lam = [float(path.lam(t)) for t in (start, end)]
    for name, t, value, inside in (("start", start, lam[0], "above"), ("end", end, lam[1], "below")):
        if not np.isfinite(value):
            raise ValueError(
                f"log_snr needs a finite lam at both ends, but lam({t}) = {value}: move {name} {inside} {t}"
            )
    return _exact_ends(path.time(np.linspace(lam[0], lam[1], n + 1)), start, end)


@fact("times", "karras", "EDM's grid in sigma/alpha", cite="karras2022elucidating")
def karras(
    path: GaussianPath,
    n: int,
    rho: float = 7.0,
    start: float = 0.0,
    end: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> Times:
    """The grid of EDM (Karras et al., 2206.00364, eq. 5) in the noise level k = sigma / alpha.

    n points with k^(1/rho) equally spaced from min(sigma_max, k(start)) to max(sigma_min, k(end)), then `end` itself.
    If k(end) is not below sigma_min, the n + 1 points reach k(end) directly. The first time is above `start` when the
    path begins with more noise than sigma_max: start the state with `path.start(noise, times[0])`.
    """
    _check(n, start, end)
    if not (0 < rho < np.inf and 0 < sigma_min < sigma_max < np.inf):
        raise ValueError(
            f"karras needs finite rho > 0 and 0 < sigma_min < sigma_max, got {rho}, {sigma_min}, {sigma_max}"
        )
    with np.errstate(over="ignore"):
        first, last = (float(np.exp(-path.lam(t))) for t in (start, end))
    reaches_start, reaches_end = first <= sigma_max * (1 + 1e-9), last >= sigma_min * (1 - 1e-9)  # up to rounding
    high, low = first if reaches_start else sigma_max, last if reaches_end else sigma_min
    levels = np.linspace(high ** (1 / rho), low ** (1 / rho), n + 1 if reaches_end else n) ** rho
    times = path.time(-np.log(levels))
    times = _exact_ends(times, start if reaches_start else times[0], end if reaches_end else times[-1])
    return check_times(times if reaches_end else np.append(times, end))


@fact(
    "times",
    "shifted",
    "another grid moved towards the noise",
    cite="esser2024scaling",
    parts={"times": "times"},
    example=lambda: {"times": "uniform", "shift": 3.0},
)
def shifted(times: Any, shift: float) -> Times:
    """Moves times towards the noise: u -> shift u / (1 + (shift - 1) u) with u = 1 - t (SD3, 2403.03206, eq. 23).

    Args:
        times: increasing times in [0, 1].
        shift: positive; 1 changes nothing, larger values spend more steps near the noise.
    """
    times = check_times(times)
    if not 0 < shift < np.inf:
        raise ValueError(f"shift must be positive and finite, got {shift}")
    return np.where((times == 0) | (times == 1), times, shift_times(times, shift))


def shift_times(times: Any, shift: float) -> Any:
    """The formula of `shifted`, for arrays of any kind, traced ones too."""
    left = 1 - times
    return 1 - shift * left / (1 + (shift - 1) * left)


def resolution_shift(pixels: float, reference: float) -> float:
    """The `shift` sqrt(pixels / reference) that keeps the uncertainty about the image when its size changes.

    A larger image needs more noise to hide the same content (SD3, 2403.03206, section 5.3.2: sqrt(m / n); its samplers
    use 3.0 at 1024^2 pixels).

    Args:
        pixels: number of pixels (or latent tokens) of the images to sample or train on.
        reference: that number for which no shift is needed.
    """
    if not (0 < pixels < np.inf and 0 < reference < np.inf):
        raise ValueError(f"numbers of pixels must be positive and finite, got {pixels} and {reference}")
    return math.sqrt(pixels / reference)


def dimension_shift(shape: Sequence[int], reference: float = 4096) -> float:
    """The `shift` sqrt(D / reference) for examples of D numbers, at least 1: more numbers need more noise to be hidden.

    Flows on latents of representation autoencoders (2510.11690) are trained and sampled with it, those of the shape
    (16, 16, 768) with 6.93. In contrast to `resolution_shift` it counts channels too.

    Args:
        shape: of one example.
        reference: number of numbers for which no shift is needed.
    """
    return max(1.0, resolution_shift(math.prod(shape), reference))


def with_last_step(n: int, size: float = 0.04, start: float = 0.0, end: float = 1.0) -> Times:
    """n - 1 equal steps to `end` - `size` and one last step of `size`: SiT's grid for SDEs (2401.08740).

    Args:
        n: number of steps, at least 2.
        size: length of the last step, in (0, end - start).
        start: first time.
        end: last time.
    """
    _check(n, start, end)
    if n < 2 or not 0 < size < end - start:
        raise ValueError(f"with_last_step needs n >= 2 and 0 < size < end - start, got n={n}, size={size}")
    return np.append(np.linspace(start, end - size, n), end)


@fact("times", "skipping", "steps over a finer grid of equal steps", cite="luo2023latent")
def skipping(n: int, of: int = 50, start: float = 0.0, end: float = 1.0) -> Times:
    """n steps over `of` equal ones from `start` to `end`: the time of step i is that of the finer step floor(i of / n).

    Latent consistency models (2310.04378) are sampled so, at times that their training has seen: on a table of 1,000
    steps `skipping(4)` begins at its steps 999, 759, 499 and 259.

    Args:
        n: number of steps, at most `of`.
        of: number of the equal steps.
        start: first time.
        end: last time.

    Raises:
        ValueError: more steps than there are.
    """
    _check(n, start, end)
    fine = uniform(of, start, end)
    if n > of:
        raise ValueError(f"skipping makes at most of={of} steps, got {n}")
    return fine[np.arange(n + 1) * of // n]


def check_times(times: Any, *, invert: bool = False) -> Times:
    """The times as a float64 array.

    Args:
        times: n + 1 values.
        invert: they fall, for a run from data to noise.

    Raises:
        ValueError: not a one-dimensional array of at least two concrete values in [0, 1] that never decrease; with
            `invert`, that always decrease.
    """
    try:
        grid = np.asarray(times, dtype=np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(times, jax.core.Tracer):
            raise  # JAX says where
        raise ValueError(f"times must be the n + 1 values of a grid, got {reprlib.repr(times)}") from error
    if grid.ndim != 1 or len(grid) < 2:
        n = int(grid) if grid.ndim == 0 and grid >= 1 else 10
        raise ValueError(
            f"times must hold n + 1 values for n >= 1 steps, got an array of shape {grid.shape}: "
            f"for example flowjax.times.uniform({n})"
        )
    given = reprlib.repr(grid.tolist())
    if not 0 <= np.min(grid) <= np.max(grid) <= 1:
        raise ValueError(f"times must lie in [0, 1] (0 is noise, 1 is data), got {given}")
    steps = np.diff(grid)
    if invert:
        if not np.all(steps < 0):
            raise ValueError(f"with invert=True times must decrease at every step, from data to noise, got {given}")
    elif not np.all(steps >= 0):
        remedy = (
            "; invert=True integrates from data to noise on a decreasing grid"
            if np.all(steps < 0)
            else "; a grid that decreases throughout inverts, with invert=True"
        )
        raise ValueError(f"times must increase from noise (t=0) to data (t=1), got {given}{remedy}")
    return grid


def _check(n: int, start: float, end: float) -> None:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"the number of steps must be a positive integer, got {n}")
    if not 0 <= start < end <= 1:
        raise ValueError(f"times need 0 <= start < end <= 1, got start={start}, end={end}")


def _exact_ends(times: Times, start: float, end: float) -> Times:
    """Replaces the rounding errors at both ends by the values asked for."""
    times = np.asarray(times, dtype=np.float64).copy()
    times[0], times[-1] = start, end
    return times

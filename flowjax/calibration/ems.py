"""Measures the empirical model statistics of DPM-Solver-v3 (Zheng et al., 2310.13268, section 3.2).

On points uniform in lam = log(alpha/sigma), with x = alpha x1 + sigma x0 from data x1 and noise x0, e the noise
prediction, v random signs and E the mean over samples, element by element:

    l = E[sigma v (J v)],  J the Jacobian of e in x: the best diagonal fit of sigma J (one Hutchinson probe per sample)
    f = (sigma e - l x)/alpha,     f' = e^-lam ((l - 1) e + e') - l' x/alpha,     e' the derivative of e along the flow
    s = cov(f, f')/var(f),  b = E f' - s E f: the least-squares fit f' = s f + b

l is smoothed by cubics fitted over `WIDTH` in lam, and l' is the central difference of this curve, the one that steps
use. So the number of points hardly matters from 60 on. The authors smooth l' alone, over 11 points (compat="official"):
f' is then not the derivative of f, which hurts where 11 points are a long way, and steps see all noise of l.

Where f does not vary, as with Gaussian data, s is zero. An error d of l alone gives f the variance d^2 var(x)/alpha^2,
and the s that fits it is of no use: it has a pole wherever d changes its sign. So f counts as varying when its variance
is more than (2 d)^2 E[x^2]/alpha^2. Here d is rounding, `ROUNDING` units of l, and the error of the cubics, the most
that quintics over the same points differ from them within half a width, beyond what the noise of single points makes of
it (three deviations): few samples make l noisy, which is no error of the fit. On the l of Gaussian data,
sigma^2/var(x), with 40 to 400 points, the true error of the cubics is at most 1.03 of that; it is up to 2 % of l. A
network that computes more coarsely than the samples' dtype is not noticed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import savgol_coeffs, savgol_filter

from flowjax import _checks, times
from flowjax.calibration import store
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.data.records import check_memory
from flowjax.flow import Field
from flowjax.keys import noise
from flowjax.paths.base import expand, precision
from flowjax.solvers.dpm_solver_v3 import DPMSolverV3
from flowjax.solvers.options import check_choice
from flowjax.solvers.statistics import Statistics

Batch = Callable[[int], tuple[Array, Any]]
WIDTH = 1.0  # l, which changes over several units of lam, is close to a cubic on it
ROUNDING = 16  # units in the last place: a few for the network's value, for the mean of l and for f itself


def estimate(
    field: Field,
    batch: Batch,
    key: Key[Array, ""],
    *,
    start: float = 1e-3,
    end: float = 1 - 1e-3,
    points: int = 120,
    batches: int = 1,
    mode: str = "element",
    compat: str | None = None,
    partial: str | Path | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """The curves l, s, b of a field on `points` + 1 values of lam.

    The work is 2 x (points + 1) x batches forward-mode derivatives of the network on one batch. Batches may be sharded
    over devices; only the means are reduced.

    Args:
        field: a flow, or the guided field that will be sampled.
        batch: batch(i) gives normalised data x1 (B, ...) and its condition (or None), the same for the same i.
        key: of the noise and the probes.
        start: first sampling time, where lam is finite.
        end: last sampling time, where lam is finite.
        points: intervals in lam.
        batches: batches per point.
        mode: "element", or means over all axes but the last ("channel") or over all ("scalar").
        compat: "official" leaves l as it is and takes a moving average of its slope, as the authors' program does.
        partial: file that holds what is done so far; an interrupted estimate continues from it.
        record: what that file belongs to, beside its sizes (model hash, guidance, ...): JSON values.
        progress: called with (done, total) passes over one point.

    Returns:
        The statistics.

    Raises:
        ValueError: numbers out of range, an infinite lam at an end, an unknown mode, a field without a noise
            prediction there, or a partial file of something else.
    """
    check_choice("mode", mode, ("element", "channel", "scalar"))
    check_choice("compat", compat, (None, "official"))
    _checks.whole("[2, 2147483647]", points=points)
    _checks.whole(_checks.COUNT, batches=batches)
    _checks.real("[0, 1]", start=start, end=end)
    path = field.path
    low, high = float(path.lam(start)), float(path.lam(end))
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"statistics need a finite, increasing lam: lam({start:g}) = {low}, lam({end:g}) = {high}")
    lam = np.linspace(low, high, points + 1)
    times = np.clip(np.asarray(path.time(lam)), start, end)
    field.check(times, "noise")
    belongs = {"points": points, "batches": batches, "start": start, "end": end, "compat": compat} | dict(record or {})
    x1, _ = batch(0)
    axes = {"element": (), "channel": tuple(range(x1.ndim - 2)), "scalar": tuple(range(x1.ndim - 1))}[mode]

    def mean(value: np.ndarray) -> np.ndarray:
        return value.mean(axis=tuple(a + 1 for a in axes), keepdims=mode == "channel") if axes else value

    def passes(name: str, one: Any, *tables: np.ndarray) -> list[np.ndarray]:
        """Sums of `one` over batches at every point, continued from `partial`."""
        file = None if partial is None else Path(f"{partial}.{name}.npz")
        arrays, done = store.resume(file, belongs)
        sums = [arrays[f"sum{i}"] for i in range(len(arrays))] or None
        offset = 0 if name == "first" else points + 1
        for i in range(done, points + 1):
            totals: list[np.ndarray] | None = None
            for j in range(batches):
                x1, cond = batch(j)
                keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), j))
                t, *rows = (jnp.asarray(table[i], precision(x1)) for table in (times, *tables))
                values = [np.asarray(v, np.float64) for v in one(field, x1, cond, t, keys, *rows)]
                totals = values if totals is None else [a + b for a, b in zip(totals, values, strict=True)]
            if sums is None:
                sums = [np.zeros((points + 1, *v.shape)) for v in totals or []]
            for table, value in zip(sums, totals or [], strict=True):
                table[i] = value / batches
            progress(offset + i + 1, 2 * (points + 1))
            if file is not None and ((i + 1) % 16 == 0 or i == points):
                store.save(file, {f"sum{j}": v for j, v in enumerate(sums)}, belongs | {"done": i + 1})
        return sums or []

    diagonal = mean(passes("first", _diagonal)[0])
    error: Any = 0.0
    if compat == "official":
        slope = _moving_average(np.gradient(diagonal, lam, axis=0))
    else:
        diagonal, error = _smoothed(diagonal, round(WIDTH / 2 / (lam[1] - lam[0])))
        slope = np.gradient(diagonal, lam, axis=0)
    f, df, ff, fdf, xx = (mean(value) for value in passes("moments", _fit_moments, diagonal, slope))
    variance, rounding = ff - f**2, ROUNDING * np.finfo(precision(x1)).eps
    varies = variance > (2 * (error + rounding * np.abs(diagonal))) ** 2 * xx + rounding**2 * ff
    s = np.where(varies, (fdf - f * df) / np.where(varies, variance, 1.0), 0.0)
    if partial is not None:
        for name in ("first", "moments"):
            Path(f"{partial}.{name}.npz").unlink(missing_ok=True)
    return Statistics(lam=lam, l=diagonal, s=s, b=df - s * f)


def _noisy(field: Field, x1: Array, t: Array, keys: Any) -> tuple[Array, Array]:
    """x_t, and random signs of its shape."""
    x0 = noise(keys[0], x1.shape).astype(x1.dtype)
    x = field.path.interpolate(t, x0, x1)
    return x, jnp.where(noise(keys[1], x1.shape) > 0, 1.0, -1.0).astype(x1.dtype)


@jax.jit
def _diagonal(field: Field, x1: Array, cond: Any, t: Array, keys: Any) -> tuple[Float[Array, "..."]]:
    """E[sigma v (J v)]."""
    x, signs = _noisy(field, x1, t, keys)
    _, product = jax.jvp(lambda x: field.noise(t, x, cond), (x,), (signs,))
    return (jnp.mean(expand(field.path.sigma(t), x) * signs * product, axis=0),)


def _fit_moments(*arguments: Any) -> tuple[np.ndarray, ...]:
    """E f, E f', E f^2, E f f', E x^2/alpha^2, in double precision, so that the variance of f is not lost in E f^2."""
    f, df, var, cov, xx = (np.asarray(value, np.float64) for value in _centred_moments(*arguments))
    return f, df, var + f * f, cov + f * df, xx


@jax.jit
def _centred_moments(field: Field, x1: Array, cond: Any, t: Array, keys: Any, l: Array, dl: Array) -> tuple[Array, ...]:  # noqa: E741
    """E f, E f', var f, cov(f, f'), E x^2/alpha^2, over one batch."""
    path = field.path
    x, _ = _noisy(field, x1, t, keys)
    alpha, sigma = path.alpha(t), path.sigma(t)
    growth, fall = path.dalpha(t) / alpha, path.dsigma(t) / sigma  # per unit of t
    rate = growth - fall  # dlam/dt
    e = field.noise(t, x, cond)
    tangents = (1 / rate, growth / rate * x - sigma * e)
    _, de = jax.jvp(lambda t, x: field.noise(t, x, cond), (t, x), tangents)
    l, dl = (jnp.broadcast_to(value, x.shape[1:])[None] for value in (l, dl))  # noqa: E741
    f = (sigma * e - l * x) / alpha
    df = sigma / alpha * ((l - 1) * e + de) - dl * x / alpha
    u, v = (value - jnp.mean(value, axis=0, keepdims=True) for value in (f, df))
    return tuple(jnp.mean(value, axis=0) for value in (f, df, u * u, u * v, (x / alpha) ** 2))


def _smoothed(curve: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray | float]:
    """Each value from the cubic nearest to the `half` points on either side, and about the error of that.

    The first and last values share their cubic.
    """
    half = min(half, (len(curve) - 1) // 2)
    if half < 2:
        return curve, 0.0
    size, degrees = 2 * half + 1, (3, min(5, 2 * half))
    cubic, quintic = (savgol_filter(curve, size, degree, axis=0) for degree in degrees)
    squares = (quintic - cubic) ** 2
    if size > degrees[1] + 1:  # less what the noise of single points would make of it, three deviations
        noise = uniform_filter1d((curve - quintic) ** 2, size, axis=0) * size / (size - degrees[1] - 1)
        centre = [savgol_coeffs(size, degree)[half] for degree in degrees]
        squares = np.maximum(squares - 9 * noise * (centre[1] - centre[0]), 0)
    return cubic, maximum_filter1d(np.sqrt(squares), size, axis=0)


def _moving_average(curve: np.ndarray, half: int = 5) -> np.ndarray:
    """Means over up to 2 half + 1 points, fewer at the ends."""
    total = np.concatenate([np.zeros_like(curve[:1]), np.cumsum(curve, axis=0)])
    index = np.arange(len(curve))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(curve))
    return (total[high] - total[low]) / (high - low).reshape(-1, *(1,) * (curve.ndim - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMS(Calibration):
    """The statistics of DPM-Solver-v3, from the training data, for any number of steps.

    Attributes:
        start: See `Calibration`.
        end: Likewise.
        num: Training samples of a point.
        points: Intervals of the statistics.
        mode: One per element, channel or sample.

    Raises:
        ValueError: An unknown mode.

    Example:
        >>> from flowjax.calibration.ems import EMS
        >>> EMS(points=40).sizes()
        {'num': 512, 'points': 40, 'mode': 'element'}
    """

    reads_data = True

    num: int = option(512, "Training samples.")
    points: int = option(120, "Intervals of the statistics.")
    mode: str = option("element", "Statistics per element, channel or scalar.")

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.choose("mode", self.mode, ("element", "channel", "scalar"))
        _checks.whole(_checks.COUNT, points=self.points)

    def check(self, recipe: Any) -> None:
        """Refuses more numbers than the memory holds."""
        check_memory(f"--points={self.points}", 3 * 8 * (self.points + 1) * math.prod(recipe.shape))

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """The curves."""
        statistics = estimate(
            work.field,
            work.batch,
            work.key,
            start=self.start,
            end=self.end,
            points=self.points,
            mode=self.mode,
            partial=work.file.with_suffix(""),
            record=work.record,
            progress=lambda done, total: work.progress(done, total, ""),
        )
        return {name: np.asarray(getattr(statistics, name)) for name in ("lam", "l", "s", "b")}

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """DPM-Solver-v3 on equal steps."""
        statistics = Statistics(**{name: stored.arrays[name] for name in ("lam", "l", "s", "b")})
        order = 3 if stored.guidance == 1 else 2
        solver = DPMSolverV3(statistics=statistics, order=order)
        return Calibrated(solver, times.uniform(stored.steps, stored.record["start"], stored.record["end"]))

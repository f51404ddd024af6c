"""Self-calibration: unknown gains and unknown signals from bilinear measurements, by linear least squares.

Sensors with unknown gains d measure y_l = d * (A_l x_l) + noise, * elementwise. With s = 1/d this is linear and
homogeneous in z = (s, x):

    M z = (y_l * s - A_l x_l)_l = 0,

up to the scalar that belongs to the problem: (d, x) -> (d/alpha, alpha x) leaves y as it is. m sensors, n unknowns per
signal, p snapshots; three models:

    "repeated"   y_l = d * (A_l x)     A (p, m, n), x (n,)     unique up to scale only if mp >= m + n - 1
    "diverse"    y_l = d * (A_l x_l)   A (p, m, n), x (p, n)   ... m p >= m + n p - 1 and n < m
    "snapshots"  y_l = d * (A x_l)     A (m, n),    x (p, n)   the same

"diverse" is blind deconvolution with several inputs, where d is the Fourier transform of the filter. In "snapshots",
more than n linearly independent snapshots add nothing without noise.

*Least squares* minimises |M z|^2 + |w* s - c|^2; w = 1, c = m suits gains near one. For gains with random phases w* s
can be near zero and noise is amplified 2 to 5 times: use the spectral method there. *Spectral*: the right singular
vector of the smallest singular value of M diag(1/scale, 1), which needs no w. Its answer depends on the relative scale
of s and x when there is noise.

`solve` eliminates the signals (P_l = I - A_l A_l^+; s solves the tall least-squares problem of the rows P_l diag(y_l))
by QR, so the condition number is not squared. `solve_matrix_free` takes a linear function instead of matrices and runs
LSMR on M with scaled columns.

The statements on uniqueness are generic counts for complex Gaussian A; defaults of w and c are reconstructed. s_i is
undetermined where y_l,i = 0 for all l, and noise multiplies the unknown, so least squares is biased at low
signal-to-noise ratio. Precision: in float32 noise-free problems are recovered to about 1e-5, which is below the effect
of noise at 80 dB; use float64 beyond that.

References:
    Ling and Strohmer (2018), Self-Calibration and Bilinear Inverse Problems via Linear Least Squares, SIAM J. Imaging
    Sci., arXiv:1611.04196. Elimination, scaling and matrix-free form are derived here (reconstructed).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Bool, Inexact

from flowjax._pytree import pytree
from flowjax.facts import fact

MODELS = ("repeated", "diverse", "snapshots")
METHODS = ("least_squares", "spectral")


@pytree
class Calibration:
    """Gains and signals, up to one common scalar.

    Attributes:
        inverse_gains: s = 1/d, (m,). Least squares: w* s close to c; spectral: |s|^2 = m with real positive sum.
        signals: x (n,) of the model "repeated", else (p, n).
        gap: how well determined the result is, from 0 to 1: the least-squares form's ratio of the extreme pivots, the
            spectral form's second smallest over largest singular value; nan for matrix-free solutions.
        valid: False where the result means nothing: a number is not finite, a sensor never measured anything, fewer
            weights than unknowns are positive, the gap is at rounding level, a gain is infinite to rounding, or the
            iteration did not converge.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> matrices, gains = jax.random.normal(jax.random.key(0), (3, 8, 4)), jnp.linspace(0.5, 1.5, 8)
        >>> found = jax.jit(lambda d: solve(measure(matrices, d, jnp.ones(4)), matrices, model="repeated"))(gains)
        >>> ratio = found.gains / gains  # known up to one number
        >>> round(float(ratio.max() / ratio.min()), 3)
        1.0
    """

    inverse_gains: Inexact[Array, " m"]
    signals: Inexact[Array, "..."]
    gap: Any
    valid: Bool[Array, ""]

    @property
    def gains(self) -> Inexact[Array, " m"]:
        """d = 1/s; infinite where s is zero."""
        return 1 / self.inverse_gains


def unknowns(model: str, sensors: int, size: int, snapshots: int) -> int:
    """Number of unknowns in z; unique recovery needs at least one equation less.

    Raises:
        ValueError: unknown model.
    """
    if model not in MODELS:
        raise ValueError(f"model={model!r} is unknown; use one of {', '.join(MODELS)}")
    return sensors + (size if model == "repeated" else size * snapshots)


def measure(
    matrices: Inexact[Array, "..."], gains: Inexact[Array, " m"], signals: Inexact[Array, "..."]
) -> Inexact[Array, "p m"]:
    """Noise-free measurements d * (A_l x_l); the model follows from the shapes of `matrices` and `signals`."""
    return gains[None] * jnp.einsum("...mn,...n->...m", matrices, signals)


def design(
    measurements: Inexact[Array, "p m"],
    matrices: Inexact[Array, "..."],
    model: str,
    weights: Inexact[Array, "p m"] | None = None,
) -> Inexact[Array, "pm unknowns"]:
    """The whole matrix M, rows of snapshot after snapshot, columns (s, x)."""
    snapshots, sensors, size = _check(measurements, matrices, model)
    weights = jnp.ones_like(measurements) if weights is None else weights.astype(measurements.dtype)
    measurements, matrices = _masked(measurements, matrices, weights, model)
    matrices = jnp.broadcast_to(matrices, (snapshots, sensors, size)) * weights[..., None]
    left = jax.vmap(jnp.diag)(weights * measurements).reshape(snapshots * sensors, sensors)
    if model == "repeated":
        return jnp.concatenate([left, -matrices.reshape(snapshots * sensors, size)], axis=1)
    right = jnp.einsum("lk,lmn->lmkn", jnp.eye(snapshots, dtype=matrices.dtype), matrices)
    return jnp.concatenate([left, -right.reshape(snapshots * sensors, snapshots * size)], axis=1)


@fact("system", "self_calibration", "unknown gains and signals by linear least squares", cite="ling2016selfcalibration")
def solve(
    measurements: Inexact[Array, "p m"],
    matrices: Inexact[Array, "..."],
    *,
    model: str,
    method: str = "least_squares",
    w: Inexact[Array, " m"] | None = None,
    c: Any = None,
    scale: Any = 1.0,
    weights: Inexact[Array, "p m"] | None = None,
) -> Calibration:
    """Gains and signals from measurements by known matrices.

    Differentiable once in both modes: least squares through its QR factors, the spectral method through first-order
    perturbation of the singular vector.

    Args:
        measurements: y.
        matrices: A, (p, m, n), or (m, n) for "snapshots"; the same dtype as y, real or complex.
        model: "repeated", "diverse" or "snapshots".
        method: "least_squares" or "spectral".
        w: of the constraint w* s = c; None: ones. Must not be orthogonal to the truth.
        c: right-hand side, only a scale, not 0; None: m.
        scale: spectral only: minimises |M z| for |scale s|^2 + |x|^2 = 1, positive.
        weights: non-negative weights of the rows, 1/noise level; 0 masks a missing measurement, whatever stands there
            (NaN, for example).

    Raises:
        ValueError: unknown model or method, shapes or dtypes that do not fit, one snapshot, too few measurements, or a
            c or scale outside its range. Where that shows only under jit, the result is not valid.

    Example:
        >>> key = jax.random.key(0)
        >>> matrices = jax.random.normal(key, (3, 8, 4))
        >>> y = measure(matrices, jnp.linspace(0.5, 1.5, 8), jnp.ones(4))
        >>> bool(solve(y, matrices, model="repeated").valid)
        True
    """
    snapshots, sensors, size = _check(measurements, matrices, model)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {', '.join(METHODS)}")
    _check_number("c", c)
    _check_number("scale", scale, positive=True)
    _check_shape("w", w, (sensors,))
    _check_shape("weights", weights, measurements.shape)
    dtype, real = measurements.dtype, jnp.finfo(measurements.dtype).dtype
    weights = jnp.ones(measurements.shape, real) if weights is None else weights.astype(real)
    measurements, matrices = _masked(measurements, matrices, weights, model)
    count = unknowns(model, sensors, size, snapshots)
    usable = _usable(measurements, weights, count) & jnp.all(jnp.isfinite(matrices))
    if method == "spectral":
        full = design(measurements, matrices, model, weights)
        columns = jnp.where(jnp.arange(count) < sensors, 1 / jnp.asarray(scale, real), 1).astype(real)
        z, gap = _smallest(jnp.where(usable, full * columns[None].astype(dtype), 0))
        z = z * columns.astype(dtype)
        inverse, signals = z[:sensors], z[sensors:]
        total = jnp.sum(inverse)
        size_of_s = jnp.sqrt(jnp.mean(jnp.abs(inverse) ** 2))
        phase = jnp.where(total == 0, 1, total) / jnp.where(total == 0, 1, jnp.abs(total)).astype(dtype)
        factor = jnp.conj(phase) / jnp.where(size_of_s > 0, size_of_s, 1).astype(dtype)
        inverse, signals = inverse * factor, signals * factor
        signals = signals if model == "repeated" else signals.reshape(snapshots, size)
    else:
        w = jnp.ones(sensors, dtype) if w is None else w.astype(dtype)
        c = jnp.asarray(sensors if c is None else c, dtype)
        inverse, signals, gap = _eliminate(measurements, matrices, model, weights, w, c)
    # The gap itself is known to about count eps; ten times that is what counts as a gap.
    determined = gap > 10 * count * jnp.finfo(dtype).eps
    valid = usable & determined & jnp.all(jnp.asarray(scale) > 0) & _finite(inverse, signals, count)
    return Calibration(inverse_gains=inverse, signals=signals, gap=gap, valid=valid)


def solve_matrix_free(
    measurements: Inexact[Array, "p m"],
    apply: Callable[[Any], Inexact[Array, "p m"]],
    signals: Inexact[Array, "..."],
    *,
    w: Inexact[Array, " m"] | None = None,
    c: Any = None,
    column_norm: float = 1.0,
    tolerance: float = 1e-6,
    max_steps: int = 2000,
) -> Calibration:
    """Least squares for all models without matrices, by LSMR with scaled columns.

    A second run of the iteration, down to rounding, asks whether the problem has one solution only; without it `valid`
    would not know. Compiled code that does not use `valid` leaves it out. In float32 problems with a condition above
    about a thousand are not valid.

    Args:
        measurements: y.
        apply: linear function of the signals to all A_l x_l, (p, m); its transpose is derived from it.
        signals: start of the iteration; zeros will do. They have the shape of the result and the dtype of y:
            a real image measured through its Fourier transform is solved for as a complex one.
        w: of the constraint w* s = c; None: ones.
        c: right-hand side, not 0; None: m.
        column_norm: typical norm of a column of (A_l)_l, which scales the signals as the gains are scaled by theirs.
        tolerance: relative tolerance of LSMR.
        max_steps: iterations after which the result is flagged.

    Raises:
        ValueError: measurements of the wrong shape or dtype, one snapshot, too few measurements, or a c or column_norm
            outside its range. Where that shows only under jit, the result is not valid.
    """
    _check_number("c", c)
    _check_number("column_norm", column_norm, positive=True)
    shape = jax.eval_shape(apply, signals)
    if measurements.ndim != 2 or shape.shape != measurements.shape:
        raise ValueError(f"measurements are (p, m) like apply(signals); got {measurements.shape} and {shape.shape}")
    if signals.dtype != measurements.dtype or shape.dtype != measurements.dtype:
        raise ValueError(f"dtypes differ: measurements {measurements.dtype}, signals {signals.dtype}, {shape.dtype}")
    snapshots, sensors = measurements.shape
    _check_count(snapshots, sensors, sensors + signals.size)
    _check_shape("w", w, (sensors,))
    dtype, real = measurements.dtype, jnp.finfo(measurements.dtype).dtype
    w = jnp.ones(sensors, dtype) if w is None else w.astype(dtype)
    c = jnp.asarray(sensors if c is None else c, dtype)
    norms = jnp.sqrt(jnp.sum(jnp.abs(measurements) ** 2, axis=0))
    usable = _usable(measurements, jnp.ones(measurements.shape, real), sensors + signals.size)
    scale = jnp.where(norms > 0, norms, 1).astype(dtype), jnp.asarray(column_norm, dtype)
    weight = jnp.mean(scale[0]) / jnp.sqrt(jnp.asarray(sensors, dtype))  # the constraint weighs like one sensor

    def weighted(z):
        s, x = z[0] / scale[0], z[1] / scale[1]
        return measurements * s[None] - apply(x), weight * jnp.sum(jnp.conj(w) * s)

    unit = jax.ShapeDtypeStruct((sensors,), dtype), jax.ShapeDtypeStruct(signals.shape, dtype)
    right = jnp.zeros_like(measurements), weight * c

    def least_squares(right, tolerance):
        solver = lineax.LSMR(rtol=tolerance, atol=tolerance, max_steps=max_steps)
        return lineax.linear_solve(lineax.FunctionLinearOperator(weighted, unit), right, solver, throw=False)

    solution = least_squares(right, tolerance)
    inverse, x = solution.value[0] / scale[0], solution.value[1] / scale[1]
    factor = _unweighted(jnp.vdot(w, inverse) / c, jnp.abs(weight) ** 2)
    inverse, x = inverse * factor.astype(dtype), x * factor.astype(dtype)
    valid = usable & _finite(inverse, x, sensors + signals.size) & (solution.result == lineax.RESULTS.successful)
    # Among solutions that are equally good the iteration finds the shortest, and does not notice. So it is asked for
    # random numbers z from M z: what it misses of them, r, cannot be seen by M. Its component along a direction that
    # M maps to zero is normal with deviation 1, below 0.01 in one of a hundred. What the iteration leaves of M r is
    # its tolerance times |M z|, so |M r| / |r| is at most 100 times that for such a direction (twice that is the
    # limit), and at least the smallest singular value for a problem without one.
    keys = jax.random.split(jax.random.key(0))
    probe = tuple(jax.random.normal(key, leaf.shape, dtype) for key, leaf in zip(keys, unit, strict=True))
    exact = 10 * float(jnp.finfo(dtype).eps)
    seen = weighted(probe)
    missed = jax.tree.map(jnp.subtract, probe, least_squares(seen, exact).value)
    unseen = _norm(weighted(missed)) <= 200 * exact * (1 + _norm(seen)) * _norm(missed)
    valid &= ~(unseen & (_norm(missed) > 0.01))
    return Calibration(inverse_gains=inverse, signals=x, gap=jnp.full((), jnp.nan, real), valid=valid)


def relative_error(
    result: Calibration, gains: Inexact[Array, " m"], signals: Inexact[Array, "..."]
) -> Inexact[Array, ""]:
    """min over alpha of |alpha z - z0| / |z0| against the true z0 = (1/d, x)."""
    z = jnp.concatenate([result.inverse_gains, result.signals.reshape(-1)])
    z0 = jnp.concatenate([1 / gains, signals.reshape(-1)])
    alpha = jnp.vdot(z, z0) / jnp.vdot(z, z)
    return jnp.linalg.norm(alpha * z - z0) / jnp.linalg.norm(z0)


def _norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(tree)))


def _finite(inverse: Array, signals: Array, count: int) -> Bool[Array, ""]:
    """Whether all numbers are finite and no inverse gain is zero as far as rounding of the largest can tell."""
    size = jnp.abs(inverse)
    least = 10 * count * jnp.finfo(size.dtype).eps * jnp.max(size)
    return jnp.all(jnp.isfinite(signals)) & jnp.all(jnp.isfinite(1 / size)) & jnp.all(size > least)


def _check_number(name: str, value: Any, positive: bool = False) -> None:
    if value is None or isinstance(value, jax.core.Tracer):
        return
    if not np.all(np.isfinite(value)) or not np.all(np.real(value) > 0 if positive else np.asarray(value) != 0):
        raise ValueError(f"{name}={value} must be finite and {'positive' if positive else 'not 0'}")


def _check_shape(name: str, value: Array | None, wanted: tuple[int, ...]) -> None:
    if value is not None and value.shape != wanted:
        raise ValueError(f"{name} has the shape {value.shape}, it needs {wanted}")


def _check_count(snapshots: int, sensors: int, count: int) -> None:
    if snapshots < 2:
        raise ValueError(f"{snapshots} snapshot cannot determine gains and signal; take at least two")
    if snapshots * sensors < count - 1:
        raise ValueError(
            f"too few measurements: {snapshots} snapshots of {sensors} sensors for {count} unknowns; "
            f"take at least {count - 1} measurements"
        )


def _check(measurements: Array, matrices: Array, model: str) -> tuple[int, int, int]:
    """The sizes p, m, n of a problem, or an error that says what does not fit."""
    if model not in MODELS:
        raise ValueError(f"model={model!r} is unknown; use one of {', '.join(MODELS)}")
    wanted = "(m, n)" if model == "snapshots" else "(p, m, n)"
    lead = measurements.shape[1:] if model == "snapshots" else measurements.shape
    if measurements.ndim != 2 or matrices.ndim != len(lead) + 1 or matrices.shape[:-1] != lead:
        raise ValueError(
            f"{model}: measurements are (p, m) and matrices {wanted}; got {measurements.shape} and {matrices.shape}"
        )
    if measurements.dtype != matrices.dtype:
        raise ValueError(f"measurements and matrices have different dtypes: {measurements.dtype}, {matrices.dtype}")
    (snapshots, sensors), size = measurements.shape, matrices.shape[-1]
    _check_count(snapshots, sensors, unknowns(model, sensors, size, snapshots))
    return snapshots, sensors, size


def _masked(measurements: Array, matrices: Array, weights: Array, model: str) -> tuple[Array, Array]:
    """Zeros where the weight is 0: what stands there may be anything. Negative or NaN weights mask nothing."""
    hidden = weights == 0
    if model != "snapshots":
        matrices = jnp.where(hidden[..., None], 0, matrices)
    return jnp.where(hidden, 0, measurements), matrices


def _usable(measurements: Array, weights: Array, count: int) -> Bool[Array, ""]:
    finite = jnp.all(jnp.isfinite(measurements)) & jnp.all(jnp.isfinite(weights)) & jnp.all(weights >= 0)
    seen = jnp.any((weights > 0) & (measurements != 0), axis=0)
    return finite & jnp.all(seen) & (jnp.sum(weights > 0) >= count - 1)


def _eliminate(y: Array, matrices: Array, model: str, weights: Array, w: Array, c: Array) -> tuple[Array, Array, Array]:
    """Least squares with the signals eliminated: rows P_l diag(y_l) and w*, by two QR factorisations."""
    sensors = y.shape[1]
    rows = weights.astype(y.dtype)
    matrices = jnp.broadcast_to(matrices, (*y.shape, matrices.shape[-1])) * rows[..., None]
    left = jax.vmap(jnp.diag)(rows * y)  # (p, m, m)
    if model == "repeated":
        matrices, left = matrices.reshape(1, -1, matrices.shape[-1]), left.reshape(1, -1, sensors)
    q, r = jnp.linalg.qr(matrices)
    inner = q.mT.conj() @ left
    reduced = (left - q @ inner).reshape(-1, sensors)
    # Normalised columns and a constraint row of their size keep the pivots comparable.
    norms = jnp.sqrt(jnp.sum(jnp.abs(left) ** 2, axis=(0, 1)))
    norms = jnp.where(norms > 0, norms, 1).astype(y.dtype)
    row = jnp.conj(w) / norms
    size = jnp.linalg.norm(row).astype(y.dtype)
    size = jnp.where(size == 0, 1, size)
    q2, r2 = jnp.linalg.qr(jnp.concatenate([reduced / norms[None], (row / size)[None]]))
    s = jax.scipy.linalg.solve_triangular(r2, jnp.conj(q2[-1]) / size) / norms
    s = s * c * _unweighted(jnp.vdot(w, s), 1 / jnp.abs(size) ** 2).astype(y.dtype)
    x = jax.vmap(lambda r, b: jax.scipy.linalg.solve_triangular(r, b))(r, inner @ s)
    pivots = jnp.abs(jnp.diagonal(r2))
    inner_pivots = jnp.abs(jnp.diagonal(r, axis1=1, axis2=2))
    gap = jnp.minimum(jnp.min(pivots) / jnp.max(pivots), jnp.min(inner_pivots) / jnp.max(inner_pivots))
    return s, (x[0] if model == "repeated" else x), gap


def _unweighted(met: Array, weight: Array) -> Array:
    """Scale from the solution with a constraint row times sqrt(weight) to the one with weight 1; met = w* s / c.

    The weight of one row changes the length of the solution only: with t = w* (M* M)^-1 w it is met = weight t /
    (1 + weight t), and the factor is t / (1 + t) / met.
    """
    met = met.real
    return 1 / (met + weight * (1 - met))


def _smallest(matrix: Array) -> tuple[Array, Array]:
    """The right singular vector of the smallest singular value, and the second smallest over the largest value."""
    short = matrix.shape[1] - matrix.shape[0]
    if short > 0:  # one equation less than unknowns: a row of zeros makes the null vector part of the thin factor
        matrix = jnp.concatenate([matrix, jnp.zeros((short, matrix.shape[1]), matrix.dtype)])
    _, values, right = jnp.linalg.svd(jax.lax.stop_gradient(matrix), full_matrices=False)
    z, value = jnp.conj(right[-1]), values[-1]
    # First-order perturbation: the value of the correction is zero, its derivative that of the singular vector.
    residual = matrix.mT.conj() @ (matrix @ z) - (value**2).astype(z.dtype) * z
    spread = values[:-1] ** 2 - value**2
    inverse = jnp.where(spread > 0, 1 / jnp.where(spread > 0, spread, 1), 0).astype(z.dtype)
    step = jnp.conj(right[:-1]).T @ (inverse * (right[:-1] @ residual))
    gap = values[-2] / jnp.where(values[0] > 0, values[0], 1)
    return z - (step - jax.lax.stop_gradient(step)), gap

"""Discrete-ordinates transport in a slab, with source iteration and diffusion synthetic acceleration.

The angular flux psi_m of the directions mu_m (Gauss-Legendre on [-1, 1], weights w_m with sum 1) obeys

    mu_m dpsi_m/dx + S_t psi_m = S_s phi + Q,    phi = sum_m w_m psi_m,

with an isotropic source Q per unit of the angular average, so that an infinite medium has phi = Q / (S_t - S_s). Cells
use the diamond difference: out = [(2 |mu|/h - S_t) in + 2 (S_s phi + Q)] / (2 |mu|/h + S_t), cell value (in + out)/2.

*Source iteration* repeats phi <- sweep(phi); its error shrinks by c = S_s / S_t per iteration in a thick slab.
*Diffusion synthetic acceleration* adds to each sweep the solution of a diffusion problem for the remaining error, with
edge values f (scalar flux) and g (current):

    (g_{i+1} - g_i)/h + (S_t - S_s) (f_i + f_{i+1})/2 = S_s (sweep(phi)_i - phi_i)
    (f_{i+1} - f_i)/(3h) + S_t (g_i + g_{i+1})/2 = 0
    vacuum: a f_0 + b g_0 = 0, a f_I - b g_I = 0,  a = sum_{mu>0} w mu,  b = 3 sum_{mu>0} w mu^2;  reflecting: g = 0
    phi <- sweep(phi) + (f_i + f_{i+1})/2.

This is the P1 system of the same diamond difference, hence stable for every cell width: both have the spectrum of the
continuous problem with the wave number l replaced by (2/h) tan(l h/2). Eliminating g leaves a tridiagonal system.

Precision: float64 reaches a relative change of 1e-10, the default. In float32 changes stop shrinking near 1e-6, the
default there is 20 eps; because the error left is the last change times rho / (1 - rho), source iteration in float32
loses a digit for every factor of ten in 1/(1 - c), while the accelerated iteration keeps five.

References:
    Adams and Larsen (2002), Fast iterative methods for discrete-ordinates particle transport calculations, Progress in
    Nuclear Energy 40, doi:10.1016/S0149-1970(01)00023-3. The formulas above are derived anew (reconstructed), the
    boundary condition is Marshak's in the quadrature.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact

METHODS = ("dsa", "source_iteration")
BOUNDARIES = ("vacuum", "reflecting")


@pytree
class Slab:
    """A slab of I cells. A batch of slabs has a leading axis on every array and goes through `jax.vmap(solve)`.

    Attributes:
        total: S_t of each cell, positive, per unit length.
        scattering: S_s of each cell, in [0, total].
        source: Q of each cell.
        width: h of each cell, positive.
        left: "vacuum" (nothing enters) or "reflecting".
        right: the same at the other end.

    Raises:
        ValueError: shapes differ, or numbers that are known when the slab is made lie outside these ranges. Under jit
            `Flux.converged` is False for them.

    Example:
        >>> slab = uniform(cells=50, length=100.0, scattering_ratio=0.5)
        >>> round(float(solve(slab).phi[25]), 4)
        2.0
    """

    total: Any
    scattering: Any
    source: Any
    width: Any
    left: str = static("vacuum")
    right: str = static("vacuum")

    def __post_init__(self):
        arrays = {name: getattr(self, name) for name in ("total", "scattering", "source", "width")}
        shapes = {name: np.shape(value) for name, value in arrays.items()}
        if len(set(shapes.values())) > 1 or 0 in shapes["total"] or shapes["total"] == ():
            raise ValueError(
                f"all arrays of a slab have one value per cell, at least one cell; the shapes are {shapes}"
            )
        for side in (self.left, self.right):
            if side not in BOUNDARIES:
                raise ValueError(f"boundary {side!r} is unknown; use one of {', '.join(BOUNDARIES)}")
        if any(isinstance(value, jax.core.Tracer) for value in arrays.values()):
            return
        total, scattering, source, width = (np.asarray(value) for value in arrays.values())
        if not np.all(np.isfinite([total, scattering, source, width])):
            raise ValueError("a slab has a value that is not finite")
        if np.any(total <= 0) or np.any(width <= 0):
            raise ValueError(f"total and width must be positive; their minima are {total.min()} and {width.min()}")
        if np.any(scattering < 0) or np.any(scattering > total):
            raise ValueError("scattering must lie between 0 and total in every cell")


@pytree
class Flux:
    """Solution of a slab.

    Attributes:
        phi: scalar flux of each cell, (I,).
        leakage: outgoing current sum_{mu>0} w mu psi at the left and the right end, (2,);
            0 where the end reflects.
        iterations: sweeps until the largest change of phi was below the tolerance.
        radius: ratio of the last two changes, an estimate of the spectral radius.
        converged: False if the iterations ran out, a number was not finite or outside its range (more scattering than
            total, for example), or nothing is absorbed between two mirrors; then the other values mean nothing.

    Example:
        >>> slab = uniform(cells=10, length=10.0, scattering_ratio=0.5)
        >>> flux = jax.jit(solve)(slab)
        >>> bool(flux.converged), round(float(flux.phi[5]), 1)  # far from the ends Q / (S_t - S_s)
        (True, 2.0)
    """

    phi: Float[Array, " I"]
    leakage: Float[Array, " 2"]
    iterations: Int[Array, ""]
    radius: Float[Array, ""]
    converged: Bool[Array, ""]


def uniform(
    *, cells: int, length: float, scattering_ratio: float, boundary: str = "vacuum", dtype: Any = jnp.float32
) -> Slab:
    """A homogeneous slab with S_t = 1, Q = 1 and the same boundary at both ends; `length` in mean free paths."""
    one = jnp.ones(cells, dtype)
    width = one * (length / cells)
    return Slab(total=one, scattering=one * scattering_ratio, source=one, width=width, left=boundary, right=boundary)


def quadrature(angles: int) -> tuple[np.ndarray, np.ndarray]:
    """The positive Gauss-Legendre directions and their weights, (angles/2,) each; the weights sum to 1/2.

    Raises:
        ValueError: the number of directions is not even and positive.
    """
    if angles < 2 or angles % 2:
        raise ValueError(f"angles={angles}: the number of directions must be even and at least 2")
    mu, weight = np.polynomial.legendre.leggauss(angles)
    return mu[mu > 0], weight[mu > 0] / 2


def sweep(slab: Slab, phi: Float[Array, " I"], angles: int = 8) -> tuple[Float[Array, " I"], Float[Array, " 2"]]:
    """One transport sweep for a given scattering source, along all directions at once.

    Mirrors are closed exactly: the flux that enters at one end is what leaves it in the opposite direction, which is
    solved for from one sweep with nothing entering and the transmission of the whole slab.

    Returns:
        The new scalar flux (I,) and the outgoing currents at the left and right end (2,).
    """
    mu, weight = (jnp.asarray(a, phi.dtype) for a in quadrature(angles))
    emission = 2 * (slab.scattering * phi + slab.source)
    speed, total = 2 * mu[None] / slab.width[:, None], slab.total[:, None]
    keep, gain = (speed - total) / (speed + total), emission[:, None] / (speed + total)

    def both(a):  # to the right, to the left: (I, 2, angles/2)
        return jnp.stack([a, a[::-1]], axis=1)

    def cell(entering, coefficients):
        leaving = coefficients[0] * entering + coefficients[1]
        return leaving, (entering + leaving) / 2

    coefficients = both(keep), both(gain)
    entering = jnp.zeros((2, len(mu)), phi.dtype)
    leaving, flux = jax.lax.scan(cell, entering, coefficients)
    if "reflecting" in (slab.left, slab.right):
        left, right = float(slab.left == "reflecting"), float(slab.right == "reflecting")
        through = jnp.prod(keep, axis=0)
        at_left = left * (leaving[1] + right * through * leaving[0]) / (1 - left * right * through**2)
        at_right = right * (leaving[0] + through * at_left)
        leaving, flux = jax.lax.scan(cell, jnp.stack([at_left, at_right]), coefficients)
    phi = jnp.sum(weight[None] * (flux[:, 0] + flux[::-1, 1]), axis=-1)
    open_ends = jnp.array([slab.left == "vacuum", slab.right == "vacuum"])
    return phi, jnp.where(open_ends, jnp.sum((weight * mu)[None] * leaving, axis=-1)[::-1], 0)


def diffusion_correction(slab: Slab, residual: Float[Array, " I"], angles: int = 8) -> Float[Array, " I"]:
    """The cell values of the diffusion problem of the module's text for the source S_s * residual."""
    mu, weight = quadrature(angles)
    marshak = float(np.sum(weight * mu) / np.sum(3 * weight * mu**2))
    stiffness = 2 / (3 * slab.width * slab.total)
    mass = slab.width * (slab.total - slab.scattering) / 2
    load = slab.width * slab.scattering * residual
    # Twice the current at both ends of a cell: -stiffness (f_right - f_left) +- (load - mass (f_left + f_right)).
    # It agrees at inner edges and obeys the boundary conditions at the outer ones.
    zero = jnp.zeros(1, residual.dtype)

    def around(a):
        return jnp.concatenate([a, zero]) + jnp.concatenate([zero, a])

    ends = [2 * marshak * (side == "vacuum") for side in (slab.left, slab.right)]
    diagonal = around(stiffness + mass).at[jnp.array([0, -1])].add(jnp.asarray(ends, residual.dtype))
    off = mass - stiffness
    f = jax.lax.linalg.tridiagonal_solve(
        jnp.concatenate([zero, off]), diagonal, jnp.concatenate([off, zero]), around(load)[:, None]
    )[:, 0]
    return (f[1:] + f[:-1]) / 2


@fact(
    "system",
    "slab_transport",
    "discrete ordinates in a slab with diffusion synthetic acceleration",
    cite="adams2002fast",
)
def solve(
    slab: Slab,
    *,
    angles: int = 8,
    method: str = "dsa",
    tolerance: float | None = None,
    max_iterations: int = 20_000,
) -> Flux:
    """Scalar flux of a slab.

    The flux solves the linear system phi - sweep(phi) = 0. Derivatives with respect to every number of the slab,
    forward and reverse, solve the (transposed) system by the same accelerated iteration, so they cost one more solve
    whatever the number of iterations. Under `vmap` all slabs iterate until the last one has converged.

    Args:
        slab: the problem.
        angles: number of directions N of S_N, even.
        method: "dsa" or "source_iteration".
        tolerance: largest change of phi relative to its maximum; None: 1e-10 in float64, 20 eps in float32.
        max_iterations: sweeps after which the result is flagged as not converged.

    Raises:
        ValueError: unknown method, odd number of directions, or a tolerance that is not positive.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {', '.join(METHODS)}")
    _checks.real("(0, 1)", tolerance=0.5 if tolerance is None else tolerance)
    dtype = jnp.result_type(slab.total)
    if tolerance is None:
        tolerance = max(1e-10, 20 * float(jnp.finfo(dtype).eps))
    zero = jnp.zeros(np.shape(slab.total), dtype)
    first = sweep(slab, zero, angles)[0]
    # The iteration uses the numbers of the slab only as constants: custom_linear_solve differentiates the system.
    frozen = jax.lax.stop_gradient(slab)

    def system(phi):
        return phi - (sweep(slab, phi, angles)[0] - first)

    def precondition(residual):
        return residual + diffusion_correction(frozen, residual, angles) if method == "dsa" else residual

    def iterate(precondition, matvec, b):
        def unfinished(state):
            phi, change, _, count = state
            size = jnp.max(jnp.abs(phi))
            return (count < max_iterations) & ~(change <= tolerance * size) & jnp.isfinite(size)

        def step(state):
            phi, change, _, count = state
            update = precondition(b - matvec(phi))
            return phi + update, jnp.max(jnp.abs(update)), change, count + 1

        infinite = jnp.full((), jnp.inf, dtype)
        phi, change, before, count = jax.lax.while_loop(unfinished, step, (zero, infinite, infinite, 0))
        ratio = change / jnp.where(before > 0, before, 1)
        return phi, (count, ratio, change <= tolerance * jnp.max(jnp.abs(phi)))

    def transposed(matvec, b):
        return iterate(lambda r: jax.linear_transpose(precondition, r)(r)[0], matvec, b)

    phi, (count, radius, converged) = jax.lax.custom_linear_solve(
        system, first, lambda m, b: iterate(precondition, m, b), transposed, has_aux=True
    )
    return Flux(
        phi=phi,
        leakage=sweep(slab, phi, angles)[1],
        iterations=count.astype(jnp.int32),
        radius=radius,
        converged=converged & _sound(frozen),
    )


def _sound(slab: Slab) -> Bool[Array, ""]:
    """Whether a slab has a flux: what `Slab` checks where it can, and a way out for the particles."""
    numbers = jnp.stack([slab.total, slab.scattering, slab.source, slab.width])
    sound = jnp.isfinite(numbers).all() & (slab.total > 0).all() & (slab.width > 0).all()
    sound &= ((slab.scattering >= 0) & (slab.scattering <= slab.total)).all()
    if slab.left == slab.right == "reflecting":
        # The flux is the source over the absorption, which the subtraction knows to eps total: to 1 % from here on.
        absorbed = jnp.sum(slab.width * (slab.total - slab.scattering))
        sound &= absorbed > 100 * jnp.finfo(numbers.dtype).eps * jnp.sum(slab.width * slab.total)
    return sound


def spectrum(
    wave_number: Float[Array | np.ndarray, "..."],
    scattering_ratio: float,
    *,
    angles: int | None = None,
    method: str = "dsa",
) -> np.ndarray:
    """Error amplification of one iteration in an infinite medium, in float64.

    With Lambda(l) = sum_m w_m / (1 + l^2 mu_m^2), which is arctan(l)/l for infinitely many directions, source
    iteration multiplies the error exp(i l S_t x) by c Lambda, and the accelerated iteration by
    c Lambda - c (1 - c Lambda) / (l^2/3 + 1 - c).

    Args:
        wave_number: l > 0 in units of S_t.
        scattering_ratio: c in [0, 1].
        angles: number of directions; None: infinitely many.
        method: "dsa" or "source_iteration".

    Raises:
        ValueError: unknown method, or numbers outside these ranges.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {', '.join(METHODS)}")
    if not 0 <= scattering_ratio <= 1 or not np.all(np.asarray(wave_number) > 0):
        raise ValueError(f"scattering_ratio={scattering_ratio} must be in [0, 1] and all wave numbers positive")
    square, c = np.asarray(wave_number, np.float64) ** 2, scattering_ratio
    if angles is None:
        scattered = np.arctan(np.sqrt(square)) / np.sqrt(square)
    else:
        mu, weight = quadrature(angles)
        scattered = np.sum(2 * weight / (1 + square[..., None] * mu**2), axis=-1)
    if method == "source_iteration":
        return c * scattered
    return c * scattered - c * (1 - c * scattered) / (square / 3 + 1 - c)


def spectral_radius(scattering_ratio: float, *, angles: int | None = None, method: str = "dsa") -> float:
    """Largest amplification over all wave numbers in [1e-2, 1e3], to about seven digits."""
    waves = np.geomspace(1e-2, 1e3, 20_001)
    return float(np.max(np.abs(spectrum(waves, scattering_ratio, angles=angles, method=method))))

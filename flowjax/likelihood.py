"""Log-likelihood by the probability-flow ODE.

Along dx/dt = v(t, x) the density of the state changes by d log p / dt = -div v. A data point x1 is carried back to the
source, x_start, and

    log p(x1) = log p_start(x_start) - int_start^end div v(t, x_t) dt.

The divergence is exact (one Jacobian-vector product per dimension) or Hutchinson's estimate r . (J r) with one probe r
per sample held fixed over the whole solve, without which step-size control would see noise; it is unbiased over probes.
References: 1806.07366, 1810.01367, 2011.13456 (appendix D.2).
"""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from flowjax._captured import tracing
from flowjax._checks import real
from flowjax._pytree import pytree
from flowjax.fields import DriftPlusScore
from flowjax.flow import Field, check_field, check_state, term
from flowjax.keys import noise
from flowjax.models.attention import require_jvp
from flowjax.paths.base import GaussianPath, at_least_single
from flowjax.solvers.options import check_choice


@pytree
class Likelihood:
    """The result of `log_likelihood`.

    Attributes:
        log_density: log p(x) in nats, (B,), in the scale of x.
        x: the state at the source end, (B, ...).
        steps: steps of the solver, accepted and rejected.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.Linear()
        >>> flow = fj.Flow(fj.oracles.Gaussian(mean=1.0, std=0.5, path=path).network(), path=path)
        >>> result = fj.log_likelihood(flow, jnp.array([[1.0]]))
        >>> round(abs(float(result.x[0, 0])), 3), int(result.steps) > 0  # the mean comes from noise 0
        (0.0, True)
    """

    log_density: Float[Array, " B"]
    x: Float[Array, "B ..."]
    steps: Int[Array, ""]


class _WithDivergence(eqx.Module):
    """Velocity and divergence as one vector field; a module and no closure, so that a second call compiles nothing."""

    velocity: Any
    probes: Array | None

    def __call__(self, t: Any, state: tuple[Array, Array], args: Any) -> tuple[Array, Array]:
        x, axes = state[0], tuple(range(1, state[0].ndim))
        value, push = jax.linearize(lambda y: self.velocity(t, y, args), x)
        if self.probes is not None:
            return value, jnp.sum(self.probes * push(self.probes), axis=axes)
        # Samples do not see each other, so one direction can be pushed through the whole batch at once.
        basis = jnp.eye(math.prod(x.shape[1:]), dtype=x.dtype).reshape(-1, *x.shape[1:])
        parts = jax.lax.map(lambda e: jnp.sum(e[None] * push(jnp.broadcast_to(e[None], x.shape)), axis=axes), basis)
        return value, jnp.sum(parts, axis=0)


def _is_drift(part: Any) -> bool:
    return isinstance(part, DriftPlusScore)


def log_likelihood(
    field: Field,
    x: Float[Array, "B ..."],
    cond: Any = None,
    *,
    divergence: str = "exact",
    probe: str = "rademacher",
    key: Key[Array, ""] | None = None,
    index: Any = 0,
    start: float = 0.0,
    end: float = 1.0,
    log_prior: Callable[[Array], Array] | None = None,
    solver: Any = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> Likelihood:
    """Log p(x) of data under a flow; differentiable with respect to the field and x.

    Args:
        field: a `Flow` or another field without memory.
        x: data at time `end`, (B, ...), normalised as for the network.
        cond: condition with leading axis B.
        divergence: "exact", at the cost of one derivative per dimension, or "hutchinson".
        probe: law of Hutchinson's probes, "rademacher" or "gaussian".
        key: typed key of the probes; the probe of sample i depends on (key, index + i) only.
        index: global index of the first sample.
        start: source end, at which the state has the law N(0, sigma(start)^2).
        end: data end; below 1 where the velocity is infinite there (VP, cosine).
        log_prior: log-density of the state at `start`, (B, ...) -> (B,), in place of that normal law (two-sided
            interpolants).
        solver: an adaptive diffrax solver; None is `diffrax.Tsit5()`.
        rtol: relative tolerance of state and log-density.
        atol: absolute tolerance.
        max_steps: bound on steps; more raise `equinox.EquinoxRuntimeError`.

    Raises:
        ValueError: an unknown choice, a number outside its range, Hutchinson without a key, a field with memory, the
            drift of an SDE, an interpolant without `log_prior`, an infinite velocity at an end, or a network without
            forward derivative (`flowjax.models.require_jvp`).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.Linear()
        >>> flow = fj.Flow(fj.oracles.Gaussian(mean=1.0, std=0.5, path=path).network(), path=path)
        >>> round(float(fj.log_likelihood(flow, jnp.array([[1.0]])).log_density[0]), 3)  # -log(0.5 sqrt(2 pi))
        -0.226
    """
    check_field(field)
    check_choice("divergence", divergence, ("exact", "hutchinson"))
    check_choice("probe", probe, ("rademacher", "gaussian"))
    real("[0, inf)", rtol=rtol, atol=atol)
    if solver is not None and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(f"solver must be an adaptive one of diffrax, such as diffrax.Dopri8(), got {solver!r}")
    if not 0 <= start < end <= 1:
        raise ValueError(f"times need 0 <= start < end <= 1, got start={start}, end={end}")
    velocity = term(field).vector_field
    if any(map(_is_drift, jax.tree.leaves(field, is_leaf=_is_drift))):
        raise ValueError("the drift of an SDE carries another density than its flow: pass the field inside it")
    if log_prior is None and not isinstance(field.path, GaussianPath):
        raise ValueError("a two-sided interpolant starts from a law of its own: pass log_prior=, its log-density")
    require_jvp(field)
    field.check((start, end), "velocity")
    for name, t in (("start", start), ("end", end)):
        if not field.path.has_velocity(t):
            raise ValueError(f"the velocity of {field.path!r} is infinite at t = {t:g}: move {name}=")
    x = jnp.asarray(x)
    check_state(x)
    x = at_least_single(x)
    probes = None
    if divergence == "hutchinson":
        if key is None:
            raise ValueError("Hutchinson's estimate is random: pass key=jax.random.key(seed)")
        probes = noise(key, x.shape, index, x.dtype)
        probes = jnp.where(probes < 0, -1, 1).astype(x.dtype) if probe == "rademacher" else probes
    axes = tuple(range(1, x.ndim))
    with tracing(field):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(_WithDivergence(velocity, probes)),
            diffrax.Tsit5() if solver is None else solver,
            jnp.asarray(end, x.dtype),
            jnp.asarray(start, x.dtype),
            None,
            (x, jnp.zeros(x.shape[0], x.dtype)),
            cond,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps,
        )
    latent, change = (part[-1] for part in solution.ys)
    if log_prior is None:
        scale = jnp.asarray(field.path.sigma(start), x.dtype)
        prior = jnp.sum(-((latent / scale) ** 2) / 2 - jnp.log(scale) - math.log(2 * math.pi) / 2, axis=axes)
    else:
        prior = log_prior(latent)
    # The run goes from end to start, so `change` is minus the integral.
    return Likelihood(log_density=prior + change, x=latent, steps=solution.stats["num_steps"])


def bits_per_dim(log_density: Float[Array, " B"], dim: int, scale: float = 1.0) -> Float[Array, " B"]:
    """Negative log-likelihood in bits per dimension of data of integer levels.

    For data made continuous by `dequantize` and then normalised as (y - shift) / scale, this is an upper bound on
    the bits per dimension of the integers.

    Args:
        log_density: nats in the normalised scale, (B,).
        dim: number of dimensions of a data point.
        scale: of the normalisation, positive: 127.5 for 8-bit images on [-1, 1].
    """
    return -log_density / (dim * math.log(2)) + math.log2(scale)


def dequantize(key: Key[Array, ""], y: Float[Array, "B ..."], index: Any = 0) -> Float[Array, "B ..."]:
    """Integer levels plus uniform noise on [0, 1) (1511.01844); that of sample i depends on (key, index + i) only."""
    indices = jnp.asarray(index, jnp.uint32) + jnp.arange(y.shape[0], dtype=jnp.uint32)
    return y + jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), y.shape[1:], y.dtype))(indices)

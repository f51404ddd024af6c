"""DPM-Solver's adaptive driver (Lu et al., 2206.00927, appendix C): embedded pairs of order 1/2 or 2/3 in lam."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax import _checks
from flowjax._captured import tracing
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.flow import Field, count
from flowjax.paths.base import at_least_single, precision
from flowjax.solvers.adaptive import OwnSteps
from flowjax.solvers.ends import check_finite_lam
from flowjax.solvers.options import check_choice
from flowjax.times import check_times


@fact("solver", "dpm_adaptive", "DPM-Solver's adaptive embedded pairs", cite="lu2022dpmsolver", couples_batch=True)
@pytree
class DPMAdaptive(OwnSteps):
    """DPM-Solver-12 and -23 with step-size control.

    A trial step of length h in lam is made with both members of the pair, which share their evaluations. With

        delta = max(atol, rtol max(|x_low|, |x_prev|)),      E = max over the batch of rms((x_high - x_low)/delta)

    it is accepted if E <= 1; then h <- min(theta h E^(-1/order), what is left). Evaluations: `order` per trial. The
    batch shares its steps, so a sample depends on its batch mates. lam must be finite at both ends. An inversion has
    h < 0.

    Args:
        order: 2 (pair 1/2) or 3 (pair 2/3).
        form: "data" or "noise".
        rtol: relative tolerance.
        atol: absolute tolerance; for data in [-1, 1] the default is one grey level of 256.
        first: length of the first step in lam.
        theta: safety factor.
        max_trials: bound on trial steps; when it is reached the result is NaN.

    Raises:
        ValueError: a value that is not allowed; when solving, an infinite lam at an end, a trajectory, or a field with
            memory.

    Reference: Lu et al. (2206.00927), appendix C.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.VP()
        >>> target = fj.oracles.Gaussian(mean=1.0, std=0.5, path=path)
        >>> flow, x = fj.Flow(target.network("data"), path=path, prediction="data"), jnp.ones((1, 1))
        >>> result = fj.solve(flow, fj.solvers.DPMAdaptive(order=3), x, [0.0, 0.99])
        >>> round(float(result.x[0, 0]), 1), round(float(target.flow_map(x, 0.0, 0.99)[0, 0]), 1)
        (1.5, 1.5)
    """

    order: int = static(3)
    form: str = static("data")
    rtol: float = 0.05
    atol: float = 0.0078
    first: float = 0.05
    theta: float = 0.9
    max_trials: int = static(1000)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("order", self.order, (2, 3))
        check_choice("form", self.form, ("data", "noise"))
        _checks.real("[0, inf)", rtol=self.rtol)
        _checks.real("(0, inf)", atol=self.atol, first=self.first)
        _checks.real("(0, 1]", theta=self.theta)
        _checks.whole(_checks.COUNT, max_trials=self.max_trials)

    def solve(
        self,
        field: Field,
        x: Float[Array, "batch ..."],
        times: Any,
        cond: Any = None,
        *,
        trajectory: bool = False,
        invert: bool = False,
    ) -> dict[str, Any]:
        """Integrates from times[0] to times[-1]; the times between do not matter."""
        times = check_times(times, invert=invert)
        check_finite_lam(field.path, times.tolist(), "DPMAdaptive")
        field.check(times[[0, -1]], self.form)
        if trajectory:
            raise ValueError("DPMAdaptive chooses its steps and gives no trajectory on a grid; use a fixed-grid solver")
        if not field.stateless:
            raise ValueError(f"{type(field).__name__} has a memory, which rejected trial steps would disturb")
        x = at_least_single(x)
        lam = np.asarray([field.path.lam(times[0]), field.path.lam(times[-1])])
        return _integrate(self, field, x, jnp.asarray(lam, precision(x)), cond)


@jax.jit
@tracing()
def _integrate(solver: DPMAdaptive, field: Field, x: Array, lam: Array, cond: Any) -> dict[str, Any]:
    path, order = field.path, solver.order
    sign = jnp.sign(lam[1] - lam[0])

    def left(at: Array) -> Array:
        """What is left of lam, positive."""
        return sign * (lam[1] - at)

    def weights(h: Array) -> tuple[Array, Array]:
        """P1 = e^z - 1 and P2/P1 = phi_2/phi_1 at z = -h (data) or h (noise)."""
        z = -h if solver.form == "data" else h
        p1 = jnp.expm1(z)
        small = jnp.abs(z) < 1e-2
        safe = jnp.where(small, 1.0, z)
        return p1, jnp.where(small, 0.5 + z / 12, (jnp.expm1(safe) - safe) / (safe * jnp.expm1(safe)))

    def move(x: Array, a: Array, b: Array, mean: Array) -> Array:
        """From lam a to lam b with this exponentially weighted mean of the output."""
        s, t = path.time(a), path.time(b)
        p1, _ = weights(b - a)
        if solver.form == "data":
            return path.sigma(t) / path.sigma(s) * x - path.alpha(t) * p1 * mean
        return path.alpha(t) / path.alpha(s) * x - path.sigma(t) * p1 * mean

    def evaluate(a: Array, x: Array, memory: Any) -> tuple[Array, Any]:
        return field.evaluate(path.time(a), x, cond, memory, to=solver.form)

    def trial(carry: Any) -> Any:
        x, previous, at, h, memory, trials = carry
        end = jnp.where(sign * h >= left(at), lam[1], at + h)  # the sum may round to just before the end, or not move
        f, memory = evaluate(at, x, memory)
        ratio = 1 / 2 if order == 2 else 1 / 3
        f1, memory = evaluate(at + ratio * h, move(x, at, at + ratio * h, f), memory)
        if order == 2:
            low = move(x, at, end, f)
            high = move(x, at, end, f + (f1 - f))  # (f1 - f)/(2 r)
        else:
            _, inner = weights(2 / 3 * h)
            f2, memory = evaluate(at + 2 / 3 * h, move(x, at, at + 2 / 3 * h, f + 2 * inner * (f1 - f)), memory)
            low = move(x, at, end, f + 1.5 * (f1 - f))
            high = move(x, at, end, f + weights(h)[1] * 1.5 * (f2 - f))
        delta = jnp.maximum(solver.atol, solver.rtol * jnp.maximum(jnp.abs(low), jnp.abs(previous)))
        error = jnp.sqrt(jnp.mean(((high - low) / delta) ** 2, axis=tuple(range(1, x.ndim))))
        error = jnp.maximum(jnp.max(error), 1e-10)
        accept = error <= 1
        at = jnp.where(accept, end, at)
        step = sign * jnp.minimum(solver.theta * sign * h * error ** (-1 / order), left(at))
        return jnp.where(accept, high, x), jnp.where(accept, low, previous), at, step, memory, trials + 1

    def unfinished(carry: Any) -> Array:
        _, _, at, _, _, trials = carry
        return (left(at) > 0) & (trials < solver.max_trials)

    first = sign * jnp.minimum(jnp.asarray(solver.first, lam.dtype), left(lam[0]))
    start = (x, x, lam[0], first, field.init(x), jnp.int32(0))
    x, _, at, _, memory, _ = jax.lax.while_loop(unfinished, trial, start)
    evaluations, network_calls = count(memory)
    x = jnp.where(left(at) > 0, jnp.nan, x)
    return {"x": x, "evaluations": evaluations, "network_calls": network_calls, "trajectory": None}

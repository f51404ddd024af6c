"""diffrax's adaptive Runge-Kutta methods on a field, for `solve` and the command line.

Order and stages are the wrapped method's. The step size is shared by the batch (its error norm is taken over all
samples), so a sample depends slightly on its batch mates. Evaluations are counted from diffrax's statistics: the
method's stages for every attempted step, and one at the start for methods that hand their last value to the next step.
"""

import abc
import functools
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax import _checks
from flowjax._captured import tracing
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field, count, term
from flowjax.paths.base import at_least_single, precision
from flowjax.times import check_times

for _name, _make in {
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "bosh3": diffrax.Bosh3,
}.items():
    fact("runge_kutta", _name, f"diffrax's {_make.__name__}", cite="kidger2022neural")(_make)


class OwnSteps(abc.ABC):
    """A solver that chooses its steps while it runs, so that it has no rows.

    Example:
        >>> import flowjax as fj
        >>> solver = fj.solvers.DPMAdaptive()  # one of them
        >>> hasattr(solver, "bind"), hasattr(solver, "solve")
        (False, True)
    """

    asks: tuple[str, ...] = ()  # see `Solver`

    @abc.abstractmethod
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
        """Integrates from times[0] to times[-1]; returns the entries of a `flowjax.solving.Solution`."""


@fact("solver", "adaptive", "adaptive Runge-Kutta of diffrax (Tsit5)", cite="kidger2022neural", couples_batch=True)
@pytree
class Adaptive(OwnSteps):
    """An explicit Runge-Kutta solver of diffrax under PID step-size control.

    Args:
        solver: an explicit adaptive solver of diffrax; None is `diffrax.Tsit5()`.
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_steps: bound on attempted steps; more are an error (`equinox.EquinoxRuntimeError`).

    Raises:
        ValueError: not an explicit adaptive Runge-Kutta solver, or tolerances that are not positive.

    References:
        Tsitouras (2011), Runge-Kutta pairs of order 5(4); Kidger (2202.02435), chapter 5, for the controller.

    Example:
        >>> import flowjax as fj, diffrax, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> solver = fj.solvers.Adaptive(diffrax.Tsit5(), rtol=1e-4, atol=1e-4)
        >>> round(float(fj.solve(flow, solver, jnp.ones((1, 1)), [0.0, 1.0]).x[0, 0]), 3)  # exp(-1)
        0.368
    """

    positional = ("solver",)

    solver: Any = part("runge_kutta", None)
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = static(4096)

    def __post_init__(self) -> None:
        """Fills in the default solver and checks the numbers."""
        _checks.real("[0, inf)", rtol=self.rtol, atol=self.atol)
        _checks.whole(_checks.COUNT, max_steps=self.max_steps)
        if all(isinstance(tolerance, int | float) and tolerance == 0 for tolerance in (self.rtol, self.atol)):
            raise ValueError("rtol and atol are both 0, which no step satisfies")
        if self.solver is None:
            object.__setattr__(self, "solver", diffrax.Tsit5())
        if not (
            isinstance(self.solver, diffrax.AbstractERK) and isinstance(self.solver, diffrax.AbstractAdaptiveSolver)
        ):
            raise ValueError(f"Adaptive wraps explicit adaptive Runge-Kutta solvers of diffrax, got {self.solver!r}")

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
        """Integrates from times[0] to times[-1]; the times between are only where `trajectory` is read off.

        Returns:
            x, evaluations, network_calls and trajectory as in `flowjax.solving.Solution`; network_calls is -1 for a
            field whose calls per evaluation change with time (a guidance interval).

        Raises:
            ValueError: bad times, a field with memory, or a velocity undefined at an end.
        """
        times = check_times(times, invert=invert)
        field.check((times[0], times[-1]), "velocity")
        for name, t in (("start", times[0]), ("end", times[-1])):
            if not field.path.has_velocity(t):
                raise ValueError(
                    f"the velocity of {field.path!r} is infinite at t = {t:g}: move the {name} of the times"
                )
        x = at_least_single(x)
        return _integrate(self, term(field), x, jnp.asarray(times, precision(x)), cond, trajectory)


@functools.partial(jax.jit, static_argnames="trajectory")
@tracing()
def _integrate(adaptive: Adaptive, velocity: Any, x: Any, times: Any, cond: Any, trajectory: bool) -> dict[str, Any]:
    solution = diffrax.diffeqsolve(
        velocity,
        adaptive.solver,
        times[0],
        times[-1],
        None,
        x,
        cond,
        stepsize_controller=diffrax.PIDController(rtol=adaptive.rtol, atol=adaptive.atol),
        saveat=diffrax.SaveAt(ts=times) if trajectory else diffrax.SaveAt(t1=True),
        max_steps=adaptive.max_steps,
    )
    tableau = adaptive.solver.tableau
    stages = tableau.num_stages - int(tableau.fsal)
    evaluations = int(tableau.fsal) + stages * solution.stats["num_steps"].astype(jnp.int32)

    def calls(t: Any) -> Any:  # only the counter is used, so the compiler drops the network
        field = velocity.vector_field.field
        return count(field.evaluate(t, x, cond, field.init(x))[1])[1]

    per_evaluation = jax.lax.map(calls, jnp.linspace(times[0], times[-1], 129))
    constant = jnp.all(per_evaluation == per_evaluation[0])
    return {
        "x": solution.ys[-1],
        "trajectory": solution.ys if trajectory else None,
        "evaluations": evaluations,
        "network_calls": jnp.where(constant, evaluations * per_evaluation[0], -1),
    }

"""The shared problem of the sampler tests: the default mixture in float64, foreign loops, orders by regression."""

import collections
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from flowjax import paths, times
from flowjax.oracles import Mixture, TwoSidedMixture
from flowjax.solvers import StepTo
from flowjax.solvers.bound import Bound
from flowjax.solvers.requests import Evaluate
from flowjax.solvers.rows import SECOND
from flowjax.solvers.solver import Solver, run_on_arrays

PATHS = {
    "linear": paths.Linear(),
    "trig": paths.Trig(),
    "vp": paths.VP(),
    "cosine": paths.Cosine(),
    "ve": paths.VE(sigma_min=0.05, sigma_max=6.0),
}

# Where the recorded runs of the authors' programs begin and end, and their grids by the names they have there.
ENDS = {"vp": (0.0, 1 - 1e-3), "linear": (0.02, 0.99)}
GRIDS = {
    "logSNR": times.log_snr,
    "time_uniform": lambda path, n, start, end: times.uniform(n, start, end),
    "time_quadratic": lambda path, n, start, end: times.quadratic(n, start, end),
    # Of Karras et al., in sigma/alpha.
    "edm": lambda path, n, start, end: path.time(
        -7 * np.log(np.linspace(*np.exp(-path.lam(np.array([start, end])) / 7), n + 1))
    ),
}


# Compiled once for all problems of a path.
_predict = jax.jit(lambda target, to, t, x: target.predict(to, t, x), static_argnums=1)
_flow_map = jax.jit(lambda target, x, start, end: target.flow_map(x, start, end))


class Problem:
    """The exact predictions and the exact flow of the default one-dimensional mixture, on NumPy arrays in float64."""

    def __init__(self, path: Any):
        self.path = path
        self.target = Mixture.default(path)

    def __call__(self, request: Evaluate) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(_predict(self.target, request.to, request.t, request.x))

    def exact(self, x: np.ndarray, start: float, end: float) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(_flow_map(self.target, x, start, end))

    def state(self, t: float, n: int = 16) -> np.ndarray:
        """Typical states (n, 1) at time t."""
        rng = np.random.default_rng(0)
        x1, x0 = rng.uniform(-1.5, 1.5, (n, 1)), rng.standard_normal((n, 1))
        return self.path.alpha(t) * x1 + self.path.sigma(t) * x0

    def error(self, solver: Solver, grid: np.ndarray) -> float:
        """Root mean square error at the end of the grid."""
        x = self.state(grid[0])
        end = run_on_arrays(solver, self.path, grid, x, self)[-1]
        return float(np.sqrt(np.mean((end - self.exact(x, grid[0], grid[-1])) ** 2)))

    def order(
        self,
        solver: Solver,
        counts: tuple[int, ...] = (40, 80, 160, 320),
        grid: Callable[[int], np.ndarray] = lambda n: times.uniform(n, 0.2, 0.8),
    ) -> float:
        """The exponent p of error ~ n^-p, by regression over the step counts."""
        errors = [self.error(solver, grid(n)) for n in counts]
        return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


def two_gaussians(interpolant: Any) -> TwoSidedMixture:
    """N(-1, 0.5^2) to N(1.5, 0.8^2), independent."""
    return TwoSidedMixture(
        weights0=np.ones(1),
        means0=np.array([[-1.0]]),
        stds0=np.array([[0.5]]),
        weights1=np.ones(1),
        means1=np.array([[1.5]]),
        stds1=np.array([[0.8]]),
        interpolant=interpolant,
    )


def foreign_loop(
    bound: Bound, x: Any, network: Callable[[Evaluate], Any], noise: Callable[[int, Any], tuple] = lambda row, x: ()
) -> Any:
    """The final state from a plain Python loop over the public one-row-at-a-time methods of a bound solver."""
    registers = bound.start(x)
    for row in range(bound.pattern.rows):
        drawn = noise(row, registers[0])
        t, at = bound.point(row, registers, drawn)
        stage = bound.pattern.stages[row]
        refines = bound.pattern.kinds[stage] == SECOND
        request = Evaluate(
            t=t,
            x=at,
            to=bound.pattern.to,
            end=None if bound.ends is None else bound.ends[stage],
            velocity=bound.velocity(row, registers) if refines else None,
            second=refines,
        )
        registers = bound.advance(row, registers, network(request), drawn)
    return registers[0]


def through_diffrax(
    field: Any, bound: Bound, x: Any, cond: Any = None, key: Any = None, index: int = 0, grid: Any = None
) -> diffrax.Solution:
    """A bound solver run by diffrax on its own grid, or on another."""
    ts = jnp.asarray(bound.grid if grid is None else grid, jnp.float32)
    return diffrax.diffeqsolve(
        bound.term(field, key, index),
        bound,
        ts[0],
        ts[-1],
        None,
        x,
        cond,
        stepsize_controller=StepTo(ts=ts),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
        throw=False,
    )


def relative(a: Any, b: Any) -> float:
    """Largest difference relative to the largest entry of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    assert np.all(np.isfinite(a))
    assert np.all(np.isfinite(b))
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


class Executions:
    """Counts how often compiled code really runs a network (or the branch that holds it)."""

    def __init__(self):
        self._runs = collections.deque()  # not a number, whose change would compile the network anew

    def wrap(self, network: Callable[..., Any]) -> Callable[..., Any]:
        def counted(x, t, cond=None, **extra):
            value = network(x, t, cond, **extra)
            zero = jax.ShapeDtypeStruct((), value.dtype)  # pure, so that unused calls are still dropped
            return value + jax.pure_callback(self._one, zero, value.reshape(-1)[0], vmap_method="sequential")

        return counted

    def _one(self, value: Any) -> Any:
        self._runs.append(1)
        return np.zeros_like(value)

    def take(self) -> int:
        """The count since the last call; the results must be ready."""
        number = len(self._runs)
        self._runs.clear()
        return number

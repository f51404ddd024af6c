"""Fine solutions on the times of a coarse grid, to calibrate and to measure against."""

import itertools
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from flowjax import _checks
from flowjax.flow import Field
from flowjax.solvers.dpm_solver import DPMSolver
from flowjax.solvers.solver import Solver
from flowjax.solving import solve
from flowjax.times import check_times


def refine(times: Any, steps: int) -> tuple[Float[np.ndarray, " fine"], Int[np.ndarray, " times"]]:
    """A grid of at least `steps` steps that divides each interval of `times` equally, and the positions of `times`."""
    _checks.whole(_checks.COUNT, steps=steps)
    times = check_times(times)
    parts = -(-steps // (len(times) - 1))
    fine = np.concatenate([np.linspace(s, t, parts, endpoint=False) for s, t in itertools.pairwise(times)])
    return np.append(fine, times[-1]), np.arange(len(times)) * parts


def reference(
    field: Field,
    x: Float[Array, "batch ..."],
    times: Any,
    cond: Any = None,
    *,
    steps: int = 200,
    solver: Solver | None = None,
) -> Float[Array, "times batch ..."]:
    """The states at `times` of a run of at least `steps` steps from x at times[0]; DPM-Solver++(2M) by default.

    Of full order to the end, as in the programs that published searches were made with.
    """
    fine, where = refine(times, steps)
    result = solve(field, solver or DPMSolver(lower_order_final=False), x, fine, cond, trajectory=True)
    assert result.trajectory is not None
    return result.trajectory[where]

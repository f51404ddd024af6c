"""Times by dynamic programming: the grid of n steps whose local errors on a model are least together.

On a fine solution x_0, ..., x_M of some noises, a step from fine time i to j keeps the prediction f_i of the solver's
kind constant (Euler, DDIM); its error is the root mean square distance of where it leads from x_j. The n steps with the
least sum of errors are found exactly, without a gradient, from one fine solution.

References:
    Chen et al. (2024), On the Trajectory Regularity of ODE-based Diffusion Sampling, arXiv:2405.11326 (GITS).
    Watson et al. (2021), Learning to Efficiently Sample from Diffusion Probabilistic Models, arXiv:2106.03802.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax import _checks, specs
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.calibration.forms import constant_law
from flowjax.calibration.reference import reference
from flowjax.flow import Field


@jax.jit
def _apart(state: Array, value: Array, law: Any, states: Array) -> Float[Array, " fine"]:
    """Mean squared distances of where a state leads at all fine times from what is there."""
    axes = (-1,) + (1,) * (states.ndim - 1)
    ratio, total = (part.reshape(axes) for part in law)
    return jnp.mean((ratio * state[None] + total * value[None] - states) ** 2, axis=tuple(range(1, states.ndim)))


def local_errors(
    field: Field, x: Float[Array, "B ..."], times: Float[np.ndarray, " fine"], to: str, cond: Any = None
) -> Float[np.ndarray, "fine fine"]:
    """Root mean square error of a step from each fine time to each later one; infinite elsewhere.

    Args:
        field: What is sampled.
        x: Start states at times[0].
        times: The fine ones.
        to: The prediction that a step keeps constant.
        cond: Conditions of the samples.
    """
    states = reference(field, x, times, cond, steps=max(200, len(times) - 1))
    ask = jax.jit(lambda field, t, x, cond: getattr(field, to)(t, x, cond))
    errors = np.full((len(times), len(times)), np.inf)
    for i, t in enumerate(times[:-1]):
        later = times[i + 1 :]
        law = [jnp.asarray(part, x.dtype) for part in constant_law(field.path, to, np.full(len(later), t), later)]
        value = ask(field, jnp.asarray(t, x.dtype), states[i], cond)
        errors[i, i + 1 :] = np.sqrt(np.asarray(_apart(states[i], value, law, states[i + 1 :])))
    return errors


def cheapest(errors: Float[np.ndarray, "fine fine"], steps: int) -> list[int]:
    """The way from the first to the last of the fine times in `steps` steps with the least sum of errors.

    Raises:
        ValueError: There are fewer fine times, or errors that are not finite.
    """
    count = len(errors)
    if steps >= count:
        raise ValueError(f"{steps} steps need more than {count} fine times")
    cost, ways = np.full(count, np.inf), []
    cost[0] = 0.0
    for _ in range(steps):
        total = cost[:, None] + errors
        ways.append(total.argmin(0))
        cost = total.min(0)
    if not np.isfinite(cost[-1]):
        raise ValueError("errors of steps are not finite: the network answers with NaN or overflows in its type")
    way = [count - 1]
    for step in reversed(ways):
        way.append(int(step[way[-1]]))
    return way[::-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(Calibration):
    """Times by dynamic programming.

    Attributes:
        start: See `Calibration`.
        end: Likewise.
        num: Samples of the fine solution.
        steps: Solver steps.
        fine: Number of times among which they are chosen.
        solver: Spec of the solver that will use them; that of the recipe unless it is given.

    Example:
        >>> from flowjax.calibration.grids import cheapest
        >>> import numpy as np
        >>> errors = np.triu(np.square(np.arange(5) - np.arange(5)[:, None]).astype(float), 1)
        >>> errors[errors == 0] = np.inf  # the error of a step is its length squared: equal steps
        >>> cheapest(errors, 2)
        [0, 2, 4]
    """

    num: int = option(64, "Samples of the fine solution.")
    steps: int = option(5, "Solver steps.")
    fine: int = option(100, "Fine times among which those of the steps are chosen.")
    solver: str | None = option(None, "Solver that will use the times; the recipe's by default.")

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole("[2, 10000]", fine=self.fine)
        if self.steps > self.fine:
            raise ValueError(f"steps={self.steps} are chosen of fine={self.fine}: raise fine")

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """The times."""
        fine = np.linspace(self.start, self.end, self.fine + 1)
        solver = work.recipe.build_solver(self.solver)
        to = solver.bind(work.flow.path, work.grid).pattern.to
        x, cond = work.states()
        errors = local_errors(work.field, x, fine, to, cond)
        way = cheapest(errors, self.steps)
        return {"times": fine[way], "error": np.array(sum(errors[i, j] for i, j in itertools.pairwise(way)))}

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """The times, for the solver that they were made for."""
        solver = specs.build("solver", stored.record["solver"]) if "solver" in stored.record else None
        return Calibrated(solver, stored.arrays["times"])

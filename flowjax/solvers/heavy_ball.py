"""Heavy-ball momentum on any method (Wizadwongsa et al., 2307.11118)."""

from typing import Any

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.dpm_solver import DPMSolver
from flowjax.solvers.options import check_choice, check_newest_weight
from flowjax.solvers.requests import Direction, Evaluate, Request, Step, Updates, direction, keep, pairs, rewritten
from flowjax.solvers.solver import Solver


@fact(
    "solver",
    "heavy_ball",
    "heavy-ball momentum on another solver",
    cite="wizadwongsa2023diffusion",
    order=1,
    example=lambda: {"solver": DPMSolver()},
)
@pytree
class HeavyBall(Solver):
    """Momentum against divergence artifacts at few steps and strong guidance.

    The direction d_n of the wrapped method's step is replaced by v_n = (1 - beta) v_{n-1} + beta d_n, with v = d at the
    first step that has one (`init`). beta is the weight of the NEW direction: beta = 1 is the wrapped method. It
    enlarges the stability region (for Adams-Bashforth by (2 - beta)/beta) and lowers the order to 1. Evaluations are
    those of the wrapped method. DPM-Solver's order-1 steps at the start and the end have no direction and stay as they
    are. Methods without a direction (SA-Solver, ER-SDE, DPM-Solver-v3, USF, splitting) are refused.

    Args:
        solver: the method to damp; DPM-Solver++(2M) by default.
        beta: weight of the new direction, in (0, 1]; may be traced.
        init: momentum before the first direction: "first_direction" (that direction itself), or "first_output" (the
            first evaluation, for methods whose directions are in units of the network's output), which damps the first
            one too.

    Raises:
        ValueError: beta outside (0, 1], not a solver, or one without a direction that momentum could act on; at bind,
            times on which it would change nothing.

    Reference: Wizadwongsa et al. (2307.11118).

    Example:
        >>> import flowjax as fj
        >>> path, times = fj.paths.VP(), fj.times.uniform(8)
        >>> solver = fj.solvers.HeavyBall(solver=fj.solvers.DPMSolver(order=2), beta=0.8)
        >>> plain, damped = (s.bind(path, times).pattern for s in (solver.solver, solver))
        >>> damped.rows - plain.rows, damped.registers - plain.registers  # one more array is kept
        (0, 1)
    """

    solver: Solver = part("solver", DPMSolver())
    beta: Any = 0.8
    init: str = static("first_direction")

    def __post_init__(self) -> None:
        """Checks the arguments."""
        check_choice("init", self.init, ("first_direction", "first_output"))
        if not isinstance(self.solver, Solver):
            raise ValueError(f"solver must be a fixed-grid solver of flowjax, got {self.solver!r}")
        check_newest_weight("beta", self.beta, "direction")
        if self.solver.no_direction:
            raise ValueError(f"{type(self).__name__} cannot act on {self._name}: {self.solver.no_direction}")

    second = property(lambda self: self.solver.second)
    stochastic = property(lambda self: self.solver.stochastic)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The wrapped method's requests with every direction averaged."""
        momentum, number = None, 0
        averaged = 0  # directions that are not the first momentum itself
        moves = sum(s != t for s, t in pairs(times))

        def rewrite(request: Request) -> Updates:
            nonlocal momentum, number, averaged
            if isinstance(request, Direction) and times[number] != times[number + 1]:  # a repeated time moves nothing
                new = request.value
                averaged += momentum is not None
                momentum = yield keep(new if momentum is None else (1 - self.beta) * momentum + self.beta * new)
                return (yield direction(self.used(momentum, new)))  # to a momentum on this one
            if isinstance(request, Step) and number == len(times) - 2 and not averaged and moves > 1:
                raise ValueError(
                    f"{type(self).__name__} changes nothing in these {moves} steps of {self._name}, of which fewer "
                    "than two have a direction (steps of a lower order at the ends have none): take more steps, or "
                    "that solver alone"
                )
            answer = yield request
            number += isinstance(request, Step)
            if isinstance(request, Evaluate) and momentum is None and self.init == "first_output":
                momentum = answer
            return answer

        return rewritten(self.solver.updates(path, times, x), rewrite)

    @property
    def _name(self) -> str:
        return type(self.solver).__name__

    def used(self, momentum: Any, new: Any) -> Any:
        """The direction of the step."""
        return momentum

"""Heavy-ball momentum on any method (Wizadwongsa et al., 2307.11118).

The direction d_n of the wrapped method's step is replaced by v_n = (1 - beta) v_{n-1} + beta d_n, with v = d at the
first step that has one (`init`). beta is the weight of the NEW direction: beta = 1 is the wrapped method. It enlarges
the stability region (for Adams-Bashforth by (2 - beta)/beta) and lowers the order to 1. Evaluations are those of the
wrapped method. DPM-Solver's order-1 steps at the start and the end have no direction and stay as they are.
"""

from typing import Any

import jax

from flowjax._pytree import part, pytree, static
from flowjax.paths.base import GaussianPath
from flowjax.solvers.dpm_solver import DPMSolver
from flowjax.solvers.rows import Direction, Evaluate, Solver, Step, Updates, check_choice, keep


@pytree
class HeavyBall(Solver):
    """Momentum against divergence artifacts at few steps and strong guidance.

    Args:
        solver: the method to damp; DPM-Solver++(2M) by default.
        beta: weight of the new direction, in (0, 1]; may be traced.
        init: momentum before the first direction: "first_direction" (that direction itself), or "first_output" (the
            first evaluation, for methods whose directions are in units of the network's output), which damps the first
            one too.

    Raises:
        ValueError: beta outside (0, 1], or not a solver.
    """

    solver: Solver = part("solver", DPMSolver())
    beta: Any = 0.8
    init: str = static("first_direction")

    def __post_init__(self) -> None:
        """Checks the arguments."""
        check_choice("init", self.init, ("first_direction", "first_output"))
        if not isinstance(self.solver, Solver):
            raise ValueError(f"solver must be a fixed-grid solver of flowjax, got {self.solver!r}")
        if not isinstance(self.beta, jax.core.Tracer) and not 0 < self.beta <= 1:
            raise ValueError(f"beta is the weight of the new direction and must be in (0, 1], got {self.beta}")

    @property
    def refiner(self) -> Any:
        """The wrapped method's second field."""
        return self.solver.refiner

    stochastic = property(lambda self: self.solver.stochastic)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The wrapped method's requests with every direction averaged."""
        inner = self.solver.updates(path, times, x)
        momentum, answer, number = None, None, 0
        while True:
            try:
                request = inner.send(answer)
            except StopIteration:
                return
            if isinstance(request, Direction) and times[number] != times[number + 1]:  # a repeated time moves nothing
                new = request.value
                momentum = yield keep(new if momentum is None else (1 - self.beta) * momentum + self.beta * new)
                answer = self.used(momentum, new)
            else:
                answer = yield request
                number += isinstance(request, Step)
                if isinstance(request, Evaluate) and momentum is None and self.init == "first_output":
                    momentum = answer

    def used(self, momentum: Any, new: Any) -> Any:
        """The direction of the step."""
        return momentum

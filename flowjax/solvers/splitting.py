"""Lie-Trotter splitting of a guided flow (Wizadwongsa and Suwajanakorn, 2301.11558; with momentum 2307.11118)."""

import dataclasses
from collections.abc import Generator
from typing import Any

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.flow import check_field
from flowjax.paths.base import GaussianPath
from flowjax.solvers.adams_bashforth import AdamsBashforth
from flowjax.solvers.ghvb import GHVB
from flowjax.solvers.requests import Evaluate, Request, Step, Updates, pairs, step
from flowjax.solvers.solver import Solver


@fact(
    "solver",
    "splitting",
    "one method for the field, one with momentum for its guidance: order 1",
    cite="wizadwongsa2023accelerating",
    example=lambda: {"guidance": None},
)
@pytree
class Splitting(Solver):
    """The field by one method, its guidance by another.

    The guided flow is the sum of two, the field's own and the guidance's: v = v_field + c. A step from s to t follows
    one after the other,

        x <- the guidance alone:  dx/dt = c over the step; in the noise form, with k = sigma/alpha,  d(x/alpha_s)/dk = c
        x' = the field alone, from this x, over the same step

    each by a method of its own. A strong guidance is the stiff part, so it gets the momentum and the field a high
    order. Order 1, that of the splitting, whatever the two methods are. Per step one evaluation of the field and one of
    the guidance (as many as the two methods make), counted apart.

    The authors' program is solver=AdamsBashforth(order=4, form="noise", weights="fixed") and
    guidance_solver=GHVB(order=k, form="noise", weights="fixed"); beta=1 there is their first paper's, without momentum.

    Args:
        guidance: a field whose predictions are what the guidance adds to those of the sampled field, for example
            `flowjax.fields.Gradient`; None, said outright, for no guidance, the plain `solver`.
        solver: method for the field; one that starts each step with an evaluation at the newest x (not UniPC or
            FlowTurbo, which carry one over from the step before, made before the guidance moved x).
        guidance_solver: method for the guidance, likewise, in the same form.

    Raises:
        ValueError: not solvers; at bind, a method that starts a step without an evaluation, a guidance solver that asks
            for neither velocity nor noise, or two methods that ask for different predictions.

    Reference: Wizadwongsa and Suwajanakorn (2301.11558).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: 0 * x, path=fj.paths.Linear())
        >>> pull = fj.Flow(lambda x, t, cond: 1 - x, path=fj.paths.Linear())
        >>> solver = fj.solvers.Splitting(solver=fj.solvers.Euler(), guidance=pull, guidance_solver=fj.solvers.Euler())
        >>> result = fj.solve(flow, solver, jnp.zeros((1, 1)), fj.times.uniform(10))
        >>> int(result.evaluations), int(result.second_evaluations)
        (10, 10)
    """

    guidance: Any = part("field")
    solver: Solver = part("solver", AdamsBashforth())
    guidance_solver: Solver = part("solver", GHVB())

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if self.guidance is not None:
            check_field(self.guidance)
        for name in ("solver", "guidance_solver"):
            if not isinstance(getattr(self, name), Solver):
                raise ValueError(f"{name} must be a fixed-grid solver of flowjax, got {getattr(self, name)!r}")

    second = property(lambda self: self.guidance)
    no_direction = "it has two methods, put momentum on its solver= or guidance_solver="
    stochastic = property(lambda self: self.solver.stochastic or self.guidance_solver.stochastic)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The two methods in turn, each from where the other left x."""
        if self.guidance is None:
            yield from self.solver.updates(path, times, x)
            return
        guiding: Any = None
        own: Any = None
        for number, (s, t) in enumerate(pairs(times)):
            guiding = guiding if number else self.guidance_solver.updates(path, times, x)
            x, form = yield from _one_step(guiding, s, x if number else None, second=True)
            if form not in ("velocity", "noise"):
                raise ValueError(f"guidance_solver must ask for the velocity or the noise, this one asks for {form!r}")
            if form == "noise":
                x = float(path.alpha(s) / path.alpha(t)) * x
            own = own if number else self.solver.updates(path, times, x)
            x, _ = yield from _one_step(own, s, x if number else None, second=False)
            x = yield step(x)


def _one_step(requests: Any, s: float, answer: Any, *, second: bool) -> Generator[Request, Any, tuple[Any, str]]:
    """Answers a method's last step and runs the one from s: the solution, and the prediction asked for."""
    form = ""
    while True:
        request = requests.send(answer)
        if not form and (isinstance(request, Step) or (isinstance(request, Evaluate) and request.t != s)):
            raise ValueError(
                "splitting moves x between the steps of a method, which must then evaluate there first; "
                f"{'guidance_solver' if second else 'solver'} does not at t = {s:g}: take AdamsBashforth, GHVB, ..."
            )
        if isinstance(request, Step):
            return request.x, form
        if isinstance(request, Evaluate):
            request, form = dataclasses.replace(request, second=second), request.to
        answer = yield request

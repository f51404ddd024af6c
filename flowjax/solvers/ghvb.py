"""GHVB (Wizadwongsa et al., 2307.11118): momentum inside an Adams-Bashforth method, so that the order is kept."""

from typing import Any

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.adams_bashforth import EQUAL_STEPS, adams_weights, coordinates
from flowjax.solvers.options import check_choice, check_newest_weight
from flowjax.solvers.requests import Updates, direction, evaluate, keep, pairs, step
from flowjax.solvers.solver import Solver


@fact("solver", "ghvb", "momentum inside Adams-Bashforth", cite="wizadwongsa2023diffusion", order=2)
@pytree
class GHVB(Solver):
    """Generalised heavy ball, for stability at few steps and strong guidance without losing the order.

    For dy/du = f (the velocity in t, or the noise prediction in k = sigma/alpha with y = x/alpha), with beta the weight
    of the NEW value,

        v_n = (1 - beta) v_{n-1} + beta f_n,  v_{-1} = f_0,        f_n = v_n + (1 - beta)/beta (v_n - v_{n-1})

    and a step integrates the polynomial through the last `order` values of v plus (1 - beta)/beta times the one through
    their last `order` - 1 differences. beta = 1 is Adams-Bashforth, order 1 is Euler with heavy-ball momentum. Order
    `order` on equal steps (any steps with "variable" weights) from an exact start; the first steps use lower orders,
    which limits a whole run to order 2. One evaluation per step. The noise form is undefined where alpha = 0 and says
    so.

    Args:
        order: 1 to 5.
        beta: weight of the new value, in (0, 1]; smaller is more stable; may be traced.
        form: "velocity" or "noise".
        weights: "variable" for the actual nodes or "fixed" for equal-step weights (the authors' code).

    Raises:
        ValueError: a value that is not allowed; at bind, the noise form on a grid that touches alpha = 0.

    Reference: Wizadwongsa et al. (2307.11118).

    Example:
        >>> import flowjax as fj
        >>> def run(solver, path=fj.paths.Linear(), times=fj.times.uniform(8)):  # on dx/dt = -x from x = 1
        ...     return fj.solvers.run_on_arrays(solver, path, times, 1.0, lambda asked: -asked.x)[-1]
        >>> round(run(fj.solvers.GHVB(order=2, beta=1.0)) - run(fj.solvers.AdamsBashforth(order=2)), 6)
        0.0
        >>> round(run(fj.solvers.GHVB(order=2, beta=0.8)), 3)  # exp(-1) = 0.368
        0.367
    """

    order: int = static(2)
    beta: Any = 0.8
    form: str = static("velocity")
    weights: str = static("variable")

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole("[1, 5]", order=self.order)
        check_choice("form", self.form, ("velocity", "noise"))
        check_choice("weights", self.weights, ("variable", "fixed"))
        check_newest_weight("beta", self.beta, "value")

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The averaged values, integrated over the step."""
        scale, coordinate, _ = coordinates(path, self.form, times)
        nodes: list[float] = []
        values: list[Any] = []  # v, newest first

        def mean(order: int, terms: list[Any], end: float) -> Any:
            """The polynomial through `order` terms, averaged over the step."""
            weights = adams_weights(nodes[:order], end) if self.weights == "variable" else EQUAL_STEPS[order]
            return sum(w * term for w, term in zip(weights, terms, strict=True))

        for s, t in pairs(times):
            u, end = coordinate(s), coordinate(t)
            f = yield evaluate(s, x, to=self.form)
            if u != end:  # a repeated time adds nothing to the history
                v = yield keep((1 - self.beta) * values[0] + self.beta * f if values else f)
                nodes, values = [u, *nodes][: self.order], [v, *values][: self.order]
                total = mean(len(values), values, end)
                if len(values) > 1:
                    differences = [new - old for new, old in pairs(values)]
                    total = total + (1 - self.beta) / self.beta * mean(len(differences), differences, end)
                x = scale(t) / scale(s) * x + scale(t) * (end - u) * (yield direction(total))
            x = yield step(x)

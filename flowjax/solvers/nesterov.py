"""Nesterov momentum on any method (Wizadwongsa et al., 2307.11118)."""

from typing import Any

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.solvers.adams_bashforth import AdamsBashforth
from flowjax.solvers.heavy_ball import HeavyBall


@fact(
    "solver",
    "nesterov",
    "Nesterov momentum on another solver",
    cite="wizadwongsa2023diffusion",
    order=1,
    example=lambda: {"solver": AdamsBashforth(order=2)},
)
@pytree
class Nesterov(HeavyBall):
    """Nesterov momentum; arguments as for `HeavyBall`.

    With d_n the direction of the wrapped method, v_n = (1 - beta) v_{n-1} + beta d_n and the direction used is
    (1 - beta) v_n + beta d_n. beta is the weight of the NEW direction: beta = 1 is the wrapped method; below it the
    order is 1.

    Reference: Wizadwongsa et al. (2307.11118).

    Example:
        >>> import flowjax as fj
        >>> solver = fj.solvers.Nesterov(solver=fj.solvers.Euler(), beta=0.8)
        >>> solver.bind(fj.paths.Linear(), fj.times.uniform(8)).pattern.rows
        8
    """

    def used(self, momentum: Any, new: Any) -> Any:
        """(1 - beta) v + beta d."""
        return (1 - self.beta) * momentum + self.beta * new

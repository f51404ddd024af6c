"""DPM-Solver and DPM-Solver++ (Lu et al., 2206.00927, 2211.01095), deterministic and stochastic."""

from typing import Any

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.dpm.multistep import multistep
from flowjax.solvers.dpm.singlestep import singlestep
from flowjax.solvers.ends import check_ends
from flowjax.solvers.options import LOWER_ORDER_FINAL, check_choice
from flowjax.solvers.requests import Updates
from flowjax.solvers.solver import Solver


@fact("solver", "dpm_solver", "DPM-Solver++ and DPM-Solver, multistep", cite="lu2022dpmsolverpp", order=2)
@pytree
class DPMSolver(Solver):
    """DPM-Solver ("noise" form) and DPM-Solver++ ("data" form).

    The linear part of the flow is solved exactly in lam = log(alpha/sigma); the prediction f is expanded at s. With
    h = lam_t - lam_s, eta >= 0 the amount of fresh noise, and

        noise form: f = e, A = alpha_t/alpha_s,             c = (1 + eta) sigma_t, z = h,
                    d^2 = eta sigma_t^2 (e^(2h) - 1)
        data form:  f = m, A = sigma_t/sigma_s e^(-eta h),  c = alpha_t,           z = -(1 + eta) h,
                    d^2 = sigma_t^2 (1 - e^(-2 eta h))

    a step is, with the functions phi_k of exponential integrators at z and fresh noise n,

        x' = A x - c (e^z - 1) (f + (phi_2/phi_1) D1 + (phi_3/phi_1) D2) + d n,    D1 ~ h f'(lam),  D2 ~ h^2 f''(lam)

    with the derivatives from the last outputs (`flowjax.solvers.dpm.multistep`) or from evaluations inside the step
    (`flowjax.solvers.dpm.singlestep`).

    Every scheme makes one evaluation per interval of the grid. Where lam is infinite (alpha = 0 at the start, sigma = 0
    at the end) the data form takes its order-1 limit, x' = A x + (alpha_t - A alpha_s) m; the noise form is undefined
    there and says which end to move.

    Args:
        order: 1, 2 or 3.
        scheme: "multistep", "singlestep" or "singlestep_fixed".
        form: "data" (DPM-Solver++, stable under guidance) or "noise" (DPM-Solver).
        solver_type: second-order update (and third-order, singlestep): "midpoint" or "taylor" ("heun" in diffusers).
        lower_order_final: multistep: order 1 in the last step, at most 2 in the one before, ...: True, False or "auto":
            True below 10 steps, the authors' rule, and where the last step is longer in lam than 1.25 times the one
            before, as on equal steps in t: 10 of them to 0.999 on a linear path have an error of 0.025 on a model of
            digits, but 0.110 without (0.028 and 0.752 at order 3). To an infinite lam (t = 1) the step is of order 1
            in any case; order 3 on times equal in lam is better without.
        eta: fresh noise, multistep only: 0 is the ODE, 1 the SDE variants ("sde-dpmsolver", "sde-dpmsolver++"); the
            marginals are those of the path for every eta >= 0.
        start: multistep: "lower" orders first, or "singlestep", which keeps the order of a whole run (eta = 0 only).
        compat: None, or "official" for the authors' third-order multistep update, which is second order.

    Raises:
        ValueError: a value that is not allowed; at bind, the noise form on a grid that touches an infinite lam, or a
            grid that "singlestep_fixed" cannot divide.

    Reference: Lu et al. (2206.00927); Lu et al. (2211.01095) for the data form.

    Example:
        >>> import flowjax as fj
        >>> bound = fj.solvers.DPMSolver(order=3).bind(fj.paths.VP(), fj.times.uniform(20))
        >>> bound.pattern.rows, bound.pattern.registers
        (20, 3)
    """

    order: int = static(2)
    scheme: str = static("multistep")
    form: str = static("data")
    solver_type: str = static("midpoint")
    lower_order_final: bool | str = static("auto")
    eta: float = static(0.0)
    start: str = static("lower")
    compat: str | None = static(None)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("order", self.order, (1, 2, 3))
        check_choice("scheme", self.scheme, ("multistep", "singlestep", "singlestep_fixed"))
        check_choice("form", self.form, ("data", "noise"))
        check_choice("solver_type", self.solver_type, ("midpoint", "taylor"))
        check_choice("lower_order_final", self.lower_order_final, LOWER_ORDER_FINAL)
        check_choice("start", self.start, ("lower", "singlestep"))
        check_choice("compat", self.compat, (None, "official"))
        _checks.real("[0, inf)", eta=self.eta)
        if self.eta > 0 and self.scheme != "multistep":
            raise ValueError(f"eta > 0 is for multistep schemes, got eta={self.eta} with {self.scheme!r}")
        if self.start == "singlestep" and (self.eta > 0 or self.scheme != "multistep"):
            raise ValueError("start='singlestep' is for deterministic multistep schemes")

    stochastic = property(lambda self: self.eta > 0)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The scheme's steps."""
        check_ends(path, times, self.form, "DPMSolver")
        return (multistep if self.scheme == "multistep" else singlestep)(self, path, times, x)

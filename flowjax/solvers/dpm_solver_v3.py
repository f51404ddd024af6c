"""DPM-Solver-v3 (Zheng et al., 2310.13268): a multistep predictor-corrector around empirical model statistics."""

from typing import Any

import numpy as np

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.options import LOWER_ORDER_FINAL, check_choice
from flowjax.solvers.requests import Updates, evaluate, keep, pairs, step
from flowjax.solvers.solver import Solver
from flowjax.solvers.statistics import Statistics


def _plain_statistics() -> dict[str, Any]:
    """Statistics with which DPM-Solver-v3 is DPM-Solver++."""
    lam = np.linspace(-12.0, 12.0, 241)
    return {"statistics": Statistics(lam=lam, l=np.ones(241), s=np.zeros(241), b=np.zeros(241))}


@fact(
    "solver",
    "dpm_solver_v3",
    "DPM-Solver-v3, around empirical model statistics",
    cite="zheng2023dpmsolverv3",
    order=2,
    example=_plain_statistics,
)
@pytree
class DPMSolverV3(Solver):
    """DPM-Solver-v3.

    With e the noise prediction and curves l, s, b of lam = log(alpha/sigma), measured once per model
    (`flowjax.calibration.ems`), the flow is expanded in f = (sigma e - l x)/alpha, of which

        g(lam) = e^(-S) f - int_{lam_s}^{lam} e^(-S) b,     L = int_{lam_s}^{lam} l,   S = int_{lam_s}^{lam} s

    changes least. A step from s to t is

        x' = alpha_t e^(-L_t) ( x/alpha_s - sum_k E_k g^(k) - int e^(L+S) B ),   E_k = int e^(L+S) (lam - lam_s)^k / k!,
        B(lam) = int_{lam_s}^{lam} e^(-S) b

    with the derivatives g^(k) at s from the last points: by a polynomial through all of them, or "pseudo" by divided
    differences of the first k + 1. The corrector repeats the step with the new point in second place; f at that point
    stays what it was. One evaluation per step, none after the last, which is not corrected. All curves may be numbers,
    per channel or per element, and are taken as piecewise linear between their points, so sampling times need not lie
    on these. Order `order` (with plain derivatives, from an exact history), 2 with pseudo derivatives. l = 1, s = b = 0
    is DPM-Solver++, l = 0, s = -1, b = 0 DPM-Solver, both with "taylor" updates.

    Args:
        statistics: the curves l, s, b, from `flowjax.calibration.ems`.
        order: 1 to 4; 2 under guidance, 3 without.
        corrector: whether to correct; mostly helps at few steps.
        p_pseudo: pseudo derivatives in the predictor.
        c_pseudo: pseudo derivatives, and one point more, in the corrector.
        lower_order_final: order 1 in the last step, at most 2 in the one before, and so on: True, False or "auto" (True
            for any number of steps, as in the published code).
        half: None corrects everywhere, "noise" for t < 1/2 only (the authors' code), "data" for t >= 1/2 only (their
            text).

    Raises:
        ValueError: a value that is not allowed; at bind, times outside the range of the statistics.

    Reference: Zheng et al. (2310.13268).

    Example:
        >>> import flowjax as fj, numpy as np
        >>> path, times = fj.paths.VP(), fj.times.uniform(8, end=0.99)
        >>> lam = np.array([path.lam(times[0]), path.lam(times[-1])])
        >>> plain = fj.solvers.Statistics(lam=lam, l=np.ones(2), s=np.zeros(2), b=np.zeros(2))  # those of DPM-Solver++
        >>> bound = fj.solvers.DPMSolverV3(statistics=plain, order=3).bind(path, times)
        >>> bound.pattern.rows, bound.pattern.to
        (8, 'noise')
    """

    statistics: Statistics = part("statistics")
    order: int = static(3)
    corrector: bool = static(True)
    p_pseudo: bool = static(False)
    c_pseudo: bool = static(True)
    lower_order_final: bool | str = static(True)
    half: str | None = static(None)

    def __post_init__(self) -> None:
        """Checks the options."""
        if not isinstance(self.statistics, Statistics):
            raise ValueError(f"statistics come from flowjax.calibration.ems, got {type(self.statistics).__name__}")
        for name in ("corrector", "p_pseudo", "c_pseudo"):
            check_choice(name, getattr(self, name), (True, False))
        check_choice("lower_order_final", self.lower_order_final, LOWER_ORDER_FINAL)
        check_choice("order", self.order, (1, 2, 3, 4))
        check_choice("half", self.half, (None, "noise", "data"))

    no_direction = "its steps have no direction that momentum could average"

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Predict, evaluate there, correct."""
        steps = len(times) - 1
        lam = self.statistics.check_range(path, times)
        curves = self.statistics.refined(lam)
        f = curves.output(path, times[0], lam[0], (yield evaluate(times[0], x, to="noise")), x)
        history = [(lam[0], (yield keep(f)))]  # (lam, f), newest first
        for number, (s, t) in enumerate(pairs(times)):
            order = min(self.order, len(history), steps - number if self.lower_order_final is not False else self.order)
            scales = float(path.alpha(s)), float(path.alpha(t))
            if lam[number] == lam[number + 1]:
                predicted, points = x, 1
            else:
                predicted = curves.advance(
                    lam[number + 1], history[:order], self._estimation(order, self.p_pseudo), scales, x
                )
                points = order + self.c_pseudo
            if number == steps - 1:
                x = yield step(predicted)
                return
            f = curves.output(path, t, lam[number + 1], (yield evaluate(t, predicted, to="noise")), predicted)
            new = (lam[number + 1], (yield keep(f)))
            in_half = self.half is None or (t < 0.5) == (self.half == "noise")
            if self.corrector and points > 1 and in_half:
                nodes = [history[0], new, *history[1:]][:points]
                predicted = curves.advance(new[0], nodes, self._estimation(len(nodes), self.c_pseudo), scales, x)
            x = yield step(predicted)
            history = [new, *(history if lam[number] != lam[number + 1] else history[1:])][: self.order]

    def _estimation(self, points: int, pseudo: bool) -> list[int]:
        """How many points beside the start derivative 1, 2, ... uses."""
        return [k if pseudo else points - 1 for k in range(1, points)]

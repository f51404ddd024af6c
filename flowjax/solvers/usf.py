"""USF (Liu et al., 2312.07243): steps whose ingredients are chosen one by one, so that schedules can be searched."""

import dataclasses
import math
from typing import Any

import numpy as np

from flowjax import _checks
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.ends import check_noise_left
from flowjax.solvers.options import check_choice
from flowjax.solvers.phi import exponential_step, phi
from flowjax.solvers.quadrature import derivative_weights
from flowjax.solvers.requests import Updates, evaluate, keep, pairs, step
from flowjax.solvers.solver import Solver
from flowjax.solvers.statistics import Statistics
from flowjax.times import check_times

RELAXATIONS = ("midpoint", "bh1", "bh2", "+exp", "-exp")


@fact("decision", "decision", "one step of a schedule", cite="liu2023unified")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """The ingredients of one step.

    Attributes:
        prediction: "noise", "data" or "v3".
        order: number of terms, 1 (DDIM) to 4.
        start: the point the step starts from: -1 the newest, -2 the one before (singlestep methods), ...
        estimation: number of points q >= k that the estimate of derivative k = 1, ..., order - 1 uses; () is all that
            the order gives.
        points: which points these are (-1 the newest, ...); () is the newest ones other than the start.
        relaxation: of the first derivative: None, "midpoint" (the same as "bh2"), "bh1", "+exp", "-exp", or a number c
            for the factor 1 + c h.
        corrector: correct this step once its end has been evaluated: True estimates every derivative from one point
            more than the predictor (UniPC), "v3" and "v3_pseudo" as DPM-Solver-v3 does, with plain derivatives from
            `order` points, or with pseudo ones from `order` + 1. "v3" leaves a step of order 1 as it is.
        corrector_relaxation: relaxation when a step of order 1 is corrected: None, "bh1" or "bh2" (UniPC's).

    Raises:
        ValueError: a value that is not allowed.

    Example:
        >>> import flowjax as fj
        >>> decision = fj.solvers.Decision(prediction="data", order=3)
        >>> decision.estimates  # both derivatives from the two points before
        (2, 2)
    """

    prediction: str = "data"
    order: int = 1
    start: int = -1
    estimation: tuple[int, ...] = ()
    points: tuple[int, ...] = ()
    relaxation: str | float | None = None
    corrector: bool | str = False
    corrector_relaxation: str | None = None

    def __post_init__(self) -> None:
        """Checks the ingredients."""
        check_choice("prediction", self.prediction, ("noise", "data", "v3"))
        check_choice("order", self.order, (1, 2, 3, 4))
        check_choice("corrector", self.corrector, (False, True, "v3", "v3_pseudo"))
        check_choice("corrector_relaxation", self.corrector_relaxation, (None, "bh1", "bh2"))
        if isinstance(self.relaxation, str):
            check_choice("relaxation", self.relaxation, RELAXATIONS)
        if self.relaxation is not None and not isinstance(self.relaxation, str):
            _checks.real("(-inf, inf)", relaxation=self.relaxation)
        for name in ("estimation", "points"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for number in (self.start, *self.points, *self.estimation):
            _checks.whole("(-inf, inf)", **{"points and estimation": number})
        if self.start >= 0 or any(p >= 0 for p in self.points):
            raise ValueError(f"points are counted backwards from the newest, -1, got {self}")
        if self.estimation and (
            len(self.estimation) != self.order - 1 or any(q < k for k, q in enumerate(self.estimation, start=1))
        ):
            raise ValueError(
                f"estimation needs one q >= k for each derivative k = 1..{self.order - 1}, got {self.estimation}"
            )

    @property
    def estimates(self) -> tuple[int, ...]:
        """The estimation, spelled out."""
        return self.estimation or (self.order - 1,) * (self.order - 1)


@fact("schedule", "schedule", "a searched schedule", cite="liu2023unified")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A solver as data.

    Attributes:
        times: the grid, n + 1 values.
        decisions: one per step; the last is never corrected.
        first: "network", or a guess that saves the first evaluation: "zero" (m = 0, so e = x/sigma; the authors' code
            has e = x, which needs sigma = 1) or "mean".

    Raises:
        ValueError: numbers that do not fit, or a step that needs points which are not there yet.

    Example:
        >>> import flowjax as fj
        >>> steps = [fj.solvers.Decision(prediction="data", order=order) for order in (1, 2, 2, 1)]
        >>> schedule = fj.solvers.Schedule(times=fj.times.uniform(4), decisions=steps)
        >>> schedule.evaluations
        4
    """

    times: tuple[float, ...]
    decisions: tuple[Decision, ...] = part("decision")
    first: str = "network"

    def __post_init__(self) -> None:
        """Checks that every step has the history it asks for."""
        check_choice("first", self.first, ("network", "zero", "mean"))
        grid = check_times(self.times, invert=bool(np.ravel(self.times)[0] > np.ravel(self.times)[-1]))
        object.__setattr__(self, "times", tuple(grid.tolist()))
        object.__setattr__(self, "decisions", tuple(self.decisions))
        if len(self.times) != len(self.decisions) + 1:
            raise ValueError(f"{len(self.decisions)} steps need {len(self.decisions) + 1} times, got {len(self.times)}")
        for number, decision in enumerate(self.decisions):
            used = [decision.start, *self.others(decision)]
            if -min(used) > number + 1 or len(set(used)) < len(used):
                raise ValueError(
                    f"step {number} has {number + 1} points to use, but asks for {sorted(set(used))}: {decision}"
                )

    @staticmethod
    def others(decision: Decision) -> list[int]:
        """The points beside the start that a decision's derivatives use."""
        needed = max(decision.estimates, default=0)
        if decision.points:
            if len(decision.points) < needed:
                raise ValueError(f"{decision} needs {needed} points")
            return list(decision.points[:needed])
        newest = (p for p in range(-1, -20, -1) if p != decision.start)
        return [next(newest) for _ in range(needed)]

    @property
    def evaluations(self) -> int:
        """Network evaluations: one per step, one less if the first is guessed."""
        return len(self.decisions) - (self.first != "network")


@fact(
    "solver",
    "usf",
    "schedules whose ingredients are chosen step by step",
    cite="liu2023unified",
    example=lambda: {"schedule": Schedule(times=(0.0, 0.5, 1.0), decisions=(Decision(),) * 2)},
)
@pytree
class USF(Solver):
    """Runs a schedule.

    A schedule holds the times and, for every step, the prediction that is expanded (noise, data, or f of
    DPM-Solver-v3), the order, the point it starts from, how each derivative in lam is estimated, a relaxation of the
    first one, and whether the step is corrected after the next evaluation. With F^(k) the derivatives at the start s,
    h = lam_t - lam_s, phi_k those of exponential integrators,

        noise: x' = (alpha_t/alpha_s) x - sigma_t sum_k h^(k+1) phi_{k+1}(h) e^(k)
        data:  x' = (sigma_t/sigma_s) x + alpha_t sum_k h^(k+1) phi_{k+1}(-h) m^(k)

    and F^(k) from q >= k other points by the polynomial of degree q. DDIM, DPM-Solver(++), UniPC and DPM-Solver-v3 are
    schedules (`baselines`). One evaluation per step; "zero" and "mean" guess the first output instead (e = x/sigma, or
    the data's mean). Steps that touch an infinite lam are order 1 of the data form, uncorrected.

    Args:
        schedule: the schedule; sample on its own times, `schedule.times`.
        statistics: for steps with the "v3" prediction.
        mean: mean of the normalised data, a number or an array of a sample's shape, for first="mean".

    Raises:
        ValueError: v3 steps without statistics; at bind, times other than the schedule's.

    Reference: Liu et al. (2312.07243).

    Example:
        >>> import flowjax as fj
        >>> from flowjax.solvers.usf import baselines
        >>> schedule = baselines(fj.times.uniform(6))["unipc_2_bh2"]
        >>> bound = fj.solvers.USF(schedule=schedule).bind(fj.paths.VP(), schedule.times)
        >>> bound.pattern.rows, schedule.decisions[2].corrector
        (6, True)
    """

    schedule: Schedule = part("schedule", static=True)
    statistics: Statistics | None = part("statistics", None)
    mean: Any = part("array", 0.0)

    def __post_init__(self) -> None:
        """Checks that what the schedule needs is there."""
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule must be a flowjax.solvers.Schedule, got {type(self.schedule).__name__}")
        _checks.real("(-inf, inf)", mean=self.mean)
        if isinstance(self.mean, np.ndarray) and not np.all(np.isfinite(self.mean)):
            raise ValueError("mean holds NaN or infinite numbers")
        if self.statistics is None and any(d.prediction == "v3" for d in self.schedule.decisions):
            raise ValueError("this schedule has steps of the v3 prediction: pass statistics= (flowjax.calibration.ems)")

    no_direction = "its steps have no direction that momentum could average"

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The steps, each from its decision."""
        schedule = self.schedule
        if len(times) != len(schedule.times) or not np.allclose(times, schedule.times, rtol=0, atol=1e-9):
            raise ValueError("a schedule has its own times: pass times=solver.schedule.times")
        check_noise_left(path, times)
        lam = [float(path.lam(t)) for t in times]
        curves = None
        if self.statistics is not None and any(d.prediction == "v3" for d in schedule.decisions):
            lam = self.statistics.check_range(path, times)
            curves = self.statistics.refined(lam)
        kinds = {d.prediction for d in schedule.decisions}
        outputs: list[dict[str, Any]] = []  # per point, oldest first
        states: list[Any] = []  # the solution at the points

        def record(number: int, m: Any, x: Any) -> Updates:
            """Stores the outputs of all kinds that some step uses, at (times[number], x)."""
            t, found = times[number], {"data": m}
            if kinds - {"data"} and path.sigma(t) > 0 and path.alpha(t) > 0:
                e = path.convert(m, given="data", to="noise", t=t, x=x)
                if "noise" in kinds:
                    found["noise"] = yield keep(e)
                if curves is not None:
                    found["v3"] = yield keep(curves.output(path, t, lam[number], e, x))
            outputs.append(found)

        def advance(
            number: int, kind: str, start: int, others: list[int], estimates: tuple[int, ...], relaxation: Any
        ) -> Any:
            """The step to times[number + 1] from point `start`, with points counted from the oldest."""
            (s, t), (lam_s, lam_t) = (times[start], times[number + 1]), (lam[start], lam[number + 1])
            used = [start, *others]
            if not (math.isfinite(lam_t) and all(math.isfinite(lam[i]) and kind in outputs[i] for i in used)):
                kind, used, estimates = "data", [start], ()
            h, x = lam_t - lam_s, states[start]
            factor = _relaxation(relaxation, h, kind) if estimates else 1.0
            if kind == "v3":
                assert curves is not None
                scales = float(path.alpha(s)), float(path.alpha(t))
                return curves.advance(
                    lam_t, [(lam[i], outputs[i]["v3"]) for i in used], list(estimates), scales, x, factor
                )
            f = outputs[start][kind]
            a, b, z = exponential_step(path, kind, s, t, h)
            c, total = float(path.alpha(t) if kind == "data" else -path.sigma(t)), b * f
            for k, q in enumerate(estimates, start=1):
                weight = h ** (k + 1) * phi(k + 1, z) * (factor if k == 1 else 1.0)
                for w, i in zip(derivative_weights([lam[i] - lam_s for i in others[:q]], k), others[:q], strict=True):
                    total = total + c * weight * w * (outputs[i][kind] - f)
            return a * x + total

        if schedule.first == "network":
            yield from record(0, (yield evaluate(times[0], x, to="data")), x)
        else:
            yield from record(0, 0.0 * x + (self.mean if schedule.first == "mean" else 0.0), x)
        states.append(x)
        for number, (s, t) in enumerate(pairs(times)):
            decision = schedule.decisions[number]
            start = number + 1 + decision.start
            others = [number + 1 + p for p in schedule.others(decision)]
            kind, estimates = decision.prediction, decision.estimates
            predicted = states[-1]
            if s != t:
                predicted = advance(number, kind, start, others, estimates, decision.relaxation)
            if number == len(schedule.decisions) - 1:
                yield step(predicted)
                return
            yield from record(number + 1, (yield evaluate(t, predicted, to="data")), predicted)
            x = predicted
            if decision.corrector and s != t and math.isfinite(lam[number + 1] - lam[start]):
                relaxation = decision.corrector_relaxation if decision.order == 1 else None
                nodes = [number + 1, *others]
                if decision.corrector == "v3":
                    estimates = (decision.order - 1,) * (decision.order - 1)
                elif decision.corrector == "v3_pseudo":
                    estimates = tuple(range(1, decision.order + 1))
                else:
                    estimates = (*(q + 1 for q in estimates), len(nodes))
                if estimates:
                    x = advance(number, kind, start, nodes, estimates, relaxation)
            x = yield step(x)
            states.append(x)


def _relaxation(relaxation: str | float | None, h: float, kind: str) -> float:
    """The factor of the first derivative."""
    if relaxation is None:
        return 1.0
    if not isinstance(relaxation, str):
        return 1.0 + relaxation * h
    z = -h if kind == "data" else h
    if relaxation in ("+exp", "-exp"):
        return 1.0 + (0.5 if relaxation == "+exp" else -0.5) * math.expm1(z)
    return 0.5 * (z if relaxation == "bh1" else math.expm1(z)) / (z * phi(2, z))


def baselines(times: Any, *, lower_order_final: bool = True) -> dict[str, Schedule]:
    """Published solvers as schedules on a grid: where a search starts, and what it is compared with.

    Args:
        times: the grid.
        lower_order_final: order 1 in the last step, at most 2 in the one before, and so on.
    """
    check_choice("lower_order_final", lower_order_final, (True, False))
    times = tuple(float(t) for t in times)
    n = len(times) - 1

    def schedule(order: int, **ingredients: Any) -> Schedule:
        relaxation, corrector = ingredients.pop("relaxation", None), ingredients.pop("corrector", None)
        decisions = []
        for i in range(n):
            k = min(order, i + 1, n - i if lower_order_final else order)
            decisions.append(
                Decision(
                    order=k,
                    relaxation=relaxation if k == 2 else None,
                    corrector=corrector is not None and i < n - 1,
                    corrector_relaxation=corrector,
                    **ingredients,
                )
            )
        return Schedule(times=times, decisions=tuple(decisions))

    return {
        "ddim": schedule(1),
        "dpm_solver++_2m": schedule(2, relaxation="midpoint"),
        "dpm_solver++_3m": schedule(3, relaxation="midpoint"),
        "dpm_solver_2m": schedule(2, prediction="noise", relaxation="midpoint"),
        "unipc_2_bh1": schedule(2, relaxation="bh1", corrector="bh1"),
        "unipc_2_bh2": schedule(2, relaxation="bh2", corrector="bh2"),
        "unipc_3_bh1": schedule(3, relaxation="bh1", corrector="bh1"),
        "unipc_3_bh2": schedule(3, relaxation="bh2", corrector="bh2"),
    }

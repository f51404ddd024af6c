"""Advice: which of all that can be sampled with in so many evaluations is nearest to the fine solution on a model."""

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flowjax import _checks
from flowjax.calibration import compensation, ems, forms, grids, learning, least_squares, schedules
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.solvers import USF, DCSolver, DPMSolverV3
from flowjax.solvers.learned import Rows, rows_of
from flowjax.times import quadratic

SHOWN = 8
"""Rows of the table."""

_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """A time such as 90s, 10m or 1h in seconds.

    Raises:
        ValueError: It is none.

    Example:
        >>> from flowjax.calibration.best import seconds
        >>> seconds("10m")
        600.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"budget={text} must be a time such as 90s, 10m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def interval(squares: Float[np.ndarray, " N"], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the root mean square over noises."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(squares, (1000, len(squares))).mean(1)
    low, high = np.sqrt(np.quantile(drawn, [0.025, 0.975]))
    return float(low), float(high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best(Calibration):
    """The best way to sample in some number of evaluations that is found within a time.

    Known solvers on several grids, times by dynamic programming, ratios, statistics (means over elements) and a
    searched schedule as far as 0.4 of the time goes; then rows learned from the best of them. Ranked on held-out
    noises, measured on others. Whatever wins is kept as rows (`solvers.Learned`).

    Attributes:
        start: See `Calibration`.
        end: Likewise.
        num: Noises that rows are learned from; half as many decide, and as many again measure.
        steps: Numbers of evaluations, each with a file of its own.
        budget: Time for all of them, such as 10m.
        fine: Steps of the fine solution.

    Raises:
        ValueError: No number of evaluations, or no time.

    Example:
        >>> from flowjax.calibration.best import Best
        >>> [(part.steps, part.budget) for part in Best(steps=(5, 8), budget="10m").parts()]
        [((5,), '300s'), ((8,), '300s')]
    """

    reads_data = True

    num: int = option(256, "Noises that rows are learned from; half as many decide, and as many again measure.")
    steps: tuple[int, ...] = option((5, 8, 10), "Numbers of evaluations.")
    budget: str = option("10m", "Time for all of them, such as 90s, 10m or 1h.")
    fine: int = option(100, "Steps of the fine solution that samples are compared with.")

    def __post_init__(self) -> None:
        """Checks the options."""
        seconds(self.budget)
        _checks.whole(_checks.COUNT, fine=self.fine)
        if not self.steps:
            raise ValueError("steps= names at least one number of evaluations")
        for steps in self.steps:
            _checks.whole(_checks.STEPS, steps=steps)

    def parts(self) -> list["Best"]:
        """One for each number of evaluations."""
        share = f"{seconds(self.budget) / len(self.steps):g}s"
        return [dataclasses.replace(self, steps=(steps,), budget=share) for steps in dict.fromkeys(self.steps)]

    @property
    def evaluations(self) -> int:
        """Of the first."""
        return self.steps[0]

    def sizes(self) -> dict[str, Any]:
        """Without the time: what is found is found."""
        return {"num": self.num, "steps": self.evaluations, "fine": self.fine}

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """Rows of the winner, and the table."""
        began, budget, half = time.monotonic(), seconds(self.budget), max(self.num // 2, 2)

        def spent() -> float:
            return time.monotonic() - began

        def tell(text: str) -> None:
            work.progress(int(spent()), int(budget), text)

        tell("fine solutions")
        training, held, measured = (
            learning.make_pool(work, work.guidance, first, num, self.fine)
            for first, num in ((0, self.num), (10**6, half), (2 * 10**6, half))
        )
        ends = float(work.grid[0]), float(work.grid[-1])
        found = forms.starts(work.flow.path, self.evaluations, *ends)
        errors = {name: _error(held, rows) for name, rows in found.items()}
        methods = {
            "dynamic programming": self._grid,
            "dc_solver": self._ratios,
            "dpm_solver_v3": self._statistics,
            "searched schedule": self._schedule,
        }
        for name, method in methods.items():
            if spent() > 0.4 * budget:
                break
            tell(name)
            try:
                more = method(work, found, errors, held)
            except ValueError:  # undefined at an end, or without data
                continue
            found |= more
            errors |= {name: _error(held, rows) for name, rows in more.items()}
        best = min(errors, key=lambda name: errors[name])
        if (left := 0.9 * budget - spent()) > 0:
            more = self._learned(work, found[best], best, training, held, left, tell)
            found |= more
            errors |= {name: _error(held, rows) for name, rows in more.items()}
        order = sorted(errors, key=lambda name: errors[name])
        table = []
        for name in order[:SHOWN]:
            x = np.concatenate(
                [least_squares.final(measured, found[name], range(i, min(i + 64, half))) for i in range(0, half, 64)]
            )
            squares = np.mean((x - np.asarray(measured.target, np.float64)) ** 2, axis=tuple(range(1, x.ndim)))
            low, high = interval(squares)
            line = {"name": name, "error": float(np.sqrt(squares.mean())), "low": low, "high": high}
            table.append(line | {"frechet": work.frechet(x)})
        return forms.to_arrays(found[order[0]]) | {
            "table": np.array(json.dumps(table)),
            "frechet": np.array(work.frechet(np.asarray(measured.target))),
            "measured": np.array(half),
        }

    def _grid(self, work: Work, found: Mapping[str, Rows], errors: Mapping[str, float], held: Any) -> dict[str, Rows]:
        name = min(errors, key=lambda name: errors[name])
        solver = forms.KNOWN[name.split(" on ")[0]]
        fine = np.linspace(work.grid[0], work.grid[-1], 101)
        local = grids.local_errors(work.field, held.x[:64], fine, found[name].to, _first(held.cond, 64))
        grid = fine[grids.cheapest(local, self.evaluations)]
        return {f"{name.split(' on ')[0]} on dynamic programming": rows_of(solver.bind(work.flow.path, grid))}

    def _ratios(self, work: Work, found: Mapping[str, Rows], errors: Mapping[str, float], held: Any) -> dict[str, Rows]:
        x, cond = work.states(0, 10)
        solver = DCSolver(order=3)
        ratios = compensation.search(work.field, solver, x, work.grid, cond)
        solver = dataclasses.replace(solver, ratios=ratios.tolist())
        return {"dc_solver on uniform": rows_of(solver.bind(work.flow.path, work.grid))}

    def _statistics(
        self, work: Work, found: Mapping[str, Rows], errors: Mapping[str, float], held: Any
    ) -> dict[str, Rows]:
        start, end = float(work.grid[0]), float(work.grid[-1])
        curves = ems.estimate(work.field, work.batch, work.key, start=start, end=end, points=40, mode="scalar")
        solver = DPMSolverV3(statistics=curves, order=3 if work.guidance == 1 else 2)
        return {"dpm_solver_v3 on uniform": rows_of(solver.bind(work.flow.path, work.grid))}

    def _schedule(
        self, work: Work, found: Mapping[str, Rows], errors: Mapping[str, float], held: Any
    ) -> dict[str, Rows]:
        x, cond, target = held.x[:64], _first(held.cond, 64), held.target[:64]
        known = schedules.search(
            lambda candidates: schedules.errors(work.field, candidates, x, target, cond),
            [work.grid, quadratic(self.evaluations, float(work.grid[0]), float(work.grid[-1]))],
            rounds=4,
            seed=work.seed,
        )
        solver = USF(schedule=known[0][1])
        return {"searched schedule": rows_of(solver.bind(work.flow.path, known[0][1].times))}

    def _learned(
        self, work: Work, rows: Rows, name: str, training: Any, held: Any, left: float, tell: Any
    ) -> dict[str, Rows]:
        began = time.monotonic()
        _error(held, rows)  # compiled before
        # Derivatives of n rows take n (n - 1) (n + 7) / 6 evaluations, each as long as two; then a step tries a few.
        runs = (self.evaluations - 1) * (self.evaluations + 7) / 3 + 3
        each = (time.monotonic() - began) / len(held.x) * runs
        batch = min(int(left / 4 / each), len(training.x))  # four steps are most of the gain
        if batch < 16:
            return {}
        found, _ = least_squares.learn(
            [training],
            [held],
            rows,
            jax.random.fold_in(work.key, 1),
            batch=batch,
            seconds=left,
            progress=lambda done, total, error: tell(f"learning from {name}: held-out error {error:.3g}"),
        )
        base = forms.Multistep.widened(rows, self.evaluations)
        return {f"learned from {name}": forms.Multistep.tables(base, work.flow.path, found, 0.0, False)}

    @classmethod
    def summary(cls, arrays: Mapping[str, Any]) -> str:
        """The table for people."""
        rows = [f"{'':44}{'error':>9} {'95 % over noise':>19} {'FD':>8}"]
        for line in json.loads(str(arrays["table"])):
            between = f"{line['low']:.4g} to {line['high']:.4g}"
            rows.append(f"{line['name']:44}{line['error']:9.4g} {between:>19} {line['frechet']:8.3g}")
        rows.append(f"{'fine solution':44}{0:9} {'':>19} {float(arrays['frechet']):8.3g}")
        rows.append(f"on {arrays['measured']} noises that nothing was chosen by")
        if not any(line["name"].startswith("learned") for line in json.loads(str(arrays["table"]))):
            rows.append("no time was left to learn rows: remove the file and give a larger --budget")
        return "\n".join(rows)

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """The winner's rows at their times."""
        return learning.Learning.use(dataclasses.replace(stored, record={**stored.record, "consistent": False}))


def _error(pool: Any, rows: Rows) -> float:
    try:
        return least_squares.error([pool], lambda position: rows)
    except ValueError:
        return float("inf")


def _first(cond: Any, num: int) -> Any:
    return jax.tree.map(lambda c: c[:num], cond)

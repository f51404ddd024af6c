"""Rows learned on a model, from noises to a file: `flowjax.calibrate learn`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import _checks, specs
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.calibration.forms import form_of, of_arrays, parallel_starts, starts, to_arrays
from flowjax.calibration.least_squares import Pool, check_options, error, learn
from flowjax.calibration.reference import reference
from flowjax.solvers.learned import rows_of


def _same(rows: Any, position: float) -> Any:
    return rows


def best_start(rows: Mapping[str, Any], pools: Sequence[Pool]) -> tuple[str, float]:
    """The name of the rows with the least error, and their error.

    Raises:
        ValueError: None gives finite samples.
    """
    found, reason = {}, ""
    for name, one in rows.items():
        try:
            found[name] = error(pools, functools.partial(_same, one))
        except ValueError as failed:
            reason = str(failed)
    if not found:
        raise ValueError(reason)
    name = min(found, key=lambda name: found[name])
    return name, found[name]


def make_pool(work: Work, scale: float, first: int, num: int, fine: int, position: float = 0.0) -> Pool:
    """Noises first, first + 1, ... with what a solution of `fine` steps makes of them.

    Args:
        work: With the recipe, the flow and the ends of the times.
        scale: Of guidance.
        first: Number of the first noise.
        num: How many.
        fine: Steps of the solution.
        position: Of the scale in its range.
    """
    field, targets = work.guide(scale), []
    x, cond = work.states(first, num)
    for i in range(0, num, 64):
        some = jax.tree.map(lambda c, i=i: c[i : i + 64], cond)
        targets.append(reference(field, x[i : i + 64], work.grid, some, steps=fine)[-1])
    return Pool(field=field, x=x, target=jnp.concatenate(targets), cond=cond, position=position)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning(Calibration):
    """Times and weights of a solver learned by gradient (`learn`), for one scale of guidance or a range.

    Attributes:
        start: See `Calibration`.
        end: Likewise.
        num: Noises that are learned from.
        steps: Evaluations.
        held: Noises that decide when to stop.
        fine: Steps of the solution that samples are to reach.
        iterations: See `learn`, as for those that follow.
        batch: Noises of a step.
        history: Values of a row; 0 is all.
        learned: "all" or "times".
        consistent: Whether rows stay exact for constant predictions.
        distance: "square" or "huber".
        features: Whether it is measured in the features of a network that is trained on the data.
        radius: How far the noise of a sample may move.
        scales: Scales of guidance that one file serves, with all between them, in place of one.
        degree: Of the polynomial in the scale.
        points: Evaluations that go through the network together; steps are then groups of so many.
        solver: Spec of the solver to start from; the best of those that are known on this model unless it is given.
        times: Spec of its grid, with its ends; that of equal steps.

    Raises:
        ValueError: Options that do not fit.

    Example:
        >>> from flowjax.calibration.learning import Learning
        >>> Learning(scales=(1.0, 2.0)).between
        (1.0, 2.0)
    """

    num: int = option(256, "Noises that are learned from.")
    steps: int = option(5, "Evaluations.")
    held: int = option(64, "Held-out noises, which decide what is kept.")
    fine: int = option(100, "Steps of the fine solution that samples are to reach.")
    iterations: int = option(12, "Steps of Levenberg-Marquardt at most.")
    batch: int = option(128, "Noises of a step.")
    history: int = option(0, "Values that a row may use, 0 for all.")
    learned: str = option("all", "What is learned: all, or times (LD3).")
    consistent: bool = option(False, "Whether rows stay exact for constant predictions.")
    distance: str = option("square", "Distance to the fine solution: square or huber.")
    features: bool = option(False, "Whether it is that of the features of a network trained on the data.")
    radius: float = option(0.0, "How far the noise of each sample may move, root mean square (S4S).")
    scales: tuple[float, ...] = option(
        (), "Scales of guidance that one file serves, such as 1,1.5,2; with those between."
    )
    degree: int = option(2, "Degree of the polynomials in the scale, with --scales.")
    points: int = option(1, "Evaluations of a step that go through the network as one batch.")
    solver: str | None = option(None, "Solver to start from; the best of the known ones by default.")
    times: str | None = option(None, "Its grid, in place of --start and --end.")

    def __post_init__(self) -> None:
        """Checks what is not checked by `learn`."""
        _checks.whole(_checks.COUNT, held=self.held, fine=self.fine)
        _checks.whole("[0, 8]", degree=self.degree)
        check_options(**{name: getattr(self, name) for name in _PASSED if name != "consistent"})
        _checks.whole(_checks.COUNT, points=self.points)
        if self.steps % self.points or (self.points > 1 and (self.solver or self.history)):
            raise ValueError(
                f"points={self.points} divide steps={self.steps} evaluations, and go without solver and history"
            )
        for scale in self.scales:
            _checks.real("[0, inf)", scales=scale)
        if self.scales and len(set(self.scales)) < 2:
            raise ValueError(f"scales={self.scales} are at least two, of which the least and the largest are the range")
        if self.times is not None and self.solver is None:
            raise ValueError("times are those of the solver to start from: name a solver too")

    @property
    def reads_data(self) -> bool:
        """For features."""
        return self.features

    @property
    def between(self) -> tuple[float, float] | None:
        """The range of scales, or None for one scale."""
        return (min(self.scales), max(self.scales)) if self.scales else None

    def sizes(self) -> dict[str, Any]:
        """With the range in place of the scale."""
        return super().sizes() | ({"guidance": None} if self.scales else {})

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """The rows to start from, the polynomials, and what they are worth."""
        low, high = self.between or (work.guidance, work.guidance)
        scales = [work.guidance] if self.between is None else sorted(set(self.scales))
        each, held = -(-self.num // len(scales)), -(-self.held // len(scales))

        def pool(scale: float, first: int, num: int) -> Pool:
            position = 0.0 if low == high else 2 * (scale - low) / (high - low) - 1
            return make_pool(work, scale, first, num, self.fine, position)

        work.progress(0, self.iterations, "fine solutions")
        pools = [pool(scale, i * each, each) for i, scale in enumerate(scales)]
        aside = [pool(scale, 10**6 + i * held, held) for i, scale in enumerate(scales)]
        path, ends = work.flow.path, (float(work.grid[0]), float(work.grid[-1]))
        rows: Mapping[str, Any]
        if self.solver is not None:
            rows = {self.solver: rows_of(specs.build("solver", self.solver).bind(path, work.grid))}
        elif self.points > 1:
            rows = parallel_starts(path, self.steps // self.points, self.points, *ends)
        else:
            rows = starts(path, self.steps, *ends)
        name, _ = best_start(rows, aside)
        found, errors = learn(
            pools,
            aside,
            rows[name],
            jax.random.fold_in(work.key, 1),
            degree=self.degree if self.scales else 0,
            features=work.features() if self.features else None,
            partial=work.file.with_suffix(""),
            record=work.record,
            progress=lambda done, total, best: work.progress(
                done, total, f"{name}: error {best:.3g} on held-out noise"
            ),
            **{k: getattr(self, k) for k in _PASSED},
        )
        made = to_arrays(form_of(rows[name]).widened(rows[name], self.history), found)
        return made | {"began": np.array(name)} | {f"error_{kind}": np.array(value) for kind, value in errors.items()}

    @classmethod
    def serves(cls, known: Mapping[str, Any], guidance: float) -> bool:
        """A scale, or all of a range."""
        if not (scales := known.get("scales")):
            return super().serves(known, guidance)
        return min(scales) <= guidance <= max(scales)

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """The rows for this scale, at their times."""
        record = stored.record
        low, high = (end(record.get("scales") or [0.0]) for end in (min, max))
        position = 0.0 if low == high else 2 * (stored.guidance - low) / (high - low) - 1
        rows = of_arrays(stored.arrays, stored.flow.path, position, record["consistent"])
        return Calibrated(form_of(rows).solver(rows), rows.times)


_PASSED = ("iterations", "batch", "history", "learned", "consistent", "distance", "radius")

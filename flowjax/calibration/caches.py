"""Fields that save evaluations, with settings that keep a stated error: `flowjax.calibrate cache`.

What decides about skipping is fitted on some noises and judged on others: a polynomial from changes of the input to
changes of the answer (TeaCache), or ratios of sizes (MagCache). A fit that explains little of what it is to predict is
refused. The boldest setting is taken whose samples stay within the error, those of the noises that choose with a margin
for their number, and those of other noises as they are.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax import _checks, specs
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.calibration.best import interval
from flowjax.fields import MagCache, TeaCache
from flowjax.fields.probed import PROBES, flow_of, probe
from flowjax.flow import Field
from flowjax.solving import Solution, solve

FIELDS = ("sada", "teacache", "teacache(indicator=input)", "first_block", "magcache", "every_nth")
"""What is tried unless one is named."""
WHOLE = tuple(range(1, 9))
"""Values of the numbers of steps, the timid first."""
THRESHOLDS = tuple(float(f"{value:.3g}") for value in np.geomspace(1e-3, 2.0, 34))
"""Values of thresholds."""
DEGREE = 4
"""Of the polynomials, as published."""


@dataclasses.dataclass(frozen=True)
class Noises:
    """Some noises, and what all calls make of them.

    Attributes:
        x: Start states.
        cond: Their conditions.
        target: Samples of all calls.
        changes: By how much the velocity and what it could be known by change from step to step, relative mean sizes of
            each sample, and as "ratio" that of the sizes of the velocity.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> some = look(flow, fj.solvers.Euler(), jnp.ones((2, 1)), fj.times.uniform(4), None)
        >>> some.changes["velocity"].shape, some.changes["ratio"][0].tolist()  # x falls by a quarter
        ((3, 2), [0.75, 0.75])
    """

    x: Array
    cond: Any
    target: Array
    changes: dict[str, Float[np.ndarray, "steps N"]]


@jax.jit
def _look(field: Field, t: Any, x: Array, cond: Any, before: Any) -> Any:
    """Prediction and indicators at a state, and how much each has changed for each sample."""
    now = {"velocity": field.velocity(t, x, cond), "input": x}
    if hasattr(flow_of(field).network, "probe"):
        now |= {what: probe(field, what, t, x, cond) for what in PROBES if what != "input"}
    axes = {name: tuple(range(1, value.ndim)) for name, value in now.items()}
    if before is None:
        return now, {}
    change = {
        name: jnp.mean(jnp.abs(value - before[name]), axes[name]) / jnp.mean(jnp.abs(before[name]), axes[name])
        for name, value in now.items()
    }
    sizes = [jnp.sqrt(jnp.mean(part["velocity"] ** 2, axes["velocity"])) for part in (now, before)]
    return now, {**change, "ratio": sizes[0] / sizes[1]}


def look(field: Field, solver: Any, x: Array, times: np.ndarray, cond: Any) -> Noises:
    """A full run, and how its predictions and their indicators change from step to step."""
    result = solve(field, solver, x, times, cond=cond, trajectory=True)
    assert result.trajectory is not None
    before, found = None, []
    for t, state in zip(times[:-1], result.trajectory[:-1], strict=True):
        before, change = _look(field, jnp.asarray(t, x.dtype), state, cond, before)
        found.append(change)
    changes = {name: np.stack([np.asarray(part[name], np.float64) for part in found[1:]]) for name in found[-1]}
    if not all(np.isfinite(part).all() for part in changes.values()):
        raise ValueError("changes of predictions are not finite: the network answers with zeros, NaN or overflows")
    return Noises(x, cond, result.x, changes)


def explained(predicted: Float[np.ndarray, "..."], found: Float[np.ndarray, "..."]) -> float:
    """R^2, the share of the variance of what was found that a prediction explains; negative for worse than the mean.

    Example:
        >>> import numpy as np
        >>> explained(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
        0.5
    """
    return float(1 - np.sum((found - predicted) ** 2) / np.sum((found - np.mean(found)) ** 2))


def fitted(field: Any, some: Noises, others: Noises) -> tuple[Any, float | None]:
    """A field with the polynomial or the ratios of some noises, and R^2 on others; None where nothing is fitted."""
    if isinstance(field, TeaCache) and field.coefficients is None:
        given, found = (part.changes for part in (some, others))
        raw = np.polyfit(given[field.indicator].ravel(), given["velocity"].ravel(), DEGREE)
        polynomial = [float(f"{number:.6g}") for number in raw]
        quality = explained(np.polyval(polynomial, found[field.indicator]), found["velocity"])
        return dataclasses.replace(field, coefficients=polynomial), quality
    if isinstance(field, MagCache):
        ratios = np.mean(some.changes["ratio"], axis=1)
        quality = explained(np.broadcast_to(ratios[:, None], others.changes["ratio"].shape), others.changes["ratio"])
        return dataclasses.replace(field, ratios=[1.0, *(float(f"{number:.6g}") for number in ratios)]), quality
    return field, None


def boldest(holds: Callable[[int], bool], count: int) -> int:
    """The last of `count` settings, the timid first, that holds, if all before it do; -1 if none does.

    Example:
        >>> boldest(lambda number: number < 5, 8), boldest(lambda number: False, 8)
        (4, -1)
    """
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache(Calibration):
    """The field that saves most evaluations of a solver and keeps an error.

    Attributes:
        start: See `Calibration`.
        end: Likewise.
        num: Noises that fit and choose; they are sampled as one batch.
        steps: Solver steps.
        held: Noises that judge.
        error: Largest root mean square distance from the samples of all calls, over their root mean square.
        fit: Least R^2 of a fit on the noises that judge.
        field: Spec of a field; the best of `FIELDS` unless it is given.
        solver: Spec of a solver with one evaluation per step.
        times: Spec of its grid, with its ends.

    Raises:
        ValueError: Numbers out of their range; when it is computed, a fit that does not hold, or no setting that does.

    Example:
        >>> from flowjax.calibration.caches import Cache
        >>> Cache(error=0.05, field="magcache").sizes()["field"]
        'magcache'
    """

    num: int = option(64, "Noises that the setting is chosen with.")
    steps: int = option(50, "Solver steps.")
    held: int = option(64, "Other noises, which judge fit and setting.")
    error: float = option(0.02, "Largest distance from the samples of all calls, as a share of their size.")
    fit: float = option(0.5, "Least share of the variance (R^2) that a fit must explain on the other noises.")
    field: str | None = option(None, f"Field, such as magcache(keep=data); the best of {', '.join(FIELDS)} by default.")
    solver: str = option("dpm_solver", "Solver with one evaluation per step.")
    times: str | None = option(None, "Its grid, in place of --start and --end.")

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole(_checks.COUNT, held=self.held)
        _checks.real("(0, inf)", error=self.error)
        _checks.real("(-inf, 1]", fit=self.fit)
        if self.steps < 5:
            raise ValueError(f"steps={self.steps}: nothing is skipped in fewer than 5 steps")
        if self.field is not None:
            specs.find("field", specs.name_and_options(self.field)[0])

    def sizes(self) -> dict[str, Any]:
        """The options, the field as text."""
        return super().sizes() | ({} if self.field is None else {"field": specs.text(self.field)})

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """The field, and what all that were tried are worth."""
        names = FIELDS if self.field is None else (specs.text(self.field),)
        solver = specs.build("solver", self.solver)
        pools = []
        for number, (first, num) in enumerate(((0, self.num), (10**6, self.held))):
            work.progress(number, len(names) + 2, "all calls")
            x, cond = work.states(first, num)
            pools.append(look(work.field, solver, x, work.grid, cond))
        table: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            work.progress(number + 2, len(names) + 2, name)
            try:
                table.append(self._tried(name, solver, work, *pools))
            except ValueError as refused:
                if self.field is not None:
                    raise
                table.append({"name": name, "refused": str(refused)})
        good = [line for line in table if "refused" not in line]
        if not good:
            raise ValueError("; ".join(f"{line['name']}: {line['refused']}" for line in table))
        best = min(good, key=lambda line: line["evaluations"])
        return {"times": work.grid, "field": np.array(best["field"]), "table": np.array(json.dumps(table))}

    def _tried(self, name: str, solver: Any, work: Work, some: Noises, others: Noises) -> dict[str, Any]:
        """The boldest setting of one field that keeps the error."""
        option = {"sada": "max_interval", "every_nth": "n"}.get(specs.name_and_options(name)[0], "threshold")
        ones = {"ratios": [1.0] * (len(work.grid) - 1)} if specs.name_and_options(name)[0] == "magcache" else {}
        field = specs.build("field", name, field=work.field, **ones)
        if not hasattr(field, option):
            raise ValueError(f"{name} saves no evaluations: {', '.join(FIELDS)} do")
        field, quality = fitted(field, some, others)
        if quality is not None and not quality >= self.fit:
            raise ValueError(
                f"the fit of {name} explains R^2 = {quality:.2f} of what it is to predict on noise that it has not "
                f"seen, less than fit={self.fit:g}: take a field that needs none (sada, first_block, every_nth), or "
                "more noises (num)"
            )
        settings = THRESHOLDS if option == "threshold" else WHOLE
        runs: dict[Any, Any] = {}

        def run(number: int, noises: Noises) -> tuple[Solution, np.ndarray, float]:
            """Squared distances of all samples, over the mean square of those of all calls."""
            key = number, noises is some
            if key not in runs:
                made = dataclasses.replace(field, **{option: settings[number]})
                result = solve(made, solver, noises.x, work.grid, cond=noises.cond)
                axes = tuple(range(1, noises.x.ndim))
                apart = np.mean(np.square(np.asarray(result.x - noises.target, np.float64)), axes)
                squares = apart / np.mean(np.square(np.asarray(noises.target, np.float64)))
                runs[key] = result, squares, float(np.sqrt(np.mean(squares)))
            return runs[key]

        def holds(number: int) -> bool:
            return interval(run(number, some)[1], work.seed)[1] <= self.error

        number = boldest(holds, len(settings))
        while number >= 0 and not run(number, others)[2] <= self.error:
            number -= 1
        if number < 0:
            raise ValueError(
                f"no setting of {name} keeps the error {self.error:g} in {len(work.grid) - 1} steps: allow a larger "
                "error, or take more steps"
            )
        result, _, error = run(number, others)
        if (count := int(result.evaluations)) == len(work.grid) - 1:
            raise ValueError(f"within the error {self.error:g}, {name} skips nothing: allow a larger error")
        made = dataclasses.replace(field, **{option: settings[number]})
        return {
            "name": name,
            "field": specs.text(specs.spec_of("field", made, field=work.field)),
            "setting": f"{option}={settings[number]:g}",
            "evaluations": count,
            "error": error,
            "fit": quality,
        }

    @classmethod
    def summary(cls, arrays: Mapping[str, Any]) -> str:
        """The table for people."""
        rows = [f"{'':28}{'setting':>20}{'calls':>7}{'error':>9}{'R^2':>7}"]
        for line in json.loads(str(arrays["table"])):
            if "refused" in line:
                rows.append(f"{line['name']:28}refused: {line['refused']}")
                continue
            fit = "" if line["fit"] is None else f"{line['fit']:.2f}"
            rows.append(f"{line['name']:28}{line['setting']:>20}{line['evaluations']:7d}{line['error']:9.4f}{fit:>7}")
        rows.append(f"of {len(arrays['times']) - 1} calls, on noises that nothing was fitted to")
        return "\n".join(rows)

    @classmethod
    def fields(cls, arrays: Mapping[str, Any]) -> tuple[str, ...]:
        """The field that saves evaluations."""
        return (str(arrays["field"]),)

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """The solver and its times; the field goes around the whole."""
        return Calibrated(specs.build("solver", stored.record["solver"]), stored.arrays["times"])

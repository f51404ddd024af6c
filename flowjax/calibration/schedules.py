"""S^3 (Liu et al., 2312.07243): a search for solver schedules, guided by a learned ranking.

Candidates with the same number of evaluations - as many steps, or one step more behind a guessed first output - are
rows of one pattern, so a whole population is evaluated by one compiled, vmapped program. The search starts from the
published solvers and their mutations. In each round a small recurrent network is trained on all results so far to rank
schedules, evolution under its score proposes candidates, and the most promising are truly evaluated. Results are
appended to a file, from which an interrupted search continues.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax import _checks
from flowjax._files import replacing
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.calibration.ranking import FIRSTS, KINDS, encode, fit_ranker, score
from flowjax.calibration.reference import reference
from flowjax.flow import Field
from flowjax.launch import check_shared
from flowjax.paths.base import precision
from flowjax.solvers.options import check_choice
from flowjax.solvers.statistics import Statistics
from flowjax.solvers.usf import USF, Decision, Schedule, baselines
from flowjax.solving import solve
from flowjax.times import check_times, quadratic

REGISTERS, REGISTERS_V3 = 12, 16  # enough for four points with two predictions each, with three


# ------------------------------------------------------------------------------------------------------------
# evaluation


def errors(
    field: Field,
    schedules: Sequence[Schedule],
    x: Float[Array, "batch ..."],
    target: Float[Array, "batch ..."],
    cond: Any = None,
    *,
    statistics: Statistics | None = None,
    mean: float = 0.0,
) -> Float[np.ndarray, " schedules"]:
    """Mean squared distance to `target` of the final states of schedules with equally many evaluations.

    Args:
        field: what will be sampled.
        schedules: candidates; all start at the same time.
        x: start states, (B, ...).
        target: what they should become, (B, ...).
        cond: their conditions.
        statistics: for candidates with "v3" steps: curves of numbers (mode "scalar"), as the program is shared.
        mean: of the normalised data, a number, for candidates with first="mean".
    """
    registers = REGISTERS if statistics is None else REGISTERS_V3
    solvers = [USF(schedule=s, statistics=statistics, mean=mean) for s in schedules]
    bound = [solver.bind(field.path, solver.schedule.times, registers=registers) for solver in solvers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf, precision(x)) for leaf in leaves]), *bound)
    return np.asarray(_errors(field, stacked, x, target, cond))


@jax.jit
def _errors(field: Field, bound: Any, x: Array, target: Array, cond: Any) -> Array:
    def one(bound: Any) -> Array:
        error = jnp.mean((solve(field, bound, x, cond=cond).x - target) ** 2)
        return jnp.where(jnp.isfinite(error), error, jnp.inf)

    return jax.lax.map(one, bound, batch_size=4)


# -------------------------------------------------------------------------------------------------------------
# proposals


def mutate(
    schedule: Schedule,
    rng: np.random.Generator,
    kinds: Sequence[str] = ("noise", "data"),
    firsts: Sequence[str] = ("network", "zero"),
) -> Schedule:
    """A neighbour of a schedule with the same number of evaluations and the same ends; always valid.

    Args:
        schedule: without points or starts of its own; every step starts from the newest point.
        rng: where the changes come from.
        kinds: predictions to choose from.
        firsts: ways to get the first output to choose from. With a guessed one there is one step more.
    """
    times, decisions, first = list(schedule.times), list(schedule.decisions), schedule.first
    if rng.random() < 0.3:
        first = str(rng.choice(firsts))
    if first != "network" and schedule.first == "network":
        time = rng.uniform(times[0], times[-1])
        place = int(np.searchsorted(times, time, side="right"))
        times.insert(place, time)
        place -= int(rng.integers(2))  # the new step is one of the two halves
        decisions.insert(place, _varied(Decision(), place, rng, kinds, entirely=True))
    elif first == "network" and schedule.first != "network":
        place = int(rng.integers(1, len(decisions)))
        del times[place], decisions[place - int(rng.integers(2))]
    n = len(decisions)
    for i in range(1, n):
        if rng.random() < 0.3:
            times[i] += rng.normal(0, 0.03)
    inner = np.sort(np.clip(times[1:-1], times[0], times[-1]))
    gap = (times[-1] - times[0]) / (50 * n)  # no two times closer than this
    for i in range(len(inner)):
        low = (times[0] if i == 0 else inner[i - 1]) + gap
        inner[i] = np.clip(inner[i], low, times[-1] - (len(inner) - i) * gap)
    decisions = [_varied(d, i, rng, kinds) for i, d in enumerate(decisions)]
    decisions[-1] = dataclasses.replace(decisions[-1], corrector=False)
    return Schedule(times=(times[0], *map(float, inner), times[-1]), decisions=tuple(decisions), first=first)


def _varied(
    d: Decision, number: int, rng: np.random.Generator, kinds: Sequence[str], entirely: bool = False
) -> Decision:
    """The decision of step `number` with some ingredients sampled anew, or all of them."""

    def chosen(probability: float) -> bool:
        return entirely or rng.random() < probability

    order, prediction, relaxation, estimation = min(d.order, number + 1), d.prediction, d.relaxation, d.estimation
    if chosen(0.3):
        order = min(int(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1])), number + 1)
    if chosen(0.3):
        prediction = str(rng.choice(kinds))
    if chosen(0.15):
        relaxation = (None, "midpoint", "bh1", 0.0)[rng.integers(4)]
        relaxation = rng.normal(0, 0.1) if isinstance(relaxation, float) else relaxation
    elif isinstance(relaxation, float) and rng.random() < 0.3:
        relaxation += rng.normal(0, 0.03)
    corrector, corrector_relaxation = d.corrector, d.corrector_relaxation
    if chosen(0.3):
        corrector = rng.random() < 0.5 and (True if prediction != "v3" else (True, "v3", "v3_pseudo")[rng.integers(3)])
        corrector_relaxation = (None, "bh1", "bh2")[rng.integers(3)]
    if order > 1 and chosen(0.2):  # estimate the first derivative from fewer or from all points
        first = int(rng.integers(1, order))
        estimation = (first, *(order - 1 for _ in range(2, order)))
    elif len(estimation) != order - 1:
        estimation = ()
    return Decision(
        prediction=prediction,
        order=order,
        relaxation=relaxation,
        estimation=estimation,
        corrector=corrector,
        corrector_relaxation=corrector_relaxation,
    )


def crossover(a: Schedule, b: Schedule, rng: np.random.Generator) -> Schedule:
    """The times and first output of either parent, and step by step the decision of either.

    Parents with different numbers of steps are not mixed: the child is one of them.
    """
    times, first = ((a, b)[rng.integers(2)] for _ in range(2))
    if len(a.decisions) != len(b.decisions):
        return times
    chosen = tuple(x if rng.random() < 0.5 else y for x, y in zip(a.decisions, b.decisions, strict=True))
    return Schedule(times=times.times, decisions=chosen, first=first.first)


# -----------------------------------------------------------------------------------------------------------------
# search


def search(
    evaluate: Callable[[Sequence[Schedule]], Any],
    times: Any,
    *,
    rounds: int = 12,
    population: int = 32,
    proposals: int = 512,
    parents: int = 15,
    kinds: Sequence[str] = ("noise", "data"),
    firsts: Sequence[str] = ("network", "zero"),
    seed: int = 0,
    results: str | Path | None = None,
    record: dict[str, Any] | None = None,
    progress: Callable[[int, float], None] = lambda done, best: None,
) -> list[tuple[float, Schedule]]:
    """Searches schedules with as many evaluations as `times` has steps.

    Args:
        evaluate: gives the errors of a list of `population` schedules, for example by `errors`; lower is better.
        times: the grid that the baselines use, or several with equally many steps and the same ends. The ends are kept.
        rounds: rounds of `population` true evaluations, the first of baselines and their mutations.
        population: true evaluations per round.
        proposals: candidates scored by the ranker per round.
        parents: best schedules that candidates come from.
        kinds: predictions that mutations choose from; with "v3", `evaluate` needs statistics.
        firsts: ways to get the first output that mutations choose from; with "mean", `evaluate` needs the mean.
        seed: of the search.
        results: file of results, one JSON line each; an interrupted search continues from it.
        record: what the results belong to (model hash, guidance, ...), the first line of that file.
        progress: called with (evaluations, best error) after each round.

    Returns:
        (error, schedule) of everything evaluated, best first.

    Raises:
        ValueError: grids that do not fit together, a number out of its range, or `results` belongs to another search.
    """
    _checks.whole(_checks.COUNT, rounds=rounds, population=population, proposals=proposals, parents=parents)
    _checks.whole(_checks.SEED, seed=seed)
    if proposals < population:
        raise ValueError(f"the {population} candidates of a round are chosen of {proposals} proposals: raise proposals")
    for name, given, allowed in (("kinds", kinds, KINDS), ("firsts", firsts, FIRSTS)):
        if isinstance(given, str) or not given:
            raise ValueError(f"{name} holds some of {allowed}, got {given!r}")
        for one in given:
            check_choice(name, one, allowed)
    grids = [check_times(grid) for grid in ([times] if np.ndim(times[0]) == 0 else times)]
    if len({(len(grid), grid[0], grid[-1]) for grid in grids}) > 1:
        raise ValueError(f"the grids of a search need equally many steps and the same ends, got {grids}")
    file = None if results is None else Path(results)
    belongs = {"record": record or {}, "times": [grid.tolist() for grid in grids], "seed": seed}
    belongs |= {"population": population, "kinds": list(kinds), "firsts": list(firsts)}
    head = json.dumps(belongs, sort_keys=True)
    known: list[tuple[float, Schedule]] = []
    if file is not None and file.exists():
        begins, *lines = file.read_text(errors="replace").splitlines() or [""]
        if begins != head:
            raise ValueError(f"{file} holds the results of another search, remove it to begin a new one: {begins}")
        with contextlib.suppress(ValueError, TypeError, KeyError):  # up to a line that was written in part
            for line in map(json.loads, lines):
                known.append((line["error"], from_json(line["schedule"])))
        known = known[: len(known) // population * population]
    check_shared(str(file), len(known))
    first = jax.process_index() == 0  # writes for all
    if file is not None and first:
        with replacing(file) as part:
            part.write_text("\n".join([head, *(_line(*pair) for pair in known)]) + "\n")
    start = list(dict.fromkeys(s for grid in grids for s in baselines(grid).values()))  # some may be the same
    for number in range(rounds):
        rng = np.random.default_rng((seed, number))
        if number < len(known) // population:
            continue
        seen = {schedule for _, schedule in known}
        if number == 0:
            candidates = start[:population]
            while len(candidates) < population:
                candidates.append(mutate(start[int(rng.integers(len(start)))], rng, kinds, firsts))
        else:
            finite = [(error, schedule) for error, schedule in known if np.isfinite(error)]
            scores = np.log([max(e, 1e-30) for e, _ in finite])
            ranker = fit_ranker(encode([s for _, s in finite]), scores, seed=seed + number)
            best = [schedule for _, schedule in sorted(finite, key=lambda pair: pair[0])[:parents]]
            pool: dict[Schedule, None] = {}
            while len(pool) < proposals:
                a, b = (best[int(i)] for i in rng.integers(len(best), size=2))
                child = mutate(crossover(a, b, rng) if rng.random() < 0.5 else a, rng, kinds, firsts)
                if child not in seen:
                    pool[child] = None
            ordered = list(pool)
            scores = np.asarray(score(ranker, jnp.asarray(encode(ordered))))
            chosen = [ordered[int(i)] for i in np.argsort(scores)[: population * 3 // 4]]
            rest = [s for s in ordered if s not in set(chosen)]
            candidates = chosen + rest[: population - len(chosen)]  # some at random, against the ranker's blind spots
        found = [(float(e), s) for e, s in zip(np.asarray(evaluate(candidates)), candidates, strict=True)]
        known += found
        if file is not None and first:
            with file.open("a") as out:
                out.write("".join(_line(*pair) + "\n" for pair in found))
        progress(len(known), min(error for error, _ in known))
    return sorted(known, key=lambda pair: pair[0])


def to_json(schedule: Schedule) -> dict[str, Any]:
    """A schedule as JSON values."""
    return dataclasses.asdict(schedule)


def from_json(values: dict[str, Any]) -> Schedule:
    """The inverse of `to_json`."""

    def decision(values: dict[str, Any]) -> Decision:
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Decision(**arguments)

    decisions = tuple(decision(line) for line in values["decisions"])
    return Schedule(times=tuple(values["times"]), decisions=decisions, first=values.get("first", "network"))


def _line(error: float, schedule: Schedule) -> str:
    return json.dumps({"error": error, "schedule": to_json(schedule)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched(Calibration):
    """A solver searched for one number of evaluations.

    Attributes:
        start: See `Calibration`.
        end: Likewise.
        num: Samples that candidates are measured on.
        steps: Evaluations.
        rounds: Of 32 candidates each.

    Example:
        >>> from flowjax.calibration.schedules import Searched
        >>> Searched(steps=8).sizes()
        {'num': 128, 'steps': 8, 'rounds': 12}
    """

    reads_data = True

    num: int = option(128, "Samples that candidates are measured on.")
    steps: int = option(5, "Evaluations.")
    rounds: int = option(12, "Rounds of the search.")

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole(_checks.COUNT, rounds=self.rounds)

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """The best schedule."""
        (x, cond), field = work.states(), work.field
        target = reference(field, x, work.grid, cond)[-1]
        mean = round(work.mean(), 6)

        known = search(
            lambda candidates: errors(field, candidates, x, target, cond, mean=mean),
            [work.grid, quadratic(self.steps, self.start, self.end)],
            rounds=self.rounds,
            firsts=FIRSTS,
            seed=work.seed,
            results=work.file.with_suffix(".jsonl"),
            record={k: v for k, v in work.record.items() if k != "rounds"} | {"mean": mean},  # more may follow
            progress=lambda done, best: work.progress(done, self.rounds * 32, f"best mean squared error {best:.3g}"),
        )
        return {
            "schedule": np.array(json.dumps(to_json(known[0][1]))),
            "error": np.array(known[0][0]),
            "mean": np.array(mean),
        }

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """The schedule at its own times."""
        schedule = from_json(json.loads(str(stored.arrays["schedule"])))
        mean = float(stored.arrays.get("mean", 0.0))  # of the data; searches that guessed no first output have none
        return Calibrated(USF(schedule=schedule, mean=mean), np.asarray(schedule.times))

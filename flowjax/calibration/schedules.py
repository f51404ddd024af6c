"""S^3 (Liu et al., 2312.07243): a search for solver schedules, guided by a learned ranking.

Candidates with the same number of evaluations are rows of one pattern, so a whole population is evaluated by one
compiled, vmapped program. The search starts from the published solvers and their mutations. In each round a small
recurrent network is trained on all results so far to rank schedules, evolution under its score proposes candidates, and
the most promising are truly evaluated. Results are appended to a file, from which an interrupted search continues.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from flowjax.flow import Field
from flowjax.solvers.statistics import Statistics
from flowjax.solvers.usf import USF, Decision, Schedule, baselines
from flowjax.solving import solve

REGISTERS, REGISTERS_V3 = 12, 16  # enough for four points with two predictions each, with three
KINDS = ("noise", "data", "v3")


# ------------------------------------------------------------------------------------------------------------
# evaluation


def errors(
    field: Field,
    schedules: Sequence[Schedule],
    x: Array,
    target: Array,
    cond: Any = None,
    *,
    statistics: Statistics | None = None,
) -> Float[np.ndarray, " schedules"]:
    """Mean squared distance to `target` of the final states of schedules with equally many evaluations.

    Args:
        field: what will be sampled.
        schedules: candidates; all start at the same time.
        x: start states, (B, ...).
        target: what they should become, (B, ...).
        cond: their conditions.
        statistics: for candidates with "v3" steps: curves of numbers (mode "scalar"), as the program is shared.
    """
    registers = REGISTERS if statistics is None else REGISTERS_V3
    bound = [USF(schedule=s, statistics=statistics).bind(field.path, s.times, registers=registers) for s in schedules]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf, jnp.float32) for leaf in leaves]), *bound)
    return np.asarray(_errors(field, stacked, x, target, cond))


@jax.jit
def _errors(field: Field, bound: Any, x: Array, target: Array, cond: Any) -> Array:
    def one(bound: Any) -> Array:
        error = jnp.mean((solve(field, bound, x, cond=cond).x - target) ** 2)
        return jnp.where(jnp.isfinite(error), error, jnp.inf)

    return jax.lax.map(one, bound, batch_size=4)


# -------------------------------------------------------------------------------------------------------------
# proposals


def mutate(schedule: Schedule, rng: np.random.Generator, kinds: Sequence[str] = ("noise", "data")) -> Schedule:
    """A neighbour of a schedule with the same number of steps; always valid."""
    n = len(schedule.decisions)
    times = np.array(schedule.times)
    for i in range(1, n):
        if rng.random() < 0.3:
            times[i] += rng.normal(0, 0.03)
    inner = np.sort(np.clip(times[1:-1], times[0], times[-1]))
    gap = (times[-1] - times[0]) / (50 * n)  # no two times closer than this
    for i in range(len(inner)):
        low = (times[0] if i == 0 else inner[i - 1]) + gap
        inner[i] = np.clip(inner[i], low, times[-1] - (len(inner) - i) * gap)
    decisions = []
    for i, d in enumerate(schedule.decisions):
        order, prediction, relaxation, estimation = d.order, d.prediction, d.relaxation, d.estimation
        if rng.random() < 0.3:
            order = min(int(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1])), i + 1)
        if rng.random() < 0.3:
            prediction = str(rng.choice(kinds))
        if rng.random() < 0.15:
            relaxation = (None, "midpoint", "bh1", 0.0)[rng.integers(4)]
            relaxation = rng.normal(0, 0.1) if isinstance(relaxation, float) else relaxation
        elif isinstance(relaxation, float) and rng.random() < 0.3:
            relaxation += rng.normal(0, 0.03)
        corrector, corrector_relaxation = d.corrector, d.corrector_relaxation
        if rng.random() < 0.3:
            corrector = rng.random() < 0.5 and (
                True if prediction != "v3" else (True, "v3", "v3_pseudo")[rng.integers(3)]
            )
            corrector_relaxation = (None, "bh1", "bh2")[rng.integers(3)]
        if rng.random() < 0.2 and order > 1:  # estimate the first derivative from fewer or from all points
            first = int(rng.integers(1, order))
            estimation = (first, *(order - 1 for _ in range(2, order)))
        elif len(estimation) != order - 1:
            estimation = ()
        decisions.append(
            Decision(
                prediction=prediction,
                order=order,
                relaxation=relaxation,
                estimation=estimation,
                corrector=corrector if i < n - 1 else False,
                corrector_relaxation=corrector_relaxation,
            )
        )
    all_times = (float(times[0]), *map(float, inner), float(times[-1]))
    return Schedule(times=all_times, decisions=tuple(decisions), first=schedule.first)


def crossover(a: Schedule, b: Schedule, rng: np.random.Generator) -> Schedule:
    """The times of one parent, and step by step the decision of either."""
    times = a.times if rng.random() < 0.5 else b.times
    chosen = tuple(x if rng.random() < 0.5 else y for x, y in zip(a.decisions, b.decisions, strict=True))
    return Schedule(times=times, decisions=chosen, first=a.first)


# ----------------------------------------------------------------------------------------------------------------
# ranking


def encode(schedule: Schedule) -> Float[np.ndarray, "steps features"]:
    """A schedule as numbers, one line per step."""
    lines = []
    for i, d in enumerate(schedule.decisions):
        s, t = schedule.times[i], schedule.times[i + 1]
        frequencies = 2.0 ** np.arange(4)
        linear = d.relaxation if isinstance(d.relaxation, float) else 0.0
        lines.append(
            [
                s,
                t - s,
                *np.sin(np.pi * frequencies * t),
                *np.cos(np.pi * frequencies * t),
                *(float(d.prediction == kind) for kind in KINDS),
                *(float(d.order == k) for k in (1, 2, 3, 4)),
                *(float(d.relaxation == r) for r in ("midpoint", "bh1")),
                10 * linear,
                float(bool(d.estimation)),
                float(bool(d.corrector)),
                float(d.corrector_relaxation == "bh1"),
                float(d.corrector_relaxation == "bh2"),
            ]
        )
    return np.asarray(lines, np.float32)


class Ranker(nnx.Module):
    """A recurrent network over the steps of a schedule; a lower score is better."""

    def __init__(self, features: int, width: int = 64, *, rngs: nnx.Rngs):
        self.embed = nnx.Linear(features, width, rngs=rngs)
        self.cell = nnx.GRUCell(width, width, rngs=rngs)
        self.head = nnx.Linear(width, 1, rngs=rngs)
        self.width = width

    def __call__(self, lines: Float[Array, "schedules steps features"]) -> Float[Array, " schedules"]:
        """Scores, (schedules,)."""
        state = jnp.zeros((lines.shape[0], self.width))
        for i in range(lines.shape[1]):
            state, _ = self.cell(state, nnx.silu(self.embed(lines[:, i])))
        return self.head(state)[:, 0]


def fit_ranker(lines: Any, scores: Any, seed: int = 0, steps: int = 300, margin: float = 0.1) -> Ranker:
    """Trains a ranker by pairwise hinge loss: max(0, margin - (score of the worse - score of the better))."""
    lines, scores = jnp.asarray(lines, jnp.float32), jnp.asarray(scores, jnp.float32)
    ranker = Ranker(lines.shape[-1], rngs=nnx.Rngs(seed))
    optimizer = optax.adam(3e-3)
    return _fit(ranker, optimizer.init(ranker), lines, scores, steps, margin)


@jax.jit(static_argnames=("steps", "margin"))
def _fit(ranker: Ranker, state: Any, lines: Array, scores: Array, steps: int, margin: float) -> Ranker:
    optimizer = optax.adam(3e-3)

    def loss(ranker: Ranker) -> Array:
        predicted = ranker(lines)
        worse = (scores[:, None] > scores[None, :]).astype(jnp.float32)
        return jnp.sum(worse * nnx.relu(margin - (predicted[:, None] - predicted[None, :]))) / jnp.maximum(
            worse.sum(), 1
        )

    def iterate(carry: Any, _: Any) -> tuple[Any, None]:
        ranker, state = carry
        updates, state = optimizer.update(jax.grad(loss)(ranker), state, ranker)
        return (optax.apply_updates(ranker, updates), state), None

    (ranker, _), _ = jax.lax.scan(iterate, (ranker, state), length=steps)
    return ranker


_score = jax.jit(lambda ranker, lines: ranker(lines))


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
    seed: int = 0,
    results: str | Path | None = None,
    record: dict[str, Any] | None = None,
    progress: Callable[[int, float], None] = lambda done, best: None,
) -> list[tuple[float, Schedule]]:
    """Searches schedules with as many steps as `times` has.

    Args:
        evaluate: gives the errors of a list of `population` schedules, for example by `errors`; lower is better.
        times: the grid that the baselines use; its ends are kept.
        rounds: rounds of `population` true evaluations, the first of baselines and their mutations.
        population: true evaluations per round.
        proposals: candidates scored by the ranker per round.
        parents: best schedules that candidates come from.
        kinds: predictions that mutations choose from; with "v3", `evaluate` needs statistics.
        seed: of the search.
        results: file of results, one JSON line each; an interrupted search continues from it.
        record: what the results belong to (model hash, guidance, ...), the first line of that file.
        progress: called with (evaluations, best error) after each round.

    Returns:
        (error, schedule) of everything evaluated, best first.

    Raises:
        ValueError: `results` belongs to another search.
    """
    rng = np.random.default_rng(seed)
    file = None if results is None else Path(results)
    head = {"record": record or {}, "times": [float(t) for t in times], "seed": seed, "population": population}
    head |= {"kinds": list(kinds)}
    known: list[tuple[float, Schedule]] = []
    if file is not None and file.exists():
        first, *lines = file.read_text().splitlines()
        if json.loads(first) != json.loads(json.dumps(head)):
            raise ValueError(f"{file} holds the results of another search: {first}")
        known = [(line["error"], from_json(line["schedule"])) for line in map(json.loads, lines)]
        known = known[: len(known) // population * population]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join([json.dumps(head), *(_line(*pair) for pair in known)]) + "\n")
    start = list(dict.fromkeys(baselines(times).values()))  # with few steps some are the same
    for number in range(rounds):
        rng = np.random.default_rng((seed, number))
        if number < len(known) // population:
            continue
        seen = {schedule for _, schedule in known}
        if number == 0:
            candidates = start[:population]
            while len(candidates) < population:
                candidates.append(mutate(start[int(rng.integers(len(start)))], rng, kinds))
        else:
            finite = [(error, schedule) for error, schedule in known if np.isfinite(error)]
            ranker = fit_ranker(
                np.stack([encode(s) for _, s in finite]), np.log([max(e, 1e-30) for e, _ in finite]), seed=seed + number
            )
            best = [schedule for _, schedule in sorted(finite, key=lambda pair: pair[0])[:parents]]
            pool: dict[Schedule, None] = {}
            while len(pool) < proposals:
                a, b = (best[int(i)] for i in rng.integers(len(best), size=2))
                child = mutate(crossover(a, b, rng) if rng.random() < 0.5 else a, rng, kinds)
                if child not in seen:
                    pool[child] = None
            ordered = list(pool)
            scores = np.asarray(_score(ranker, jnp.asarray(np.stack([encode(s) for s in ordered]))))
            chosen = [ordered[int(i)] for i in np.argsort(scores)[: population * 3 // 4]]
            rest = [s for s in ordered if s not in set(chosen)]
            candidates = chosen + rest[: population - len(chosen)]  # some at random, against the ranker's blind spots
        found = [(float(e), s) for e, s in zip(np.asarray(evaluate(candidates)), candidates, strict=True)]
        known += found
        if file is not None:
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
    return Schedule(times=tuple(values["times"]), decisions=decisions, first=values["first"])


def _line(error: float, schedule: Schedule) -> str:
    return json.dumps({"error": error, "schedule": to_json(schedule)})

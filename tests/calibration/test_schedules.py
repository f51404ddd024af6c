import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS
from scipy.stats import kendalltau

import flowjax as fj
from flowjax.calibration import schedules
from flowjax.oracles import Mixture
from flowjax.solvers import USF, Decision, Schedule, Statistics
from flowjax.solvers.usf import baselines
from flowjax.times import uniform

pytestmark = pytest.mark.standard_promotion  # optax

GRID = uniform(4, 0.0, 0.98)


V3 = [("v3", "v3_pseudo"), ("noise", True), ("v3", "v3"), ("data", False)]


def planted(schedule):
    """A cheap score with a known optimum: orders 1, 2, 3, 2, predictions of the data, times 0.3, 0.5, 0.8."""
    wrong = sum(d.order != k for d, k in zip(schedule.decisions, (1, 2, 3, 2), strict=True))
    wrong += sum(d.prediction != "data" for d in schedule.decisions)
    return 0.1 * wrong + float(np.sum((np.array(schedule.times[1:-1]) - [0.3, 0.5, 0.8]) ** 2)) + 1e-3


def test_mutations_and_crossovers_are_valid():
    """`Schedule` and `Decision` check themselves; times stay apart, ends stay, the last step is not corrected."""
    rng = np.random.default_rng(0)
    pool = list(baselines(GRID).values())
    changed = 0
    for _ in range(400):
        a, b = (pool[int(i)] for i in rng.integers(len(pool), size=2))
        child = schedules.mutate(schedules.crossover(a, b, rng), rng, kinds=("noise", "data", "v3"))
        times = np.array(child.times)
        assert (times[0], times[-1]) == (GRID[0], GRID[-1])
        assert np.diff(times).min() > 0.98 / 250
        assert len(child.decisions) == 4
        assert not child.decisions[-1].corrector
        assert all(d.order <= i + 1 for i, d in enumerate(child.decisions))
        changed += child not in (a, b)
        pool[int(rng.integers(len(pool)))] = child  # mutations of mutations
    assert changed > 350


def test_crossover_takes_from_both_parents():
    rng = np.random.default_rng(0)
    a, b = (baselines(g)[k] for g, k in ((GRID, "ddim"), (GRID**1.1, "unipc_3_bh1")))
    children = [schedules.crossover(a, b, rng) for _ in range(40)]
    assert {c.times for c in children} == {a.times, b.times}
    for i, pair in enumerate(zip(a.decisions, b.decisions, strict=True)):
        assert {c.decisions[i] for c in children} == set(pair)


def test_schedules_survive_json():
    rng = np.random.default_rng(0)
    for schedule in baselines(GRID).values():
        for _ in range(10):
            schedule = schedules.mutate(schedule, rng)
            assert schedules.from_json(json.loads(json.dumps(schedules.to_json(schedule)))) == schedule


def test_errors_are_those_of_solve():
    """A population in one program, without compiling again for another one; what diverges is infinitely bad."""
    path = PATHS["linear"]
    flow = fj.Flow(lambda x, t, cond: jnp.tanh(x) + t[:, None], path=path, prediction="data")
    x = fj.noise(jax.random.key(0), (4, 2))
    target = 0.3 * x
    population = list(baselines(GRID).values())
    found = schedules.errors(flow, population, x, target)
    for schedule, error in zip(population, found, strict=True):
        end = fj.solve(flow, USF(schedule=schedule), x, schedule.times).x
        assert error == pytest.approx(float(jnp.mean((end - target) ** 2)), rel=1e-4)
    compiled = schedules._errors._cache_size()
    rng = np.random.default_rng(0)
    schedules.errors(flow, [schedules.mutate(s, rng) for s in population], x, target)
    assert schedules._errors._cache_size() == compiled
    lam = np.linspace(-30, 5, 200)
    curves = Statistics(lam=lam, l=0.5 + 0 * lam, s=-0.3 + 0 * lam, b=0.1 * np.cos(lam))
    times = tuple(map(float, np.linspace(0.05, 0.95, 5)))
    three = [Decision(prediction=k, order=min(i + 1, 3), corrector=c) for i, (k, c) in enumerate(V3)]
    schedule = Schedule(times=times, decisions=tuple(three))
    (error,) = schedules.errors(flow, [schedule], x, target, statistics=curves)
    end = fj.solve(flow, USF(schedule=schedule, statistics=curves), x, times).x
    assert error == pytest.approx(float(jnp.mean((end - target) ** 2)), rel=1e-4)
    broken = fj.Flow(lambda x, t, cond: jnp.full_like(x, jnp.nan), path=path, prediction="data")
    assert np.all(np.isinf(schedules.errors(broken, population[:4], x, target)))


def test_ranker_orders_schedules_that_it_has_not_seen():
    rng = np.random.default_rng(0)
    pool = list(baselines(GRID).values())
    while len(pool) < 120:
        pool.append(schedules.mutate(pool[int(rng.integers(len(pool)))], rng))
    lines, scores = np.stack([schedules.encode(s) for s in pool]), np.array([planted(s) for s in pool])
    ranker = schedules.fit_ranker(lines[:80], np.log(scores[:80]), steps=200)
    assert kendalltau(np.asarray(ranker(jnp.asarray(lines[80:]))), scores[80:]).statistic > 0.3


def run_search(rounds, **options):
    best = []
    found = schedules.search(
        lambda population: [planted(s) for s in population],
        GRID,
        rounds=rounds,
        population=16,
        proposals=96,
        progress=lambda done, error: best.append((done, error)),
        **options,
    )
    return found, best


@pytest.mark.slow
def test_search_finds_a_planted_optimum():
    found, best = run_search(6)
    assert [done for done, _ in best] == [16, 32, 48, 64, 80, 96]
    errors = [error for _, error in best]
    assert errors == sorted(errors, reverse=True)
    assert found[0][0] == errors[-1] < 0.35 * min(planted(s) for s in baselines(GRID).values())
    assert found[0][0] < 0.15  # at most one wrong ingredient
    assert [e for e, _ in found] == sorted(e for e, _ in found)
    assert len({schedule for _, schedule in found}) == 96
    assert all(e == planted(s) for e, s in found)


def test_an_interrupted_search_continues(tmp_path):
    """After two rounds and part of a third, which is made again; the file holds everything."""
    whole, _ = run_search(3)
    file = tmp_path / "deep" / "search.jsonl"
    run_search(2, results=file, record={"model": "abc"})
    lines = file.read_text().splitlines()
    assert len(lines) == 1 + 32
    file.write_text("\n".join([*lines, lines[3]]) + "\n")
    continued, best = run_search(3, results=file, record={"model": "abc"})
    assert [done for done, _ in best] == [48]
    assert continued == whole
    assert len(file.read_text().splitlines()) == 1 + 48
    with pytest.raises(ValueError, match="results of another search"):
        run_search(3, results=file, record={"model": "xyz"})


def on_the_mixture(name, rounds, population, proposals):
    """RMSE on noises the search has not seen: of the schedule found, and of the best published one."""
    path = PATHS[name]
    times = uniform(5, end=1 - 1e-3)
    target = Mixture.default(path)
    flow = fj.Flow(target.network("velocity"), path=path)
    x, fresh = (path.start(fj.noise(jax.random.key(k), (128 << 2 * k, 1)), 0.0) for k in (0, 1))
    goal, fresh_goal = (target.flow_map(states, 0.0, float(times[-1])) for states in (x, fresh))
    found = schedules.search(
        lambda population: schedules.errors(flow, population, x, goal),
        times,
        rounds=rounds,
        population=population,
        proposals=proposals,
    )
    known = list(baselines(times).values())
    error = float(schedules.errors(flow, [found[0][1]], fresh, fresh_goal)[0])
    return np.sqrt(error), np.sqrt(np.min(schedules.errors(flow, known, fresh, fresh_goal)))


@pytest.mark.slow
def test_a_short_search_improves_on_every_published_solver():
    """On the noises that it searched with; four rounds are too few for others."""
    path = PATHS["linear"]
    times, target = uniform(5, end=1 - 1e-3), Mixture.default(path)
    flow, x = fj.Flow(target.network("velocity"), path=path), fj.noise(jax.random.key(0), (128, 1))
    goal = target.flow_map(x, 0.0, float(times[-1]))
    errors = lambda population: schedules.errors(flow, population, x, goal)  # noqa: E731
    found = schedules.search(errors, times, rounds=4, population=32, proposals=256)
    published = set(baselines(times).values())
    assert found[0][0] < min(error for error, schedule in found if schedule in published)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "linear"])
def test_a_searched_schedule_halves_the_error_at_five_evaluations(name):
    mine, best = on_the_mixture(name, rounds=14, population=32, proposals=512)
    assert mine < 0.5 * best

"""The machines of searches without a network: accounting, selection, weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.search import RBF, SMC, SVDD, BestOfN, CoDe, SoP, falling
from flowjax.search.base import Draws, Seen


def seen(reward, x=None):
    """Rows whose states are numbers of their own, (rows,)."""
    reward = jnp.asarray(reward, jnp.float32)
    x = jnp.zeros_like(reward) if x is None else jnp.asarray(x, jnp.float32)
    return Seen(t=jnp.zeros_like(reward), x=x, velocity=x, data=x, reward=reward)


begin = jax.jit(lambda search, draws, seen: search.begin(None, draws, seen), static_argnums=0)
update = jax.jit(
    lambda search, draws, state, seen, number: search.update(None, draws, state, seen, number), static_argnums=0
)


@functools.partial(jax.jit, static_argnums=0)
def played(search, start, rewards):
    """The reports after each round, and the answer; the states are the numbers of the proposals."""
    draws = Draws(key=jax.random.key(0), event=())
    x = jnp.arange(1, rewards.size + 1, dtype=jnp.float32).reshape(rewards.shape)

    def body(state, given):
        state = search.update(None, draws, state, seen(*given[1:]), given[0])
        return state, search.report(state)

    rounds = (jnp.arange(len(rewards)), rewards, x)
    state, reports = jax.lax.scan(body, search.begin(None, draws, seen(start)), rounds)
    return reports, search.answer(draws, state)


def play(search, start, rewards):
    reports, answer = played(search, jnp.asarray(start, jnp.float32), jnp.asarray(rewards, jnp.float32))
    return jax.tree.map(np.asarray, reports), answer


def test_rollover_accounting_of_the_paper():
    search = RBF(budget=500)
    assert search.quotas.tolist() == [22] * 9
    assert (search.starts, search.rows, search.rounds, search.evaluations) == (50, 2, 224, 498)
    assert search.evaluations <= 499
    never, _ = play(search, np.ones(50), np.zeros((224, 2)))
    for search_stage in never["stage"].T:
        np.testing.assert_array_equal(search_stage, np.minimum(np.arange(1, 225) // 22, 8))
    assert np.all(never["quota"] == 22)
    always, _ = play(search, np.zeros(50), np.arange(1, 225)[:, None] * np.ones((1, 2)))
    np.testing.assert_array_equal(always["stage"][:, 0], np.minimum(np.arange(1, 225), 8))
    assert np.all(always["quota"][7:] == 22 + 8 * 21)


def by_hand(search, start, rewards):
    """RBF in plain Python, search by search, as its paper says it; rewards are (rounds, searches, at once)."""
    quota_of = int((search.budget - search.starts) / (search.steps * search.searches))
    answers, stages = [], []
    for b in range(search.searches):
        best = max(start.reshape(search.searches, -1)[b])
        stage, quota, used, top, trace = 0, quota_of, 0, None, []
        for proposals in rewards[:, b]:
            for reward in proposals:
                used += 1
                top = reward if top is None else max(top, reward)
                better = reward > best
                best = max(best, reward)
                if stage == search.steps - 2 or not (better or used == quota):
                    continue
                quota = quota_of + (quota - used if better else 0)
                stage, used, last, top = stage + 1, 0, top, None
                break  # what is left of the round is wasted
            trace.append(stage)
        answers.append(last if top is None else top)
        stages.append(trace)
    return max(answers), np.array(stages).T


@pytest.mark.parametrize("at_once", [1, 3])
def test_rollover_of_random_rewards(at_once):
    """Rewards that rise slowly: some stages end early, some after their quota."""
    search = RBF(budget=200, searches=3, candidates=4, steps=6, at_once=at_once)
    rng = np.random.default_rng(at_once)
    rewards = rng.normal(size=(search.rounds, 3, at_once)) + np.linspace(0, 2, search.rounds)[:, None, None]
    rewards = rewards.astype(np.float32)
    start = rng.normal(size=12).astype(np.float32)
    reports, answer = play(search, start, rewards.reshape(search.rounds, -1))
    expected, stages = by_hand(search, start, rewards)
    np.testing.assert_array_equal(reports["stage"], stages)
    assert len(np.unique(stages)) == 5
    assert float(answer.reward) == expected
    assert rewards.ravel()[int(answer.x) - 1] == expected  # the state is the one that was judged so
    assert np.all(np.diff(reports["best"], axis=0) >= 0)
    assert np.all(reports["best"][-1] >= start.reshape(3, 4).max(1))


def test_a_stage_of_impossible_samples_goes_on_from_one_of_them():
    reports, answer = play(RBF(budget=60, searches=1, candidates=4, steps=4), np.zeros(4), np.full((55, 1), -np.inf))
    assert reports["stage"][-1, 0] == 2
    assert float(answer.x) == 29  # the first proposal of the last stage: quotas are 14


def test_value_based_decoding_takes_the_best_of_each_step():
    search = SVDD(budget=23, searches=2, steps=4)
    assert (search.quotas.tolist(), search.rounds, search.evaluations) == ([3, 3, 3], 3, 20)
    rewards = np.array([[5, 9, 1, 0, 0, 3], [1, 2, 1, 4, 4, 2], [0, 3, 1, 1, 2, 0]])
    reports, answer = play(search, np.zeros(2), rewards)
    assert reports["stage"].tolist() == [[1, 1], [2, 2], [2, 2]]
    assert (float(answer.reward), float(answer.x)) == (3, 14)  # of the last step alone
    falls = SVDD(budget=101, searches=1, steps=5, adaptive=True)
    assert falls.quotas.tolist() == [49, 33, 17, 1]
    assert falls.evaluations == 101
    pairs = SVDD(budget=101, searches=1, steps=5, adaptive=True, at_once=2)
    assert np.all(pairs.quotas % 2 == 0)
    assert (pairs.quotas.sum(), pairs.rounds) == (100, 50)


@pytest.mark.parametrize(("total", "steps"), [(500, 10), (250, 10), (11, 10), (10, 10), (77, 7), (5, 1)])
def test_falling_numbers_of_particles(total, steps):
    found = falling(total, steps)
    assert found.sum() == total
    assert found.min() >= 1
    assert np.all(np.diff(found) <= 0)
    falls = -np.diff(found)
    assert steps < 3 or falls.max() - falls.min() <= 1  # what division leaves


def test_falling_numbers_are_those_of_the_program():
    """500 over 10: d = int(2 490 / 90) = 10, n0 = int((500 + 450) / 10) = 95."""
    assert falling(500, 10).tolist() == [95, 85, 75, 65, 55, 45, 35, 25, 15, 5]


def test_equal_weights_keep_all_particles():
    """Constant rewards: nobody is drawn again, and nobody is preferred."""
    search = SMC(budget=40, steps=4, temperature=0.3)
    draws = Draws(key=jax.random.key(3), event=())
    cloud = begin(search, draws, seen(np.full(10, 0.7)))
    for number in range(3):
        np.testing.assert_array_equal(cloud.parents, np.arange(10))
        np.testing.assert_array_equal(cloud.weights, cloud.weights[0])
        cloud = update(search, draws, cloud, seen(np.full(10, 0.7)), number)
    assert cloud.here.reward.shape == (10,)


def test_particles_are_drawn_by_their_weights():
    """Often enough: exp(r / lam) of four particles, then exp of what their children gained."""
    search = SMC(budget=4_000, steps=2, temperature=0.5)
    draws = Draws(key=jax.random.key(0), event=())
    reward = np.arange(2_000) % 4 * 0.25
    cloud = begin(search, draws, seen(reward))
    share = np.bincount(np.asarray(cloud.parents) % 4, minlength=4) / 2_000
    law = np.exp(np.arange(4) * 0.5)
    np.testing.assert_allclose(share, law / law.sum(), atol=0.045)  # four standard errors
    assert np.all(cloud.carried == 0)
    grown = update(search, draws, cloud, seen(np.ones(2_000)), 0)
    np.testing.assert_allclose(grown.weights, (1 - reward[np.asarray(cloud.parents)]) / 0.5, rtol=1e-6)
    rare = SMC(budget=40, steps=4, threshold=0.01)  # an effective number above 0.1: nobody is drawn, weights add up
    cloud = begin(rare, draws, seen(np.arange(10)))
    np.testing.assert_array_equal(cloud.parents, np.arange(10))
    cloud = update(rare, draws, cloud, seen(np.arange(10) * 3), 0)
    np.testing.assert_allclose(cloud.weights, np.arange(10) * 3)


def test_impossible_particles_have_no_children():
    search = SMC(budget=20, steps=2)
    draws = Draws(key=jax.random.key(0), event=())
    cloud = begin(search, draws, seen([-np.inf] * 8 + [1.0, 1.0]))
    assert set(cloud.parents.tolist()) <= {8, 9}
    nobody = begin(search, draws, seen([-np.inf] * 10))
    assert np.all(np.isfinite(update(search, draws, nobody, seen(np.ones(10)), 0).here.reward))


def test_what_the_answer_of_particles_is():
    draws, start, last = Draws(key=jax.random.key(0), event=()), np.zeros(4), [5.0, 1.0, 0.0, 2.0]
    found = {}
    for way in ("reward", "weight", "sample"):
        search = SMC(budget=12, steps=3, pick=way, threshold=1e-6)
        cloud = begin(search, draws, seen(start))
        for number, reward in enumerate(([9.0, 1.0, 0.0, 0.0], last)):
            cloud = update(search, draws, cloud, seen(reward), number)
        found[way] = float(search.answer(draws, cloud).reward)
    assert found == {"reward": 5.0, "weight": 5.0, "sample": 5.0}
    # Drawn before every step, weights are what was gained since.
    search = SMC(budget=12, steps=3, pick="weight")
    cloud = begin(search, draws, seen([9.0, 0.0, 0.0, 0.0]))
    assert set(cloud.parents.tolist()) == {0}
    cloud = update(search, draws, cloud, seen([9.0, 7.0, 6.0, 5.0]), 0)
    gained = np.asarray(cloud.here.reward[cloud.parents]) + np.array([0.0, 0.0, 1.0, 0.0])
    cloud = update(search, draws, cloud, seen(gained), 1)
    assert int(jnp.argmax(cloud.weights)) == 2


def test_blocks_select_at_their_ends():
    search = CoDe(budget=32, searches=2, steps=6, block=2)
    assert (search.particles, search.judged.tolist()) == (3, [False, False, True, False, True, True])
    draws = Draws(key=jax.random.key(0), event=())
    state = begin(search, draws, seen([0.0, 0.0], [1.0, 2.0]))
    assert state.x.tolist() == [1, 1, 1, 2, 2, 2]
    moved = seen([0, 5, 1, 2, 0, 1], [10, 11, 12, 13, 14, 15])
    assert update(search, draws, state, moved, 0).x.tolist() == [10, 11, 12, 13, 14, 15]
    assert update(search, draws, state, moved, 1).x.tolist() == [11, 11, 11, 13, 13, 13]


def test_turns_of_the_program():
    """From 0.88 back by 0.78 and forth by 0.81, four times."""
    search = SoP(budget=500)
    np.testing.assert_allclose(search.ends, [[0.1, 0.13, 0.16, 0.19], [0.91, 0.94, 0.97, 1.0]])
    assert (search.turns, search.particles, search.judged.sum()) == (4, 15, 4)
    assert search.evaluations == 2 * 4 + 4 * 4 * 2 * 15
    assert SoP(budget=168).particles == 5  # the program's own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RBF(budget=60), "budget=60 is too small for 50 first states and one proposal for each step"),
        (lambda: RBF(budget=100, at_once=60), "no room for at_once=60"),
        (lambda: SVDD(budget=10), "SVDD needs at least 20"),
        (lambda: SVDD(budget=24, finish=5), "SVDD needs at least 25"),
        (lambda: CoDe(budget=10), "CoDe needs at least 20"),
        (lambda: SMC(budget=9), "SMC needs at least 10"),
        (lambda: SMC(budget=99, adaptive=True, threshold=0.5), "threshold=1"),
        (lambda: SMC(pick="best"), "pick='best' is not one of"),
        (lambda: BestOfN(budget=9), "BestOfN needs at least 10"),
        (lambda: SoP(budget=30), "SoP needs at least 40"),
        (lambda: SoP(forward=0.9), "forward=0.9 must be below start=0.88"),
        (lambda: RBF(steps=1), "steps must be at least 2"),
        (lambda: RBF(times="sideways"), "unknown times 'sideways'"),
        (lambda: RBF(times=(0.0, 0.5, 1.0)), "times holds 3 times, and steps=10 needs 11"),
        (lambda: RBF(path=fj.paths.Interpolant()), "path must be one of flowjax.paths"),
        (lambda: RBF(diffusion="wide"), "form='wide'"),
        (lambda: RBF(dps=-1.0), "dps must be"),
        (lambda: RBF(dps_over="all"), "dps_over='all' is not one of"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_specs_make_searches():
    text = "rbf(budget=100, path=None, candidates=5, times=uniform(end=0.9), diffusion=g_linear(norm=2), steps=4)"
    search = fj.build("search", text)
    assert search == RBF(
        budget=100,
        path=None,
        candidates=5,
        times="uniform(end=0.9)",
        diffusion=fj.solvers.Factor(form="g_linear", norm=2),
        steps=4,
    )
    assert fj.build("search", fj.specs.text(fj.specs.spec_of("search", search))) == search
    np.testing.assert_allclose(search.grid(fj.paths.Linear()), np.linspace(0, 0.9, 5))
    assert set(fj.catalogue.searches) == {"rbf", "svdd", "code", "smc", "best_of_n", "sop"}
    assert "Rollover Budget Forcing" in fj.cite(search)

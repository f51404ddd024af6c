"""Searches on networks: what they reduce to, independence of batch and devices, rewards of every kind, failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flowjax as fj
from flowjax.fields import Converted
from flowjax.search import RBF, SVDD, BestOfN, CoDe, Reward, SearchError, SoP, find, on_host
from flowjax.search.base import Draws, Seen, Way

LINEAR, VP, KEY = fj.paths.Linear(), fj.paths.VP(), jax.random.key(1)
LAW = fj.oracles.Mixture.default(LINEAR, dim=2)
FLOW = fj.Flow(LAW.network(), path=LINEAR)
SMALL = SVDD(budget=26, searches=2, steps=4, path=None)


def near(x):
    return -jnp.sum((x - 0.3) ** 2, axis=1)


# ----------------------------------------------------------------------------------------------------------- the way


@pytest.mark.parametrize(("t", "expected"), [(0.3, 0.8634108763), (0.6, 2.6440092264), (0.9, 3.7764876161)])
def test_velocity_of_a_linear_network_along_vp(t, expected, x64):
    """N(1.5, 0.4^2) at x = 0.7: b = m alpha' + C' / (2 C) (x - alpha m) with C = sigma^2 + alpha^2 s^2."""
    law = fj.oracles.Gaussian(mean=1.5, std=0.4, path=LINEAR)
    field = Converted(fj.Flow(law.network(), path=LINEAR), path=VP)
    found = field.velocity(jnp.float64(t), jnp.array([0.7]))
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    half = sigma * VP.dsigma(t) + alpha * VP.dalpha(t) * 0.16
    closed = 1.5 * VP.dalpha(t) + half / (sigma**2 + alpha**2 * 0.16) * (0.7 - alpha * 1.5)
    np.testing.assert_allclose([float(found[0]), closed], expected, rtol=1e-8)


def test_data_and_noise_are_those_of_the_network_at_equal_noise(x64):
    field, t, x = Converted(FLOW, path=VP), 0.55, jnp.array([[0.3, -0.8]])
    snr = VP.alpha(t) / VP.sigma(t)
    tau = snr / (1 + snr)
    own = x / (VP.sigma(t) / LINEAR.sigma(tau))
    for kind in ("data", "noise"):
        np.testing.assert_allclose(getattr(field, kind)(t, x), getattr(FLOW, kind)(tau, own), rtol=1e-7)


@pytest.mark.parametrize("path", [LINEAR, VP], ids=["linear", "vp"])
@pytest.mark.parametrize("diffusion", [0.0, 0.4, "g_square", "g_sin", "g_clipping"])
def test_moves_keep_the_marginals(path, diffusion, x64):
    """Gaussian data: all is affine, so mean and variance follow exactly; the error falls with the step."""
    law = fj.oracles.Gaussian(mean=1.5, std=0.4, path=path)

    def moments(n):
        times = np.linspace(0.1, 0.9, n + 1)
        t = jnp.asarray(np.repeat(times[:-1], 3))
        x, noise = (jnp.asarray(np.tile(row, n)) for row in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
        velocity = law.predict("velocity", t, x)
        here = Seen(t=t, x=x, velocity=velocity, data=x, reward=x)
        moved = Way(path=path, times=times, diffusion=diffusion).move(here, jnp.asarray(np.repeat(times[1:], 3)), noise)
        offset, one, z = np.asarray(moved).reshape(n, 3).T
        mean, variance = 1.5 * path.alpha(0.1), path.sigma(0.1) ** 2 + (0.4 * path.alpha(0.1)) ** 2
        for a, b, c in zip(offset, one - offset, z - offset, strict=True):
            mean, variance = a + b * mean, b**2 * variance + c**2
        return np.array([mean - 1.5 * path.alpha(0.9), variance - path.sigma(0.9) ** 2 - (0.4 * path.alpha(0.9)) ** 2])

    coarse, fine = moments(200), moments(400)
    assert np.abs(fine).max() < 0.02
    assert 0.8 < np.log2(np.abs(coarse).max() / np.abs(fine).max()) < 1.3


def test_forms_of_the_factor_of_noise():
    """g at r = 0.8 with norm 2, computed by hand."""
    expected = {"sigma": 1.6, "constant": 2.0, "sin": 1.902113, "linear": 1.6, "square": 1.28, "clipping": 1.2}
    expected |= {"exp": 0.036631, "tan": 6.155367}
    for form, g in expected.items():
        factor = fj.solvers.Factor(form=f"g_{form}", norm=2.0)
        np.testing.assert_allclose(factor.value(LINEAR, 0.2), g**2 / 2, rtol=1e-4)
    assert float(fj.solvers.Factor(form="g_square").over_sigma(LINEAR, 1.0)) == 0
    q = np.arange(11) / 10
    np.testing.assert_allclose(fj.times.circular(10), 1 - np.sqrt(1 - q**2), atol=1e-15)


def test_gradient_moves():
    """x' = x + h v + strength * gradient / |reward|, or over its length, or over one; nothing where |reward| is 0."""
    x, gradient = jnp.ones((3, 2)), jnp.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    here = Seen(t=jnp.zeros(3), x=x, velocity=x, data=x, reward=jnp.array([-2.0, 0.0, 1.0]), gradient=gradient)
    for over, sizes in {"reward": [2, np.inf, 1], "gradient": [5, 5, 1], "one": [1, 1, 1]}.items():
        moved = Way(path=LINEAR, times=np.zeros(1), dps=0.1, dps_over=over).move(here, jnp.full(3, 0.5))
        np.testing.assert_allclose(moved, 1.5 + 0.1 * gradient / np.array(sizes, np.float32)[:, None], rtol=1e-6)


# --------------------------------------------------------------------------------------------------- what it reduces to


def starts(rows, num=3):
    """Noise of first states, of searches that have one each."""
    draw = lambda i: Draws(key=jax.random.fold_in(KEY, i), event=(2,)).normal(jnp.arange(rows), jnp.zeros(rows, int))  # noqa: E731
    return jax.vmap(draw)(jnp.arange(num, dtype=jnp.uint32))


@pytest.mark.slow
def test_without_noise_it_is_the_ode():
    """All proposals of a search are the same then, and the answer is the better one of two Euler solutions."""
    euler = fj.solve(FLOW, fj.solvers.Euler(), starts(2).reshape(6, 2), fj.times.uniform(4)).x
    best = jnp.take_along_axis(euler.reshape(3, 2, 2), jnp.argmax(near(euler).reshape(3, 2), 1)[:, None, None], 1)[:, 0]
    for search in (
        SVDD(budget=26, steps=4, path=None, times="uniform", diffusion=0.0),
        RBF(budget=26, candidates=1, steps=4, path=None, times="uniform", diffusion=0.0),
        BestOfN(budget=8, steps=4),
    ):
        found = find(FLOW, search, near, (3, 2), key=KEY)
        np.testing.assert_allclose(found.x, best, atol=1e-5)
        np.testing.assert_allclose(found.reward, near(best), atol=1e-5)


@pytest.mark.slow
def test_blocks_of_one_step_and_parts_of_a_step_change_nothing():
    whole = find(FLOW, SMALL, near, (3, 2), key=KEY)
    blocks = CoDe(budget=26, searches=2, steps=4, block=1, path=None)
    parts = SVDD(budget=26, searches=2, steps=4, path=None, at_once=1)
    for search in (blocks, parts):
        found = find(FLOW, search, near, (3, 2), key=KEY)
        np.testing.assert_allclose(found.x, whole.x, atol=1e-5)
        assert found.evaluations == whole.evaluations == 26


@pytest.mark.slow
def test_the_winner_is_finished():
    """Along the way to t = 1 a blurred prediction between two points becomes one of them."""
    law = fj.oracles.Mixture(weights=np.ones(2), means=np.array([[-1.0], [1.0]]), stds=0.01, path=LINEAR)
    flow, search = fj.Flow(law.network(), path=LINEAR), SVDD(budget=60, steps=4, times="uniform(end=0.5)", finish=12)
    reward = lambda x: -jnp.abs(x[:, 0] - 0.4)  # noqa: E731 - best between the points
    found = find(flow, search, reward, (6, 1), key=KEY)
    assert np.all(np.abs(np.abs(found.x) - 1) < 0.05)
    np.testing.assert_allclose(found.reward, reward(found.x), rtol=1e-6)
    assert found.history["reward"][:, -1].max() > found.reward.max() + 0.3  # what predictions promised
    assert found.evaluations == search.evaluations <= 60


# ------------------------------------------------------------------------------------------------------ rewards, counts


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [RBF(budget=30, candidates=2, steps=4), SoP(budget=60, searches=2, start=0.7, forward=0.5, backward=0.7)],
    ids=["rbf", "sop"],
)
def test_a_reward_on_the_host_finds_the_same(search):
    asked = []

    @on_host
    def judge(x):
        asked.append(len(x))
        return -np.sum((x - 0.3) ** 2, axis=1)

    compiled = find(FLOW, search, near, (2, 2), key=KEY, held_out={"first": lambda x: x[:, 0]})
    found = find(FLOW, search, judge, (2, 2), key=KEY)
    np.testing.assert_allclose(found.x, compiled.x, atol=1e-5)
    np.testing.assert_allclose(found.history["reward"], compiled.history["reward"], atol=1e-5)
    np.testing.assert_array_equal(compiled.rewards["first"], compiled.x[:, 0])
    assert sum(asked) == 2 * search.reward_calls == 2 * int(found.reward_calls)
    assert int(found.evaluations) == int(compiled.evaluations) == search.evaluations
    assert found.history["evaluations"][-1] == search.evaluations
    np.testing.assert_allclose(found.history["reward"].max(1), found.history["reward"][:, -1])


def test_a_guided_pair_is_one_evaluation_and_rewards_may_know_the_condition():
    flow = fj.Flow(LAW.network(), path=LINEAR, null=3)
    field, cond = fj.guide(flow, fj.guidance.CFG(scale=2.0)), jnp.array([0, 2], jnp.int32)
    seen = {"label": lambda x, cond: 0.0 * x[:, 0] + cond.astype(x.dtype), "near": near}
    found = find(field, SMALL, seen, (2, 2), key=KEY, cond=cond)
    assert (int(found.evaluations), int(found.network_calls)) == (26, 52)
    assert found.rewards["label"].tolist() == [0, 2]
    np.testing.assert_allclose(found.rewards["label"] + found.rewards["near"], found.reward, rtol=1e-6)


@pytest.mark.slow
def test_gradients_help():
    far = lambda x: -jnp.sum((x - 3) ** 2, axis=1)  # noqa: E731
    plain, pushed = (
        find(FLOW, SVDD(budget=26, steps=4, path=None, dps=dps, dps_over="one"), far, (8, 2), key=KEY)
        for dps in (0.0, 0.5)
    )
    assert pushed.reward.mean() > plain.reward.mean()
    assert int(pushed.evaluations) == 26
    assert int(pushed.reward_calls) == 26  # of the first states too


@pytest.mark.slow
def test_spread_over_devices_the_winner_is_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    for num in (1, 8):
        alone = find(FLOW, SMALL, near, (num, 2), key=KEY)
        spread = find(FLOW, SMALL, near, (num, 2), key=KEY, sharding=sharding)
        np.testing.assert_allclose(spread.x, alone.x, atol=1e-5)
        assert spread.evaluations == alone.evaluations == 26


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_reward_that_is_nan_keeps_what_was_found():
    def broken(x, cond):
        return jnp.where((cond == 1) & (x[:, 0] > 0.5), jnp.nan, near(x))

    cond, flow = jnp.array([0, 1], jnp.int32), fj.Flow(lambda x, t, cond: FLOW.network(x, t), path=LINEAR)
    whole = find(flow, SMALL, near, (2, 2), key=KEY, cond=cond)
    with pytest.raises(SearchError, match="the reward broken is NaN or infinite for 1 of 2 results") as error:
        find(flow, SMALL, broken, (2, 2), key=KEY, cond=cond)
    found = error.value.found
    assert found.failed.tolist() == [False, True]
    np.testing.assert_allclose(found.x[0], whole.x[0], atol=1e-6)  # its neighbour is not touched
    inside = jax.jit(lambda key: find(flow, SMALL, broken, (2, 2), key=key, cond=cond))(KEY)
    assert inside.failed.tolist() == [False, True]
    with pytest.raises(SearchError, match="the held-out reward broken is NaN"):
        find(flow, SMALL, near, (2, 2), key=KEY, cond=cond, held_out={"broken": lambda x: jnp.full(len(x), jnp.nan)})


def test_a_reward_that_raises_keeps_what_was_found():
    calls = []

    @on_host
    def server(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise ConnectionError("the judge is gone")
        return -np.sum((x - 0.3) ** 2, axis=1)

    with pytest.raises(SearchError, match="the reward server raised ConnectionError: the judge is gone") as error:
        find(FLOW, SMALL, server, (2, 2), key=KEY)
    found = error.value.found
    assert len(calls) == 3
    assert found.failed.all()
    np.testing.assert_allclose(found.reward, near(found.x), rtol=1e-5)
    np.testing.assert_allclose(found.reward, found.history["reward"][:, -1])


@pytest.mark.parametrize(
    ("reward", "more", "message"),
    [
        (lambda x: x, {}, "answers with shape"),
        (lambda x: [float(row[0]) for row in x], {}, "cannot be compiled.*on_host"),
        (lambda x: x.missing, {}, "raises AttributeError"),
        (lambda x, t: near(x), {}, "is called with samples"),
        ("judges:near", {}, "a reward is a function of samples"),
        (None, {}, "a search needs a reward"),
        ({"a": near}, {"held_out": {"a": near}}, "a is a reward and held out"),
        (on_host(near), {"search": SVDD(budget=26, steps=4, dps=1.0)}, "dps=1.0 needs the gradient"),
        (near, {"search": SVDD}, "search must be an object such as"),
        (near, {"search": SVDD(budget=26, steps=4, path=None, diffusion="sbdm")}, "start the times above it"),
        (near, {"field": fj.Flow(LAW.network(), path=LINEAR, prediction="noise")}, "does not determine"),
        (near, {"key": 3}, "key must be a random key"),
        (near, {"shape": (0, 2)}, "shape"),
    ],
)
def test_what_cannot_be_searched_is_refused(reward, more, message):
    given = {"field": FLOW, "search": SMALL, "shape": (2, 2), "key": KEY} | more
    field, search, shape = (given.pop(name) for name in ("field", "search", "shape"))
    with pytest.raises(ValueError, match=message) as error:
        find(field, search, reward, shape, **given)
    assert "\n" not in str(error.value)


def test_memories_are_refused():
    field = fj.guide(fj.Flow(LAW.network(), path=LINEAR, null=3), fj.guidance.APG(scale=4.0))
    with pytest.raises(ValueError, match="carries a memory"):
        find(field, SMALL, near, (2, 2), key=KEY, cond=jnp.zeros(2, jnp.int32))


def test_rewards_know_how_they_are_called():
    assert not Reward(near).host
    assert on_host(near).host
    assert on_host(near).name == "near"
    both = Reward(lambda x, *, cond: x[:, 0] + cond)
    assert both(jnp.ones((1, 2)), jnp.ones(1)).tolist() == [2]


@pytest.mark.slow
def test_order_of_searches_on_many_steps():
    """Eight modes on a circle, one is wanted; 40 steps, means over three seeds.

    In as few as ten steps value-based decoding is ahead: every early proposal is better than all
    before it there, so that RBF hardly selects.
    """
    angles = np.arange(8) * np.pi / 4
    means = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    law = fj.oracles.Mixture(weights=np.ones(8), means=means, stds=0.2, path=LINEAR)
    flow = fj.Flow(law.network(), path=LINEAR)
    wanted = lambda x: -jnp.sum((x - jnp.array([[3.0, 0.0]])) ** 2, axis=1) / (2 * 0.2**2)  # noqa: E731
    searches = {
        "rbf": RBF(steps=40),
        "svdd": SVDD(steps=40),
        "svdd, own path": SVDD(steps=40, path=None),
        "best": BestOfN(steps=40),
    }
    mean = {
        name: np.mean([find(flow, search, wanted, (32, 2), key=jax.random.key(k)).reward.mean() for k in range(3)])
        for name, search in searches.items()
    }
    assert mean["rbf"] > mean["svdd"] > mean["best"]
    assert mean["svdd, own path"] > mean["best"]


def test_what_is_held_out_is_found_out_before_the_search():
    asked = []

    @on_host
    def server(x):
        asked.append(len(x))
        return -np.sum((x - 0.3) ** 2, axis=1)

    with pytest.raises(ValueError, match="raises AttributeError"):
        find(FLOW, SMALL, server, (2, 2), key=KEY, held_out={"h": lambda x: x.missing})
    assert not asked


def test_a_judge_that_is_gone_at_the_end_leaves_the_best_until_there():
    calls, last = [], 0
    search = SVDD(budget=30, searches=2, steps=4, path=None, finish=2)

    @on_host
    def server(x):
        calls.append(len(x))
        if len(calls) == last:
            raise ConnectionError("the judge is gone")
        return -np.sum((x - 0.3) ** 2, axis=1)

    find(FLOW, search, server, (2, 2), key=KEY)
    last = 2 * len(calls)
    with pytest.raises(SearchError, match="the judge is gone") as error:
        find(FLOW, search, server, (2, 2), key=KEY)
    assert len(calls) == last
    found = error.value.found
    np.testing.assert_allclose(found.reward, found.history["reward"][:, -1])
    np.testing.assert_allclose(found.reward, near(found.x), rtol=1e-5)


def test_rules_that_couple_samples_are_refused():
    law = fj.oracles.Mixture.default(LINEAR, dim=2)
    flow = fj.Flow(law.network(), path=LINEAR, null=law.num_classes)
    with pytest.raises(ValueError, match="RAAG couples the samples of a batch"):
        find(fj.guide(flow, fj.guidance.RAAG(ratio="batch")), SMALL, near, (2, 2), key=KEY, cond=jnp.array([0, 1]))


def test_toy_rewards():
    x = jnp.array([[1.0, 3.0], [0.0, 0.0]])
    assert fj.search.brightness(x).tolist() == [2.0, 0.0]
    assert fj.search.nearness(jnp.array([[1.0, 1.0]]))(x).tolist() == [-4.0, -2.0]
    np.testing.assert_allclose(fj.search.log_density(LAW)(x), LAW.log_density(1.0, x), rtol=1e-6)


def test_the_way_of_another_path_ends_where_the_own_one_does():
    """Both are the same flow map at equal noise."""
    own = fj.solve(
        FLOW, fj.solvers.RK4(), LINEAR.start(fj.noise(KEY, (16, 2)), 0.02), fj.times.uniform(100, 0.02, 0.98)
    ).x
    field = Converted(FLOW, path=VP)
    times = np.linspace(float(VP.time(np.float64(LINEAR.lam(0.02)))), float(VP.time(np.float64(LINEAR.lam(0.98)))), 201)
    start = LINEAR.start(fj.noise(KEY, (16, 2)), 0.02) * np.float32(VP.sigma(times[0]) / LINEAR.sigma(0.02))
    other = fj.solve(field, fj.solvers.RK4(), start, times).x * np.float32(LINEAR.alpha(0.98) / VP.alpha(times[-1]))
    np.testing.assert_allclose(other, own, atol=5e-3)

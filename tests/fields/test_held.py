"""Fields that answer with an earlier prediction: which steps they save, and what they say at those."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problem import PATHS, Executions

import flowjax as fj
from flowjax import specs
from flowjax.fields import EveryNth, FirstBlock, MagCache, TeaCache
from flowjax.solvers import DPMSolver, Euler, Heun
from flowjax.times import uniform

LINEAR = PATHS["linear"]
LAW = fj.oracles.Mixture.default(LINEAR)
FLOW = fj.Flow(LAW.network("velocity"), path=LINEAR)
X = fj.noise(jax.random.key(0), (16, 1))
TIMES = uniform(20, 1e-3, 1 - 1e-3)


def mask(result):
    return np.asarray(result.report["skipped"])


@pytest.mark.parametrize("keep", ["velocity", "data", "noise"])
def test_every_nth_says_what_it_said(keep):
    """By hand, in a loop."""
    found = fj.solve(EveryNth(FLOW, n=3, keep=keep), Euler(), X, TIMES)
    x, held = X, None
    for j, (s, t) in enumerate(itertools.pairwise(TIMES)):
        if j % 3 == 0 or j == 19:
            held = getattr(FLOW, keep)(s, x)
        x = x + (t - s) * LINEAR.convert(held, given=keep, to="velocity", t=s, x=x)
    np.testing.assert_allclose(found.x, x, rtol=2e-3, atol=2e-4)
    assert (int(found.evaluations), np.flatnonzero(~mask(found)).tolist()) == (8, [0, 3, 6, 9, 12, 15, 18, 19])


def test_the_first_steps_and_the_last_reach_the_network():
    executions = Executions()
    flow = fj.Flow(executions.wrap(lambda x, t, cond=None: jnp.sin(x)), path=LINEAR)
    result = jax.block_until_ready(fj.solve(EveryNth(flow, n=20, warmup=0.3), DPMSolver(), X, TIMES))
    assert np.flatnonzero(~mask(result)).tolist() == [0, 1, 2, 3, 4, 5, 19]
    assert executions.take() == int(result.evaluations) == 7


def test_changes_of_the_input_add_up_to_the_threshold():
    """Against the rule on the host, along the run that the field itself makes; with a polynomial too."""
    for polynomial in (None, [2.0, 0.5, 0.01]):
        field = TeaCache(FLOW, threshold=0.1, indicator="input", coefficients=polynomial)
        result = fj.solve(field, Euler(), X, TIMES, trajectory=True)
        states, total, expected = np.asarray(result.trajectory, np.float64), 0.0, [False]
        for j in range(1, 20):
            change = np.mean(np.abs(states[j] - states[j - 1])) / np.mean(np.abs(states[j - 1]))
            total += change if polynomial is None else max(np.polyval(polynomial, change), 0)
            assert float(result.report["measure"][j]) == pytest.approx(total, rel=1e-3)
            expected.append(total < 0.1 and j < 19)
            total = total if expected[-1] else 0.0
        assert mask(result).tolist() == expected
        assert 3 < sum(expected) < 18


def test_sizes_decide_before_the_run():
    """Against the rule on the host."""
    ratios = np.linspace(1.08, 0.9, 20)
    result = fj.solve(MagCache(FLOW, ratios=ratios, threshold=0.12, most_skips=3), Euler(), X, TIMES)
    r, e, row, expected = 1.0, 0.0, 0, []
    for j, ratio in enumerate(ratios):
        r *= ratio
        e += abs(1 - r)
        expected.append(4 <= j < 19 and e < 0.12 and row < 3)
        r, e, row = (r, e, row + 1) if expected[-1] else (1.0, 0.0, 0)
    assert mask(result).tolist() == expected
    assert sum(expected) > 6
    alone = fj.solve(MagCache(FLOW, ratios=ratios, threshold=0.12, most_skips=3), Euler(), X[:3], TIMES)
    np.testing.assert_allclose(alone.x, result.x[:3], rtol=1e-5)


def test_a_first_block_that_says_the_same():
    network = fj.models.DiT((4, 4, 1), patch=2, width=8, depth=2, heads=2, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(5), len(jax.tree.leaves(network))))
    network = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), network)
    flow = fj.Flow(network, path=LINEAR)
    x = fj.noise(jax.random.key(1), (2, 4, 4, 1))
    times = uniform(8, 1e-3, 1 - 1e-3)
    result = fj.solve(FirstBlock(flow, threshold=0.3), Euler(), x, times, trajectory=True)
    probe = jax.jit(lambda t, x: network.probe(x, jnp.full(2, t), None, "block"))
    called, expected = None, []
    for j, (t, state) in enumerate(zip(times[:-1], result.trajectory[:-1], strict=True)):
        residual = np.asarray(probe(jnp.float32(t), state), np.float64)
        same = called is not None and np.mean(np.abs(residual - called)) < 0.3 * np.mean(np.abs(called))
        expected.append(bool(same and j < 7))
        called = called if expected[-1] else residual
    assert mask(result).tolist() == expected
    assert 0 < sum(expected) < 7
    inner = network.blocks[0]
    h, c = network._embedded(x, jnp.full(2, 0.5), None)
    np.testing.assert_allclose(probe(jnp.float32(0.5), x), inner(h, c) - h, rtol=1e-4, atol=1e-5)
    none = fj.solve(TeaCache(flow, threshold=0.0), Euler(), x, times)
    assert int(none.evaluations) == 8


def test_a_threshold_is_an_argument_of_the_program():
    run = jax.jit(lambda field, x: fj.solve(field, Euler().bind(LINEAR, TIMES), x).evaluations)
    counts = [int(run(TeaCache(FLOW, threshold=bound, indicator="input"), X)) for bound in (0.0, 0.05, 0.2)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1] < 12, run._cache_size()) == (20, True, 1)


def test_refusals():
    for wrong, message in (
        ({"n": 0}, "n must be at least 1"),
        ({"keep": "score"}, "unknown keep 'score'"),
        ({"warmup": 1.5}, "warmup must be"),
    ):
        with pytest.raises(ValueError, match=message):
            EveryNth(FLOW, **wrong)
    for ratios in ([1.0, 0.0], 1.0, [[1.0]], ["a"]):
        with pytest.raises(ValueError, match="ratios must be"):
            MagCache(FLOW, ratios=ratios)
    with pytest.raises(ValueError, match="ratios of 3 steps, and the run has 20"):
        fj.solve(MagCache(FLOW, ratios=[1.0] * 3), Euler(), X, TIMES)
    with pytest.raises(ValueError, match=r"has no probe\(x, t, cond, what\)"):
        TeaCache(FLOW)
    with pytest.raises(ValueError, match="EveryNth needs a solver with one evaluation per step"):
        fj.solve(EveryNth(FLOW), Heun(), X, TIMES)
    with pytest.raises(ValueError, match="raw"):
        EveryNth(FLOW).check([0.5], "raw")
    field = specs.build("field", "teacache(threshold=0.2, indicator=input, coefficients=[1.0, 0.0])", field=FLOW)
    assert specs.text(specs.spec_of("field", field, field=FLOW)) == (
        "teacache(threshold=0.2, coefficients=[1.0, 0.0], indicator=input)"
    )


def test_ratios_to_the_data_say_nothing_of_the_way_back():
    field = MagCache(FLOW, ratios=[0.97] * 20)
    with pytest.raises(ValueError, match="a run to the data, and this one leads to the noise"):
        fj.solve(field, Euler(), X, TIMES[::-1], invert=True)


def test_a_share_of_the_steps_is_not_rounded_up():
    """0.15 of 100 is 15.000000596 in single precision."""
    result = fj.solve(EveryNth(FLOW, n=50, warmup=0.15), Euler(), X, uniform(100, 1e-3, 1 - 1e-3))
    assert int((~mask(result)[:20]).sum()) == 15


def test_the_network_is_not_looked_into_where_it_is_asked_elsewhere():
    network = fj.models.DiT((4, 4, 1), patch=2, width=8, depth=1, heads=2, rngs=nnx.Rngs(0))
    converted = fj.fields.Converted(fj.Flow(network, path=LINEAR), path=fj.paths.VP())
    for make in (FirstBlock, TeaCache):
        with pytest.raises(ValueError, match="a Converted asks elsewhere"):
            make(converted)
    assert TeaCache(converted, indicator="input").path == fj.paths.VP()


def test_networks_with_named_conditions_are_looked_into():
    """The decision and the answers are those of the network inside, under the vector of the conditions."""
    rngs = nnx.Rngs(0)
    inner = fj.models.DiT((4, 4, 1), patch=2, width=8, depth=2, heads=2, cond_dim=4, rngs=rngs)
    keys = iter(jax.random.split(jax.random.key(5), len(jax.tree.leaves(inner))))
    inner = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), inner)
    encoder = fj.models.LabelEncoder(3, 4, rngs=rngs)
    labels, x = jnp.array([0, 2]), fj.noise(jax.random.key(1), (2, 4, 4, 1))
    times = uniform(8, 1e-3, 1 - 1e-3)
    results = []
    for network, cond in (
        (fj.models.Conditioned(inner, {"label": encoder}), {"label": labels}),
        (inner, encoder(labels)),
    ):
        field = FirstBlock(fj.Flow(network, path=LINEAR), threshold=0.3)
        results.append(fj.solve(field, Euler(), x, times, cond))
    assert mask(results[0]).tolist() == mask(results[1]).tolist()
    assert mask(results[0]).any()
    np.testing.assert_allclose(results[0].x, results[1].x, rtol=1e-4, atol=1e-5)
    mlp = fj.models.Conditioned(fj.models.MLP(1, width=4, cond_dim=4, rngs=rngs), {"label": encoder})
    with pytest.raises(ValueError, match="a Conditioned has no probe"):
        FirstBlock(fj.Flow(mlp, path=LINEAR))

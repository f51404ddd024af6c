"""Rows learned on a mixture: better on unseen noise, never worse than the start, and gone on with after a stop."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax._pytree import pytree
from flowjax.calibration import forms, learning, least_squares
from flowjax.calibration.derivatives import derivatives, numbers
from flowjax.calibration.grids import cheapest, local_errors
from flowjax.calibration.reference import reference

LINEAR = fj.paths.Linear()


def mixture(path):
    means = 1.2 * np.random.default_rng(0).normal(size=(3, 4))
    law = fj.oracles.Mixture(weights=np.array([0.3, 0.25, 0.45]), means=means, stds=0.3, path=path)
    return fj.Flow(law.network("velocity"), path=path, prediction="velocity")


def pool(flow, seed, num, start=0.0, end=1.0, **options):
    x = flow.path.start(fj.noise(jax.random.key(seed), (num, 4)), start)
    target = reference(flow, x, fj.times.uniform(4, start, end), steps=200)[-1]
    return least_squares.Pool(field=flow, x=x, target=target, **options)


def euler(steps=4):
    return fj.solvers.rows_of(fj.solvers.Euler().bind(LINEAR, fj.times.uniform(steps)))


@pytest.fixture(scope="module")
def pools():
    flow = mixture(LINEAR)
    return [pool(flow, seed, num) for seed, num in ((1, 128), (2, 64))]


OPTIONS = dict(iterations=4, batch=64)


@pytest.mark.parametrize(
    "options",
    [{}, {"consistent": True}, {"learned": "times"}, {"history": 2}, {"distance": "huber"}, {"radius": 0.05}],
    ids=str,
)
def test_each_way_of_learning_lowers_the_error(pools, options):
    train, held = pools
    base = euler()
    found, errors = least_squares.learn([train], [held], base, jax.random.key(0), **OPTIONS | options)
    assert errors["best"] < (0.995 if "learned" in options else 0.95) * errors["start"]  # times alone give little here
    if options.get("learned") == "times":
        assert not found["weights"].any()
        assert found["gaps"].any()
    if "history" in options:
        assert found["weights"].shape == (1, 4, 2)
    wide = forms.Multistep.widened(base, options.get("history", 4))
    rows = forms.Multistep.tables(wide, LINEAR, found, 0.0, options.get("consistent", False))
    assert forms.Multistep.is_consistent(rows, LINEAR) == options.get("consistent", "learned" in options)
    x = fj.solve(train.field, fj.solvers.Learned(rows=rows), held.x, rows.times).x
    apart = float(jnp.sqrt(jnp.mean((x - held.target) ** 2)))
    np.testing.assert_allclose(apart, errors["best"], rtol=1e-4)


@pytree
class Remembering(fj.fields.FieldWrapper):
    """Adds a part of the value before."""

    field: fj.Field
    stateless = False

    def init(self, x, times=None):
        return self.field.init(x, times), jnp.zeros_like(x)

    def evaluate(self, t, x, cond, memory, *, to="velocity", **extra):
        value, inner = self.field.evaluate(t, x, cond, memory[0], to=to, **extra)
        value = value + 0.3 * memory[1]
        return value, (inner, value)


@pytest.mark.parametrize("kind", ["rows", "memory", "parallel"])
def test_derivatives_are_those_of_differences(pools, kind, x64):
    """From step to step, of a field with a memory as a whole, and of parallel points."""
    flow, x = mixture(LINEAR), jnp.asarray(pools[0].x[:3], jnp.float64)
    rows = fj.solvers.rows_of(fj.solvers.AdamsBashforth(order=3).bind(LINEAR, fj.times.uniform(4, 0.1, 0.9)))
    if kind == "parallel":
        rows = forms.parallel_starts(LINEAR, 3, 2, 0.1, 0.9)["velocity at 2 points on uniform"]
    elif kind == "memory":
        flow = Remembering(field=flow)
    final, slopes = derivatives(flow, rows, x, None)
    sampled = jax.jit(lambda rows: forms.form_of(rows).sampled(flow, rows, x, None))
    np.testing.assert_allclose(final, sampled(rows), rtol=1e-12)
    for name, part in numbers(rows).items():
        for place in np.ndindex(part.shape):
            if name == "times" and place in ((0,), (len(part) - 1,)):
                continue
            if name == "weights" and kind != "parallel" and place[1] > place[0]:
                continue
            shift = np.zeros_like(part)
            shift[place] = 1e-6
            ends = [sampled(dataclasses.replace(rows, **{name: part + s * shift})) for s in (1, -1)]
            np.testing.assert_allclose(slopes[name][place], (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)


def test_where_no_step_helps_the_start_comes_back(pools):
    """Held-out noise that wants the opposite of what is learned."""
    train, held = pools
    start = least_squares.final(held, euler(), range(64))
    twisted = dataclasses.replace(held, target=jnp.asarray(2 * start - np.asarray(held.target), jnp.float32))
    found, errors = least_squares.learn([train], [twisted], euler(), jax.random.key(0), **OPTIONS)
    assert errors["best"] == errors["start"]
    assert not any(part.any() for part in found.values())


def test_features_decide_what_is_near(pools):
    """Of two features, whose error alone falls."""
    train, held = pools
    options = OPTIONS | {"features": lambda x: x[:, :2]}
    found, _ = least_squares.learn([train], [held], euler(), jax.random.key(0), **options)
    rows = forms.Multistep.tables(forms.Multistep.widened(euler(), 4), LINEAR, found, 0.0, False)
    before, after = (least_squares.final(held, r, range(64)) - np.asarray(held.target) for r in (euler(), rows))
    assert np.abs(after[:, :2]).mean() < np.abs(before[:, :2]).mean()


def test_a_range_of_scales(pools):
    """One polynomial serves both ends and what lies between."""
    flow = mixture(LINEAR)
    ends = [pool(flow, seed, 64, position=position) for seed, position in ((3, -1.0), (4, 1.0))]
    ends[1] = dataclasses.replace(ends[1], target=1.1 * ends[1].target)  # what another scale makes of it
    options = OPTIONS | {"degree": 1}
    found, errors = least_squares.learn(ends, ends, euler(), jax.random.key(0), **options)
    assert errors["best"] < 0.8 * errors["start"]
    wide = forms.Multistep.widened(euler(), 4)
    low, high = (forms.Multistep.tables(wide, LINEAR, found, u, False) for u in (-1.0, 1.0))
    assert not np.allclose(low.weights, high.weights)


def test_an_interrupted_learning_goes_on(pools, tmp_path):
    train, held = pools
    whole = least_squares.learn([train], [held], euler(), jax.random.key(0), **OPTIONS)[0]

    class Stop(Exception):
        pass

    def stop(done, total, best):
        raise Stop

    file = tmp_path / "partial"
    options = OPTIONS | {"partial": file, "record": {"model": "a"}}
    with pytest.raises(Stop):
        least_squares.learn([train], [held], euler(), jax.random.key(0), progress=stop, **options)
    seen = []
    more = options | {"progress": lambda done, total, best: seen.append(done)}
    again = least_squares.learn([train], [held], euler(), jax.random.key(0), **more)[0]
    assert seen == [2, 3, 4]
    for name, part in whole.items():
        np.testing.assert_array_equal(again[name], part)
    with pytest.raises(ValueError, match="was calibrated for model="):
        least_squares.learn([train], [held], euler(), jax.random.key(0), **options | {"record": {"model": "b"}})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch"),
        ({"decay": 1.0}, "decay"),
        ({"learned": "nothing"}, "unknown learned"),
        ({"history": 1, "base": "ab"}, "use 2 values, and history=1"),
        ({"consistent": True, "base": "odd"}, "not exact for constant predictions"),
    ],
)
def test_options_are_checked(pools, options, words):
    train, held = pools
    base = euler()
    if (kind := options.pop("base", None)) == "ab":
        base = fj.solvers.rows_of(fj.solvers.AdamsBashforth(order=2).bind(LINEAR, fj.times.uniform(4)))
    elif kind == "odd":
        base = dataclasses.replace(base, weights=1.1 * base.weights)
    with pytest.raises(ValueError, match=words):
        least_squares.learn([train], [held], base, jax.random.key(0), **OPTIONS | options)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_networks_without_numbers_stop_it(dtype):
    """NaN from the start, and an overflow of float16 on the way."""

    def network(x, t, cond):
        return (x.astype(dtype) * (60_000 if dtype == jnp.float16 else jnp.nan) * 2).astype(jnp.float32)

    x = fj.noise(jax.random.key(0), (8, 4))
    spoiled = least_squares.Pool(field=fj.Flow(network, path=LINEAR), x=x, target=x)
    with pytest.raises(ValueError, match="not finite: the network answers with NaN or overflows"):
        least_squares.learn([spoiled], [spoiled], euler(), jax.random.key(0), **OPTIONS)
    with pytest.raises(ValueError, match="not finite"):
        learning.best_start({"euler": euler()}, [spoiled])


def test_the_gradient_keeps_one_step(pools):
    """Memory of a gradient hardly grows with the number of steps beyond the states."""
    train, _ = pools

    def temporary(steps):
        base = jax.tree.map(jnp.float32, forms.Multistep.widened(euler(steps), 2))
        value = lambda weights: forms.Multistep.sampled(  # noqa: E731
            train.field, dataclasses.replace(base, weights=weights), train.x, None
        ).sum()
        return jax.jit(jax.grad(value)).lower(base.weights).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(4), temporary(32)
    assert many - few < 28 * 8 * train.x.nbytes  # a few states for each of 28 more steps


def test_the_best_start_is_the_best(pools):
    rows = forms.starts(LINEAR, 4, 1e-3, 1 - 1e-3)
    assert len(rows) == 3 * len(forms.KNOWN)
    name, error = learning.best_start(rows, [pools[1]])
    assert error == min(least_squares.error([pools[1]], lambda _, one=one: one) for one in rows.values())
    assert name != "euler on uniform"


def test_grids_are_the_cheapest_ways():
    rng = np.random.default_rng(0)
    errors = np.triu(rng.uniform(size=(9, 9)), 1)
    errors[errors == 0] = np.inf
    way = cheapest(errors, 3)
    assert (way[0], way[-1], len(way)) == (0, 8, 4)
    cost = sum(errors[i, j] for i, j in itertools.pairwise(way))
    every = [(0, i, j, 8) for i in range(1, 7) for j in range(i + 1, 8)]
    assert cost == min(sum(errors[a, b] for a, b in itertools.pairwise(w)) for w in every)
    with pytest.raises(ValueError, match="9 steps need more than 9 fine times"):
        cheapest(errors, 9)


@pytest.mark.slow
@pytest.mark.parametrize("path", [LINEAR, fj.paths.VP()], ids=["linear", "vp"])
def test_found_grids_beat_equal_steps(path):
    flow, to = mixture(path), "velocity" if isinstance(path, fj.paths.Linear) else "data"
    start, end = 1e-3, 1 - 1e-3
    train, held = (pool(flow, seed, 64, start, end) for seed in (1, 2))
    fine = np.linspace(start, end, 61)
    errors = local_errors(flow, train.x, fine, to)
    grid = fine[cheapest(errors, 5)]
    solver = fj.solvers.Euler() if to == "velocity" else fj.solvers.DDIM()
    found, equal = (
        least_squares.error([held], lambda _, t=t: fj.solvers.rows_of(solver.bind(path, t)))
        for t in (grid, fj.times.uniform(5, start, end))
    )
    assert found < equal

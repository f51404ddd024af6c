"""Rows learned on a mixture: better on unseen noise, never worse than the start, and gone on with after a stop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pools import LINEAR, euler, mixture, pool

import flowjax as fj
from flowjax.calibration import forms, least_squares

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


@pytest.mark.slow
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

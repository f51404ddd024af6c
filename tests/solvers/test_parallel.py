"""Steps with parallel evaluations: their numbers written out, counts, devices, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Executions, relative

import flowjax as fj
from flowjax.calibration import forms, least_squares
from flowjax.calibration.reference import reference
from flowjax.solvers import Parallel, ParallelRows

EXECUTIONS = Executions()
GRID = (0.05, 0.95)


def network(x, t, cond):
    return jnp.sin(2 * x + 3 * t[:, None]) + (0 if cond is None else 0.1 * cond[:, None])


COUNTED = EXECUTIONS.wrap(network)


def rows(path="linear", points=2, steps=3):
    """Numbers of a start, moved a little."""
    start = forms.parallel_starts(PATHS[path], steps, points, *GRID)[f"velocity at {points} points on uniform"]
    rng = np.random.default_rng(0)
    delta = {k: 0.05 * rng.standard_normal((1, *shape)) for k, shape in forms.Stacked.shapes(start).items()}
    return start, forms.Stacked.tables(start, PATHS[path], delta, 0.0, False)


def written_out(rows, x, cond):
    before = np.zeros((rows.points.shape[1], *x.shape))
    for i in range(len(rows.scale)):
        found = []
        for m, t in enumerate(rows.points[i]):
            at = rows.states[i, m] * x + np.einsum("l,lb...->b...", rows.values[i, m], before)
            found.append(np.sin(2 * at + 3 * t) + 0.1 * cond[:, None])
        found = np.stack(found)
        x = rows.scale[i] * x + np.einsum("m,mb...->b...", rows.weights[i], np.concatenate([found, before]))
        before = found
    return x


@pytest.mark.parametrize("points", [1, 2, 3])
def test_steps_are_those_of_the_formula(points):
    _, moved = rows(points=points)
    x, cond = fj.noise(jax.random.key(0), (6, 3)), jnp.arange(6.0)
    flow = fj.Flow(network, path=PATHS["linear"])
    result = fj.solve(flow, Parallel(rows=moved), x, moved.times, cond=cond, trajectory=True)
    assert relative(result.x, written_out(moved, np.asarray(x, np.float64), np.asarray(cond))) < 2e-6
    assert (int(result.evaluations), int(result.network_calls), int(result.rounds)) == (3 * points, 3 * points, 3)
    assert result.trajectory.shape == (4, 6, 3)
    np.testing.assert_array_equal(result.trajectory[-1], result.x)


def test_a_round_is_one_call_of_the_network():
    _, moved = rows()
    EXECUTIONS.take()
    result = fj.solve(fj.Flow(COUNTED, path=PATHS["linear"]), Parallel(rows=moved), jnp.ones((4, 3)), moved.times)
    assert EXECUTIONS.take() == result.rounds == 3


def test_guided_samples_count_both_networks_and_keep_to_themselves():
    _, moved = rows()
    flow = dataclasses.replace(fj.Flow(network, path=PATHS["linear"]), null=0.0)
    field, solver = fj.guide(flow, fj.guidance.CFG(scale=2.0)), Parallel(rows=moved)
    x, cond = fj.noise(jax.random.key(0), (8, 3)), jnp.arange(8.0)
    result = fj.solve(field, solver, x, moved.times, cond=cond)
    assert (int(result.evaluations), int(result.network_calls)) == (6, 12)
    alone = fj.solve(field, solver, x[5:6], moved.times, cond=cond[5:6])
    assert relative(result.x[5:6], alone.x) < 1e-5
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = fj.solve(field, solver, jax.device_put(x, split), moved.times, cond=jax.device_put(cond, split))
    assert relative(spread.x, result.x) < 1e-5


@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize("to", ["velocity", "data"])
def test_consistent_steps_are_exact_for_constants(path, to):
    start = forms.parallel_starts(PATHS[path], 3, 2, *GRID)[f"{to} at 2 points on quadratic"]
    assert forms.Stacked.is_consistent(start, PATHS[path])
    rng = np.random.default_rng(1)
    delta = {k: 0.1 * rng.standard_normal((1, *shape)) for k, shape in forms.Stacked.shapes(start).items()}
    moved = forms.Stacked.tables(start, PATHS[path], delta, 0.0, True)
    assert forms.Stacked.is_consistent(moved, PATHS[path])
    flow = fj.Flow(lambda x, t, cond: jnp.full_like(x, 0.7), path=PATHS[path], prediction=to)
    x, ends = fj.noise(jax.random.key(0), (4, 2)), [np.float64(t) for t in GRID]
    ratio, total = forms.constant_law(PATHS[path], to, *ends)
    found = fj.solve(flow, Parallel(rows=moved), x, moved.times).x
    np.testing.assert_allclose(found, ratio * np.asarray(x) + 0.7 * total, rtol=2e-4, atol=2e-5)
    zero = {name: np.zeros_like(part) for name, part in delta.items()}
    same = forms.Stacked.tables(start, PATHS[path], zero, 0.0, False)
    for field in dataclasses.fields(start):
        if field.name != "to":
            np.testing.assert_allclose(getattr(same, field.name), getattr(start, field.name), rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_more_points_learn_more():
    law = fj.oracles.Mixture.default(PATHS["linear"], dim=2)
    flow = fj.Flow(law.network("velocity"), path=law.path)

    def pool(seed):
        x = law.path.start(fj.noise(jax.random.key(seed), (512, 2)), GRID[0])
        return least_squares.Pool(field=flow, x=x, target=reference(flow, x, fj.times.uniform(4, *GRID))[-1])

    train, held, errors = pool(1), pool(2), []
    for points in (1, 2):
        start = forms.parallel_starts(law.path, 3, points, *GRID)[f"velocity at {points} points on uniform"]
        found, error = least_squares.learn([train], [held], start, jax.random.key(0), batch=512, consistent=True)
        assert error["best"] < 0.8 * error["start"]
        arrays = forms.to_arrays(start, found)
        again = forms.of_arrays(arrays, law.path, 0.0, True)
        x = fj.solve(flow, forms.form_of(again).solver(again), held.x, again.times).x
        np.testing.assert_allclose(float(jnp.sqrt(jnp.mean((x - held.target) ** 2))), error["best"], rtol=1e-4)
        errors.append(error["best"])
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match="learned_gaps must be"):
        forms.of_arrays(arrays | {"learned_gaps": np.zeros((1, 7))}, law.path, 0.0, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": [[0.0, 0.2]]}, r"points of 3 steps must be \(3, 2\)"),
        ({"points": [0.0, 0.2]}, "points of 3 steps must be"),
        ({"scale": [1.0, 1.0]}, r"scale of 3 steps must be \(3,\)"),
        ({"weights": "many"}, "weights of rows are numbers"),
        ({"states": [[1, 1], [1, np.nan], [1, 1]]}, "NaN or infinite"),
        ({"times": [0.0, 0.5, 0.4, 1.0]}, "increas"),
        ({"points": [[0.0, 0.2], [0.3, 0.5], [0.6, 1.2]]}, r"points must be in \[0, 1\]"),
    ],
)
def test_numbers_that_are_no_steps(changes, words):
    _, moved = rows()
    good = {f.name: getattr(moved, f.name) for f in dataclasses.fields(moved)}
    ParallelRows(**good)
    with pytest.raises(ValueError, match=words):
        ParallelRows(**good | changes)


def test_what_it_cannot_do_is_refused():
    _, moved = rows()
    flow, x = fj.Flow(network, path=PATHS["linear"]), jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"pass times=solver.rows.times"):
        fj.solve(flow, Parallel(rows=moved), x, fj.times.uniform(3))
    with pytest.raises(ValueError, match="from noise to data only"):
        fj.solve(flow, Parallel(rows=moved), x, moved.times, invert=True)
    with pytest.raises(ValueError, match="these belong to fixed grids"):
        fj.solve(flow, Parallel(rows=moved), x, moved.times, after_step=lambda t, x: x)

"""Rows as numbers: those of known solvers, in every loop, and the optimum of a problem that has one in closed form."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Problem, foreign_loop, relative

import flowjax as fj
from flowjax.calibration import forms, least_squares
from flowjax.calibration.reference import reference
from flowjax.solvers import Learned, Rows, rows_of

GRID = 0.05 + 0.9 * fj.times.uniform(5) ** 1.2


def problem(path):
    return Problem(PATHS[path])


@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize("name", forms.KNOWN)
def test_rows_of_known_solvers_are_these_solvers(name, path):
    solver, p = forms.KNOWN[name], problem(path)
    rows = rows_of(solver.bind(p.path, GRID))
    flow = fj.Flow(lambda x, t, cond: jnp.sin(2 * x + 3 * t[:, None]), path=p.path)
    x = fj.noise(jax.random.key(0), (6, 3))
    expected, found = fj.solve(flow, solver, x, GRID), fj.solve(flow, Learned(rows=rows), x, rows.times)
    assert relative(found.x, expected.x) < 2e-6
    assert (found.evaluations, found.network_calls) == (expected.evaluations, expected.network_calls) == (5, 5)
    assert forms.Multistep.is_consistent(rows, p.path)
    assert rows.weights.shape[1] == {"euler": 1, "deis(order=3)": 3}.get(name, rows.weights.shape[1])


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (fj.solvers.Heun(), "times that do not increase"),
        (fj.solvers.DDIM(eta=1.0), "noise"),
        (fj.solvers.Jump(), "ends of spans"),
    ],
)
def test_methods_of_another_form_are_refused(solver, words):
    with pytest.raises(ValueError, match=f"this method has {words}"):
        rows_of(solver.bind(PATHS["linear"], GRID))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"times": (0.0, 0.5, 0.4)}, "increas"),
        ({"scale": (1.0,)}, r"have scale \(2,\)"),
        ({"weights": ((0.5, 0.1), (0.5, 0.0))}, "at most i \\+ 1 values"),
        ({"weights": ((0.5, 0.0, 0.0), (0.5, 0.0, 0.0))}, "1 to 2"),
        ({"scale": (1.0, float("nan"))}, "NaN or infinite"),
        ({"scale": ("a", 1.0)}, "are numbers"),
        ({"to": "speed"}, "unknown prediction 'speed'"),
    ],
)
def test_numbers_that_are_no_rows(changes, words):
    good = {"times": (0.0, 0.5, 1.0), "scale": (1.0, 1.0), "weights": ((0.5, 0.0), (0.7, -0.2))}
    Rows(**good)
    with pytest.raises(ValueError, match=words):
        Rows(**good | changes)


def test_times_are_their_own():
    rows = rows_of(fj.solvers.Euler().bind(PATHS["linear"], GRID))
    with pytest.raises(ValueError, match=r"pass times=solver.rows.times"):
        Learned(rows=rows).bind(PATHS["linear"], fj.times.uniform(5))


def moved(path):
    rng, base = np.random.default_rng(0), rows_of(fj.solvers.AdamsBashforth(order=3).bind(PATHS[path], GRID))
    base = forms.Multistep.widened(base, 5)
    shapes = {"gaps": (1, 5), "weights": (1, 5, 5), "scale": (1, 5)}
    delta = {name: 0.1 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return base, delta


def test_every_loop_has_the_same_numbers():
    path = PATHS["linear"]
    base, delta = moved("linear")
    solver = Learned(rows=forms.Multistep.tables(base, path, delta, 0.0, False))
    flow = fj.Flow(lambda x, t, cond: jnp.sin(2 * x + 3 * t[:, None]), path=path)
    x, times = fj.noise(jax.random.key(0), (6, 3)), solver.rows.times
    expected = fj.solve(flow, solver, x, times).x
    bound = solver.bind(path, times)
    steps = fj.solvers.StepTo(ts=jnp.asarray(bound.grid, jnp.float32))
    options = {"stepsize_controller": steps, "throw": False}
    t0, t1 = (float(t) for t in (times[0], times[-1]))
    run = diffrax.diffeqsolve(bound.term(flow), bound, t0, t1, None, x, None, **options)
    assert relative(run.ys[0], expected) < 2e-6
    loop = foreign_loop(bound, np.asarray(x), lambda request: np.sin(2 * request.x + 3 * request.t))
    assert relative(loop, expected) < 2e-6
    padded = solver.bind(path, times, registers=8)
    others = [fj.solvers.DPMSolver(order=3).bind(path, GRID, registers=8), padded]
    before = fj.solving._run._cache_size()
    found = [fj.solve(flow, other, x).x for other in others]
    assert fj.solving._run._cache_size() == before + 1  # one program for both
    assert relative(found[1], expected) < 2e-6
    within = forms.Multistep.sampled(flow, jax.tree.map(jnp.float32, solver.rows), x, None)
    assert relative(within, expected) < 2e-6


@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize("to", ["velocity", "data", "noise"])
def test_consistent_rows_are_exact_for_constants(path, to):
    base, delta = moved(path)
    p = PATHS[path]
    scale, total = forms.constant_law(p, to, base.times[:-1], base.times[1:])
    base = dataclasses.replace(base, scale=scale, weights=np.diag(total) if to == "x" else base.weights, to=to)
    rows = forms.Multistep.tables(base, p, delta, 0.0, True)
    flow = fj.Flow(lambda x, t, cond: jnp.full_like(x, 0.7), path=p, prediction=to)
    x, (s, t) = fj.noise(jax.random.key(0), (4, 2)), (rows.times[0], rows.times[-1])
    ratio, all_of_it = forms.constant_law(p, to, np.float64(s), np.float64(t))
    found = fj.solve(flow, Learned(rows=rows), x, rows.times).x
    np.testing.assert_allclose(found, ratio * np.asarray(x) + 0.7 * all_of_it, rtol=2e-4, atol=2e-5)
    assert np.all(np.diff(rows.times) > 0)
    assert (rows.times[0], rows.times[-1]) == (GRID[0], GRID[-1])


def test_without_learning_rows_are_the_start():
    base, delta = moved("linear")
    zero = {name: np.zeros_like(part) for name, part in delta.items()}
    for consistent in (False, True):
        rows = forms.Multistep.tables(base, PATHS["linear"], zero, 0.3, consistent)
        for name in ("times", "scale", "weights"):
            np.testing.assert_allclose(getattr(rows, name), getattr(base, name), rtol=1e-13, atol=1e-15)
    flow = fj.Flow(lambda x, t, cond: -x, path=PATHS["linear"])
    x = fj.noise(jax.random.key(0), (8, 2))
    pool = least_squares.Pool(field=flow, x=x, target=reference(flow, x, GRID)[-1])
    found, errors = least_squares.learn([pool], [pool], base, jax.random.key(0), iterations=0)
    assert not any(part.any() for part in found.values())
    assert errors["best"] == errors["start"]


def test_two_rows_find_the_optimum_of_a_linear_problem():
    """Velocity k(t) x with Gaussian data is exact up to a factor: two rows can hit the factor exactly.

    With v = k(t) x, rows of scale 1 give x_2 = (1 + b_11 k(t_1) (1 + b_00 k(t_0)) + b_10 k(t_0) + ...) x_0, one number,
    and the flow's is sqrt(V(t_2) / V(t_0)): the least error is zero, on a set of rows.
    """
    law = fj.oracles.Gaussian(mean=0.0, std=0.5, path=PATHS["linear"])
    flow = fj.Flow(law.network("velocity"), path=law.path)
    x = fj.noise(jax.random.key(0), (512, 2))
    exact = x * np.sqrt(law.path.sigma(1.0) ** 2 + 0.25) / 1.0
    pools = [least_squares.Pool(field=flow, x=x[i : i + 256], target=exact[i : i + 256]) for i in (0, 256)]
    base = rows_of(fj.solvers.AdamsBashforth(order=2).bind(law.path, fj.times.uniform(2)))
    found, errors = least_squares.learn(pools[:1], pools[1:], base, jax.random.key(1), batch=64, consistent=True)
    assert errors["start"] > 0.05
    assert errors["best"] < 1e-3
    rows = forms.Multistep.tables(forms.Multistep.widened(base, 2), law.path, found, 0.0, True)
    k = [float(law.velocity(t, jnp.ones((1, 1)))[0, 0]) for t in rows.times[:2]]
    first = rows.scale[0] + rows.weights[0, 0] * k[0]
    factor = rows.scale[1] * first + rows.weights[1, 0] * k[1] * first + rows.weights[1, 1] * k[0]
    assert abs(factor - 0.5) < 2e-3

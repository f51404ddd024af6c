"""Registers, patterns, foreign loops, and methods that cannot be rows."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import LINEAR, SOLVERS, UNEVEN, answer, corrected, smooth, states
from problem import PATHS, foreign_loop, relative

import flowjax as fj
from flowjax.solvers import (
    DDIM,
    RK4,
    AdamsBashforth,
    DPMSolver,
    Euler,
    Formula,
    HeavyBall,
    Heun,
    Midpoint,
    run_on_arrays,
)
from flowjax.solvers.requests import evaluate, pairs, step
from flowjax.solvers.rows import FIELD, FREE, Combine


@pytest.mark.parametrize(
    ("solver", "registers"),
    [
        (Euler(), 1),
        (DDIM(), 1),
        (Heun(), 2),
        (Midpoint(), 2),
        (DPMSolver(order=2), 2),
        (DPMSolver(order=3), 3),
        (AdamsBashforth(order=4), 4),
        (RK4(), 4),
        (HeavyBall(solver=DPMSolver(order=2)), 3),
        (HeavyBall(solver=Euler()), 2),
        (Formula(function=corrected), 3),
    ],
)
def test_methods_need_no_more_registers_than_by_hand(solver, registers):
    assert solver.bind(LINEAR, UNEVEN).pattern.registers == registers


def test_zeros_and_copies_are_static():
    pattern = AdamsBashforth(order=3).bind(LINEAR, UNEVEN).pattern
    assert pattern.point == 0  # evaluated at the solution itself
    assert pattern.advance[1:] == (3, 1)  # the value goes into register 1, register 1 into register 2
    assert isinstance(pattern.advance[0], Combine)
    assert pattern.completes == (True,) * 9
    assert pattern.kinds == (FIELD,) * 9
    assert Heun().bind(LINEAR, UNEVEN).pattern.completes == (False, True) * 9


def test_pattern_does_not_depend_on_numbers():
    one, two = (DPMSolver(order=3).bind(p, g).pattern for p, g in ((LINEAR, UNEVEN), (PATHS["vp"], UNEVEN**1.1)))
    assert one == two
    assert hash(one) == hash(two)


def test_rows_are_float64_on_the_host():
    bound = DPMSolver(order=3).bind(LINEAR, UNEVEN)
    for leaf in jax.tree.leaves(bound):
        assert type(leaf) is np.ndarray
        assert leaf.dtype == np.float64


@pytest.mark.parametrize("path", ["linear", "vp", "ve"])
@pytest.mark.parametrize("name", SOLVERS)
def test_foreign_loop_equals_generator_on_arrays(name, path):
    solver, path = SOLVERS[name], PATHS[path]
    expected = run_on_arrays(solver, path, UNEVEN, states(), answer)
    assert len(expected) == len(UNEVEN)
    bound = solver.bind(path, UNEVEN)
    result = foreign_loop(bound, states(), answer)
    assert result.dtype == np.float64
    assert relative(result, expected[-1]) < 1e-12
    padded = solver.bind(path, UNEVEN, registers=bound.pattern.registers + 1)
    assert padded.pattern.registers == bound.pattern.registers + 1

    def velocity(request):
        refines = request.velocity is not None
        given = "velocity" if refines else bound.pattern.to
        return path.convert(answer(request), given=given, to="velocity", t=request.t, x=request.x)

    assert relative(foreign_loop(padded, states(), velocity), expected[-1]) < 1e-11


def _two_kinds(path, times, x):
    for s, t in pairs(times):
        m = yield evaluate(s, x, to="data")
        x = yield step(x + (t - s) * (m + (yield evaluate(s, x))))


def _too_few_steps(path, times, x):
    yield step((yield evaluate(times[0], x)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_two_kinds, "one kind of prediction.*data.*velocity"),
        (_too_few_steps, "made 1 steps on a grid of 3"),
    ],
)
def test_methods_that_cannot_be_rows(function, message):
    with pytest.raises(ValueError, match=message):
        Formula(function=function).bind(LINEAR, fj.times.uniform(3))


def test_too_few_registers():
    with pytest.raises(ValueError, match=re.escape("needs 4 registers, got registers=3")):
        RK4().bind(LINEAR, UNEVEN, registers=3)


def test_nonlinear_use_of_a_symbol_is_refused():
    def squared(path, times, x):
        v = yield evaluate(times[0], x)
        yield step(v * v)

    with pytest.raises(TypeError):
        Formula(function=squared).bind(LINEAR, [0.0, 1.0])


@pytest.mark.parametrize("times", [[0.5], [0.5, 0.2], [0.0, 1.2], [-0.1, 0.5], [0.0, np.nan], [[0.0, 1.0]]])
def test_bad_times(times):
    with pytest.raises(ValueError, match="times must"):
        Euler().bind(LINEAR, times)


def _free_steps(path, times, x):
    """Steps without an evaluation at the start, in the middle and at the end, and added constants."""
    x = yield step(1.5 * x + 0.25)
    v = yield evaluate(times[1], x)
    x = yield step(x + 0.5 * v)
    x = yield step(0.9 * x - 0.1 * v)
    w = yield evaluate(times[3], x + 0.1 * v)
    x = yield step(x + 0.3 * w + 1.0)
    yield step(x - 0.2 * v)


def test_steps_without_evaluations_and_constants():
    solver, grid = Formula(function=_free_steps), fj.times.uniform(5)
    bound = solver.bind(LINEAR, grid)
    assert bound.pattern.kinds == (FREE, FIELD, FREE, FIELD, FREE)
    expected = run_on_arrays(solver, LINEAR, grid, states(), lambda r: smooth(r.x, r.t))
    assert relative(foreign_loop(bound, states(), lambda r: smooth(r.x, r.t)), expected[-1]) < 1e-12
    flow = fj.Flow(lambda x, t, cond=None: smooth(x, t[:, None]), path=LINEAR)
    x = jnp.asarray(states(np.float32))
    assert relative(fj.solve(flow, bound, x, trajectory=True).trajectory, np.stack(expected)) < 1e-5
    ends = diffrax.SaveAt(steps=True, t0=True)
    control = fj.solvers.StepTo(ts=grid)
    run = diffrax.diffeqsolve(
        bound.term(flow),
        bound,
        0.0,
        1.0,
        None,
        x,
        None,
        stepsize_controller=control,
        throw=False,
        saveat=ends,
        max_steps=5,
    )
    assert relative(run.ys, np.stack(expected)) < 1e-5
    scanned = jax.jit(
        lambda bound, x: jax.lax.fori_loop(
            0, 2, lambda i, r: bound.advance(i, r, smooth(*reversed(bound.point(i, r)))), bound.start(x)
        )[0]
    )(jax.tree.map(jnp.asarray, bound), x)
    assert relative(scanned, expected[-1]) < 3e-6


def test_padded_steps_without_evaluations_become_part_of_others():
    """Then the pattern is that of any method with as many evaluations."""
    solver, grid = Formula(function=_free_steps), fj.times.uniform(5)
    padded, plain = solver.bind(LINEAR, grid, registers=4), Euler().bind(LINEAR, [0.0, 0.5, 1.0], registers=4)
    assert padded.pattern == plain.pattern
    assert [leaf.shape for leaf in jax.tree.leaves(padded)] == [leaf.shape for leaf in jax.tree.leaves(plain)]
    expected = foreign_loop(solver.bind(LINEAR, grid), states(), answer)
    assert relative(foreign_loop(padded, states(), answer), expected) < 1e-12


def test_the_words_are_found_where_they_were():
    from flowjax.solvers import requests, rows

    assert rows.evaluate is requests.evaluate
    assert rows.Solver is fj.solvers.Solver
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        rows.evalute  # noqa: B018

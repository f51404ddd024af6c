"""`solve` on rows: equal numbers, compiled programs, steps, noise, refiners."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import LINEAR, SOLVERS, UNEVEN, Turbo, answer, churn, corrected, network, smooth, spans, states, two_noises
from problem import PATHS, Problem, foreign_loop, relative

import flowjax as fj
from flowjax._pytree import pytree
from flowjax.oracles import Gaussian
from flowjax.solvers import (
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
from flowjax.solvers.requests import evaluate, noise, pairs, step
from flowjax.solvers.rows import FIELD, FREE

COMPILED = ["euler", "heun", "midpoint", "rk4", "ddim", "ab4_noise_fixed_lower", "ab4_velocity_variable_rk4"]
COMPILED += ["dpm3_data_taylor_True", "dpm2_noise_midpoint_False", "hb_2m", "corrected", "hb_corrected", "turbo"]


@pytest.mark.parametrize("name", COMPILED)
def test_solve_equals_generator_on_arrays(name):
    """Paths of equal pattern share one compiled program, so three of them cost little more than one."""
    for path in ("linear", "vp", "ve"):
        solver = SOLVERS[name]
        expected = run_on_arrays(solver, PATHS[path], UNEVEN, states(), answer)
        bound = solver.bind(PATHS[path], UNEVEN)
        flow = fj.Flow(network, path=PATHS[path], prediction=bound.pattern.to)
        if name == "turbo":
            bound = dataclasses.replace(bound, second=flow)
        result = fj.solve(flow, bound, jnp.asarray(states(np.float32)), trajectory=True)
        assert result.x.dtype == jnp.float32
        assert relative(result.trajectory, np.stack(expected)) < 1e-5
        assert np.array_equal(result.trajectory[-1], result.x)
        assert result.evaluations == bound.pattern.kinds.count(FIELD)


@pytest.mark.parametrize("name", ["rk4", "dpm3_data_taylor_True", "corrected"])
def test_dense_registers_equal_static_ones(name):
    x = jnp.asarray(states(np.float32))
    flow = fj.Flow(network, path=LINEAR, prediction=SOLVERS[name].bind(LINEAR, UNEVEN).pattern.to)
    plain, dense = (fj.solve(flow, SOLVERS[name], x, UNEVEN, registers=r).x for r in (None, 6))
    assert relative(dense, plain) < 1e-6


def test_low_precision_states_are_integrated_in_float32():
    flow = fj.Flow(lambda x, t, cond: (-x).astype(jnp.bfloat16), path=LINEAR)
    result = fj.solve(flow, Euler(), jnp.ones((2, 3), jnp.bfloat16), fj.times.uniform(4), trajectory=True)
    assert result.x.dtype == jnp.float32
    assert relative(result.x, np.full((2, 3), 0.75**4)) < 4e-3  # bfloat16 has 8 bits


def test_nothing_numerical_compiles_again():
    traces = []

    @pytree
    class Network:
        weight: Any

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return jnp.sin(self.weight * x)

    x, grid = jnp.asarray(states(np.float32)), fj.times.uniform(8, 0.1, 0.9)

    def run(solver, *, weight=1.0, times=grid, path=None, **kwargs):
        flow = fj.Flow(Network(weight=weight), path=path or fj.paths.VP())
        return np.asarray(fj.solve(flow, solver, x, times, **kwargs).x)

    first = run(AdamsBashforth(order=4), registers=4)
    once = len(traces)
    others = [run(AdamsBashforth(order=order), registers=4) for order in (1, 2, 3)]
    others.append(run(AdamsBashforth(order=4, weights="fixed"), registers=4, times=grid**1.2))
    others.append(run(AdamsBashforth(order=4), registers=4, times=np.linspace(0, 0.5, 9)))
    others.append(run(AdamsBashforth(order=4), registers=4, weight=2.0))
    assert len(traces) == once
    assert all(relative(other, first) > 1e-5 for other in others)  # they are different runs
    run(AdamsBashforth(order=4), registers=5)
    assert len(traces) > once

    heavy = [run(HeavyBall(solver=DPMSolver(), beta=beta)) for beta in (0.9, 0.5)]
    once = len(traces)
    run(HeavyBall(solver=DPMSolver(), beta=0.7), times=grid**1.1)
    assert len(traces) == once
    assert relative(heavy[0], heavy[1]) > 1e-5


def test_one_program_serves_all_methods_of_eight_evaluations():
    """Padded to equal registers: other predictions, orders, steps, ratios, beta and last steps without evaluation."""
    traces, vp = [], fj.paths.VP()

    def noise_prediction(x, t, cond=None):
        traces.append(1)
        return jnp.sin(2 * x + 3 * t[:, None])

    x, grid = jnp.asarray(states(np.float32)), fj.times.uniform(8, 0.1, 0.9)
    flow = fj.Flow(noise_prediction, path=vp, prediction="noise")
    lam, s = np.linspace(-6, 6, 121), fj.solvers
    curves = s.Statistics(lam=lam, l=0.5 + 0 * lam, s=-0.3 + 0 * lam, b=0.1 * np.cos(lam))
    methods = [
        *(DPMSolver(order=k, form=form) for k in (1, 2, 3) for form in ("data", "noise")),
        *(s.UniPC(order=k, variant=v) for k in (2, 3) for v in ("bh1", "bh2")),
        s.DCSolver(ratios=[1, 1, 0.9, 1.1, 0.8, 1, 1, 1.2]),
        s.DPMSolverV3(statistics=curves),
        s.DEIS(),
        s.GHVB(order=3, beta=0.6),
        HeavyBall(solver=DPMSolver(), beta=0.7),
        DPMSolver(order=3, scheme="singlestep"),
        s.USF(schedule=s.usf.baselines(grid)["unipc_3_bh1"]),
        Euler(),
    ]
    cases = [(method, grid) for method in methods]
    cases += [(method, grid[::2]) for method in (Heun(), Midpoint(), s.FlowTurbo(blocks="H4"))] + [(RK4(), grid[::4])]
    cases.append((s.EDMHeun(), grid[::2]))
    decisions = (*(s.Decision(prediction=k, corrector=True) for k in ("data", "noise")), *[s.Decision(order=2)] * 7)
    nine = fj.times.uniform(9, 0.1, 0.9)
    for first in ("zero", "mean"):  # one step more, since the first output is guessed
        guessed = s.USF(schedule=s.Schedule(times=tuple(nine.tolist()), decisions=decisions, first=first), mean=0.3)
        cases.append((guessed, nine))
    ends = [fj.solve(flow, method, x, times, registers=8) for method, times in cases]
    assert all(int(end.evaluations) == 8 for end in ends)
    assert len(traces) == 1
    for end, (method, times) in zip(ends, cases, strict=True):
        to = method.bind(vp, times).pattern.to

        def values(r, to=to):
            return vp.convert(np.sin(2 * r.x + 3 * r.t), given="noise", to=to, t=r.t, x=r.x)

        assert relative(end.x, run_on_arrays(method, vp, times, states(), values)[-1]) < 1e-5


def test_padded_rows_keep_no_account_of_steps():
    flow, x = fj.Flow(network, path=LINEAR), jnp.asarray(states(np.float32))
    bound = Heun().bind(LINEAR, UNEVEN, registers=3)
    for options in ({"trajectory": True}, {"after_step": lambda t, x: x}):
        with pytest.raises(ValueError, match="leave out registers="):
            fj.solve(flow, bound, x, **options)
    with pytest.raises(ValueError, match="for diffrax"):
        bound.term(flow)


def test_padded_rows_refuse_an_infinite_velocity():
    def at_the_end(path, times, x):
        yield step((yield evaluate(times[1], x, to="data")))

    with pytest.raises(ValueError, match="velocity, which is infinite at t = 1"):
        Formula(function=at_the_end).bind(PATHS["vp"], [0.0, 1.0], registers=1)


def test_new_guidance_scale_does_not_compile_again():
    traces = []

    def conditional(x, t, cond):
        traces.append(1)
        return cond[:, None].astype(x.dtype) - x

    flow = fj.Flow(conditional, path=LINEAR, null=0)
    x, cond = jnp.ones((2, 3)), jnp.array([1, 2], jnp.int32)

    def run(scale):
        return fj.solve(fj.guide(flow, fj.guidance.CFG(scale=scale)), Euler(), x, fj.times.uniform(3), cond)

    slow, once = run(2.0), len(traces)
    fast = run(3.0)
    assert len(traces) == once
    assert (slow.evaluations, slow.network_calls, fast.network_calls) == (3, 6, 6)
    assert relative(slow.x, fast.x) > 1e-3
    assert run(1.0).network_calls == 3  # the neutral scale saves the second half, in the same program
    assert len(traces) == once


def test_bound_solver_is_an_argument_of_your_own_jit():
    flow, x, traces = fj.Flow(network, path=LINEAR), jnp.asarray(states(np.float32)), []
    run = jax.jit(lambda bound: traces.append(1) or fj.solve(flow, bound, x).x)
    for grid in (UNEVEN, UNEVEN**1.3):
        assert relative(run(RK4().bind(LINEAR, grid)), fj.solve(flow, RK4(), x, grid).x) < 1e-6
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["heun", "corrected", "ab4_velocity_variable_lower"])
def test_after_step_changes_the_solution_once_per_step_and_nothing_else(name):
    """Halving after each step: the generator with a halved answer to every step is the same run."""
    solver, seen = SOLVERS[name], []

    def halved(path, times, x):
        inner, sent = solver.updates(path, times, x), None
        while True:
            try:
                request = inner.send(sent)
            except StopIteration:
                return
            is_step = type(request).__name__ == "Step"
            sent = yield (step(0.5 * request.x) if is_step else request)

    def halve(t, x):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return 0.5 * x

    flow, x = fj.Flow(network, path=LINEAR), jnp.asarray(states(np.float32))
    expected = run_on_arrays(Formula(function=halved), LINEAR, UNEVEN, states(), answer)
    result = fj.solve(flow, solver, x, UNEVEN, trajectory=True, after_step=halve)
    assert relative(result.trajectory, np.stack(expected)) < 1e-5
    jax.effects_barrier()
    assert set(np.round(UNEVEN[1:], 5)) <= set(np.round(seen, 5))


def test_trajectory_holds_steps_not_stages():
    flow, x = fj.Flow(network, path=LINEAR), jnp.asarray(states(np.float32))
    for solver in (Euler(), RK4()):
        result = fj.solve(flow, solver, x, fj.times.uniform(3), trajectory=True)
        assert result.trajectory.shape == (4, 5, 3)
        assert np.array_equal(result.trajectory[0], x)
    assert fj.solve(flow, RK4(), x, fj.times.uniform(3)).trajectory is None


@pytest.mark.parametrize("function", [churn, two_noises], ids=["churn", "two_noises"])
def test_noise_before_and_after_an_evaluation(function):
    path, grid, key = PATHS["ve"], UNEVEN[:6], jax.random.key(3)
    solver = Formula(function=function)
    bound = solver.bind(path, grid)
    draws = np.random.default_rng(2).standard_normal((20, 5, 3))
    in_order = iter(draws)
    expected = run_on_arrays(solver, path, grid, states(), answer, noise=lambda: next(in_order))[-1]
    per_row = bound.pattern.noises
    assert per_row == (2 if function is two_noises else 1)
    again = foreign_loop(bound, states(), answer, lambda row, x: tuple(draws[row * per_row : (row + 1) * per_row]))
    assert relative(again, expected) < 1e-12

    flow = fj.Flow(network, path=path, prediction=bound.pattern.to)
    x = jnp.asarray(states(np.float32))
    result = fj.solve(flow, solver, x, grid, key=key, index=7).x
    drawn = {row: bound.draw(row, x, key, 7) for row in range(bound.pattern.rows)}
    again = foreign_loop(bound, states(), answer, lambda row, _: tuple(np.asarray(z, np.float64) for z in drawn[row]))
    assert relative(result, again) < 3e-6
    everything = np.stack([z for zs in drawn.values() for z in zs])
    flat = everything.reshape(-1)
    assert len(np.unique(flat)) == flat.size  # no noise is used twice
    with pytest.raises(ValueError, match="stochastic"):
        fj.solve(flow, solver, x, grid)
    with pytest.raises(ValueError, match="stochastic"):
        run_on_arrays(solver, path, grid, states(), answer)


def test_churn_keeps_the_law_of_the_samples():
    """On Gaussian data and enough steps, noising and denoising by turns leaves mean and spread as they are."""
    path = PATHS["ve"]
    target = Gaussian(mean=0.5, std=0.7, path=path)
    grid = fj.times.uniform(80, 0.0, 1.0)[8:]  # the raised level stays on the path
    x = 0.5 + np.sqrt(0.7**2 + path.sigma(grid[0]) ** 2) * np.asarray(fj.noise(jax.random.key(0), (8192, 1)))
    flow = fj.Flow(target.network("noise"), path=path, prediction="noise")
    end = fj.solve(flow, Formula(function=churn), jnp.asarray(x, jnp.float32), grid, key=jax.random.key(1)).x
    assert float(end.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(end.std()) == pytest.approx(np.sqrt(0.7**2 + path.sigma(1.0) ** 2), rel=0.06)


def test_corrector_whose_last_step_has_no_evaluation():
    pattern = Formula(function=corrected).bind(LINEAR, UNEVEN).pattern
    assert pattern.kinds == (*(FIELD,) * 9, FREE)
    assert pattern.completes == (False, *(True,) * 9)
    assert Problem(LINEAR).order(Formula(function=corrected)) == pytest.approx(2, abs=0.2)


def test_refiner_blocks_with_an_oracle_refiner_are_heun_blocks():
    def refine(x, t, cond=None, velocity=None):
        return network(x, t) - velocity

    flow, x, grid = fj.Flow(network, path=LINEAR), jnp.asarray(states(np.float32)), fj.times.uniform(8)
    refiner = fj.Flow(refine, path=LINEAR)
    heun = fj.solve(flow, Heun(), x, grid)
    result = fj.solve(flow, Turbo(blocks="HHHHHRRR", second=refiner), x, grid, trajectory=True)
    assert relative(result.x, heun.x) < 1e-6
    assert result.trajectory.shape == (9, 5, 3)
    assert (result.evaluations, result.network_calls, result.second_evaluations) == (10, 10, 6)
    mixed = fj.solve(flow, Turbo(blocks="HHPPPPRR", second=refiner), x, grid)
    assert (mixed.evaluations, mixed.second_evaluations) == (2 * 2 + 4, 2 * 2)
    assert relative(mixed.x, heun.x) > 1e-5


def test_refiner_that_returns_zero_repeats_the_cached_velocity():
    """After one Heun block whose second slope is d', a zero refiner makes Euler steps along d'."""
    flow, x, grid = fj.Flow(network, path=LINEAR), states(), fj.times.uniform(4)
    refiner = fj.Flow(lambda x, t, cond, velocity: 0 * x, path=LINEAR)
    first = smooth(x, 0.0)
    cached = smooth(x + 0.25 * first, 0.25)
    expected = x + 0.125 * (first + cached) + 0.75 * cached
    result = fj.solve(flow, Turbo(blocks="HRRR", second=refiner), jnp.asarray(x, jnp.float32), grid)
    assert relative(result.x, expected) < 1e-6
    assert result.evaluations == 2


def test_pseudo_corrector_is_second_order():
    """Published analysis of the blocks: target N(1.5, 0.4^2), exact end 1.5 + 0.4 x0, errors measured independently."""
    target = Gaussian(mean=1.5, std=0.4, path=LINEAR)
    x = np.array([[-1.0], [0.3], [2.0]])

    velocity = jax.jit(target.velocity)

    def oracle(request):
        with jax.enable_x64(True):
            return np.asarray(velocity(request.t, request.x))

    for blocks, n, error in (("H", 10, 4.606e-3), ("HP", 10, 7.655e-3), ("H", 40, 3.577e-4), ("HP", 40, 5.455e-4)):
        solver = Turbo(blocks=blocks[0] + blocks[-1] * (n - 1))
        end = run_on_arrays(solver, LINEAR, fj.times.uniform(n), x, oracle)[-1]
        assert np.max(np.abs(end - (1.5 + 0.4 * x))) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
def test_flow_map_network_is_exact_in_any_number_of_steps(steps):
    target = Gaussian(mean=0.5, std=0.3, path=LINEAR)
    flow = fj.Flow(target.network("mean_velocity"), path=LINEAR)
    x = fj.noise(jax.random.key(0), (6, 1))
    result = fj.solve(flow, Formula(function=spans), x, fj.times.uniform(steps))
    assert relative(result.x, 0.5 + 0.3 * x) < 1e-5
    assert result.evaluations == steps


def test_last_step_without_evaluation_may_draw_noise():
    def noisy_tail(path, times, x):
        d = yield evaluate(times[0], x)
        x = yield step(x + (times[1] - times[0]) * d)
        yield step(x + (times[2] - times[1]) * d + 0.5 * (yield noise()))

    solver, key = Formula(function=noisy_tail), jax.random.key(4)
    bound, x = solver.bind(LINEAR, UNEVEN[:3]), jnp.asarray(states(np.float32))
    (z,) = bound.draw(0, x, key, 0)
    expected = run_on_arrays(solver, LINEAR, UNEVEN[:3], states(), answer, noise=lambda: np.asarray(z, np.float64))
    result = fj.solve(fj.Flow(network, path=LINEAR), bound, x, key=key, trajectory=True)
    assert relative(result.trajectory, np.stack(expected)) < 3e-6
    assert relative(foreign_loop(bound, x, answer, lambda row, x: (z,)), expected[-1]) < 3e-6


def test_per_element_coefficients():
    """A coefficient of the state's shape, as statistics of a trained model give them."""
    ratio = np.array([0.5, 1.0, 2.0])

    def scaled(path, times, x):
        for s, t in pairs(times):
            x = yield step(x + (t - s) * ratio * (yield evaluate(s, x)))

    solver = Formula(function=scaled)
    expected = run_on_arrays(solver, LINEAR, UNEVEN, states(), answer)[-1]
    bound = solver.bind(LINEAR, UNEVEN)
    assert relative(foreign_loop(bound, states(), answer), expected) < 1e-12
    result = fj.solve(fj.Flow(network, path=LINEAR), bound, jnp.asarray(states(np.float32)))
    assert relative(result.x, expected) < 3e-6
    with pytest.raises(ValueError, match="dense"):
        solver.bind(LINEAR, UNEVEN, registers=3)

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import exponential_step
from problem import ENDS, GRIDS, PATHS, Problem, relative

import flowjax as fj
from flowjax.solvers import DCSolver, UniPC, run_on_arrays
from flowjax.times import log_snr, uniform

N = 7
RECORDED = json.loads((pathlib.Path(__file__).parent / "dc_solver_official.json").read_text())


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_recorded_runs_of_the_authors_programs(name):
    port, *words = name.split()
    recorded = RECORDED["runs"][name]
    if port == "diffusers":
        kind, (form, variant, order, steps, end, *on) = "vp", words
        grid = np.append(1 - np.array(recorded["timesteps"]) / 1000, 1.0 if end == "zero" else ENDS["vp"][1])
    else:
        kind, form, variant, order, times, steps, *on = words
        grid = GRIDS[times](PATHS[kind], int(steps), *ENDS[kind])
    solver = DCSolver(
        order=int(order),
        variant=variant,
        form=form,
        lower_order_final="lower" in on,
        disable_corrector=tuple(int(word.removeprefix("disable")) for word in on if word != "lower"),
        ratios=RECORDED["ratios"][: int(steps)],
    )
    problem = Problem(PATHS[kind])
    found = run_on_arrays(solver, problem.path, grid, np.array(RECORDED["start"])[:, None], problem)[-1]
    assert relative(found[:, 0], recorded["x"]) < 1e-8
    assert solver.bind(problem.path, grid).pattern.rows == recorded["evaluations"]


@pytest.fixture(params=["vp", "linear", "ve"])
def problem(request):
    return Problem(PATHS[request.param])


def run(problem, solver, grid=None, network=None):
    grid = log_snr(problem.path, N, 0.1, 0.9) if grid is None else grid
    return run_on_arrays(solver, problem.path, grid, problem.state(grid[0]), network or problem)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ratios_of_one_are_unipc_bit_for_bit(problem, order):
    plain = run(problem, UniPC(order=order, variant="bh1"))
    for ratios in (None, np.ones(N), [1.0] * N):
        assert np.array_equal(run(problem, DCSolver(order=order, variant="bh1", ratios=ratios)), plain)


@pytest.mark.parametrize("order", [2, 3])
def test_the_first_two_ratios_are_not_used(problem, order):
    ratios = np.ones(N)
    ratios[:2] = 0.3, 2.0
    assert np.array_equal(run(problem, DCSolver(order=order, ratios=ratios)), run(problem, UniPC(order=order)))
    ratios[2] = 0.9
    changed, plain = run(problem, DCSolver(order=order, ratios=ratios)), run(problem, UniPC(order=order))
    assert np.array_equal(changed[:3], plain[:3])
    assert relative(changed[3], plain[3]) > 1e-6


@pytest.mark.parametrize("ratio", [0.4, 0.9, 1.7])
def test_outputs_that_are_quadratic_in_time_are_read_at_the_shifted_time(problem, ratio):
    """A first-order step with the value of the parabola at rho t_2 + (1 - rho) t_1."""
    path, grid = problem.path, np.array([0.1, 0.3, 0.42, 0.7])

    def parabola(t):
        return 0.3 - 1.2 * t + 2.5 * t**2

    solver = DCSolver(order=1, corrector=False, ratios=[1.0, 1.0, ratio])
    *_, x, end = run(problem, solver, grid, lambda r: np.full_like(r.x, parabola(r.t)))
    shifted = ratio * grid[2] + (1 - ratio) * grid[1]
    exact = exponential_step(path, "data", x, grid[2], grid[3], lambda lam: np.full_like(lam, parabola(shifted)))
    assert relative(end, exact) < 1e-12


def test_the_replacement_stays_in_the_history(problem):
    """Order 2 without corrector: the step after the compensated one extrapolates from the compensated value."""
    path, grid = problem.path, np.asarray(problem.path.time(np.array([-1.0, -0.4, 0.1, 0.9, 1.3, 1.6])))
    solver = DCSolver(order=2, corrector=False, variant="vary", ratios=[1, 1, 0.5, 1, 1], lower_order_final=False)
    solutions = run(problem, solver, grid, lambda r: np.full_like(r.x, r.t**2))
    shifted = (grid[2] + grid[1]) / 2
    lam = path.lam(grid)
    slope = (grid[3] ** 2 - shifted**2) / (lam[3] - lam[2])  # the shifted value, at the time of the newest
    exact = exponential_step(
        path, "data", solutions[3], grid[3], grid[4], lambda u: grid[3] ** 2 + slope * (u - lam[3])
    )
    assert relative(solutions[4], exact) < 1e-12


def test_ratios_may_be_traced():
    path = PATHS["vp"]
    flow = fj.Flow(lambda x, t, cond: jnp.tanh(x + t[:, None]), path=path, prediction="data")
    x = fj.noise(jax.random.key(0), (3, 2))

    @jax.jit
    def end(ratios):
        return fj.solve(flow, DCSolver(ratios=[ratios[i] for i in range(5)]).bind(path, uniform(5)), x).x

    ratios = jnp.array([1.0, 1.0, 0.9, 1.1, 0.8], jnp.float32)
    concrete = fj.solve(flow, DCSolver(ratios=np.asarray(ratios, np.float64)), x, uniform(5)).x
    assert relative(end(ratios), concrete) < 1e-5
    slopes = jax.jacfwd(lambda r: jnp.sum(end(r) ** 2))(ratios)
    assert np.array_equal(slopes[:2], [0.0, 0.0])
    moved = [float(jnp.sum(end(ratios.at[3].add(h)) ** 2)) for h in (0.01, -0.01)]
    assert float(slopes[3]) == pytest.approx((moved[0] - moved[1]) / 0.02, rel=2e-2)


def test_needs_three_outputs_whatever_the_order():
    assert DCSolver(order=2, ratios=[0.9] * 6).depth == 3
    assert DCSolver(order=4, ratios=[0.9] * 6).depth == 4

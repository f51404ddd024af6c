import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Problem, relative

import flowjax as fj
from flowjax.oracles import Gaussian
from flowjax.solvers import Euler, FlowTurbo, Heun, run_on_arrays
from flowjax.times import uniform

LINEAR = PATHS["linear"]
NO_REFINER = fj.Flow(lambda x, t, cond=None, velocity=None: jnp.zeros_like(x), path=LINEAR)
START = np.array([[-1.0], [0.3], [2.0]])


def refining(problem):
    """The problem's velocity, and a refiner that lifts any velocity to it exactly."""

    def network(request):
        value = problem(request)
        return value - request.velocity if request.second else value

    return network


def largest_error(solver, n):
    """Data N(1.5, 0.4^2) on the linear path from noises -1, 0.3 and 2; the end is 1.5 + 0.4 x0."""
    target = Gaussian(mean=1.5, std=0.4, path=LINEAR)

    def network(request):
        with jax.enable_x64(True):
            return np.asarray(target.velocity(request.t, request.x))

    return float(np.abs(run_on_arrays(solver, LINEAR, uniform(n), START, network)[-1] - (1.5 + 0.4 * START)).max())


@pytest.mark.parametrize(
    ("n", "euler", "heun", "pseudo"), [(10, 1.218e-1, 4.606e-3, 7.655e-3), (40, 3.213e-2, 3.577e-4, 5.455e-4)]
)
def test_measured_errors(n, euler, heun, pseudo):
    """Numbers of an independent implementation."""
    assert largest_error(Euler(), n) == pytest.approx(euler, rel=2e-3)
    assert largest_error(FlowTurbo(blocks=f"H{n}"), n) == pytest.approx(heun, rel=2e-3)
    assert largest_error(FlowTurbo(blocks=f"H1P{n - 1}"), n) == pytest.approx(pseudo, rel=2e-3)


def test_pseudo_corrector_is_second_order_and_wins_at_equal_cost():
    errors = [largest_error(FlowTurbo(blocks=f"H1P{n - 1}"), n) for n in (20, 40, 80)]
    assert -np.polyfit(np.log([20, 40, 80]), np.log(errors), 1)[0] == pytest.approx(2, abs=0.15)
    assert largest_error(FlowTurbo(blocks="H1P19"), 20) < 0.6 * largest_error(FlowTurbo(blocks="H11"), 11)  # 21 and 22


@pytest.mark.parametrize("name", ["linear", "vp", "trig"])
def test_heun_blocks_are_heun(name):
    problem = Problem(PATHS[name])
    grid = np.array([0.1, 0.25, 0.5, 0.6, 0.9])
    x = problem.state(grid[0])
    turbo, heun = (run_on_arrays(s, problem.path, grid, x, problem)[-1] for s in (FlowTurbo(blocks="H4"), Heun()))
    assert relative(turbo, heun) < 1e-14


@pytest.mark.parametrize("blocks", ["H3", "P3", "H1P2", "H1P1R1", "P2R1"])
def test_constant_velocities_are_exact(blocks):
    v = np.array([[0.3], [-1.0]])
    solver = FlowTurbo(blocks=blocks, refiner=NO_REFINER)
    network = lambda r: 0 * v if r.second else v  # noqa: E731
    assert run_on_arrays(solver, LINEAR, uniform(3), 0 * v, network)[-1] == pytest.approx(v)


def test_a_refiner_that_does_nothing_is_euler_with_the_cached_velocity():
    problem = Problem(LINEAR)
    x, seen = problem.state(0.0), []

    def network(request):
        seen.append(np.zeros_like(request.x) if request.second else problem(request))
        return seen[-1]

    solutions = run_on_arrays(FlowTurbo(blocks="H1P1R2", refiner=NO_REFINER), LINEAR, uniform(4), x, network)
    cache = seen[2]  # H evaluates twice, P once, at its predicted point
    assert relative(solutions[3], solutions[2] + cache / 4) < 1e-14
    assert relative(solutions[4], solutions[3] + cache / 4) < 1e-14


@pytest.mark.parametrize("name", ["linear", "trig"])
def test_a_perfect_refiner_is_heun(name):
    problem = Problem(PATHS[name])
    grid = uniform(6, 0.0, 0.95)
    x = problem.state(0.0)
    heun = run_on_arrays(Heun(), problem.path, grid, x, problem)[-1]
    for blocks in ("H1R5", "H4R2"):
        good, slip = (
            run_on_arrays(
                FlowTurbo(blocks=blocks, refiner=NO_REFINER, second_input=second),
                problem.path,
                grid,
                x,
                refining(problem),
            )[-1]
            for second in ("d", "cache")
        )
        assert relative(good, heun) < 1e-12
        assert relative(slip, heun) > 1e-3


@pytest.mark.parametrize(
    ("blocks", "evaluations", "refiner"),
    [("H3", 6, 0), ("H2P3", 7, 0), ("P4", 5, 0), ("H2P4R2", 8, 4), ("P2R3", 3, 6), ("H1P1H1", 5, 0), ("H10R1", 20, 2)],
)
def test_counts(blocks, evaluations, refiner):
    solver = FlowTurbo(blocks=blocks, refiner=NO_REFINER)
    asked = []
    n = len(solver.kinds)
    run_on_arrays(solver, LINEAR, uniform(n), START, lambda r: asked.append(r.second) or r.x)
    assert (len(asked) - sum(asked), sum(asked)) == (evaluations, refiner)


@pytest.mark.parametrize(("blocks", "evaluations", "refiner"), [("H1P2R2", 4, 4), ("H1" + "R1P1" * 5, 7, 10)])
def test_compiled_with_a_refiner_network(blocks, evaluations, refiner):
    """The refiner gets the cached velocity, and its calls are counted apart, in blocks or taking turns."""
    counts, n = (evaluations, refiner), len(FlowTurbo(blocks=blocks, refiner=NO_REFINER).kinds)
    refiner = fj.Flow(lambda x, t, cond=None, velocity=None: 0.1 * velocity - 0.2 * x, path=LINEAR)
    flow = fj.Flow(lambda x, t, cond=None: jnp.sin(x) + t[:, None], path=LINEAR)
    solver = FlowTurbo(blocks=blocks, refiner=refiner)
    result = fj.solve(flow, solver, jnp.asarray(START, jnp.float32), uniform(n), trajectory=True)
    network = lambda r: 0.1 * r.velocity - 0.2 * r.x if r.second else np.sin(r.x) + r.t  # noqa: E731
    assert relative(result.trajectory, np.stack(run_on_arrays(solver, LINEAR, uniform(n), START, network))) < 1e-5
    assert (int(result.evaluations), int(result.refiner_evaluations)) == counts


def test_guided_refiner_of_scale_one_is_the_conditional_one():
    """Guidance doubles the batch, the velocity included."""

    def r(x, t, cond, velocity):
        return (1 + cond[:, None]) * jnp.tanh(velocity + x)

    flow = fj.Flow(lambda x, t, cond: cond[:, None] - x, path=LINEAR, null=0.0)
    refiner = fj.Flow(r, path=LINEAR, null=0.0)
    x, cond = jnp.asarray(START, jnp.float32), jnp.array([0.5, 1.0, -1.0])

    def run(field, refiner):
        return fj.solve(field, FlowTurbo(blocks="H1P1R2", refiner=refiner), x, uniform(4), cond=cond).x

    guided = run(flow, fj.guide(refiner, fj.guidance.CFG(scale=1.0)))
    assert relative(guided, run(flow, refiner)) < 1e-6
    assert relative(run(flow, fj.guide(refiner, fj.guidance.CFG(scale=2.0))), guided) > 1e-3


@pytest.mark.parametrize("blocks", ["", "H", "H2 P3", "h2", "H2Q1", "2H", "H0", "H-1", "H2.5"])
def test_schedules_that_cannot_be_read(blocks):
    with pytest.raises(ValueError, match="is not a schedule: write letters H"):
        FlowTurbo(blocks=blocks)


def test_other_refusals():
    with pytest.raises(ValueError, match="refiner steps: pass refiner="):
        FlowTurbo(blocks="H2R1")
    with pytest.raises(ValueError, match="begins with a refiner step"):
        FlowTurbo(blocks="R2H1", refiner=NO_REFINER)
    with pytest.raises(ValueError, match="second_input"):
        FlowTurbo(blocks="H2", second_input="v")
    with pytest.raises(ValueError, match="makes 3 steps, the grid has 5"):
        FlowTurbo(blocks="H3").bind(LINEAR, uniform(5))


def test_zero_counts_are_left_out():
    assert FlowTurbo(blocks="H2P0").kinds == "HH"
    assert FlowTurbo(blocks="H8P9R5", refiner=NO_REFINER).kinds == "H" * 8 + "P" * 9 + "R" * 5


def test_edits_with_a_perfect_refiner_are_those_of_heun():
    """From a picture with noise, keeping a part of it after every step; the cache stays and is refined there."""
    network = lambda x, t, cond=None: jnp.sin(x) + t[:, None]  # noqa: E731
    flow = fj.Flow(network, path=LINEAR)
    refiner = fj.Flow(lambda x, t, cond=None, velocity=None: network(x, t) - velocity, path=LINEAR)
    source, noise = jnp.asarray(START, jnp.float32), jnp.array([[0.5], [-0.2], [1.0]])
    keep, times = jnp.array([[1.0], [0.0], [0.0]]), uniform(5, start=0.4)

    def inpaint(t, x):
        return keep * LINEAR.interpolate(t, noise, source) + (1 - keep) * x

    found = [
        fj.solve(flow, solver, LINEAR.interpolate(0.4, noise, source), times, after_step=inpaint).x
        for solver in (FlowTurbo(blocks="H2R3", refiner=refiner), Heun())
    ]
    assert relative(*found) < 1e-6
    np.testing.assert_allclose(found[0][0], source[0], rtol=1e-6)

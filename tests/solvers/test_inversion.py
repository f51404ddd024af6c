"""Runs from data to noise: every deterministic solver of the catalogue on decreasing times."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Problem, relative, through_diffrax

import flowjax as fj
from flowjax.catalogue import solvers
from flowjax.oracles import Mixture
from flowjax.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    AdamsBashforth,
    Adaptive,
    DCSolver,
    Decision,
    DPMAdaptive,
    DPMSolver,
    DPMSolverV3,
    EDMHeun,
    Euler,
    EulerMaruyama,
    HeavyBall,
    SASolver,
    Schedule,
    Solver,
    Splitting,
    StochasticHeun,
    UniPC,
    run_on_arrays,
)
from flowjax.times import uniform

LINEAR = PATHS["linear"]
ONE_WAY = ("splitting", "jump", "policy", "learned")  # have tests of their own; know spans towards the data alone
DETERMINISTIC = [n for n, e in solvers.items() if issubclass(e.make, Solver) and not e.stochastic and n not in ONE_WAY]
MORE = {
    "2s": (DPMSolver(scheme="singlestep", form="noise"), 2),
    "3s": (DPMSolver(order=3, scheme="singlestep_fixed"), 3),
    "3m_started": (DPMSolver(order=3, start="singlestep", solver_type="taylor", lower_order_final=False), 3),
    "2m_noise": (DPMSolver(form="noise"), 2),
    "unipc2_noise": (UniPC(order=2, form="noise", variant="bh1"), 2),
    "dc": (DCSolver(ratios=None), 2),
    "deis_log_k": (DEIS(variable="log_k"), 2),
    "deis_k": (DEIS(variable="k"), 2),
    "plms4": (AdamsBashforth(form="noise", weights="fixed"), 2),
    "ab4_rk4": (AdamsBashforth(start="rk4"), 4),
    "sa_ode": (SASolver(tau=0.0), 2),
    "er_ode": (ERSDE(scale=lambda k: k), 2),
}


def make(name, grid):
    """A typical solver for this grid, and its order."""
    if name in MORE:
        return MORE[name]
    entry, n = solvers[name], len(grid) - 1
    if name == "flowturbo":
        return entry.make(blocks=f"H1P{n - 1}"), entry.order
    if name == "usf":
        decisions = [Decision(order=min(i + 1, 2), corrector=0 < i < n - 1) for i in range(n)]
        return entry.make(schedule=Schedule(times=tuple(grid.tolist()), decisions=tuple(decisions))), 2
    return entry.make(**entry.example()), entry.order


def falling(path, n, low=-1.0, high=2.0):
    """Equal steps in lam, from data to noise."""
    return np.asarray(path.time(np.linspace(high, low, n + 1)))


def error(problem, name, grid, x):
    solver, order = make(name, grid)
    end = run_on_arrays(solver, problem.path, grid, x, problem, invert=bool(grid[0] > grid[-1]))[-1]
    return end, float(np.sqrt(np.mean((end - problem.exact(x, grid[0], grid[-1])) ** 2))), order


@pytest.mark.parametrize("name", [*DETERMINISTIC, *MORE])
@pytest.mark.parametrize("path", ["linear", pytest.param("vp", marks=pytest.mark.slow)])
def test_order_and_round_trip(name, path):
    """The order is that of a run from noise to data, and what goes to noise and back returns."""
    problem, counts = Problem(PATHS[path]), (84, 168)
    errors, trips = [], []
    for n in counts:
        grid = falling(problem.path, n)
        x = problem.state(grid[0])
        there, size, order = error(problem, name, grid, x)
        back, _, _ = error(problem, name, grid[::-1], there)
        errors.append(size)
        trips.append(float(np.sqrt(np.mean((back - x) ** 2))))
    assert order - 0.35 < np.log2(errors[0] / errors[1]) < order + 0.6
    assert trips[1] < 0.7 * trips[0]
    assert trips[1] < 0.02


@pytest.mark.parametrize("name", [*DETERMINISTIC, *MORE])
@pytest.mark.parametrize("path", PATHS)
def test_from_end_to_end_it_is_finite_or_refused(name, path):
    """From data at t = 1 to noise at t = 0, and from each end to the inside."""
    problem = Problem(PATHS[path])
    for start, end in ((1.0, 0.0), (0.95, 0.0), (1.0, 0.05)):
        grid = uniform(6, end, start)[::-1]
        x = problem.state(start)
        solver, _ = make(name, grid)
        try:
            bound = solver.bind(problem.path, grid, invert=True)
        except ValueError as refusal:
            assert "move" in str(refusal)  # noqa: PT017
            assert "\n" not in str(refusal)  # noqa: PT017
            continue
        try:
            bound.check(fj.Flow(lambda x, t, cond: x, path=problem.path))
        except ValueError as refusal:
            assert "move" in str(refusal)  # noqa: PT017
            continue
        found = run_on_arrays(solver, problem.path, grid, x, problem, invert=True)[-1]
        assert np.all(np.isfinite(found))
        assert np.max(np.abs(found)) < 50 * problem.path.sigma(0.0)


@pytest.mark.parametrize("solver", [Euler(), AdamsBashforth(order=2), fj.solvers.Heun()], ids=repr)
def test_methods_of_the_velocity_go_the_whole_way(solver):
    problem = Problem(LINEAR)
    x = problem.state(1.0)
    ends = [run_on_arrays(solver, LINEAR, uniform(n)[::-1], x, problem, invert=True)[-1] for n in (50, 400)]
    exact = problem.exact(x, 1.0, 0.0)
    errors = [np.abs(end - exact).max() for end in ends]
    assert errors[1] < min(0.35, 0.5 * errors[0])


@functools.cache
def flow():
    return fj.Flow(Mixture.default(LINEAR).network("velocity"), path=LINEAR)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heun", "unipc", "dpm_solver", "rk4"])
def test_solve_and_diffrax_give_the_same(name):
    grid = uniform(6, 0.1, 0.9)[::-1]
    x = fj.noise(jax.random.key(0), (8, 1))
    solver, _ = make(name, grid)
    result = fj.solve(flow(), solver, x, grid, trajectory=True, invert=True)
    bound = solver.bind(LINEAR, grid, invert=True)
    assert np.array_equal(result.trajectory[-1], result.x)
    assert result.evaluations == bound.pattern.rows
    with jax.enable_x64(False):
        found = through_diffrax(flow(), bound, x)
    assert found.result == diffrax.RESULTS.successful
    assert relative(found.ys[-1], result.x) < 1e-6
    wrong = through_diffrax(flow(), bound, x, grid=grid[::-1])
    assert wrong.result != diffrax.RESULTS.successful
    padded = fj.solve(flow(), solver, x, grid, registers=8, invert=True).x
    assert relative(padded, result.x) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Adaptive(rtol=1e-6, atol=1e-6), DPMAdaptive(rtol=1e-3, atol=1e-4)], ids=repr)
def test_adaptive_solvers(solver):
    target, grid = Mixture.default(LINEAR), uniform(4, 0.1, 0.9)[::-1]
    x = jnp.linspace(-1.5, 1.5, 8)[:, None]
    result = fj.solve(flow(), solver, x, grid, invert=True)
    assert relative(result.x, target.flow_map(x, 0.9, 0.1)) < (1e-3 if isinstance(solver, DPMAdaptive) else 1e-4)
    back = fj.solve(flow(), solver, result.x, grid[::-1])
    assert relative(back.x, x) < 1e-2


@pytest.mark.parametrize("name", [n for n, e in solvers.items() if issubclass(e.make, Solver)])
def test_stochastic_methods_say_so_and_refuse(name):
    entry = solvers[name]
    grid = uniform(4, 0.1, 0.9)
    solver, _ = (entry.make(**entry.example()), None) if entry.stochastic or name == "splitting" else make(name, grid)
    assert solver.stochastic == entry.stochastic
    if entry.stochastic:
        with pytest.raises(ValueError, match="draws noise, which no run back"):
            solver.bind(LINEAR, grid[::-1], invert=True)


@pytest.mark.parametrize(
    "solver",
    [
        DDIM(eta=0.5),
        DPMSolver(eta=1.0),
        EDMHeun(s_churn=5.0),
        SASolver(tau=0.3),
        ERSDE(),
        EulerMaruyama(),
        StochasticHeun(),
        HeavyBall(solver=DDIM(eta=1.0)),
        fj.solvers.Formula(function=lambda path, times, x: noisy(times, x)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_options_that_draw_noise_refuse(solver):
    with pytest.raises(ValueError, match="invert=True is for deterministic solvers"):
        fj.solve(flow(), solver, jnp.zeros((1, 1)), uniform(4, 0.1, 0.9)[::-1], invert=True)


def noisy(times, x):
    for t in times[1:]:
        yield fj.solvers.requests.evaluate(t, x)
        x = yield fj.solvers.requests.step(x + (yield fj.solvers.requests.noise()))


def test_directions_are_asked_for():
    x, grid = jnp.zeros((1, 1)), uniform(3, 0.1, 0.9)
    told = (
        r"times must increase from noise \(t=0\) to data \(t=1\), got \[0.9.*invert=True integrates from data to noise"
    )
    for solver in (Euler(), Adaptive(), DPMAdaptive()):
        with pytest.raises(ValueError, match=told):
            fj.solve(flow(), solver, x, grid[::-1])
        with pytest.raises(ValueError, match="invert=True times must decrease"):
            fj.solve(flow(), solver, x, grid, invert=True)
    with pytest.raises(ValueError, match="must increase from noise"):
        fj.solve(flow(), Euler(), x, [0.9, 0.1, 0.5])
    with pytest.raises(ValueError, match="direction already"):
        fj.solve(flow(), Euler().bind(LINEAR, grid), x, invert=True)
    with pytest.raises(ValueError, match=r"for example flowjax.times.uniform\(20\)"):
        fj.solve(flow(), Euler(), x, 20)


def test_statistics_serve_both_directions():
    lam = np.linspace(-6, 6, 61)
    solver = DPMSolverV3(
        statistics=fj.solvers.Statistics(lam=lam, l=0.3 + 0.1 * np.tanh(lam), s=-0.2 + 0 * lam, b=0 * lam)
    )
    problem, errors = Problem(LINEAR), []
    for n in (40, 80):
        grid = falling(LINEAR, n)
        x = problem.state(grid[0])
        found = run_on_arrays(solver, LINEAR, grid, x, problem, invert=True)[-1]
        errors.append(np.abs(found - problem.exact(x, grid[0], grid[-1])).max())
    assert errors[1] < 0.35 * errors[0]


def test_splitting_inverts():
    """A guidance of zero: the field's own method."""
    pull = fj.fields.Gradient(lambda x, t, cond: 0.0 * jnp.sum(x, -1), path=LINEAR)
    solver = Splitting(guidance=pull, solver=AdamsBashforth(order=2))
    x, grid = jnp.linspace(-1, 1, 4)[:, None], uniform(5, 0.2, 0.8)[::-1]
    found = fj.solve(flow(), solver, x, grid, invert=True).x
    assert relative(found, fj.solve(flow(), AdamsBashforth(order=2), x, grid, invert=True).x) < 1e-6


def test_gradients_pass():
    x = fj.noise(jax.random.key(0), (4, 1))
    bound = DPMSolver().bind(LINEAR, uniform(4, 0.1, 0.9)[::-1], invert=True)
    slope = jax.grad(lambda scale: jnp.sum(fj.solve(flow(), bound, scale * x).x))(1.0)
    assert np.isfinite(slope)
    assert slope != 0

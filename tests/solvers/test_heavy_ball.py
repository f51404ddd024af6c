import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Problem, relative

import flowjax as fj
from flowjax.catalogue import solvers
from flowjax.solvers import (
    DDIM,
    ERSDE,
    GHVB,
    RK4,
    AdamsBashforth,
    DPMSolver,
    Euler,
    FlowTurbo,
    Formula,
    HeavyBall,
    Heun,
    Midpoint,
    Nesterov,
    SASolver,
    Splitting,
    UniPC,
    run_on_arrays,
)
from flowjax.times import log_snr, uniform

LINEAR = PATHS["linear"]
BASES = [Euler(), Heun(), Midpoint(), RK4(), DDIM(), AdamsBashforth(order=3), DPMSolver(order=2), DPMSolver(order=3)]
GRID = np.array([0.1, 0.17, 0.2, 0.31, 0.42, 0.44, 0.6, 0.71, 0.9])


@pytest.mark.parametrize("solver", BASES, ids=lambda s: type(s).__name__)
def test_beta_one_is_the_wrapped_method(solver):
    problem = Problem(PATHS["vp"])
    x = problem.state(GRID[0])
    base, same, other = (
        run_on_arrays(s, problem.path, GRID, x, problem)[-1]
        for s in (solver, HeavyBall(solver=solver, beta=1.0), HeavyBall(solver=solver, beta=0.8))
    )
    assert relative(same, base) < 1e-13
    assert relative(other, base) > 1e-4


@pytest.mark.parametrize(
    "solver", [Euler(), Midpoint(), AdamsBashforth(order=2), DPMSolver()], ids=lambda s: type(s).__name__
)
def test_order_is_one(solver):
    def grid(n):
        return log_snr(LINEAR, n, 0.2, 0.8)

    found = Problem(LINEAR).order(HeavyBall(solver=solver, beta=0.8), (80, 160, 320, 640), grid)
    assert found == pytest.approx(1, abs=0.2)


def test_recurrence():
    """v_n = 0.3 v_(n-1) + 0.7 d_n from v_0 = d_0, seen in the velocities of a run with given directions."""
    values = iter(np.array([1.0, 2.0, -1.0, 4.0]))
    solver = HeavyBall(solver=Euler(), beta=0.7)
    solutions = run_on_arrays(solver, LINEAR, uniform(4), np.zeros((1, 1)), lambda r: np.full((1, 1), next(values)))
    v = [1.0]
    for d in (2.0, -1.0, 4.0):
        v.append(0.3 * v[-1] + 0.7 * d)
    assert 4 * np.diff(np.concatenate(solutions)[:, 0]) == pytest.approx(v)


def test_momentum_may_start_with_the_first_output():
    """2M from m_0: the first second-order step is damped too, v = 0.5 m_0 + 0.5 (m_1 + (m_1 - m_0)/(2 r))."""
    path = PATHS["vp"]
    problem, grid = Problem(path), log_snr(path, 3, 0.1, 0.9)
    x = problem.state(grid[0])
    solver = HeavyBall(solver=DPMSolver(lower_order_final=False), beta=0.5, init="first_output")
    solutions = run_on_arrays(solver, path, grid, x, problem)
    m = [problem(fj.solvers.requests.Evaluate(t=float(t), x=y, to="data")) for t, y in zip(grid, solutions)]
    v = 0.5 * m[0] + 0.5 * (m[1] + (m[1] - m[0]) / 2)
    k = path.sigma(grid[2]) / path.sigma(grid[1])
    expected = k * solutions[1] + (path.alpha(grid[2]) - k * path.alpha(grid[1])) * v
    assert relative(solutions[2], expected) < 1e-12


def largest(order, beta, product, n=400):
    """Largest |y| at the end of n steps of y' = q y with h q = -product."""
    solver = AdamsBashforth(order=order, weights="fixed")
    solver = HeavyBall(solver=solver, beta=beta) if beta < 1 else solver
    return float(
        abs(run_on_arrays(solver, LINEAR, uniform(n), np.ones((1, 1)), lambda r: -product * n * r.x)[-1][0, 0])
    )


@pytest.mark.parametrize(("order", "interval"), [(1, 2.0), (2, 1.0), (3, 6 / 11), (4, 0.3), (5, 90 / 551)])
@pytest.mark.parametrize("beta", [1.0, 0.8, 0.5])
def test_stability_interval_grows_by_the_stated_factor(order, interval, beta):
    bound = interval * (2 - beta) / beta
    assert largest(order, beta, 0.96 * bound) < 1
    assert largest(order, beta, 1.08 * bound) > 1e2


def test_damps_where_the_wrapped_method_diverges():
    assert largest(2, 1.0, 1.4) > 1e6
    assert largest(2, 0.8, 1.4) < 1e-6


def test_first_and_lowered_steps_of_dpm_solver_stay_as_they_are():
    path = PATHS["vp"]
    problem, grid = Problem(path), log_snr(path, 5, 0.1, 0.9)
    x = problem.state(grid[0])
    base, heavy = (
        run_on_arrays(s, path, grid, x, problem)
        for s in (DPMSolver(order=2), HeavyBall(solver=DPMSolver(order=2), beta=0.5))
    )
    assert np.array_equal(base[1], heavy[1])
    assert relative(heavy[2], base[2]) < 1e-13  # the first direction starts the momentum
    assert relative(heavy[3], base[3]) > 1e-4
    last = problem(fj.solvers.requests.Evaluate(t=float(grid[-2]), x=heavy[-2], to="data"))
    k = [path.sigma(t) / path.sigma(grid[-2]) for t in grid[-2:]]
    expected = k[1] * heavy[-2] + (path.alpha(grid[-1]) - k[1] * path.alpha(grid[-2])) * last  # DDIM
    assert relative(heavy[-1], expected) < 1e-12


@pytest.mark.parametrize("solver", BASES, ids=lambda s: type(s).__name__)
def test_repeated_times_change_nothing(solver):
    if isinstance(solver, DPMSolver):  # which orders its last steps use depends on the number of steps, not on lengths
        solver = dataclasses.replace(solver, lower_order_final=False)
    problem, heavy = Problem(LINEAR), HeavyBall(solver=solver, beta=0.6)
    x = problem.state(GRID[0])
    for place in (0, 4):
        twice = np.insert(GRID, place, GRID[place])
        plain, repeated = (run_on_arrays(heavy, LINEAR, grid, x, problem)[-1] for grid in (GRID, twice))
        assert relative(repeated, plain) < 1e-13


@pytest.mark.parametrize("beta", [0.0, -0.2, 1.2])
def test_beta_is_checked(beta):
    with pytest.raises(ValueError, match="weight of the new direction"):
        HeavyBall(solver=Euler(), beta=beta)


def test_wraps_fixed_grid_solvers_only():
    with pytest.raises((ValueError, TypeError)):  # with annotations checked, a TypeError comes first
        HeavyBall(solver=fj.solvers.Adaptive())


SILENT = ("dpm_solver_v3", "usf", "learned", "sa_solver", "er_sde", "splitting", "jump", "policy", "consistency")


@pytest.mark.parametrize("wrapper", [HeavyBall, Nesterov])
@pytest.mark.parametrize("name", [n for n, e in solvers.items() if issubclass(e.make, fj.solvers.Solver)])
def test_momentum_acts_on_every_method_or_is_refused(wrapper, name):
    """Whatever the catalogue has: never the wrapped method's own samples without a word."""
    entry = solvers[name]
    options = entry.example() | ({"blocks": "H1P7"} if name == "flowturbo" else {})
    solver = entry.make(**options)
    if name in SILENT:
        with pytest.raises(ValueError, match="cannot act on"):
            wrapper(solver=solver)
        return
    problem = Problem(PATHS["vp"])
    x, rng = problem.state(GRID[0]), [np.random.default_rng(0) for _ in range(2)]
    plain, damped = (
        run_on_arrays(s, problem.path, GRID, x, problem, lambda r=r: r.standard_normal(x.shape))[-1]
        for s, r in zip((solver, wrapper(solver=solver, beta=0.5)), rng, strict=True)
    )
    assert relative(damped, plain) > 1e-4


@pytest.mark.parametrize(
    ("solver", "hint"),
    [
        (UniPC(corrector=False), "say directions='predictor'"),
        (SASolver(), "no direction"),
        (ERSDE(), "no direction"),
        (Splitting(guidance=None), "put momentum on its solver= or guidance_solver="),
    ],
    ids=lambda s: type(s).__name__,
)
def test_refusals_say_what_to_do(solver, hint):
    with pytest.raises(ValueError, match=hint):
        HeavyBall(solver=solver)


def test_momentum_on_the_predictor_alone():
    problem, solver = Problem(LINEAR), UniPC(corrector=False, directions="predictor")
    x = problem.state(GRID[0])
    plain, damped = (
        run_on_arrays(s, LINEAR, GRID, x, problem)[-1] for s in (solver, HeavyBall(solver=solver, beta=0.5))
    )
    assert relative(damped, plain) > 1e-4


@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_ghvb_of_beta_one_is_adams_bashforth_to_momentum_too(beta):
    problem, x = Problem(LINEAR), Problem(LINEAR).state(GRID[0])
    ends = [
        run_on_arrays(HeavyBall(solver=s, beta=beta), LINEAR, GRID, x, problem)[-1]
        for s in (GHVB(order=3, beta=1.0), AdamsBashforth(order=3))
    ]
    assert relative(*ends) < 1e-13


def silent(path, times, x):
    for s, t in fj.solvers.requests.pairs(times):
        x = yield fj.solvers.requests.step(x + (t - s) * (yield fj.solvers.requests.evaluate(s, x)))


@pytest.mark.parametrize(
    ("solver", "steps", "refused"),
    [
        (DPMSolver(), 1, False),  # one step has no momentum, whatever the method
        (DPMSolver(), 2, True),
        (DPMSolver(), 3, True),  # one direction is its own mean
        (DPMSolver(), 4, False),
        (UniPC(), 2, True),
        (UniPC(), 3, False),
        (Euler(), 2, False),
        (FlowTurbo(blocks="H2"), 2, False),
        (Formula(function=silent), 5, True),
    ],
    ids=lambda v: str(v)[:12],
)
def test_runs_in_which_momentum_would_change_nothing_are_refused(solver, steps, refused):
    heavy = HeavyBall(solver=solver, beta=0.5)
    if refused:
        with pytest.raises(ValueError, match=f"changes nothing in these {steps} steps of {type(solver).__name__}"):
            heavy.bind(LINEAR, uniform(steps, 0.1, 0.9))
    else:
        assert heavy.bind(LINEAR, uniform(steps, 0.1, 0.9)).pattern.rows >= steps


def test_heavy_balls_nest():
    solver = HeavyBall(solver=HeavyBall(solver=Euler(), beta=0.5), beta=0.5)
    result = fj.solve(fj.Flow(lambda x, t, cond: jnp.ones_like(x), path=LINEAR), solver, jnp.zeros((1, 1)), uniform(3))
    assert float(result.x[0, 0]) == pytest.approx(1.0)
    values = iter(np.array([1.0, 2.0, -1.0, 4.0]))
    solutions = run_on_arrays(solver, LINEAR, uniform(4), np.zeros((1, 1)), lambda r: np.full((1, 1), next(values)))
    inner = [1.0, 1.5, 0.25, 2.125]
    outer = [1.0, 1.25, 0.75, 1.4375]
    assert 4 * np.diff(np.concatenate(solutions)[:, 0]) == pytest.approx(outer), inner

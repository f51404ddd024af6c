"""Splitting, on the default mixture guided to one of its classes: guidance of scale 1 is the flow of that class."""

import functools
import json
import pathlib

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Problem, foreign_loop, relative

import flowjax as fj
from flowjax.oracles import Mixture
from flowjax.solvers import (
    GHVB,
    AdamsBashforth,
    DPMSolver,
    Euler,
    FlowTurbo,
    Midpoint,
    Splitting,
    StepTo,
    UniPC,
    run_on_arrays,
)
from flowjax.times import log_snr, uniform

CLASS = 2
RECORDED = json.loads((pathlib.Path(__file__).parent / "splitting_official.json").read_text())
PULL = fj.fields.Gradient(lambda x, t, cond: -jnp.sum((x - 1) ** 2, -1) / 2, path=PATHS["linear"], scale=3.0)
FORMS = {
    "velocity": (AdamsBashforth(order=2), GHVB(order=2)),
    "noise": (AdamsBashforth(order=4, form="noise", weights="fixed"), GHVB(order=3, form="noise", weights="fixed")),
}
_predict = jax.jit(lambda target, to, t, x, cond: target.predict(to, t, x, cond), static_argnums=1)


class Guided(Problem):
    """The exact predictions of the mixture; asked as the second field, `scale` times what the class adds to them."""

    def __init__(self, path, scale=1.0):
        super().__init__(path)
        self.scale = scale

    def __call__(self, request):
        if not request.second:
            return super().__call__(request)
        with jax.enable_x64(True):
            predict = functools.partial(_predict, self.target, request.to, request.t, request.x)
            return self.scale * np.asarray(predict(np.full(len(request.x), CLASS)) - predict(None))

    def exact(self, x, start, end):
        """The flow of the class."""
        with jax.enable_x64(True):
            return np.asarray(self.target.flow_map(x, start, end, np.full(len(x), CLASS)))


def splitting(form, **options):
    solver, guidance_solver = FORMS[form]
    return Splitting(**{"guidance": PULL, "solver": solver, "guidance_solver": guidance_solver} | options)


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_recorded_runs_of_the_authors_program(name):
    order, beta = name.split()
    problem, grid = Guided(PATHS["vp"], RECORDED["scale"]), uniform(12, 0.1, 0.95)
    guidance_solver = GHVB(order=int(order), beta=float(beta), form="noise", weights="fixed")
    x = problem.path.sigma(0.1) * np.array(RECORDED["start"])[:, None]
    found = run_on_arrays(splitting("noise", guidance_solver=guidance_solver), problem.path, grid, x, problem)[-1]
    assert relative(found[:, 0], RECORDED["runs"][name]) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "vp", "ve"])
@pytest.mark.parametrize("form", FORMS)
def test_converges_to_the_flow_of_the_class_with_order_one(form, name):
    path = PATHS[name]
    order = Guided(path).order(splitting(form), (40, 80, 160), lambda n: log_snr(path, n, 0.2, 0.8))
    assert order == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("form", FORMS)
def test_limits(form):
    problem, grid = Guided(PATHS["linear"]), uniform(8, 0.1, 0.9)
    x = problem.state(0.1)

    def run(solver, network=problem):
        return run_on_arrays(solver, problem.path, grid, x, network)[-1]

    plain, guiding = FORMS[form]
    assert np.array_equal(run(splitting(form, guidance=None)), run(plain))
    nothing = lambda r: np.zeros_like(r.x) if r.second else problem(r)  # noqa: E731
    assert relative(run(splitting(form), nothing), run(plain)) < 1e-14
    constant = lambda r: np.full_like(r.x, 0.7 if r.second else -0.2)  # noqa: E731 - both parts exact: their sum
    both = lambda r: np.full_like(r.x, 0.5)  # noqa: E731
    assert relative(run(splitting(form), constant), run(plain, both)) < 1e-13
    assert relative(run(splitting(form), constant), run(guiding, both)) < 1e-13


def test_momentum_damps_a_stiff_guidance():
    """c = -15 x on steps of 0.1: |q| = 1.5 is more than the bound 1 of order 2, and less than 1.6, that of beta 0.4."""
    grid, x = np.arange(0.0, 0.95, 0.1), np.ones((1, 1))
    network = lambda r: -15.0 * r.x if r.second else np.zeros_like(r.x)  # noqa: E731

    def largest(guidance_solver):
        solver = splitting("velocity", guidance_solver=guidance_solver)
        return np.abs(np.concatenate(run_on_arrays(solver, PATHS["linear"], grid, x, network))[5:]).max()

    assert largest(AdamsBashforth(order=2)) > 5
    assert largest(GHVB(order=2, beta=0.4)) < 1


@pytest.mark.slow
def test_same_numbers_from_solve_diffrax_and_a_foreign_loop():
    path, grid = PATHS["linear"], uniform(6, 0.05, 0.95)
    target = Mixture.default(path)
    flow, x = fj.Flow(target.network("velocity"), path=path), fj.noise(jax.random.key(0), (8, 1))
    bound = splitting("velocity").bind(path, grid)
    result = fj.solve(flow, bound, x, trajectory=True)
    assert (result.evaluations, result.second_evaluations, len(result.trajectory)) == (6, 6, 7)

    def network(request):
        return (PULL if request.second else flow).velocity(request.t, request.x)

    assert relative(foreign_loop(bound, x, network), result.x) < 1e-5
    through_diffrax = diffrax.diffeqsolve(
        bound.term(flow),
        bound,
        grid[0],
        grid[-1],
        None,
        x,
        stepsize_controller=StepTo(ts=jnp.asarray(grid)),
        throw=False,
    )
    assert relative(through_diffrax.ys[-1], result.x) < 1e-5
    padded = fj.solve(flow, splitting("velocity"), x, grid, registers=8)
    assert relative(padded.x, result.x) < 1e-5


def test_the_program_does_not_grow_with_the_steps():
    traced = []

    def network(x, t, cond):
        traced.append(0)
        return -x

    def count(n):
        traced.clear()
        flow = fj.Flow(network, path=PATHS["linear"])
        fj.solve(flow, splitting("velocity"), fj.noise(jax.random.key(0), (2, 1)), uniform(n, 0.1, 0.9))
        return len(traced)

    assert count(40) == count(10) <= 3


def test_bad_combinations_are_refused():
    path, grid = PATHS["linear"], uniform(4, 0.1, 0.9)
    with pytest.raises(ValueError, match="must ask for the velocity or the noise, this one asks for 'data'"):
        splitting("velocity", guidance_solver=DPMSolver()).bind(path, grid)
    for solver in (UniPC(), FlowTurbo(blocks="H1P3")):
        with pytest.raises(ValueError, match=r"solver does not at t = 0\.3: take AdamsBashforth"):
            splitting("velocity", solver=solver).bind(path, grid)
    with pytest.raises(ValueError, match="one kind of prediction"):
        splitting("velocity", solver=DPMSolver()).bind(path, grid)
    with pytest.raises(ValueError, match="padded rows"):
        splitting("noise").bind(path, grid, registers=8)
    with pytest.raises(ValueError, match="expected a field"):
        Splitting(guidance=lambda x, t, cond: x)
    with pytest.raises(ValueError, match="splitting needs its option guidance"):  # as on a command line
        fj.build("solver", "splitting")
    with pytest.raises(ValueError, match="fixed-grid solver"):
        Splitting(guidance=None, solver="euler")
    with pytest.raises(ValueError, match="move the start"):  # a score says nothing of the data there
        fj.solve(
            fj.Flow(lambda x, t, cond: -x, path=path),
            splitting("velocity", solver=Euler(), guidance_solver=Midpoint()),
            jnp.ones((1, 1)),
            uniform(4),
        )

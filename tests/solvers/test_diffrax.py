"""Every bound method through `diffrax.diffeqsolve`, and diffrax's own solvers on the same term."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, relative, through_diffrax

import flowjax as fj
from flowjax.catalogue import solvers
from flowjax.fields import DriftPlusScore, sde_terms
from flowjax.solvers.rows import FIELD

pytestmark = pytest.mark.standard_promotion
LINEAR = PATHS["linear"]
GRID = 0.05 + 0.9 * fj.times.uniform(5) ** 1.2
NAMES = [name for name, entry in solvers.items() if issubclass(entry.make, fj.solvers.Solver)]
CHEAP = ("unipc", "usf", "flowturbo")  # a last step without evaluation; constants and arrays; a refiner


def network(x, t, cond=None, velocity=None):
    value = jnp.sin(2 * x + 3 * t[:, None]) + 0.5 * cond[:, None]
    return value if velocity is None else 0.1 * value - 0.2 * velocity


def make(name):
    if name == "usf":  # a guessed first output, and steps of all kinds
        lam, curve = np.linspace(-4, 4, 81), np.zeros((81, 3))
        curves = fj.solvers.Statistics(lam=lam, l=curve + 0.4, s=curve - 0.3, b=curve + np.array([0.1, 0, -0.1]))
        kinds = ("data", "noise", "v3", "v3", "data")
        decisions = tuple(fj.solvers.Decision(prediction=k, order=min(i + 1, 2)) for i, k in enumerate(kinds))
        schedule = fj.solvers.Schedule(times=tuple(GRID.tolist()), decisions=decisions, first="mean")
        return fj.solvers.USF(schedule=schedule, statistics=curves, mean=np.array([0.3, -0.2, 0.1]))
    if name == "flowturbo":
        return fj.solvers.FlowTurbo(blocks="H1P2R2", refiner=fj.Flow(network, path=LINEAR))
    return solvers[name].make(**solvers[name].example())


@pytest.mark.parametrize("name", [n if n in CHEAP else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_same_numbers_and_counts_as_solve(name):
    bound = make(name).bind(LINEAR, GRID)
    flow = fj.Flow(network, path=LINEAR, prediction=bound.pattern.to)
    x, cond = fj.noise(jax.random.key(0), (4, 3)), jnp.arange(4.0)
    key = jax.random.key(1) if bound.pattern.noises else None
    expected = fj.solve(flow, bound, x, cond=cond, key=key, index=5)
    with jax.debug_key_reuse(False):  # the checker takes a key that stays in diffrax's loop for a used one
        result = through_diffrax(flow, bound, x, cond, key, 5)
    assert result.result == diffrax.RESULTS.successful
    assert relative(result.ys[-1], expected.x) < 1e-6
    assert expected.evaluations == bound.pattern.kinds.count(FIELD)
    assert fj.flow.count(result.solver_state)[0] == bound.pattern.rows  # those of a refiner too


@pytest.mark.parametrize("method", [diffrax.Tsit5(), pytest.param(diffrax.Dopri5(), marks=pytest.mark.slow)])
def test_adaptive_solvers_of_diffrax(method):
    target = fj.oracles.Mixture.default(LINEAR)
    flow, x = fj.Flow(target.network("velocity"), path=LINEAR), fj.noise(jax.random.key(0), (8, 1))
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    result = diffrax.diffeqsolve(fj.term(flow), method, 0.0, 0.98, 0.05, x, stepsize_controller=controller)
    assert relative(result.ys[-1], target.flow_map(x, 0.0, 0.98)) < 1e-3


@pytest.mark.slow
def test_sde_solvers_of_diffrax():
    """Without diffusion they are the ODE's; with it, the result is another one."""
    target = fj.oracles.Gaussian(mean=0.5, std=0.7, path=LINEAR)
    flow, x = fj.Flow(target.network("velocity"), path=LINEAR), fj.noise(jax.random.key(0), (8, 1))

    def run(diffusion):
        terms = sde_terms(DriftPlusScore(flow, diffusion=diffusion), x, jax.random.key(1), start=0.0, end=0.9, tol=0.05)
        with jax.debug_key_reuse(False):  # diffrax's tree splits keys in a loop
            return diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 0.9, 0.1, x, throw=False).ys[-1]

    expected = fj.solve(flow, fj.solvers.Euler(), x, fj.times.uniform(9, 0.0, 0.9)).x
    assert relative(run(0.0), expected) < 1e-5
    assert relative(run(0.2), expected) > 1e-2

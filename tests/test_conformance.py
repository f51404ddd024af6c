"""Laws that every solver of the catalogue obeys, on a path with and one without a velocity at its end.

Those of all other kinds are in `test_kinds.py`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Executions, Problem, foreign_loop, relative

import flowjax as fj
from flowjax._pytree import pytree
from flowjax.catalogue import solvers
from flowjax.paths import PREDICTIONS
from flowjax.solvers.requests import Evaluate
from flowjax.solvers.solver import run_on_arrays

N = 4
GRID = 0.05 + 0.9 * fj.times.uniform(N) ** 1.2
FIXED = [
    name
    for name, entry in solvers.items()
    if issubclass(entry.make, fj.solvers.Solver) and "schedule" not in entry.example()  # a schedule has its own times
]
# Deterministic ones that take any number of steps: FlowTurbo's blocks and learned rows fix it.
FREE = [name for name in FIXED if not solvers[name].stochastic and name not in ("flowturbo", "learned")]
EXECUTIONS = Executions()


@pytree
class Network:
    """A small network with parameters and a condition; its last parameter is one label's embedding."""

    weight: Any
    table: Any

    def __call__(self, x, t, cond=None, end=None):
        span = 0.0 if end is None else 0.3 * (end - t)[:, None]  # asked by methods that jump
        return jnp.sin(x @ self.weight + 3 * t[:, None] + span) + self.table[cond]


COUNTED = EXECUTIONS.wrap(lambda x, t, cond=None, end=None, network=None: network(x, t, cond, end))


def make_network(seed=0):
    rng = np.random.default_rng(seed)
    return Network(
        weight=jnp.asarray(rng.standard_normal((3, 3)), jnp.float32),
        table=jnp.asarray(rng.standard_normal((5, 3)) / 4, jnp.float32),
    )


def make(name, grid=GRID):
    """A typical instance with default settings, for N steps where that matters."""
    entry = solvers[name]
    options = entry.example()
    if "blocks" in options:
        options["blocks"] = f"H1P{N - 1}"
    if "rows" in options:
        rows = fj.solvers.rows_of(fj.solvers.AdamsBashforth(order=3).bind(PATHS["linear"], grid))
        options["rows"] = dataclasses.replace(rows, weights=1.01 * rows.weights)
    return entry.make(**options)


def bind(name, path, grid=GRID):
    return make(name, grid).bind(PATHS[path], grid)


def make_flow(bound, path, net=None):
    """The network predicts what the solver asks for."""
    return fj.Flow(net or make_network(), path=PATHS[path], prediction=bound.pattern.to)


def batch(n=8):
    return fj.noise(jax.random.key(1), (n, 3)), jnp.arange(n, dtype=jnp.int32) % 5


def key_of(bound, seed=2):
    return jax.random.key(seed) if bound.pattern.noises else None


@functools.cache
def reference(name, path):
    """The run that the others are compared with: the whole batch of eight."""
    bound, (x, cond) = bind(name, path), batch()
    return fj.solve(make_flow(bound, path), bound, x, cond=cond, key=key_of(bound), trajectory=True)


everywhere = pytest.mark.parametrize("path", ["linear", "vp"])
every = pytest.mark.parametrize("name", FIXED)
free = pytest.mark.parametrize("name", FREE)


def test_the_lists_hold_all_solvers():
    """Those with steps of their own, on times of their own, have tests of their own."""
    # What jumps is exact where its network is.
    assert {name for name in FREE if solvers[name].order is None} == {"splitting", "jump", "policy"}, (
        "say order= in the fact"
    )
    assert set(solvers) - set(FIXED) == {"usf", "dpm_adaptive", "adaptive", "parallel"}
    noisy = {name for name in FIXED if bind(name, "linear").pattern.noises}
    assert noisy == set(FIXED) - set(FREE) - {"flowturbo", "learned"} != set()


@every
@everywhere
def test_is_finite_float32_and_counted(name, path):
    bound, result = bind(name, path), reference(name, path)
    assert result.x.dtype == jnp.float32
    assert result.trajectory.shape == (N + 1, 8, 3)
    assert np.all(np.isfinite(result.trajectory))
    assert np.array_equal(result.trajectory[0], batch()[0])
    assert np.array_equal(result.trajectory[-1], result.x)
    own = bound.pattern.rows
    assert result.evaluations == result.network_calls == own
    if path == "linear" and solvers[name].evaluations is not None:
        assert own == solvers[name].evaluations(N)
    assert bool(bound.pattern.noises) == solvers[name].stochastic


@every
def test_counted_evaluations_are_executed(name):
    bound, (x, cond) = bind(name, "linear"), batch()
    net = make_network()
    counted = lambda x, t, cond, end=None: COUNTED(x, t, cond, end=end, network=net)  # noqa: E731
    EXECUTIONS.take()
    flow = make_flow(bound, "linear", counted)
    result = fj.solve(flow, bound, x, cond=cond, key=key_of(bound))
    assert relative(result.x, reference(name, "linear").x) < 1e-5
    assert EXECUTIONS.take() == result.evaluations


@every
@everywhere
def test_compiled_equals_eager(name, path):
    bound, (x, cond) = bind(name, path), batch()
    net, key = make_network(), key_of(bound)

    def network(request):
        t = jnp.full(8, request.t, jnp.float32)
        return (
            net(request.x, t, cond, None if request.end is None else jnp.full(8, request.end, jnp.float32))
            if not request.second
            else bound.second.network(request.x, t, cond, request.velocity)
        )

    def noise(row, x):
        return bound.draw(row, x, key, 0)

    assert relative(foreign_loop(bound, x, network, noise), reference(name, path).x) < 1e-5


@pytest.mark.parametrize("name", [name for name in FIXED if not solvers[name].couples_batch])
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    bound, (x, cond) = bind(name, "linear"), batch()
    flow = make_flow(bound, "linear")
    halves = [fj.solve(flow, bound, x[i : i + 4], cond=cond[i : i + 4], key=key_of(bound), index=i).x for i in (0, 4)]
    assert relative(np.concatenate(halves), reference(name, "linear").x) < 1e-5


@every
def test_vmap_over_conditions(name):
    bound, (x, _) = bind(name, "linear"), batch()
    flow, key = make_flow(bound, "linear"), key_of(bound)
    conds = jnp.stack([jnp.full(8, c, jnp.int32) for c in (0, 3)])
    mapped = jax.vmap(lambda cond: fj.solve(flow, bound, x, cond=cond, key=key).x)(conds)
    single = fj.solve(flow, bound, x, cond=conds[1], key=key, trajectory=True).x
    assert relative(mapped[1], single) < 1e-5
    assert relative(mapped[0], single) > 1e-3


@every
def test_nothing_numerical_compiles_again(name):
    """New weights, times and guidance strength, and a bound solver as an argument of the user's own jit."""
    (x, cond), traces = batch(), []
    first = bind(name, "linear")

    @jax.jit
    def run(net, bound, scale, key):
        traces.append(1)
        flow = dataclasses.replace(make_flow(bound, "linear", net), null=0)
        return fj.solve(fj.guide(flow, fj.guidance.CFG(scale=scale)), bound, x, cond=cond, key=key).x

    plain = run(make_network(), first, 1.0, key_of(first))
    assert relative(plain, reference(name, "linear").x) < 1e-5
    others = [
        run(make_network(1), first, 1.0, key_of(first)),
        run(make_network(), bind(name, "linear", GRID**1.1), 1.0, key_of(first)),
        run(make_network(), first, 2.0, key_of(first)),
    ]
    assert len(traces) == 1
    assert all(relative(other, plain) > 1e-4 for other in others)


@every
def test_gradients_are_finite_and_right(name):
    bound, (x, cond) = bind(name, "linear"), batch()
    key, net = key_of(bound), make_network()

    @jax.jit
    @jax.value_and_grad
    def total(scale):
        scaled = dataclasses.replace(net, table=scale * net.table)
        flow = make_flow(bound, "linear", scaled)
        return jnp.sum(fj.solve(flow, bound, x, cond=cond, key=key, checkpoint=True).x ** 2)

    value, slope = total(1.0)
    assert np.isfinite(value)
    (above, _), (below, _) = total(1.02), total(0.98)
    assert slope == pytest.approx(float(above - below) / 0.04, rel=2e-2, abs=1e-2)


@every
def test_low_precision_network_keeps_single_precision_states(name):
    bound, (x, cond) = bind(name, "linear"), batch()
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_network())

    def network(x, t, cond=None, end=None):
        return low(x.astype(jnp.bfloat16), t.astype(jnp.bfloat16), cond)

    result = fj.solve(make_flow(bound, "linear", network), bound, x, cond=cond, key=key_of(bound))
    assert result.x.dtype == jnp.float32
    assert relative(result.x, reference(name, "linear").x) < 0.1


@every
def test_keys_are_independent(name):
    """Another key changes every number of a stochastic method, and a key none of a deterministic one."""
    bound, (x, cond) = bind(name, "linear"), batch()
    other = fj.solve(make_flow(bound, "linear"), bound, x, cond=cond, key=jax.random.key(9), trajectory=True)
    difference = np.abs(np.asarray(other.x) - np.asarray(reference(name, "linear").x))
    assert np.all(difference > 0) if bound.pattern.noises else np.all(difference == 0)


@free
@pytest.mark.parametrize("path", ["linear", "vp", "ve"])
def test_a_short_step_follows_the_flow(name, path):
    """One step of length h ends at x + h v + O(h^2), so that halving h quarters what is left."""
    problem = Problem(PATHS[path])
    x = problem.state(0.5)
    v = problem(Evaluate(t=0.5, x=x))
    left = []
    for h in (0.02, 0.01):
        (_, end) = run_on_arrays(make(name), problem.path, [0.5, 0.5 + h], x, problem)
        left.append(np.abs(end - x - h * v).max())
    assert left[0] < 0.05
    assert left[1] < 0.35 * left[0] + 1e-14


SETTLES = {"deis": 80, "nesterov": 160, "dpm_solver_v3": 160}  # steps from which the order shows; of the others 40


@pytest.mark.parametrize("name", [name for name, entry in solvers.items() if entry.order is not None])
@pytest.mark.parametrize("path", ["linear", "vp", "ve"])
def test_order_of_a_whole_run(name, path):
    """With default settings the error falls as the catalogue states, when the steps are halved."""
    entry, problem, n = solvers[name], Problem(PATHS[path]), SETTLES.get(name, 40)
    errors = []
    for steps in (n, 2 * n):
        options = entry.example() | ({"blocks": f"H1P{steps - 1}"} if name == "flowturbo" else {})
        grid = np.asarray(problem.path.time(np.linspace(-1.0, 2.0, steps + 1)))
        errors.append(problem.error(entry.make(**options), grid))
    found = float(np.log2(errors[0] / errors[1]))
    assert found == pytest.approx(entry.order, abs=0.2), f"{name} is of order {found:.2f}, its fact says {entry.order}"


# Where a run of few steps from end to end has no meaning, and the method says so.
REFUSED = {
    "deis": ("linear", "trig", "cosine"),  # no noise prediction where alpha = 0
    "heavy_ball": ("linear", "trig", "cosine"),  # fewer than two steps that it could change
    "dpm_solver_v3": ("linear", "trig", "cosine", "vp"),  # the statistics end before the path does
    "flowturbo": ("vp", "cosine"),  # evaluates an infinite velocity
}


@every
@pytest.mark.parametrize("path", PATHS)
def test_default_calls_from_end_to_end_are_finite_or_refused(name, path):
    """From pure noise at t = 0 to data at t = 1, whatever the network predicts, in single precision."""
    problem, answers = Problem(PATHS[path]), []
    if path in REFUSED.get(name, ()):
        with pytest.raises(ValueError, match=r"move|take more steps"):
            bind(name, path, fj.times.uniform(N))
        return
    bound = bind(name, path, fj.times.uniform(N))
    for prediction in PREDICTIONS:
        flow = fj.Flow(lambda x, t, cond: x, path=problem.path, prediction=prediction)
        try:
            bound.check(flow)
        except ValueError as error:
            assert "move the" in str(error)  # noqa: PT017
            continue

        def network(request, prediction=prediction):
            given = problem(dataclasses.replace(request, to=prediction)).astype(np.float32)
            return problem.path.convert(given, given=prediction, to=request.to, t=np.float32(request.t), x=request.x)

        x = problem.path.start(problem.state(0.0).astype(np.float32) / np.float32(problem.path.sigma(0.0)))
        rng = np.random.default_rng(0)
        end = foreign_loop(
            bound,
            np.asarray(x, np.float32),
            network,
            lambda row, x, rng=rng, bound=bound: tuple(
                rng.standard_normal(x.shape).astype(np.float32) for _ in range(bound.pattern.noises)
            ),
        )
        assert end.dtype == np.float32
        assert np.all(np.isfinite(end)), prediction
        assert np.max(np.abs(end)) < 100
        answers.append((prediction, end))
    assert len(answers) >= 2, "nearly everything was refused"
    if not bound.pattern.noises:
        for prediction, end in answers[1:]:
            assert relative(end, answers[0][1]) < 2e-3, prediction


@free
def test_repeated_times_change_nothing(name):
    problem, solver = Problem(PATHS["vp"]), make(name)
    grid = 0.1 + 0.8 * fj.times.uniform(12) ** 1.2
    x, twice = problem.state(grid[0]), np.insert(grid, [0, 5], grid[[0, 5]])
    plain, repeated = (run_on_arrays(solver, problem.path, g, x, problem)[-1] for g in (grid, twice))
    # A corrector moves the state after its evaluation; a repeated time evaluates again at the corrected state.
    assert relative(repeated, plain) < (1e-5 if name in ("unipc", "dc_solver", "dpm_solver_v3") else 1e-12)

"""`solve` with every kind of field and driver: diffrax, adaptive methods, fields that skip the network, messages."""

import functools
import inspect
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problem import PATHS, Executions, relative, through_diffrax

import flowjax as fj
from flowjax._pytree import pytree, static
from flowjax.flow import Field
from flowjax.solvers import (
    DDIM,
    RK4,
    AdamsBashforth,
    Adaptive,
    DPMSolver,
    Euler,
    HeavyBall,
    Heun,
    Midpoint,
)

LINEAR, VP = PATHS["linear"], PATHS["vp"]


def network(x, t, cond=None):
    value = jnp.sin(2 * x + 3 * t[:, None])
    return value if cond is None else value + 0.5 * cond[:, None].astype(x.dtype)


def states(batch=4):
    return fj.noise(jax.random.key(0), (batch, 3))


def labels(batch=4):
    return jnp.arange(1, batch + 1, dtype=jnp.int32)


# ------------------------------------------------------------------------------------------------------------ diffrax


@pytest.mark.parametrize(
    "solver",
    [
        Euler(),
        Heun(),
        Midpoint(),
        RK4(),
        DDIM(),
        DDIM(eta=0.8),
        AdamsBashforth(order=3),
        AdamsBashforth(order=3, start="rk4"),
        DPMSolver(order=3),
        HeavyBall(solver=DPMSolver(), beta=0.7),
    ],
    ids=lambda s: f"{type(s).__name__}-{getattr(s, 'eta', '')}{getattr(s, 'start', '')}",
)
@pytest.mark.standard_promotion
def test_diffrax_gives_the_same_numbers_and_counts(solver):
    field = fj.guide(fj.Flow(network, path=LINEAR, null=0), fj.guidance.CFG(scale=2.5))
    bound = solver.bind(LINEAR, 0.05 + 0.9 * fj.times.uniform(6) ** 1.2)
    key = jax.random.key(1) if bound.pattern.noises else None
    expected = fj.solve(field, bound, states(), cond=labels(), key=key, index=5)
    with jax.debug_key_reuse(False):  # the checker takes a key that stays in diffrax's loop for a used one
        result = through_diffrax(field, bound, states(), labels(), key, 5)
    assert result.result == diffrax.RESULTS.successful
    assert relative(result.ys[-1], expected.x) < 1e-6
    evaluations, calls = fj.flow.count(result.solver_state)
    assert (evaluations, calls) == (bound.pattern.rows, 2 * bound.pattern.rows)
    assert (expected.evaluations, expected.network_calls) == (bound.pattern.rows, 2 * bound.pattern.rows)


@pytest.mark.standard_promotion
def test_diffrax_on_another_grid_fails_visibly():
    flow, bound = fj.Flow(network, path=LINEAR), Euler().bind(LINEAR, fj.times.uniform(4))
    wrong = through_diffrax(flow, bound, states(), grid=fj.times.uniform(4) ** 1.1)
    assert wrong.result != diffrax.RESULTS.successful
    assert through_diffrax(flow, bound, states()).result == diffrax.RESULTS.successful


@pytest.mark.standard_promotion
def test_solvers_of_diffrax_on_the_plain_term():
    flow = fj.Flow(network, path=LINEAR)
    exact = fj.solve(flow, RK4(), states(), fj.times.uniform(60)).x
    result = diffrax.diffeqsolve(
        fj.term(flow), diffrax.Tsit5(), 0.0, 1.0, 1 / 32, states(), stepsize_controller=diffrax.ConstantStepSize()
    )
    assert relative(result.ys[-1], exact) < 1e-5


def test_fields_with_a_memory_are_not_velocities():
    guided = fj.guide(fj.Flow(network, path=LINEAR, null=0), fj.guidance.APG(scale=2.0))
    with pytest.raises(ValueError, match="carries a memory"):
        fj.term(guided)
    with pytest.raises(ValueError, match="carries a memory"):
        fj.solve(guided, Adaptive(), states(), [0.0, 0.9], labels())
    with pytest.raises(ValueError, match="has a memory"):
        fj.guide(guided, fj.guidance.CFG(scale=2.0), against=0)
    assert fj.solve(guided, DPMSolver(), states(), fj.times.uniform(4), labels()).network_calls == 8


# ----------------------------------------------------------------------------------------------------------- adaptive


@pytest.mark.parametrize("method", [diffrax.Tsit5, diffrax.Dopri5, diffrax.Bosh3, diffrax.Heun])
@pytest.mark.standard_promotion
def test_adaptive_counts_equal_executions(method):
    executions = Executions()
    flow = fj.Flow(executions.wrap(network), path=LINEAR)
    exact = fj.solve(fj.Flow(network, path=LINEAR), RK4(), states(), fj.times.uniform(60)).x
    result = fj.solve(flow, Adaptive(solver=method(), rtol=1e-4, atol=1e-4), states(), [0.0, 1.0])
    assert relative(result.x, exact) < 1e-3
    assert result.evaluations == executions.take()
    assert result.network_calls == result.evaluations


@pytest.mark.standard_promotion
def test_adaptive_counts_of_a_guided_pair():
    executions = Executions()
    flow = fj.Flow(executions.wrap(network), path=LINEAR, null=0)
    solver = Adaptive(rtol=1e-3, atol=1e-3)
    result = fj.solve(fj.guide(flow, fj.guidance.CFG(scale=2.0)), solver, states(), [0.0, 1.0], labels())
    assert np.all(np.isfinite(result.x))
    assert result.evaluations == executions.take()
    assert result.network_calls == 2 * result.evaluations
    interval = fj.guidance.Interval(rule=fj.guidance.CFG(scale=2.0), start=0.3, end=0.6)
    result = fj.solve(fj.guide(flow, interval), solver, states(), [0.0, 1.0], labels())
    assert np.all(np.isfinite(result.x))
    assert result.evaluations == executions.take()
    assert result.network_calls == -1  # some evaluations are pairs and some are not


@pytest.mark.standard_promotion
def test_adaptive_trajectory_and_ends():
    flow = fj.Flow(network, path=LINEAR)
    result = fj.solve(flow, Adaptive(), states(), [0.0, 0.25, 1.0], trajectory=True)
    assert result.trajectory.shape == (3, 4, 3)
    assert relative(result.trajectory[0], states()) < 1e-6
    assert relative(result.trajectory[-1], result.x) < 1e-6
    quarter = fj.solve(flow, RK4(), states(), fj.times.uniform(20, 0.0, 0.25)).x
    assert relative(result.trajectory[1], quarter) < 1e-4
    with pytest.raises(ValueError, match="move the end"):
        fj.solve(fj.Flow(network, path=VP), Adaptive(), states(), [0.0, 1.0])
    with pytest.raises(ValueError, match="fixed grids"):
        fj.solve(flow, Adaptive(), states(), [0.0, 1.0], registers=3)
    with pytest.raises(ValueError, match="explicit adaptive"):
        Adaptive(solver=diffrax.Euler())


# --------------------------------------------------------------------------------------- a field that skips the network


@pytree
class Skipping(Field):
    """Uses the last value again in every second step; the network is behind a `lax.cond`."""

    positional = ("field",)
    stateless = False
    one_evaluation_per_step = True

    field: Field
    every: int = static(2)

    @property
    def path(self):
        return self.field.path

    def init(self, x, times=None):
        return self.field.init(x, times), jnp.zeros_like(x), jnp.int32(0), jnp.bool_(False)

    def evaluate(self, t, x, cond, memory, *, to="velocity", **extra):
        inner, last, number, _ = memory
        skip = number % self.every != 0
        value, inner = jax.lax.cond(
            skip, lambda: (last, inner), lambda: self.field.evaluate(t, x, cond, inner, to=to, **extra)
        )
        return value, (inner, value, number + 1, skip)

    def report(self, memory):
        return {"skipped": memory[3]}


@pytest.mark.parametrize("solver", [Euler(), DPMSolver(order=2)], ids=["euler", "2m"])
@pytest.mark.parametrize("guided", [False, True])
def test_skipped_evaluations_are_not_made(solver, guided):
    executions = Executions()
    field = fj.Flow(executions.wrap(network), path=LINEAR, null=0)
    field = fj.guide(field, fj.guidance.CFG(scale=2.0)) if guided else field
    result = fj.solve(Skipping(field), solver, states(), fj.times.uniform(7), labels())
    assert np.all(np.isfinite(result.x))
    assert executions.take() == 4
    assert (result.evaluations, result.network_calls) == (4, 8 if guided else 4)
    assert list(result.report["skipped"]) == [False, True] * 3 + [False]


def test_skipping_euler_makes_double_steps():
    flow = fj.Flow(network, path=LINEAR)
    skipped = fj.solve(Skipping(flow), Euler(), states(), fj.times.uniform(8))
    assert relative(skipped.x, fj.solve(flow, Euler(), states(), fj.times.uniform(4)).x) < 1e-6


def test_memory_under_diffrax():
    bound = Euler().bind(LINEAR, fj.times.uniform(6))
    field = Skipping(fj.Flow(network, path=LINEAR))
    result = through_diffrax(field, bound, states())
    assert relative(result.ys[-1], fj.solve(field, bound, states()).x) < 1e-6
    assert fj.flow.count(result.solver_state)[0] == 3


@pytest.mark.parametrize("solver", [Heun(), AdamsBashforth(order=2, start="rk4")], ids=["heun", "rk4 start"])
def test_field_that_needs_one_evaluation_per_step_refuses_others(solver):
    field = Skipping(fj.Flow(network, path=LINEAR))
    with pytest.raises(ValueError, match="one evaluation per step"):
        fj.solve(field, solver, states(), fj.times.uniform(4))
    with pytest.raises(ValueError, match="one evaluation per step"):
        solver.bind(LINEAR, fj.times.uniform(4)).term(field)


# ---------------------------------------------------------------------------------------------------------- arguments


def test_arguments_that_do_not_go_together():
    flow, bound = fj.Flow(network, path=LINEAR), Euler().bind(LINEAR, [0.0, 1.0])
    with pytest.raises(ValueError, match="pass times"):
        fj.solve(flow, Euler(), states())
    with pytest.raises(ValueError, match="has its times"):
        fj.solve(flow, bound, states(), [0.0, 1.0])
    with pytest.raises(ValueError, match="has its times"):
        fj.solve(flow, bound, states(), registers=2)


def test_same_key_and_index_give_the_same_noise_to_a_sample_in_any_batch():
    flow, solver = fj.Flow(network, path=LINEAR), DDIM(eta=1.0)
    x, key, grid = states(6), jax.random.key(3), fj.times.uniform(4, 0.0, 0.9)
    whole = fj.solve(flow, solver, x, grid, key=key, index=10).x
    parts = [fj.solve(flow, solver, x[i : i + 3], grid, key=key, index=10 + i).x for i in (0, 3)]
    assert relative(np.concatenate(parts), whole) < 1e-6
    assert relative(fj.solve(flow, solver, x, grid, key=key, index=11).x, whole) > 1e-2
    assert len(np.unique(np.round(np.asarray(whole), 6))) == whole.size


def test_condition_is_any_pytree():
    def conditional(x, t, cond):
        return x * cond["scale"][:, None] + cond["text"].mean(1)

    flow = fj.Flow(conditional, path=LINEAR)
    cond: Any = {"scale": jnp.arange(4.0), "text": jnp.ones((4, 5, 3))}
    result = fj.solve(flow, Euler(), states(), [0.0, 1.0], cond)
    assert relative(result.x, states() * (1 + jnp.arange(4.0)[:, None]) + 1) < 1e-6


# --------------------------------------------------------------------------------------------------------------- cost


def test_bound_solver_is_a_constant_or_an_argument_of_a_program():
    flow = fj.Flow(network, path=LINEAR)
    host = DPMSolver().bind(LINEAR, fj.times.uniform(6))
    for bound in (host, jax.tree.map(jnp.asarray, host)):
        constant = jax.jit(lambda x, b=bound: fj.solve(flow, b, x).x)(states())
        argument = jax.jit(lambda b, x: fj.solve(flow, b, x).x)(bound, states())
        np.testing.assert_allclose(constant, argument, rtol=1e-6)
    with pytest.raises(ValueError, match="does not determine"):  # concrete times are checked inside a program too
        jax.jit(lambda x: fj.solve(fj.Flow(network, path=LINEAR, prediction="noise"), bound, x).x)(states())


@pytree
class CountedEuler(fj.solvers.Euler):
    scale: Any = 1.0
    bindings = 0

    def updates(self, path, times, x):
        CountedEuler.bindings += 1
        yield from super().updates(path, times, x)


@pytest.mark.parametrize("kind", ["statistics", "ratios"])
def test_bindings_of_arrays_are_remembered_by_content(kind, monkeypatch):
    """Equal numbers are bound once, whoever holds them; numbers changed in place are bound anew."""
    count = []
    bind = fj.solvers.Solver.bind
    monkeypatch.setattr(fj.solvers.Solver, "bind", lambda *args, **kwargs: count.append(1) or bind(*args, **kwargs))
    flow, grid, lam = fj.Flow(network, path=LINEAR), fj.times.uniform(4, 0.1, 0.9), np.linspace(-4, 4, 41)
    numbers = np.ones((41, 3)) if kind == "statistics" else [1.0, 1.0, 1.2, 1.0]

    def run(numbers):
        if kind == "ratios":
            solver = fj.solvers.DCSolver(ratios=numbers)
        else:
            zero = 0 * numbers
            solver = fj.solvers.DPMSolverV3(statistics=fj.solvers.Statistics(lam=lam, l=numbers, s=zero, b=zero))
        return np.asarray(fj.solve(flow, solver, states(), grid).x)

    first = run(numbers)
    np.testing.assert_array_equal(run(numbers), first)
    np.testing.assert_array_equal(run(numbers.copy()), first)
    assert len(count) == 1
    numbers[20 if kind == "statistics" else 2] = 0.7
    assert np.abs(run(numbers) - first).max() > 1e-6
    assert len(count) == 2


def test_bindings_are_remembered_by_plain_numbers_only():
    flow, grid = fj.Flow(network, path=LINEAR), fj.times.uniform(3)
    plain = [fj.solve(flow, CountedEuler(), states(), grid).x for _ in range(3)]
    assert CountedEuler.bindings == 1
    np.testing.assert_array_equal(plain[0], plain[2])
    fj.solve(flow, CountedEuler(scale=2.0), states(), grid)
    fj.solve(flow, CountedEuler(), states(), fj.times.quadratic(3))
    fj.solve(fj.Flow(network, path=VP), CountedEuler(), states(), grid)
    assert CountedEuler.bindings == 4
    for _ in range(2):
        fj.solve(flow, CountedEuler(scale=jnp.float32(1.0)), states(), grid)  # an array may not be a key
    assert CountedEuler.bindings == 6

    factor = jnp.float32(0.5)

    def slow_euler(path, times, x):
        for s, t in fj.solvers.requests.pairs(times):
            x = yield fj.solvers.requests.step(x + factor * (t - s) * (yield fj.solvers.requests.evaluate(s, x)))

    method = fj.solvers.Formula(function=slow_euler)
    inside = jax.jit(lambda x: fj.solve(flow, method, x, grid).x)(states())
    np.testing.assert_allclose(fj.solve(flow, method, states(), grid).x, inside, rtol=1e-6)


@pytest.mark.parametrize(
    "solver", [DPMSolver(lower_order_final=False), fj.solvers.UniPC(order=3)], ids=["2m", "unipc3"]
)
def test_program_and_memory_do_not_grow_with_steps(solver):
    weights = jnp.ones((3, 64)), jnp.ones((64, 3))
    flow = fj.Flow(jax.tree_util.Partial(lambda w, x, t, cond: jnp.tanh(x @ w[0]) @ w[1], weights), path=LINEAR)
    x = states(256)

    def program(steps):
        bound = jax.tree.map(jnp.asarray, solver.bind(LINEAR, fj.times.uniform(steps, end=0.999)))
        return jax.jit(lambda f, b, x: fj.solve(f, b, x).x).lower(flow, bound, x).compile(), bound.pattern.registers

    (few, registers), (many, _) = program(10), program(100)
    operations = [sum(" = " in line for line in p.as_text().splitlines()) for p in (few, many)]
    assert operations[0] == operations[1]
    used = [p.memory_analysis().temp_size_in_bytes for p in (few, many)]
    assert used[1] <= used[0] + 100 * 100  # the table of coefficients
    call = jax.jit(lambda f, x: f.velocity(0.5, x)).lower(flow, x).compile().memory_analysis().temp_size_in_bytes
    assert used[1] <= call + (2 * registers + 2) * x.nbytes + 20_000  # registers before and after a step


# ------------------------------------------------------------------------------------------ noise, monitors, messages


@pytest.mark.parametrize("solver", [DDIM(eta=1.0), fj.solvers.EulerMaruyama(), fj.solvers.DPMSolver(eta=1.0)])
def test_given_noise_is_what_a_key_draws(solver):
    flow, times = fj.Flow(network, path=LINEAR), fj.times.uniform(4, 0.05, 0.95)
    bound = solver.bind(LINEAR, times)
    key = jax.random.key(3)
    with jax.debug_key_reuse(False):  # drawn here once more
        drawn = [jnp.stack(bound.draw(stage, states(), key, 7)) for stage in bound.pattern.stages]
        expected = fj.solve(flow, solver, states(), times, key=key, index=7)
    noise = jnp.stack(drawn)
    assert relative(fj.solve(flow, solver, states(), times, noise=noise).x, expected.x) < 1e-6
    if bound.pattern.noises == 1:
        assert relative(fj.solve(flow, bound, states(), noise=noise[:, 0]).x, expected.x) < 1e-6
    with pytest.raises(ValueError, match=r"noise must have shape \(4, "):
        fj.solve(flow, solver, states(), times, noise=noise[:2])
    with pytest.raises(ValueError, match="draws none"):
        fj.solve(flow, Euler(), states(), times, noise=noise)


@pytest.mark.parametrize("solver", [Euler(), Heun(), DPMSolver(order=3), fj.solvers.UniPC()])
def test_a_monitor_sees_the_data_prediction_and_stops(solver):
    flow, times, seen = fj.Flow(network, path=LINEAR), fj.times.uniform(6, 0.05, 0.95), []

    def watch(t, x, data):
        jax.debug.callback(lambda *values: seen.append(tuple(map(np.asarray, values))), t, x, data)

    whole = fj.solve(flow, solver, states(), times, monitor=watch, trajectory=True)
    plain = fj.solve(flow, solver, states(), times)
    jax.effects_barrier()
    assert relative(whole.x, plain.x) < 1e-6
    assert not whole.stopped
    assert len(seen) == whole.evaluations
    for t, x, data in seen:
        assert relative(data, flow.data(jnp.float32(t), jnp.asarray(x))) < 1e-5

    cut = fj.solve(flow, solver, states(), times, monitor=lambda t, x, data: t > 0.5, trajectory=True)
    assert cut.stopped
    assert cut.evaluations == sum(t <= 0.5 for t, _, _ in seen) + 1
    ends = [i for i in range(len(times)) if relative(cut.x, whole.trajectory[i]) < 1e-6]
    assert ends  # the solution at a time of the grid
    assert relative(cut.trajectory[-1], cut.x) == 0


def test_an_adaptive_solver_refuses_what_belongs_to_a_grid():
    with pytest.raises(ValueError, match="monitor: these belong to fixed grids"):
        fj.solve(fj.Flow(network, path=LINEAR), Adaptive(), states(), [0.0, 0.9], monitor=lambda t, x, data: None)


FLOW, GRID = fj.Flow(network, path=LINEAR), fj.times.uniform(3)
SDE, SDE_GRID = fj.solvers.EulerMaruyama(), fj.times.uniform(3, 0.1, 0.9)


def answering(answer):
    """Samples a network whose answer is no field of the state; broadcasting would make samples of it."""
    return solve(fj.Flow(lambda x, t, cond: answer(x), path=LINEAR), Heun(), states(), GRID)


solve, log_likelihood, guide = map(inspect.unwrap, (fj.solve, fj.log_likelihood, fj.guide))  # as users have them


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve(FLOW, "heun", states(), GRID), r"solver object, for example flowjax.solvers.Heun\(\)"),
        (lambda: solve(FLOW, Heun, states(), GRID), "not its class: write it with brackets"),
        (lambda: solve(network, Heun(), states(), GRID), r"flowjax\.Flow\(network, path="),
        (lambda: solve(FLOW, Heun(), {"x": states()}, GRID), "one array .* got dict"),
        (lambda: solve(FLOW, Heun(), [1.0, 2.0], GRID), "one array .* got list"),
        (lambda: solve(FLOW, Heun(), jnp.ones((2, 3), jnp.int32), GRID), r"got int32: pass x\.astype"),
        (lambda: solve(FLOW, Heun(), states()[:0], GRID), "at least one sample"),
        (lambda: log_likelihood(FLOW, jnp.ones((2, 3), jnp.int32)), "got int32"),
        (lambda: guide(FLOW, 4.0), r"guidance\.CFG\(scale=4\.0\), got 4\.0"),
        (lambda: guide(network, fj.guidance.CFG()), "expected a field"),
        (lambda: fj.Flow(lambda x, t: x, path=LINEAR), r"takes \(x, t\): wrap it"),
        (lambda: fj.Flow(3.0, path=LINEAR), "a network is a callable"),
        (lambda: fj.Flow(network, path=LINEAR, prediction="epsilon"), "'epsilon' elsewhere is 'noise' here"),
        (lambda: fj.Flow(network, path=LINEAR, prediction="eps"), "'eps' elsewhere is 'noise' here"),
        (lambda: fj.Flow(network, path=LINEAR, prediction="v_prediction"), "'v_prediction' elsewhere is 'v' here"),
        (lambda: DPMSolver(solver_type="heun"), "'heun' elsewhere is 'taylor' here"),
        (lambda: DPMSolver(form="dpmsolver++"), "'dpmsolver\\+\\+' elsewhere is 'data' here"),
        (lambda: fj.solvers.UniPC(variant="vary_coeff"), "'vary_coeff' elsewhere is 'vary' here"),
        (lambda: DPMSolver(2), r"by name: DPMSolver\(order=\.\.\."),
        (lambda: HeavyBall(DPMSolver()), r"by name: HeavyBall\(solver=\.\.\."),
        (lambda: DPMSolver(ordr=2), "no argument 'ordr'; did you mean order="),
        (lambda: DPMSolver(solver_order=2), "no argument 'solver_order'; did you mean order="),
        (lambda: DPMSolver(form="sde-dpmsolver++"), "elsewhere is 'data' here, with eta=1"),
        (lambda: fj.solvers.UniPC(form="epsilon"), "'epsilon' elsewhere is 'noise' here"),
        (
            lambda: answering(lambda x: x[:, :1]),
            r"answers with an array of shape \(4, 1\) for a state of shape \(4, 3\)",
        ),
        (lambda: answering(lambda x: (x,)), "answers with a tuple for a state"),
        (lambda: answering(lambda x: None), "answers with a NoneType for a state"),
        (
            lambda: solve(FLOW, SDE, states(), SDE_GRID, key=0),
            r"key must be a random key, jax.random.key\(seed\), got 0",
        ),
        (lambda: inspect.unwrap(fj.noise)("a", (2, 3)), "key must be a random key"),
        (lambda: log_likelihood(FLOW, states(), solver=Heun()), "solver must be an adaptive one of diffrax"),
    ],
)
def test_what_is_written_as_elsewhere_is_answered_with_the_remedy(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert "\n" not in str(error.value)


class Trained(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x, t, cond):
        return self.layer(x)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nnx.Dropout(0.1, rngs=nnx.Rngs(0)),
        lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
        lambda: nnx.MultiHeadAttention(1, 3, dropout_rate=0.1, deterministic=False, decode=False, rngs=nnx.Rngs(0)),
    ],
    ids=["dropout", "batch statistics", "attention"],
)
@pytest.mark.standard_promotion
def test_a_network_in_training_mode_is_refused(layer):
    module = Trained(layer())
    for network in (module, lambda x, t, cond: module(x, t, cond)):
        flow = fj.Flow(network, path=LINEAR)
        guided = fj.guide(flow, fj.guidance.CFG(scale=2.0), 0)
        for run in (
            functools.partial(fj.solve, flow, Euler(), states(), GRID),
            functools.partial(fj.solve, guided, Euler(), states(), GRID, labels()),
            functools.partial(fj.log_likelihood, flow, states()),
        ):
            module.train()
            with pytest.raises(ValueError, match=r"in training mode .*network\.eval\(\)"):
                run()
    module.eval()
    if isinstance(module.layer, nnx.Dropout):
        assert fj.solve(flow, Euler(), states(), GRID).evaluations == 3

"""SADA: its decisions, its approximations, and what it saves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from problem import PATHS, Executions, relative, through_diffrax

import flowjax as fj
from flowjax import catalogue, specs
from flowjax.fields import SADA
from flowjax.fields.pruned import Pruned
from flowjax.solvers import DDIM, DPMSolver, Euler, Heun, UniPC
from flowjax.times import log_snr, quadratic, uniform

LINEAR = PATHS["linear"]
LAW = fj.oracles.Mixture.default(LINEAR)
FLOW = fj.Flow(LAW.network("velocity"), path=LINEAR)
X = fj.noise(jax.random.key(0), (64, 1))
FIFTY = uniform(50, 1e-3, 1 - 1e-3)


def constant(velocity):
    """A flow of one velocity, whatever x and t."""
    return fj.Flow(lambda x, t, cond: jnp.broadcast_to(velocity, x.shape).astype(x.dtype), path=LINEAR)


def skipped(result):
    return np.flatnonzero(result.report["skipped"]).tolist()


def spans(*ends):
    return [step for first, last in ends for step in range(first, last + 1)]


# --------------------------------------------------------------------------------------------------------- decisions

REGULAR_20 = [(22, 24), (26, 28), (30, 32), (34, 36), (38, 40), (42, 44), (46, 47)]


@pytest.mark.parametrize(
    ("stable", "options", "expected"),
    [
        (True, {"lagrange_term": 0}, [(11, 14), (16, 19), (21, 24), (26, 29), (31, 34), (36, 39), (41, 44), (46, 47)]),
        (True, {"lagrange_step": 20}, [(11, 14), (16, 19), *REGULAR_20]),
        (False, {"lagrange_step": 20}, REGULAR_20),
        (False, {"lagrange_term": 0}, []),
    ],
)
def test_machine_of_decisions(stable, options, expected):
    """The published numbers of calls: 20, 22, 30; that of (24, 4) is below."""
    field, run, found = SADA(FLOW, acc_range=(10, 47), max_interval=4, **options), 0, []
    for i in range(49):
        skip, _ = field.phases(jnp.array(stable), i, run, 50)
        run = run + 1 if skip else 0
        found += [i + 1] * bool(skip)
    assert found == spans(*expected)


@pytest.mark.parametrize("options", [{"lagrange_step": 24, "acc_range": (10, 47)}, {}])
def test_defaults_are_those_of_fifty_steps(options):
    field, run, calls = SADA(FLOW, **options), 0, 50
    for i in range(49):
        skip, _ = field.phases(jnp.array(True), i, run, 50)
        run, calls = (run + 1, calls - 1) if skip else (0, calls)
    assert calls == 21


def test_ranges_follow_the_number_of_steps():
    """Of 28 steps 6 to 26, and the regular phase begins where four predictions are stored."""
    assert [int(part) for part in SADA(FLOW)._ranges(28)] == [6, 26, 16]
    assert [int(part) for part in SADA(FLOW)._ranges(50)] == [10, 47, 24]
    assert [int(part) for part in SADA(FLOW)._ranges(5)] == [3, 5, 16]
    assert int(SADA(FLOW, acc_range=(0, 20))._ranges(50)[0]) == 3


@pytest.mark.parametrize(("curvature", "calls"), [(0.0, 22), (1.0, 30)])
def test_mask_and_count_of_a_run(curvature, calls):
    """Under `flow_code` a velocity c t^2 is stable for c = 0 and never for c = 1."""
    flow = fj.Flow(lambda x, t, cond: jnp.broadcast_to(curvature * t[:, None] ** 2, x.shape), path=LINEAR)
    field = SADA(flow, acc_range=(10, 47), lagrange_step=20, criterion="flow_code", approx="flow_code")
    result = fj.solve(field, Euler(), X, uniform(50))
    early = [] if curvature else [(11, 14), (16, 19)]
    assert skipped(result) == spans(*early, *REGULAR_20)
    assert (int(result.evaluations), int(result.network_calls)) == (calls, calls)
    assert result.report["measure"].shape == (50,)


def test_saved_calls_are_not_made():
    executions = Executions()
    flow = fj.Flow(executions.wrap(lambda x, t, cond=None: jnp.sin(x)), path=LINEAR, null=0.0)
    guided = fj.guide(flow, fj.guidance.RAAG(w_max=4.0))
    result = jax.block_until_ready(fj.solve(SADA(guided), Euler(), X, FIFTY, cond=jnp.zeros(64)))
    assert executions.take() == int(result.evaluations) == 50 - len(skipped(result)) < 40
    assert int(result.network_calls) == 2 * int(result.evaluations)
    assert set(result.report["field"]) == {"ratio", "scale"}
    assert result.report["field"]["ratio"].shape == (50, 64)


# ----------------------------------------------------------------------------------------------------- approximations


@pytest.mark.parametrize("solver", [Euler(), UniPC(order=2)], ids=["euler", "unipc"])
def test_an_empty_range_is_the_solver_itself(solver):
    plain = fj.solve(FLOW, solver, X, FIFTY)
    result = fj.solve(SADA(FLOW, acc_range=(10, 10)), solver, X, FIFTY)
    assert int(result.evaluations) == 50
    assert relative(result.x, plain.x) < 1e-6


@pytest.mark.parametrize("options", [{}, {"lagrange_term": 0}, {"approx": "flow_code"}])
def test_straight_flows_are_exact(options):
    field = SADA(constant(jnp.array([1.5, -0.5])), criterion="flow_code", **options)
    x0 = fj.noise(jax.random.key(1), (4, 2))
    for times in (uniform(50), quadratic(50), log_snr(LINEAR, 50, 0.01, 0.99)):
        result = fj.solve(field, DPMSolver(), x0, times)
        assert int(result.evaluations) < 40  # rounding decides about some
        assert relative(result.x, x0 + (times[-1] - times[0]) * jnp.array([[1.5, -0.5]])) < 1e-4


def ahead(coeffs, times, velocities):
    """x^ - x from the velocities at the first three times, for the step to the last."""
    field = SADA(FLOW, coeffs=coeffs)
    x = jnp.zeros((1, 1))
    memory = dataclasses.replace(field.init(x, jnp.asarray(times)), step=jnp.int32(3))
    v = tuple(jnp.full((1, 1), value) for value in velocities[::-1])
    memory = dataclasses.replace(memory, own=dataclasses.replace(memory.own, v=v))
    return float(field._extrapolate(memory)[0][0, 0])


@pytest.mark.parametrize(("coeffs", "order"), [("paper", 3), ("code", 2)])
@pytest.mark.parametrize("stretch", [1.0, 1.3])
def test_order_of_the_extrapolation(coeffs, order, stretch, x64):
    """Local error h^3 and h^2 of x^, also on steps that grow; the paper's is exact where v is linear."""
    errors = []
    for h in (0.04, 0.02, 0.01):
        times = 0.3 + h * np.cumsum([0, 1, stretch, stretch**2])
        exact = (np.sin(3 * times[-1]) - np.sin(3 * times[-2])) / 3
        errors.append(abs(ahead(coeffs, times, np.cos(3 * times[:3])) - exact))
    assert -np.polyfit(np.log([1, 2, 4]), np.log(errors), 1)[0] == pytest.approx(order, abs=0.25)
    exact = (times[-1] - times[-2]) * (2 + 2.5 * (times[-1] + times[-2]))
    error = abs(ahead(coeffs, times, 2 + 5 * times[:3]) - exact)
    assert error < 1e-14 if coeffs == "paper" else error > 1e-5


def test_published_coefficients(x64):
    """Those of the newest velocity first, on equal steps."""
    for coeffs, expected in (("paper", (5 / 6, 5 / 6, -2 / 3)), ("code", (0.625, 0.75, -0.375))):
        found = [ahead(coeffs, np.array([0.2, 0.3, 0.4, 0.5]), unit) / 0.1 for unit in np.eye(3)[::-1]]
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("term", [1, 3])
def test_polynomials_in_the_step_are_exact(term, x64):
    """Data predictions of degree below `term` in the number of the step come back; one more does not."""
    times, worst = uniform(50, 0.0, 0.98), []

    def data(degree, x, t, cond):
        return 0 * x + ((t / 0.98 * 50 / 10) ** degree)[:, None]

    def made(degree):
        flow = fj.Flow(jax.tree_util.Partial(data, jnp.float64(degree)), path=LINEAR, prediction="data")
        return SADA(flow, lagrange_term=term, acc_range=(23, 45), lagrange_step=24)

    step = jax.jit(lambda field, t, memory: field.evaluate(t, jnp.zeros((1, 1)), None, memory, to="data"))
    for degree in (term - 1, term):
        field, errors = made(degree), []
        memory = field.init(jnp.zeros((1, 1)), times)
        for i, t in enumerate(times[:-1]):
            m, memory = step(field, t, memory)
            if i > 25 and memory.skipped:
                errors.append(abs(float(m[0, 0]) - (i / 10) ** degree))
        assert len(errors) >= 14
        worst.append(max(errors))
    assert worst[0] < 1e-10
    assert worst[1] > 1e-3


def test_a_skipped_call_is_the_stale_noise_at_the_extrapolated_state(x64):
    """m = (x^ - (1 - t) e)/t and v = (m - x)/(1 - t), e = x_i - t_i v_i of the last call."""
    times, field, x = uniform(50, 0.0, 1.0), SADA(FLOW, lagrange_term=0), X.astype(jnp.float64)
    step = jax.jit(lambda t, x, memory: field.evaluate(t, x, None, memory))
    memory, states, values = field.init(x, times), [], []
    for t in times[:-1]:
        value, memory = step(t, x, memory)
        states.append(x)
        values.append(value)
        if memory.skipped:
            break
        x = x + 0.02 * value
    j = len(states) - 1
    assert j >= 11
    ahead = states[j - 1] + 0.02 * (5 / 6 * values[j - 1] + 5 / 6 * values[j - 2] - 2 / 3 * values[j - 3])
    noise = states[j - 1] - times[j - 1] * values[j - 1]
    m = (ahead - (1 - times[j]) * noise) / times[j]
    np.testing.assert_allclose(values[j], (m - states[j]) / (1 - times[j]), rtol=1e-9)
    measure = float(jnp.mean(-(states[j] - ahead) * (values[j - 1] - 2 * values[j - 2] + values[j - 3])))
    assert float(memory.measure) == pytest.approx(measure, rel=1e-6)


def test_program_for_flux_goes_on_along_a_line_then_stays():
    """2 v_i - v_{i-1} at the first skipped call of a row, v_i at the others."""
    flow = fj.Flow(lambda x, t, cond: jnp.exp(-3 * t)[:, None] + 0 * x, path=LINEAR)
    field = SADA(flow, approx="flow_code", lagrange_term=0, acc_range=(10, 47))
    times, x = uniform(50), jnp.zeros((1, 1))
    step = jax.jit(lambda t, x, memory: field.evaluate(t, x, None, memory))
    memory, values, rows = field.init(x, times), [], []
    for t in times[:-1]:
        value, memory = step(t, x, memory)
        x = x + 0.02 * value
        values.append(float(value[0, 0]))
        rows.append(int(memory.run))
    assert max(rows) == 4
    calls = np.exp(-3 * times[:-1])
    for j, row in enumerate(rows):
        i = j - row
        # The program keeps a copy of the call before in the place of each skipped one.
        before = calls[i - 1 - rows[i - 1]]
        expected = {0: calls[j], 1: 2 * calls[i] - before}.get(row, calls[i])
        assert values[j] == pytest.approx(expected, rel=1e-5), (j, row)


@pytest.mark.parametrize(("criterion", "power", "sign"), [("paper", 2, 1), ("flow_code", 1, -1)])
def test_signs_and_scales_of_the_data(criterion, power, sign):
    """The product is that of x and of -x; the program for Flux decides the other way round. Scales change nothing."""
    network = jax.tree_util.Partial(lambda scale, x, t, cond: scale * FLOW.network(x / scale, t, cond))
    found = []
    for scale in (1.0, 2.0, -1.0):
        flow = fj.Flow(jax.tree_util.Partial(network, jnp.float32(scale)), path=LINEAR)
        field = SADA(flow, criterion=criterion, acc_range=(3, 3))
        found.append(np.asarray(fj.solve(field, Euler(), scale * X, FIFTY).report["measure"]))
    assert np.any(found[0] > 0)
    assert np.any(found[0] < 0)
    np.testing.assert_allclose(found[1], 2**power * found[0], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(found[2], sign * found[0], rtol=1e-3, atol=1e-7)


def test_second_order_multistep_solvers_are_always_stable():
    """x_{i+1} - x^ = 2/3 h D2 v for Adams-Bashforth of order 2, whose product with -D2 v is never positive."""
    field = SADA(FLOW, acc_range=(3, 3))
    result = fj.solve(field, fj.solvers.AdamsBashforth(order=2), X, uniform(50, 0.1, 0.9))
    assert np.all(np.asarray(result.report["measure"])[4:] < 0)


# ----------------------------------------------------------------------------------------------------------- a whole


def distance(a, b):
    return float(jnp.sqrt(jnp.mean((a - b) ** 2)))


def test_nearer_to_the_solver_than_as_many_steps_are_to_the_flow():
    """SADA in 33 calls to Euler in 50, against Euler in 33 to the exact flow."""
    x = fj.noise(jax.random.key(0), (256, 1))
    plain = fj.solve(FLOW, Euler(), x, FIFTY).x
    result = fj.solve(SADA(FLOW), Euler(), x, FIFTY)
    few = fj.solve(FLOW, Euler(), x, uniform(int(result.evaluations), 1e-3, 1 - 1e-3)).x
    exact = LAW.flow_map(x, 1e-3, 1 - 1e-3)
    assert distance(result.x, plain) < 0.6 * distance(few, exact)


def single_evaluation_solvers():
    """Names of the catalogue's solvers with one evaluation at the start of each step."""
    found = []
    for name, entry in catalogue.solvers.items():
        try:
            bound = entry.make(**entry.example(), **entry.fixed).bind(LINEAR, uniform(20, 0.02, 0.98))
            bound.check(SADA(FLOW))
        except (ValueError, AttributeError):
            continue
        if bound.ends is None and bound.second is None:
            found.append(name)
    return found


@pytest.mark.slow
def test_every_solver_with_one_evaluation_per_step():
    names = single_evaluation_solvers()
    assert {"euler", "ddim", "dpm_solver", "unipc", "deis", "adams_bashforth", "ghvb", "heavy_ball"} <= set(names)
    for name in names:
        entry = catalogue.solvers[name]
        solver = entry.make(**entry.example(), **entry.fixed)
        result = fj.solve(SADA(FLOW), solver, X[:8], uniform(20, 0.02, 0.98), key=jax.random.key(1))
        assert np.isfinite(result.x).all(), name
        assert int(result.evaluations) + len(skipped(result)) == 20, name
        assert len(skipped(result)) >= 2, name


def test_diffrax_and_the_compiled_loop_agree():
    field = SADA(FLOW)
    bound = DPMSolver().bind(LINEAR, FIFTY)
    run = through_diffrax(field, bound, X)
    result = fj.solve(field, bound, X)
    assert relative(run.ys[0], result.x) < 1e-5
    memory = run.solver_state[2][0]
    assert int(memory.field.evaluations) == int(result.evaluations)


def test_all_devices_take_the_same_branch():
    """Spread over eight devices: the same decisions and samples, and sums of one number for all communication."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = fj.noise(jax.random.key(3), (32, 6))
    flow = fj.Flow(lambda x, t, cond: jnp.sin(3 * x) * (1 - t)[:, None], path=LINEAR)
    whole = fj.solve(SADA(flow), Euler(), x, FIFTY)
    spread = fj.solve(SADA(flow), Euler(), jax.device_put(x, rows), FIFTY)
    assert skipped(spread) == skipped(whole) != []
    assert spread.x.sharding.is_equivalent_to(rows, 2)
    assert relative(spread.x, whole.x) < 1e-5

    @functools.partial(jax.jit, out_shardings=rows)
    def run(x):
        return fj.solve(SADA(flow), Euler().bind(LINEAR, FIFTY), x).x

    text = run.lower(jax.device_put(x, rows)).compile().as_text()
    sums = [line for line in text.splitlines() if " all-reduce(" in line or " all-reduce-start(" in line]
    assert 1 <= len(sums) <= 2
    assert all("= f32[]" in line for line in sums)
    assert not any(f" {other}(" in text for other in ("all-gather", "all-to-all", "collective-permute"))


def test_gradients_go_through_the_run(x64):
    def loss(a):
        flow = fj.Flow(jax.tree_util.Partial(lambda a, x, t, cond: jnp.sin(a * x), a), path=LINEAR)
        x = jnp.linspace(-1.0, 2.0, 4)[:, None]
        return jnp.sum(fj.solve(SADA(flow), Euler().bind(LINEAR, FIFTY), x).x)

    loss = jax.jit(jax.value_and_grad(loss))
    slope = float(loss(0.7)[1])
    assert slope == pytest.approx(float(loss(0.7 + 1e-6)[0] - loss(0.7 - 1e-6)[0]) / 2e-6, rel=1e-4)


def test_by_name_and_in_its_recipe():
    field = specs.build("field", "sada(max_interval=3, acc_range=(5, 20))", field=FLOW)
    assert (field.max_interval, field.acc_range) == (3, (5, 20))
    assert specs.text(specs.spec_of("field", field, field=FLOW)) == "sada(acc_range=(5, 20), max_interval=3)"
    assert catalogue.fields["sada"].couples_batch
    assert "2507.17135" in fj.cite(field)


def test_refusals():
    with pytest.raises(ValueError, match="SADA needs a solver with one evaluation per step"):
        fj.solve(SADA(FLOW), Heun(), X, FIFTY)
    with pytest.raises(ValueError, match="has a memory: put the guidance inside it"):
        fj.guide(SADA(FLOW), fj.guidance.CFG(scale=2.0), against=0.0)
    with pytest.raises(ValueError, match="both save evaluations"):
        SADA(SADA(FLOW))
    with pytest.raises(ValueError, match="acc_range=\\(10, 47\\) are numbers of steps, and this run has 28"):
        fj.solve(SADA(FLOW, acc_range=(10, 47)), Euler(), X, uniform(28))
    for wrong in (
        {"criterion": "papers"},
        {"coeffs": "x"},
        {"approx": "x"},
        {"max_interval": 0},
        {"lagrange_step": 22},
        {"lagrange_step": 8},
        {"lagrange_term": 9},
        {"acc_range": (20, 10)},
        {"tokens": (0, 3)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SADA(FLOW, **wrong)
    jump = fj.Flow(lambda x, t, cond=None, end=None: -x, path=LINEAR)
    with pytest.raises(ValueError, match="average velocity"):
        fj.solve(SADA(jump), fj.solvers.Jump(), X, uniform(4))
    noise = fj.Flow(lambda x, t, cond: x, path=LINEAR, prediction="noise")
    with pytest.raises(ValueError, match="does not determine"):
        fj.solve(SADA(noise), DDIM(), X, uniform(20))


# ------------------------------------------------------------------------------------------------------------ tokens

DIT = {"patch": 2, "width": 16, "depth": 2, "heads": 2}


@functools.cache
def transformer(scan=False):
    new = fj.models.DiT((8, 8, 1), **DIT, num_classes=3, scan=scan, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(5), len(jax.tree.leaves(new))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape, leaf.dtype), new)


IMAGES = fj.noise(jax.random.key(7), (3, 8, 8, 1))
T = jnp.array([0.2, 0.5, 0.9])


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_tokens_from_the_cache_are_the_plain_network(scan):
    network = transformer(scan)
    call = jax.jit(lambda network, x, tokens, cache: network(x, T, tokens=tokens, cache=cache))
    plain = jax.jit(lambda network, x: network(x, T))(network, IMAGES)
    full, cache = call(network, IMAGES, None, network.block_cache(3))
    np.testing.assert_allclose(full, plain, rtol=1e-5, atol=1e-6)
    order = jnp.asarray(np.random.default_rng(0).permuted(np.tile(np.arange(16), (3, 1)), axis=1))
    again, after = call(network, IMAGES, order, network.block_cache(3))
    np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after, cache, rtol=1e-4, atol=1e-5)
    some, after = call(network, IMAGES + 1, order[:, :5], cache)
    kept = np.stack([np.isin(np.arange(16), row) for row in np.asarray(order[:, :5])])
    assert np.array_equal(np.any(np.asarray(after != cache), axis=(0, 3)), kept)
    patches, before = (np.asarray(a).reshape(3, 4, 2, 4, 2).swapaxes(2, 3).reshape(3, 16, 4) for a in (some, full))
    np.testing.assert_allclose(patches[~kept], before[~kept], rtol=1e-5, atol=1e-6)  # those that were not computed


@pytest.mark.slow
def test_pruned_runs_are_near_full_ones_and_all_tokens_are_exact():
    flow, cond = fj.Flow(transformer(), path=LINEAR, null=3), jnp.arange(3, dtype=jnp.int32)
    options, times = {"lagrange_term": 0, "criterion": "flow_code"}, uniform(24, 1e-3, 1 - 1e-3)

    def run(field, **more):
        return fj.solve(SADA(field, **options, **more), Euler(), IMAGES, times, cond=cond)

    plain, every = run(flow), run(flow, tokens=(1, 1))
    assert relative(every.x, plain.x) < 1e-3
    assert skipped(every) == skipped(plain)
    assert int(every.evaluations) == int(plain.evaluations)
    some, other = (run(flow, tokens=(2, 3), seed=seed) for seed in (0, 1))
    assert 1e-4 < distance(some.x, plain.x) < 0.2
    assert np.any(some.x != other.x)
    guided = run(fj.guide(flow, fj.guidance.CFG(scale=1.5)), tokens=(2, 3))
    assert int(guided.network_calls) == 2 * int(guided.evaluations) < 48


def test_kept_tokens_are_one_of_each_cell_and_the_least_stable():
    from flowjax.fields.pruned import kept_tokens, token_scores

    m = jnp.arange(2 * 64, dtype=jnp.float32).reshape(2, 8, 8, 1)
    scores = token_scores(m, (4, 4))
    assert scores[0, 1] == np.mean([2, 3, 10, 11])
    kept = np.asarray(kept_tokens(scores, (4, 4), 2, 3, jax.random.key(0)))
    assert kept.shape == (2, 7)
    for row in kept:
        cells = {(token // 4 // 2, token % 4 // 2) for token in row}
        assert len(cells) == 4
        assert {15, 14} <= set(row)


def test_tokens_need_a_network_that_keeps_them():
    with pytest.raises(ValueError, match="block_cache"):
        SADA(FLOW, tokens=(2, 3))
    with pytest.raises(ValueError, match="leave out key= and perturbed="):
        transformer()(IMAGES, T, key=jax.random.split(jax.random.key(0), 3), cache=transformer().block_cache(3))


def test_tokens_that_were_never_computed_are_not_taken_from_nothing():
    """Where a rule opens in the middle of a run, its other condition has been asked for nothing before."""
    flow = fj.Flow(transformer(False), path=LINEAR)
    field, tokens = Pruned(flow), jnp.zeros((3, 2), jnp.int32)
    plain = flow.velocity(0.5, IMAGES)
    value, memory = field.evaluate(0.5, IMAGES, None, field.init(IMAGES), tokens=tokens, refresh=False)
    np.testing.assert_allclose(value, plain, rtol=1e-5, atol=1e-6)
    other = field.evaluate(0.5, IMAGES + 1, None, memory, tokens=tokens, refresh=False)[0]
    assert not np.allclose(other, flow.velocity(0.5, IMAGES + 1), atol=1e-4)


def test_a_run_to_the_noise_is_judged_as_one_to_the_data():
    """A change that grows has differences of one sign, in whichever direction: not stable."""
    options = {"lagrange_term": 0, "acc_range": (3, 50)}
    for rate, times, settles in (
        (3, FIFTY, False),
        (-3, FIFTY, True),
        (-3, FIFTY[::-1], False),
        (3, FIFTY[::-1], True),
    ):
        flow = fj.Flow(lambda x, t, cond, rate=rate: 0 * x + jnp.exp(rate * t)[:, None], path=LINEAR)
        result = fj.solve(SADA(flow, **options), Euler(), X, times, invert=bool(times[0] > times[-1]))
        assert bool(np.any(result.report["skipped"])) == settles


def test_more_skipped_calls_in_a_row_are_farther_away():
    plain = fj.solve(FLOW, DPMSolver(), X, FIFTY).x
    away = [
        distance(fj.solve(SADA(FLOW, lagrange_term=0, max_interval=most), DPMSolver(), X, FIFTY).x, plain)
        for most in (1, 2, 4)
    ]
    assert away == sorted(away)

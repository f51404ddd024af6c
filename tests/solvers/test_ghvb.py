import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import from_exact_history
from problem import PATHS, Problem, relative

import flowjax as fj
from flowjax.solvers import GHVB, AdamsBashforth, Euler, HeavyBall, Nesterov, run_on_arrays
from flowjax.times import uniform

LINEAR = PATHS["linear"]
UNEVEN = np.array([0.1, 0.17, 0.2, 0.31, 0.42, 0.44, 0.6, 0.71, 0.9])


RECORDED = json.loads((pathlib.Path(__file__).parent / "momentum_official.json").read_text())


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_recorded_runs_of_the_authors_program(name):
    """Their order 3.8 is order 4 with beta 0.8."""
    kind, number = name.split()
    order, beta = math.ceil(float(number)), float(number) % 1 or 1.0
    problem, grid = Problem(PATHS["vp"]), uniform(12, 0.1, 0.95)
    plms = AdamsBashforth(order=order, form="noise", weights="fixed")
    solver = {
        "GHVBScheduler": GHVB(order=order, beta=beta, form="noise", weights="fixed"),
        "PLMSWithHBScheduler": HeavyBall(solver=plms, beta=beta, init="first_output"),
        "PLMSWithNTScheduler": Nesterov(solver=plms, beta=beta, init="first_output"),
    }[kind]
    x = problem.path.sigma(0.1) * np.array(RECORDED["start"])[:, None]
    found = run_on_arrays(solver, problem.path, grid, x, problem)[-1]
    assert relative(found[:, 0], RECORDED["runs"][name]["x"]) < 1e-8


def published(order, b):
    """Weights of the stored averages (2307.11118, appendix), which sum to b."""
    return {
        1: [b],
        2: [(2 + b) / 2, -(2 - b) / 2],
        3: [(18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12],
        4: [(46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24],
        5: [c / 720 for c in (1650 + 251 * b, 646 * b - 3420, 2880 - 264 * b, 106 * b - 1380, 270 - 19 * b)],
    }[order]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("beta", [1.0, 0.8, 0.5])
@pytest.mark.parametrize("weights", ["fixed", "variable"])
def test_published_weights_on_equal_steps(weights, beta, order):
    f = np.random.default_rng(0).standard_normal(12)
    values = iter(f)
    solver = GHVB(order=order, beta=beta, weights=weights)
    solutions = run_on_arrays(solver, LINEAR, uniform(12), np.zeros((1, 1)), lambda r: np.full((1, 1), next(values)))
    v = [f[0]]
    for value in f[1:]:
        v.append((1 - beta) * v[-1] + beta * value)
    found = 12 * np.diff(np.concatenate(solutions)[:, 0])
    assert sum(published(order, beta)) == pytest.approx(beta)
    assert found[order - 1 :] == pytest.approx(
        [np.dot(published(order, beta), v[n - order + 1 : n + 1][::-1]) / beta for n in range(order - 1, 12)], rel=1e-10
    )


@pytest.mark.parametrize("name", ["linear", "vp", "ve"])
@pytest.mark.parametrize("form", ["velocity", "noise"])
def test_limits(form, name):
    problem = Problem(PATHS[name])
    x = problem.state(UNEVEN[0])

    def difference(a, b):
        return relative(*(run_on_arrays(s, problem.path, UNEVEN, x, problem)[-1] for s in (a, b)))

    for order in (1, 2, 3, 4):
        for weights in ("fixed", "variable"):
            plain = AdamsBashforth(order=order, form=form, weights=weights)
            assert difference(GHVB(order=order, beta=1.0, form=form, weights=weights), plain) < 1e-12
            assert difference(GHVB(order=order, beta=0.7, form=form, weights=weights), plain) > 1e-4
    if form == "velocity":
        assert difference(GHVB(order=1, beta=0.7), HeavyBall(solver=Euler(), beta=0.7)) < 1e-12


@pytest.mark.parametrize("weights", ["fixed", "variable"])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_constants_are_exact_and_increments_linear(order, weights):
    f = np.random.default_rng(1).standard_normal(8)

    def increments(factor, values):
        values = iter(factor * values)
        solver = GHVB(order=order, beta=0.6, weights=weights)
        network = lambda r: np.full((1, 1), next(values))  # noqa: E731
        return np.diff(np.concatenate(run_on_arrays(solver, LINEAR, UNEVEN, np.zeros((1, 1)), network))[:, 0])

    assert increments(1.0, np.ones(8)) == pytest.approx(np.diff(UNEVEN))
    assert increments(2.0, f) == pytest.approx(2 * increments(1.0, f))


def order_of(problem, solver, grid_of, counts, known):
    errors = [np.sqrt(np.mean(from_exact_history(problem, solver, grid_of(n), known) ** 2)) for n in counts]
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("beta", [1.0, 0.8, 0.5])
def test_momentum_keeps_the_order(beta, order):
    """Once the average has forgotten its start, steps are exact for velocities of degree order - 1 in time."""
    for weights in ("fixed", "variable"):
        for degree in range(order + 1):
            solver = GHVB(order=order, beta=beta, weights=weights)
            values = lambda r, degree=degree: np.full((1, 1), (8 * r.t - 4) ** degree)  # noqa: E731
            solutions = run_on_arrays(solver, LINEAR, uniform(64), np.zeros((1, 1)), values)
            exact = (4.0 ** (degree + 1) - 3.875 ** (degree + 1)) / (8 * (degree + 1))
            assert (abs(float(solutions[-1][0, 0] - solutions[-2][0, 0]) - exact) < 1e-11) == (degree < order)


@pytest.mark.parametrize(("order", "beta"), [(3, 0.8), (5, 0.5)])
def test_order_from_an_exact_history(order, beta):
    known = {0.5: 40, 0.8: 16}[beta]

    def grid(n):
        return 0.45 + 0.35 / n * np.arange(-known, n + 1)

    solver = GHVB(order=order, beta=beta, weights="fixed")
    assert order_of(Problem(LINEAR), solver, grid, (80, 160), known) > order - 0.35


def test_equal_step_weights_on_other_steps_are_second_order():
    problem, known = Problem(LINEAR), 12

    def grid(n):
        return LINEAR.time(-0.5 + 2.0 / n * np.arange(-known, n + 1))

    fixed, variable = (
        order_of(problem, GHVB(order=4, beta=0.8, weights=weights), grid, (160, 320), known)
        for weights in ("fixed", "variable")
    )
    assert fixed < 2.6
    assert variable > 3.4


def bound(order, b):
    """The largest stable |h q| of y' = q y: the root of the characteristic polynomial at -1."""
    gam = [0, 1, 1 / 2, 5 / 12, 3 / 8, 251 / 720]
    return 2 * (2 - b) / sum((b * gam[j + 1] + (1 - b) * gam[j]) * 2**j for j in range(order))


def largest(order, beta, product, n=400):
    """Largest |y| at the end of n steps of y' = q y with h q = -product."""
    solver = GHVB(order=order, beta=beta, weights="fixed")
    return float(
        abs(run_on_arrays(solver, LINEAR, uniform(n), np.ones((1, 1)), lambda r: -product * n * r.x)[-1][0, 0])
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("beta", [1.0, 0.8, 0.5])
def test_stability_interval(beta, order):
    stated = {2: 2 - beta, 3: 2 * (2 - beta) / (4 - beta / 3), 4: 2 * (2 - beta) / (22 / 3 - 2 * beta / 3)}
    limit = bound(order, beta)
    assert limit == pytest.approx(stated.get(order, limit))
    for product, stable in ((0.97 * limit, True), (1.03 * limit, False)):
        # (z - 1)(z - (1 - b)) z^(k-1) = Q z sum_j G_j z^(k-1-j)
        left = np.polymul(np.polymul([1, -1], [1, beta - 1]), [1, *np.zeros(order - 1)])
        right = -product * np.array([*published(order, beta), 0.0])
        assert (np.abs(np.roots(np.polysub(left, right))).max() < 1) == stable
    assert largest(order, beta, 0.96 * limit) < 1
    assert largest(order, beta, 1.06 * limit) > 1e2


def test_stays_bounded_where_adams_bashforth_diverges():
    for order, product in ((2, 1.3), (3, 0.7), (4, 0.37)):
        assert largest(order, 1.0, product) > 1e6
        assert largest(order, 0.5, product) < 1e-3


def test_beta_may_be_traced():
    flow = fj.Flow(lambda x, t, cond: jnp.tanh(x) - t[:, None], path=LINEAR)
    x, traces = fj.noise(jax.random.key(0), (3, 2)), []

    @jax.jit
    def end(beta):
        traces.append(1)
        return jnp.sum(fj.solve(flow, GHVB(order=3, beta=beta).bind(LINEAR, uniform(6)), x).x ** 2)

    for beta in (0.8, 0.5):
        concrete = fj.solve(flow, GHVB(order=3, beta=beta), x, uniform(6)).x
        assert float(end(beta)) == pytest.approx(float(jnp.sum(concrete**2)), rel=1e-5)
    assert len(traces) == 1
    slope = (float(end(0.82)) - float(end(0.78))) / 0.04
    assert float(jax.grad(end)(0.8)) == pytest.approx(slope, rel=5e-2, abs=1e-3)


@pytest.mark.parametrize("beta", [0.0, 1.2])
def test_beta_is_checked(beta):
    with pytest.raises(ValueError, match="weight of the new value"):
        GHVB(beta=beta)


def test_noise_form_needs_a_start_with_signal():
    with pytest.raises(ValueError, match="start"):
        GHVB(form="noise").bind(LINEAR, uniform(4))


def test_repeated_times_change_nothing():
    problem, solver = Problem(LINEAR), GHVB(order=3, beta=0.6)
    x = problem.state(UNEVEN[0])
    for place in (0, 4, 8):
        twice = np.insert(UNEVEN, place, UNEVEN[place])
        plain, repeated = (run_on_arrays(solver, LINEAR, grid, x, problem)[-1] for grid in (UNEVEN, twice))
        assert relative(repeated, plain) < 1e-13

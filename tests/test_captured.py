"""Networks given as plain functions: what they capture is used with its present values."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problem import relative

import flowjax as fj
from flowjax import solving
from flowjax._captured import marked
from flowjax.calibration import ems
from flowjax.solving import _run

PATH, TIMES = fj.paths.Linear(), fj.times.uniform(3)
SCALE: Any = jnp.float32(0.5)
SETTINGS = types.ModuleType("settings")  # stands for a module of the user's own


def solved(network, **options):
    return np.asarray(fj.solve(fj.Flow(network, path=PATH), fj.solvers.Euler(), states(), TIMES, **options).x)


def states():
    return fj.noise(jax.random.key(0), (4, 2))


class Own:
    factor = 1.0

    def __init__(self):
        self.weight = jnp.float32(0.5)

    def __call__(self, x, t, cond):
        return self.scaled(x)

    def scaled(self, x):
        return self.weight * self.factor * x

    def method(self, x, t, cond):
        return self(x, t, cond)


class Slotted:
    __slots__ = ("weight",)

    def __init__(self):
        self.weight = jnp.float32(0.5)

    def __call__(self, x, t, cond):
        return self.weight * x


def scaled(x):
    return SCALE * x


def through_a_helper(x, t, cond):
    return scaled(x)


def from_a_module(x, t, cond):
    return SETTINGS.weight * x


def of_parts(part, x, t, cond):
    return part["weight"] * x


def changed_global(value):
    global SCALE
    SCALE = value


def cases():
    """Name -> (network, a function that changes what it captures so that the result must differ)."""
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    array, box, own, slotted = np.ones((1, 2), np.float32), {"weight": jnp.float32(0.5)}, Own(), Slotted()
    nested = [{"weight": [1.0]}]
    default = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
    count = 1

    def nonlocal_number(x, t, cond):
        return count * x

    def more():
        nonlocal count
        count = 3

    def double(module):
        module.kernel[...] = 2 * module.kernel[...]

    def attributed(x, t, cond):
        return attributed.weight * x

    attributed.weight = 1.0
    SETTINGS.weight = jnp.float32(0.5)
    return {
        "module in a closure": (lambda x, t, cond: linear(x), lambda: double(linear)),
        "module in a default": (lambda x, t, cond, m=default: m(x), lambda: double(default)),
        "numpy array": (lambda x, t, cond: array * x, lambda: array.__imul__(3)),
        "dict": (lambda x, t, cond: box["weight"] * x, lambda: box.update(weight=jnp.float32(2.0))),
        "nested number": (lambda x, t, cond: nested[0]["weight"][0] * x, lambda: nested[0].update(weight=[2.0])),
        "number": (nonlocal_number, more),
        "instance": (own, lambda: setattr(own, "weight", jnp.float32(2.0))),
        "method": (own.method, lambda: setattr(own, "weight", jnp.float32(3.0))),
        "class attribute": (own, lambda: setattr(Own, "factor", Own.factor + 1)),
        "slots": (slotted, lambda: setattr(slotted, "weight", jnp.float32(2.0))),
        "function attribute": (attributed, lambda: setattr(attributed, "weight", 2.0)),
        "partial": (functools.partial(of_parts, {"weight": (p := np.ones((1, 2), np.float32))}), lambda: p.__imul__(3)),
        "global through a helper": (through_a_helper, lambda: changed_global(SCALE * 2)),
        "variable of a module": (from_a_module, lambda: setattr(SETTINGS, "weight", jnp.float32(2.0))),
        "vmap": (jax.vmap(lambda x, t, cond: linear(x), (0, 0, None)), lambda: double(linear)),
        "function of a Partial": (
            jax.tree_util.Partial(lambda w, x, t, cond: w * linear(x), jnp.ones((1, 2))),
            lambda: double(linear),
        ),
    }


@pytest.mark.parametrize("name", cases())
@pytest.mark.standard_promotion
def test_changes_of_what_a_function_captures_are_seen(name):
    network, change = cases()[name]
    _run.clear_cache()  # a full one would be dropped in between
    before, programs = solved(network), _run._cache_size()
    assert np.array_equal(solved(network), before)
    assert _run._cache_size() == programs  # nothing changed, nothing is compiled
    change()
    after = solved(network)
    assert relative(after, before) > 0.1
    fresh = solved(lambda x, t, cond: network(x, t, cond))
    np.testing.assert_allclose(after, fresh, rtol=1e-6)


def test_functions_that_capture_nothing_stand_for_themselves():
    def plain(x, t, cond):
        return jnp.sin(x) + t[:, None]

    for function in (plain, lambda x, t, cond: -x, jnp.sin, np.sin, len):
        assert marked(function) is function


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_rules_likelihood_after_step_and_calibration_see_changes_too():
    box = {"weight": jnp.float32(0.5)}

    def network(x, t, cond):
        return box["weight"] * x if cond is None else box["weight"] * x + cond[:, None]

    flow = fj.Flow(network, path=PATH, null=0.0)
    guided = fj.guide(flow, fj.guidance.CFG(scale=2.0))
    cond = jnp.ones(4)
    batch = lambda i: (states(), None)  # noqa: E731

    def all_of_them():
        statistics = ems.estimate(flow, batch, jax.random.key(0), start=0.1, end=0.9, points=4)
        return [
            fj.solve(guided, fj.solvers.Heun(), states(), TIMES, cond).x,
            fj.solve(flow, fj.solvers.Adaptive(), states(), TIMES).x,
            fj.log_likelihood(flow, states(), start=0.1).log_density,
            solved(lambda x, t, cond: -x, after_step=after),
            statistics.l,
        ]

    def after(t, x):
        return box["weight"] * x

    before = all_of_them()
    box["weight"] = jnp.float32(-1.0)
    for old, new in zip(before, all_of_them(), strict=True):
        assert relative(new, old) > 1e-2


def test_an_array_behind_jit_is_refused():
    _run.clear_cache()  # a full one would be dropped in between
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    network = jax.jit(lambda x, t, cond: linear(x))
    solved(network)
    solved(network)
    linear.kernel[...] = 2 * linear.kernel[...]
    with pytest.raises(ValueError, match=r"jax\.jit.*changed since.*jax\.tree_util\.Partial"):
        solved(network)
    solved(linear_network := jax.tree_util.Partial(lambda m, x, t, cond: m(x), linear))
    programs = _run._cache_size()
    linear.kernel[...] = 2 * linear.kernel[...]
    solved(linear_network)
    assert _run._cache_size() == programs  # its arrays are arguments


def test_what_a_network_counts_itself_is_no_change():
    calls = []

    def network(x, t, cond):
        calls.append(1)
        return -x

    solved(network)
    seen = len(calls)
    solved(network)
    assert len(calls) == seen


def test_captured_tracers_and_gradients():
    def loss(weight):
        return jnp.sum(fj.solve(fj.Flow(lambda x, t, c: weight * x, path=PATH), fj.solvers.Euler(), states(), TIMES).x)

    slope = jax.jit(jax.grad(loss))(jnp.float32(0.5))
    expected = float(jnp.sum(states())) * (1 + 0.5 / 3) ** 2
    assert float(slope) == pytest.approx(expected, rel=1e-5)


def test_programs_of_many_shapes_are_dropped(monkeypatch):
    monkeypatch.setattr(solving, "PROGRAMS", 8)
    flow = fj.Flow(lambda x, t, cond: -x, path=PATH)
    for width in range(1, 8 + 3):
        fj.solve(flow, fj.solvers.Euler(), jnp.ones((1, width)), TIMES)
        assert 1 <= _run._cache_size() <= 8

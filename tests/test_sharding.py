"""Batches and parameters spread over eight devices: the same samples, and no communication that is not needed."""

import re
from collections import Counter, defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from problem import PATHS, relative

import flowjax as fj
from flowjax._pytree import pytree
from flowjax.solvers import DDIM, DPMSolver, Heun
from flowjax.solving import _run

LINEAR = PATHS["linear"]
WIDTH, DIM, STEPS = 64, 4, 5
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


@pytree
class Network:
    """Two layers whose hidden axis may be sharded."""

    first: Any
    second: Any
    table: Any

    def __call__(self, x, t, cond=None):
        return jnp.tanh(x @ self.first + t[:, None] + self.table[cond]) @ self.second


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def make_network(place=lambda x, spec: x):
    keys = jax.random.split(jax.random.key(0), 3)
    return Network(
        first=place(jax.random.normal(keys[0], (DIM, WIDTH)), P(None, "data")),
        second=place(jax.random.normal(keys[1], (WIDTH, DIM)) / 8, P("data", None)),
        table=place(jax.random.normal(keys[2], (11, WIDTH)), P(None, "data")),
    )


def batch(n=64):
    return fj.noise(jax.random.key(1), (n, DIM)), jnp.arange(n, dtype=jnp.int32) % 10


def make_field(net, guided):
    flow = fj.Flow(net, path=LINEAR, null=10)
    return fj.guide(flow, fj.guidance.CFG(scale=2.0)) if guided else flow


def collectives(text):
    """How often each collective stands in a compiled program, with its type, by the computation that holds it."""
    found, computation = defaultdict(Counter), ""
    for line in text.splitlines():
        if re.match(r"^(ENTRY )?%?[\w.\-]+ .*\{$", line):
            computation = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        for name in COLLECTIVES:
            if match := re.search(rf"= \(?(\w+)\[.* {name}(-start)?\(", line):
                found[computation][name, match[1]] += 1
    return found


def compiled(field, bound, x, cond, key=None):
    return (
        _run.lower(
            field, bound, x, cond, key, 0, None, after_step=None, monitor=None, trajectory=False, checkpoint=False
        )
        .compile()
        .as_text()
    )


@pytest.mark.parametrize("solver", [Heun(), DPMSolver(), DDIM(eta=1.0)], ids=["heun", "2m", "ancestral"])
def test_samples_do_not_depend_on_how_the_batch_is_spread(solver, mesh):
    x, cond = batch()
    field, key = make_field(make_network(), guided=True), jax.random.key(2)
    bound = solver.bind(LINEAR, fj.times.uniform(STEPS))
    whole = fj.solve(field, bound, x, cond=cond, key=key)
    halves = [fj.solve(field, bound, x[i : i + 32], cond=cond[i : i + 32], key=key, index=i).x for i in (0, 32)]
    assert relative(np.concatenate(halves), whole.x) < 1e-5
    rows = NamedSharding(mesh, P("data"))
    spread = fj.solve(field, bound, jax.device_put(x, rows), cond=jax.device_put(cond, rows), key=key)
    assert relative(spread.x, whole.x) < 1e-5
    assert spread.x.sharding.is_equivalent_to(rows, 2)
    assert (spread.evaluations, spread.network_calls) == (whole.evaluations, whole.network_calls)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("solver", [Heun(), DDIM(eta=1.0)], ids=["heun", "ancestral"])
def test_data_parallel_sampler_has_no_collective(solver, guided, mesh):
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x, cond = (jax.device_put(a, rows) for a in batch())
    field = make_field(make_network(lambda a, spec: jax.device_put(a, everywhere)), guided)
    text = compiled(field, solver.bind(LINEAR, fj.times.uniform(STEPS)), x, cond, jax.random.key(0))
    assert " while(" in text
    assert not collectives(text)


@pytest.mark.parametrize("guided", [False, True])
def test_sampler_with_sharded_parameters_has_the_collectives_of_one_call(guided, mesh):
    rows = NamedSharding(mesh, P("data"))
    x, cond = (jax.device_put(a, rows) for a in batch())
    net = make_network(lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)))
    one_call = jax.jit(lambda net, x, t, cond: net(x, t, cond), out_shardings=rows)
    ((_, expected),) = collectives(
        one_call.lower(net, x, jax.device_put(jnp.full(64, 0.5), rows), cond).compile().as_text()
    ).items()
    assert sum(expected.values()) >= 2

    field, bound = make_field(net, guided), DPMSolver().bind(LINEAR, fj.times.uniform(STEPS))
    text = compiled(field, bound, x, cond)
    found = collectives(text)
    (entry,) = re.findall(r"^ENTRY %?([\w.\-]+)", text, flags=re.MULTILINE)
    ahead = found.pop(entry, Counter())
    assert all(dtype == "s32" for _, dtype in ahead), "parameters gathered ahead of the loop; labels may be"
    # Under guidance the scale decides at run time between two branches, the pair and the condition alone.
    assert len(found) == (2 if guided else 1)
    assert all(counts + ahead == expected for counts in found.values())
    result = fj.solve(field, bound, x, cond=cond)
    plain = fj.solve(make_field(make_network(), guided), bound, *batch()[:1], cond=batch()[1])
    assert relative(result.x, plain.x) < 1e-5

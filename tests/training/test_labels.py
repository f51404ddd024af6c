"""Several networks: a critic at every step, a generator at every fifth, an encoder at every third, and a bank."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from flowjax import specs
from flowjax._pytree import pytree, static
from flowjax.couplings import Independent
from flowjax.models.layers import dense, named
from flowjax.objectives import Assembled, Coupled, turns
from flowjax.training import Checkpoints, compile_step, create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Constant, Power, Warmup
from flowjax.training.optimizers import schedule

pytestmark = pytest.mark.standard_promotion

B, GROUPS = 16, 8


class Net(nnx.Module):
    def __init__(self, rngs, out=2):
        self.inner = dense(2, 8, (None, "embed"), rngs=rngs)
        self.outer = dense(8, out, ("embed", None), rngs=rngs)

    def __call__(self, x):
        return self.outer(jax.nn.tanh(self.inner(x)))


@pytree
class DuelDraws:
    x1: jax.Array
    z: jax.Array
    replayed: jax.Array
    turn: jax.Array


@pytree
class Duel:
    """The bank holds the last fakes of eight groups of examples; the critic sees them again."""

    labels: tuple = static(("critic", "generator"))
    health: float = 1.0  # 0 makes the generator's gradient NaN behind a finite loss

    def updates(self, step):
        every = {"generator": 5, "encoder": 3}
        return {label: (step + 1) % every[label] == 0 for label in self.labels if label in every}

    def memory(self, batch):
        bank = nnx.Variable(jnp.zeros((GROUPS, 4, 2)), **named("groups", None, None))
        return {"bank": bank, "written": jnp.zeros((), jnp.int32)}

    def draw(self, key, batch, memory=None, *, step=0):
        x1 = batch["x1"]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(x1)))
        z = jax.vmap(lambda k: jax.random.normal(k, x1.shape[1:]))(keys)
        replayed = jnp.repeat(memory["bank"][...].mean(1), len(x1) // GROUPS, axis=0)
        return DuelDraws(x1=x1, z=z, replayed=replayed, turn=self.updates(step)["generator"])

    def loss(self, networks, draws):
        critic, generator = networks["critic"], networks["generator"]
        x1, z = draws.x1, draws.z
        if "encoder" in self.labels:
            code = networks["encoder"](x1)
            z = z + jax.lax.stop_gradient(code)  # the encoder learns by its own loss below
        fake = generator(z)
        seen = jax.lax.stop_gradient(fake) + 0.1 * draws.replayed
        judged = ((critic(x1) - 1) ** 2 + critic(seen) ** 2)[:, 0]

        def play():
            # The generator must not move the critic, which would learn to praise.
            praised = jax.lax.stop_gradient(critic)(fake)[:, 0]
            return (praised - 1) ** 2 + jnp.sqrt(self.health * (praised**2 + 1))

        loss = judged + jax.lax.cond(draws.turn, play, lambda: jnp.zeros(len(x1)))
        if "encoder" in self.labels:
            loss = loss + ((code - x1) ** 2).mean(1)
        return loss, {"judged": judged, "fake": jax.lax.stop_gradient(fake), "level": jnp.mean(judged)}

    def remember(self, memory, draws, metrics, good):
        slot = memory["written"] % 4
        new = metrics["fake"].reshape(GROUPS, -1, 2).mean(1)
        bank = memory["bank"]
        new = jnp.where(good, new, bank[:, slot])
        return {"bank": bank.replace(bank[...].at[:, slot].set(new)), "written": memory["written"] + good}


AVERAGES = {
    "average": (Warmup(decay=0.9), ("generator",)),
    "power": (Power(std=0.1), ("generator",)),
    "all": Constant(decay=0.5),
}
OPTIMIZERS = {
    "critic": optax.sgd(0.05),
    "generator": specs.build("optimizer", "adamw(rate=0.02, warmup=0.0)", steps=20),
    "encoder": optax.adam(1e-2),
}


@functools.cache
def duel(labels=("critic", "generator"), devices=1, accumulate=1, **sizes):
    """State, step and data of a duel; states are new objects, programs are shared."""
    mesh = make_mesh(devices=jax.devices()[:devices], **sizes)
    x = np.random.default_rng(0).normal(1, 2, (7, B, 2)).astype(np.float32)
    objective, key = Duel(labels=labels), jax.random.key(1)
    builds = {
        label: lambda i=i, label=label: Net(nnx.Rngs(i), 1 if label == "critic" else 2)
        for i, label in enumerate(labels)
    }
    batch = put_batch({"x1": x[0]}, mesh)
    first = create_state(builds, OPTIMIZERS, mesh, averages=AVERAGES, objective=objective, batch=batch)
    first, shapes = jax.device_get(first), first
    program = compile_step(make_step(OPTIMIZERS, AVERAGES, accumulate=accumulate), shapes, objective, batch, key)

    def start():
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), first, shapes)

    def run(state, steps, objective=objective, spoil=()):
        states = []
        for _ in range(steps):
            done = int(state.step)
            rows = np.where(done in spoil, np.nan, x[done % 7]).astype(np.float32)
            state, metrics = program(state, objective, put_batch({"x1": rows}, mesh), key)
            states.append(jax.device_get(state))
        return state, metrics, states

    return types.SimpleNamespace(start=start, run=run, program=program.as_text(), shapes=shapes, objective=objective)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, *jax.device_get((a, b)))))


def close(a, b, rtol=2e-4, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), *jax.device_get((a, b)))


THREE = ("critic", "encoder", "generator")


@pytest.mark.parametrize("labels", [THREE[::2], THREE])
def test_labels_move_at_their_turns_and_follow_their_own_counts(labels):
    p = duel(labels)
    before = jax.device_get(p.start())
    _, metrics, states = p.run(p.start(), 10)
    own = {"critic": 1, "generator": 5, "encoder": 3}
    for step, after in enumerate(states):
        for label in labels:
            parts = [(s.networks[label], s.optimizer[label], s.averages["all"][label]) for s in (before, after)]
            assert equal(*parts) == ((step + 1) % own[label] != 0), (label, step)
        moved = (step + 1) % 5 == 0
        for name in ("average", "power"):
            assert set(after.averages[name]) == {"generator"}
            assert equal(before.averages[name], after.averages[name]) != moved
        before = after
    assert {label: count.tolist() for label, count in before.counts.items()} == {
        label: [10 // own[label], 0, 0] for label in labels
    }
    # The first of its own updates forgets where a power average began: it is at the first network it followed.
    close(states[4].averages["power"]["generator"], states[4].networks["generator"])
    expected = {"loss", "judged", "level", "skipped", "gradient_norm", *(f"gradient_norm/{label}" for label in labels)}
    assert set(metrics) == expected
    whole = np.sqrt(sum(float(metrics[f"gradient_norm/{label}"]) ** 2 for label in labels))
    np.testing.assert_allclose(metrics["gradient_norm"], whole, rtol=1e-6)
    assert set(p.start().weights()) == set(labels)
    assert equal(p.start().weights()["generator"], p.start().averages["average"]["generator"])


def test_schedules_of_rare_turns_end_with_them():
    p = duel()
    assert turns(p.objective, 500) == {"generator": 100}
    state, _, _ = p.run(p.start(), 10)
    counted = [leaf for leaf in jax.tree.leaves(state.optimizer["generator"]) if leaf.shape == ()]
    assert [int(count) for count in counted] == [2, 2]  # of Adam and of the schedule
    rate = schedule(1.0, turns(p.objective, 500)["generator"], 0.05, "cosine", 0.01)
    np.testing.assert_allclose(rate(99), 0.01, atol=1e-3)
    assert schedule(1.0, 500, 0.05, "cosine", 0.01)(99) > 0.9


@pytest.mark.parametrize("labels", [THREE[::2], THREE])
def test_runs_killed_at_any_moment_go_on_bit_for_bit(labels, tmp_path):
    p = duel(labels)
    through, _, _ = p.run(p.start(), 13, spoil={6})
    assert int(through.memory["written"]) == 12
    kills = sorted(np.random.default_rng(3).choice(np.arange(1, 13), 3, replace=False).tolist())
    state = p.start()
    for kill in [*kills, 13]:
        state, _, _ = p.run(state, kill - int(state.step), spoil={6})
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state)
        with Checkpoints(tmp_path) as checkpoints:
            state = checkpoints.restore(p.shapes)
    assert equal(state, through)
    assert (tmp_path / "13" / "memory").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_one_device_equals_eight(sizes):
    alone, spread = duel(THREE), duel(THREE, devices=8, **sizes)
    (a, m, _), (b, n, _) = alone.run(alone.start(), 10), spread.run(spread.start(), 10)
    close((a, m), (b, n))
    assert b.memory["bank"][...].sharding.spec[0] == "data"
    if sizes == {"data": 8}:
        assert set(re.findall(r"all-reduce|all-gather|all-to-all|collective-permute", spread.program)) == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_accumulation_equals_the_whole_batch(devices):
    whole, parts = duel(devices=devices), duel(devices=devices, accumulate=2)
    (a, m, _), (b, n, _) = whole.run(whole.start(), 10), parts.run(parts.start(), 10)
    close((a, m), (b, n))


def test_guard_finds_a_network_that_is_dead_at_each_of_its_turns():
    p = duel()
    dead = dataclasses.replace(p.objective, health=0.0)
    first = jax.device_get(p.start())
    state, metrics, _ = p.run(p.start(), 15, objective=dead)
    assert np.isfinite(metrics["loss"])
    assert {label: count.tolist() for label, count in jax.device_get(state.counts).items()} == {
        "critic": [15, 0, 0],
        "generator": [0, 3, 3],
    }
    assert float(metrics["skipped"]) == 3
    for name in ("average", "power"):
        assert equal(state.averages[name], first.averages[name])
    assert equal(state.networks["generator"], first.networks["generator"])
    assert not equal(state.networks["critic"], first.networks["critic"])
    # A step with a bad network is not remembered.
    assert int(state.memory["written"]) == 12


def test_a_loss_that_is_not_finite_stops_those_whose_turn_it_is():
    p = duel()
    _, _, states = p.run(p.start(), 5, spoil={2, 4})
    assert equal(states[1].networks, states[2].networks)
    assert equal(states[1].memory, states[2].memory)
    assert states[2].counts["generator"].tolist() == [0, 0, 0]
    assert {label: count.tolist() for label, count in states[4].counts.items()} == {
        "critic": [3, 1, 2],
        "generator": [0, 1, 1],
    }


def test_wrapped_objectives_keep_what_they_wrap():
    inner = Duel()
    assembled = Assembled(inner, frozen={"teacher": jnp.ones(2)}, combine=lambda networks, frozen: networks)
    for objective in (assembled, Coupled(inner, Independent())):
        assert turns(objective, 10) == {"generator": 2}
        memory = objective.memory({})
        bank = objective.remember(memory, None, {"fake": jnp.ones((B, 2))}, jnp.asarray(True))
        np.testing.assert_array_equal(bank["bank"][:, 0], 1)
    draws = assembled.draw(jax.random.key(0), {"x1": jnp.ones((B, 2))}, memory, step=4)
    assert bool(draws.turn)


def test_labels_that_do_not_exist_are_refused():
    mesh, build = make_mesh(devices=jax.devices()[:1]), {"critic": lambda: Net(nnx.Rngs(0), 1)}
    with pytest.raises(ValueError, match="network 'critic' has no optimizer; there are those of generator"):
        create_state(build, {"generator": optax.sgd(1.0)}, mesh, averages={})
    with pytest.raises(ValueError, match="'average' is to follow 'generator', but networks are critic"):
        create_state(build, optax.sgd(1.0), mesh, averages=AVERAGES)
    with pytest.raises(ValueError, match="a start of 'other', but no such network: critic"):
        create_state(build, optax.sgd(1.0), mesh, start={"other": {}})
    state = create_state(build, optax.sgd(1.0), mesh, objective=Duel(), batch=None)
    with pytest.raises(ValueError, match="the objective updates 'generator', but trained are critic"):
        make_step(optax.sgd(1.0))(state, Duel(), {"x1": jnp.ones((B, 2))}, jax.random.key(0))

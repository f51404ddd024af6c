"""Laws of every kind of the catalogue; those of solvers alone are in `test_conformance.py`.

What is drawn, computed or converted is the same compiled and eagerly, in whatever precision it is asked, for each
example by itself unless the entry says that it couples its batch, and from the key alone. Options survive as text, and
what no option can be is refused in one line. Each law counts what it has looked at: a law that nothing was held to, or
that everything escaped, fails.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flowjax.configs.base import base
from kinds import ENTRIES, FILES, PATH, given_for, make, network, options_for, wide

import flowjax as fj
from flowjax import catalogue, specs
from flowjax.tasks.base import SHARED

pytestmark = pytest.mark.standard_promotion  # optax promotes


# ------------------------------------------------------------------------------------------- how a kind is used


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.unembed = nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, z):
        return self.unembed(jnp.tanh(z))


class Autoencoder(nnx.Module):
    """Three pixels, two latents."""

    def __init__(self, rngs):
        self.encoder, self.decoder = nnx.Linear(3, 4, rngs=rngs), Decoder(rngs)

    def encode(self, x):
        return tuple(jnp.split(self.encoder(x), 2, axis=-1))

    def decode(self, z):
        return self.decoder(z)


class Seer(nnx.Module):
    """Three pixels, two features."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def encode(self, images):
        return jnp.tanh(self.linear(images))

    def features(self, images):
        return (self.encode(images),)


class Representation(nnx.Module):
    def __init__(self, rngs):
        self.encoder, self.decoder = Seer(rngs), Decoder(rngs)

    def encode(self, x):
        return self.encoder.encode((x + 1) / 2)

    def decode(self, z):
        return self.decoder(z)


OWN_NETWORKS = {
    "classification": lambda x: jnp.sin(x),
    "regression": lambda x, t, cond: jnp.sin(x[:, :2]) + t[:, None],
    "policy_distillation": lambda x, t, cond: wide(network(x, t, cond), 9),
    "refiner": lambda x, t, cond, velocity: network(x, t, cond) * velocity,
    "improved_mean_flow": lambda x, t, cond, end: {"u": network(x, t, cond), "v": network(2 * x, t, cond)},
    "distribution_matching": {"student": network, "fake": lambda x, t, cond: wide(network(x, t, cond), 4)},
    "schroedinger_bridge": {"velocity": network, "interpolant": lambda x, t, cond: network(x[:, :3], t, cond)},
}


PLAYERS = {"autoencoding": Autoencoder, "representation_autoencoding": Representation}


def players(name):
    return {"autoencoder": PLAYERS[name](nnx.Rngs(0)), "discriminator": nnx.Linear(3, 2, rngs=nnx.Rngs(1))}


def batch_of(x):
    cond = jnp.arange(len(x), dtype=jnp.int32) % 2
    return {"x1": x, "cond": cond, "target": jnp.cos(x[:, :2])}


def use_objective(name):
    def use(objective, key, x):
        batch = batch_of(x) | ({"x0": jnp.cos(x)} if name == "rectified" else {})
        draws = objective.draw(key, batch, step=4)  # where all networks of several move
        networks = players(name) if name in PLAYERS else OWN_NETWORKS.get(name, network)
        if name in PLAYERS:
            networks = jax.tree.map(lambda leaf: leaf.astype(x.dtype), networks)
        loss, metrics = objective.loss(networks, draws)
        # Times are drawn in single precision, whatever the data.
        return {"loss": loss, "x0": getattr(draws, "x0", None), **metrics}

    return use


def use_coupling(coupling, key, x):
    x0 = jnp.sin(5 * x) + x[:, ::-1]
    if isinstance(coupling, fj.couplings.SemidiscreteMap):
        return coupling.start(x0, coupling.time)
    return coupling.couple(key, x0, batch_of(x) | {"x0": jnp.cos(x)})


def use_policy(head, key, x):
    a = jax.nn.sigmoid(x[:, 0]) / 2
    policy = head.policy(wide(x, head.channels(3)), a, x)
    b, out = a + 0.3, policy.dropout(jax.random.split(jax.random.key(3), 8)[: len(x)], 0.5)
    return policy.velocity(b, x), policy.average_velocity(x, a, b), out.rollout(x, a, b)


def use_path(path, key, x):
    t = jax.nn.sigmoid(x[:, 0])
    if isinstance(path, fj.paths.Interpolant):
        other, z = jnp.cos(x), jnp.sin(3 * x)
        return path.interpolate(t, x, other, z), path.conditional_velocity(t, x, other, z), path.score(t, x)
    noise = jnp.cos(x)
    converted = [path.convert(noise, given="noise", to=to, t=t, x=x) for to in ("velocity", "data", "score", "v")]
    return path.interpolate(t, noise, x), path.conditional_velocity(t, noise, x), *converted


def use_rule(rule, key, x):
    x = x[:, None, :, None] if type(rule) is fj.guidance.FrequencyDecoupled else x  # images
    c, u = jnp.sin(x), jnp.cos(x)

    def others(u):
        return u if len(rule.needed(0.3)) == 1 else (u,) * len(rule.needed(0.3))

    first, state = rule.combine(0.3, c, others(u), rule.init(x))
    second, state = rule.combine(0.5, u, others(c * u), state)
    return first, second, rule.report(state)


def use_scale(scale, key, x):
    if isinstance(scale, fj.guidance.Each):
        return fj.guidance.in_turn(scale, 2, len(x)).astype(x.dtype) * x[:, 0]
    return scale(jax.nn.sigmoid(x[:, 0]))


def use_field(field, key, x):
    cond = jnp.arange(1.0, len(x) + 1, dtype=x.dtype)
    if field.one_evaluation_per_step:  # of which the first says nothing yet, and what decides is one number for all
        result = fj.solve(field, fj.solvers.Euler().bind(PATH, fj.times.uniform(10)), x, cond=cond)
        measure = 1e3 * result.report["measure"]  # of SADA, it is a small product of differences
        return result.x, jnp.broadcast_to(measure, (len(x), 10))
    value, memory = field.evaluate(0.5, x, cond, field.init(x))
    return value, field.report(memory)


def use_search(search, key, x):
    """Of as many results as there are states, from the key."""
    reward = lambda x: -jnp.sum((x - 0.3) ** 2, axis=1)  # noqa: E731
    found = fj.search.find(SEARCHED, search, reward, x.shape, key=key, dtype=x.dtype)
    return found.x, found.reward


def inputs(name, x):
    """What a network or encoder takes: the state, its times and its condition."""
    n, t = len(x), jax.nn.sigmoid(x[:, 0])
    image = jnp.sin(jnp.arange(1, 65).reshape(1, 8, 8, 1) * x[:, 0].reshape(-1, 1, 1, 1))
    grid, flat = image.reshape(n, 4, 4, 4, 1), jnp.arange(1, 289).reshape(1, -1) * x[:, :1]
    view = {"image": jnp.sin(flat[:, :48]).reshape(n, 4, 4, 3)}
    cloud = jnp.sin(jnp.arange(1, 37).reshape(1, 12, 3) * x[:, :1, None]) / 2
    return {
        "mlp": (x[:, :2], t),
        "dit": (image[:, :4, :4], t),
        "token_dit": (image[:, :4, :4], t),
        "dit_dh": (image.reshape(n, 4, 4, 4)[..., :2], t),
        "unet": (image, t),
        "autoencoder": (image[:, :4, :4],),
        "kl_autoencoder": (image[:, :4, :4],),
        "discriminator": (image,),
        "vit": (image[:, :4, :4],),
        "vit_decoder": (jnp.sin(flat[:, :12]).reshape(n, 2, 2, 3),),
        "representation_autoencoder": (image[:, :4, :4],),
        "voxel_autoencoder": (grid,),
        "voxel_dit": (grid[:, :2, :2, :2], t, view),
        "voxel_set_dit": (
            jnp.cos(flat[:, :240]).reshape(n, 8, 30),
            t,
            view | {"structure": jnp.where(grid > 0, 1.0, 0.0)},
        ),
        "conditioned": (x[:, :2], t, {"label": jnp.arange(n) % 3}),
        "readout": (x, t),
        "pointnet": (cloud, jnp.ones((n, 12)), jnp.tile(jnp.arange(4), (n, 1))),
        "label": (jnp.arange(n) % 3,),
        "vector": (x,),
        "text": (jnp.arange(3 * n).reshape(n, 3) % 5,),
        "image": (image[:, :4, :4],),
    }[name]


def use_network(name):
    if name in ("autoencoder", "kl_autoencoder", "voxel_autoencoder"):
        return lambda network, key, x: (
            network.encode(*inputs(name, x)),
            network.decode(network.encode(*inputs(name, x))[0]),
        )
    if name == "vit":
        return lambda network, key, x: (network(*inputs(name, x)), network.encode(*inputs(name, x)))
    if name == "representation_autoencoder":
        return lambda network, key, x: network.decode(network.encode(*inputs(name, x)))
    return lambda network, key, x: network(*inputs(name, x))


def use_time_law(law, key, x):
    return jax.vmap(lambda index: law.sample(jax.random.fold_in(key, index)))(jnp.arange(len(x)))


USES = {
    "path": use_path,
    "policy": use_policy,
    "rule": use_rule,
    "scale": use_scale,
    "operator": lambda operator, key, x: operator(x[:, None, :, None]),
    "field": use_field,
    "coupling": use_coupling,
    "time_law": use_time_law,
    "search": use_search,
    "weight": lambda weight, key, x: weight(jax.nn.sigmoid(x[:, 0])),
    "diffusion": lambda diffusion, key, x: diffusion.value(PATH, jax.nn.sigmoid(x[:, 0])),
}
MAKERS = {"objective": use_objective, "network": use_network, "encoder": use_network}
USED = [(kind, name) for kind, name in ENTRIES if kind in {**USES, **MAKERS}]
# Kinds of which nothing runs in a compiled program, or only within another kind, and where their laws are.
HOST = {
    "solver": "test_conformance.py",
    "edit": "editing/test_editing.py and test_sample_edits.py",
    "times": "here",
    "average": "here",
    "condition": "here",
    "optimizer": "here",
    "task": "tasks/test_every_task.py and tasks/test_objectives.py",
    "adapters": "models/test_lora.py",
    "tokenizer": "models/test_text.py",
    "run": "recipe/test_runs.py",
    "codec": "tasks/test_codecs.py",
    "data": "data/ and geometry/test_solids.py",
    "form": "geometry/test_solids.py",
    "array": "test_specs.py",
    "density": "recipe/test_densities.py",
    "runge_kutta": "solvers/test_diffrax.py",
    "schedule": "solvers/test_usf.py",
    "rows": "solvers/test_learned.py",
    "decision": "solvers/test_usf.py",
    "statistics": "solvers/test_dpm_solver_v3.py",
}


def used(kind, name):
    return USES.get(kind) or MAKERS[kind](name)


SEARCHED = fj.Flow(lambda x, t, cond: jnp.tanh(x) - x + t[:, None], path=PATH)


def states(n=8, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, 3)), dtype)


def floats(tree):
    found = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert found, "there is nothing to compare"
    return found


def rows(tree, n):
    """The leaves with one row for each of n examples."""
    found = [np.asarray(leaf) for leaf in floats(tree) if leaf.ndim and leaf.shape[0] == n]
    assert found, "nothing belongs to an example"
    return found


def close(a, b):
    return all(np.allclose(x, y, rtol=1e-5, atol=1e-5) for x, y in zip(a, b, strict=True))


@functools.cache
def compiled(kind, name):
    """The entry as an argument of a program of its own, shared by the laws."""
    use = used(kind, name)
    return jax.jit(lambda *inputs: use(*inputs))


def run(kind, name, seed=1, n=8):
    """The floats of every example."""
    return rows(compiled(kind, name)(make(kind, name), jax.random.key(seed), states(n)), n)


# Networks of images take long to compile, most of all one operation at a time.
IMAGES = ("dit", "token_dit", "unet", "autoencoder", "kl_autoencoder", "discriminator", "pointnet")
IMAGES += ("vit", "vit_decoder", "representation_autoencoder", "dit_dh")
IMAGES += ("voxel_autoencoder", "voxel_dit", "voxel_set_dit")
every = pytest.mark.parametrize(
    ("kind", "name"), [pytest.param(k, n, marks=pytest.mark.slow) if n in IMAGES else (k, n) for k, n in USED]
)


def test_every_kind_is_used_here_or_elsewhere():
    assert set(USES) | set(MAKERS) | set(HOST) == set(catalogue.tables)
    assert not set(HOST) & (set(USES) | set(MAKERS))
    for kind in (*USES, *MAKERS):
        assert [name for k, name in USED if k == kind] == list(catalogue.tables[kind])


# ------------------------------------------------------------------------------------------------ laws of what is used


@every
def test_is_a_pytree_and_compiled_equals_eager(kind, name):
    """As an argument of compiled code all its numbers are traced; taken apart and put together it is itself."""
    thing = make(kind, name)
    leaves, structure = jax.tree.flatten(thing)
    assert all(isinstance(leaf, int | float | jax.Array | np.ndarray) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure
    eager = floats(used(kind, name)(again, jax.random.key(1), states()))
    found = floats(compiled(kind, name)(thing, jax.random.key(1), states()))
    assert close(found, eager)
    assert all(np.all(np.isfinite(leaf)) for leaf in found)
    programs = compiled(kind, name)._cache_size()
    run(kind, name)
    assert compiled(kind, name)._cache_size() == programs, "an equal thing is compiled again"


@every
def test_an_example_depends_on_its_batch_only_where_the_entry_says_so(kind, name):
    independent = close(run(kind, name, n=4), [leaf[:4] for leaf in run(kind, name)])
    assert independent != catalogue.tables[kind][name].couples_batch


RANDOM = {"time_law": set(catalogue.tables["time_law"]), "coupling": {"sinkhorn"}}
RANDOM["search"] = set(catalogue.tables["search"])
RANDOM["objective"] = set(catalogue.objectives) - {"classification", "regression"}


@every
def test_the_key_matters_to_all_examples_or_to_none(kind, name):
    first, again, other = (run(kind, name, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    differs = [np.any(a.reshape(8, -1) != b.reshape(8, -1), axis=1) for a, b in zip(first, other, strict=True)]
    differs = np.any(differs, axis=0)
    if name == "sinkhorn":  # of few candidates the same may be drawn twice
        assert np.any(differs)
    else:
        assert np.all(differs) if name in RANDOM.get(kind, ()) else not np.any(differs)


# Single by contract, or made with a precision of their own (`tests/test_precision.py`).
SINGLE = ("time_law", "network", "encoder")


@pytest.mark.parametrize(("kind", "name"), [entry for entry in USED if entry[0] not in SINGLE])
def test_double_precision_is_kept(kind, name, x64):
    """No float64 state is rounded on the way, and none of float32 becomes one of float64."""
    use = used(kind, name)

    @jax.jit
    def both(thing):
        return [use(thing, jax.random.key(1), states(dtype=dtype)) for dtype in (jnp.float64, jnp.float32)]

    fine, rough = (rows(found, 8) for found in both(make(kind, name)))
    assert {leaf.dtype for leaf in fine} == {np.dtype(np.float64)}
    assert any(np.any(leaf != leaf.astype(np.float32)) for leaf in fine)
    # A map is as precise as its targets.
    assert {leaf.dtype for leaf in rough} == {np.dtype(np.float64 if name == "semidiscrete_map" else np.float32)}


# ------------------------------------------------------------------------------------------------- laws of all options


def literals(kind, name):
    """The options of an entry that are plain numbers, or flags, by default or in its example."""
    known, given = specs.options_of(catalogue.tables[kind][name]), given_for(kind, name)
    values = {key: option.default for key, option in known.items() if option.kind is None}
    values |= {key: value for key, value in options_for(kind, name).items() if key in values}
    left_out = {*given, *TIED.get((kind, name), ())}
    return {key: value for key, value in values.items() if key not in left_out and isinstance(value, int | float)}


TIED = {("objective", "distribution_matching"): {"adversary"}}  # what another option of the example asks for
TIED |= {("codec", name): {"sample"} for name in ("identity", "patch")}  # which have no posterior


def others(value):
    """Values near by, one of which should be allowed."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, 2 * value]
    return [0.8 * value + 0.013, 1.1 * value + 0.02] if math.isfinite(value) else [1.5]


BUILT = [entry for entry in ENTRIES if entry not in FILES]
NUMBERED = [entry for entry in BUILT if literals(*entry)]
PRINTED = [(k, n) for k, n in NUMBERED if dataclasses.is_dataclass(catalogue.tables[k][n].make)]


def test_most_kinds_have_numbers():
    assert len(PRINTED) > 30
    assert {kind for kind, _ in PRINTED} >= {"solver", "rule", "path", "objective", "coupling", "time_law", "average"}


@pytest.mark.parametrize(("kind", "name"), PRINTED)
def test_every_number_survives_as_text(kind, name):
    entry, given = catalogue.tables[kind][name], given_for(kind, name)
    for key, value in literals(kind, name).items():
        for other in others(value):
            try:
                thing = make(kind, name, **{key: other})
            except ValueError:
                continue
            printed = specs.text(specs.spec_of(kind, thing, **given))
            assert f"{key}={other!r}" in printed
            again = specs.build(kind, printed, **given)
            assert type(again) is entry.make
            assert getattr(again, key) == other
            break
        else:
            pytest.fail(f"no number but {value} was allowed for {key}")


@pytest.mark.parametrize(("kind", "name"), BUILT)
def test_unknown_options_are_refused_in_one_line(kind, name):
    with pytest.raises(ValueError, match=f"{name} has no option nonsense") as error:
        make(kind, name, nonsense=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "name"), NUMBERED)
def test_what_is_no_number_is_refused_in_one_line(kind, name):
    for key, value in literals(kind, name).items():
        for wrong in ["much", [value]] + [float("nan")] * (not isinstance(value, bool)):
            with pytest.raises(ValueError, match=f"{key}|much|nan") as error:
                make(kind, name, **{key: wrong})
            assert "\n" not in str(error.value), (key, wrong)


# ------------------------------------------------------------------------------------- laws of what runs on the host


@pytest.mark.parametrize("name", catalogue.tables["times"])
def test_grids_rise_from_noise_to_data_in_double_precision(name):
    grid = make("times", name)
    assert type(grid) is np.ndarray
    assert (grid.dtype, grid.shape) == (np.float64, (given_for("times", name)["n"] + 1,))
    assert np.all(np.diff(grid) > 0)
    assert 0 <= grid[0] < 0.1
    assert 0.9 < grid[-1] <= 1


@pytest.mark.parametrize("name", catalogue.tables["average"])
def test_averages_are_equal_by_value_and_move_towards_the_network(name):
    law = make("average", name)
    assert law == make("average", name)
    assert hash(law) == hash(make("average", name))
    steps = jnp.array([0, 1, 10, 10_000], jnp.int32)
    eager = np.array([law.weight(step) for step in steps])
    np.testing.assert_allclose(jax.jit(jax.vmap(law.weight))(steps), eager, rtol=1e-6)
    assert eager.dtype == np.float32
    assert np.all((eager > 0) & (eager <= 1))
    assert np.all(np.diff(eager) <= 0)


READ = {  # what a command line may say, and may not
    "label": ("2,0", "9"),
    "vector": ("0.5,2", "0.5"),
    "text": ("a red circle", "a circle that is much too long"),
}


def test_conditions_are_read_here_or_from_files():
    """Those of files are in geometry/test_solids.py."""
    assert set(READ) | {"image", "structure"} == set(catalogue.tables["condition"])


@pytest.mark.parametrize("name", READ)
def test_conditions_have_one_shape_and_come_back(name):
    condition, (good, bad) = make("condition", name), READ[name]
    read = condition.read(good, 2)
    for row in (condition.null, *condition.default(5), *read):
        assert (np.shape(row), np.asarray(row).dtype) == (condition.struct.shape, condition.struct.dtype)
    assert not np.array_equal(read[0], condition.null)
    np.testing.assert_array_equal(condition.encode(condition.decode(read)), read)
    with pytest.raises(ValueError, match=bad.partition(" ")[0]) as error:
        condition.read(bad, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", catalogue.tables["optimizer"])
def test_optimisers_are_the_same_compiled_and_descend(name):
    optimizer = make("optimizer", name, rate=1e-2, warmup=0.0)

    def descend(x):
        params = {"kernel": x}
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(jax.tree.map(lambda p: 2 * p, params), state, params)
            params = optax.apply_updates(params, updates)
        return params["kernel"]

    found = descend(states())
    np.testing.assert_allclose(jax.jit(descend)(states()), found, rtol=1e-4, atol=1e-6)
    assert found.dtype == jnp.float32
    assert np.sum(found**2) < np.sum(states() ** 2)


@pytest.mark.parametrize("name", catalogue.tables["task"])
def test_the_base_config_has_just_what_a_task_reads(name):
    assert set(base(name)) == {*SHARED, *catalogue.tables["task"][name].make.sections}
    assert set(catalogue.tables["task"][name].make.metrics.values()) <= {1, -1}

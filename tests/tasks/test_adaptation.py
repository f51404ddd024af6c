"""Adapters on a trained flow."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from runs import task_of

from flowjax import _cli
from flowjax import train as train_main
from flowjax._trees import flatten
from flowjax.models import lora
from flowjax.recipe import Recipe, export_run, load, load_run
from flowjax.training import create_state, make_mesh, make_step

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained run, which nothing changes."""
    folder = tmp_path_factory.mktemp("base")
    small.write(folder)
    return folder


def config_of(folder, *overrides, name="adapters"):
    argv = [f"--config={name}:smoke", f"--config.base.options.workdir={folder}", *overrides]
    values = train_main.flags.FlagValues()
    train_main.define(values, argv)
    values(["train", *argv])
    return values.config


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        _cli.run(train_main.main, train_main.define, ["train", "--config=adapters:smoke", *map(str, arguments)])
    return exit_.value.code


@pytest.mark.slow
def test_only_adapters_are_trained_and_saved(tmp_path, capsys):
    small.write(tmp_path / "base")
    arguments = [f"--config.base.options.workdir={tmp_path / 'base'}", f"--workdir={tmp_path / 'run'}"]
    assert run(*arguments, "--config.train.steps=3") == 0, capsys.readouterr().err
    recipe = Recipe.load(tmp_path / "run")
    assert recipe.runs["base"]["workdir"] == "../base"
    shapes = jax.eval_shape(lambda: recipe.stored()["network"](nnx.Rngs(0)))
    assert all(".down" in name or ".up" in name for name in flatten(shapes))

    networks, _ = load_run(tmp_path / "run")
    base = load(tmp_path / "base")[0].network
    moved = {k for k, v in flatten(networks["network"]).items() if not np.array_equal(v, flatten(base)[k])}
    assert moved
    assert all(name.endswith("kernel") for name in moved)  # biases and tables are the base's

    # A folder of its own needs no base, and its weights are the merged ones.
    export_run(networks, recipe, tmp_path / "alone")
    alone, plain = load_run(tmp_path / "alone")
    assert (plain.adapters, dict(plain.runs)) == (None, {})
    for a, b in zip(jax.tree.leaves(alone["network"]), jax.tree.leaves(networks["network"]), strict=True):
        np.testing.assert_array_equal(a, b)

    # With another base neither the run nor its samples are what they were.
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    small.write(tmp_path / "base", seed=1)
    with pytest.raises(ValueError, match=r"was made with the run 'base' at .* when its weights had the hash"):
        load_run(tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    assert run(*arguments, "--config.train.steps=3") == 2
    assert "began with a base whose weights have the hash" in capsys.readouterr().err


@pytest.mark.slow
def test_the_first_step_is_that_of_the_base_and_sharded_like_it(tmp_path):
    """Adapters start as nothing; one device and eight compute the same, also on a base in bfloat16."""
    small.write(tmp_path / "base")
    task = task_of(config_of(tmp_path / "base"))
    base = load(tmp_path / "base")[0]
    batch = {"x1": jax.random.normal(jax.random.key(0), (8, 8, 8, 1)), "cond": jnp.arange(8)}
    part = task.networks()["network"]
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(devices=devices)
        state = create_state(lambda: part.build(nnx.Rngs(1)), part.optimizer, mesh)
        objective = jax.device_put(task.objective, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        step = jax.jit(make_step(part.optimizer))
        state, metrics = step(state, objective, batch, jax.random.key(1))
        state, second = step(state, objective, batch, jax.random.key(1))
        found.append((float(metrics["loss"]), float(second["loss"])))
    draws = task.objective.draw(jax.random.fold_in(jax.random.key(1), 0), batch)
    plain, _ = task.objective.objective.loss(base.network, draws)
    np.testing.assert_allclose(found[0][0], plain.mean(), rtol=1e-5)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    half = task_of(config_of(tmp_path / "base", "--config.base.options.dtype=bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half.objective.frozen)} == {jnp.dtype(jnp.bfloat16)}
    merged = half.weights(create_state(lambda: part.build(nnx.Rngs(1)), part.optimizer, make_mesh()))["network"]
    assert isinstance(merged, type(base.network))


@pytest.mark.slow
def test_adapters_make_a_student_of_their_base(base):
    """At the start the student is the base; then the adapters move, and nothing else."""
    task = task_of(config_of(base, name="lcm_lora"))
    part, objective, own = task.networks()["network"], task.objective, load(base)[0]
    state = create_state(lambda: part.build(nnx.Rngs(1)), part.optimizer, make_mesh())
    batch = {"x1": jax.random.normal(jax.random.key(0), (8, 8, 8, 1)), "cond": jnp.arange(8)}
    draws = objective.draw(jax.random.fold_in(jax.random.key(1), 0), batch)
    start = own.path.interpolate(draws.t, draws.x0, draws.x1)
    c, u = (own.velocity(draws.t, start, label) for label in (draws.cond, jnp.full(8, 10)))
    end = start + 0.02 * (u + 1.4 * (c - u))  # of the base guided by 1.4
    function = lambda t, x: x + (1 - t)[:, None, None, None] * own.velocity(t, x, draws.cond)  # noqa: E731
    expected = jnp.mean((function(draws.t, start) - function(draws.end, end)) ** 2)
    before = jax.device_get(jax.tree.leaves(objective))
    step, losses = jax.jit(make_step(part.optimizer)), []
    for _ in range(3):
        state, metrics = step(state, objective, batch, jax.random.key(1))
        losses.append(float(metrics["mse"]))
    np.testing.assert_allclose(losses[0], expected, rtol=1e-3)
    for a, b in zip(before, jax.device_get(jax.tree.leaves(objective)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(leaf != 0) for name, leaf in flatten(state.networks).items() if ".up" in name)
    assert (task.recipe.guidance, task.recipe.boundary) == (1.0, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.base.options.workdir="], "name the trained run: workdir=FOLDER"),
        (["--config.base.options.which=best"], "a base is the newest checkpoint with the default average"),
        (["--config.adapters.options.patterns=('blokcs.*',)"], "no dense layer or convolution has a path like"),
        (["--config.adapters.options.rank=0"], "rank must be at least 1"),
        (["--config.objective.options.prediction=data"], "is for the data, but the base predicts the velocity"),
        (["--config.objective=autoencoding"], "'autoencoding' is not one of the task adapters"),
        (["--config.network.name=dit"], "config"),
        (["--config.task.options.guidance=2"], "is for the base as a teacher, from which objective 'flow_matching'"),
        (["--config.task=adapters(guidance=(1, 4))", "--config.objective=latent_consistency"], "guidance must be"),
    ],
)
def test_what_does_not_fit_is_one_line(base, tmp_path, capsys, changes, message):
    assert run(f"--config.base.options.workdir={base}", *changes, f"--workdir={tmp_path / 'run'}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_average_is_that_of_the_adapters(base):
    task = task_of(config_of(base))
    part = task.networks()["network"]
    state = create_state(lambda: part.build(nnx.Rngs(1)), part.optimizer, make_mesh())
    state = state.__class__(**{**vars(state), "averages": {"average": jax.tree.map(lambda a: a + 0.1, state.networks)}})
    raw, averaged = task.weights(state, raw=True)["network"], task.weights(state)["network"]
    own = task.base.networks["network"]
    np.testing.assert_array_equal(raw.embed.kernel, own.embed.kernel)
    expected = lora.merge(own, state.averages["average"])
    np.testing.assert_allclose(averaged.embed.kernel, expected.embed.kernel)
    assert json.dumps(task.recipe.adapters)

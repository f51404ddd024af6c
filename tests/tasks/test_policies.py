"""Networks that answer with policies: they start as their teacher, whole or by adapters, and all mains know them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from runs import config_of, task_of

import flowjax as fj
from flowjax import _cli
from flowjax import evaluate as evaluate_main
from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax._trees import flatten
from flowjax.recipe import Request, export_run, load, load_run
from flowjax.tasks.distillation import answering
from flowjax.training import create_state, make_mesh, make_step

pytestmark = pytest.mark.standard_promotion
STANDS_ON = {"": "teacher", "lora": "base"}
SHORT = ("--config.train.steps=2", "--config.train.batch=8", "--config.sample.num=20", "--config.sample.batch=20")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    small.write(folder)
    return folder


def arguments(argument, trained, policy="momentum(components=3)"):
    return (
        f"--config=arcflow:{argument}" if argument else "--config=arcflow",
        f"--config.{STANDS_ON[argument]}.options.workdir={trained}",
        f"--config.objective.options.policy={policy}",
        *SHORT,
    )


def state_of(task):
    part = task.networks()["network"]
    return create_state(lambda: part.build(nnx.Rngs(1)), part.optimizer, make_mesh(), start={"network": part.start})


def inputs(num=6):
    x = jax.random.normal(jax.random.key(0), (num, 8, 8, 1))
    return x, jnp.linspace(0.1, 0.9, num), jnp.arange(num)


@pytest.mark.slow
@pytest.mark.parametrize("argument", STANDS_ON)
def test_a_student_starts_as_its_teacher(argument, trained):
    """Up to the noise that tells its components apart, 0.05 N(0, 1) for each of them."""
    task = task_of(config_of(*arguments(argument, trained)))
    network = task.weights(state_of(task), raw=True)["network"]
    flow, (x, t, cond) = load(trained)[0], inputs()
    assert network(x, t, cond).shape == (6, 8, 8, 8)  # 3 velocities, 3 weights, 2 rates
    policy = task.objective.objective.policy if argument else task.objective.policy
    apart = policy.policy(network(x, t, cond), t, x).basic - flow.velocity(t, x, cond)[..., None, :]
    np.testing.assert_allclose(apart, np.broadcast_to(apart[:1, :1, :1], apart.shape), atol=1e-5)
    assert 1e-3 < float(jnp.abs(apart).max()) < 0.25
    recipe = task.recipe
    assert recipe.policy == {"name": "momentum", "options": {"components": 3}}
    assert recipe.network["options"]["out_channels"] == 8
    samples = recipe.sample({"network": network}, Request(num=20, batch=20))
    assert (samples.x.shape, samples.evaluations, samples.network_calls) == ((20, 8, 8, 1), 2, 2)


@pytest.mark.slow
def test_adapters_and_the_last_layer_are_all_that_moves(trained):
    task = task_of(config_of(*arguments("lora", trained)))
    state, objective = state_of(task), task.objective
    before = jax.device_get((flatten(state.networks), jax.tree.leaves(objective)))
    assert {name.split(".")[0] for name in before[0]} == {"layers", "whole"}
    step = jax.jit(make_step(task.networks()["network"].optimizer))
    batch = {"x1": jnp.zeros((8, 8, 8, 1)), "cond": jnp.arange(8)}
    for _ in range(3):
        state, metrics = step(state, objective, batch, jax.random.key(1))
    assert np.isfinite(float(metrics["loss"]))
    for a, b in zip(before[1], jax.device_get(jax.tree.leaves(objective)), strict=True):
        np.testing.assert_array_equal(a, b)
    after = flatten(state.networks)
    moved = {name for name, leaf in before[0].items() if np.any(leaf != np.asarray(after[name]))}
    assert {"whole.unembed.kernel", "whole.unembed.bias"} <= moved


@pytest.mark.slow
@pytest.mark.parametrize(("argument", "policy"), [("", "mixture(components=2, steps=8)"), ("lora", "momentum")])
def test_all_mains_know_policies(argument, policy, trained, tmp_path):
    workdir = tmp_path / "run"
    for main, argv in (
        (train_main, arguments(argument, trained, policy)),
        (sample_main, ("--num=20", "--steps=3", "--seed=1", f"--out={tmp_path / 'samples.npz'}")),
        (evaluate_main, ("--num=100", "--steps=2", "--solvers=policy,heun")),
    ):
        with pytest.raises(SystemExit) as exit_:
            _cli.run(main.main, main.define, ["x", f"--workdir={workdir}", *argv])
        assert exit_.value.code == 0
    networks, recipe = load_run(workdir)
    with np.load(tmp_path / "samples.npz") as held:
        again = recipe.sample(networks, Request(num=20, steps=3, seed=1))
        np.testing.assert_allclose(again.x, held["x"], atol=1e-3)
    rows = json.loads((workdir / "evaluation.json").read_text())["runs"][-1]["rows"]
    assert [(row["solver"], row["evaluations"]) for row in rows] == [("policy", 2), ("heun", 4)]
    export_run(networks, recipe, tmp_path / "alone")
    found = load(tmp_path / "alone")
    np.testing.assert_array_equal(
        found[1].sample({"network": found[0].network}, Request(num=20, steps=3, seed=1)).x, again.x
    )
    with pytest.raises(ValueError, match="guidance is that of training"):
        recipe.check(Request(num=20, guidance=2.0))


def test_networks_that_cannot_answer_with_policies_are_refused():
    inner = {"name": "mlp", "options": {"dim": 2}}
    conditioned = {"name": "conditioned", "options": {"network": inner, "encoders": {}}}
    assert answering(inner, 5)["options"] == {"dim": 2, "outputs": 5}
    assert answering(conditioned, 5)["options"]["network"]["options"] == {"dim": 2, "outputs": 5}
    with pytest.raises(ValueError, match="'token_dit' answers in the channels of its input, and a policy needs 5"):
        answering({"name": "token_dit", "options": {}}, 5)
    with pytest.raises(ValueError, match="a policy is one of velocities"):
        small.recipe(policy={"name": "momentum", "options": {}}, prediction="data")
    recipe = small.recipe(policy={"name": "momentum", "options": {}})
    with pytest.raises(ValueError, match="its policy needs"):
        recipe.check_networks({"network": fj.recipe.base.shapes_of(recipe.build_network)})

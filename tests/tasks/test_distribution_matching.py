"""Runs of distribution matching: a student, and the copy of its teacher that is trained beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from runs import config_of, final, kill, task_of, training, wait_for_checkpoint

import flowjax as fj
from flowjax.recipe import Request, load
from flowjax.training import create_state, make_mesh, make_step

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    small.write(folder)
    return folder


def task(teacher, *arguments):
    return task_of(config_of("--config=dmd2:smoke", f"--config.teacher.options.workdir={teacher}", *arguments))


def state_of(task):
    parts = task.networks()
    builds = {label: lambda part=part: part.build(nnx.Rngs(1)) for label, part in parts.items()}
    optimizers = {label: part.optimizer for label, part in parts.items()}
    starts = {label: part.start for label, part in parts.items() if part.start is not None}
    return create_state(builds, optimizers, make_mesh(), averages={}, start=starts), optimizers


@pytest.mark.slow
@pytest.mark.parametrize("adversary", [False, True])
def test_both_networks_start_as_the_teacher(teacher, adversary):
    run = task(teacher, f"--config.objective.options.adversary={adversary}")
    state, _ = state_of(run)
    x, t, cond = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([0.1, 0.5, 0.9]), jnp.arange(3)
    expected = load(teacher)[0].network(x, t, cond)
    student, fake = (state.networks[label](x, t, cond) for label in ("student", "fake"))
    np.testing.assert_allclose(student, expected, atol=1e-6)
    np.testing.assert_allclose(fake[..., :1], expected, atol=1e-6)
    assert fake.shape[-1] == 1 + adversary
    np.testing.assert_array_equal(fake[..., 1:], 0)


@pytest.mark.slow
def test_only_the_fake_network_moves_where_the_student_rests(teacher):
    run = task(teacher, "--config.objective.options.every=2", "--config.optimizer.options.warmup=0")
    state, optimizers = state_of(run)
    step = jax.jit(make_step(optimizers, {}))
    batch = {"x1": jnp.zeros((8, 8, 8, 1)), "cond": jnp.arange(8, dtype=jnp.int32)}
    held = jax.device_get(jax.tree.leaves(run.objective))
    for number in range(2):
        before = jax.device_get(state.networks)
        state, metrics = step(state, run.objective, batch, jax.random.key(1))
        moved = {
            label: any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before[label], now)), strict=True))
            for label, now in jax.device_get(state.networks).items()
        }
        assert moved == {"student": number == 1, "fake": True}
        assert (float(metrics["gradient_norm/student"]) > 0) == (number == 1)
    for a, b in zip(held, jax.device_get(jax.tree.leaves(run.objective)), strict=True):
        np.testing.assert_array_equal(a, b)  # the teacher


def test_the_student_is_what_is_sampled(teacher):
    run = task(teacher)
    state, _ = state_of(run)
    recipe, student = run.recipe, state.networks["student"]
    samples = recipe.sample({"network": student}, Request(num=6, batch=8, seed=3, steps=1))
    x0 = fj.noise(jax.random.split(jax.random.key(3))[0], (6, 8, 8, 1))
    answer = x0 + student(x0, jnp.zeros(6), jnp.arange(6))
    np.testing.assert_allclose(samples.x, answer * 8 + 8, atol=2e-3)
    assert (samples.evaluations, samples.network_calls) == (1, 1)
    assert recipe.stored_as == "student"


def test_a_partner_of_ones_own_is_refused(teacher):
    with pytest.raises(ValueError, match="is a copy of the teacher"):
        task(teacher, "--config.task.options.partner=mlp(dim=2)")


def named(path):
    """The names in the path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/").replace(".", "/").split("/")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")
def test_three_networks_go_on_bit_for_bit_after_a_kill(teacher, tmp_path):
    """SIGKILL in the middle of a run with an adversary, whose student moves in every third step."""
    command = ["--config=dmd2:smoke", f"--config.teacher.options.workdir={teacher}"]
    command += ["--config.objective.options.adversary=True", "--config.objective.options.every=3"]
    overrides = {"steps": 120, "checkpoint_every": 10, "report_every": 10, "sample_every": 1000}
    command += [f"--config.train.{key}={value}" for key, value in overrides.items()]
    killed = training(tmp_path / "killed", *command)
    wait_for_checkpoint(tmp_path / "killed", killed)
    kill(killed)
    assert not (tmp_path / "killed" / "report.json").exists()
    texts = [training(tmp_path / name, *command).communicate(timeout=400)[0] for name in ("killed", "whole")]
    assert ["resumed after step" in text for text in texts] == [True, False]
    (step, found), (_, expected) = (final(tmp_path / name) for name in ("killed", "whole"))
    assert step == 120
    assert {"student", "fake"} <= {
        name for path, _ in jax.tree.leaves_with_path(found["state"]) for name in named(path)
    }
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert logs[0] == logs[1]

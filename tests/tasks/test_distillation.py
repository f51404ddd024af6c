"""Students of a teacher that comes from its workdir."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from runs import task_of

import flowjax as fj
from flowjax import _cli
from flowjax import train as train_main
from flowjax._trees import flatten
from flowjax.recipe import load, load_run
from flowjax.training import create_state, make_mesh, make_step
from flowjax.training.ema import from_config

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    small.write(folder)
    return folder


def config_of(teacher, *overrides, name="distill"):
    """The config `distill:smoke` of a teacher, changed as on a command line."""
    argv = [f"--config={name}:smoke", f"--config.teacher.options.workdir={teacher}", *overrides]
    values = train_main.flags.FlagValues()
    train_main.define(values, argv)
    values(["train", *argv])
    return values.config


def state_of(task):
    part = task.networks()["network"]
    build = lambda: part.build(nnx.Rngs(1))  # noqa: E731
    return create_state(build, part.optimizer, make_mesh(), start={"network": part.start} if part.start else None)


def inputs(num=6):
    x = jax.random.normal(jax.random.key(0), (num, 8, 8, 1))
    return x, jnp.linspace(0.1, 0.9, num), jnp.arange(num)


@pytest.mark.slow
def test_a_student_starts_from_its_teacher_and_its_new_parts_make_no_difference(teacher):
    task = task_of(config_of(teacher))
    student, x, t, cond = state_of(task).network, *inputs()
    flow = load(teacher)[0]
    new = set(flatten(student)) - set(flatten(flow.network))
    assert {name.split(".")[0] for name in new} == {"strength"}
    for scale in (None, jnp.full(6, 3.0)):
        found = student(x, t, cond, guidance=scale)
        np.testing.assert_allclose(found, flow.network(x, t, cond), atol=1e-6)
    assert task.recipe.embedded == (1.0, 4.0)
    assert (task.recipe.shift, task.recipe.scale) == (8.0, 8.0)


@pytest.mark.slow
def test_a_student_may_start_from_another_run(teacher, tmp_path):
    small.write(tmp_path / "begun", seed=5)
    task = task_of(config_of(teacher, f"--config.task.options.start=run(workdir='{tmp_path / 'begun'}')"))
    start = task.networks()["network"].start
    begun, own = (flatten(load_run(folder)[0]["network"]) for folder in (tmp_path / "begun", teacher))
    assert start.keys() == begun.keys()
    for name, leaf in begun.items():
        np.testing.assert_array_equal(start[name], leaf)
    assert any(np.any(start[name] != leaf) for name, leaf in own.items())
    small.write(tmp_path / "trig", path={"name": "trig", "options": {}})
    small.write(tmp_path / "wide", network={"name": "dit", "options": small.DIT | {"width": 16}})
    with pytest.raises(ValueError, match=r"the start .*wide does not fit: its .* has the shape"):
        task_of(config_of(teacher, f"--config.task.options.start=run(workdir='{tmp_path / 'wide'}')")).networks()
    for value, message in (
        (f"run(workdir='{tmp_path / 'trig'}')", r"the start .*trig does not fit: its path is .*'trig'.*, that of the"),
        (f"run(workdir='{tmp_path / 'nowhere'}')", "nowhere"),
        ("3", "start=3 is neither True nor False nor run"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            task_of(config_of(teacher, f"--config.task.options.start={value}"))
        assert "\n" not in str(error.value)


def started(teacher, folder, *overrides):
    return task_of(config_of(teacher, f"--config.task.options.start=run(workdir='{folder}')", *overrides))


def test_a_run_goes_on_with_the_start_that_it_began_with(teacher, tmp_path):
    begun, workdir = tmp_path / "begun", tmp_path / "student"
    workdir.mkdir()
    small.write(begun, seed=5)
    task = started(teacher, begun)
    task.check(workdir)
    task.save(workdir)
    started(teacher, begun).check(workdir)
    shutil.rmtree(begun)
    small.write(begun, seed=6)
    with pytest.raises(ValueError, match="began with a start whose weights have the hash") as error:
        started(teacher, begun).check(workdir)
    assert "\n" not in str(error.value)
    record = json.loads((workdir / "teacher.json").read_text())
    del record["start"]  # as older versions wrote it
    (workdir / "teacher.json").write_text(json.dumps(record))
    started(teacher, begun).check(workdir)


@pytest.mark.slow
def test_a_start_is_the_same_network(tmp_path):
    """But for embeddings that are new in the student and how it is computed; its own function is what is loaded."""
    network = lambda **changes: {"name": "dit", "options": small.DIT | {"depth": 2} | changes}  # noqa: E731
    small.write(tmp_path / "teacher", network=network())
    for name, changes in (
        ("same", {"remat": True, "mlp_ratio": 4.0}),
        ("scale", {"time_scale": 50.0}),
        ("short", {"depth": 1}),
        ("span", {"second_time": True}),
        ("stacked", {"scan": True}),
    ):
        small.write(tmp_path / name, network=network(**changes))
    spanned = "--config.network.options.second_time=True"
    for name, flags in (("same", []), ("same", [spanned]), ("span", [spanned])):
        assert started(tmp_path / "teacher", tmp_path / name, *flags).networks()["network"].start
    for name, message in (
        ("scale", "its network has time_scale=50.0, the student's 100.0"),
        ("short", "its network has depth=1, the student's 2"),
        ("span", "its network has second_time=True, the student's False"),
        ("stacked", "it has no blocks.0"),
    ):
        with pytest.raises(ValueError, match=f"the start .*{name} does not fit: {message}") as error:
            started(tmp_path / "teacher", tmp_path / name).networks()
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_loss_is_the_distance_to_the_guided_teacher(teacher):
    """By the formula of guidance, for a student that answers zero."""
    task = task_of(config_of(teacher))
    flow = load(teacher)[0]
    x, _, cond = inputs()
    draws = task.objective.draw(jax.random.key(1), {"x1": x, "cond": cond}, step=0)
    assert float(draws.guidance.min()) >= 1
    assert float(draws.guidance.max()) <= 4
    assert len(set(np.asarray(draws.guidance).tolist())) == len(x)
    state = flow.path.interpolate(draws.t, draws.x0, draws.x1)
    c, u = (flow.velocity(draws.t, state, label) for label in (draws.cond, jnp.full(6, 10)))
    w = draws.guidance[:, None, None, None]
    seen = []
    network = lambda x, t, cond, guidance: seen.append(guidance) or 0.0 * x  # noqa: E731
    loss, _ = task.objective.loss(network, draws)
    np.testing.assert_allclose(loss, jnp.mean((u + w * (c - u)) ** 2, (1, 2, 3)), rtol=1e-4)
    np.testing.assert_array_equal(seen[0], draws.guidance)


def test_the_teacher_is_an_argument_in_its_own_or_a_given_precision(teacher):
    for dtype, expected in ((None, jnp.float32), ("bfloat16", jnp.bfloat16)):
        changed = [] if dtype is None else [f"--config.teacher.options.dtype={dtype}"]
        task = task_of(config_of(teacher, *changed))
        kinds = {leaf.dtype for leaf in jax.tree.leaves(task.objective.teacher.network)}
        assert kinds == {jnp.dtype(expected)}
        assert task.teacher.model == task_of(config_of(teacher)).teacher.model


def test_training_moves_the_student_alone(teacher):
    """A student that starts anew comes nearer; what it learns from stays as it is."""
    config = config_of(teacher, "--config.task.options.start=False", "--config.task.options.guidance=2.0")
    with config.unlocked():
        config.network.options = {}
        config.train.steps, config.optimizer.options.rate = 60, 1e-2
    task = task_of(config)
    state, step = state_of(task), make_step(task.networks()["network"].optimizer)
    before = jax.device_get(jax.tree.leaves(task.objective))
    batch = {"x1": jnp.tile(inputs()[0], (4, 1, 1, 1)), "cond": jnp.arange(24) % 10}
    step, losses = jax.jit(step), []
    for _ in range(60):
        state, metrics = step(state, task.objective, batch, jax.random.key(2))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:10])
    for a, b in zip(before, jax.device_get(jax.tree.leaves(task.objective)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_latent_consistency_student(teacher):
    """It starts from the teacher and follows its guided steps towards an average of itself; the teacher stays."""
    task = task_of(config_of(teacher, name="lcm"))
    part, objective = task.networks()["network"], task.objective
    averages = from_config({}, objective)
    start = {"network": part.start}
    state = create_state(lambda: part.build(nnx.Rngs(1)), part.optimizer, make_mesh(), averages=averages, start=start)
    x, _, cond = inputs(8)
    draws = objective.draw(jax.random.key(1), {"x1": x, "cond": cond}, step=0)
    assert 1 <= float(draws.guidance.min()) < float(draws.guidance.max()) <= 4
    flow = load(teacher)[0]
    t, w = draws.t[:, None, None, None], draws.guidance[:, None, None, None]
    begin = flow.path.interpolate(draws.t, draws.x0, draws.x1)
    c, u = (flow.velocity(draws.t, begin, label) for label in (draws.cond, jnp.full(8, 10)))
    end = begin + 0.02 * (u + w * (c - u))  # on straight lines a step of DDIM is Euler's
    # The student is the teacher still, whatever its scale.
    error = begin + (1 - t) * c - (end + (0.98 - t) * flow.velocity(draws.end, end, draws.cond))
    expected = jnp.mean(jnp.sqrt(error**2 + 1e-6) - 1e-3, (1, 2, 3))
    loss, _ = objective.loss({"network": state.network, "target": state.averages["target"]}, draws)
    np.testing.assert_allclose(loss, expected, rtol=2e-3, atol=1e-6)
    before, step = jax.device_get(jax.tree.leaves(objective)), jax.jit(make_step(part.optimizer, averages))
    for _ in range(3):
        state, metrics = step(state, objective, {"x1": x, "cond": cond}, jax.random.key(2))
    assert np.isfinite(float(metrics["loss"]))
    target, now = (flatten(tree) for tree in (state.averages["target"], state.network))
    assert any(np.any(target[name] != now[name]) for name in now)
    for a, b in zip(before, jax.device_get(jax.tree.leaves(objective)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (task.recipe.embedded, task.recipe.boundary, task.recipe.build_solver()) == (
        (1.0, 4.0),
        None,
        fj.solvers.Consistency(),
    )


@pytest.mark.slow
def test_a_student_of_a_table_is_sampled_within_its_boundary(tmp_path):
    """A noise prediction on the table of latent diffusion, as latent consistency models are published."""
    table = {"name": "tabulated", "options": {"alphas_cumprod": {"name": "scaled_linear_betas", "options": {}}}}
    small.write(tmp_path / "teacher", path=table, prediction="noise")
    objective = "latent_consistency(boundary={'scale': 1e4, 'end': 0.999})"
    task = task_of(config_of(tmp_path / "teacher", f"--config.objective={objective}", name="lcm"))
    assert task.objective.grid[-2:] == pytest.approx((0.98, 0.999))
    assert task.recipe.boundary == {"scale": 1e4, "end": 0.999}
    network = small.network(task.recipe)
    task.save(tmp_path)
    recipe = fj.Recipe.load(tmp_path)
    x = inputs(4)[0]
    found = recipe.flow(network).data(0.999, x, jnp.arange(4), guidance=jnp.ones(4))
    np.testing.assert_array_equal(found, x)
    samples = recipe.sample({"network": network}, fj.recipe.Request(num=4, batch=8, steps=2, guidance=2.0))
    assert (samples.evaluations, samples.network_calls) == (2, 2)
    assert np.isfinite(samples.x).all()
    with pytest.raises(ValueError, match=r"of a noise is not at t = 0.98 of .*give boundary=") as error:
        task_of(config_of(tmp_path / "teacher", "--config.objective=latent_consistency(grid=(0.0, 0.98))", name="lcm"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.data=toy2d(law=spiral, size=60)"], "its shape of the examples is (8, 8, 1), that of the data (2,)"),
        (["--config.path=trig"], "config.path is trig, but the teacher's path is linear"),
        (["--config.objective.options.prediction=noise"], "predicts the noise, the teacher the velocity"),
        (["--config.objective=classification"], "'classification' is not one of the task distillation"),
        (["--config.objective.name=flow_matching"], "'flow_matching' is not one of the task distillation"),
        (["--config.teacher.options.workdir=nowhere"], "nowhere is not the workdir of a training run"),
        (["--config.teacher.options.wordkir=x"], "run has no option wordkir; did you mean workdir"),
        (["--config.teacher.options.dtype=int8"], "dtype"),
        (["--config.objective=mean_flow()"], "is for the teacher's predictions, over a range of scales"),
        (
            ["--config.task=distillation(guidance=2)", "--config.objective=mean_flow()"],
            "guidance=2 is for the teacher's",
        ),
        (["--config.task.options.guidance=(4, 1)"], "must be (smallest, largest)"),
        (["--config.task.options.guidance=(1, 2, 3)"], "is no scale, no rule and no pair"),
        (["--config.network.options.guidance=False"], "guidance= needs a network built with guidance=True"),
        (["--config.network=mlp(dim=2, num_classes=10, guidance=True)"], "does not take samples of shape (8, 8, 1)"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(teacher, tmp_path, capsys, changes, message):
    arguments = [f"--config.teacher.options.workdir={teacher}", *changes, f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as exit_:
        _cli.run(train_main.main, train_main.define, ["train", "--config=distill:smoke", *arguments])
    err = capsys.readouterr().err
    assert (exit_.value.code, err.count("\n")) == (2, 1), err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_teachers_of_other_classes_or_kinds_are_refused(tmp_path):
    small.write(
        tmp_path / "none", num_classes=None, network={"name": "dit", "options": {**small.DIT, "num_classes": None}}
    )
    with pytest.raises(ValueError, match="its number of classes is None, that of the data 10"):
        task_of(config_of(tmp_path / "none"))


@pytest.mark.slow
def test_a_run_as_users_make_it(teacher, tmp_path, capsys):
    """Trained, sampled with a scale in one call, gone on with the same teacher only."""
    arguments = ["--config=distill:smoke", f"--config.teacher.options.workdir={tmp_path / 'teacher'}"]
    small.write(tmp_path / "teacher")
    with pytest.raises(SystemExit) as exit_:
        _cli.run(train_main.main, train_main.define, ["train", *arguments, f"--workdir={tmp_path / 'run'}"])
    assert exit_.value.code == 0, capsys.readouterr().err
    assert len(json.loads((tmp_path / "run" / "teacher.json").read_text())["model"]) == 12
    networks, recipe = load_run(tmp_path / "run")
    request = fj.recipe.Request(num=4, batch=8, steps=2, solver="euler", guidance=2.0)
    samples = recipe.sample(networks, request)
    assert (samples.evaluations, samples.network_calls) == (2, 2)  # a pair would be four
    for guidance, message in (
        (5.0, r"guidance=5.0: the network has learned scales from 1 to 4"),
        ("apg(scale=2)", "answers with guidance itself: guidance is a number"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.check(dataclasses.replace(request, guidance=guidance))
    for path in (tmp_path / "teacher").iterdir():
        path.unlink()
    small.write(tmp_path / "teacher", seed=1)
    (tmp_path / "run" / "report.json").unlink()
    with pytest.raises(SystemExit) as exit_:
        _cli.run(train_main.main, train_main.define, ["train", *arguments, f"--workdir={tmp_path / 'run'}"])
    assert exit_.value.code == 2
    assert "began with a teacher whose weights have the hash" in capsys.readouterr().err

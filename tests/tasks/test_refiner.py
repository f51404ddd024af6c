"""A run that trains FlowTurbo's refiner of a flow, and how it is sampled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from runs import exit_code, task_of

import flowjax as fj
from flowjax import evaluate as evaluate_main
from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax.recipe import Request, load_run
from flowjax.training import create_state, make_mesh, make_step

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    small.write(folder, network={"name": "dit", "options": small.DIT | {"depth": 2}})
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, teacher):
    """Two steps of `configs/refiner.py`."""
    folder = tmp_path_factory.mktemp("refiner") / "run"
    code = exit_code(
        train_main, "--config=refiner:smoke", f"--config.teacher.options.workdir={teacher}", f"--workdir={folder}"
    )
    assert code == 0
    return folder


@pytest.mark.slow
def test_the_run_holds_the_refiner_and_names_its_teacher(workdir, teacher):
    networks, recipe = load_run(workdir)
    assert set(networks) == {"network", "refiner"}
    assert list(recipe.stored()) == ["refiner"]
    for a, b in zip(*map(jax.tree.leaves, (networks["network"], load_run(teacher)[0]["network"])), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(networks["refiner"].blocks) == 1
    assert (workdir / "samples.png").exists() or list(workdir.glob("**/*.png"))
    report = json.loads((workdir / "report.json").read_text())
    assert (report["evaluations"], report["skipped"]) == (2, 0)  # H1R1


@pytest.mark.slow
def test_blocks_are_sampled_guided_and_counted(workdir, teacher):
    """By hand: the flow and its refiner, both guided by the scale that is asked for."""
    networks, recipe = load_run(workdir)
    key = iter(jax.random.split(jax.random.key(0), 99))
    networks["refiner"] = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(next(key), leaf.shape), networks["refiner"]
    )
    spec = "flowturbo(blocks='H1P2R2', refiner=refiner)"
    found = recipe.sample(networks, Request(num=6, solver=spec, guidance=2.0, batch=8))
    assert (found.evaluations, found.network_calls) == (4, 8)
    path, null, rule = recipe.build_path(), recipe.null, fj.guidance.CFG(scale=2.0)
    flow, refiner = (fj.guide(fj.Flow(networks[name], path=path, null=null), rule) for name in ("network", "refiner"))
    x0 = fj.noise(jax.random.split(jax.random.key(0))[0], (6, 8, 8, 1))
    solver = fj.solvers.FlowTurbo(blocks="H1P2R2", refiner=refiner)
    result = fj.solve(flow, solver, x0, fj.times.quadratic(5), cond=jnp.arange(6))
    np.testing.assert_allclose(found.x, result.x * 8 + 8, atol=2e-3)
    assert int(result.refiner_evaluations) == 4


@pytest.mark.slow
def test_the_mains_sample_and_sweep_blocks(workdir, tmp_path, capsys):
    one, other = (f"flowturbo(blocks='{blocks}', refiner=refiner)" for blocks in ("H1P2R2", "H1R1"))
    code = exit_code(sample_main, f"--workdir={workdir}", "--num=4", f"--out={tmp_path / 'x.npz'}", f"--solver={one}")
    assert (code, "4 evaluations (8 network calls)" in capsys.readouterr().out) == (0, True)
    code = exit_code(evaluate_main, f"--workdir={workdir}", "--num=30", f"--solvers={one}, {other}, heun")
    capsys.readouterr()
    rows = json.loads((workdir / "evaluation.json").read_text())["runs"][0]["rows"]
    assert [(row["steps"], row["evaluations"]) for row in rows] == [(5, 4), (2, 2), (2, 4)]
    for flags, message in (
        ((f"--solver={one}", "--steps=4"), "makes 5 steps, the grid has 4"),
        ((f"--solver={one}", "--guidance=apg(scale=2)"), "a refiner is guided by a scale, and not by APG"),
    ):
        assert exit_code(sample_main, f"--workdir={workdir}", f"--out={tmp_path / 'y.npz'}", *flags) != 0
        assert message in capsys.readouterr().err
    assert not (tmp_path / "y.npz").exists()


@pytest.mark.slow
def test_an_export_is_sampled_like_the_run(workdir, tmp_path):
    networks, recipe = load_run(workdir)
    fj.recipe.export_run(networks, recipe, tmp_path / "model")
    both = [load_run(folder) for folder in (workdir, tmp_path / "model")]
    a, b = (made[1].sample(made[0], Request(num=4, batch=8)).x for made in both)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_teacher_that_has_guidance_as_an_input_is_refused(tmp_path, capsys):
    small.write(tmp_path, network={"name": "dit", "options": small.DIT | {"guidance": True}}, embedded=(1.0, 4.0))
    flags = (f"--config.teacher.options.workdir={tmp_path}", f"--workdir={tmp_path / 'run'}")
    assert exit_code(train_main, "--config=refiner:smoke", *flags) != 0
    assert "a refiner is guided by a pair: take a teacher without" in capsys.readouterr().err
    assert not (tmp_path / "run" / "recipe.json").exists()


@pytest.mark.slow
def test_a_refiner_learns_and_its_teacher_stays(teacher):
    """The loss falls below that without a refiner, on the same draws."""
    values = train_main.flags.FlagValues()
    argv = ["--config=refiner:smoke", f"--config.teacher.options.workdir={teacher}"]
    train_main.define(values, argv)
    values(["train", *argv])
    with values.config.unlocked():
        values.config.train.steps, values.config.optimizer.options.rate = 150, 1e-2
    task = task_of(values.config)
    part, before = task.networks()["refiner"], jax.device_get(jax.tree.leaves(task.objective))
    state = create_state({"refiner": lambda: part.build(nnx.Rngs(1))}, {"refiner": part.optimizer}, make_mesh())
    step = jax.jit(make_step({"refiner": part.optimizer}))
    x1 = task.source.normalize(task.source.x[:64]).astype(np.float32)
    batch = {"x1": jnp.asarray(x1), "cond": jnp.asarray(task.source.cond[:64])}
    for _ in range(150):
        state, _ = step(state, task.objective, batch, jax.random.key(2))
    draws = task.objective.draw(jax.random.key(5), batch)
    loss, more = task.objective.loss(state.networks, draws)
    assert float(loss.mean()) < 0.7 * float(more["unrefined"].mean())
    for a, b in zip(before, jax.device_get(jax.tree.leaves(task.objective)), strict=True):
        np.testing.assert_array_equal(a, b)

"""Classifiers of other runs as fields: on a command line, in configs, in recipes."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from runs import config_of, exit_code, task_of

import flowjax as fj
from flowjax import evaluate as evaluate_main
from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax.calibration.store import model_hash
from flowjax.recipe import ClassLogProbability, Request, compile_sampler, export_run, load_run

pytestmark = pytest.mark.standard_promotion

ENCODER = {"name": "image", "options": {"image_shape": (8, 8, 1), "dim": 8, "channels": 4}}
READOUT = {"name": "readout", "options": {"encoder": ENCODER, "outputs": 10, "timed": True}}
UNTIMED = {"name": "readout", "options": {"encoder": ENCODER, "outputs": 10}}
LINEAR = {"name": "linear", "options": {}}
GRID = "uniform(start=0.1)"


def write_classifier(folder, seed=0, **changes):
    """A folder with a classifier of noisy digits that is not trained, and is not indifferent."""
    made = small.write_encoder(folder / "blank", **({"network": READOUT, "path": LINEAR} | changes))
    export_run({"network": small.network(made, seed)}, made, folder)
    shutil.rmtree(folder / "blank")


def of(folder, scale=2.0, **options):
    """The spec of the field."""
    return {
        "name": "classifier",
        "options": {"of": {"name": "run", "options": {"workdir": str(folder), **options}}, "scale": scale},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a flow and a classifier."""
    folder = tmp_path_factory.mktemp("runs")
    small.write(folder / "flow", guidance=1.0)
    write_classifier(folder / "judge")
    return folder


def sample(folder, *fields, flow="flow", **asked):
    networks, recipe = load_run(folder / flow)
    return recipe.sample(networks, Request(num=4, batch=4, times=GRID, fields=list(fields), **asked)).x


def test_is_the_gradient_of_the_log_probability_under_every_solver(runs):
    networks, recipe = load_run(runs / "flow")
    judge = load_run(runs / "judge")[0]["network"]
    flow = recipe.flow(networks["network"])

    def log_density(x, t, cond):
        return jnp.take_along_axis(jax.nn.log_softmax(judge(x, t)), cond[:, None], 1)[:, 0]

    field = fj.fields.Added(flow, added=fj.fields.Gradient(log_density, path=flow.path, scale=2.0))
    known = dict(cond=recipe.balanced(4), grid=recipe.build_times(GRID), batch=4)
    for solver in ("euler", "unipc(order=2)"):
        wanted = recipe.generate(field, 4, key=jax.random.key(0), solver=solver, **known).x
        got = sample(runs, of(runs / "judge"), solver=solver)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
    assert np.abs(got - sample(runs)).max() > 1e-2


def test_asks_for_the_class_of_the_condition_or_of_its_own(runs):
    of_label, plain = (sample(runs, *f, conditions={"label": "3"}) for f in ([of(runs / "judge")], []))
    np.testing.assert_array_equal(of_label, sample(runs, of(runs / "judge", label=3), conditions={"label": "3"}))
    other = sample(runs, of(runs / "judge", label=4), conditions={"label": "3"})
    assert np.abs(other - of_label).max() > 1e-3 < np.abs(plain - of_label).max()
    turns = {"name": "each", "options": {"values": [3, 4]}}
    in_turn = sample(runs, of(runs / "judge", label=turns), conditions={"label": "3"})
    np.testing.assert_allclose(in_turn[::2], of_label[::2], rtol=1e-5)
    np.testing.assert_allclose(in_turn[1::2], other[1::2], rtol=1e-5)


def test_the_null_condition_asks_for_nothing():
    ask = ClassLogProbability(network=lambda x, t: x, classes=2)
    x = jax.random.normal(jax.random.key(0), (3, 2))
    gradient = jax.grad(lambda x: ask(x, x[:, 0], np.array([0, 1, 2])).sum())(x)
    assert np.abs(gradient[:2]).min() > 0
    np.testing.assert_array_equal(gradient[2], 0)


def test_a_flow_without_classes_is_told_which(runs, tmp_path):
    network = {"name": "dit", "options": {k: v for k, v in small.DIT.items() if k != "num_classes"}}
    small.write(tmp_path / "flow", network=network, num_classes=None, guidance=1.0)
    got = [sample(tmp_path, of(runs / "judge", label=label), flow="flow") for label in (1, 2)]
    assert np.abs(got[0] - got[1]).max() > 1e-3
    with pytest.raises(ValueError, match="this flow has no labels: say for which class, label=3"):
        sample(tmp_path, of(runs / "judge"), flow="flow")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"path": None, "network": UNTIMED},
            {},
            r"is no classifier of noisy .*classification\(noise_path=linear\)",
        ),
        ({"path": {"name": "vp", "options": {}}}, {}, "has learned on the path vp.*, and this flow has linear"),
        ({"scale": 4.0}, {}, r"tells examples whose scale is 4\.0; that of this flow is 8\.0"),
        ({}, {"label": 10}, "label must be at most 9, got 10"),
        ({}, {"label": 1.5}, "label must be a whole number"),
        ({}, {"model": "00ff"}, "had the hash 00ff, and has [0-9a-f]+ now: bring it back"),
        ({}, {"workdir": "nowhere"}, "nowhere"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_before_weights_are_read(runs, tmp_path, changes, options, message):
    write_classifier(tmp_path / "judge", **changes)
    recipe = load_run(runs / "flow")[1]
    with pytest.raises(ValueError, match=message):
        recipe.check(Request(fields=[of(tmp_path / "judge", **options)], times=GRID))


def test_on_the_command_line(runs, tmp_path, capsys):
    out = tmp_path / "samples"
    command = [f"--workdir={runs / 'flow'}", "--num=4", "--batch=4", f"--times={GRID}", f"--out={out}"]
    write_classifier(tmp_path / "judge")
    field = f"--fields=classifier(of=run(workdir={tmp_path / 'judge'}), scale=2)"
    assert exit_code(sample_main, *command, field) == 0, capsys.readouterr().err
    with np.load(out / "000000.npz") as found:
        np.testing.assert_array_equal(found["x"], sample(runs, of(tmp_path / "judge")))
    shutil.rmtree(tmp_path / "judge")
    write_classifier(tmp_path / "judge", seed=1)  # others go by the same name now
    assert exit_code(sample_main, *command, field) != 0
    assert "model=" in capsys.readouterr().err
    whole = [c for c in command if "times" not in c and "out" not in c]
    assert exit_code(sample_main, *whole, f"--out={tmp_path / 'whole.npz'}", field) != 0
    assert "does not determine the velocity at t = 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_of_another_classifier_is_another_one(tmp_path, capsys):
    small.write(tmp_path / "flow", guidance=1.0)
    command = [f"--workdir={tmp_path / 'flow'}", "--num=40", f"--times={GRID}", "--steps=1", "--data=recipe"]
    command += [f"--fields=classifier(of=run(workdir={tmp_path / 'judge'}))"]
    for seed in (0, 0, 1):
        shutil.rmtree(tmp_path / "judge", ignore_errors=True)
        write_classifier(tmp_path / "judge", seed=seed)
        assert exit_code(evaluate_main, *command) == 0, capsys.readouterr().err
    tables = json.loads((tmp_path / "flow" / "evaluation.json").read_text())["runs"]
    assert [len(table["rows"]) for table in tables] == [1, 1]
    assert tables[0]["provenance"]["fields"] != tables[1]["provenance"]["fields"]


@pytest.fixture(scope="module")
def trained(runs):
    """A run whose recipe samples with the classifier."""
    field = f"classifier(of=run(workdir={runs / 'judge'}, label=3), scale=2)"
    command = ["--config=digits:smoke", f"--config.sample.times={GRID}", f"--config.sample.fields={field}"]
    assert exit_code(train_main, *command, f"--workdir={runs / 'trained'}") == 0
    return runs / "trained", command


@pytest.mark.slow
def test_a_recipe_names_the_run(runs, trained, tmp_path):
    workdir, _ = trained
    networks, recipe = load_run(workdir)
    assert recipe.fields[0]["options"]["of"] == {"name": "stored", "options": {"name": "classifier", "label": 3}}
    assert recipe.runs["classifier"]["workdir"] == "../judge"
    assert recipe.runs["classifier"]["model"] == model_hash(networks["classifier"])
    found = recipe.sample(networks, Request(num=4, batch=4)).x
    spelled = recipe.sample(networks, Request(num=4, batch=4, fields=[of(runs / "judge", label=3)])).x
    np.testing.assert_array_equal(found, spelled)
    plain, out = recipe.sample(networks, Request(num=4, batch=4, fields=[])).x, tmp_path / "plain.npz"
    assert np.abs(found - plain).max() > 1e-3
    given = [f"--workdir={workdir}", "--num=4", "--batch=4", "--fields=none", f"--out={out}"]
    assert exit_code(sample_main, *given) == 0
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["x"], plain)
    export_run(networks, recipe, tmp_path / "alone")
    alone, there = load_run(tmp_path / "alone")
    np.testing.assert_array_equal(there.sample(alone, Request(num=4, batch=4)).x, found)
    program = compile_sampler(recipe, networks, Request(batch=4), tmp_path / "program")
    np.testing.assert_allclose(program.sample(recipe, networks, program.request(num=4)).x, found, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="a program has no weights of run"):
        compile_sampler(recipe, networks, Request(fields=[of(runs / "judge")]), tmp_path / "other")


@pytest.mark.slow
def test_other_weights_of_a_classifier_are_refused(trained, tmp_path, capsys):
    workdir, command = trained
    judge = workdir.parent / "judge"
    judge.rename(tmp_path / "kept")
    try:
        write_classifier(judge, seed=1)
        with pytest.raises(ValueError, match=r"the run 'classifier' at .* had the hash"):
            load_run(workdir)
        assert exit_code(train_main, *command, f"--workdir={workdir}") != 0
        assert "began with a classifier whose weights have the hash" in capsys.readouterr().err
    finally:
        shutil.rmtree(judge)
        (tmp_path / "kept").rename(judge)


def test_a_recipe_asks_for_a_negative_condition(tmp_path):
    config = config_of("--config=digits:smoke", "--config.sample.guidance=2.0")
    config.sample.against = {"label": "8"}
    recipe = task_of(config).recipe
    assert recipe.against == {"label": "8"}
    flow = recipe.flow(small.network(recipe))
    assert int(np.ravel(recipe.field(flow).against)[0]) == 8
    assert dataclasses.replace(recipe, against={}) != recipe

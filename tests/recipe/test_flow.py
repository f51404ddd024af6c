import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

import flowjax as fj
from flowjax import data, evaluation
from flowjax.fields import Guided
from flowjax.recipe import Recipe, Request, load
from flowjax.training import Checkpoints, TrainState, make_mesh

pytestmark = pytest.mark.standard_promotion


@pytest.fixture
def recipe():
    return Recipe(
        network={"name": "MLP", "options": {"dim": 2, "width": 16, "depth": 1, "num_classes": 3}},
        path={"name": "VE", "options": {"sigma_min": 0.01, "sigma_max": 5.0}},
        prediction="data",
        data={"name": "toy2d", "options": {"law": "spiral"}},
        shape=(2,),
        shift=1.0,
        scale=4.0,
        low=None,
        high=None,
        num_classes=3,
        solver={"name": "dpm_solver", "options": {"order": 2}},
        steps=4,
        guidance=2.0,
    )


def test_survives_json(recipe, tmp_path):
    recipe.save(tmp_path)
    assert Recipe.load(tmp_path) == recipe
    assert isinstance(json.loads((tmp_path / "recipe.json").read_text()), dict)
    with pytest.raises(FileNotFoundError):
        Recipe.load(tmp_path / "missing")


def test_builds_what_it_names(recipe):
    flow = recipe.flow(recipe.build_network(nnx.Rngs(0)))
    assert isinstance(flow.path, fj.paths.VE)
    assert (flow.prediction, flow.null) == ("data", 3)
    assert recipe.build_solver() == fj.solvers.DPMSolver(order=2)
    assert recipe.build_solver("heun") == fj.solvers.Heun()
    assert isinstance(recipe.field(flow), Guided)
    assert recipe.field(flow, 1.0) is flow


def test_balanced_labels(recipe):
    assert recipe.balanced(7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert recipe.balanced(3, (2, 0)).tolist() == [2, 0, 2]


def test_samples_do_not_depend_on_blocks_or_devices(recipe):
    network = jax.tree.map(lambda leaf: leaf + 0.05, recipe.build_network(nnx.Rngs(0)))
    alone = make_mesh(devices=jax.devices()[:1])
    for mesh, batch in ((alone, 64), (alone, 10), (make_mesh(), 24)):
        placed = jax.device_put(network, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        field = recipe.field(recipe.flow(placed))
        samples = recipe.generate(field, 30, key=jax.random.key(3), cond=recipe.balanced(30), batch=batch, mesh=mesh)
        if batch == 64:
            whole = samples
        assert samples.x.shape == (30, 2)
        assert (samples.evaluations, samples.network_calls) == (4, 8)
        np.testing.assert_allclose(samples.x, whole.x, rtol=1e-4, atol=1e-4)
    # VE starts at scale sigma(0) = 5 and the data scale is 4: a zero network would leave a spread of 20.
    assert np.isfinite(whole.x).all()


def test_load_gives_the_average(recipe, tmp_path):
    network = recipe.build_network(nnx.Rngs(0))
    average = jax.tree.map(lambda leaf: leaf + 1, network)
    one = jax.numpy.int32(1)
    recipe.save(tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(TrainState(step=one, networks=network, averages={"average": average}, optimizer=one))
    flow, found = load(tmp_path)
    assert found == recipe
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(flow.network), jax.device_get(average))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": float("nan")}, "scale must be finite, got nan"),
        ({"scale": 0.0}, "scale must be above 0, got 0.0"),
        ({"shift": float("inf")}, "shift must be finite"),
        ({"shift": "0"}, "shift must be"),
        ({"guidance": float("nan")}, "guidance must be finite"),
        ({"guidance": -1.0}, "guidance must be at least 0"),
        ({"low": float("nan"), "high": 1.0}, "low must be finite"),
        ({"low": 1.0, "high": 1.0}, "must be below high"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2.5}, "steps must be"),
        ({"shape": []}, "shape must hold"),
        ({"shape": [0]}, "shape must be at least 1"),
        ({"shape": 2}, "shape must be tuple, got 2"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"num_classes": 4}, "have 4 classes, but the network is built with num_classes=3"),
        ({"prediction": "epsilon"}, "prediction"),
        ({"network": {"name": "require_jvp", "options": {}}}, "unknown network 'require_jvp'"),
        ({"network": {"name": "MLPP", "options": {}}}, "did you mean 'mlp'"),
        ({"network": "MLP"}, "network must be"),
        ({"path": {"name": "linear_betas", "options": {}}}, "unknown path 'linear_betas'"),
        ({"path": {"name": "VE", "options": {"sigma_max": float("inf")}}}, "VE needs"),
        ({"path": {"name": "Tabulated", "options": {"alphas_cumprod": "abc"}}}, "unknown array 'abc'"),
        ({"solver": {"name": "os.system", "options": {}}}, "unknown solver 'os.system'"),
        ({"solver": {"name": "dpm_solver", "options": {"order": "two"}}}, "order must be int, got 'two'"),
        ({"solver": {"name": "dpm_solver"}}, "solver must be"),
        ({"data": ["digits"]}, "data must be"),
        ({"extra": 1}, "recipe has no option extra"),
    ],
)
def test_refuses_recipes_that_are_none(recipe, tmp_path, change, message):
    recipe.save(tmp_path)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Recipe.load(tmp_path)


def test_flows_between_two_laws_start_from_the_data_that_they_are_given(recipe):
    """The recipe alone opens nothing."""
    between = dataclasses.replace(
        recipe, start={"name": "data", "options": {"field": "x0"}}, num_classes=None, shift=0.0
    )
    flow = between.flow(between.build_network(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="starts from the field 'x0' of its data: pass the data as start="):
        between.generate(flow, 4, key=jax.random.key(0))
    source = fj.data.laws(size=16)
    found = between.generate(flow, 4, key=jax.random.key(0), start=source, steps=1, batch=8)
    assert found.x.shape == (4, 2)


def test_names_no_file_outside_of_the_workdir(recipe, tmp_path):
    """A table may lie in a file of the run; of another place nothing is opened."""
    (tmp_path / "run").mkdir()
    recipe.save(tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    whole = json.loads(path.read_text())
    for place, inside in ((tmp_path, False), (tmp_path / "run" / "..", False), (tmp_path / "run", True)):
        np.savez(place / "table.npz", np.linspace(0.9, 0.1, 5))
        table = {"name": "npz", "options": {"path": str(place / "table.npz")}}
        path.write_text(json.dumps(whole | {"path": {"name": "tabulated", "options": {"alphas_cumprod": table}}}))
        if inside:
            assert Recipe.load(tmp_path / "run").build_path().steps == 5
        else:
            with pytest.raises(ValueError, match=r"npz with path=.*table\.npz lies outside of"):
                Recipe.load(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"network": {}}', "[" * 100_000, "\x00", "NaN"])
def test_refuses_files_that_are_none(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.json (cannot be read|is not a recipe)"):
        Recipe.load(tmp_path)


def test_a_missing_entry_is_named(recipe, tmp_path):
    recipe.save(tmp_path)
    path = tmp_path / "recipe.json"
    whole = json.loads(path.read_text())
    required = [f.name for f in dataclasses.fields(Recipe) if f.default is f.default_factory is dataclasses.MISSING]
    for name in required:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(ValueError, match=f"needs its option {name}"):
            Recipe.load(tmp_path)


def test_a_network_of_another_shape_is_refused_before_its_weights_are_read(recipe, tmp_path):
    wrong = [
        ({"dimm": 2}, "no option dimm"),
        ({"dim": "2"}, "dim must be int, got '2'"),
        ({"dim": -2}, "dim must be at"),
    ]
    for change, message in (
        *(({"network": {"name": "MLP", "options": o | {"num_classes": 3}}}, m) for o, m in wrong),
        ({"shape": (3,)}, r"does not take samples of shape \(3,\)"),
        ({"network": {"name": "MLP", "options": {"dim": 2, "num_classes": 3, "cond_dim": 4}}}, "does not take samples"),
    ):
        dataclasses.replace(recipe, **change).save(tmp_path)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_rules_grids_and_fields_are_specs(recipe):
    full = dataclasses.replace(
        recipe,
        guidance={"name": "apg", "options": {"scale": 3.0}},
        times={"name": "quadratic", "options": {"start": 0.1}},
        fields=({"name": "thresholded", "options": {"quantile": 0.9}},),
        solver={"name": "heavy_ball", "options": {"solver": "dpm_solver(order=3)"}},
    )
    flow = full.flow(lambda x, t, cond: -x)
    field = full.field(flow)
    assert (field.quantile, field.field.rule.scale) == (0.9, 3.0)
    assert full.field(flow, 2.0, ()).rule == fj.guidance.CFG(scale=2.0)
    assert full.field(flow, 1.0, ()) is flow
    assert full.field(flow, "interval(rule=cfg(scale=2), start=0.5)", ()).rule.start == 0.5
    np.testing.assert_array_equal(full.build_times(), fj.times.quadratic(recipe.steps, start=0.1))
    np.testing.assert_array_equal(full.build_times("uniform(end=0.9)", 3), fj.times.uniform(3, end=0.9))
    assert full.build_solver().solver.order == 3
    assert full.build_solver("HeavyBall").solver.order == 3  # the default's name keeps its options
    assert full.build_solver("heavy_ball(beta=0.5)").beta == 0.5
    for change, message in (
        ({"guidance": {"name": "apgg", "options": {}}}, "did you mean 'apg'"),
        ({"times": {"name": "karas", "options": {}}}, "did you mean 'karras'"),
        ({"fields": ({"name": "tresholded", "options": {}},)}, "did you mean 'thresholded'"),
        ({"conditions": {"label": {"name": "label", "options": {}}}}, "needs its option classes"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(recipe, **change)


def test_conditions_by_name(recipe):
    named = dataclasses.replace(
        recipe,
        conditions={
            "label": {"name": "label", "options": {"classes": 3, "names": ("a", "b", "c")}},
            "pose": {"name": "vector", "options": {"dim": 2}},
        },
    )
    assert named.null["label"] == 3
    np.testing.assert_array_equal(named.null["pose"], [0, 0])
    cond = named.read_conditions({"label": "b, 2", "pose": "1,2; 3,4"}, 3)
    assert cond["label"].tolist() == [1, 2, 1]
    assert cond["pose"].tolist() == [[1, 2], [3, 4], [1, 2]]
    assert named.balanced(4)["label"].tolist() == [0, 1, 2, 0]
    flow = named.flow(lambda x, t, cond: cond["pose"] - x)
    samples = named.generate(named.field(flow, 1.0), 3, key=jax.random.key(0), cond=cond, batch=8)
    assert samples.x.shape == (3, 2)
    guided = named.generate(named.field(flow, 2.0), 3, key=jax.random.key(0), cond=cond, batch=8)
    assert guided.network_calls == 2 * samples.network_calls
    for asked, message in (
        ({"label": "d"}, "label 'd' is out of range .allowed: 0 to 2, or a, b, c"),
        ({"pose": "1"}, "2 finite numbers|2 numbers"),
        ({"text": "a"}, "unknown condition of this run 'text'.*allowed: label, pose"),
    ):
        with pytest.raises(ValueError, match=message):
            named.read_conditions(asked, 2)


@pytest.mark.slow
def test_straightness_is_of_the_guided_field_and_not_of_the_solver():
    recipe = small.recipe()
    networks, source = {"network": small.network(recipe)}, data.digits().take(40)
    request = Request(num=40, seed=3, batch=16, straightness=4, steps=1)
    row = recipe.assess(networks, source, request, judge=evaluation.Raw())
    field, times = recipe.field(recipe.flow(networks["network"])), fj.times.uniform(4)
    key = jax.random.split(jax.random.key(3))[0]
    x0, cond = fj.noise(key, (40, 8, 8, 1), 0), jnp.asarray(recipe.matching(source, 40))
    expected = evaluation.straightness(field, x0, times, cond)
    for name, values in expected.items():
        assert row[name] > 0
        np.testing.assert_allclose(row[name], values.mean(), rtol=1e-5)

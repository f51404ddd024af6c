import json

import jax
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax.fields import Guided
from flowjax.recipe import Recipe, load
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
        samples = recipe.sample(field, 30, key=jax.random.key(3), cond=recipe.balanced(30), batch=batch, mesh=mesh)
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
        checkpoints.save(TrainState(step=one, network=network, average=average, optimizer=one))
    flow, found = load(tmp_path)
    assert found == recipe
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(flow.network), jax.device_get(average))

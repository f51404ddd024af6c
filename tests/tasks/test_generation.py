"""How a run looks at its network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax import data
from flowjax._cli import load_config
from flowjax.recipe import Request, export_run, load_run
from flowjax.tasks import generation, make_task
from flowjax.training import Checkpoints, create_state, make_mesh, make_step
from flowjax.training.ema import Constant

pytestmark = pytest.mark.standard_promotion


def made(config, source=None):
    source = data.toy2d("spiral", size=60) if source is None else source
    return make_task(config, source, make_mesh(), jax.random.key(3))


def test_pictures_show_every_network_from_the_same_noise(tmp_path, monkeypatch):
    """Also after measuring, and whatever the network."""
    task = made(load_config("toy2d:smoke"))
    shown = []
    monkeypatch.setattr(generation, "picture", lambda recipe, samples, path, source: shown.append(samples.x))
    first, second = (task.networks()["network"].build(nnx.Rngs(seed)) for seed in (0, 1))
    task.show({"network": first}, tmp_path / "a.png")
    assert "FD[raw]" in task.assess({"network": first})
    second.unembed.bias[...] = second.unembed.bias[...] + 1  # a new network is zero: it moves nothing
    task.show({"network": second}, tmp_path / "b.png")
    task.show({"network": first}, tmp_path / "c.png")
    np.testing.assert_array_equal(shown[0], shown[2])
    np.testing.assert_allclose(shown[1] - shown[0], task.source.scale, rtol=1e-4)


def changed(**sections):
    config = load_config("toy2d:smoke")
    with config.unlocked():
        for name, value in sections.items():
            config[name] = value
    return config


def trained(task):
    """What the train main asks for."""
    return task.networks(), task.objective


def spec(name, **options):
    return {"name": name, "options": options}


DIT = spec("dit", image_shape=(8, 8, 1), patch=2, width=8, depth=1, heads=1)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": spec("classification")}, "objective 'classification' is not one of the task generation"),
        ({"objective": spec("regression")}, r"not one of the task generation \(it has .*flow_matching"),
        ({"teacher": {"workdir": "x"}}, "does not read config.teacher"),
        ({"objective": spec("flow_matching", predicton="noise")}, "did you mean prediction"),
        ({"path": spec("linaer")}, "did you mean 'linear'"),
        ({"coupling": spec("sinkhorn")}, "needs its option epsilon"),
        (
            {"network": spec("dit", image_shape=(8, 8, 1), patch=2, width=8, depth=1, heads=1)},
            "does not take samples of shape",
        ),
        ({"optimizer": {"generator": spec("adamw", rate=1e-3)}}, "config.optimizer has no 'network'"),
        (
            {"path": spec("interpolant"), "objective": spec("interpolation")},
            "path 'interpolant' leads from the field x0 of the data, and data 'toy2d' has none",
        ),
        ({"path": spec("interpolant")}, "objective 'flow_matching' needs a path from noise"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(sections, message):
    with pytest.raises(ValueError, match=message):
        trained(made(changed(**sections)))


@pytest.mark.parametrize(
    "sections",
    [
        {"objective": spec("sit", prediction="noise"), "path": spec("vp")},
        {"objective": spec("sd3")},
        {"coupling": spec("optimal_transport")},
        {"objective": spec("flow_matching", prediction="data", times="logit_normal(mean=0.5)"), "path": spec("trig")},
    ],
    ids=lambda sections: str(sections)[:60],
)
def test_objectives_paths_and_couplings_come_from_the_config(sections):
    task = made(changed(**sections))
    batch = {"x1": jnp.zeros((8, 2)), "cond": None}
    draws = task.objective.draw(jax.random.key(0), batch)
    per_example, _ = task.objective.loss(task.networks()["network"].build(nnx.Rngs(0)), draws)
    assert per_example.shape == (8,)
    asked = sections.get("objective", spec("flow_matching"))["options"].get("prediction", "velocity")
    assert task.recipe.prediction == asked


def test_flows_between_two_laws_start_where_the_data_says(tmp_path):
    """A new network moves nothing: samples are the field x0, which is never normalised, in the scale of the data."""
    config = load_config("moons:smoke")
    source = data.laws(size=60)
    task = made(config, source)
    network = task.networks()["network"].build(nnx.Rngs(0))
    recipe = task.recipe
    samples = recipe.generate(
        recipe.field(recipe.flow(network)), 70, key=jax.random.key(0), start=source, batch=8, mesh=make_mesh()
    )
    expected = np.concatenate([source.fields["x0"], source.fields["x0"][:10]]) * source.scale
    np.testing.assert_allclose(samples.x, expected, rtol=1e-5, atol=1e-6)
    task.finish({"network": network}, tmp_path)
    assert (tmp_path / "ways.png").exists()
    with config.unlocked():
        config.path = spec("linear")
        config.objective = spec("flow_matching")
    with pytest.raises(
        ValueError, match=r"has the field x0, which path 'linear' from noise passes over.*coupling=stored"
    ):
        made(config, source)
    with config.unlocked():
        config.coupling = spec("stored")
    made(config, source)


BRIDGE = spec("euler_maruyama", drift="field", diffusion=0.25)


def between(objective, solver=BRIDGE, **options):
    """A flow from one law to another, by an objective."""
    config = load_config("moons:smoke")
    with config.unlocked():
        config.objective, config.sample.solver, config.coupling.name = objective, solver, ""
        config.path = spec("interpolant", form="linear", gamma="brownian", scale=0.5)
        config.data.options.size = 60
        config.task.options = options
    return make_task(config, data.laws(size=60), make_mesh(), jax.random.key(3))


PARTNER = spec("mlp", dim=4, outputs=2, width=8, depth=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "options", "labels"),
    [
        (spec("interpolation", prediction="forward_drift", diffusion=0.25), {}, ["network"]),
        (spec("schroedinger_bridge", diffusion=0.25), {"partner": PARTNER}, ["velocity", "interpolant"]),
    ],
)
def test_bridges_are_trained_and_sampled_as_sdes(tmp_path, objective, options, labels):
    """Two steps, saved as a run: what is sampled is the average of the drift, whatever else was trained."""
    task = between(objective, **options)
    parts = task.networks()
    assert list(parts) == labels
    builds = {label: lambda part=part: part.build(nnx.Rngs(0)) for label, part in parts.items()}
    optimizers = {label: part.optimizer for label, part in parts.items()}
    averages = {"average": (Constant(decay=0.9), (labels[0],))}
    state = create_state(builds, optimizers, make_mesh(), averages=averages)
    step = jax.jit(make_step(optimizers, averages))
    x = jax.random.normal(jax.random.key(0), (8, 2))
    for _ in range(2):
        state, metrics = step(state, task.objective, {"x1": x, "x0": x + 1}, jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    task.save(tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state)
    networks, recipe = load_run(tmp_path)
    kept = task.weights(state)["network"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(networks["network"]), jax.device_get(kept))
    samples = recipe.sample(networks, Request(num=8, batch=8, steps=3), task.source)
    again = recipe.sample(networks, Request(num=8, batch=8, steps=3, seed=1), task.source)
    assert np.isfinite(samples.x).all()
    assert np.abs(samples.x - again.x).max() > 0.1  # the noise of the SDE, not of the start
    for wrong in ("heun", "euler_maruyama(drift=field, diffusion=0.5)", "euler_maruyama(diffusion=0.25)"):
        with pytest.raises(ValueError, match=r"sampled by euler_maruyama\(drift=field, diffusion=0.25\), not by"):
            recipe.check(Request(solver=wrong))
    export_run(networks, recipe, tmp_path / "alone")
    assert load_run(tmp_path / "alone")[1].stored_as == "network"


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (spec("schroedinger_bridge", diffusion=0.25), {}, "needs a partner of its network"),
        (spec("interpolation", prediction="forward_drift", diffusion=0.25), {"partner": PARTNER}, "has no partner"),
        (spec("schroedinger_bridge", diffusion=0.25), {"partner": spec("mlp", dim=4)}, "the partner answers pairs"),
        (spec("schroedinger_bridge", diffusion=0.25), {"partner": spec("mlp", dim=2)}, "does not take inputs"),
        (spec("interpolation", prediction="score"), {}, "unknown prediction 'score'"),
        (spec("interpolation", prediction="forward_drift"), {}, "diffusion must be above 0"),
    ],
)
def test_bridges_that_cannot_be_trained(objective, options, message):
    with pytest.raises(ValueError, match=message):
        between(objective, **options)

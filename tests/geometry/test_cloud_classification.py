"""The classifier with and without the sampling protocol: what its inputs are, and a run of the train main."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax import _cli, data
from flowjax import train as train_main
from flowjax.geometry import CloudClassification
from flowjax.geometry import cloud_classification as cc
from flowjax.training import make_mesh


def task(**options):
    source, network = data.load("shapes", size=16, points=32), {"width": 8, "neighbours": 4}
    return CloudClassification(source=source, network=network, mesh=make_mesh(), key_points=4, **options)


@pytest.mark.slow
def test_inputs_for_training():
    x = jnp.asarray(data.load("shapes", size=8, points=32).x)
    points, mask, index = jax.jit(cc.training_inputs(False, 4))(jax.random.key(0), x)
    np.testing.assert_array_equal(points, x)
    assert mask.all()
    assert (index[:, 0] == 0).all()
    run = jax.jit(cc.training_inputs(True, 4))
    kept = [np.asarray(run(jax.random.key(seed), x)[1].sum(1)) for seed in range(6)]
    assert all((counts == counts[0]).all() for counts in kept)  # one ratio for the batch
    sizes = {int(counts[0]) for counts in kept}
    assert len(sizes) > 3
    assert all(16 <= size <= 64 for size in sizes)
    points, mask, index = run(jax.random.key(0), x)
    assert points.shape == (8, 64, 3)
    assert np.take_along_axis(np.asarray(mask), np.asarray(index), 1).all()


@pytest.mark.slow
def test_inputs_for_evaluation():
    x = jnp.asarray(data.load("shapes", size=4, points=40).x)
    few = jnp.broadcast_to((jnp.arange(40) < 20).astype(x.dtype), (4, 40))
    points, mask, index = jax.jit(cc.evaluation_inputs(True, 4, 32))(jax.random.key(0), x, few)
    assert (mask.sum(1) == 32).all()
    np.testing.assert_array_equal(points[:, :20], x[:, :20])
    assert (index < 32).all()
    _, mask, _ = jax.jit(cc.evaluation_inputs(True, 4, 32))(jax.random.key(0), x, jnp.ones_like(few))
    assert mask.all()  # larger clouds stay as large as they are
    points, mask, index = jax.jit(cc.evaluation_inputs(False, 4, 32))(jax.random.key(0), x, few)
    np.testing.assert_array_equal(mask, few)
    assert (index < 20).all()


def test_clouds_without_a_point_have_no_answer():
    clouds = task(levels=(0,), size=8, protocol=False)
    network = clouds.build_network(nnx.Rngs(0))
    x, mask = clouds.corrupted("clean", 0)
    bad = x.at[2].set(jnp.nan), mask.at[5].set(0)
    assert (np.asarray(clouds._classify(network, *bad)) == -1).tolist() == [place in (2, 5) for place in range(8)]


def test_errors():
    source = data.load("toy2d", law="two_moons", size=8)
    for other in (source, dataclasses.replace(task().source, num_classes=9, names=())):
        with pytest.raises(ValueError, match="the test draws; the source has"):
            dataclasses.replace(task(), source=other)
    with pytest.raises(ValueError, match="32 places cannot be filled up to 40"):
        cc.evaluation_inputs(True, 4, 40)(jax.random.key(0), jnp.ones((1, 32, 3)), jnp.ones((1, 32)))

    with pytest.raises(ValueError, match=r"levels=\(5,\) must lie in 0..4"):
        task(levels=(5,))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        task(size=0)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        data.load("shapes", size=0)


@pytest.mark.slow
def test_a_network_that_always_says_the_same_is_right_once_in_eight():
    clouds = task(levels=(4,), size=8)
    network = clouds.build_network(nnx.Rngs(0))
    for layer in network.head:
        layer.kernel[...] *= 0
    report = clouds.assess(network)
    assert report["accuracy"] == report["accuracy_corrupted"] == 1 / 8
    assert sum(name.startswith("error[") for name in report) == 7


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_the_train_main_trains_it(tmp_path, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            _cli.run(train_main.main, train_main.define, ["train", "--config=clouds:smoke", f"--workdir={tmp_path}"])
        assert not ended.value.code
    assert "training is complete" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 <= report["accuracy_corrupted"] <= 1
    assert np.isfinite(report["loss"])
    assert json.loads((tmp_path / "classifier.json").read_text()) == {"num_classes": 8, "width": 8, "neighbours": 4}
    assert (tmp_path / "samples.png").exists()

"""Classifiers and regressions, measured on what is held out."""

import jax
import numpy as np
import pytest
from flowjax.configs.base import base, smoke, spec
from PIL import Image
from runs import task_of

from flowjax import _cli, data
from flowjax import evaluate as evaluate_main
from flowjax import train as train_main
from flowjax.recipe import RegressionRecipe, load_run

pytestmark = pytest.mark.standard_promotion


def run(main, *arguments):
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["x", *map(str, arguments)])
    return exit_.value.code


def lines(path, size=400):
    """Points and a linear answer with little noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 3)).astype(np.float32)
    target = x @ np.array([[1.0, 0.5], [-2.0, 0.0], [0.3, 1.0]]) + 0.1 * rng.normal(size=(size, 2))
    np.savez(path, images=x, target=target.astype(np.float32))


def regression(path):
    every = dict.fromkeys(("report_every", "sample_every", "checkpoint_every"), 150)
    return base(
        "regression",
        data=spec("npz", path=str(path), labels=None, fields=("target",)),
        network=spec("readout", encoder=spec("vector", size=3, dim=16), outputs=2),
        objective=spec("regression"),
        optimizer=spec("adamw", rate=3e-2),
        train=dict(steps=150, batch=40, ema=0.9, best="r2", **every),
    )


def train(config, workdir, capsys):
    """Trains a config that lies in no file."""
    source = workdir.parent / "config.py"
    source.write_text(
        f"from ml_collections import ConfigDict\ndef get_config(a):\n    return ConfigDict({config.to_dict()!r})"
    )
    assert run(train_main, f"--config={source}", f"--workdir={workdir}") == 0, capsys.readouterr().err


@pytest.mark.slow
def test_a_regression_explains_its_targets(tmp_path, capsys):
    lines(tmp_path / "lines.npz")
    train(regression(tmp_path / "lines.npz"), tmp_path / "run", capsys)
    assert np.asarray(Image.open(tmp_path / "run" / "samples.png")).std() > 0
    networks, recipe = load_run(tmp_path / "run")
    source = data.of_run(recipe, tmp_path / "run", "recipe")
    seen, held = recipe.parts(source)
    assert (len(seen.x), len(held.x)) == (360, 40)
    assert not {row.tobytes() for row in seen.x} & {row.tobytes() for row in held.x}
    answers = recipe.predict(networks, held.x, batch=16)
    error = ((answers - held.fields["target"]) ** 2).mean()
    assert error < 0.05 * held.fields["target"].var()
    capsys.readouterr()
    assert run(evaluate_main, f"--workdir={tmp_path / 'run'}", "--data=recipe") == 0
    out = capsys.readouterr().out
    assert f"{error:.4g}"[:5] in out
    assert run(evaluate_main, f"--workdir={tmp_path / 'run'}", "--data=recipe") == 0
    assert "1 of 1 rows are known already" in capsys.readouterr().out
    for flag in ("--solvers=heun", "--steps=3", "--guidance=2", "--fields=thresholded", "--times=uniform"):
        assert run(evaluate_main, f"--workdir={tmp_path / 'run'}", "--data=recipe", flag) == 2
        assert "a run of the kind regression draws no samples" in capsys.readouterr().err


@pytest.mark.slow
def test_a_classifier_knows_held_out_digits(tmp_path, capsys):
    every = [f"--config.train.{name}=100" for name in ("steps", "report_every", "checkpoint_every", "sample_every")]
    small = "--config.network.options.encoder.options.channels=16"
    flags = ["--config=classifier", f"--workdir={tmp_path / 'run'}", *every, small, "--config.train.ema=0.9"]
    assert run(train_main, *flags) == 0, capsys.readouterr().err
    networks, recipe = load_run(tmp_path / "run")
    source = data.digits()
    held = recipe.parts(source)[1]
    right = recipe.predict(networks, held.x).argmax(-1) == held.cond
    assert right.mean() > 0.85
    capsys.readouterr()
    assert run(evaluate_main, f"--workdir={tmp_path / 'run'}") == 0
    assert f"{right.mean():.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(data=spec("toy2d", law="spiral", size=60)), "needs data with the field target; toy2d has none"),
        (dict(objective=spec("classification")), "'classification' is not one of the task regression"),
        (dict(network=spec("readout", encoder=spec("vector", size=4, dim=8), outputs=2)), "does not take inputs"),
        (dict(network=spec("readout", encoder=spec("vector", size=3, dim=8), outputs=3)), r"answers \(1, 3\), not"),
        (dict(task=spec("regression", held_out=1.5)), "held_out"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, sections, message):
    lines(tmp_path / "lines.npz", 40)
    config = regression(tmp_path / "lines.npz")
    with config.unlocked():
        for name, value in sections.items():
            config[name] = value | {"augment": {"flip": False, "crop": 0}} if name == "data" else value
    with pytest.raises(ValueError, match=message):
        task_of(config).objective  # noqa: B018


def test_a_classifier_needs_labels():
    config = smoke(
        base(
            "classification",
            data=spec("toy2d", law="spiral", size=60),
            network=spec("readout", encoder=spec("vector", size=2, dim=8), outputs=2),
            objective=spec("classification"),
        )
    )
    with pytest.raises(ValueError, match="a classifier needs data with labels, and toy2d has none"):
        task_of(config)


def test_recipes_say_what_is_wrong():
    good = dict(
        network=spec("readout", encoder=spec("vector", size=2, dim=8), outputs=2),
        data=spec("toy2d", law="spiral"),
        shape=(2,),
        shift=0.0,
        scale=1.0,
        low=None,
        high=None,
        num_classes=2,
        answers="classes",
        answer=(2,),
        held_out=0.1,
    )
    RegressionRecipe(**good)
    for change, message in (
        ({"answers": "labels"}, "answers"),
        ({"answer": (3,)}, "answers of 2 classes have as many numbers"),
        ({"held_out": 0.0}, "held_out"),
        ({"network": spec("readuot")}, "did you mean 'readout'"),
    ):
        with pytest.raises(ValueError, match=message):
            RegressionRecipe(**good | change)


def test_parts_of_data_are_drawn_and_complete():
    source = data.digits()
    seen, held = source.split(0.25, seed=3)
    assert len(held.x) == round(0.25 * 1797)
    np.testing.assert_array_equal(
        np.sort(np.r_[seen.x.sum((1, 2, 3)), held.x.sum((1, 2, 3))]), np.sort(source.x.sum((1, 2, 3)))
    )
    assert abs(held.cond.mean() - source.cond.mean()) < 0.5
    assert jax.tree.all(jax.tree.map(np.array_equal, source.split(0.25, seed=3)[1].x, held.x))
    assert not np.array_equal(source.split(0.25, seed=4)[1].x, held.x)
    with pytest.raises(ValueError, match="held_out"):
        source.split(0.0)
    with pytest.raises(ValueError, match="one example cannot be split"):
        source.take(1).split(0.5)

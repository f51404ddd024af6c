"""An autoencoder and its discriminator through the train main."""

import dataclasses
import json
import random
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from runs import final, task_of, training, wait_for_checkpoint

from flowjax import _cli, data, evaluate, sample, train
from flowjax.recipe import Autoencoder, Base, Request, export_run, load_run
from flowjax.tasks import Autoencoding, make_task
from flowjax.training import create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Warmup

pytestmark = [
    pytest.mark.standard_promotion,
    pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
STEPS, START = 60, 40


def run(main, *arguments):
    """Runs a main in this process: exit code."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["main", *map(str, arguments)])
    return exit_.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a short run whose discriminator starts late."""
    workdir = tmp_path_factory.mktemp("run")
    arguments = [f"steps={STEPS}", "report_every=1", "sample_every=30", "checkpoint_every=30", "batch=16", "best=psnr"]
    with jax.numpy_dtype_promotion("standard"):
        code = run(
            train,
            "--config=autoencoder:smoke",
            f"--workdir={workdir}",
            *(f"--config.train.{argument}" for argument in arguments),
            f"--config.objective.options.start={START}",
            "--config.optimizer.autoencoder.options.rate=1e-2",
        )
    assert code == 0
    return workdir


@pytest.mark.slow
def test_reconstruction_improves_and_the_discriminator_starts_late(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    error = np.array([row["reconstruction"] for row in rows])
    assert error[-10:].mean() < 0.7 * error[:5].mean()
    # What it would have computed is not there either: its own loss is above zero whenever it is computed.
    for name in ("discriminator", "lambda", "gradient_norm/discriminator"):
        values = np.array([row[name] for row in rows])
        assert (values[:START] == 0).all(), name
        assert (values[START:] > 0).all(), name
    with ocp.CheckpointManager(trained / "checkpoints") as manager:
        found = manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    counts = {label: np.asarray(found[f"counts.{label}"]).tolist() for label in ("autoencoder", "discriminator")}
    assert counts == {"autoencoder": [STEPS, 0, 0], "discriminator": [STEPS - START, 0, 0]}


@pytest.mark.slow
def test_the_report_and_the_best_checkpoint(trained):
    report = json.loads((trained / "report.json").read_text())
    index = json.loads((trained / "checkpoints" / "index.json").read_text())
    np.testing.assert_allclose(index[str(STEPS)]["score"], -report["psnr"], rtol=1e-4)
    assert report["error"] < 64
    assert report["kl"] > 0
    assert any(name.startswith("FD[") for name in report)
    for name in ("samples.png", "samples/000030.png", "samples/000030-raw.png"):
        assert (trained / name).stat().st_size > 0


@pytest.mark.slow
def test_numbers_of_the_report_are_what_they_say(trained):
    """Against plain numpy on the weights of the run."""
    networks, recipe = load_run(trained)
    assert set(networks) == {"autoencoder"}
    assert isinstance(recipe, Autoencoder)
    source = data.of_run(recipe, trained)
    numbers = recipe.assess(networks, source, Request(num=50, batch=16))
    x = np.asarray(source.take(50).x, np.float64)
    mean, log_variance = networks["autoencoder"].encode(jnp.asarray(x.astype(np.float32) - 127.5) / 127.5)
    y = np.asarray(networks["autoencoder"].decode(mean)) * 127.5 + 127.5
    np.testing.assert_allclose(numbers["psnr"], 20 * np.log10(255 / np.sqrt(((x - y) ** 2).mean())), rtol=1e-4)
    np.testing.assert_allclose(numbers["error"], np.abs(x - y).mean(), rtol=1e-4)
    deviation = np.exp(np.asarray(log_variance) / 2)
    kl = (np.asarray(mean) ** 2 / 2 + deviation**2 / 2 - 0.5 - np.log(deviation)).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(numbers["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose([numbers["latent_mean"], numbers["latent_std"]], [mean.mean(), mean.std()], rtol=1e-4)


@pytest.mark.slow
def test_export_and_reload(trained, tmp_path):
    networks, recipe = load_run(trained)
    export_run(networks, recipe, tmp_path / "model")
    again, copy = load_run(tmp_path / "model")
    assert copy == recipe
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((networks, again)))


@pytest.mark.slow
def test_evaluate_has_one_row_and_sample_says_what_to_do(trained, tmp_path, capsys):
    assert run(evaluate, f"--workdir={trained}", "--num=40") == 0
    [row] = json.loads((trained / "evaluation.json").read_text())["runs"][0]["rows"]
    assert {"psnr", "error", "kl", "latent_std"} <= set(row)
    assert not (trained / "evaluation.png").exists()
    assert run(evaluate, f"--workdir={trained}", "--steps=4") == 2
    assert "a run of the kind autoencoder draws no samples" in capsys.readouterr().err
    assert run(sample, f"--workdir={trained}", f"--out={tmp_path / 'x.npz'}") == 2
    assert "draws no samples: train a flow on its latents, with --config.codec=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.discriminator=none"], "config.discriminator is none, and the objective has adversary=hinge"),
        (["--config.objective.options.adversary=None"], "the objective has adversary=None"),
        (["--config.objective.options.adversary=hing"], "did you mean 'hinge'?"),
        (["--config.objective=flow_matching"], "objective 'flow_matching' is not one of the task autoencoding"),
        (["--config.network.options.image_shape=(16,16,3)"], "the network does not encode examples of shape (8, 8, 3)"),
        (["--config.network=mlp(dim=2)"], "the network 'mlp' is no autoencoder: it has no encode"),
        (
            ["--config.discriminator.options.image_shape=(16,16,3)"],
            "the discriminator does not take examples of shape (8, 8, 3)",
        ),
        (["--config.objective.options.last=decoder.head"], "the autoencoder has no last='decoder.head'"),
        (["--config.optimizer.discriminator.options.rate=nan"], "rate must be finite"),
        (["--config.train.best=FDD"], "did you mean 'FD'?"),
        (["--config.train.best=accuracy"], "(allowed: loss, psnr, error, FD)"),
        (["--config.task.options.num=0"], "num must be at least 1"),
        (["--config.data=photographs(size=500)"], "size must be at most 427"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tmp_path, arguments, expected):
    assert run(train, "--config=autoencoder:smoke", f"--workdir={tmp_path / 'run'}", *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not (tmp_path / "run").exists()


def test_one_optimizer_for_both_and_no_discriminator_at_all():
    config = _cli.load_config("autoencoder:smoke")
    with config.unlocked():
        config.optimizer = {"name": "adam", "options": {"rate": 1e-3}}
    assert set(task_of(config).networks()) == {"autoencoder", "discriminator"}
    with config.unlocked():
        config.discriminator = {"name": "", "options": {}}
        config.objective.options.adversary = None
    task = task_of(config)
    assert isinstance(task, Autoencoding)
    assert set(task.networks()) == {"autoencoder"}


def test_labels_and_fields_of_the_data_do_not_reach_the_batch():
    config = _cli.load_config("autoencoder:smoke")
    source = data.load("photographs", size=8, stride=64)
    source = dataclasses.replace(source, fields={"text": np.array(["a"] * len(source.x))})
    task = make_task(config, source, make_mesh(), jax.random.key(0))
    batch = data.Batches(task.training, 8).batch(0)
    assert {name for name, value in batch.items() if value is not None} == {"x1"}


def stepped(devices):
    """Four steps of the smoke config, the discriminator from the second on."""
    config = _cli.load_config("autoencoder:smoke")
    mesh = make_mesh(devices=jax.devices()[:devices])
    task = make_task(config, data.load(config.data.name, **config.data.options), mesh, jax.random.key(0))
    parts, laws = task.networks(), {"average": (Warmup(decay=0.9), ("autoencoder",))}
    optimizers = {label: part.optimizer for label, part in parts.items()}
    builds = {label: lambda part=part: part.build(nnx.Rngs(0)) for label, part in parts.items()}
    state, step = create_state(builds, optimizers, mesh, averages=laws), jax.jit(make_step(optimizers, laws))
    batches = data.Batches(task.training, 16)
    for i in range(4):
        state, metrics = step(state, task.objective, put_batch(batches.batch(i), mesh), jax.random.key(1))
    return jax.device_get((state.networks, state.averages, metrics))


@pytest.mark.slow
def test_one_device_equals_eight():
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), stepped(1), stepped(8))


@pytest.mark.slow
def test_killed_training_of_two_networks_resumes_to_the_same_bits(tmp_path):
    """SIGKILL at random moments, before and after the discriminator starts."""
    options = {"steps": 120, "checkpoint_every": 10, "report_every": 10, "sample_every": 1000}
    command = ["--config=autoencoder:smoke", "--config.objective.options.start=60"]
    command += [f"--config.train.{key}={value}" for key, value in options.items()]
    chance = random.Random(time.time_ns())
    for least in (10, 60):
        process = training(tmp_path / "killed", *command)
        wait_for_checkpoint(tmp_path / "killed", process, least)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = training(tmp_path / "killed", *command)
    out = last.communicate(timeout=600)[0]
    whole = training(tmp_path / "whole", *command)
    whole.communicate(timeout=600)
    assert (last.returncode, whole.returncode) == (0, 0)
    assert "resumed after step" in out or "training is complete" in out
    (step_a, a), (step_b, b) = final(tmp_path / "killed"), final(tmp_path / "whole")
    assert step_a == step_b == 120
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_recipes_of_autoencoders_are_read_as_their_kind(trained):
    assert Base.load(trained).kind == "autoencoder"
    assert Autoencoder.load(trained).latent_shape(load_run(trained)[0]["autoencoder"]) == (8, 8, 4)

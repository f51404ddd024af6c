"""MF-RAE in stages: each starts where another ended, and the last one samples in one evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from runs import config_of, exit_code, task_of

from flowjax import _cli, train
from flowjax._trees import flatten
from flowjax.recipe import Request, load, load_run
from flowjax.training import create_state, make_mesh

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]

SMALL = {"width": 8, "depth": 1, "heads": 1, "head_width": 8, "head_depth": 1, "head_heads": 1, "patch": 4}
NETWORK = {"name": "dit_dh", "options": {"image_shape": (8, 8, 1), "num_classes": 10} | SMALL}


def test_a_student_with_a_span_starts_as_its_teacher(tmp_path):
    """With the frequencies of its times, which are no parameters, and whatever the end."""
    small.write(tmp_path, network=NETWORK, guidance=1.0)
    task = task_of(config_of("--config=mf_rae:cmt_smoke", f"--config.teacher.options.workdir={tmp_path}"))
    part = task.networks()["network"]
    state = create_state(
        lambda: part.build(nnx.Rngs(1)),
        part.optimizer,
        make_mesh(),
        start={"network": part.start},
    )
    teacher, own = load(tmp_path)[0].network, flatten(state.network)
    assert {name.partition(".")[0] for name in own.keys() - flatten(teacher).keys()} == {"span"}
    np.testing.assert_array_equal(own["time.frequencies"], flatten(teacher)["time.frequencies"])
    x, t, cond = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.linspace(0.1, 0.7, 4), jnp.arange(4)
    for end in (t, jnp.ones(4)):
        np.testing.assert_allclose(state.network(x, t, cond, end=end), teacher(x, t, cond), rtol=1e-5, atol=1e-6)


def test_the_chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {}
    for stage in ("teacher", "cmt", "mfd", "mft"):
        workdir = f"runs/mf_rae/{stage}"
        # A rate of nothing: what a stage ends with is what it started with.
        still = ["--config.optimizer.options.rate=1e-12"] if stage in ("mfd", "mft") else []
        assert exit_code(train, f"--config=mf_rae:{stage}_smoke", f"--workdir={workdir}", *still) == 0
        networks, recipe = load_run(workdir)
        weights[stage] = flatten(networks["network"])
        assert (recipe.solver["name"], recipe.steps) == (("euler", 2) if stage == "teacher" else ("jump", 2))
    for name, leaf in weights["cmt"].items():
        np.testing.assert_allclose(weights["mfd"][name], leaf, atol=1e-6)
        np.testing.assert_allclose(weights["mft"][name], leaf, atol=1e-6)
    assert any(np.any(weights["cmt"][name] != leaf) for name, leaf in weights["teacher"].items())
    frequencies = [each["time.frequencies"] for each in weights.values()]
    for each in frequencies[1:]:
        np.testing.assert_array_equal(each, frequencies[0])
    found = recipe.sample(networks, Request(num=4, batch=4, steps=1))
    assert (found.x.shape, found.evaluations) == ((4, 8, 8, 1), 1)
    codec = _cli.load_config("mf_rae").codec.options
    assert (codec.workdir, codec.statistics) == ("runs/rae/decoder", "elements")


def test_the_chain_on_tokens_of_an_encoder(tmp_path, monkeypatch):
    """From the images: an encoder and a decoder are trained, a flow on the tokens, and what it samples are images."""
    monkeypatch.chdir(tmp_path)
    assert exit_code(train, "--config=rae:encoder_smoke", "--workdir=runs/rae/encoder") == 0
    assert exit_code(train, "--config=rae:smoke", "--workdir=runs/rae/decoder") == 0
    codec = load_run("runs/rae/decoder")[0]["autoencoder"]
    jax.tree.map(np.testing.assert_array_equal, codec.encoder, load_run("runs/rae/encoder")[0]["network"])
    tokens = ["--config.codec=run(workdir=runs/rae/decoder, statistics=elements)"]
    tokens += ["--config.network.options.image_shape=2,2,16", "--config.network.options.patch=1"]
    for stage in ("teacher", "cmt", "mfd", "mft"):
        flags = tokens if stage == "teacher" else []
        assert exit_code(train, f"--config=mf_rae:{stage}_smoke", f"--workdir=runs/mf_rae/{stage}", *flags) == 0
        networks, recipe = load_run(f"runs/mf_rae/{stage}")
        assert recipe.runs["codec"]["model"] == load_run("runs/mf_rae/teacher")[1].runs["codec"]["model"]
    link = tmp_path / "elsewhere" / "link"  # other runs are named from where the folder really is
    link.parent.mkdir()
    link.symlink_to(tmp_path / "runs/mf_rae/mft")
    jax.tree.map(np.testing.assert_array_equal, load_run(link)[0], networks)
    found = recipe.sample(networks, Request(num=4, batch=4, steps=1))
    assert (recipe.state_shape, found.x.shape, found.evaluations) == ((2, 2, 16), (4, 8, 8, 1), 1)
    assert np.isfinite(found.x).all()

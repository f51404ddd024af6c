"""Samplers on disk: the samples of the recipe, whoever runs them, and nothing that was not written for them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax import export

from flowjax import _cli
from flowjax import sample as sample_main
from flowjax.data.files import read_arrays
from flowjax.recipe import Compiled, Request, compile_sampler, load_run
from flowjax.training import make_mesh

pytestmark = pytest.mark.standard_promotion
ASKED = Request(num=20, batch=8, steps=3, solver="dpm_solver", guidance=2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    small.write(folder)
    networks, recipe = load_run(folder)
    compile_sampler(recipe, networks, ASKED, folder / "program")
    return folder


def main(*arguments):
    with pytest.raises(SystemExit) as exit_:
        _cli.run(sample_main.main, sample_main.define, ["x", *map(str, arguments)])
    return exit_.value.code


@pytest.mark.parametrize("asked", [{}, {"seed": 3, "first": 5}, {"conditions": {"label": "3,1"}}])
def test_samples_are_those_of_the_recipe(run, asked):
    networks, recipe = load_run(run)
    compiled = Compiled.load(run / "program")
    request = compiled.request(num=20, **asked)
    found, expected = compiled.sample(recipe, networks, request), recipe.sample(networks, request)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.cond, expected.cond)
    assert (found.evaluations, found.network_calls) == (expected.evaluations, expected.network_calls)


def test_nothing_of_the_network_is_traced(run, monkeypatch):
    networks, recipe = load_run(run)
    compiled = Compiled.load(run / "program")
    monkeypatch.setattr(type(networks["network"]), "__call__", lambda *_, **__: 1 / 0)
    assert compiled.sample(recipe, networks, compiled.request(num=3)).x.shape == (3, 8, 8, 1)


@pytest.mark.slow
def test_with_noise_in_the_solver_and_split_weights(run, tmp_path):
    mesh = make_mesh(fsdp=4, sequence=2)
    networks, recipe = load_run(run, mesh)
    request = Request(num=8, batch=8, steps=3, solver="ddim(eta=1)")
    compiled = compile_sampler(recipe, networks, request, tmp_path, mesh)
    found, expected = compiled.sample(recipe, networks, request, mesh), recipe.sample(networks, request, None, mesh)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="was compiled for devices"):
        compiled.sample(recipe, networks, request)


def test_it_belongs_to_a_run_and_a_request(run, tmp_path):
    networks, recipe = load_run(run)
    compiled = Compiled.load(run / "program")
    with pytest.raises(ValueError, match="was compiled for asked="):
        compiled.sample(recipe, networks, Request(num=3, batch=8, steps=4, solver="dpm_solver", guidance=2.0))
    other = {"network": jax.tree.map(lambda leaf: leaf + 1, networks["network"])}
    with pytest.raises(ValueError, match="was compiled for identity="):
        compiled.sample(recipe, other, compiled.request(num=3))
    with pytest.raises(ValueError, match="has a program already"):
        compile_sampler(recipe, networks, ASKED, run / "program")
    with pytest.raises(FileNotFoundError, match=r"has no sampler.json: write it with"):
        Compiled.load(tmp_path)


def spoiled(run, folder, **changes):
    """A copy with other contents."""
    folder.mkdir()
    for name in ("sampler.stablehlo", "sampler.json"):
        (folder / name).write_bytes((run / "program" / name).read_bytes())
    record = json.loads((folder / "sampler.json").read_text()) | changes.get("record", {})
    (folder / "sampler.json").write_text(changes.get("text", json.dumps(record)))
    if "program" in changes:
        (folder / "sampler.stablehlo").write_bytes(changes["program"])
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": "[]"}, "is not that of a sampler"),
        ({"text": "{"}, "is not that of a sampler"),
        ({"text": "[" * 100_000}, "is not that of a sampler"),
        ({"record": {"asked": {"batch": 8}}}, "it has other entries"),
        ({"program": b"other"}, "has changed since it was written"),
    ],
)
def test_what_was_changed_is_refused(run, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        Compiled.load(spoiled(run, tmp_path / "changed", **changes))


def test_programs_call_no_code_of_the_host(tmp_path):
    """Of what is no program, and of one with a callback, which is looked up in this process."""
    made = bytes(export.export(jax.jit(lambda x: x + 1))(jnp.ones(2)).serialize())
    for content in (b"", made[: len(made) // 2]):
        with pytest.raises(ValueError, match="is no program of"):
            _ = Compiled(folder=tmp_path, record={}, program=content).run
    assert Compiled(folder=tmp_path, record={}, program=made).run(jnp.ones(2)).tolist() == [2, 2]

    def calls(x):
        return jax.ffi.ffi_call("some_code", jax.ShapeDtypeStruct((2,), jnp.float32))(x)

    checks = [export.DisabledSafetyCheck.custom_call("some_code")]
    made = bytes(export.export(jax.jit(calls), disabled_checks=checks)(jnp.ones(2)).serialize())
    with pytest.raises(ValueError, match="calls some_code, which is refused"):
        _ = Compiled(folder=tmp_path, record={}, program=made).run


@pytest.mark.slow
def test_the_main(run, tmp_path, capsys):
    program, flags = tmp_path / "program", [f"--workdir={run}"]
    assert main(*flags, "--compile_only", f"--program={program}", "--steps=2", "--batch=8") == 0
    assert "traced and compiled in" in capsys.readouterr().out
    assert main(*flags, f"--program={program}", "--num=10", "--labels=4", f"--out={tmp_path / 'a.npz'}") == 0
    assert main(*flags, "--steps=2", "--batch=8", "--num=10", "--labels=4", f"--out={tmp_path / 'b.npz'}") == 0
    a, b = (read_arrays(tmp_path / f"{name}.npz") for name in "ab")
    np.testing.assert_allclose(a["x"], b["x"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(a["cond"], b["cond"])
    capsys.readouterr()
    for more, words in (
        (["--compile_only"], "--compile_only writes to --program=FOLDER"),
        (["--compile_only", f"--program={tmp_path / 'c'}", "--num=3"], "--num is given, but --compile_only draws"),
        (["--compile_only", f"--program={program}"], "has a program already"),
        ([f"--program={program}", "--steps=2"], "--steps is given, but the program in"),
        ([f"--program={program}", f"--out={tmp_path / 'folder'}"], "a program writes one file"),
        ([f"--program={tmp_path / 'none'}"], "has no sampler.json"),
    ):
        assert main(*flags, *more) == 2
        assert words in capsys.readouterr().err

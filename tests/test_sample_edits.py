"""Negative and second conditions, scales by sample and edits, as the sample main is asked for them."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from runs import recipe_of

from flowjax import _cli
from flowjax import sample as sample_main
from flowjax.recipe import Request
from flowjax.training import Checkpoints
from flowjax.training.state import TrainState

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the digits recipe whose network was never trained but answers differently to each class."""
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_of("digits:smoke")
    network = jax.jit(lambda: recipe.build_network(nnx.Rngs(0)))()
    keys = iter(jax.random.split(jax.random.key(1), 200))
    network = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(next(keys), leaf.shape), network)
    recipe.save(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        one = jax.numpy.int32(1)
        checkpoints.save(TrainState(step=one, networks=network, averages={"average": network}, optimizer=one))
    for name, grey in (("pictures/a.png", 255), ("pictures/b.png", 0), ("other.png", 128)):
        (folder / "pictures").mkdir(exist_ok=True)
        Image.new("L", (8, 8), grey).save(folder / name)
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 8, 4))
    mask.save(folder / "mask.png")
    Image.new("L", (9, 8), 0).save(folder / "wide.png")
    return folder


COMMON = ("--steps=3", "--solver=euler", "--batch=8")


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(sample_main.main, sample_main.define, ["sample", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


@pytest.fixture
def samples(capsys, tmp_path, workdir):
    """Runs the main and reads what it writes."""

    def sampled(*arguments, num=6):
        out = tmp_path / "x.npz"
        code, text, err = run(
            capsys, f"--workdir={workdir}", f"--out={out}", "--overwrite", f"--num={num}", *COMMON, *arguments
        )
        assert (code, err) == (0, ""), err
        with np.load(out) as file:
            return file["x"], file["cond"], text

    return sampled


def close(a, b, atol=2e-3):
    return np.allclose(a, b, rtol=1e-3, atol=atol)


@pytest.mark.slow
def test_negative_conditions_second_conditions_and_scales_in_turn(samples):
    plain, cond, text = samples("--labels=1,2", "--guidance=3")
    assert "3 evaluations (6 network calls)" in text
    away, same, text = samples("--labels=1,2", "--guidance=3", "--against.label=7")
    assert same.tolist() == cond.tolist() == [1, 2] * 3
    assert "3 evaluations (6 network calls)" in text
    assert not close(away, plain)
    # Against the own class nothing is left of the guidance.
    assert close(
        samples("--labels=1,2", "--guidance=3", "--against.label=1,2")[0], samples("--labels=1,2", "--guidance=1")[0]
    )
    both, _, text = samples("--labels=1,2", "--guidance=composed(scales=(3, 2))", "--second.label=5")
    assert "3 evaluations (9 network calls)" in text
    # Of the same class beside itself, the scales add up.
    twice = samples("--labels=1,2", "--guidance=composed(scales=(1, 2))", "--second.label=1,2")[0]
    assert close(twice, plain)
    assert not close(both, plain)
    apart = samples("--labels=1,2", "--guidance=separate(rule=composed(scales=(3, 2)))", "--second.label=5")[0]
    assert close(apart, both)
    each = samples("--labels=1,2", "--guidance=cfg(scale=each(values=[1, 3, 3]))")[0]
    one = samples("--labels=1,2", "--guidance=1")[0]
    assert close(each[[0, 3]], one[[0, 3]])
    assert close(each[[1, 2, 4, 5]], plain[[1, 2, 4, 5]])
    # Sample i has its scale and condition whatever the blocks are.
    cut = samples("--labels=1,2", "--guidance=cfg(scale=each(values=[1, 3, 3]))", "--batch=2", num=5)[0]
    assert close(cut, each[:5])


@pytest.mark.slow
def test_pictures_are_edited(samples, workdir):
    pictures, mask = f"--cond.picture={workdir}/pictures", f"--cond.mask={workdir}/mask.png"
    kept, _, text = samples("--edit=inpaint", pictures, mask)
    np.testing.assert_allclose(kept[::2, :4], 16, atol=1e-5)  # white, kept exactly, in the scale of the data
    np.testing.assert_allclose(kept[1::2, :4], 0, atol=1e-5)
    assert np.std(kept[:, 4:]) > 0.1
    assert "3 evaluations" in text
    little = samples("--edit=sdedit(strength=0.001)", pictures, "--guidance=1")[0]
    np.testing.assert_allclose(little[::2], 16, atol=0.5)
    np.testing.assert_allclose(little[1::2], 0, atol=0.5)
    pooled = samples("--edit=restore(operator=pooled(factor=8), noise_std=0.02)", pictures, "--steps=20", num=2)[0]
    np.testing.assert_allclose(pooled.mean((1, 2, 3)), [16, 0], atol=2)
    between, _, text = samples(
        "--edit=interpolate(weight=each(values=[0, 1]))",
        f"--cond.picture={workdir}/pictures/a.png",
        f"--second.picture={workdir}/other.png",
        "--solver=rk4",
        "--steps=10",
        "--guidance=1",
        "--labels=1",
    )
    np.testing.assert_allclose(between[::2], 16, atol=0.3)
    np.testing.assert_allclose(between[1::2], 16 * 128 / 255, atol=0.3)
    assert "120 evaluations" in text
    here = ("--solver=rk4", "--steps=10", "--guidance=1", "--labels=3", pictures)
    same = samples("--edit=translate", "--second.label=3", *here)[0]
    np.testing.assert_allclose(same[::2], 16, atol=0.3)
    other, cond, _ = samples("--edit=translate", "--second.label=8", *here)
    assert not close(other, same)
    assert cond.tolist() == [3] * 6


def test_samples_of_one_run_are_edited_by_another(samples, tmp_path):
    made = samples("--labels=1")[0]
    np.savez(tmp_path / "made.npz", x=made)
    again = samples("--edit=sdedit(strength=0.001)", f"--cond.picture={tmp_path}/made.npz", "--guidance=1")[0]
    np.testing.assert_allclose(again, made, atol=0.5)
    part = samples("--edit=sdedit(strength=0.5)", f"--cond.picture={tmp_path}/made.npz", "--batch=2", num=3)[0]
    whole = samples("--edit=sdedit(strength=0.5)", f"--cond.picture={tmp_path}/made.npz")[0]
    assert close(part, whole[:3])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--edit=sdedit(strength=0.5)"], "needs cond.picture: a picture, a folder of them, or an npz"),
        (["--edit=sdedit(strength=2)", "--cond.picture=PICTURES"], "strength must be"),
        (["--edit=sdedit", "--cond.picture=PICTURES"], "sdedit needs its option strength"),
        (["--edit=sdedit(strength=0.5, noise=1)", "--cond.picture=PICTURES"], "leave noise= out"),
        (["--edit=sdedit(strength=0.5)", "--cond.picture=nowhere"], "cond.picture: nowhere is neither a picture"),
        (["--edit=sdedit(strength=0.5)", "--cond.picture=nowhere.npz"], "nowhere.npz is not there"),
        (["--edit=sdedt(strength=0.5)"], "unknown edit 'sdedt'; did you mean 'sdedit'?"),
        (["--edit=inpaint", "--cond.picture=PICTURES"], "needs cond.mask"),
        (["--cond.picture=PICTURES"], "unknown condition of this run 'picture'"),
        (["--edit=restore(operator=pooled(factor=3))", "--cond.picture=PICTURES"], "factor=3 does not divide"),
        (["--edit=restore(operator=pooled(factor=2))", "--cond.picture=PICTURES"], "at t = 1"),  # with Heun
        (
            ["--edit=sdedit(strength=0.5)", "--cond.picture=PICTURES", "--cond.mask=MASK"],
            "unknown condition of this run",
        ),
        (["--edit=translate", "--cond.picture=PICTURES"], "translate needs second_cond"),
        (["--edit=interpolate(weight=3)", "--cond.picture=PICTURES", "--second.picture=PICTURES"], "weight must be"),
        (["--edit=translate", "--cond.picture=PICTURES", "--second.label=3", "--solver=euler_maruyama"], "invert"),
        (["--edit=inpaint", "--cond.picture=PICTURES", "--cond.mask=MASK", "--second.label=3"], "knows one condition"),
        (["--second.label=3"], "knows one condition"),
        (["--second.label=3", "--guidance=1"], "no rule that uses it"),
        (["--against.label=3", "--guidance=1"], "no rule that uses it"),
        (["--against.label=30", "--guidance=2"], "label '30' is out of range"),
        (["--against.text=blue", "--guidance=2"], "unknown condition of this run 'text'"),
        (["--guidance=composed(scales=(2, -1))"], "give also= 1 further conditions"),
        (["--guidance=nested(names=('image', 'text'), scales=(2, 3))"], "conditions by name"),
        (["--compile_only", "--program=here", "--against.label=3"], "under one condition"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tmp_path, workdir, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    places = {"PICTURES": f"{workdir}/pictures", "MASK": f"{workdir}/mask.png"}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    base = ["--guidance=1.5"] if not any(a.startswith("--guidance") for a in arguments) else []
    code, out, err = run(capsys, f"--workdir={workdir}", *base, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_a_recipe_has_a_negative_condition():
    recipe = dataclasses.replace(recipe_of("digits:smoke"), against={"label": "3"}, guidance=2.0)
    flow = recipe.flow(lambda x, t, cond: x)
    assert int(recipe.field(flow).against) == 3
    assert int(recipe.field(flow, against=5).against) == 5
    assert recipe.field(flow, 1.0) is flow
    for bad, words in (({"label": "11"}, "out of range"), ({"text": "blue"}, "unknown condition")):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(recipe, against=bad)


def test_a_batch_ratio_couples_the_samples_of_a_block():
    recipe = recipe_of("digits:smoke")
    assert recipe.couples(Request(guidance="mambo_g(ratio=batch)"))
    assert recipe.couples(Request(guidance="interval(rule=raag(ratio=batch), end=0.5)"))
    assert not recipe.couples(Request(guidance="mambo_g"))

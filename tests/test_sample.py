import errno
import json
import os

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from runs import recipe_of
from safetensors.flax import load_file, save_file

from flowjax import _cli
from flowjax import sample as sample_main
from flowjax.recipe import Recipe, export, load
from flowjax.training import Checkpoints, make_mesh
from flowjax.training.state import TrainState

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the digits recipe whose network was never trained but is not zero either."""
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_of("digits:smoke")
    network = jax.jit(lambda: recipe.build_network(nnx.Rngs(0)))()
    network = jax.tree.map(lambda leaf: leaf + 0.01, network)
    recipe.save(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        one = jax.numpy.int32(1)
        checkpoints.save(TrainState(step=one, networks=network, averages={"average": network}, optimizer=one))
    return folder


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(sample_main.main, sample_main.define, ["sample", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


def test_samples_labels_and_picture(capsys, tmp_path, workdir):
    out = tmp_path / "new" / "samples.npz"
    code, text, err = run(
        capsys, f"--workdir={workdir}", "--num=20", "--solver=heun", "--steps=3", "--guidance=1.5", f"--out={out}"
    )
    assert (code, err) == (0, "")
    assert "6 evaluations (12 network calls) each" in text
    with np.load(out) as file:
        found = dict(file)
    assert found["x"].shape == (20, 8, 8, 1)
    assert found["cond"].tolist() == [*range(10), *range(10)]
    # Data scale: an untrained flow gives noise around the middle of 0..16.
    assert 2 < found["x"].mean() < 14
    assert found["x"].std() > 4
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.size[0] > 100


def test_sample_depends_on_seed_index_and_label_only(capsys, tmp_path, workdir):
    def samples(name, *arguments):
        code, _, err = run(capsys, f"--workdir={workdir}", f"--out={tmp_path / name}.npz", *arguments)
        assert (code, err) == (0, "")
        with np.load(tmp_path / f"{name}.npz") as file:
            return dict(file)

    whole = samples("whole", "--num=24", "--labels=3,1")
    assert whole["cond"].tolist() == [3, 1] * 12
    parts = samples("parts", "--num=20", "--labels=3,1", "--batch=8")
    np.testing.assert_allclose(parts["x"], whole["x"][:20], rtol=1e-4, atol=1e-3)
    other = samples("other", "--num=20", "--labels=3,1", "--batch=8", "--seed=1")
    assert np.abs(other["x"] - parts["x"]).max() > 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels=0,10"], "label '10' is out of range (allowed: 0 to 9)"),
        (["--labels=two"], "label 'two' is out of range"),
        (["--steps=0"], "--steps must be at least 1, got 0"),
        (["--num=0"], "--num must be at least 1, got 0"),
        (["--num=many"], "--num=many"),
        (["--solver=huen"], "unknown solver 'huen'; did you mean 'heun'? (allowed: "),
        (["--guidence=2"], "unknown flag '--guidence'; did you mean '--guidance'?"),
        (["--out=samples.png"], "--out must end in .npz, or be a folder"),
        (["--mesh=fsdp=3"], "mesh data=2 x fsdp=3 x tensor=1 x sequence=1 does not use 8 devices"),
        (["--mesh=rows=3"], "mesh has no option rows"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tmp_path, workdir, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, f"--workdir={workdir}", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_missing_workdirs(capsys, tmp_path, workdir):
    for empty in ((), ("--workdir=",)):
        assert run(capsys, *empty)[::2] == (2, "error: --workdir=FOLDER is required\n")
    code, _, err = run(capsys, f"--workdir={tmp_path / 'no'}")
    assert code == 2
    assert "is not the workdir of a training run" in err
    (tmp_path / "recipe.json").write_text((workdir / "recipe.json").read_text())
    code, _, err = run(capsys, f"--workdir={tmp_path}", f"--out={tmp_path / 'x.npz'}")
    assert code == 2
    assert "no checkpoints in" in err


@pytest.mark.parametrize("name", ["samples.npz", "samples.png"])
def test_existing_files_are_kept_unless_asked(capsys, tmp_path, workdir, name):
    out, kept = tmp_path / "samples.npz", tmp_path / name
    kept.write_text("precious")
    code, _, err = run(capsys, f"--workdir={workdir}", "--num=8", "--batch=8", f"--out={out}")
    assert code == 2
    assert err == f"error: {kept} exists; add --overwrite or choose another --out\n"
    assert kept.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [kept]
    code, _, _ = run(capsys, f"--workdir={workdir}", "--num=8", "--batch=8", f"--out={out}", "--overwrite")
    assert code == 0
    with np.load(out) as file:
        assert file["x"].shape == (8, 8, 8, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.npz", "samples.png"]


def test_places_that_cannot_be_written_are_noticed_before_sampling(capsys, tmp_path, workdir, monkeypatch):
    monkeypatch.setattr(Recipe, "sample", lambda *arguments, **options: pytest.fail("sampled"))
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder.npz").mkdir()
    for out in (tmp_path / "file" / "x.npz", tmp_path / "folder.npz"):
        code, _, err = run(capsys, f"--workdir={workdir}", f"--out={out}", "--overwrite")
        assert code == 2
        assert err.count("\n") == 1
        assert "irectory" in err
    assert (tmp_path / "file").read_text() == "precious"


def test_a_full_disk_leaves_the_old_file(capsys, tmp_path, workdir, monkeypatch):
    out = tmp_path / "samples.npz"
    out.write_text("precious")

    def full(file, **arrays):
        file.write(b"PK half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    code, _, err = run(capsys, f"--workdir={workdir}", "--num=8", "--batch=8", f"--out={out}", "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left on device" in err
    assert out.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out]


def test_samples_that_are_not_finite_are_no_success(capsys, tmp_path, workdir, monkeypatch):
    whole = Recipe.sample

    def spoiled(*arguments, **options):
        samples = whole(*arguments, **options)
        samples.x[[1, 5], 0] = np.nan
        return samples

    monkeypatch.setattr(Recipe, "sample", spoiled)
    code, out, err = run(capsys, f"--workdir={workdir}", "--num=8", "--batch=8", f"--out={tmp_path / 'x.npz'}")
    assert (code, out) == (2, "")
    assert err.startswith("error: 2 of 8 samples have NaN or infinite values, nothing is written; try more --steps")
    assert not list(tmp_path.iterdir())


def test_samples_are_kept_where_their_picture_fails(capsys, tmp_path, workdir, monkeypatch):
    def fail(*arguments):
        raise ValueError("no data")

    monkeypatch.setattr(sample_main, "picture", fail)
    out = tmp_path / "x.npz"
    code, _, err = run(capsys, f"--workdir={workdir}", "--num=8", "--batch=8", f"--out={out}")
    assert (code, err) == (2, f"error: {out} is written, but not {out.with_suffix('.png')}: no data\n")
    with np.load(out) as file:
        assert file["x"].shape == (8, 8, 8, 1)


def test_weights_that_are_not_finite_are_one_line(capsys, tmp_path, workdir):
    flow, recipe = load(workdir)
    export(flow, recipe, tmp_path / "model")
    path = tmp_path / "model" / "weights.safetensors"
    save_file(jax.tree.map(lambda leaf: leaf * jax.numpy.nan, load_file(path)), path)
    code, _, err = run(capsys, f"--workdir={path.parent}", f"--out={tmp_path / 'x.npz'}")
    assert (code, err.count("\n")) == (2, 1)
    assert "NaN or infinite" in err


def test_labels_without_classes(capsys, tmp_path, workdir):
    recipe = json.loads((workdir / "recipe.json").read_text()) | {"num_classes": None}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    for flag in ("--labels=1", "--guidance=2"):
        code, _, err = run(capsys, f"--workdir={tmp_path}", flag)
        assert code == 2
        assert "has no classes" in err
    assert make_mesh().size == 8


def test_specs_on_the_command_line(capsys, workdir, tmp_path):
    code, out, err = run(
        capsys,
        f"--workdir={workdir}",
        f"--out={tmp_path / 'a.npz'}",
        "--num=8",
        "--batch=8",
        "--steps=3",
        "--solver=heavy_ball(solver=adams_bashforth(order=2), beta=0.9)",
        "--times=quadratic(start=1e-3)",
        "--guidance=apg(scale=4, eta=0)",
        "--fields=thresholded(quantile=0.9)",
        "--cond.label=1,2",
    )
    assert (code, err) == (0, "")
    assert "3 evaluations (6 network calls)" in out
    with np.load(tmp_path / "a.npz") as file:
        assert file["cond"].tolist() == [1, 2] * 4
    for flag, message in (
        ("--solver=dpm_solver(ordr=3)", "dpm_solver has no option ordr; did you mean order?"),
        ("--solver=dpm_solver(order=3", "at character"),
        ("--times=karas", "unknown times 'karas'; did you mean 'karras'?"),
        ("--guidance=apgg(scale=4)", "unknown rule 'apgg'; did you mean 'apg'?"),
        ("--guidance=nan", "guidance must be"),
        ("--fields=tresholded", "unknown field 'tresholded'; did you mean 'thresholded'?"),
        ("--cond.text=cat", "unknown condition of this run 'text'"),
        ("--solver=flowturbo(refiner=second)", "unknown flow (label of the recipe) 'second'"),
    ):
        code, _, err = run(capsys, f"--workdir={workdir}", f"--out={tmp_path / 'b.npz'}", flag)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
        assert not (tmp_path / "b.npz").exists()

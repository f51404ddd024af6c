"""What nobody can mean is refused by every main in one line with exit code 2, and leaves nothing behind."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from runs import recipe_of

from flowjax import _cli, calibrate, data, doctor, evaluate
from flowjax import sample as sample_main
from flowjax import train as train_main
from flowjax.calibration import store
from flowjax.calibration.use import record
from flowjax.flow import Flow
from flowjax.recipe import Recipe
from flowjax.training import Checkpoints
from flowjax.training.state import TrainState

pytestmark = pytest.mark.standard_promotion
ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ("digits", "toy2d", "clouds")


def refused(capsys, main, *arguments):
    """Runs a main that must refuse its arguments; its one line."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["main", *map(str, arguments)])
    output = capsys.readouterr()
    assert (exit_.value.code, output.out) == (2, ""), (arguments, output)
    assert output.err.startswith("error: "), output.err
    assert output.err.count("\n") == 1, output.err
    assert "Traceback" not in output.err
    assert "allow_pickle" not in output.err
    return output.err


def leaves(node, prefix=""):
    """Dotted names and values of a config."""
    for name, value in node.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def numbers(config):
    """(key, value) of everything in a config that is a number."""
    return [(k, v) for k, v in leaves(config) if isinstance(v, int | float) and not isinstance(v, bool)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_of_a_config_has_bounds(capsys, tmp_path, name):
    """Whatever a number is for, it is finite, not negative and not larger than what can be counted."""
    config = _cli.load_config(f"{name}:smoke")
    assert len(numbers(config)) > 20
    for key, value in numbers(config):
        wrong = ["-7", str(10**14), str(10**400)] if isinstance(value, int) else ["nan", "inf", "-inf", "-1", "1e39"]
        for text in wrong:
            error = refused(
                capsys, train_main, f"--config={name}:smoke", f"--workdir={tmp_path / 'run'}", f"--config.{key}={text}"
            )
            assert len(error) < 600, error
            assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_config_is_needed_and_no_other_is_known(name):
    for key, _ in leaves(_cli.load_config(f"{name}:smoke")):
        if any(part in key for part in ("options", "averages", "augment", "mesh", "times", "solver")):
            continue
        for change in ("remove", "add"):
            config = ConfigDict(_cli.load_config(f"{name}:smoke").to_dict())
            *groups, last = key.split(".")
            node = config
            for group in groups:
                node = node[group]
            if change == "remove":
                del node[last]
            else:
                node[f"{last}z"] = 1
            with pytest.raises(_cli.UsageError, match=f"{key}|'{last}z'; did you mean '{last}'"):
                train_main.check(config)


CHANGED = """
from ml_collections import ConfigDict
from flowjax._cli import load_config
def get_config(argument=""):
    values = load_config("toy2d:smoke").to_dict()
    values{where} = {value}
    return ConfigDict(values)
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "line 1"),
        ("import gone_module\n", "line 1: ModuleNotFoundError: No module named 'gone_module'"),
        ("x = 1\n\ny = zzz\n", "line 3: NameError"),
        ("def get_configs(argument): pass\n", "no function get_config"),
        ("get_config = 3\n", "no function get_config"),
        ("def get_config(argument): return 3\n", "must return an ml_collections.ConfigDict, got int"),
        ("def get_config(argument): return {}['a']\n", "line 1: KeyError"),
        ("def get_config(): return 3\n", "TypeError"),
        ("\0", "null bytes"),
        (
            "from ml_collections import ConfigDict\ndef get_config(a): return ConfigDict()\n",
            "the config lacks config.seed",
        ),
    ],
)
def test_config_files_that_are_none(capsys, tmp_path, text, message):
    (tmp_path / "given.py").write_text(text)
    error = refused(capsys, train_main, f"--config={tmp_path / 'given.py'}", f"--workdir={tmp_path / 'run'}")
    assert message in error
    assert {path.name for path in tmp_path.iterdir()} <= {"given.py", "__pycache__"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train", 5, "config.train must be a group of keys, got 5"),
        ("sample", {}, "the config lacks config.sample."),
        ("trian", 5, "unknown key of config 'trian'; did you mean 'train'?"),
        ("seed", "1", "config.seed must be a whole number, got '1'"),
        ("optimizer.options.rate", "fast", "rate must be float, got 'fast'"),
        ("optimizer.options.rate", None, "rate must be float, got None"),
        ("train.steps", 2.5, "config.train.steps must be a whole number, got 2.5"),
        ("train.steps", True, "config.train.steps must be a whole number, got True"),
        ("train.averages", 5, "averages must be named laws, got 5"),
        ("train.averages", {"a": 5}, "average 'a' must be {\"name\""),
        ("train.averages", {"a": {"name": "Powr", "options": {}}}, "unknown average 'Powr'; did you mean 'Power'?"),
        ("train.averages", {"a": {"name": "Power", "options": {"std": float("nan")}}}, "must lie in (0, 0.2886]"),
        ("train.averages", {"target": {"name": "Constant", "options": {"decay": 0.5}}}, "'target' is the name"),
        ("train.best", 5, "unknown metric of config.train.best '5'"),
        ("train.ema", "x", "config.train.ema must be a number, got 'x'"),
        ("mesh", {"date": 1}, "mesh has no option date; it has data, fsdp"),
        ("mesh", 8, "mesh needs a group of options, got 8"),
        ("mesh.fsdp", "1", "mesh: fsdp must be int, got '1'"),
        ("data", {"name": "toy2d"}, "the config lacks config.data.options"),
        ("data.options", 5, "config.data.options must be a group of keys, got 5"),
        ("data.name", 5, "5"),
        ("data.augment", 5, "augment needs a group of options, got 5"),
        ("data.augment", {"flop": True}, "augment has no option flop; it has"),
        ("data.augment", {"crop": "1"}, "augment: crop must be int, got '1'"),
        ("network.options", 5, "config.network.options must be a group of keys, got 5"),
        ("network.options", {"width": 8}, "mlp needs its option dim"),
        ("network.options.width", "8", "mlp: width must be int, got '8'"),
        ("network.options.dtype", "float31", "float31"),
        ("network.options.dim", 3, "does not take samples of shape (2,)"),
        ("network.name", "DiT", "DiT has no option dim"),
        ("network.name", "require_jvp", "unknown network 'require_jvp'"),
        ("path.name", "Tabulated", "Tabulated needs its option alphas_cumprod"),
        ("path", {"name": "Tabulated", "options": {"alphas_cumprod": ("a", "b")}}, "an array is a list of"),
        ("path.name", "GaussianPath", "unknown path 'GaussianPath'"),
        ("path.name", "Interpolant", "needs a path from noise"),
        ("path.options", {"sigma_min": 2.0}, "sigma_min"),
        ("path.options", {"sigma_min": "a"}, "linear: sigma_min must be float, got 'a'"),
        ("objective.options.times", "Unifrom", "unknown time law 'Unifrom'; did you mean 'uniform'?"),
        ("objective.options.times", {"name": "Uniform", "options": {"end": 2.0}}, "end must be in [0, 1], got 2.0"),
        ("objective.options.times", {"name": "Shifted", "options": {}}, "Shifted needs its option times, shift"),
        ("objective.options.times", {"name": "Shifted", "options": {"times": 1, "shift": 2.0}}, "Shifted: "),
        ("objective.options.prediction", 5, "prediction must be str, got 5"),
        ("objective.options.label_dropout", 0.5, "label_dropout needs null="),
        ("sample.solver", "heun", "config.sample.solver must be a group of keys, got 'heun'"),
        ("sample.solver", {"name": "usf", "options": {}}, "usf needs its option schedule"),
        ("sample.solver", {"name": "ddim", "options": {"eta": "x"}}, "ddim: eta must be float, got 'x'"),
        ("sample.solver", {"name": "heavy_ball", "options": {"solver": "didm"}}, "unknown solver 'didm'"),
    ],
)
def test_configs_with_one_wrong_value(capsys, tmp_path, key, value, message):
    where = "".join(f"[{part!r}]" for part in key.split("."))
    value = repr(value).replace("nan", "float('nan')")
    (tmp_path / "given.py").write_text(CHANGED.format(where=where, value=value))
    error = refused(capsys, train_main, f"--config={tmp_path / 'given.py'}", f"--workdir={tmp_path / 'run'}")
    assert message in error
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------------------------
# Flags, folders and files of all mains
# --------------------------------------------------------------------------------------------------------------------

WITH_RUN = {"sample": sample_main, "evaluate": evaluate, "calibrate": calibrate}


def save_run(recipe, folder):
    """A run whose network was never trained."""
    folder.mkdir(exist_ok=True)
    network = jax.jit(lambda: recipe.build_network(nnx.Rngs(0)))()
    recipe.save(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        one = jax.numpy.int32(1)
        checkpoints.save(TrainState(step=one, networks=network, averages={"average": network}, optimizer=one))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_run(recipe_of("digits:smoke"), folder)
    return folder


def listing(*folders):
    return sorted(str(path) for folder in folders for path in folder.rglob("*"))


NUMBERS = {
    "sample": {"num": "whole", "batch": "whole", "steps": "whole", "seed": "seed", "guidance": "real"},
    "evaluate": {"num": "whole", "batch": "whole", "steps": "whole", "seed": "seed", "guidance": "real"},
    "calibrate": {
        **dict.fromkeys(("steps", "points", "rounds", "order", "num"), "whole"),
        **dict.fromkeys(("guidance", "start", "end"), "real"),
        "seed": "seed",
    },
}
WRONG = {
    "whole": ("-1", "x", "", "1e3", "nan", "1.5", str(10**30)),
    "seed": ("-1", "x", "", "1.5", str(2**32), str(10**30)),
    "real": ("nan", "inf", "-inf", "-1", "x", "", "1e39", "1e400"),
}


@pytest.mark.parametrize("name", WITH_RUN)
def test_numbers_of_flags(capsys, tmp_path, workdir, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    before = listing(workdir, tmp_path)
    for flag, kind in NUMBERS[name].items():
        for text in WRONG[kind]:
            what = ["ems"] if name == "calibrate" else []
            assert flag in refused(capsys, WITH_RUN[name], *what, f"--workdir={workdir}", f"--{flag}={text}")
    assert listing(workdir, tmp_path) == before


@pytest.mark.parametrize("name", WITH_RUN)
def test_folders_that_are_no_runs(capsys, tmp_path, name):
    (tmp_path / "file").write_text("x")
    for folder, text in (("empty", None), ("half", "{"), ("null", "null"), ("list", "[1]"), ("deep", "[" * 10**5)):
        (tmp_path / folder).mkdir()
        if text is not None:
            (tmp_path / folder / "recipe.json").write_text(text)
    (tmp_path / "folder" / "recipe.json").mkdir(parents=True)
    what = ["ems"] if name == "calibrate" else []
    for folder in ("file", "file/below", "missing", "empty", "half", "null", "list", "deep", "folder", "a" * 5000):
        before = listing(tmp_path)
        assert folder in refused(capsys, WITH_RUN[name], *what, f"--workdir={tmp_path / folder}", "--num=20")
        assert listing(tmp_path) == before
    for arguments in ([], ["--workdir="], ["--workdir=x", "extra"], ["--workdir"], [f"--flagfile={tmp_path / 'no'}"]):
        refused(capsys, WITH_RUN[name], *what, *arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sample", ["--out="], "--out is empty"),
        ("sample", ["--out=x.png"], "--out must end in .npz, or be a folder"),
        ("sample", ["--out=file/x.npz"], "Not a directory"),
        ("sample", ["--out=file/below/x.npz"], "Not a directory"),
        ("sample", ["--out=" + "a" * 5000 + ".npz"], "File name too long"),
        ("sample", ["--labels="], "--labels is empty"),
        ("sample", ["--labels=0,,1"], "label '' is out of range"),
        ("sample", ["--labels=" + "9" * 5000], "is out of range"),
        ("sample", ["--solver="], "--solver is empty"),
        ("sample", ["--solver=os.system"], "os.system"),
        ("sample", ["--num=2147483647"], "more than half of the memory of this machine"),
        ("sample", ["--batch=2147483647"], "FLOWJAX_MEMORY_GIB sets another limit"),
        ("evaluate", ["--num=2147483647"], "more than half of the memory of this machine"),
        ("evaluate", ["--steps=4,,8"], "--steps must be numbers, got ''"),
        ("evaluate", ["--solvers="], "--solvers is empty"),
        ("evaluate", ["--extractor=json:loads"], "must be given together"),
        ("evaluate", ["--extractor=gone:f", "--weights=x", "--sha256=x"], "No module named 'gone'"),
        ("evaluate", ["--extractor=json:gone", "--weights=x", "--sha256=x"], "has no attribute 'gone'"),
        ("evaluate", ["--extractor=.json:x", "--weights=x", "--sha256=x"], "--extractor=.json:x"),
        ("evaluate", ["--extractor=json:__doc__", "--weights=x", "--sha256=x"], "is no function"),
        ("evaluate", ["--extractor=json:loads", "--weights=x", "--sha256=x"], "x"),
        ("evaluate", ["--data=other"], "--data=other: the data of"),
        ("calibrate", ["emss"], "did you mean 'ems'"),
        ("calibrate", ["ems", "--mode=elemnt"], "did you mean 'element'"),
        ("calibrate", ["ems", "--data="], "--data is empty"),
        ("calibrate", ["ems", "--points=2147483647"], "more than half of the memory of this machine"),
        ("calibrate", ["ems", "--num=2147483647"], "more than half of the memory of this machine"),
    ],
)
def test_flags_that_cannot_be_meant(capsys, tmp_path, workdir, monkeypatch, name, arguments, message):
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    before = listing(workdir, tmp_path)
    assert message in refused(capsys, WITH_RUN[name], *arguments, f"--workdir={workdir}")
    assert listing(workdir, tmp_path) == before


@pytest.mark.parametrize("arguments", [["--json=maybe"], ["--jsn"], ["x"], ["--list=slver"]])
def test_flags_of_the_doctor(capsys, arguments):
    refused(capsys, doctor, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            [f"--config={name}"]
            for name in ("", ":", "/", "/dev/null", "__init__", "..", "a" * 5000, "a" * 5000 + ".py")
        ),
        ["--config"],
        ["--config=digits:smoke", "--config.train.steps"],
        ["--config=digits:smoke", "--config.train.steps="],
        ["--config=digits:smoke", "--config.=1"],
        ["--config=digits:smoke", "--config..train=1"],
        ["--config=digits:smoke", "--config.network.options.image_shape=(8,8)"],
        ["--config=digits:smoke", "--config.network.options.image_shape=8"],
        ["--config=digits:smoke", "--config.data.augment.flip=maybe"],
        ["--config=digits:smoke", "--config.network.name=UNet"],
        ["--config=digits:smoke", "--config.path.name=Tabulated"],
        ["--config=digits:smoke", "--config.network.options.width=1048576"],
        ["--config=digits:smoke", "--config.train.batch=2147483640"],
        ["--config=digits:smoke", "--config.sample.num=2147483647"],
        ["--config=digits:smoke", "--profile="],
        ["--config=digits:smoke", "--profile=3"],
        ["--config=digits:smoke", "--distributed=on"],
        ["--config=digits:smoke", "--distributed=yes"],
        ["--config=digits:smoke", "--coordinator=localhost:1234"],
        ["--config=digits:smoke", "--coordinator=localhost", "--num_processes=2", "--process_id=0"],
        ["--config=digits:smoke", "--coordinator=localhost:1234", "--num_processes=2", "--process_id=2"],
        ["--config=digits:smoke", "--distributed=off", "--num_processes=2"],
    ],
)
def test_flags_of_training(capsys, tmp_path, arguments):
    refused(capsys, train_main, f"--workdir={tmp_path / 'run'}", *arguments)
    assert not (tmp_path / "run").exists()


def test_training_under_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in ("file", "file/below", "file/far/below", "a" * 5000):
        refused(capsys, train_main, "--config=toy2d:smoke", f"--workdir={tmp_path / folder}")
    assert listing(tmp_path) == [str(tmp_path / "file")]


@pytest.mark.slow
def test_calibration_files_that_are_none(capsys, tmp_path, workdir):
    recipe = Recipe.load(workdir)
    flow = Flow(network=recipe.build_network(nnx.Rngs(0)), path=recipe.build_path(), prediction="velocity")
    belongs = record("ems", flow, guidance=recipe.guidance, start=0.1, end=0.9, steps=3)
    curves = {name: np.ones(5) for name in ("lam", "l", "s", "b")}
    (tmp_path / "junk.npz").write_text("junk")
    (tmp_path / "none.npz").write_text("")
    (tmp_path / "folder.npz").mkdir()
    np.savez(tmp_path / "foreign.npz", x=np.ones(3))
    np.savez(tmp_path / "pickled.npz", record=np.array({"what": "ems"}, dtype=object))
    np.savez(tmp_path / "text.npz", record=np.array("{"))
    np.savez(tmp_path / "number.npz", record=np.array("5"))
    np.savez(tmp_path / "empty.npz", record=np.array("{}"))
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "npy.npz")
    store.save(tmp_path / "nan.npz", curves | {"b": np.full(5, np.nan)}, belongs)
    store.save(tmp_path / "lacks.npz", {"lam": np.ones(5)}, belongs)
    store.save(tmp_path / "kind.npz", curves, belongs | {"what": "emss"})
    store.save(tmp_path / "words.npz", curves, belongs | {"steps": "three"})
    store.save(tmp_path / "schedule.npz", {"schedule": np.array("[1]")}, belongs | {"what": "schedule"})
    store.save(tmp_path / "ratios.npz", {"ratios": np.ones(3)}, belongs | {"what": "compensation"})
    whole = (tmp_path / "kind.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 16
    for file in (*files, "missing.npz"):
        error = refused(
            capsys,
            sample_main,
            *(f"--workdir={workdir}", "--num=8", f"--calibration={tmp_path / file}", f"--out={tmp_path / 'x.npz'}"),
        )
        assert file in error
        assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_data_of_a_recipe_is_opened_only_when_asked_for(capsys, tmp_path):
    """Unless it lies in the workdir, links followed, or needs no files."""
    rng = np.random.default_rng(0)
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path / "elsewhere", tmp_path):
        np.savez(folder / "points.npz", images=rng.normal(size=(60, 2)))
    recipe = Recipe(
        network={"name": "MLP", "options": {"dim": 2, "width": 8, "depth": 1}},
        path={"name": "Linear", "options": {}},
        prediction="velocity",
        data={"name": "npz", "options": {"path": str(tmp_path / "elsewhere" / "points.npz"), "labels": None}},
        shape=(2,),
        shift=0.0,
        scale=1.0,
        low=None,
        high=None,
        num_classes=None,
        solver={"name": "euler", "options": {}},
        steps=1,
    )
    run = tmp_path / "run"
    save_run(recipe, run)
    (run / "link").symlink_to(tmp_path / "elsewhere")
    before = listing(run)
    for main, options in ((evaluate, ["--num=20"]), (calibrate, ["ems"]), (calibrate, ["transport"])):
        for path in (tmp_path / "elsewhere", run / "link", run / ".." / "elsewhere"):
            values = json.loads((run / "recipe.json").read_text())
            values["data"]["options"]["path"] = str(path / "points.npz")
            (run / "recipe.json").write_text(json.dumps(values))
            error = refused(capsys, main, *options, f"--workdir={run}")
            assert "opened only when asked for: add --data=recipe, or --data=PATH" in error
        assert "missing.npz does not exist" in refused(
            capsys, main, *options, f"--workdir={run}", f"--data={tmp_path / 'missing.npz'}"
        )
    assert listing(run) == before

    # Samples are pictured without it.
    out = f"--out={tmp_path / 'samples.npz'}"
    for main, arguments in ((sample_main, [out, "--num=8"]), (evaluate, ["--num=20", "--data=recipe"])):
        with pytest.raises(SystemExit) as exit_:
            _cli.run(main.main, main.define, ["main", f"--workdir={run}", *arguments])
        assert exit_.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "samples.png").exists()

    loaded = Recipe.load(run)
    assert len(data.of_run(loaded, run, "recipe").x) == 60
    assert len(data.of_run(loaded, run, str(tmp_path / "points.npz")).x) == 60
    assert len(data.of_run(loaded, tmp_path).x) == 60
    with pytest.raises(ValueError, match="is not read from a file"):
        data.of_run(dataclasses.replace(loaded, data={"name": "digits", "options": {}}), run, "x")


def test_a_limit_of_memory_can_be_set(capsys, tmp_path, workdir, monkeypatch):
    monkeypatch.setenv("FLOWJAX_MEMORY_GIB", "0.00001")
    error = refused(capsys, sample_main, f"--workdir={workdir}", "--num=1000", f"--out={tmp_path / 'x.npz'}")
    assert "more than 0.00001 GiB" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config=digits:smoke", "--workdir=run", "--config.train.rate=nan"],
        ["sample", "--workdir=file", "--num=3"],
        pytest.param(["evaluate", "--workdir=run", "--steps=nan"], marks=pytest.mark.slow),
        pytest.param(["calibrate", "ems", "--workdir=run", "--guidance=nan"], marks=pytest.mark.slow),
    ],
)
def test_as_a_process(tmp_path, arguments):
    (tmp_path / "file").write_text("x")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    command = [sys.executable, "-m", f"flowjax.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert listing(tmp_path) == [str(tmp_path / "file")]

"""What nobody can mean is refused by every main in one line with exit code 2, and leaves nothing behind."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from flowjax import _cli
from flowjax import train as train_main

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
        ("train.rate", "fast", "config.train.rate must be a number, got 'fast'"),
        ("train.rate", None, "config.train.rate must be a number, got None"),
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
        ("network.options", {"width": 8}, "MLP needs its option dim"),
        ("network.options.width", "8", "MLP: width must be int, got '8'"),
        ("network.options.dtype", "float31", "float31"),
        ("network.options.dim", 3, "does not take samples of shape (2,)"),
        ("network.name", "DiT", "DiT has no option dim"),
        ("network.name", "require_jvp", "unknown network 'require_jvp'"),
        ("path.name", "Tabulated", "Tabulated needs its option alphas_cumprod"),
        ("path", {"name": "Tabulated", "options": {"alphas_cumprod": ("a", "b")}}, "an array is a list of"),
        ("path.name", "GaussianPath", "unknown path 'GaussianPath'"),
        ("path.name", "Interpolant", "path must be one-sided"),
        ("path.options", {"sigma_min": 2.0}, "sigma_min"),
        ("path.options", {"sigma_min": "a"}, "Linear: sigma_min must be float, got 'a'"),
        ("objective.times", "Uniform", "config.objective.times must be a group of keys, got 'Uniform'"),
        ("objective.times", {"name": "Uniform", "options": {"end": 2.0}}, "end must be in [0, 1], got 2.0"),
        ("objective.times", {"name": "Shifted", "options": {}}, "Shifted needs its option times, shift"),
        ("objective.times", {"name": "Shifted", "options": {"times": 1, "shift": 2.0}}, "Shifted: "),
        ("objective.prediction", 5, "unknown prediction '5'"),
        ("objective.label_dropout", 0.5, "label_dropout needs null="),
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

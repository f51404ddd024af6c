import errno
import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from flowjax import _cli

CONFIG = """
from ml_collections import ConfigDict
def get_config(argument=""):
    if argument not in ("", "smoke"):
        raise ValueError(f"unknown argument {argument!r} (allowed: smoke)")
    return ConfigDict({"seed": 1, "train": {"steps": 5, "rate": 0.1, "shape": (1, 2)}, "bare": argument})
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "given.py"
    path.write_text(CONFIG)
    return str(path)


def parse(capsys, *arguments):
    """Exit code, what main saw, stderr."""
    seen = []
    with pytest.raises(SystemExit) as exit_:
        _cli.run(lambda values: seen.append(values.config), _cli.define_config, ["main", *arguments])
    return exit_.value.code, seen, capsys.readouterr()


def test_overrides_reach_the_config(capsys, config):
    code, seen, _ = parse(
        capsys, f"--config={config}:smoke", "--config.train.steps=9", "--config.train.rate=2", "--config.seed", "3"
    )
    assert code == 0
    assert seen[0].to_dict() == {"seed": 3, "train": {"steps": 9, "rate": 2.0, "shape": (1, 2)}, "bare": "smoke"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--config.train.stepz=3"],
            "unknown key of config.train 'stepz'; did you mean 'steps'? (allowed: rate, shape",
        ),
        (["--config.trian.steps=3"], "unknown key of config 'trian'; did you mean 'train'?"),
        (["--config.seed.deep=3"], "config.seed is a value"),
        (["--config.train=3"], "--config.train is a group"),
        (["--config.train.steps=many"], "--config.train.steps=many: invalid literal for int()"),
        (["--config.train.rate=fast"], "--config.train.rate=fast"),
        (["--confg=x"], "unknown flag '--confg'; did you mean '--config'?"),
        (["train"], "unexpected argument 'train'"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, config, arguments, expected):
    code, seen, output = parse(capsys, f"--config={config}", *arguments)
    assert code == 2
    assert not seen
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert expected in output.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--config=NAME is required"),
        (["--config=digit"], "unknown config 'digit'; did you mean 'digits'? (allowed: "),
        (["--config=nowhere/digits.py"], "config file nowhere/digits.py does not exist"),
        (["--config=digits:smok"], "unknown argument 'smok' (allowed: smoke)"),
    ],
)
def test_configs_that_cannot_be_loaded(capsys, arguments, expected):
    code, _, output = parse(capsys, *arguments)
    assert code == 2
    assert output.err.count("\n") == 1
    assert expected in output.err


def test_errors_of_the_program_are_not_usage_errors():
    def main(values):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        _cli.run(main, argv=["main"])


def test_ctrl_c_is_one_line(capsys):
    def main(values):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        _cli.run(main, argv=["main"])
    assert (exit_.value.code, capsys.readouterr().err) == (130, "interrupted\n")


@pytest.mark.parametrize("how", ["module", "script", "library"])
def test_ctrl_c_during_the_imports_is_one_line(tmp_path, how):
    """A stand-in for JAX, which is imported early, interrupts. Whoever imports the library gets the exception."""
    (tmp_path / "jax.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    script = tmp_path / "flowjax-train"
    script.write_text("from flowjax.train import cli\ncli()\n")
    started = {"module": ["-m", "flowjax.data.prepare"], "script": [str(script)], "library": ["-c", "import flowjax"]}
    places = os.pathsep.join([str(tmp_path), str(pathlib.Path(_cli.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, *started[how]], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": places}
    )
    if how == "library":
        assert done.stderr.endswith("KeyboardInterrupt\n")
    else:
        assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


def test_help_has_docstring_flags_and_keys(capsys, config):
    code, seen, output = parse(capsys, f"--config={config}", "--help")
    assert code == 0
    assert not seen
    assert __doc__ is None or __doc__ in output.out
    assert "--config.train.steps=5" in output.out


def test_frozen_config(tmp_path):
    config = ConfigDict({"a": {"b": (1, 2), "c": 3}})
    _cli.check_frozen(config, tmp_path)
    (tmp_path / "config.json").write_text('{"a": {"b": [1, 2], "c": 3}}')
    assert not _cli.check_frozen(config, tmp_path)
    config.a.c = 4
    with pytest.raises(_cli.UsageError, match=r"config\.a\.c=3, not 4"):
        _cli.check_frozen(config, tmp_path)
    assert _cli.check_frozen(config, tmp_path, allow=True)


def test_a_run_may_go_on_with_another_mesh(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1, "mesh": {"data": 4, "fsdp": 2}}')
    config = ConfigDict({"a": 1, "mesh": {"data": -1, "fsdp": 1, "sequence": 1}})
    assert not _cli.check_frozen(config, tmp_path)
    config.a = 2
    with pytest.raises(_cli.UsageError, match=r"config\.a=1, not 2"):
        _cli.check_frozen(config, tmp_path)


@pytest.mark.parametrize("content", [None, "", "\0\0", '{"a": {"b"', "[]"])
def test_a_broken_config_does_not_end_a_run(tmp_path, capsys, content):
    config, path = ConfigDict({"a": 1}), tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    if content in (None, "", "\0\0"):
        assert not _cli.check_frozen(config, tmp_path)
    else:
        with pytest.raises(_cli.UsageError, match=r"config\.json is not the config of a training run"):
            _cli.check_frozen(config, tmp_path)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    assert _cli.check_frozen(config, tmp_path)
    assert "cannot be read: the run goes on with the config that is given now" in capsys.readouterr().out


def test_disk_errors_are_found_behind_those_of_libraries(tmp_path):
    for error in (OSError(errno.ENOSPC, "x"), ValueError("RESOURCE_EXHAUSTED: write [No space left on device]")):
        wrapped = RuntimeError("background thread")
        wrapped.__cause__ = error
        with pytest.raises(_cli.UsageError, match=r": No space left on device"), _cli.disk_errors(tmp_path):
            raise wrapped
    with pytest.raises(KeyError), _cli.disk_errors(tmp_path):
        raise KeyError("a bug")

"""A workdir of version 0.1: two steps of its toy2d:smoke, and eight samples that its sample main drew."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from flowjax import _cli
from flowjax import sample as sample_main
from flowjax import train as train_main

pytestmark = pytest.mark.standard_promotion


@pytest.fixture
def old(tmp_path):
    with zipfile.ZipFile(Path(__file__).with_name("run_of_0_1.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def run(main, *arguments):
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["x", *map(str, arguments)])
    return exit_.value.code


def test_it_is_sampled_as_then(old, capsys):
    flags = [f"--workdir={old / 'run'}", "--num=8", "--batch=8", f"--out={old / 'now.npz'}"]
    assert run(sample_main, *flags) == 0, capsys.readouterr().err
    then, now = (np.load(old / name)["x"] for name in ("samples.npz", "now.npz"))
    np.testing.assert_allclose(now, then, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_it_goes_on(old, capsys):
    """With new names for its keys, so that it must be asked for."""
    flags = ["--config=toy2d:smoke", f"--workdir={old / 'run'}", "--config.train.steps=3", "--config.sample.num=40"]
    flags += ["--config.data.options.size=200", "--config.network.options.width=8"]
    assert run(train_main, *flags) == 2
    assert "--allow_config_change" in capsys.readouterr().err
    assert run(train_main, *flags, "--allow_config_change") == 0
    assert "resumed after step 2" in capsys.readouterr().out

"""Runs for tests of the mains: recipes as configs make them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flowjax import _cli, data
from flowjax import train as train_main
from flowjax.tasks import make_task
from flowjax.training import make_mesh


def task_of(config):
    """The task of a config, with its data."""
    source = data.load(config.data.name, **config.data.options)
    return make_task(config, source, make_mesh(), jax.random.key(0))


def config_of(*argv):
    """The config of a command line of `flowjax.train`."""
    values, argv = train_main.flags.FlagValues(), list(argv)
    train_main.define(values, argv)  # takes --config out of them
    values(["train", *argv])
    return values.config


def exit_code(main, *arguments):
    """What a main ends with on a command line."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, [main.__name__.rpartition(".")[2], *map(str, arguments)])
    return exit_.value.code


def final(workdir):
    """All arrays of the newest checkpoint, by item and name."""
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        restore = ocp.args.StandardRestore
        step = manager.latest_step()
        found = manager.restore(step, args=ocp.args.Composite(state=restore(), average=restore()))
        return step, jax.tree.map(np.asarray, {"state": found["state"], "average": found["average"]})


def training(workdir, *arguments):
    """A process that trains."""
    command = [sys.executable, "-m", "flowjax.train", f"--workdir={workdir}", *arguments]
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for_checkpoint(workdir, process, least=1):
    """Returns when a training has written a checkpoint of so many steps, or has ended."""
    saved = lambda: [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]  # noqa: E731
    while max(saved(), default=0) < least and process.poll() is None:
        time.sleep(0.01)


def kill(process):
    """SIGKILL."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def recipe_of(name):
    """The recipe of a config by name."""
    return task_of(_cli.load_config(name)).recipe

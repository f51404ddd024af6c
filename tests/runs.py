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


def wait_for_checkpoint(workdir, seconds=300):
    """Returns when a training has written its first checkpoint."""
    deadline = time.monotonic() + seconds
    while not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)


def kill(process):
    """SIGKILL."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def recipe_of(name):
    """The recipe of a config by name."""
    return task_of(_cli.load_config(name)).recipe

"""Runs for tests of the mains: recipes as configs make them."""

import jax

from flowjax import _cli, data
from flowjax.tasks import make_task
from flowjax.training import make_mesh


def task_of(config):
    """The task of a config, with its data."""
    source = data.load(config.data.name, **config.data.options)
    return make_task(config, source, make_mesh(), jax.random.key(0))


def recipe_of(name):
    """The recipe of a config by name."""
    return task_of(_cli.load_config(name)).recipe

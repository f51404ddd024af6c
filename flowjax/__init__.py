"""flowjax: train, distil and sample flow and diffusion models in JAX.

A flow is a path plus a network; train the network, steer its field, integrate it in as few evaluations as possible.
"""

from flowjax import _interrupt  # isort: skip - first: what is imported below takes seconds
from flowjax import _guard  # isort: skip - then: refuses to run beside the other distribution of this name

import importlib
from typing import TYPE_CHECKING, Any

from flowjax import fields, flow, guidance, paths, solvers, times
from flowjax.fields import guide
from flowjax.flow import Field, Flow, term
from flowjax.keys import noise
from flowjax.solving import Solution, solve

if TYPE_CHECKING:  # what is imported when it is first used
    from flowjax import (
        calibration,
        catalogue,
        conditions,
        couplings,
        data,
        editing,
        evaluation,
        geometry,
        likelihood,
        models,
        objectives,
        oracles,
        policies,
        recipe,
        science,
        search,
        specs,
        tasks,
        training,
        video,
        weights,
    )
    from flowjax.catalogue import cite
    from flowjax.likelihood import log_likelihood
    from flowjax.recipe import Recipe, export, load
    from flowjax.specs import build

_LAZY_MODULES = (
    "calibration",
    "catalogue",
    "conditions",
    "couplings",
    "data",
    "editing",
    "evaluation",
    "geometry",
    "likelihood",
    "models",
    "objectives",
    "oracles",
    "policies",
    "recipe",
    "science",
    "search",
    "specs",
    "tasks",
    "training",
    "video",
    "weights",
)
_LAZY_NAMES = {
    "load": "recipe",
    "export": "recipe",
    "Recipe": "recipe",
    "build": "specs",
    "cite": "catalogue",
    "log_likelihood": "likelihood",
}


def __getattr__(name: str) -> Any:
    """Imports the parts that need more than JAX and diffrax when they are first used."""
    if name in _LAZY_MODULES:
        return importlib.import_module(f"flowjax.{name}")
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f"flowjax.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module 'flowjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """All names, those that are imported later among them."""
    return sorted({*globals(), *_LAZY_MODULES, *_LAZY_NAMES})

"""Classifiers of other runs, whose gradient guides a flow: the specs `of=` of the field `classifier`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax import _checks, specs
from flowjax._pytree import pytree, static
from flowjax.calibration.store import model_hash
from flowjax.facts import fact
from flowjax.recipe.base import from_values
from flowjax.recipe.regression import RegressionRecipe
from flowjax.recipe.runs import Run


@pytree
class ClassLogProbability:
    """log p(label | x_t = x) of a classifier of noisy examples, as `flowjax.fields.Gradient` takes it.

    Attributes:
        network: Called as network(x, t); gives logits (B, classes).
        classes: How many there are. A number behind the last one, the null condition, asks for nothing: 0.
        label: The class to ask for in place of the condition's: a number, (B,), or `flowjax.guidance.Each`.

    Example:
        >>> ask = ClassLogProbability(network=lambda x, t: x, classes=2)
        >>> asked = ask(jnp.zeros((3, 2)), jnp.ones(3), jnp.array([0, 1, 2]))
        >>> [round(float(value), 2) for value in asked]  # log 1/2 twice, and the null
        [-0.69, -0.69, 0.0]
    """

    network: Any
    classes: int = static()
    label: Any = None

    @property
    def model(self) -> str:
        """The hash of the network's weights."""
        return model_hash(self.network)

    def __call__(self, x: Float[Array, "B ..."], t: Float[Array, " B"], cond: Any) -> Float[Array, " B"]:
        """Log probabilities, up to nothing."""
        asked = self.label
        if asked is None:
            asked = cond["label"] if isinstance(cond, Mapping) else cond
        asked = jnp.broadcast_to(jnp.asarray(asked).astype(jnp.int32), (len(x),))
        known = (asked >= 0) & (asked < self.classes)
        log_p = jax.nn.log_softmax(self.network(x, t))
        return jnp.where(known, jnp.take_along_axis(log_p, jnp.where(known, asked, 0)[:, None], -1)[:, 0], 0)


def _fitting(recipe: Any, place: str, network: Any, other: Any, label: Any) -> ClassLogProbability:
    """The classifier of a run for the flow of a recipe.

    Raises:
        ValueError: It is none of noisy examples, or of others than this flow moves.
    """
    wanted = specs.text(recipe.path)
    if not isinstance(other, RegressionRecipe) or other.path is None:
        raise ValueError(
            f"{place} is no classifier of noisy examples: train config.objective=classification(noise_path={wanted})"
        )
    pair = [specs.spec_of("path", specs.build("path", path)) for path in (other.path, recipe.path)]
    if pair[0] != pair[1]:
        raise ValueError(f"{place} has learned on the path {specs.text(other.path)}, and this flow has {wanted}")
    if recipe.codec is not None:
        raise ValueError(f"this flow moves latents, and {place} tells classes of examples")
    there, here = ({"shape": tuple(r.shape), "shift": r.shift, "scale": r.scale} for r in (other, recipe))
    for name in there:
        if there[name] != here[name]:
            raise ValueError(f"{place} tells examples whose {name} is {there[name]}; that of this flow is {here[name]}")
    classes = other.answer[0]
    if label is None and "label" not in recipe.inputs:
        raise ValueError("this flow has no labels: say for which class, label=3 or label=each(values=[0, 1])")
    if label is None and recipe.num_classes != classes:
        raise ValueError(f"{place} knows {classes} classes, and this flow {recipe.num_classes}")
    if label is not None:
        for value in np.ravel(getattr(label, "values", label)).tolist():
            _checks.whole(f"[0, {classes - 1}]", label=value)
    return ClassLogProbability(network=network, classes=classes, label=label)


@fact(
    "density",
    "run",
    "the classifier of noisy examples of a trained run",
    parts={"label": "scale"},
    example=lambda: {"workdir": "runs/classifier"},
)
def of_run(
    workdir: str, recipe: Any, which: str = "latest", average: Any = None, model: str | None = None, label: Any = None
) -> ClassLogProbability:
    """The classifier of a run, for the flow of a recipe.

    Args:
        workdir: Folder of a run of `config.objective="classification(noise_path=...)"`.
        recipe: Of the flow; given.
        which: As for `flowjax.recipe.Run`.
        average: Likewise.
        model: The hash that its weights must have, where it is known.
        label: The class to ask for, in place of that of the condition.

    Raises:
        ValueError: No such run; other weights; a classifier that does not fit the flow.
    """
    found = Run(workdir=workdir, which=which, average=average).load()
    if model not in (None, found.model):
        raise ValueError(f"the classifier {workdir} had the hash {model}, and has {found.model} now: bring it back")
    return _fitting(recipe, workdir, found.networks[found.recipe.label], found.recipe, label)


@fact(
    "density",
    "stored",
    "the classifier that a recipe names among its runs",
    parts={"label": "scale"},
    example=lambda: {"name": "classifier"},
)
def stored(name: str, recipe: Any, networks: Mapping[str, Any], label: Any = None) -> ClassLogProbability:
    """The classifier of a run that the recipe of a flow names; configs name it by its folder, as `run(workdir=...)`.

    Args:
        name: Its label among the runs.
        recipe: Of the flow; given.
        networks: Those of `load_run`; given.
        label: As for `of_run`.

    Raises:
        ValueError: The recipe has no such run, or one that does not fit.
    """
    _checks.choose("run of this recipe", name, recipe.runs)
    if name not in networks:
        raise ValueError(f"the network of the run {name!r} is missing: pass the networks of flowjax.recipe.load_run")
    return _fitting(recipe, f"the run {name!r}", networks[name], from_values(recipe.runs[name]["recipe"]), label)

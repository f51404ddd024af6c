"""Pictures and numbers of what a flow generates, during training and at its end."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from flowjax import data, times
from flowjax.evaluation import (
    Classifier,
    Extractor,
    ImageClassifier,
    class_report,
    default_extractor,
    frechet_distance,
    pictures,
    train_classifier,
)
from flowjax.evaluation.extractors import SMALL
from flowjax.flow import Field
from flowjax.keys import noise
from flowjax.recipe import Base, Recipe, Samples
from flowjax.solving import solve

METRICS: Mapping[str, int] = {"FD": 1, "accuracy": -1}
"""What the best checkpoint of a flow may be chosen by beside the loss: 1 where small is good, -1 where large is. These
are numbers of `measure`; accuracy needs classes."""


def score(metric: str, numbers: Mapping[str, float], metrics: Mapping[str, int]) -> float:
    """The metric among numbers as an assessment returns them, so that lower is better.

    Args:
        metric: Its name, without what it has in brackets.
        numbers: By name.
        metrics: 1 where small is good, -1 where large is.

    Raises:
        ValueError: The assessment has no such number.
    """
    found = [value for name, value in numbers.items() if name.partition("[")[0] == metric]
    if not found:
        raise ValueError(f"this run has no {metric} to choose the best checkpoint by; it has {', '.join(numbers)}")
    return metrics[metric] * found[0]


def has_picture(recipe: Base) -> bool:
    """Whether `picture` can show samples: grey or colour images, points in the plane, and what has a form."""
    return recipe.form is not None or recipe.shape == (2,) or (len(recipe.shape) == 3 and recipe.shape[-1] in (1, 3))


def picture(
    recipe: Base, samples: Samples, path: str | Path, source: data.Source | None = None, form: Any = None
) -> None:
    """A PNG of samples: images in a grid, one row per class or each under its text; points in the plane as a density.

    The density of the real data, if `source` is given, stands beside it. Data of other shapes has no picture. What has
    a form is shown by `form`, by default that of the recipe.
    """
    if not has_picture(recipe):
        return
    form = recipe.build_form() if form is None else form
    if form is not None:
        form.picture(samples, path)
    elif len(recipe.shape) == 3:
        known = samples.cond if isinstance(samples.cond, dict) else {"label": samples.cond}
        texts = [
            rows[:100] for rows in known.values() if getattr(rows, "dtype", None) is not None and rows.dtype.kind == "U"
        ]
        cond = None if texts else known.get("label")
        shown = samples.x[:100] if cond is None else samples.x
        low = float(shown.min()) if recipe.low is None else recipe.low
        high = float(shown.max()) if recipe.high is None else recipe.high
        titles = ["; ".join(row) for row in zip(*texts)]
        pictures.grid(shown, path, low=low, high=high, cond=cond, titles=titles)
    else:
        real = None if source is None else source.x[np.arange(min(len(source.x), 50_000))]
        pictures.density(samples.x, real, path)


def picture_ways(
    recipe: Recipe,
    flow: Field,
    path: str | Path,
    key: Key[Array, ""],
    source: data.Source | None = None,
    num: int = 500,
) -> None:
    """A PNG of the ways of `num` points in the plane from noise, or from where `source` says, to data in its scale."""
    grid = times.uniform(recipe.steps)
    noise_key, solver_key = jax.random.split(key)
    if recipe.start is None:
        x0 = flow.path.start(noise(noise_key, (num, *recipe.shape)), grid[0])
    else:
        x0 = jax.numpy.asarray(recipe.start_rows(source, num))
    result = solve(flow, recipe.build_solver(), x0, grid, key=solver_key, trajectory=True)
    pictures.trajectories(jax.device_get(result.trajectory) * recipe.scale + recipe.shift, path)


def make_judge(source: data.Source) -> Extractor:
    """What samples are measured by: a classifier of the data, or features of data without classes.

    A support vector machine of the first 10,000 examples, for many or large images a convolutional network. Trained
    from the data, so that every process of a run has the same.
    """
    rows = np.arange(min(len(source.x), 10_000))
    large = len(source.x.shape) == 4 and source.x[rows].size > SMALL
    if source.cond is None or source.num_classes is None or large:
        return default_extractor(source)
    return train_classifier(source.x[rows], source.cond[rows], source.num_classes)


def measure(
    recipe: Recipe,
    field: Field,
    source: data.Source,
    num: int,
    *,
    judge: Extractor,
    key: Key[Array, ""],
    batch: int,
    mesh: Mesh,
    codec: Any = None,
    solver: Any = None,
) -> dict[str, Any]:
    """Compares `num` new samples of a field with the first 10,000 real ones at most, by the recipe's solver and steps.

    A flow on latents needs `codec`, a solver with networks of its own `solver`, see `Recipe.generate`; samples and data
    are compared in the data's own scale.
    Conditions by name are those of the real ones, labels without a name are all asked for equally often.

    With a classifier: accuracy of the samples, their spread, the Frechet distance in its features and the search for
    copies (`flowjax.evaluation.class_report`). With other features: the Frechet distance in these. The distance has
    the hash of its features in its name. Samples with a form and conditions by name are compared with the examples
    under whose conditions they are drawn (`compare` of the form).

    Returns:
        These numbers, the solver evaluations per sample, and samples per second (compiled before, if samples
        were made with the same `batch` before). Where samples have NaN or infinite values: their number "bad_samples",
        and NaN for distance and accuracy.
    """
    rows = np.arange(min(len(source.x), 10_000))
    cond = recipe.matching(source, num, len(rows))
    clock = time.perf_counter()
    samples = recipe.generate(
        field,
        num,
        key=key,
        cond=cond,
        solver=solver,
        start=source,
        batch=batch,
        mesh=mesh,
        codec=codec,
    )
    seconds = time.perf_counter() - clock
    if samples.bad:
        return {"bad_samples": samples.bad, f"FD[{judge.digest}]": math.nan, "accuracy": math.nan}
    real = source.x[rows]
    labels = cond.get("label") if isinstance(cond, dict) else cond
    if isinstance(judge, Classifier | ImageClassifier) and labels is not None and source.cond is not None:
        numbers = class_report(judge, samples.x, labels, real, source.cond[rows])
        numbers["classifier_accuracy"] = judge.accuracy
    else:
        numbers = {f"FD[{judge.digest}]": frechet_distance(judge.features(samples.x), judge.features(real))}
    if (form := recipe.build_form()) is not None and recipe.conditions is not None:
        numbers |= form.compare(samples, np.asarray(source.x[np.arange(num) * len(rows) // num]))
    return numbers | {"evaluations": samples.evaluations, "samples_per_second": num / seconds}

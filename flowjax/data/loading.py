"""Data sets by name, as configs have them."""

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowjax import specs
from flowjax.data import captions, fashion, shapes
from flowjax.data.files import images, npz
from flowjax.data.prepared import tfds
from flowjax.data.sources import Source, as_trained, blank, choose, digits, laws, photographs, synthetic, toy2d
from flowjax.data.tables import parquet
from flowjax.facts import fact

_SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "images": images,
    "npz": npz,
    "shapes": shapes.source,
    "tfds": tfds,
    "toy2d": toy2d,
    "parquet": parquet,
    "captions": captions.source,
    "fashion": fashion.source,
    "laws": laws,
    "photographs": photographs,
    "blank": blank,
    "synthetic": synthetic,
}
for _name, _make in _SOURCES.items():
    fact("data", _name, (inspect.getdoc(_make) or _name).splitlines()[0].rstrip("."))(_make)

PLACES = ("folder", "path")
"""Options by which data sets name files."""


def load(name: str, **options: object) -> Source:
    """The data set called `name`.

    Args:
        name: One of the catalogue: "digits", "images", "npz", ...
        **options: Arguments of the function of that name.

    Raises:
        ValueError: Unknown name or option, with the closest one and the allowed ones, an option of another type, or a
            missing option.
    """
    known = specs.table_of("data")
    maker = known[choose("data set", name, known)].make
    parameters = inspect.signature(maker).parameters
    for option, value in options.items():
        hint = parameters[choose(f"option of {name}", option, parameters)].annotation
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if not isinstance(value, tuple(typing.get_origin(kind) or kind for kind in kinds)):
            allowed = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
            raise ValueError(f"option {option} of data set {name!r} must be {allowed}, got {value!r}")
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ValueError(f"data set {name!r} needs the option {parameter.name!r}")
    return maker(**options)


def lies_in(path: str, folder: str | Path) -> bool:
    """Whether a file or folder lies in a folder, links followed."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def of_run(recipe: Any, workdir: str | Path, place: str | None = None) -> Source:
    """The data that a run was trained on, in the scale that it was trained in.

    A run may come from elsewhere, and its recipe then names files of this machine that its user did not choose. So
    files are opened only where they lie in the folder of the run, or where the caller says so; data that is made or
    installed always is.

    Args:
        recipe: `flowjax.recipe.Recipe` of the run.
        workdir: Folder of the run.
        place: "recipe" opens what the recipe names; another text is the folder or file that stands in its place, or for
            a run without data the spec of a data set.

    Raises:
        ValueError: Files that nobody asked for, data that cannot be read, or that changed since training.
    """
    name, options = recipe.data["name"], dict(recipe.data["options"])
    if choose("data set", name, specs.table_of("data")) == "blank":
        if place in (None, "recipe"):
            raise ValueError(f"{workdir} was trained without data: say what to compare with, --data=digits for example")
        name, options = specs.name_and_options(specs.parse(place))
        source = load(name, **options)
        if source.blank:
            raise ValueError(f"--data={place} has no examples: say what to compare with, --data=digits for example")
        return as_trained(source, recipe)
    files = [key for key in PLACES if key in options]
    if place is None:
        for key in files:
            if not lies_in(str(options[key]), workdir):
                raise ValueError(
                    f"the recipe of {workdir} names data on disk ({name} with {key}={options[key]}), which is opened "
                    "only when asked for: add --data=recipe, or --data=PATH if it lies elsewhere"
                )
    elif place != "recipe":
        if not files:
            raise ValueError(f"--data={place}: the data of {workdir}, {name}, is not read from a file")
        options |= dict.fromkeys(files, place)
    return as_trained(load(name, **options), recipe)

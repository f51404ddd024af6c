"""Data sets by name, as configs have them."""

import inspect
from collections.abc import Callable

from flowjax.data import shapes
from flowjax.data.files import images, npz
from flowjax.data.prepared import tfds
from flowjax.data.sources import Source, choose, digits, toy2d

SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "images": images,
    "npz": npz,
    "shapes": shapes.source,
    "tfds": tfds,
    "toy2d": toy2d,
}


def load(name: str, **options: object) -> Source:
    """The data set called `name`.

    Args:
        name: "digits", "images", "npz", "shapes", "tfds" or "toy2d".
        **options: Arguments of the function of that name.

    Raises:
        ValueError: Unknown name or option, with the closest one and the allowed ones, or a missing option.
    """
    maker = SOURCES[choose("data set", name, SOURCES)]
    parameters = inspect.signature(maker).parameters
    for option in options:
        choose(f"option of {name}", option, parameters)
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ValueError(f"data set {name!r} needs the option {parameter.name!r}")
    return maker(**options)

"""Data sets by name, as configs have them."""

import inspect
import types
import typing
from collections.abc import Callable

from flowjax.data import captions, fashion, shapes
from flowjax.data.files import images, npz
from flowjax.data.prepared import tfds
from flowjax.data.sources import Source, choose, digits, laws, toy2d
from flowjax.data.tables import parquet

SOURCES: dict[str, Callable[..., Source]] = {
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
}


def load(name: str, **options: object) -> Source:
    """The data set called `name`.

    Args:
        name: "digits", "images", "npz", "shapes", "tfds", "toy2d", "parquet", "captions", "fashion" or "laws".
        **options: Arguments of the function of that name.

    Raises:
        ValueError: Unknown name or option, with the closest one and the allowed ones, an option of another type, or a
            missing option.
    """
    maker = SOURCES[choose("data set", name, SOURCES)]
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

"""Weights of other programs: safetensors files with names and layouts of their own."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from flowjax._trees import flatten, unflatten

Origin = tuple[tuple[str, ...], Callable[..., Any]]
"""The names of the arrays there that an array here is made of, and what makes it of them."""


def conv_kernel(weight: Any) -> Any:
    """A convolution of torch, (outputs, inputs, rows, columns), with its channels behind and the outputs last."""
    return np.transpose(weight, (*range(2, weight.ndim), 1, 0))


def dense_kernel(weight: Any) -> Any:
    """A linear layer of torch, (outputs, inputs) or a convolution of one pixel, as (inputs, outputs)."""
    return np.reshape(weight, weight.shape[:2]).T


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_foreign(
    path: str | Path,
    like: Any,
    origins: Mapping[str, Origin],
    *,
    sha256: str | None = None,
    published: Mapping[str, str] = MappingProxyType({}),
    rename: Callable[[str], str | None] = lambda name: name,
) -> Any:
    """The network in a file of another program, with the structure, the types and the shardings of `like`.

    Args:
        path: A safetensors file. Nothing in it can run code.
        like: Network of arrays or of shapes with shardings.
        origins: For the dotted name of every array of `like`, the names there and what makes it of these arrays.
        sha256: Digest of the whole file in hexadecimal digits, by which another file is refused; None takes any.
        published: Digests of files that are known to fit, by their names, for the message; "" where none is known.
        rename: Names in the file to those of `origins`; None for what is not read.

    Raises:
        FileNotFoundError: There is no such file; the line says where to put it.
        ValueError: Another file than the one that is meant, none of safetensors; names that are missing or not known,
            all of them told at once; arrays of other shapes; NaN or infinite values.

    Example:
        >>> import numpy as np, tempfile
        >>> from safetensors.numpy import save_file
        >>> file = tempfile.mkdtemp() + "/there.safetensors"
        >>> save_file({"layer.weight": np.arange(6.0, dtype="float32").reshape(3, 2)}, file)
        >>> like = jax.eval_shape(lambda: {"kernel": jax.numpy.zeros((2, 3))})
        >>> read_foreign(file, like, {"kernel": (("layer.weight",), dense_kernel)})["kernel"].tolist()
        [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """
    path, wanted = Path(path), flatten(like)
    if not path.is_file():
        known = "" if sha256 is None else f" with the sha256 {sha256}"
        others = "".join(
            f"; {name} has the sha256 {digest}" if digest else f"; no sha256 of {name} is known here"
            for name, digest in published.items()
            if not sha256
        )
        raise FileNotFoundError(
            f"the weights {path.name}{known} are not there: get the file and put it at {path}{others}"
        )
    if sha256 is not None and (found := file_digest(path)) != sha256.lower():
        raise ValueError(f"{path} is another file than the one that is meant: its sha256 is {found}, not {sha256}")
    try:
        with safe_open(path, framework="flax") as file:
            # By jax, since numpy alone has no bfloat16.
            kept = {name: new for name in file.keys() if (new := rename(name)) is not None}
            arrays = {new: np.asarray(file.get_tensor(name)) for name, new in kept.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    needed = {name for names, _ in (origins[own] for own in wanted) for name in names}
    if needed != set(arrays):
        told = (("missing", needed - set(arrays)), ("not known", set(arrays) - needed))
        raise ValueError(
            f"{path} does not fit: " + "; ".join(f"{_some(names)} {what}" for what, names in told if names)
        )
    placed = {}
    for own, leaf in wanted.items():
        names, make = origins[own]
        try:
            value = make(*(arrays[name] for name in names))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not fit: {', '.join(names)} cannot become {own}: {error}") from error
        if value.shape != leaf.shape:
            there = ", ".join(f"{name} {arrays[name].shape}" for name in names)
            raise ValueError(f"{path} does not fit: {there} become {value.shape}, and {own} is {leaf.shape} here")
        with np.errstate(over="ignore"):
            value = value.astype(leaf.dtype)
        if not bool(np.isfinite(value).all()):
            raise ValueError(f"{path} is refused: {own} has values that are NaN or infinite in {leaf.dtype}")
        placed[own] = jax.device_put(value, leaf.sharding)
    return unflatten(placed, like)


def _some(names: set[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"{', '.join(shown[:3])}{more} {'is' if len(shown) == 1 else 'are'}"

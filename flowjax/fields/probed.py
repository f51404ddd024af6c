"""What caches of whole calls look at: a cheap part of the network inside of a field."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import choose
from flowjax.fields.converted import Converted
from flowjax.fields.embedded import Embedded
from flowjax.flow import Field, Flow, network_times

PROBES = ("modulated", "block", "input")
"""What goes into the first block, what it adds, and the state itself."""


def flow_of(field: Any) -> Flow:
    """The flow inside of a field.

    Raises:
        ValueError: There is none.
    """
    while not isinstance(field, Flow):
        if not isinstance(getattr(field, "field", None), Field):
            raise ValueError(f"a {type(field).__name__} has no flow inside, whose network could be looked into")
        field = field.field
    return field


def check_probe(field: Any, what: str) -> None:
    """Raises ValueError unless the network inside of a field can be looked into."""
    choose("indicator", what, PROBES)
    if what == "input":
        return
    inner = field
    while not isinstance(inner, Flow):
        if isinstance(inner, Converted | Embedded):
            raise ValueError(
                f"{what} is looked at where the network itself is asked, and a {type(inner).__name__} asks elsewhere: "
                "take teacache(indicator=input), sada or magcache"
            )
        inner = getattr(inner, "field", None) or flow_of(inner)
    if not hasattr(inner.network, "probe"):
        raise ValueError(
            f"a {type(inner.network).__name__} has no probe(x, t, cond, what), which this decides by: "
            "networks such as flowjax.models.DiT have one; sada, magcache and teacache(indicator=input) need none"
        )


def probe(field: Any, what: str, t: Any, x: Array, cond: Any) -> Array:
    """What a network makes first of (t, x): its input ("input"), or what its `probe` gives, (B, ...)."""
    if what == "input":
        return x
    return flow_of(field).network.probe(x, network_times(t, x), cond, what).astype(x.dtype)


def no_probe(field: Any, what: str, x: Array) -> Array:
    """Zeros of the shape of `probe`: of one for each token of a network."""
    if what == "input":
        return jnp.zeros_like(x)
    return jnp.zeros(flow_of(field).network.block_cache(x.shape[0]).shape[1:], x.dtype)


def relative_change(now: Array, before: Array) -> Array:
    """Mean size of the change over the mean size of what was; over everything."""
    tiny = math.sqrt(jnp.finfo(before.dtype).tiny)
    return jnp.mean(jnp.abs(now - before)) / jnp.maximum(jnp.mean(jnp.abs(before)), tiny)

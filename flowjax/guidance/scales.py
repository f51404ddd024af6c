"""Scales that change with time or with the sample, by name: what a function of t is to Python, for recipes and configs.

A rule takes them in the place of a number: `CFG(scale=Ramp(scale=4.0))`, or as text `cfg(scale=ramp(scale=4))`. Those
of time are called with t, scalar or (B,), and answer in its shape.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax._checks import real
from flowjax._pytree import part, pytree
from flowjax.facts import fact


@fact("scale", "ramp", "a scale that grows like a power of t", cite="wang2024analysis", example=lambda: {"scale": 2.0})
@pytree
class Ramp:
    """A scale that grows from 1 at the noise, w(t) = 1 + (scale - 1) (power + 1) t^power, with the mean `scale`.

    Args:
        scale: mean over all times.
        power: 1 is linear; 0 is constant.

    Raises:
        ValueError: a number outside its range.

    Reference: Wang et al. (2404.13040): growing scales do better than constant ones.

    Example:
        >>> ramp = Ramp(scale=4.0)
        >>> [float(ramp(t)) for t in (0.0, 0.5, 1.0)]
        [1.0, 4.0, 7.0]
    """

    scale: Any
    power: Any = 1.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        real("(-inf, inf)", scale=self.scale)
        real("[0, inf)", power=self.power)

    def __call__(self, t: Any) -> Array:
        """The scale at t."""
        t = jnp.asarray(t, float) if not isinstance(t, jax.Array) else t
        return 1 + (self.scale - 1) * (self.power + 1) * t**self.power


@fact(
    "scale", "raised_cosine", "a scale that grows like 1 - cos", cite="wang2024analysis", example=lambda: {"scale": 2.0}
)
@pytree
class RaisedCosine:
    """A scale that grows from 1 at the noise along a cosine, w(t) = 1 + (scale - 1) (1 - cos(pi t)), of mean `scale`.

    Args:
        scale: mean over all times.

    Raises:
        ValueError: it is not finite.

    Reference: Wang et al. (2404.13040).

    Example:
        >>> [round(float(RaisedCosine(scale=4.0)(t)), 5) for t in (0.0, 0.5, 1.0)]
        [1.0, 4.0, 7.0]
    """

    scale: Any

    def __post_init__(self) -> None:
        """Checks the number."""
        real("(-inf, inf)", scale=self.scale)

    def __call__(self, t: Any) -> Array:
        """The scale at t."""
        return 1 + (self.scale - 1) * (1 - jnp.cos(math.pi * jnp.asarray(t)))


@fact(
    "scale",
    "table",
    "any function of t, from a table",
    example=lambda: {"times": [0.0, 1.0], "scales": [1.0, 3.0]},
)
@pytree
class Table:
    """A scale that is linear between the entries of a table, and constant before and behind them.

    Args:
        times: (n,), n at least 1, increasing, in [0, 1].
        scales: (n,).

    Raises:
        ValueError: other shapes, times that do not increase, or numbers outside their range.

    Example:
        >>> table = Table(times=[0.2, 0.4], scales=[1.0, 5.0])
        >>> [round(float(table(t)), 5) for t in (0.0, 0.3, 0.9)]
        [1.0, 3.0, 5.0]
    """

    times: Any = part("array")
    scales: Any = part("array")

    def __post_init__(self) -> None:
        """Checks the table."""
        if isinstance(self.times, jax.core.Tracer) or isinstance(self.scales, jax.core.Tracer):
            return
        for name, interval in (("times", "[0, 1]"), ("scales", "(-inf, inf)")):
            real(interval, **{name: np.asarray(getattr(self, name))})
        if np.ndim(self.times) != 1 or np.shape(self.times) != np.shape(self.scales) or not np.size(self.times):
            raise ValueError(f"times and scales must be (n,), got {np.shape(self.times)} and {np.shape(self.scales)}")
        if np.any(np.diff(np.asarray(self.times)) <= 0):
            raise ValueError(f"times must increase, got {list(self.times)}")

    def __call__(self, t: Any) -> Array:
        """The scale at t."""
        t = jnp.asarray(t)
        t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)
        return jnp.interp(t, jnp.asarray(self.times, t.dtype), jnp.asarray(self.scales, t.dtype))


@fact("scale", "each", "values for the samples of a recipe in turn", example=lambda: {"values": [1.0, 2.0, 4.0]})
@pytree
class Each:
    """Values for samples 0, 1, 2, ..., beginning again after the last: sample i has value i modulo n.

    Whoever knows the numbers of the samples (recipes) puts the values of a batch in its place, by `in_turn`. Where the
    numbers are not known, pass one value per sample, (B,), instead.

    Args:
        values: (n, ...), n at least 1.

    Raises:
        ValueError: no values, or some that are not finite; when it is used as it is.

    Example:
        >>> import flowjax as fj
        >>> rule = fj.guidance.CFG(scale=Each(values=[1.0, 2.0, 4.0]))
        >>> in_turn(rule, index=2, batch=4).scale.tolist()
        [4.0, 1.0, 2.0, 4.0]
    """

    values: Any = part("array")

    def __post_init__(self) -> None:
        """Checks the values."""
        if isinstance(self.values, jax.core.Tracer):
            return
        if not np.ndim(self.values) or not len(self.values):
            raise ValueError(f"values must be (n, ...) with n at least 1, got {self.values!r}")
        if not isinstance(self.values, jax.Array | np.ndarray):
            real("(-inf, inf)", values=np.asarray(self.values))

    def __call__(self, t: Any) -> Array:
        """Refuses: which samples?"""
        raise ValueError("Each has values for numbered samples: sample by a recipe, or give one value per sample, (B,)")

    def of(self, index: Any, batch: int) -> Array:
        """The values of samples index, ..., index + batch - 1, (batch, ...)."""
        values = jnp.asarray(self.values)
        return values[(index + jnp.arange(batch)) % values.shape[0]]


def in_turn(tree: Any, index: Any, batch: int) -> Any:
    """A field, rule or tree with the values of samples index, ..., index + batch - 1 in the place of every `Each`."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda part: isinstance(part, Each))
    if not any(isinstance(leaf, Each) for leaf in leaves):
        return tree
    return jax.tree.unflatten(structure, [leaf.of(index, batch) if isinstance(leaf, Each) else leaf for leaf in leaves])

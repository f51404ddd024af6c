"""Averages of the parameters over training: their laws, and averages of any length made afterwards from snapshots.

An average moves by a fraction of the way to the parameters theta(n) after step n = 1, 2, ...:

    average(n) = average(n - 1) + w(n) (theta(n) - average(n - 1))

Constant: w = 1 - decay. Warmup: w(n) = 1 - min(decay, n / (9 + n)). Power: w(n) = 1 - (1 - 1/n)^(g + 1), which makes
the weight of theta(k) in average(n) exactly (k^(g+1) - (k-1)^(g+1)) / n^(g+1), the integral over [k-1, k] of the
profile p(s) = (g + 1) s^g / n^(g+1). Its standard deviation, relative to n, is

    std^2 = (g + 1) / ((g + 2)^2 (g + 3)).

Profiles of stored power averages span others: the least-squares combination of the profiles in L2 gives the weights
with which the stored averages add up to one of another length.

References:
    Karras et al. (2024), Analyzing and Improving the Training Dynamics of Diffusion Models, section 3 and appendix C,
    arXiv:2312.02696.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from flowjax import _checks, specs
from flowjax.facts import fact


def _check_decay(decay: float) -> None:
    """Raises ValueError outside [0, 1)."""
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of the average must lie in [0, 1), got {decay}")


@fact("average", "constant", "the same decay at every step", example=lambda: {"decay": 0.999})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The same decay at every step; keeps the initial network for about 1 / (1 - decay) steps.

    Attributes:
        decay: In [0, 1).

    Raises:
        ValueError: `decay` is outside [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.training import ema
        >>> round(float(ema.Constant(decay=0.999).weight(jnp.int32(0))), 4)
        0.001
    """

    decay: float

    def __post_init__(self):
        _check_decay(self.decay)

    def weight(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Fraction of the way to the new parameters in the step that follows `step` finished ones."""
        return jnp.float32(1 - self.decay)


@fact("average", "warmup", "a decay that rises at first", example=lambda: {"decay": 0.999})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmup:
    """A decay that rises as min(decay, (1 + step) / (10 + step)), so that the initial network is soon forgotten.

    Attributes:
        decay: Largest decay, in [0, 1).

    Raises:
        ValueError: `decay` is outside [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.training import ema
        >>> law = ema.Warmup(decay=0.999)
        >>> [round(float(law.weight(jnp.int32(step))), 4) for step in (0, 100, 100_000)]
        [0.9, 0.0818, 0.001]
    """

    decay: float

    def __post_init__(self):
        _check_decay(self.decay)

    def weight(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Fraction of the way to the new parameters in the step that follows `step` finished ones."""
        count = step.astype(jnp.float32)
        return 1 - jnp.minimum(self.decay, (1 + count) / (10 + count))


@fact(
    "average", "power", "a length that grows with training", cite="karras2023analyzing", example=lambda: {"std": 0.05}
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Power:
    """An average whose length grows with training; the initial network has no weight in it.

    Attributes:
        std: Standard deviation of the profile relative to the length of training, in (0, 0.2886]; 0.05 and 0.1
            are a pair from which others are made afterwards.

    Raises:
        ValueError: `std` is outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.training import ema
        >>> law = ema.Power(std=0.1)
        >>> round(law.exponent, 2), float(law.weight(jnp.int32(0)))  # the first step replaces the initial network
        (6.94, 1.0)
    """

    std: float

    def __post_init__(self):
        if not 0 < self.std <= 0.2886:
            raise ValueError(f"the relative standard deviation of the average must lie in (0, 0.2886], got {self.std}")

    @property
    def exponent(self) -> float:
        """g > 0 of the profile s^g: the largest root of (g + 2)^2 (g + 3) = (g + 1) / std^2."""
        a = self.std**-2
        return float(np.roots([1.0, 7.0, 16.0 - a, 12.0 - a]).real.max())

    def weight(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Fraction of the way to the new parameters in the step that follows `step` finished ones."""
        # As 1 - (1 - 1/n)^(g+1) in float32 it would lose its digits for large n.
        return -jnp.expm1((self.exponent + 1) * jnp.log1p(-1 / (step.astype(jnp.float32) + 1)))


Average = Constant | Warmup | Power
Averages = Mapping[str, Average | tuple[Average, tuple[str, ...]]]
MAIN: Averages = {"average": Warmup(decay=0.999)}
"""The averages of a run by name, each a law, or a law and the labels of the networks that are averaged."""


def labelled(averages: Averages, networks: Iterable[str]) -> dict[str, tuple[Average, tuple[str, ...]]]:
    """Law and labels of each average.

    Raises:
        ValueError: A label that no network has.
    """
    known = tuple(networks)
    laws = {name: law if isinstance(law, tuple) else (law, known) for name, law in averages.items()}
    for name, (_, labels) in laws.items():
        if unknown := set(labels) - set(known):
            raise ValueError(f"average {name!r} is to follow {min(unknown)!r}, but networks are {', '.join(known)}")
    return laws


def from_config(laws: Any, objective: Any = None) -> dict[str, Average]:
    """The averages of a run, and "target" for an objective with a `target_average`.

    Args:
        laws: `config.train.averages`: name -> {"name": "Constant", "Warmup" or "Power", "options": its arguments}.
        objective: The training loss.

    Raises:
        ValueError: An unknown law, or an option that it does not have.
    """
    known: dict[str, Any] = {law.__name__: law for law in (Constant, Warmup, Power)}
    laws = laws.to_dict() if isinstance(laws, ConfigDict) else laws
    if not isinstance(laws, Mapping):
        raise ValueError(f"averages must be named laws, got {laws!r}")
    for name in {"average", "target"} & set(laws):
        raise ValueError(f"{name!r} is the name of an average that a run has itself; call this one otherwise")
    averages: dict[str, Average] = {}
    for name, law in laws.items():
        if not specs.is_spec(law):
            raise ValueError(f'average {name!r} must be {{"name": NAME, "options": {{...}}}}, got {law!r}')
        averages[name] = _checks.call(name, known[_checks.choose("average", law["name"], known)], law["options"])
    target = getattr(objective, "target_average", None)
    return averages if target is None else {**averages, "target": target}


def move(average: Any, network: Any, weight: Float[Array, ""]) -> Any:
    """The average a fraction `weight` of the way nearer to `network`; what is not floating is the network's."""

    def moved(old: Array, new: Array) -> Array:
        return old + weight.astype(old.dtype) * (new - old) if jnp.issubdtype(old.dtype, jnp.floating) else new

    return jax.tree.map(moved, average, network)


def _inner(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Integral of the product of two profiles given by (last step, exponent)."""
    (early, g), (late, h) = sorted((a, b))
    return (g + 1) * (h + 1) / (g + h + 1) * (early / late) ** h / late


def combination(snapshots: Sequence[tuple[int, float]], step: int, std: float) -> Float[np.ndarray, " n"]:
    """Weights, of sum 1, with which stored power averages add up to another one.

    Args:
        snapshots: (step, std) of each stored average, steps at least 1.
        step: The step at which the new average ends; at most the last stored one.
        std: Its relative standard deviation, in (0, 0.2886].

    Raises:
        ValueError: No snapshots, `step` behind the last one, or a standard deviation outside its range.
    """
    if not snapshots or not 1 <= step <= max(time for time, _ in snapshots):
        raise ValueError(f"step {step} is not within the {len(snapshots)} snapshots that are stored")
    known = [(float(time), Power(std=s).exponent) for time, s in snapshots]
    wanted = (float(step), Power(std=std).exponent)
    gram = np.array([[_inner(a, b) for b in known] for a in known])
    # Profiles differ in size by the ratio of their steps; with unit norms the cut-off of lstsq treats them alike.
    size = np.sqrt(np.diag(gram))
    right = np.array([_inner(a, wanted) for a in known]) / size
    weights = np.linalg.lstsq(gram / size / size[:, None], right, rcond=1e-13)[0] / size
    return weights / weights.sum()


def snapshot_items(laws: Mapping[str, tuple[Average, tuple[str, ...]]], averages: Mapping[str, Any]) -> dict[str, Any]:
    """The power averages among `averages`, by the name under which they are stored."""
    return {f"power-{law.std}": averages[name] for name, (law, _) in laws.items() if isinstance(law, Power)}

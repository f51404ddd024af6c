"""Distributions of training times t in (0, 1); t = 0 is noise, t = 1 data."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import real
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath


@runtime_checkable
class TimeLaw(Protocol):
    """A distribution of training times: any object with this method, of a class that inherits and registers nothing.

    A law whose times stay below 1 may say so in an attribute `end`: objectives whose target has no bound at t = 1 then
    leave its times as they are. Numbers of a law that JAX knows as a pytree may change without a new compilation; those
    of a plain class are constants of the compiled program, which is made anew when they have changed.

    Example:
        >>> class Late:
        ...     def sample(self, key):
        ...         return jnp.sqrt(jax.random.uniform(key, (), jnp.float32))
        >>> law = Shifted(Late(), shift=3.0)
        >>> law.sample(jax.random.key(0)).shape
        ()
    """

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time in [0, 1]."""


@pytree
class _Own:
    """A law of a class that JAX does not know, by its method: compiled code then notices what the law holds."""

    sample: Callable[[Key[Array, ""]], Float[Array, ""]]

    @property
    def end(self) -> Any:
        """The law's end, if it has one."""
        return getattr(getattr(self.sample, "__self__", None), "end", 1.0)


def check_law(times: Any) -> TimeLaw:
    """The law, in a form that a pytree can hold.

    Raises:
        ValueError: no object with a method `sample`.
    """
    if isinstance(times, type) or not isinstance(times, TimeLaw) or not callable(times.sample):
        raise ValueError(f"times must be a law with sample(key), such as Uniform(), got {times!r}")
    return _Own(sample=times.sample) if jax.tree_util.all_leaves([times]) else times


@fact("time_law", "uniform", "uniform training times")
@pytree
class Uniform:
    """Uniform times on [start, end].

    Attributes:
        start: Earliest time, in [0, 1].
        end: Latest time, in [start, 1].

    Raises:
        ValueError: A number outside its range.

    Example:
        >>> import jax
        >>> from flowjax.objectives.times import Uniform
        >>> 0.2 <= float(Uniform(start=0.2, end=0.6).sample(jax.random.key(0))) < 0.6
        True
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        """Checks the range."""
        real("[0, 1]", start=self.start, end=self.end)
        if all(isinstance(value, int | float) for value in (self.start, self.end)) and self.start > self.end:
            raise ValueError(f"times need start <= end, got start={self.start} and end={self.end}")

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        # Affine map of [0, 1) rather than minval and maxval, so that the bounds may be traced.
        return self.start + (self.end - self.start) * jax.random.uniform(key, (), jnp.float32)


@fact("time_law", "logit_normal", "normal in logit(t)", cite="esser2024scaling")
@pytree
class LogitNormal:
    """Times t = sigmoid(mean + std n), n ~ N(0, 1): mass in the middle of the path.

    A positive mean moves the mass towards the data. Papers that count time from data to noise have the other
    sign.

    Attributes:
        mean: Mean of logit(t).
        std: Standard deviation of logit(t), not negative.

    Raises:
        ValueError: A number outside its range.

    References:
        Esser et al. (2024), Scaling Rectified Flow Transformers, section 3.1, arXiv:2403.03206.

    Example:
        >>> import jax
        >>> from flowjax.objectives.times import LogitNormal
        >>> round(float(LogitNormal(mean=1.0, std=0.0).sample(jax.random.key(0))), 3)  # sigmoid(1), the median
        0.731
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        real("(-inf, inf)", mean=self.mean)
        real("[0, inf)", std=self.std)

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (), jnp.float32))


@fact("time_law", "normal_log_snr", "normal in log(alpha/sigma)", cite="karras2022elucidating")
@pytree
class NormalLogSNR:
    """Times at which log(alpha/sigma) = mean + std n, n ~ N(0, 1), on a path.

    Papers that have ln(noise level) ~ N(P_mean, P_std^2) for data of standard deviation 0.5 mean mean = -P_mean,
    std = P_std for such data, and mean = ln(s / 0.5) - P_mean for data of standard deviation s.

    Attributes:
        path: The path.
        mean: Mean of log(alpha/sigma).
        std: Standard deviation of it, not negative.

    Raises:
        ValueError: A number outside its range.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models, section 5,
        arXiv:2206.00364.

    Example:
        >>> import flowjax as fj, jax
        >>> from flowjax.objectives.times import NormalLogSNR
        >>> round(float(NormalLogSNR(path=fj.paths.Trig(), mean=0.0, std=0.0).sample(jax.random.key(0))), 3)
        0.5
    """

    path: GaussianPath = part("path")
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        real("(-inf, inf)", mean=self.mean)
        real("[0, inf)", std=self.std)

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        return self.path.time(self.mean + self.std * jax.random.normal(key, (), jnp.float32))


@fact("time_law", "mode", "a mode in the middle or at the ends", cite="esser2024scaling")
@pytree
class Mode:
    """Times with a mode in the middle (scale > 0) or at the ends (scale < 0).

    r = 1 - u - scale (cos^2(pi u / 2) - 1 + u) for uniform u is the noise time, t = 1 - r.

    Attributes:
        scale: In [-1, 2 / (pi - 2)], where r falls with u; 0 is uniform.

    Raises:
        ValueError: A scale outside its range.

    References:
        Esser et al. (2024), section 3.1, equation 20, arXiv:2403.03206.

    Example:
        >>> import jax
        >>> from flowjax.objectives.times import Mode, Uniform
        >>> key = jax.random.key(0)
        >>> bool(Mode(scale=0.0).sample(key) == Uniform().sample(jax.random.clone(key)))
        True
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        """Checks the scale."""
        real("[-1, 1.7519]", scale=self.scale)

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        u = jax.random.uniform(key, (), jnp.float32)
        return u + self.scale * (jnp.cos(jnp.pi / 2 * u) ** 2 - 1 + u)


@fact("time_law", "cos_map", "the law of a cosine schedule", cite="esser2024scaling")
@pytree
class CosMap:
    """Times whose log signal-to-noise ratio on straight lines has the law of a cosine schedule.

    r = 1 - 1 / (tan(pi u / 2) + 1) for uniform u is the noise time, t = 1 - r.

    References:
        Esser et al. (2024), section 3.1, equation 21, arXiv:2403.03206.

    Example:
        >>> import jax
        >>> from flowjax.objectives.times import CosMap
        >>> 0 <= float(CosMap().sample(jax.random.key(0))) <= 1
        True
    """

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        angle = jnp.pi / 2 * jax.random.uniform(key, (), jnp.float32)
        return jnp.cos(angle) / (jnp.sin(angle) + jnp.cos(angle))


@fact(
    "time_law",
    "shifted",
    "another law moved towards the noise",
    cite="esser2024scaling",
    example=lambda: {"times": LogitNormal(), "shift": 3.0},
)
@pytree
class Shifted:
    """Times of another law, moved towards the noise: r -> shift r / (1 + (shift - 1) r) with r = 1 - t.

    Attributes:
        times: The law.
        shift: Positive; `flowjax.times.resolution_shift` for images of another size, 3 in SD3 at 1024^2.

    Raises:
        ValueError: `times` draws nothing, or a shift that is not positive.

    References:
        Esser et al. (2024), section 5.3.2, equation 23, arXiv:2403.03206.

    Example:
        >>> import jax
        >>> from flowjax.objectives.times import LogitNormal, Shifted
        >>> half = LogitNormal(mean=0.0, std=0.0)
        >>> float(Shifted(half, shift=3.0).sample(jax.random.key(0)))  # 1 - 3 r / (1 + 2 r) with r = 1/2
        0.25
    """

    positional = ("times",)

    times: TimeLaw = part("time_law")
    shift: float  # type: ignore[misc]

    def __post_init__(self) -> None:
        """Checks both."""
        object.__setattr__(self, "times", check_law(self.times))
        real("(0, inf)", shift=self.shift)

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        r = 1 - self.times.sample(key)
        return 1 - self.shift * r / (1 + (self.shift - 1) * r)

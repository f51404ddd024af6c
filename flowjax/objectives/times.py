"""Distributions of training times t in (0, 1); t = 0 is noise, t = 1 data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import real
from flowjax._pytree import part, pytree


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

    times: Uniform | LogitNormal | Mode | CosMap = part("time_law")
    shift: float  # type: ignore[misc]

    def __post_init__(self) -> None:
        """Checks both."""
        if not hasattr(self.times, "sample"):
            raise ValueError(f"times must be a law such as Uniform(), got {self.times!r}")
        real("(0, inf)", shift=self.shift)

    def sample(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one float32 time."""
        r = 1 - self.times.sample(key)
        return 1 - self.shift * r / (1 + (self.shift - 1) * r)


TimeLaw = Uniform | LogitNormal | Mode | CosMap | Shifted

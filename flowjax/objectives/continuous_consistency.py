"""Continuous-time consistency: the limit of neighbouring times, along the network's own derivative.

On the trigonometric path, with the angle r = pi/2 (1 - t), x = cos(r) x1 + sin(r) x0 and F the network's dx/dr (its
velocity times -2/pi), the consistency function is f = cos(r) x - sin(r) F. For u = dx/dr of the example, or of a
teacher, and dF/dr the derivative along it,

    g = cos(r) df/dr = -cos(r)^2 (F - u) - q cos(r) sin(r) (x + dF/dr),   q = min(1, step / warmup),

    loss = mean |F - stop_gradient(F + g / (|g| + c))|^2.

Its gradient is that of a consistency loss between r and r - dr, divided by dr and weighted by 1 / tan(r), up to the
size of the tangent, which is made alike for all examples.

References:
    Lu and Song (2024), Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, section 4 and
    algorithm 1, arXiv:2410.11081.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import choose, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field
from flowjax.objectives.flow_matching import Draws, check_answer, make_draws
from flowjax.objectives.spans import DERIVATIVES, along, total
from flowjax.objectives.teacher import check_teacher
from flowjax.objectives.times import NormalLogSNR, TimeLaw, check_law
from flowjax.paths import GaussianPath, Trig
from flowjax.paths.base import check_time_and_state, expand


@pytree
class WarmDraws(Draws):
    """Draws of a step whose tangents are being warmed up.

    Attributes:
        warm: q, the share of the second part of the tangent, in [0, 1].

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.ContinuousConsistency(path=fj.paths.Trig(), warmup=100)
        >>> float(objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))}, step=25).warm)
        0.25
    """

    warm: Float[Array, ""]  # type: ignore[misc]


@fact(
    "objective",
    "continuous_consistency",
    "a consistency function from its own derivative along the flow",
    cite="lu2024simplifying",
    tasks=("generation", "distillation"),
)
@pytree
class ContinuousConsistency:
    """The sCM objective, from the data alone or from a teacher, for networks of velocities on the trigonometric path.

    The authors' learned weighting of times is left out: normalised tangents weigh all times alike. Networks should have
    moderate frequencies in t (`time_scale=1`). Sampled by `flowjax.solvers.Consistency`.

    Attributes:
        path: `Trig()`.
        times: Law of times; the default is that of the authors for data of standard deviation 0.5.
        warmup: Steps until the tangent is complete; 0 is from the start.
        c: Added to the tangent's length before it is divided by it, positive; None leaves the tangent as it is.
        derivative: "forward", or "central" for networks whose kernels have no forward derivative.
        teacher: A field without memory between evaluations, of the same path; None learns from the data.

    Raises:
        ValueError: Another path, a number outside its range, or no teacher.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = ContinuousConsistency(path=fj.paths.Trig())
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))})
        >>> loss, metrics = objective.loss(lambda x, t, cond: -x, draws)
        >>> loss.shape, sorted(metrics)
        ((4,), ['tangent', 'velocity_mse'])
    """

    prediction = "velocity"

    path: GaussianPath = part("path")
    times: TimeLaw = part("time_law", NormalLogSNR(path=Trig(), mean=1.0, std=1.4))
    warmup: int = static(0)
    c: float | None = 0.1
    derivative: str = static("forward")
    teacher: Field | None = part("field", None)

    def __post_init__(self) -> None:
        """Checks the options."""
        if not isinstance(self.path, Trig):
            raise ValueError(f"continuous consistency is for the path Trig(), got {type(self.path).__name__}")
        whole("[0, inf)", warmup=self.warmup)
        real("(0, inf)", c=1.0 if self.c is None else self.c)
        choose("derivative", self.derivative, DERIVATIVES)
        object.__setattr__(self, "times", check_law(self.times))
        if self.teacher is not None:
            check_teacher(self.teacher)
            if self.teacher.path != self.path:
                raise ValueError(f"the teacher's path is {self.teacher.path!r}, that of the objective {self.path!r}")

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> WarmDraws:
        """Draws noise and times; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Of training, for the warm-up.
        """
        draws = make_draws(key, batch, self.times, 0.0, None)
        warm = jnp.minimum(jnp.asarray(step, jnp.float32) / self.warmup, 1) if self.warmup else jnp.float32(1)
        return WarmDraws(**vars(draws), warm=warm)

    def loss(self, networks: Callable[..., Array], draws: WarmDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Squared distance to F + g.

        Args:
            networks: The network, called as `networks(x, t, cond)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"tangent": |g|, "velocity_mse": the mean square of F - u in
            velocities, (B,)}.

        Raises:
            ValueError: The network's answer has another shape than the data.
        """
        draws = dataclasses.replace(draws, t=check_time_and_state(draws.t, draws.x1))
        x = self.path.interpolate(draws.t, draws.x0, draws.x1)
        if self.teacher is None:
            velocity = self.path.conditional_velocity(draws.t, draws.x0, draws.x1)
        else:
            velocity = jax.lax.stop_gradient(self.teacher.velocity(draws.t, x, draws.cond))
        answer, slope = along(networks, draws, x, velocity, self.derivative)
        check_answer(answer, x)
        turn = -2 / math.pi  # dt/dr
        value, u, slope = turn * answer, turn * velocity, turn**2 * slope.astype(x.dtype)
        cos, sin = (expand(weight, x) for weight in (self.path.alpha(draws.t), self.path.sigma(draws.t)))
        # A constant: the loss pulls along the tangent, a gradient of the tangent would pull elsewhere.
        still = jax.lax.stop_gradient(value)
        g = -(cos**2) * (still - u) - jnp.asarray(draws.warm, x.dtype) * cos * sin * (x + slope)
        size = jnp.sqrt(total(g))
        scaled = g if self.c is None else g / expand(size + self.c, x)
        loss = jnp.mean((value - still - scaled) ** 2, axis=tuple(range(1, x.ndim)))
        return loss, {"tangent": size, "velocity_mse": total(answer - velocity) / x[0].size}

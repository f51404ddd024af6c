"""Phased rectified diffusion: in each phase of the path a student learns the one step that a teacher takes many for.

Data are noised to the beginning s of a phase, and the teacher leads the state to its end e. The two states fix a noise
and a datum of their own,

    x_s = alpha_s m + sigma_s n,   x_e = alpha_e m + sigma_e n,

between which the phase is the path itself. The student is asked at a time t of the phase for x_e.

References:
    Wang et al. (2024), Rectified Diffusion: Straightness Is Not Your Need in Rectified Flow, section 3.4,
    arXiv:2410.07303.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax._checks import COUNT, choose, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field
from flowjax.objectives.base import with_keys
from flowjax.objectives.distances import METRICS, distance
from flowjax.objectives.flow_matching import Draws, check_answer, make_draws, off_ends
from flowjax.objectives.teacher import check_teacher
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import GaussianPath
from flowjax.paths.base import check_prediction, check_time_and_state, expand
from flowjax.times import check_times, uniform


@fact(
    "objective",
    "phased_rectified",
    "one step for each phase of a teacher's path",
    cite="wang2024rectified",
    tasks=("distillation", "adapters"),
)
@pytree
class PhasedRectified:
    """Trains a student to cross each phase of the teacher's path in one step of DDIM.

    With the phase [s, e] that a drawn time t lies in, x_s on the path between noise and an example, and x_e where
    `steps` DDIM steps of the teacher lead it, the student predicts x_e from the state at t between both:

        x_e_hat = alpha_e x1_hat + sigma_e x0_hat,   loss = mean of sqrt((x_e_hat - x_e)^2 + c^2) - c.

    Sampled by `ddim` (`euler` on the linear path) with as many steps as there are phases, or a multiple. One phase is
    `Rectified` on pairs that are drawn as they are needed.

    Attributes:
        teacher: A field without memory between evaluations: a `Flow`, or one inside guidance and other fields.
        prediction: What the student outputs.
        phases: Number of phases, at least 1.
        steps: DDIM steps of the teacher in each phase, at least 1.
        grid: All phases * steps + 1 times of the teacher, increasing; equal steps from 0 to 1 by default.
        times: Distribution of training times.
        metric: "pseudo_huber" or "l2".
        c: Error from which "pseudo_huber" is no longer quadratic, at least 0.

    Raises:
        ValueError: No field, one with a memory or of a two-sided path, an unknown prediction or metric, a number
            outside its range, a grid of another length, or one that begins where the teacher does not determine data.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> objective = fj.objectives.PhasedRectified(teacher=teacher, phases=2, steps=3)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.ones((4, 2))})
        >>> objective.loss(lambda x, t, cond: -x, draws)[0].shape
        (4,)
    """

    teacher: Field = part("field")
    prediction: str = static("velocity")
    phases: int = static(4)
    steps: int = static(10)
    grid: Any = part("array", None)
    times: TimeLaw = part("time_law", Uniform())
    metric: str = static("pseudo_huber")
    c: float = 1e-3

    def __post_init__(self) -> None:
        """Checks the options."""
        check_teacher(self.teacher)
        check_prediction("prediction", self.prediction)
        whole(COUNT, phases=self.phases, steps=self.steps)
        choose("metric", self.metric, METRICS)
        real("[0, inf)", c=self.c)
        object.__setattr__(self, "times", check_law(self.times))
        if self.grid is None:
            object.__setattr__(self, "grid", uniform(self.phases * self.steps))
        if isinstance(self.grid, np.ndarray | list | tuple):  # not when JAX rebuilds the tree around something else
            grid = check_times(self.grid)
            if len(grid) != self.phases * self.steps + 1 or not (np.diff(grid) > 0).all():
                raise ValueError(
                    f"{self.phases} phases of {self.steps} steps need {self.phases * self.steps + 1} increasing times "
                    f"in grid, got {len(grid)}"
                )
            self.teacher.check(grid[:-1], "data")
            object.__setattr__(self, "grid", grid)

    @property
    def path(self) -> GaussianPath:
        """The teacher's, and so the student's."""
        return self.teacher.path

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> Draws:
        """Draws noise and times; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        draws = make_draws(key, batch, self.times, 0.0, None)
        draws = off_ends(draws, *(self.path.determines(self.prediction, "data", t) for t in (0.0, 1.0)))
        grid = jnp.asarray(self.grid, draws.t.dtype)
        return dataclasses.replace(draws, t=jnp.clip(draws.t, grid[0], grid[-1]))

    def loss(self, networks: Callable[..., Array], draws: Draws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Distance of the student's step to the end of the phase to the teacher's.

        Args:
            networks: The student, called as `networks(x, t, cond)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"mse": the mean square, (B,)}.

        Raises:
            ValueError: The student's answer has another shape than the data.
        """
        t = check_time_and_state(draws.t, draws.x1)
        grid = jnp.asarray(self.grid, t.dtype)
        phase = jnp.searchsorted(grid[:: self.steps][1:-1], t, side="right")
        times = np.arange(self.phases)[:, None] * self.steps + np.arange(self.steps + 1)
        ways = grid[times][phase]  # (B, steps + 1)
        begin, end = ways[:, 0], ways[:, -1]
        first = self.path.interpolate(begin, draws.x0, draws.x1)
        # Only the student moves towards the other, also where they share weights (adapters).
        last = jax.lax.stop_gradient(self._teach(first, ways, draws.cond))
        x = self._between(t, begin, end, first, last)
        value = with_keys(networks, draws.seeds)(x, t, draws.cond)
        check_answer(value, draws.x1)
        data = self.path.convert(value, given=self.prediction, to="data", t=t, x=x)
        error = self.path.ddim_step(t, end, x, data) - last
        return distance(self.metric, error, self.c), {"mse": distance("l2", error, 0.0)}

    def _teach(self, x: Array, ways: Float[Array, "B T"], cond: Any) -> Array:
        """Where DDIM steps of the teacher lead x."""

        def one(x: Array, times: tuple[Array, Array]) -> tuple[Array, None]:
            data, _ = self.teacher.evaluate(times[0], x, cond, self.teacher.init(x), to="data")
            return self.path.ddim_step(*times, x, data), None

        return jax.lax.scan(one, x, (ways.T[:-1], ways.T[1:]))[0]

    def _between(self, t: Array, begin: Array, end: Array, first: Array, last: Array) -> Array:
        """The state at t of the path on which `first` lies at `begin`, and `last` at `end`."""
        (a, b), (c, d), (alpha, sigma) = (
            tuple(expand(coefficient(u), first) for coefficient in (self.path.alpha, self.path.sigma))
            for u in (begin, end, t)
        )
        determinant = c * b - a * d  # positive: alpha / sigma rises
        return alpha * (b * last - d * first) / determinant + sigma * (c * first - a * last) / determinant

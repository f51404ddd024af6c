"""Consistency training and distillation: a function that is the same at neighbouring times, on finer and finer grids.

Without a teacher both states are of one example, x_t = alpha(t) x1 + sigma(t) x0 and the same at the next time e: as
the gap shrinks this trains what the exact step x_e of the flow would. With a teacher x_e is one step of its flow. Then

    loss = 1/(e - t) (sqrt(S + c^2) - c),   S = sum |f(x_t, t) - stop_gradient(f(x_e, e))|^2.

References:
    Song et al. (2023), Consistency Models, algorithms 2 and 3, arXiv:2303.01469.
    Song and Dhariwal (2023), Improved Techniques for Training Consistency Models, section 3, arXiv:2310.14189.
"""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax._checks import COUNT, choose, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field
from flowjax.objectives.self_consistency import SelfConsistency, ddim
from flowjax.objectives.spans import SpanDraws, total
from flowjax.paths.base import expand
from flowjax.times import uniform


@fact(
    "objective",
    "consistency",
    "a consistency function from the data alone, or from small steps of a teacher",
    cite="song2023improved",
    example=lambda: {"grid": "uniform(n=40)"},
    tasks=("generation", "distillation"),
)
@pytree
class Consistency(SelfConsistency):
    """Improved consistency training, or with a teacher consistency distillation.

    Further attributes are those of `SelfConsistency`. The authors of the improved training take grids of 10, 20, ...,
    1,280 steps, the times of the EDM grid with the law `normal_log_snr(mean=1.1, std=2)`, and no average for targets.

    Attributes:
        curriculum: Number of steps of the first grid, and after how many steps of training it doubles, each time, up to
            `grid`, of which coarser ones take every second, fourth, ... time; None is `grid` from the start.
        c: Of the pseudo-Huber distance, positive; None is 0.00054 sqrt(d) for examples of d numbers.
        teacher: A field without memory between evaluations; None is consistency training.
        step: How the teacher goes on: "heun", or "ddim", for velocities that are infinite at an end.

    Raises:
        ValueError: A number outside its range, a grid that no doubling leads to, a teacher of another path or one that
            is not defined at a time of the grid.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = Consistency(path=fj.paths.Linear(), grid=fj.times.uniform(40), curriculum=(10, 100))
        >>> batch = {"x1": jnp.zeros((4, 2))}
        >>> gaps = [objective.draw(jax.random.key(0), batch, step=k) for k in (99, 100, 200, 900)]
        >>> [round(float((draws.end - draws.t)[0]), 3) for draws in gaps]
        [0.1, 0.05, 0.025, 0.025]
    """

    grid: Any = part("times", tuple(uniform(1280).tolist()), static=True)
    curriculum: tuple[int, int] | None = static(None)
    c: float | None = None
    teacher: Field | None = part("field", None)
    step: str = static("heun")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        choose("step", self.step, ("heun", "ddim"))
        real("(0, inf)", c=1.0 if self.c is None else self.c)
        if self.curriculum is not None:
            first, every = self.curriculum
            whole(COUNT, **{"curriculum[0]": first, "curriculum[1]": every})
            ratio, rest = divmod(len(self.grid) - 1, first)
            if rest or ratio & (ratio - 1) or not ratio:
                raise ValueError(
                    f"curriculum={tuple(self.curriculum)}: doubling {first} steps does not lead to the "
                    f"{len(self.grid) - 1} of grid"
                )
            object.__setattr__(self, "curriculum", (first, every))
        if self.teacher is not None:
            self.check_path(self.teacher)
            self.teacher.check(self.grid, "velocity") if self.step == "heun" else self.teacher.check(
                self.grid[:-1], "v"
            )
            if self.step == "heun" and not self.path.has_velocity(self.grid[-1]):
                raise ValueError(f"the velocity of {type(self.path).__name__} is infinite at the end: take step='ddim'")

    def stride(self, step: Any) -> Int[Array, ""] | int:
        """Halves after every stage of the curriculum."""
        if self.curriculum is None:
            return 1
        first, every = self.curriculum
        doublings = round(math.log2((len(self.grid) - 1) // first))
        return jnp.left_shift(1, jnp.maximum(doublings - jnp.asarray(step, jnp.int32) // every, 0))

    def neighbour(self, draws: SpanDraws, x: Array) -> tuple[Array, dict[str, Array]]:
        """The example at `end`, or the teacher's step."""
        t, end, teacher = draws.t, draws.end, self.teacher
        if teacher is None:
            return self.path.interpolate(end, draws.x0, draws.x1), {}
        if self.step == "ddim":
            return ddim(teacher, t, end, x, draws.cond), {}
        gap, slope = expand(end - t, x), teacher.velocity(t, x, draws.cond)
        return x + gap / 2 * (slope + teacher.velocity(end, x + gap * slope, draws.cond)), {}

    def measure(self, error: Array, draws: SpanDraws) -> Float[Array, " B"]:
        """The pseudo-Huber distance of whole examples over the gap."""
        c = 0.00054 * math.sqrt(error[0].size) if self.c is None else self.c
        squares = total(error)
        return squares / (jnp.sqrt(squares + c**2) + c) / (draws.end - draws.t)

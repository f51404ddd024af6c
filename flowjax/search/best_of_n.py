"""Best-of-N: independent samples, and the best of them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths.sde import as_diffusion
from flowjax.search.base import Draws, Seen, Stochastic, Way


@fact(
    "search",
    "best_of_n",
    "the best of independent samples",
    cite="ma2025inference",
    example=lambda: {"budget": 30, "steps": 3},
)
@pytree
class BestOfN(Stochastic):
    """The best of n = floor(budget / N) independent samples of N steps.

    By default they are those of Euler's method on the field itself. The reward is asked of the data predictions at
    t_{N-1}, which are the samples that Euler's last step on a straight path makes.

    Args:
        budget: most network evaluations of one result.
        steps: N of the grid.
        times: a grid, or N + 1 times.
        path: path to sample along; None is the field's own.
        diffusion: eps(t); 0 is the ODE.
        dps: strength of gradient steps, see `flowjax.search.base.Stochastic`.
        dps_over: what gradients are divided by.
        finish: DDIM steps from the winner to t = 1, within the budget.

    Raises:
        ValueError: a budget below N.

    Reference: Ma et al., Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps (2501.09732),
    "random search".

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.BestOfN(budget=500, steps=10)
        >>> search.starts, search.evaluations, search.reward_calls
        (50, 500, 50)
    """

    times: Any = static("uniform")
    diffusion: Any = part("diffusion", 0.0, static=True)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        self.need(self.steps, f"one sample of {self.steps} steps")

    @property
    def starts(self) -> int:
        """All samples."""
        return self.spent // self.steps

    rows = starts

    @property
    def judged(self) -> np.ndarray:
        """The last predictions."""
        return np.arange(self.steps) == self.steps - 1

    def begin(self, way: Way, draws: Draws, seen: Seen) -> Seen:
        """All samples."""
        return seen

    def propose(self, way: Way, draws: Draws, state: Seen, number: Array) -> tuple[Array, Array]:
        """A step of all samples."""
        to, row = jnp.broadcast_to(way.times[number + 1], state.t.shape), jnp.arange(self.rows, dtype=jnp.int32)
        noise = None if as_diffusion(self.diffusion) == as_diffusion(0.0) else draws.normal(row, row * 0 + number + 1)
        return to, way.move(state, to, noise)

    def update(self, way: Way, draws: Draws, state: Seen, seen: Seen, number: Array) -> Seen:
        """All samples."""
        return seen

    def answer(self, draws: Draws, state: Seen) -> Seen:
        """The best."""
        return state.take(jnp.argmax(state.reward))

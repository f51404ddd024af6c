"""CoDe: SVDD with a selection after each block of steps (Singh et al., 2502.00968)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import _checks
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths import VP
from flowjax.search.base import Draws, Seen, Stochastic, Way


@fact(
    "search",
    "code",
    "blockwise control: a selection after each block of steps",
    cite="singh2025code",
    example=lambda: {"budget": 30, "steps": 4},
)
@pytree
class CoDe(Stochastic):
    """K particles in each of B searches, of which the best takes the place of all after each block of L steps.

    Between selections every particle goes on by itself, so that the reward is asked once in L steps. The last step ends
    the last block. With L = 1 it is SVDD. K = floor((budget - B) / (B (N - 1))).

    Args:
        budget: most network evaluations of one result.
        searches: B.
        block: L.
        steps: N of the grid.
        times: a grid, or N + 1 times.
        path: path to sample along; None is the field's own.
        diffusion: eps(t); "g_square" is g = 3 r^2.
        dps: strength of gradient proposals, see `flowjax.search.base.Stochastic`.
        dps_over: what gradients are divided by.
        finish: DDIM steps from the winner to t = 1, within the budget.

    Raises:
        ValueError: a budget too small for one particle.

    Reference: Singh et al., CoDe: Blockwise Control for Denoising Diffusion Models (2502.00968).

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.CoDe(budget=500, block=2)
        >>> search.rows, search.evaluations, search.reward_calls
        (54, 488, 270)
    """

    searches: int = static(2)
    block: int = static(2)
    path: Any = part("path", VP())

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _checks.whole(_checks.COUNT, searches=self.searches, block=self.block)
        self.need(self.searches * self.steps, f"{self.searches} searches of {self.steps} steps")

    @property
    def particles(self) -> int:
        """K."""
        return (self.spent - self.searches) // (self.searches * (self.steps - 1))

    @property
    def starts(self) -> int:
        """One state of each search."""
        return self.searches

    @property
    def rows(self) -> int:
        """All particles."""
        return self.searches * self.particles

    @property
    def judged(self) -> np.ndarray:
        """At the end of each block."""
        step = np.arange(self.steps)
        return (step > 0) & ((step % self.block == 0) | (step == self.steps - 1))

    def begin(self, way: Way, draws: Draws, seen: Seen) -> Seen:
        """K copies of each."""
        return seen.repeat(self.particles)

    def propose(self, way: Way, draws: Draws, state: Seen, number: Array) -> tuple[Array, Array]:
        """A step of all particles."""
        search, place = jnp.divmod(jnp.arange(self.rows, dtype=jnp.int32), self.particles)
        to = jnp.broadcast_to(way.times[number + 1], state.t.shape)
        return to, way.move(state, to, draws.normal(search, 1 + number * self.particles + place))

    def update(self, way: Way, draws: Draws, state: Seen, seen: Seen, number: Array) -> Seen:
        """The best of each search in the place of all, at the end of a block."""
        size = self.particles
        best = jnp.repeat(jnp.argmax(seen.reward.reshape(self.searches, size), axis=1), size)
        row = jnp.arange(self.rows)
        return seen.take(jnp.where(jnp.asarray(self.judged)[number + 1], row // size * size + best, row))

    def answer(self, draws: Draws, state: Seen) -> Seen:
        """The best of the last block."""
        return state.take(jnp.argmax(state.reward))

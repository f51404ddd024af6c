"""Sequential Monte Carlo with a tempered reward (Kim, Kim and Park, 2501.05803)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import _checks
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths import VP
from flowjax.search.base import Draws, Seen, Stochastic, Way, falling
from flowjax.solvers.options import check_choice


@pytree
class Cloud:
    """Particles of SMC.

    Attributes:
        here: the particles of the last complete step.
        weights: their log weights.
        parents: from which of them the particles of the next step come.
        carried: log weights that these begin with.
        new: particles of the next step, as far as they are made.
        new_weights: their log weights.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> from flowjax.search.base import Draws, Seen
        >>> zero, draws = jnp.zeros(10), Draws(key=jax.random.key(0), event=())
        >>> seen = Seen(t=zero, x=zero, velocity=zero, data=zero, reward=jnp.where(jnp.arange(10) == 7, 9.0, 0.0))
        >>> cloud = fj.search.SMC(budget=30, steps=3, temperature=0.5).begin(None, draws, seen)
        >>> set(cloud.parents.tolist())
        {7}
    """

    here: Seen
    weights: Array
    parents: Array
    carried: Array
    new: Seen
    new_weights: Array


def _multinomial(key: Any, weights: Array) -> Array:
    """As many indices as there are log weights, drawn by these; of none with weight 0."""
    law = jax.nn.softmax(weights)
    sums = jnp.cumsum(law)
    uniform = jax.random.uniform(key, weights.shape, weights.dtype) * sums[-1]
    last = jnp.max(jnp.where(law > 0, jnp.arange(law.size, dtype=jnp.int32), 0))  # beyond it by rounding only
    return jnp.minimum(jnp.searchsorted(sums, uniform, side="right").astype(jnp.int32), last)


@fact(
    "search",
    "smc",
    "sequential Monte Carlo on the tempered reward of data predictions",
    cite="kim2025test",
    example=lambda: {"budget": 30, "steps": 3},
)
@pytree
class SMC(Stochastic):
    """Weighted particles, which are drawn again by their weights before each step.

    With rewards r_k of the data predictions at step k, weights begin with exp(r_0 / lam) and grow by
    exp((r_k - r_{k-1}) / lam) in each step of the SDE. Where the effective number 1 / sum w^2 is below `threshold` of
    the particles they are drawn again (multinomially), and weights begin anew at 1. Proposals are those of the SDE of
    the flow, without a correction. For many particles and steps they are samples of p(x1) exp(r(x1) / lam).

    Args:
        budget: most network evaluations of one result; there are floor(budget / N) particles.
        temperature: lam, positive.
        threshold: in (0, 1]; 1 draws before every step, unless all weights are equal.
        pick: the answer: "reward", the particle with the largest one; "weight", that with the largest weight, which
            right after drawing is the one whose reward has grown most (the authors' programs do so); "sample", one
            drawn by the weights.
        adaptive: more particles in the first steps: numbers that fall by the same from step to step, with the same sum;
            needs threshold=1.
        at_once: particles evaluated together, which divide their numbers; None is all, and 1 with `adaptive`.
        steps: N of the grid.
        times: a grid, or N + 1 times.
        path: path to sample along; None is the field's own.
        diffusion: eps(t); "g_square" is g = 3 r^2.
        dps: strength of gradient steps, see `flowjax.search.base.Stochastic`.
        dps_over: what gradients are divided by.
        finish: DDIM steps from the winner to t = 1, within the budget.

    Raises:
        ValueError: an option outside its range, a budget below one particle for each step.

    Reference: Kim, Kim and Park, Test-time Alignment of Diffusion Models without Reward Over-optimization (2501.05803),
    in the form that RBF (2503.19385) compares with.

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.SMC(budget=500, temperature=0.5)
        >>> search.starts, search.evaluations, search.reward_calls
        (50, 500, 500)
    """

    temperature: float = static(1.0)
    threshold: float = static(1.0)
    pick: str = static("reward")
    adaptive: bool = static(False)
    at_once: int | None = static(None)
    path: Any = part("path", VP())

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _checks.real("(0, inf)", temperature=self.temperature)
        _checks.real("(0, 1]", threshold=self.threshold)
        check_choice("pick", self.pick, ("reward", "weight", "sample"))
        check_choice("adaptive", self.adaptive, (True, False))
        if self.at_once is not None:
            _checks.whole(_checks.COUNT, at_once=self.at_once)
        if self.adaptive and self.threshold != 1:
            raise ValueError(f"adaptive numbers of particles need threshold=1, got {self.threshold}")
        self.need(self.steps * (self.at_once or 1), f"{self.at_once or 1} particles in each of {self.steps} steps")

    @property
    def particles(self) -> np.ndarray:
        """(steps,) particles of each step."""
        size = self.at_once or 1
        units = self.spent // size
        return (falling(units, self.steps) if self.adaptive else np.full(self.steps, units // self.steps)) * size

    @property
    def starts(self) -> int:
        """Particles of the first step."""
        return int(self.particles[0])

    @property
    def rows(self) -> int:
        """Particles of a round."""
        return self.at_once or (1 if self.adaptive else self.starts)

    @property
    def _rounds(self) -> np.ndarray:
        """(3, rounds): the step of each round, its first particle, and whether it completes the step."""
        found = [
            (step, first, first + self.rows == self.particles[step])
            for step in range(1, self.steps)
            for first in range(0, self.particles[step], self.rows)
        ]
        return np.array(found).T

    @property
    def judged(self) -> np.ndarray:
        """All particles."""
        return np.ones(1 + self._rounds.shape[1], bool)

    def begin(self, way: Way, draws: Draws, seen: Seen) -> Cloud:
        """The first weights, and who goes on."""
        weights = seen.reward / self.temperature
        parents, carried = self._drawn(draws, weights, 0)
        return Cloud(here=seen, weights=weights, parents=parents, carried=carried, new=seen, new_weights=weights)

    def _live(self, weights: Array, step: Any) -> Array:
        """Weights of the particles of a step; of equal ones where all are 0."""
        live = jnp.arange(self.starts) < jnp.asarray(self.particles)[step]
        some = jnp.any(live & (weights > -jnp.inf))
        return jnp.where(live, jnp.where(some, weights, 0.0), -jnp.inf)

    def _drawn(self, draws: Draws, weights: Array, step: Any) -> tuple[Array, Array]:
        """Parents of the next particles, and the log weights that they begin with."""
        weights = self._live(weights, step)
        number = jnp.asarray(self.particles)[step].astype(weights.dtype)
        effective = 1 / jnp.sum(jax.nn.softmax(weights) ** 2)
        # Equal weights give the whole number up to the rounding of a sum, far below one in 10,000.
        again = effective < self.threshold * number * (1 - 1e-4)
        drawn = _multinomial(draws.of(self.starts, step), weights)
        # Where the numbers fall, equally good particles are those in front.
        parents = jnp.where(again, drawn, jnp.arange(self.starts, dtype=jnp.int32))
        return parents, jnp.where(again, 0.0, weights)

    def propose(self, way: Way, draws: Draws, state: Cloud, number: Array) -> tuple[Array, Array]:
        """A step of the particles of this round."""
        step, first, _ = jnp.asarray(self._rounds, jnp.int32)[:, number]
        row = first + jnp.arange(self.rows, dtype=jnp.int32)
        to = jnp.broadcast_to(way.times[step], row.shape)
        return to, way.move(state.here.take(state.parents[row]), to, draws.normal(row, row * 0 + step))

    def update(self, way: Way, draws: Draws, state: Cloud, seen: Seen, number: Array) -> Cloud:
        """The particles of this round; of a complete step the weights, and who goes on."""
        step, first, complete = jnp.asarray(self._rounds, jnp.int32)[:, number]
        row = first + jnp.arange(self.rows, dtype=jnp.int32)
        grown = (seen.reward - state.here.reward[state.parents[row]]) / self.temperature
        grown = state.carried[row] + grown
        weights = state.new_weights.at[row].set(jnp.where(jnp.isnan(grown), -jnp.inf, grown))  # -inf after -inf
        new = jax.tree.map(lambda all_, some: all_.at[row].set(some), state.new, seen)
        parents, carried = self._drawn(draws, weights, step)
        done = Cloud(here=new, weights=weights, parents=parents, carried=carried, new=new, new_weights=weights)
        going = Cloud(
            here=state.here,
            weights=state.weights,
            parents=state.parents,
            carried=state.carried,
            new=new,
            new_weights=weights,
        )
        return jax.tree.map(lambda a, b: jnp.where(complete > 0, a, b), done, going)

    def answer(self, draws: Draws, state: Cloud) -> Seen:
        """What `pick` says."""
        last = self.steps - 1
        weights = self._live(state.weights, last)
        if self.pick == "sample":
            return state.here.take(jax.random.categorical(draws.of(self.starts, last + 1), weights))
        live = jnp.arange(self.starts) < self.particles[last]
        reward = jnp.where(live, state.here.reward, -jnp.inf)
        return state.here.take(jnp.argmax(weights if self.pick == "weight" else reward))

"""Search over paths (Ma et al., 2501.09732)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath, expand
from flowjax.search.base import Draws, Search, Seen, Way, pick


@pytree
class Paths:
    """Where searches over paths are.

    Attributes:
        x: (B, ...) the states that noise is added to.
        here: (B K) the states on their way back.
        top: (B) the best of the last turn.

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.SoP(budget=100, start=0.8, forward=0.5, backward=0.6)
        >>> search.turns, search.particles  # from 0.8 back to 0.3, forth to 0.9, back to 0.4, forth to 1
        (2, 5)
    """

    x: Array
    here: Seen
    top: Seen


@fact(
    "search",
    "sop",
    "search over paths: noise is added again, and the best way back is kept",
    cite="ma2025inference",
    example=lambda: {"budget": 50},
)
@pytree
class SoP(Search):
    """Turns of added noise and ways back, of which the best is kept; on the ODE.

    B states go from noise to t = `start` in `ode_steps` Euler steps. In each turn K copies of each get noise by the
    forward kernel of the path, which takes t back by `forward`,

        x_t = (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z

    and go forth by `backward` in `ode_steps` Euler steps; the one whose last data prediction has the largest reward
    stays. After ceil((1 - start) / (backward - forward)) turns t is 1, and the best data prediction is the answer. K =
    floor((budget - B ode_steps) / (B ode_steps turns)).

    Args:
        budget: most network evaluations of one result.
        searches: B.
        ode_steps: Euler steps of each way.
        start: where turns begin, in (0, 1).
        forward: by how much t goes back where noise is added, below `start`.
        backward: by how much it comes forth again, above `forward`.
        path: path to sample along; None is the field's own.
        finish: DDIM steps from the winner to t = 1, within the budget.

    Raises:
        ValueError: times outside their range, a budget too small for one particle.

    Reference: Ma et al., Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps (2501.09732);
    numbers as in the program of RBF (2503.19385).

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.SoP(budget=500)
        >>> search.turns, search.particles, search.evaluations, search.reward_calls
        (4, 15, 488, 120)
    """

    searches: int = static(2)
    ode_steps: int = static(4)
    start: float = static(0.88)
    forward: float = static(0.78)
    backward: float = static(0.81)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _checks.whole(_checks.COUNT, searches=self.searches)
        _checks.whole(_checks.STEPS, ode_steps=self.ode_steps)
        _checks.real("(0, 1)", start=self.start, forward=self.forward, backward=self.backward)
        if not self.forward < min(self.start, self.backward):
            raise ValueError(
                f"forward={self.forward} must be below start={self.start} and below backward={self.backward}: noise "
                "takes t back from there, and each way forth must lead further"
            )
        _checks.whole(_checks.STEPS, **{"number of turns": self.turns})
        self.need(self.searches * self.ode_steps * (1 + self.turns), f"{self.turns} turns of {self.ode_steps} steps")

    @property
    def turns(self) -> int:
        """Turns up to t = 1; a gap of rounding at its end is none."""
        return math.ceil((1 - self.start) / (self.backward - self.forward) - 1e-9)

    @property
    def particles(self) -> int:
        """K."""
        return (self.spent // (self.searches * self.ode_steps) - 1) // self.turns

    @property
    def ends(self) -> np.ndarray:
        """(2, turns): where each way forth begins and ends."""
        ends = np.minimum(self.start + (self.backward - self.forward) * np.arange(self.turns + 1), 1.0)
        return np.stack([ends[:-1] - self.forward, np.minimum(ends[:-1] - self.forward + self.backward, 1.0)])

    @property
    def starts(self) -> int:
        """One state of each search."""
        return self.searches

    @property
    def rows(self) -> int:
        """All particles."""
        return self.searches * self.particles

    @property
    def lead(self) -> np.ndarray:
        """From noise to `start`."""
        return np.linspace(0, self.start, self.ode_steps + 1)[:-1]

    @property
    def judged(self) -> np.ndarray:
        """At the end of each way."""
        return np.append(False, np.arange(self.turns * self.ode_steps) % self.ode_steps == self.ode_steps - 1)

    def way(self, path: GaussianPath) -> Way:
        """All times at which the network is asked, in the order of the rounds, behind those of the lead."""
        first, last = self.ends
        ways = first[:, None] + (last - first)[:, None] * np.arange(self.ode_steps) / self.ode_steps
        return Way(path=path, times=np.concatenate([self.lead, ways.ravel(), last[-1:]]))

    def begin(self, way: Way, draws: Draws, seen: Seen) -> Paths:
        """At `start`."""
        to = jnp.full_like(seen.t, self.start)
        return Paths(x=way.move(seen, to), here=seen.repeat(self.particles), top=seen)

    def propose(self, way: Way, draws: Draws, state: Paths, number: Array) -> tuple[Array, Array]:
        """New noise at the beginning of a turn, an Euler step within it."""
        turn, step = jnp.divmod(number, self.ode_steps)
        search, place = jnp.divmod(jnp.arange(self.rows, dtype=jnp.int32), self.particles)
        to = jnp.broadcast_to(way.times[self.ode_steps + number], state.here.t.shape)
        s = jnp.minimum(self.start + (self.backward - self.forward) * turn.astype(to.dtype), 1.0)
        path, x = way.path, state.x[search]
        ratio = path.alpha(to) / path.alpha(s)
        spread = jnp.sqrt(jnp.maximum(path.sigma(to) ** 2 - (ratio * path.sigma(s)) ** 2, 0.0))
        noise = draws.normal(search, 1 + turn * self.particles + place)
        return to, jnp.where(step == 0, expand(ratio, x) * x + expand(spread, x) * noise, way.move(state.here, to))

    def update(self, way: Way, draws: Draws, state: Paths, seen: Seen, number: Array) -> Paths:
        """At the end of a turn the best of each search."""
        done = jnp.broadcast_to(number % self.ode_steps == self.ode_steps - 1, (self.searches,))
        best = seen.best_of(self.searches)
        last = jnp.asarray(self.ends[1], seen.t.dtype)[number // self.ode_steps]
        x = way.move(best, jnp.broadcast_to(last, best.t.shape))
        return Paths(x=pick(done, x, state.x), here=seen, top=pick(done, best, state.top))

    def answer(self, draws: Draws, state: Paths) -> Seen:
        """The best of the last turn."""
        return state.top.take(jnp.argmax(state.top.reward))

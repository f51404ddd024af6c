"""What searches share: states and what is known of them, the way they move, and the words a method is written in.

A method is written for one result. `begin` gets what was seen at the first states, `propose` says where the network is
to be asked in a round, `update` takes what it answered, and `answer` gives the winner. `flowjax.search.find` asks the
network and the reward, for many results at once, and counts.
"""

import abc
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from flowjax import _checks, specs
from flowjax._pytree import part, pytree, static
from flowjax.flow import Field, check_determined
from flowjax.keys import entries_noise
from flowjax.paths.base import GaussianPath, expand
from flowjax.paths.sde import as_diffusion
from flowjax.solvers.options import check_choice
from flowjax.times import check_times


@pytree
class Seen:
    """States at which the network was asked.

    Attributes:
        t: (rows,) their times.
        x: (rows, ...) the states.
        velocity: (rows, ...) there.
        data: (rows, ...) the data prediction there, which the reward judges.
        reward: (rows,); -inf where it was not asked.
        gradient: (rows, ...) of the reward by x, through the network; None without gradient proposals.

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.search.base import Seen
        >>> x = jnp.arange(3.0)
        >>> seen = Seen(t=x, x=x, velocity=x, data=-x, reward=x)
        >>> float(seen.take(seen.reward.argmax()).data)
        -2.0
    """

    t: Array
    x: Array
    velocity: Array
    data: Array
    reward: Array
    gradient: Any = None

    def take(self, rows: Any) -> "Seen":
        """Some of the rows."""
        return jax.tree.map(lambda leaf: leaf[rows], self)

    def repeat(self, times: int) -> "Seen":
        """Each row `times` times."""
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), self)

    def best_of(self, groups: int) -> "Seen":
        """Of each of `groups` equal groups of rows the one with the largest reward, the first of equal ones."""
        size = self.reward.shape[0] // groups
        best = jnp.argmax(self.reward.reshape(groups, size), axis=1)
        return self.take(jnp.arange(groups) * size + best)


def pick(which: Array, new: Any, old: Any) -> Any:
    """The rows of `new` where `which` holds, those of `old` elsewhere, of pytrees whose leaves begin with its axes."""
    return jax.tree.map(
        lambda a, b: jnp.where(which.reshape(which.shape + (1,) * (a.ndim - which.ndim)), a, b), new, old
    )


@pytree
class Draws:
    """Random numbers of one result: those of number j of search b depend on (its key, b, j) only.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flowjax.search.base import Draws
        >>> draws = Draws(key=jax.random.key(0), event=(2,))
        >>> draws.normal(jnp.array([0, 0, 1]), jnp.array([0, 1, 0])).shape
        (3, 2)
    """

    key: Key[Array, ""]
    event: tuple[int, ...] = static()
    dtype: Any = static(jnp.float32)
    entries: bool = static(False)

    def of(self, search: Any, number: Any) -> Key[Array, ""]:
        """The key of one of them."""
        return jax.random.fold_in(jax.random.fold_in(self.key, search), number)

    def normal(self, search: Array, number: Array) -> Array:
        """Standard normal noise for states, (rows, ...), of searches and numbers (rows,)."""
        draw = lambda b, j: entries_noise(self.of(b, j), self.event, self.dtype, self.entries)  # noqa: E731
        return jax.vmap(draw)(search, number)


@pytree
class Way:
    """The path, the times and the SDE that a search follows.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> from flowjax.search.base import Seen, Way
        >>> x, way = jnp.ones((1, 1)), Way(path=fj.paths.Linear(), times=jnp.array([0.0, 0.5, 1.0]))
        >>> way.move(Seen(t=jnp.zeros(1), x=x, velocity=-x, data=x, reward=jnp.zeros(1)), way.times[1:2]).tolist()
        [[0.5]]
    """

    path: GaussianPath
    times: Any
    diffusion: Any = static(0.0)
    dps: float = static(0.0)
    dps_over: str = static("reward")

    def move(self, here: Seen, to: Array, noise: Array | None = None) -> Array:
        """A step of Euler-Maruyama to the times `to` (rows,): x + h (v + eps s) + sqrt(2 eps h) noise.

        Without noise it is one of Euler's method on the ODE. The gradient of the reward, where there is one, moves it
        by strength * gradient / |reward|, or over the length of the gradient, or over one.
        """
        like = here.x
        h = (to - here.t).astype(here.t.dtype)
        drift = here.velocity
        if noise is not None:
            eps = jnp.asarray(as_diffusion(self.diffusion).value(self.path, here.t), here.t.dtype)
            score = self.path.convert(here.velocity, given="velocity", to="score", t=here.t, x=like)
            drift = drift + jnp.where(expand(eps, like) == 0, 0, expand(eps, like) * score)
        x = like + expand(h, like) * drift
        if noise is not None:
            x = x + expand(jnp.sqrt(2 * eps * h), like) * noise
        if here.gradient is not None:
            x = x + self.dps * here.gradient / self._over(here)
        return x.astype(like.dtype)

    def _over(self, here: Seen) -> Array:
        """What gradients are divided by, never 0: where it would be, the gradient is 0 or the reward says nothing."""
        if self.dps_over == "one":
            return jnp.ones_like(here.gradient)
        if self.dps_over == "reward":
            size = expand(jnp.abs(here.reward), here.gradient)
        else:
            axes = tuple(range(1, here.gradient.ndim))
            size = jnp.sqrt(jnp.sum(here.gradient**2, axis=axes, keepdims=True))
        return jnp.where((size > 0) & jnp.isfinite(size), size, jnp.inf)


@pytree
class Search(abc.ABC):
    """A search for samples with a high reward, within a budget of network evaluations for each.

    Attributes:
        budget: most network evaluations of one result.
        path: the path to sample along instead of the field's own, or None.
        finish: DDIM steps from the winner to t = 1, of the budget; 0 gives its data prediction.
        dps: strength of gradient proposals, of searches that have them.

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.SVDD(budget=60, searches=2, steps=4)  # one of them
        >>> search.starts, search.rows, search.rounds, search.evaluations
        (2, 18, 3, 56)
    """

    budget: int = static(500)
    path: Any = part("path", None)
    finish: int = static(0)

    dps = 0.0

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole(_checks.COUNT, budget=self.budget)
        _checks.whole("[0, 10000]", finish=self.finish)
        if self.path is not None and not isinstance(self.path, GaussianPath):
            raise ValueError(f"path must be one of flowjax.paths, such as flowjax.paths.VP(), got {self.path!r}")

    @property
    def spent(self) -> int:
        """What is left of the budget for the search itself."""
        return self.budget - self.finish

    def need(self, least: int, what: str) -> None:
        """Raises ValueError where the budget is too small."""
        if self.spent < least:
            name = type(self).__name__
            raise ValueError(
                f"budget={self.budget} is too small for {what}: {name} needs at least {least + self.finish}"
            )

    @property
    @abc.abstractmethod
    def starts(self) -> int:
        """States that the search begins with."""

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """States of one result at which the network is asked in a round."""

    @property
    @abc.abstractmethod
    def judged(self) -> np.ndarray:
        """(1 + rounds,) whether the reward is asked: of the first states, then in each round."""

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.judged) - 1

    @property
    def lead(self) -> np.ndarray:
        """Times of Euler steps that the first states make before the search, from the first time on."""
        return np.zeros(0)

    @property
    def evaluations(self) -> int:
        """Network evaluations of one result."""
        return self.starts * (1 + max(len(self.lead) - 1, 0)) + self.rows * self.rounds + self.finish

    @property
    def asked(self) -> np.ndarray:
        """(1 + rounds,) whether the reward is computed: where it is `judged`, with gradient proposals everywhere."""
        return self.judged | (self.dps > 0)

    @property
    def reward_calls(self) -> int:
        """States of one result whose reward is computed."""
        return int(self.starts * self.asked[0] + self.rows * np.sum(self.asked[1:])) + (self.finish > 0)

    @abc.abstractmethod
    def way(self, path: GaussianPath) -> Way:
        """How it moves along the path."""

    def check(self, field: Field, way: Way) -> None:
        """Raises ValueError unless the field gives what is needed at the times of the search."""
        times = [float(t) for t in np.asarray(way.times)[:-1]]
        field.check(times, "velocity")
        for t in times:
            for to in ("data", "score"):
                check_determined(way.path, "velocity", to, t)
            eps = float(as_diffusion(way.diffusion).value(way.path, np.float64(t)))
            if not 0 <= eps < math.inf:
                raise ValueError(
                    f"diffusion {way.diffusion!r} is {eps} at t = {t:g}, it must be finite and not negative: start the "
                    "times above it, e.g. times=uniform(start=0.01)"
                )

    def first(self, draws: Draws) -> Array:
        """Noise of the first states, (starts, ...)."""
        size = self.starts // getattr(self, "searches", self.starts)
        return draws.normal(*jnp.divmod(jnp.arange(self.starts, dtype=jnp.int32), size))

    @abc.abstractmethod
    def begin(self, way: Way, draws: Draws, seen: Seen) -> Any:
        """The state of the search after the first states, (starts, ...)."""

    @abc.abstractmethod
    def propose(self, way: Way, draws: Draws, state: Any, number: Array) -> tuple[Array, Array]:
        """Times (rows,) and states (rows, ...) of round `number`, from 0."""

    @abc.abstractmethod
    def update(self, way: Way, draws: Draws, state: Any, seen: Seen, number: Array) -> Any:
        """The state of the search after the round."""

    @abc.abstractmethod
    def answer(self, draws: Draws, state: Any) -> Seen:
        """The winner: one row, without its axis."""

    def report(self, state: Any) -> Mapping[str, Array]:
        """What to keep of every round."""
        return {}


@pytree
class Stochastic(Search):
    """A search along the SDE of a flow; the shared options.

    Attributes:
        steps: N of the grid, of which the network is asked at the first N times; at least 2.
        times: a grid of `flowjax.times` as a spec, or N + 1 times.
        diffusion: eps(t) as for `flowjax.solvers.EulerMaruyama`, in the times of the path sampled along; 0 is the ODE.
        dps: strength of gradient proposals, 0 for none: states move by dps * gradient of the reward / `dps_over`.
        dps_over: "reward" (|reward|, as published), "gradient" (its length) or "one".

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.CoDe(budget=60, times="uniform(end=0.9)", steps=3)  # one of them
        >>> [round(float(t), 2) for t in search.way(fj.paths.Linear()).times]
        [0.0, 0.3, 0.6, 0.9]
    """

    steps: int = static(10)
    times: Any = static("circular")
    diffusion: Any = part("diffusion", "g_square", static=True)
    dps: float = static(0.0)
    dps_over: str = static("reward")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _checks.whole("[2, 10000]", steps=self.steps)
        _checks.real("[0, inf)", dps=self.dps)
        check_choice("dps_over", self.dps_over, ("reward", "gradient", "one"))
        as_diffusion(self.diffusion)
        if isinstance(self.times, Mapping):
            object.__setattr__(self, "times", specs.text(self.times))
        elif not isinstance(self.times, str):
            object.__setattr__(self, "times", tuple(check_times(self.times).tolist()))
        if isinstance(self.times, str):
            specs.find("times", specs.parse(self.times)["name"])
        elif len(self.times) != self.steps + 1:
            raise ValueError(f"times holds {len(self.times)} times, and steps={self.steps} needs {self.steps + 1}")

    def grid(self, path: GaussianPath) -> np.ndarray:
        """The N + 1 times.

        Raises:
            ValueError: they do not increase.
        """
        times = self.times
        grid = specs.build("times", times, path=path, n=self.steps) if isinstance(times, str) else np.asarray(times)
        if len(grid) != self.steps + 1 or not np.all(np.diff(grid) > 0):
            raise ValueError(f"a search needs {self.steps + 1} increasing times, got {grid.tolist()}")
        return grid

    def way(self, path: GaussianPath) -> Way:
        """The grid and the SDE."""
        more = {"diffusion": self.diffusion, "dps": self.dps, "dps_over": self.dps_over}
        return Way(path=path, times=self.grid(path), **more)


def falling(total: int, steps: int) -> np.ndarray:
    """Numbers of particles that fall by the same from step to step, with this sum: more where most is decided.

    With d = floor(2 (total - steps) / (steps (steps - 1))): n, n - d, n - 2 d, ..., each at least 1, and one more in
    the first ones for what division leaves.

    Args:
        total: their sum, at least `steps`.
        steps: how many numbers.
    """
    if total < steps:
        raise ValueError(f"{steps} steps need a total of at least {steps}, got {total}")
    fall = 2 * (total - steps) // (steps * (steps - 1)) if steps > 1 else 0
    first = (total + fall * steps * (steps - 1) // 2) // steps
    found = first - fall * np.arange(steps)
    found[: total - int(found.sum())] += 1
    return found

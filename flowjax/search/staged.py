"""The machine of RBF and SVDD: independent searches through the stages of a grid, each with a quota of proposals.

Stage k proposes states at the time k + 1 from one state at the time k, and keeps the best of its proposals.
"""

import abc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.search.base import Draws, Seen, Stochastic, Way, pick


@pytree
class Stage:
    """Where each of the B searches is.

    Attributes:
        here: the state that proposals come from.
        top: the best proposal of the stage; before its first one, `here`.
        fresh: whether the stage has had no proposal.
        best: largest reward of all stages, and of the first states.
        count: number of the next proposal of the stage, from 1.
        quota: proposals of the stage.
        stage: its number.
        number: proposals and first states so far.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> from flowjax.search.base import Seen
        >>> search, zero = fj.search.RBF(budget=40, searches=2, candidates=1, steps=4), jnp.zeros(2)
        >>> stage = search.begin(None, None, Seen(t=zero, x=zero, velocity=zero, data=zero, reward=zero))
        >>> stage.quota.tolist(), stage.count.tolist()
        ([4, 4], [1, 1])
    """

    here: Seen
    top: Seen
    fresh: Array
    best: Array
    count: Array
    quota: Array
    stage: Array
    number: Array


@pytree
class Staged(Stochastic):
    """Searches through stages.

    Attributes:
        searches: B, independent ones, of which the best is the answer.
        candidates: first states of each, of which the one with the largest reward is taken.
        at_once: M, proposals evaluated at once, taken in their order.
        early: whether a proposal better than everything before ends its stage, with the rest of the quota for the next.

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.RBF(budget=500)  # one of the two
        >>> search.quotas.tolist()
        [22, 22, 22, 22, 22, 22, 22, 22, 22]
    """

    searches: int = static(2)
    candidates: int = static(1)
    at_once: int | None = static(None)

    early = False

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _checks.whole(_checks.COUNT, searches=self.searches, candidates=self.candidates)
        if self.at_once is not None:
            _checks.whole(_checks.COUNT, at_once=self.at_once)
        self.quotas, self.judged  # noqa: B018 - they refuse a budget that is too small

    @property
    @abc.abstractmethod
    def quotas(self) -> np.ndarray:
        """(steps - 1,) proposals of each stage."""

    @property
    def chunk(self) -> int:
        """Proposals of a search in a round."""
        return self.at_once or 1

    @property
    def starts(self) -> int:
        """Candidates of all searches."""
        return self.searches * self.candidates

    @property
    def rows(self) -> int:
        """Proposals of all searches."""
        return self.searches * self.chunk

    def begin(self, way: Way, draws: Draws, seen: Seen) -> Stage:
        """The best candidate of each search."""
        here, count = seen.best_of(self.searches), jnp.ones(self.searches, jnp.int32)
        return Stage(
            here=here,
            top=here,
            fresh=count > 0,
            best=here.reward,
            count=count,
            quota=jnp.full_like(count, self.quotas[0]),
            stage=jnp.zeros_like(count),
            number=jnp.full_like(count, self.candidates),
        )

    def propose(self, way: Way, draws: Draws, state: Stage, number: Array) -> tuple[Array, Array]:
        """M proposals of each search at its next time."""
        search, place = jnp.divmod(jnp.arange(self.rows, dtype=jnp.int32), self.chunk)
        noise = draws.normal(search, state.number[search] + place)
        to = way.times[state.stage[search] + 1]
        return to, way.move(state.here.take(search), to, noise)

    def update(self, way: Way, draws: Draws, state: Stage, seen: Seen, number: Array) -> Stage:
        """The proposals of each search in their order, up to one that ends the stage."""
        split = jax.tree.map(lambda leaf: leaf.reshape(self.searches, self.chunk, *leaf.shape[1:]), seen)

        def one(state: Stage, seen: Seen) -> Stage:
            (state, _), _ = jax.lax.scan(
                lambda carry, new: (self._take(*carry, new), None), (state, jnp.array(True)), seen
            )
            return state

        return jax.vmap(one)(state, split)

    def _take(self, old: Stage, live: Any, new: Seen) -> tuple[Stage, Any]:
        """The stage of one search after one proposal, and whether those after it in the round still belong to it."""
        win = new.reward > old.best
        top = pick(old.fresh | (new.reward > old.top.reward), new, old.top)
        more = old.stage < self.steps - 2
        early = win & more & self.early
        full = (old.count % old.quota == 0) & more & ~early
        leaves = early | full
        stage = old.stage + leaves.astype(jnp.int32)
        default = jnp.asarray(self.quotas, jnp.int32)[stage]
        quota = jnp.where(early, old.quota - old.count + default, jnp.where(full, default, old.quota))
        following = Stage(
            here=pick(leaves, top, old.here),
            top=top,
            fresh=leaves,
            best=jnp.where(win, new.reward, old.best),
            count=jnp.where(leaves, 0, old.count) + 1,
            quota=quota,
            stage=stage,
            number=old.number,
        )
        following = pick(live, following, old)
        number = {"number": old.number + 1}  # of noise, which is not drawn again
        kept = {name: getattr(following, name) for name in Stage.__dataclass_fields__}
        return Stage(**kept | number), live & ~leaves

    def answer(self, draws: Draws, state: Stage) -> Seen:
        """The best of the last stages."""
        return state.top.take(jnp.argmax(state.top.reward))

    def report(self, state: Stage) -> Mapping[str, Array]:
        """Stage, quota and largest reward of each search, after the round."""
        return {"stage": state.stage, "quota": state.quota, "best": state.best}

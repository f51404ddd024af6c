"""SVDD: the best of several proposals at each step (Li et al., 2408.08252)."""

from typing import Any

import numpy as np

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths import VP
from flowjax.search.base import falling
from flowjax.search.staged import Staged


@fact(
    "search",
    "svdd",
    "value-based decoding: the best of several proposals at each step",
    cite="li2024derivative",
    example=lambda: {"budget": 30, "steps": 4},
)
@pytree
class SVDD(Staged):
    """The best of K proposals at each step, in B independent searches.

    At every step each search makes K steps of the SDE, and goes on from the one whose data prediction has the largest
    reward (the limit of SVDD's softmax, as RBF's authors compare with). The answer is the best data prediction of the
    last step, over the searches. K = floor((budget - B candidates) / (B (N - 1))).

    Args:
        budget: most network evaluations of one result.
        searches: B.
        candidates: first states of each search, of which the one with the largest reward is taken.
        steps: N of the grid.
        times: a grid, or N + 1 times.
        path: path to sample along; None is the field's own.
        diffusion: eps(t); "g_square" is g = 3 r^2.
        adaptive: more proposals in the first steps: numbers that fall by the same from step to step, with the same sum
            (`flowjax.search.falling`).
        at_once: proposals of a search evaluated together, which divide the numbers of proposals; None is all of a step,
            and 1 with `adaptive`. The result is the same.
        dps: strength of gradient proposals, see `flowjax.search.base.Stochastic`.
        dps_over: what gradients are divided by.
        finish: DDIM steps from the winner to t = 1, within the budget.

    Raises:
        ValueError: a budget too small for one proposal in each step.

    Reference: Li et al., Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based
    Decoding (2408.08252); RBF (2503.19385), whose program begins with K copies of each first state and evaluates them
    all, where one is evaluated here.

    Example:
        >>> import flowjax as fj
        >>> search = fj.search.SVDD(budget=500)
        >>> search.quotas.tolist()
        [27, 27, 27, 27, 27, 27, 27, 27, 27]
        >>> fj.search.SVDD(budget=500, adaptive=True).quotas.tolist()
        [52, 46, 40, 34, 28, 22, 15, 9, 3]
    """

    path: Any = part("path", VP())
    adaptive: bool = static(False)

    @property
    def chunk(self) -> int:
        """Proposals of a search in a round."""
        return self.at_once or (1 if self.adaptive else int(self.quotas[0]))

    @property
    def quotas(self) -> np.ndarray:
        """K in each step, or falling numbers."""
        size, stages = self.at_once or 1, self.steps - 1
        self.need(self.starts + stages * self.searches * size, f"{self.searches} searches of {self.steps} steps")
        units = (self.spent - self.starts) // (self.searches * size)
        return (falling(units, stages) if self.adaptive else np.full(stages, units // stages)) * size

    @property
    def judged(self) -> np.ndarray:
        """Every proposal, and the first states where there is a choice."""
        return np.append(self.candidates > 1, np.ones(int(np.sum(self.quotas)) // self.chunk, bool))

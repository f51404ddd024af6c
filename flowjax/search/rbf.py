"""Rollover Budget Forcing (Kim et al., 2503.19385)."""

from typing import Any

import numpy as np

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths import VP
from flowjax.search.staged import Staged


@fact(
    "search",
    "rbf",
    "Rollover Budget Forcing: a better proposal ends its stage, the rest of the quota rolls over",
    cite="kim2025inference",
    example=lambda: {"budget": 30, "candidates": 3, "steps": 4},
)
@pytree
class RBF(Staged):
    """Rollover Budget Forcing: stages of a quota of proposals each, which end with the first better one.

    B searches begin with the best of their candidates. At stage k a search steps from its state at t_k to t_{k+1} by
    the SDE, again and again, and asks the reward of each data prediction. One that is better than all before it, at any
    stage, is taken at once, and what is left of the quota is added to that of the next stage; after a quota without
    one, the best of the stage is taken. Stages are 0 to N - 2; the last one goes on while the budget lasts. The answer
    is the best data prediction of the last stage, over the searches.

        quota Q = floor((budget - B candidates) / (N B)); proposals of a search: ceil((budget - B candidates) / (B M)) -
        1

    As in the authors' program fewer than `budget` evaluations are made. A search whose budget ends before the first
    proposal of a stage answers with the state that the stage began with.

    Args:
        budget: most network evaluations of one result.
        searches: B.
        candidates: first states of each search.
        steps: N of the grid.
        times: a grid, or N + 1 times; the last of them is that of the answer only with `finish`.
        path: path to sample along; None is the field's own (the paper's "linear SDE" for a linear flow).
        diffusion: eps(t); "g_square" is g = 3 r^2.
        at_once: M proposals evaluated together and taken in order; those after one that ends the stage are wasted, and
            counted.
        dps: strength of gradient proposals, see `flowjax.search.base.Stochastic`.
        dps_over: what gradients are divided by.
        finish: DDIM steps from the winner to t = 1, within the budget. The defaults are for flows of few steps, whose
            data predictions are samples; those of other flows are blurred, and are finished.

    Raises:
        ValueError: a budget too small for one proposal in each stage.

    Reference: Kim et al., Inference-Time Scaling for Flow Models via Stochastic Generation and Rollover Budget Forcing
    (2503.19385), algorithm 1.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> law = fj.oracles.Mixture.default(fj.paths.Linear(), dim=2)
        >>> flow = fj.Flow(law.network(), path=law.path)
        >>> reward = lambda x: -jnp.sum((x - 1) ** 2, axis=1)
        >>> found = fj.search.find(flow, fj.search.RBF(budget=60, candidates=5), reward, (4, 2), key=jax.random.key(0))
        >>> found.x.shape, int(found.evaluations)
        ((4, 2), 58)
    """

    candidates: int = static(25)
    path: Any = part("path", VP())

    early = True

    @property
    def quotas(self) -> np.ndarray:
        """Q in each stage."""
        left = self.spent - self.starts
        self.need(
            self.starts + self.steps * self.searches, f"{self.starts} first states and one proposal for each step"
        )
        return np.full(self.steps - 1, left // (self.steps * self.searches))

    @property
    def judged(self) -> np.ndarray:
        """Every state, as long as another round leaves something of the budget."""
        left = self.spent - self.starts
        rounds = -(-left // self.rows) - 1
        if rounds < 1:
            raise ValueError(
                f"budget={self.budget} has no room for at_once={self.at_once} proposals: take fewer at once"
            )
        return np.ones(1 + rounds, bool)

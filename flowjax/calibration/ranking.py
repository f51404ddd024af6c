"""A learned ranking of solver schedules, by which a search proposes candidates (Liu et al., 2312.07243)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from flowjax.solvers.usf import Schedule

KINDS = ("noise", "data", "v3")
FIRSTS = ("network", "zero", "mean")
FEATURES = 27  # of an encoded step


def encode(schedules: Sequence[Schedule]) -> Float[np.ndarray, "schedules steps features"]:
    """Schedules as numbers, one line per step; after the end of the shorter ones, zeros."""
    lines = np.zeros((len(schedules), max(len(s.decisions) for s in schedules), FEATURES), np.float32)
    for schedule, own in zip(schedules, lines, strict=True):
        for i, d in enumerate(schedule.decisions):
            s, t = schedule.times[i], schedule.times[i + 1]
            frequencies = 2.0 ** np.arange(4)
            own[i] = [
                1.0,  # here is a step
                s,
                t - s,
                *np.sin(np.pi * frequencies * t),
                *np.cos(np.pi * frequencies * t),
                *(float(schedule.first == first) for first in FIRSTS[1:]),
                *(float(d.prediction == kind) for kind in KINDS),
                *(float(d.order == k) for k in (1, 2, 3, 4)),
                *(float(d.relaxation == r) for r in ("midpoint", "bh1")),
                10 * d.relaxation if isinstance(d.relaxation, float) else 0.0,
                float(bool(d.estimation)),
                float(bool(d.corrector)),
                float(d.corrector_relaxation == "bh1"),
                float(d.corrector_relaxation == "bh2"),
            ]
    return lines


class Ranker(nnx.Module):
    """A recurrent network over the steps of an encoded schedule; a lower score is better.

    h <- GRU(h, silu(W step)) over the steps, score = w . h. Trained by the hinge max(0, margin - (worse - better)).

    Reference: Liu et al. (2312.07243).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> jax.eval_shape(lambda lines: Ranker(5, width=8, rngs=nnx.Rngs(0))(lines), jnp.ones((3, 6, 5))).shape
        (3,)
    """

    def __init__(self, features: int, width: int = 64, *, rngs: nnx.Rngs):
        self.embed = nnx.Linear(features, width, rngs=rngs)
        self.cell = nnx.GRUCell(width, width, rngs=rngs)
        self.head = nnx.Linear(width, 1, rngs=rngs)
        self.width = width

    def __call__(self, lines: Float[Array, "schedules steps features"]) -> Float[Array, " schedules"]:
        """Scores, (schedules,)."""
        state = jnp.zeros((lines.shape[0], self.width))
        for i in range(lines.shape[1]):
            new, _ = self.cell(state, nnx.silu(self.embed(lines[:, i])))
            state = jnp.where(lines[:, i, :1] > 0, new, state)
        return self.head(state)[:, 0]


def fit_ranker(
    lines: Float[np.ndarray | Array, "schedules steps features"],
    scores: Float[np.ndarray | Array, " schedules"],
    seed: int = 0,
    steps: int = 300,
    margin: float = 0.1,
) -> Ranker:
    """Trains a ranker by pairwise hinge loss: max(0, margin - (score of the worse - score of the better))."""
    lines, scores = jnp.asarray(lines, jnp.float32), jnp.asarray(scores, jnp.float32)
    ranker = Ranker(lines.shape[-1], rngs=nnx.Rngs(seed))
    optimizer = optax.adam(3e-3)
    return _fit(ranker, optimizer.init(ranker), lines, scores, steps, margin)


@functools.partial(jax.jit, static_argnames=("steps", "margin"))
def _fit(ranker: Ranker, state: Any, lines: Array, scores: Array, steps: int, margin: float) -> Ranker:
    optimizer = optax.adam(3e-3)

    def loss(ranker: Ranker) -> Array:
        predicted = ranker(lines)
        worse = (scores[:, None] > scores[None, :]).astype(jnp.float32)
        return jnp.sum(worse * nnx.relu(margin - (predicted[:, None] - predicted[None, :]))) / jnp.maximum(
            worse.sum(), 1
        )

    def iterate(carry: Any, _: Any) -> tuple[Any, None]:
        ranker, state = carry
        updates, state = optimizer.update(jax.grad(loss)(ranker), state, ranker)
        return (optax.apply_updates(ranker, updates), state), None

    (ranker, _), _ = jax.lax.scan(iterate, (ranker, state), length=steps)
    return ranker


score = jax.jit(lambda ranker, lines: ranker(lines))

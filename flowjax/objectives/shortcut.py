"""Shortcut models: a span is learned from its two halves.

Spans have the lengths 1, 1/2, 1/4, ..., 1/N and begin at multiples of their length. With m the middle of (t, e),

    U(x_t, t; e) = [U(x_t, t; m) + U(x_m, m; e)] / 2,   x_m = x_t + (m - t) U(x_t, t; m),

the right side as a constant; halves of the shortest spans are velocities. In the authors' notation U(x, t; t + d) is
s(x, t, d).

References:
    Frans et al. (2024), One Step Diffusion via Shortcut Models, equations 4 and 5, arXiv:2410.12557.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from flowjax._checks import COUNT, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import check_answer
from flowjax.objectives.spans import GuidedSpans, SpanDraws, ask
from flowjax.objectives.times import TimeLaw, Uniform
from flowjax.paths.base import expand


@fact(
    "objective",
    "shortcut",
    "average velocities from those of both halves",
    cite="frans2024shortcut",
    tasks=("generation", "distillation"),
)
@pytree
class Shortcut(GuidedSpans):
    """The shortcut objective: U over a span is the mean of U over its halves.

    Further attributes are those of `GuidedSpans`; `times` is the law of the rows with e = t, and the plain sum of
    squares the default. Sample with `Jump` on 1, 2, 4, ..., `sections` equal steps: no other spans are learned.

    Attributes:
        sections: Number of the shortest spans in [0, 1], a power of two.
        target_average: The law of an average that gives the halves, `flowjax.training.ema.Constant(decay=0.999)` for
            example, as the authors have it; None is the network itself.

    Raises:
        ValueError: A number outside its range.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.Shortcut(path=fj.paths.Linear(), sections=4, frac_flow_matching=0.0)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((64, 2))})
        >>> sorted(set((draws.end - draws.t).tolist()))
        [0.25, 0.5, 1.0]
    """

    times: TimeLaw = part("time_law", Uniform())
    power: float = 0.0
    sections: int = static(128)
    target_average: Any = part("average", None, static=True)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        whole(COUNT, sections=self.sections)
        if self.sections & (self.sections - 1):
            raise ValueError(f"sections={self.sections} must be a power of two: 1, 2, 4, ..., 128, ...")

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> SpanDraws:
        """Draws as `Spans.draw`, with spans of the lengths 1/2^k, all equally often."""
        draws = super().draw(key, batch, memory, step=step)

        def span(i: Array) -> tuple[Array, Array]:
            own = jax.random.fold_in(jax.random.fold_in(jax.random.clone(key), 2), i)
            for_length, for_place = jax.random.split(own)
            halvings = jax.random.randint(for_length, (), 0, round(math.log2(self.sections)) + 1)
            length = jnp.ldexp(jnp.float32(1), -halvings)
            place = jnp.floor(jax.random.uniform(for_place, (), jnp.float32) / length) * length
            return place, place + length

        t, end = jax.vmap(span)(jnp.arange(len(draws.t)))
        still = draws.end == draws.t
        return dataclasses.replace(draws, t=jnp.where(still, draws.t, t), end=jnp.where(still, draws.end, end))

    def compare(
        self, network: Callable[..., Any], target: Callable[..., Any], draws: SpanDraws, x: Array, goal: Array
    ) -> tuple[Array, Array]:
        """U, and its distance to the mean of both halves, or to the velocity where e = t."""
        value = with_keys(network, draws.seeds)(x, draws.t, draws.cond, end=draws.end)
        check_answer(value, goal)
        half = (draws.end - draws.t) / 2
        middle, short = draws.t + half, half < 0.75 / self.sections
        first = ask(target, draws, x, draws.t, jnp.where(short, draws.t, middle))
        second = ask(target, draws, x + expand(half, x) * first, middle, jnp.where(short, middle, draws.end))
        return value, value - jnp.where(expand(half, x) == 0, goal, (first + second) / 2)

"""alpha-Flow: from flow matching on whole spans to MeanFlow, by one number.

A span (t, e) is cut at s = t + alpha (e - t), and x_s = x_t + (s - t) v with the velocity of the example:

    D = (U(x_t, t; e) - [alpha v + (1 - alpha) stop_gradient(U(x_s, s; e))]) / alpha,   S = sum |D|^2,
    loss = alpha S / stop_gradient((S + c)^p)

alpha = 1 is regression on v for every span, alpha = 1/2 a shortcut model whose first half is the example's. For small
alpha, U(x_s, s; e) = U + alpha (e - t) dU/dt + O(alpha^2), so that D is MeanFlow's distance and the gradient of the
loss, alpha D dD = D dU, that of MeanFlow's loss, for any p; no derivative of the network is needed. With e = t it is
that of flow matching for every alpha. alpha falls from 1 to its last value along a sigmoid of the training step.

References:
    Zhang et al. (2025), AlphaFlow: Understanding and Improving MeanFlow Models, arXiv:2510.20771. The
    steepness of the sigmoid is chosen here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import real
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import check_answer
from flowjax.objectives.spans import GuidedSpans, SpanDraws, ask
from flowjax.paths.base import expand

STEEPNESS = 25.0  # of the sigmoid: 1 and 0 to within 4e-6 at both ends


@fact(
    "objective",
    "alpha_flow",
    "average velocities, from flow matching to MeanFlow by a curriculum",
    cite="zhang2025alphaflow",
    tasks=("generation", "distillation"),
)
@pytree
class AlphaFlow(GuidedSpans):
    """The alpha-Flow objective: U = alpha v + (1 - alpha) U(x_s, s; e) at s = t + alpha (e - t).

    Further attributes are those of `GuidedSpans`.

    Attributes:
        alpha: Last value of alpha, in (0, 1].
        curriculum: Steps (first, last) between which alpha falls from 1 to it; None is that value from the start.

    Raises:
        ValueError: A number outside its range, a curriculum that does not end after it begins.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.AlphaFlow(path=fj.paths.Linear(), curriculum=(0, 100))
        >>> batch = {"x1": jnp.zeros((4, 2))}
        >>> [round(float(objective.draw(jax.random.key(0), batch, step=k).alpha), 3) for k in (0, 50, 60, 100)]
        [1.0, 0.5, 0.076, 0.005]
    """

    alpha: float = 5e-3
    curriculum: tuple[int, int] | None = static(None)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("(0, 1]", alpha=self.alpha)
        if self.curriculum is not None:
            first, last = self.curriculum
            if not 0 <= first < last:
                raise ValueError(f"curriculum={self.curriculum} must be steps (first, last) with 0 <= first < last")
            object.__setattr__(self, "curriculum", (first, last))

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> SpanDraws:
        """Draws as `Spans.draw`, and the alpha of this step."""
        draws = super().draw(key, batch, memory, step=step)
        alpha = jnp.asarray(self.alpha, jnp.float32)
        if self.curriculum is not None:
            first, last = self.curriculum
            way = (jnp.asarray(step, jnp.float32) - first) / (last - first)
            alpha = jnp.maximum(1 - jax.nn.sigmoid(STEEPNESS * (way - 0.5)), alpha)
        return dataclasses.replace(draws, alpha=alpha)

    def compare(
        self, network: Callable[..., Any], target: Callable[..., Any], draws: SpanDraws, x: Array, goal: Array
    ) -> tuple[Array, Array]:
        """U, and D."""
        value = with_keys(network, draws.seeds)(x, draws.t, draws.cond, end=draws.end)
        check_answer(value, goal)
        alpha = jnp.asarray(draws.alpha, draws.t.dtype)
        first = alpha * (draws.end - draws.t)
        rest = ask(target, draws, x + expand(first, x) * goal, draws.t + first, draws.end)
        # A constant, as in MeanFlow: for alpha to 0 the gradients are the same.
        aim = jax.lax.stop_gradient(alpha * goal + (1 - alpha) * rest)
        return value, (value - aim) / alpha

    def loss(self, networks: Any, draws: SpanDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """As `Spans.loss`, times alpha."""
        loss, metrics = super().loss(networks, draws)
        return jnp.asarray(draws.alpha, loss.dtype) * loss, metrics

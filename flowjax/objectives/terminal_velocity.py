"""Terminal velocity matching: where a span ends, the flow moves with the velocity there.

The displacement f = (e - t) U(x_t, t; e) obeys, with x_t fixed,

    df/de = U + (e - t) d_e U = v(x_t + f, e),

and the right side is the network's own velocity as a constant; it is learned in the rows with e = t, where df/de = U is
compared with the example's. While MeanFlow's derivative is one of its target, this one is trained through, so that a
step needs second derivatives.

References:
    Zhou et al. (2025), Terminal Velocity Matching, arXiv:2511.19797.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import check_answer
from flowjax.objectives.spans import GuidedSpans, SpanDraws, ask, differentiable
from flowjax.paths.base import expand


@fact(
    "objective",
    "terminal_velocity",
    "average velocities from the velocity at the end",
    cite="zhou2025terminal",
    tasks=("generation", "distillation"),
)
@pytree
class TerminalVelocity(GuidedSpans):
    """Terminal velocity matching: d/de [(e - t) U] is the velocity at the end of the span.

    Further attributes are those of `GuidedSpans`.

    Attributes:
        target_average: The law of an average that gives the velocity at the end; None is the network itself.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> objective = fj.objectives.TerminalVelocity(path=target.path, power=0.0, frac_flow_matching=0.0)
        >>> draws = objective.draw(jax.random.key(0), {"x1": target.sample(jax.random.key(1), 8)[:, None]})
        >>> bool((objective.loss(target.network("mean_velocity"), draws)[0] < 1e-6).all())
        True
    """

    target_average: Any = part("average", None, static=True)

    def compare(
        self, network: Callable[..., Any], target: Callable[..., Any], draws: SpanDraws, x: Array, goal: Array
    ) -> tuple[Array, Array]:
        """U, and the distance of df/de to the velocity at the end, or of U to that of the example where e = t."""
        smooth = with_keys(differentiable(network), draws.seeds)
        answer = lambda end: smooth(x, draws.t, draws.cond, end=end)  # noqa: E731
        value, slope = jax.jvp(answer, (draws.end,), (jnp.ones_like(draws.end),))
        check_answer(value, goal)
        length = expand(draws.end - draws.t, x)
        there = ask(target, draws, x + jax.lax.stop_gradient(length * value), draws.end, draws.end)
        return value, value + length * slope - jnp.where(length == 0, goal, there)

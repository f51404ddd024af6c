"""MeanFlow: a network learns average velocities from scratch, so that one call leads from noise to data.

The average velocity U(x, t; e) of `flowjax.objectives.spans` obeys

    U = v + (e - t) dU/dt,   dU/dt = (d_x U) v + d_t U with e fixed,

(times rise from noise to data here; in papers that count down the second term has a minus). Training replaces the
marginal velocity v by that of the example, guided or not, and the right side by a constant:

    target = stop_gradient(v_g + (e - t) dU/dt),   S = sum |U(x_t, t; e) - target|^2,
    loss = S / stop_gradient((S + c)^p)

References:
    Geng et al. (2025), Mean Flows for One-step Generative Modeling, equations 6 to 11, arXiv:2505.13447.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from flowjax._checks import choose
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.objectives.flow_matching import check_answer
from flowjax.objectives.spans import DERIVATIVES, GuidedSpans, SpanDraws, along
from flowjax.paths.base import expand


def identity(
    network: Callable[..., Any], draws: SpanDraws, x: Array, goal: Array, derivative: str, **options: Any
) -> tuple[Array, Array]:
    """U, and its distance to goal + (e - t) dU/dt, (B, ...) each; arguments are those of `spans.along`."""
    value, slope = along(network, draws, x, goal, derivative, **options)
    check_answer(value, goal)
    # The identity holds for the average velocity; a gradient of its right side would train another one.
    return value, value - jax.lax.stop_gradient(goal + expand(draws.end - draws.t, x) * slope)


@fact(
    "objective",
    "mean_flow",
    "average velocities by their identity, for one evaluation",
    cite="geng2025mean",
    tasks=("generation", "distillation"),
)
@pytree
class MeanFlow(GuidedSpans):
    """The MeanFlow objective: U = v + (e - t) dU/dt, the right side as a constant.

    Further attributes are those of `GuidedSpans`. The authors take omega = 1 and kappa = 0.5 for guidance of scale 2,
    and p = 0.75 for CIFAR-10. (`frac_flow_matching` is their `data_proportion`; `ratio` in their code for CIFAR-10 is
    the rest.)

    Attributes:
        derivative: "forward", or "central" for networks whose kernels have no forward derivative.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> objective = fj.objectives.MeanFlow(path=target.path, power=0.0)
        >>> draws = objective.draw(jax.random.key(0), {"x1": target.sample(jax.random.key(1), 8)[:, None]})
        >>> loss, metrics = objective.loss(target.network("mean_velocity"), draws)
        >>> loss.shape, sorted(metrics)
        ((8,), ['mse', 'velocity_mse'])
    """

    derivative: str = static("forward")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        choose("derivative", self.derivative, DERIVATIVES)

    def compare(
        self, network: Callable[..., Any], target: Callable[..., Any], draws: SpanDraws, x: Array, goal: Array
    ) -> tuple[Array, Array]:
        """U, and its distance to v_g + (e - t) dU/dt."""
        return identity(network, draws, x, goal, self.derivative)

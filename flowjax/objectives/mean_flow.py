"""MeanFlow: a network learns average velocities from scratch, so that one call leads from noise to data.

U(x, t; e) = 1/(e - t) int_t^e v(s, x_s) ds is the average velocity from t to e along the flow through x at t. It obeys

    U = v + (e - t) dU/dt,   dU/dt = (d_x U) v + d_t U with e fixed,

(times rise from noise to data here; in papers that count down the second term has a minus). Training replaces the
marginal velocity v by the conditional one of the example and the right side by a constant:

    target = stop_gradient(v_g + (e - t) dU/dt),   S = sum |U(x_t, t; e) - target|^2,
    loss = S / stop_gradient((S + c)^p)

With e = t this is flow matching. Where there are conditions, v_g is a guided velocity, and samples are guided without a
second call:

    kappa = 0   v_g = v_u + omega (v - v_u)
    else        v_g = omega v + (1 - omega - kappa) v_u + kappa v_c,

with v_u, v_c the network's own velocities without and with the condition. At the optimum both are guidance of scale
omega / (1 - kappa).

References:
    Geng et al. (2025), Mean Flows for One-step Generative Modeling, equations 6 to 11 and 19, arXiv:2505.13447.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import choose, real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import check_answer, with_null
from flowjax.objectives.spans import (
    DERIVATIVES,
    SpanDraws,
    adaptive,
    along,
    expand,
    in_precision,
    make_spans,
    total,
)
from flowjax.objectives.times import LogitNormal, TimeLaw, check_law
from flowjax.paths import GaussianPath

NOISE_SIDE = LogitNormal(mean=0.4, std=1.0)  # in times that count from data to noise the mean is -0.4


@fact(
    "objective",
    "mean_flow",
    "average velocities, for one evaluation",
    cite="geng2025mean",
    tasks=("generation", "distillation"),
)
@pytree
class MeanFlow:
    """The MeanFlow objective: trains `network(x, t, cond, end=e)` to answer with average velocities.

    Sampled by `flowjax.solvers.Jump`, without guidance: that of training is in the weights. The null condition is
    learned for velocities (e = t) alone.

    Attributes:
        path: The path from noise to data, with a finite velocity at both ends.
        times: Law of the two times of each example; the earlier is t, the later e.
        frac_flow_matching: Fraction in [0, 1] of the rows with e = t, evenly spread. (The authors call it
            `data_proportion`; `ratio` in their code for CIFAR-10 is the rest.)
        omega: Weight of the example's velocity in guidance, at least 0.
        kappa: Weight of the network's conditional velocity, in [0, 1); the authors take 0.5 with omega = 1, scale 2.
        start: Earliest time of guidance, in [0, 1].
        stop: Latest time of guidance.
        label_dropout: Probability that a condition is replaced by `null`; at most `frac_flow_matching`, because it
            happens in those rows.
        null: The null condition: a pytree of scalars like one example's condition.
        power: Exponent p of the adaptive weight, at least 0; 0 is the plain square. Losses with 1 lie in [0, 1) and
            say nothing: look at `velocity_mse`.
        offset: c of the adaptive weight, positive.
        derivative: "forward", or "central" for networks whose kernels have no forward derivative.

    Raises:
        ValueError: A number outside its range, a path whose velocity is infinite at an end, guidance without a null
            condition.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> objective = fj.objectives.MeanFlow(path=target.path, power=0.0)
        >>> draws = objective.draw(jax.random.key(0), {"x1": target.sample(jax.random.key(1), 8)[:, None]})
        >>> loss, metrics = objective.loss(target.network("mean_velocity"), draws)
        >>> loss.shape, sorted(metrics)
        ((8,), ['mse', 'velocity_mse'])
    """

    prediction = "velocity"

    path: GaussianPath = part("path")
    times: TimeLaw = part("time_law", NOISE_SIDE)
    frac_flow_matching: float = static(0.75)
    omega: float = 1.0
    kappa: float = static(0.0)
    start: float = 0.0
    stop: float = 1.0
    label_dropout: float = static(0.0)
    null: Any = None
    power: float = 1.0
    offset: float = 0.01
    derivative: str = static("forward")

    def __post_init__(self) -> None:
        """Checks the options."""
        real("[0, 1]", frac_flow_matching=self.frac_flow_matching, label_dropout=self.label_dropout)
        real("[0, 1]", start=self.start, stop=self.stop)
        real("[0, 1)", kappa=self.kappa)
        real("[0, inf)", omega=self.omega, power=self.power)
        real("(0, inf)", offset=self.offset)
        choose("derivative", self.derivative, DERIVATIVES)
        object.__setattr__(self, "times", check_law(self.times))
        if not (self.path.has_velocity(0.0) and self.path.has_velocity(1.0)):
            raise ValueError(f"the velocity of {type(self.path).__name__} is infinite at an end: take Linear or Trig")
        if self.label_dropout > self.frac_flow_matching:
            raise ValueError(
                f"label_dropout={self.label_dropout} is more than frac_flow_matching={self.frac_flow_matching}: "
                "conditions are dropped in rows of flow matching alone"
            )
        if self.null is None and (self.label_dropout or self._guided):
            raise ValueError("label_dropout and guidance need null=, the condition that stands for none")

    @property
    def _guided(self) -> bool:
        return bool(self.kappa) or not isinstance(self.omega, int | float) or self.omega != 1

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> SpanDraws:
        """Draws noise, spans and dropped conditions, see `flowjax.objectives.spans.make_spans`.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        return make_spans(key, batch, self.times, self.frac_flow_matching, self.label_dropout, self.null)

    def loss(self, networks: Callable[..., Array], draws: SpanDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Adaptively weighted squared distance to the MeanFlow identity.

        Args:
            networks: The network, called as `networks(x, t, cond, end=e)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`. An example whose end lies before its
                start has the loss NaN.

        Returns:
            The loss of each example, (B,), and {"mse": mean square of U - target, "velocity_mse": of U - v, (B,)}.

        Raises:
            ValueError: The network's answer has another shape than the data.
        """
        draws = in_precision(draws)
        t = draws.t
        x = self.path.interpolate(t, draws.x0, draws.x1)
        velocity = self.path.conditional_velocity(t, draws.x0, draws.x1)
        goal = self._guidance(networks, draws, x, velocity) if self._guided else velocity
        value, slope = along(networks, draws, x, goal, self.derivative)
        check_answer(value, goal)
        # The identity holds for the average velocity; a gradient of its right side would train another one.
        target = jax.lax.stop_gradient(goal + expand(draws.end - t, x) * slope)
        squares, size = total(value - target), value[0].size
        metrics = {"mse": squares / size, "velocity_mse": total(value - velocity) / size}
        return jnp.where(draws.end < t, jnp.nan, adaptive(squares, self.power, self.offset)), metrics

    def _guidance(self, network: Callable[..., Array], draws: SpanDraws, x: Array, velocity: Array) -> Array:
        """The guided velocity; that of the example where its condition is dropped, and outside the interval."""
        t, call = draws.t, with_keys(network, draws.seeds)
        none = with_null(draws.cond, self.null, jnp.ones(t.shape, bool))
        inside = (t >= self.start) & (t <= self.stop)
        omega = expand(jnp.where(inside, self.omega, 1.0).astype(t.dtype), x)
        # Guidance is a number of the target: the network learns from what it will have to equal, not from both sides.
        without = jax.lax.stop_gradient(call(x, t, none, end=t))
        if self.kappa:
            own = jax.lax.stop_gradient(call(x, t, draws.cond, end=t))
            kappa = expand(jnp.where(inside, self.kappa, 0.0).astype(t.dtype), x)
            guided = omega * velocity + (1 - omega - kappa) * without + kappa * own
        else:
            guided = without + omega * (velocity - without)
        return guided if draws.dropped is None else jnp.where(expand(draws.dropped, x), velocity, guided)

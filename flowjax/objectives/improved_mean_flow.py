"""Improved MeanFlow: the average velocity is trained as a velocity, along the network's own flow.

The network answers with two numbers, {"u": U(x, t; e), "v": v(x, t)}. With v_c, v_u its own v with and without the
condition, and a scale w of guidance that is one of its inputs,

    v_g = v + (1 - 1/w) (v_c - v_u),
    V = U - (e - t) stop_gradient(dU/dt),   dU/dt = (d_x U) v_c + d_t U with e fixed,
    S_u = sum |V - v_g|^2,   S_v = sum |v(x, t) - v_g|^2,   loss = sum over both of S / stop_gradient((S + c)^p)

(times rise from noise to data here; in papers that count down the sign in V is a plus). At the optimum
v_c = w E[v] + (1 - w) v_u, guidance of scale w. MeanFlow takes the derivative along the velocity of the example; with
that the first term has MeanFlow's value and gradient.

References:
    Geng et al. (2025), Improved Mean Flows: On the Challenges of Fastforward Generative Models, arXiv:2512.02012.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import choose, pair, real
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.objectives.flow_matching import check_answer
from flowjax.objectives.spans import DERIVATIVES, SpanDraws, Spans, along, ask
from flowjax.paths.base import expand


@fact(
    "objective",
    "improved_mean_flow",
    "average velocities trained as velocities, with guidance as an input",
    cite="geng2025improved",
    tasks=("generation",),
)
@pytree
class ImprovedMeanFlow(Spans):
    """The improved MeanFlow objective, for networks of two heads such as `flowjax.models.TokenDiT`.

    Further attributes are those of `Spans`. The scale of guidance and the times between which it holds are inputs of
    the network, drawn for each example: the scale with a density proportional to w^-beta, the first time uniformly in
    [0, 1/2], the last in [1/2, 1]; in rows with e = t it holds always. The authors take scales from 1 to 8.

    Attributes:
        guidance: Smallest and largest scale of guidance, at least 1; None is without, and such a network has no such
            inputs.
        beta: Exponent of the density of the scales.
        derivative: "forward", or "central" for networks whose kernels have no forward derivative.

    Raises:
        ValueError: A number outside its range, guidance without a null condition.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> heads = {"u": target.network("mean_velocity"), "v": target.network("velocity")}
        >>> network = lambda x, t, cond, end: {"u": heads["u"](x, t, cond, end), "v": heads["v"](x, t, cond)}
        >>> objective = fj.objectives.ImprovedMeanFlow(path=target.path)
        >>> draws = objective.draw(jax.random.key(0), {"x1": target.sample(jax.random.key(1), 8)[:, None]})
        >>> objective.loss(network, draws)[0].shape
        (8,)
    """

    head = "u"

    frac_flow_matching: float = static(0.5)
    guidance: tuple[float, float] | None = static(None)
    beta: float = static(1.0)
    derivative: str = static("forward")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        choose("derivative", self.derivative, DERIVATIVES)
        real("(-inf, inf)", beta=self.beta)
        if self.guidance is not None:
            object.__setattr__(self, "guidance", tuple(self.guidance))
            pair("[1, inf)", guidance=self.guidance)

    @property
    def guided(self) -> bool:
        """Whether there are scales."""
        return self.guidance is not None

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> SpanDraws:
        """Draws as `Spans.draw`, with scales and intervals of guidance."""
        draws = super().draw(key, batch, memory, step=step)
        if self.guidance is None:
            return draws

        def more(i: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(jax.random.clone(key), 2), i)
            return jax.random.uniform(own, (3,), jnp.float32)

        chance, first, last = jax.vmap(more)(jnp.arange(len(draws.t))).T
        low, high = self.guidance
        if self.beta == 1:
            scale = low * jnp.exp(chance * jnp.log(high / low))
        else:
            power = 1 - self.beta
            scale = (low**power + chance * (high**power - low**power)) ** (1 / power)
        still = draws.end == draws.t
        start, stop = jnp.where(still, 0.0, first / 2), jnp.where(still, 1.0, 1 - last / 2)
        return dataclasses.replace(draws, guidance=scale, interval=jnp.stack([start, stop], axis=1))

    def compare(
        self, network: Callable[..., Any], target: Callable[..., Any], draws: SpanDraws, x: Array, goal: Array
    ) -> tuple[Array, ...]:
        """U, and the distances of V and v to the guided velocity."""
        aim, direction, asked = self._guidance(network, draws, x, goal)
        answer, slope = along(network, draws, x, direction, self.derivative, **asked)
        check_heads(answer, goal)
        # As in MeanFlow, the derivative is a constant: the target of V, a velocity, does not depend on the network.
        compound = answer["u"] - expand(draws.end - draws.t, x) * jax.lax.stop_gradient(slope["u"])
        return answer["u"], compound - aim, answer["v"] - aim

    def _guidance(
        self, network: Callable[..., Any], draws: SpanDraws, x: Array, velocity: Array
    ) -> tuple[Array, Array, dict[str, Any]]:
        """The guided velocity, the network's own, and what else the network is asked."""
        t, interval = draws.t, draws.interval
        if draws.guidance is None or interval is None:
            own = ask(network, draws, x, t, t)
            check_heads(own, velocity)
            return velocity, own["v"], {}
        always = jnp.broadcast_to(jnp.asarray([0, 1], t.dtype), (len(t), 2))
        inside = (t >= interval[:, 0]) & (t <= interval[:, 1])
        scale = jnp.where(inside, draws.guidance, 1)
        own = ask(network, draws, x, t, t, guidance=scale, interval=always)
        check_heads(own, velocity)
        without = ask(network, self.unconditional(draws), x, t, t, guidance=jnp.ones_like(t), interval=always)
        guided = velocity + expand(1 - 1 / scale, x) * (own["v"] - without["v"])
        if draws.dropped is not None:
            guided = jnp.where(expand(draws.dropped, x) == 1, velocity, guided)
        return guided, own["v"], {"guidance": draws.guidance, "interval": interval}


def check_heads(answer: Any, target: Float[Array, "B ..."]) -> None:
    """Refuses an answer that is not {"u": ..., "v": ...}, both of the shape of the target."""
    if not isinstance(answer, Mapping) or set(answer) != {"u", "v"}:
        found = f"the names {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else type(answer).__name__
        raise ValueError(
            f"improved MeanFlow needs a network of two heads, which answers with u and v, as token_dit; got {found}"
        )
    for value in answer.values():
        check_answer(value, target)

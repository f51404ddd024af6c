"""What objectives of average velocities share: spans (t, end), guidance, derivatives along the flow, weights.

U(x, t; e) = 1/(e - t) int_t^e v(s, x_s) ds is the average velocity from t to e along the flow through x at t; with
e = t it is the velocity. Some rows of a batch have e = t and learn v by flow matching, with the conditional velocity of
the example; the others learn U from v, each objective by an identity of its own. Where there are conditions, v may be
guided, and samples are guided without a second call; with `GuidedSpans` by one scale:

    kappa = 0   v_g = v_u + omega (v - v_u)
    else        v_g = omega v + (1 - omega - kappa) v_u + kappa v_c,

with v_u, v_c the network's own velocities without and with the condition. At the optimum both are guidance of scale
omega / (1 - kappa).

References:
    Geng et al. (2025), Mean Flows for One-step Generative Modeling, equation 19, arXiv:2505.13447.
"""

import abc
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, UInt32

from flowjax._checks import real
from flowjax._pytree import part, pytree, static
from flowjax.models.attention import IMPLEMENTATIONS
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import make_draws, with_null
from flowjax.objectives.times import LogitNormal, TimeLaw, check_law
from flowjax.paths import GaussianPath
from flowjax.paths.base import check_time_and_state, expand

DIFFERENCE = 5e-3  # of times, where the derivative is a central difference
DERIVATIVES = ("forward", "central")


@pytree
class SpanDraws:
    """Everything random of one training step on spans of the path, for the global batch.

    Attributes:
        x0: Noise, (B, ...).
        x1: Data, (B, ...).
        t: Times where spans begin, (B,).
        end: Times where they end, (B,), at least t; where they are t the example is one of flow matching.
        cond: Condition with a leading axis B after label dropout, or None.
        dropped: Where the condition has been replaced by none, (B,).
        seeds: Seeds of the network's dropout, (B, 2); None is without dropout.
        alpha: Of `AlphaFlow`, the share of a span that is its first part.
        guidance: Scales of guidance, (B,), of objectives that have a range of them.
        interval: Of `ImprovedMeanFlow`, the times (start, stop) between which they hold, (B, 2).

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.MeanFlow(path=fj.paths.Linear(), frac_flow_matching=0.75)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((8, 2))})
        >>> int(jnp.sum(draws.end == draws.t))
        6
    """

    x0: Float[Array, "B ..."]
    x1: Float[Array, "B ..."]
    t: Float[Array, " B"]
    end: Float[Array, " B"]
    cond: Any = None
    dropped: Bool[Array, " B"] | None = None
    seeds: UInt32[Array, "B 2"] | None = None
    alpha: Float[Array, ""] | None = None
    guidance: Float[Array, " B"] | None = None
    interval: Float[Array, "B 2"] | None = None


def make_spans(
    key: Key[Array, ""], batch: Mapping[str, Any], times: Any, fraction: float, label_dropout: float, null: Any
) -> SpanDraws:
    """Noise and pairs of times; example i depends on (key, i) only.

    A `fraction` of the rows, evenly spread, has end = t, the others the later of two times as end. Conditions are
    dropped in rows with end = t alone, so often that it is `label_dropout` of all: without a condition only velocities
    are learned. (The authors' programs take the first rows of a batch for both.)

    Args:
        key: Key of the training step.
        batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
        times: Law of both times.
        fraction: Of the rows of flow matching.
        label_dropout: At most `fraction`.
        null: The null condition, a pytree of scalars like one example's condition.
    """
    drawn = make_draws(key, batch, times, 0.0, None)
    index = jnp.arange(drawn.t.shape[0])

    def more(i: Array) -> tuple[Array, Array]:
        for_time, for_label = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.clone(key), 1), i))
        return times.sample(for_time), jax.random.uniform(for_label, (), jnp.float32)

    other, chance = jax.vmap(more)(index)
    # Every device and every part of an accumulated batch has its share.
    number = index.astype(jnp.float32)
    still = jnp.floor((number + 1) * fraction) > jnp.floor(number * fraction)
    t, end = jnp.minimum(drawn.t, other), jnp.maximum(drawn.t, other)
    dropped = still & (chance * fraction < label_dropout)
    return SpanDraws(
        x0=drawn.x0,
        x1=drawn.x1,
        t=t,
        end=jnp.where(still, t, end),
        cond=with_null(drawn.cond, null, dropped),
        dropped=dropped,
        seeds=drawn.seeds,
    )


def in_precision(draws: SpanDraws) -> SpanDraws:
    """The draws with times, and scales of guidance, in at least the precision of the data."""
    t, end = (check_time_and_state(time, draws.x1) for time in (draws.t, draws.end))
    given = {name: getattr(draws, name) for name in ("guidance", "interval")}
    more = {name: jnp.asarray(value, t.dtype) for name, value in given.items() if value is not None}
    return dataclasses.replace(draws, t=t, end=end, **more)


def differentiable(network: Any) -> Any:
    """The network as derivatives see it: in float32 at least, with attention that has a forward derivative.

    Tangents in half precision are what long runs become NaN by; flash kernels have no forward derivative. A network
    without either, or of modules of other libraries, is returned as it is.
    """
    if not isinstance(network, nnx.Module):
        return network
    copy, changed = jax.tree.map(lambda leaf: leaf, network), False
    for _, module in nnx.iter_graph(copy):
        if not isinstance(module, nnx.Module):
            continue
        dtype, attention = getattr(module, "dtype", None), getattr(module, "attention", None)
        if dtype is not None and jnp.finfo(dtype).bits < 32:
            module.dtype, changed = jnp.float32, True
        if isinstance(attention, str) and not IMPLEMENTATIONS.get(attention, True):
            warnings.warn(
                f"attention={attention!r} has no forward derivative: 'xla' takes its place where one is needed",
                stacklevel=2,
            )
            module.attention, changed = "xla", True
    return copy if changed else network


def along(
    network: Callable[..., Any],
    draws: Any,
    x: Array,
    velocity: Array,
    derivative: str,
    difference: Any = DIFFERENCE,
    **asked: Any,
) -> tuple[Any, Any]:
    """A network's answer at (x, t; end), and its derivative in t along x' = velocity, with the end fixed.

    Gradients go through the answer alone.

    Args:
        network: Called as `network(x, t, cond, end=end)`.
        draws: With t, cond and seeds; and with an end, unless the network takes none.
        x: States.
        velocity: dx/dt, of the shape of x.
        derivative: "forward", `jax.jvp`; or "central", a difference of two states in one more call, for networks
            without one. No gradient goes through that call, so that its backward pass is not computed.
        difference: Of the times of these states and t, positive.
        **asked: What the network is asked beside this.
    """
    smooth, end = differentiable(network), getattr(draws, "end", None)

    def call(network: Callable[..., Any], x: Array, t: Array, end: Array | None, times: int = 1) -> Any:
        seeds, cond, own = jax.tree.map(lambda a: jnp.repeat(a, times, axis=0), (draws.seeds, draws.cond, asked))
        more = own if end is None else {"end": end, **own}
        return with_keys(network, seeds)(x, t, cond, **more)

    def value() -> Any:
        return call(network, x, draws.t, end)

    if derivative == "central":
        # Both states of an example lie beside each other, on one device.
        states, velocities, t, ends = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), (x, velocity, draws.t, end))
        step = jnp.tile(jnp.asarray([1, -1], t.dtype), len(x)) * jnp.asarray(difference, t.dtype)
        answers = call(smooth, states + expand(step, x) * velocities, t + step, ends, times=2)
        slope = jax.tree.map(lambda a: (a[::2] - a[1::2]) / jnp.asarray(2 * difference, a.dtype), answers)
        return value(), jax.lax.stop_gradient(slope)
    tangents = velocity, jnp.ones_like(draws.t), None if end is None else jnp.zeros_like(end)
    found, slope = jax.jvp(functools.partial(call, smooth), (x, draws.t, end), tangents)
    # One call serves both, unless training itself is in half precision or by a flash kernel.
    return found if smooth is network else value(), jax.lax.stop_gradient(slope)


def total(error: Array) -> Float[Array, " B"]:
    """Sum of the squares of each example."""
    return jnp.sum(error**2, axis=tuple(range(1, error.ndim)))


def adaptive(squares: Float[Array, " B"], power: Any, offset: Any) -> Float[Array, " B"]:
    """squares / (squares + offset)^power, the denominator as a constant: examples pull alike whatever their size."""
    # With the gradient of its weight too, a loss with power 1 would hardly change beyond `offset`.
    return squares / jax.lax.stop_gradient((squares + offset) ** power)


@pytree
class Spans(abc.ABC):
    """Base of objectives that train `network(x, t, cond, end=e)` to answer with average velocities.

    Sampled by `flowjax.solvers.Jump`, without guidance: that of training is in the weights. The null condition is
    learned for velocities (e = t) alone.

    Attributes:
        path: The path from noise to data, with a finite velocity at both ends.
        times: Law of the two times of each example; the earlier is t, the later e.
        frac_flow_matching: Fraction in [0, 1] of the rows with e = t, evenly spread.
        label_dropout: Probability that a condition is replaced by `null`; at most `frac_flow_matching`, because it
            happens in those rows.
        null: The null condition: a pytree of scalars like one example's condition.
        power: Exponent p of the weight of an example with the sum of squares S, 1 / (S + c)^p as a constant; at least
            0, which is the plain sum. Losses with 1 lie in [0, 1) and say nothing: look at `velocity_mse`.
        offset: c of that weight, positive.

    Raises:
        ValueError: A number outside its range, a path whose velocity is infinite at an end, dropped conditions without
            a null condition.

    Example:
        >>> import flowjax as fj
        >>> issubclass(fj.objectives.MeanFlow, fj.objectives.Spans)
        True
    """

    prediction = "velocity"
    drops_in_spans = False  # whether conditions are dropped in rows with a span too

    path: GaussianPath = part("path")
    times: TimeLaw = part("time_law", LogitNormal(mean=0.4, std=1.0))  # -0.4 in times that count from data to noise
    frac_flow_matching: float = static(0.75)
    label_dropout: float = static(0.0)
    null: Any = None
    power: float = 1.0
    offset: float = 0.01

    def __post_init__(self) -> None:
        """Checks the options."""
        real("[0, 1]", frac_flow_matching=self.frac_flow_matching, label_dropout=self.label_dropout)
        real("[0, inf)", power=self.power)
        real("(0, inf)", offset=self.offset)
        object.__setattr__(self, "times", check_law(self.times))
        if not (self.path.has_velocity(0.0) and self.path.has_velocity(1.0)):
            raise ValueError(f"the velocity of {type(self.path).__name__} is infinite at an end: take Linear or Trig")
        if self.label_dropout > self.frac_flow_matching and not self.drops_in_spans:
            raise ValueError(
                f"label_dropout={self.label_dropout} is more than frac_flow_matching={self.frac_flow_matching}: "
                "conditions are dropped in rows of flow matching alone"
            )
        if self.null is None and (self.label_dropout or self.guided):
            raise ValueError("label_dropout and guidance need null=, the condition that stands for none")

    @property
    def guided(self) -> bool:
        """Whether velocities are guided."""
        return False

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> SpanDraws:
        """Draws noise, spans and dropped conditions, see `make_spans`.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        return make_spans(key, batch, self.times, self.frac_flow_matching, self.label_dropout, self.null)

    def loss(self, networks: Any, draws: SpanDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Weighted squared distance of each example to its target.

        Args:
            networks: The network, called as `networks(x, t, cond, end=e)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`. An example whose end lies before its
                start has the loss NaN.

        Returns:
            The loss of each example, (B,), and {"mse": its mean square without the weight, "velocity_mse": that of
            U - v, (B,)}.

        Raises:
            ValueError: The network's answer has another shape than the data.
        """
        draws = in_precision(draws)
        network, target = (networks[k] if isinstance(networks, Mapping) else networks for k in ("network", "target"))
        x = self.path.interpolate(draws.t, draws.x0, draws.x1)
        velocity = self.path.conditional_velocity(draws.t, draws.x0, draws.x1)
        value, *errors = self.compare(network, target, draws, x, self.goal(network, draws, x, velocity))
        squares, size = [total(error) for error in errors], value[0].size
        metrics = {"mse": squares[0] / size, "velocity_mse": total(value - velocity) / size}
        loss = sum(map(self.weighted, squares))
        return jnp.where(draws.end < draws.t, jnp.nan, loss), metrics

    def weighted(self, squares: Float[Array, " B"]) -> Float[Array, " B"]:
        """The loss of examples with these sums of squares."""
        return adaptive(squares, self.power, self.offset)

    def goal(self, network: Callable[..., Any], draws: SpanDraws, x: Array, velocity: Array) -> Array:
        """What stands for the marginal velocity at x, (B, ...): the conditional one of the examples."""
        return velocity

    @abc.abstractmethod
    def compare(
        self, network: Callable[..., Any], target: Callable[..., Any], draws: SpanDraws, x: Array, goal: Array
    ) -> tuple[Array, ...]:
        """The network's U(x, t; e), and what is to become zero, each (B, ...); of several, each has its own weight.

        Args:
            network: The trained network.
            target: What gives targets: the same, or an average of it.
            draws: Of this step.
            x: States at `draws.t`.
            goal: Velocities there, from `goal`.
        """

    def unconditional(self, draws: SpanDraws) -> SpanDraws:
        """The draws with the null condition throughout."""
        return dataclasses.replace(draws, cond=with_null(draws.cond, self.null, jnp.ones(draws.t.shape, bool)))


@pytree
class GuidedSpans(Spans):
    """Base of objectives whose velocities are guided by one scale, omega / (1 - kappa).

    Further attributes are those of `Spans`.

    Attributes:
        omega: Weight of the example's velocity in guidance, at least 0.
        kappa: Weight of the network's conditional velocity, in [0, 1).
        start: Earliest time of guidance, in [0, 1].
        stop: Latest time of guidance.

    Raises:
        ValueError: A number outside its range, or guidance without a null condition.

    Example:
        >>> import flowjax as fj
        >>> fj.objectives.MeanFlow(path=fj.paths.Linear(), omega=1.0, kappa=0.5, null=10).guided
        True
    """

    omega: float = 1.0
    kappa: float = static(0.0)
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("[0, 1]", start=self.start, stop=self.stop)
        real("[0, 1)", kappa=self.kappa)
        real("[0, inf)", omega=self.omega)

    @property
    def guided(self) -> bool:
        """Whether the scale is not 1."""
        return bool(self.kappa) or not isinstance(self.omega, int | float) or self.omega != 1

    def goal(self, network: Callable[..., Any], draws: SpanDraws, x: Array, velocity: Array) -> Array:
        """The guided velocity; that of the example where its condition is dropped, and outside the interval."""
        if not self.guided:
            return velocity
        t = draws.t
        inside = (t >= self.start) & (t <= self.stop)
        omega = expand(jnp.where(inside, self.omega, 1.0).astype(t.dtype), x)
        without = ask(network, self.unconditional(draws), x, t, t)
        if self.kappa:
            own = ask(network, draws, x, t, t)
            kappa = expand(jnp.where(inside, self.kappa, 0.0).astype(t.dtype), x)
            guided = omega * velocity + (1 - omega - kappa) * without + kappa * own
        else:
            guided = without + omega * (velocity - without)
        return guided if draws.dropped is None else jnp.where(expand(draws.dropped, x) == 1, velocity, guided)


def ask(network: Callable[..., Any], draws: Any, x: Array, t: Array, end: Array, **asked: Any) -> Any:
    """The network's answer as a number of a target: learning moves the other side towards it."""
    return jax.lax.stop_gradient(with_keys(network, draws.seeds)(x, t, draws.cond, end=end, **asked))

"""What objectives of average velocities share: spans (t, end), derivatives along the flow, adaptive weights."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, Shaped, UInt32

from flowjax._pytree import pytree
from flowjax.models.attention import IMPLEMENTATIONS
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import make_draws, with_null
from flowjax.paths.base import check_time_and_state

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
    """The draws with times in at least the precision of the data."""
    t, end = (check_time_and_state(time, draws.x1) for time in (draws.t, draws.end))
    return dataclasses.replace(draws, t=t, end=end)


def expand(weights: Shaped[Array, " B"], like: Array) -> Array:
    """Numbers per example with the unit axes to multiply `like`."""
    return weights.reshape(weights.shape + (1,) * (like.ndim - 1))


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
    **more: Any,
) -> tuple[Any, Any]:
    """A network's answer at (x, t; end), and its derivative in t along x' = velocity, with the end fixed.

    Gradients go through the answer alone.

    Args:
        network: Called as `network(x, t, cond, end=end, **more)`.
        draws: With t, end, cond and seeds.
        x: States.
        velocity: dx/dt, of the shape of x.
        derivative: "forward", `jax.jvp`; or "central", a difference of two more calls, for networks without one.
        **more: Further arguments of the network.
    """
    smooth = differentiable(network)

    def call(network: Callable[..., Any], x: Array, t: Array, end: Array) -> Any:
        return with_keys(network, draws.seeds)(x, t, draws.cond, end=end, **more)

    def value() -> Any:
        return call(network, x, draws.t, draws.end)

    if derivative == "central":
        step = jnp.asarray(DIFFERENCE, draws.t.dtype)
        shift = expand(jnp.full_like(draws.t, DIFFERENCE), x) * velocity
        ahead, behind = (call(smooth, x + sign * shift, draws.t + sign * step, draws.end) for sign in (1, -1))
        slope = jax.tree.map(lambda a, b: (a - b) / (2 * step).astype(a.dtype), ahead, behind)
        return value(), jax.lax.stop_gradient(slope)
    tangents = velocity, jnp.ones_like(draws.t), jnp.zeros_like(draws.end)
    found, slope = jax.jvp(functools.partial(call, smooth), (x, draws.t, draws.end), tangents)
    # One call serves both, unless training itself is in half precision or by a flash kernel.
    return found if smooth is network else value(), jax.lax.stop_gradient(slope)


def total(error: Array) -> Float[Array, " B"]:
    """Sum of the squares of each example."""
    return jnp.sum(error**2, axis=tuple(range(1, error.ndim)))


def adaptive(squares: Float[Array, " B"], power: Any, offset: Any) -> Float[Array, " B"]:
    """squares / (squares + offset)^power, the denominator as a constant: examples pull alike whatever their size."""
    # The weight is one of the step before: with its own gradient the loss would only bend at `offset`.
    return squares / jax.lax.stop_gradient((squares + offset) ** power)

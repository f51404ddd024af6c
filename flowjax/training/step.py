"""One training step: draws, loss, gradient, optimiser, average. Pure, random by (key, step) only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from flowjax.training.state import TrainState


def ema_decay(step: Int[Array, ""], limit: float) -> Float[Array, ""]:
    """Decay of the average after `step` updates: min(limit, (1 + step) / (10 + step)).

    The ramp lets the average forget the initial network, which a constant decay would keep in it for 1 / (1 -
    limit) steps.
    """
    count = step.astype(jnp.float32)
    return jnp.minimum(limit, (1 + count) / (10 + count))


def make_step(optimizer: optax.GradientTransformation, ema: float = 0.999) -> Callable:
    """The function `step(state, objective, batch, key) -> (state, metrics)`.

    `objective` is an argument and a pytree, so weights inside it (a teacher's) are never constants of the
    program. `batch` is what `objective.draw` takes, normally {"x1": (B, ...), "cond": (B,)}; `key` is the
    same at every step. `metrics` are float32 scalars: "loss", "gradient_norm" and the batch means of the
    metrics of the objective.

    Args:
        optimizer: Applied to `state.network`.
        ema: Largest decay of `state.average`, in [0, 1); reached slowly, see `ema_decay`.

    Raises:
        ValueError: `ema` is outside [0, 1).
    """
    if not 0 <= ema < 1:
        raise ValueError(f"the decay of the average must lie in [0, 1), got {ema}")

    def step(
        state: TrainState, objective: Any, batch: Any, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        draws = objective.draw(jax.random.fold_in(key, state.step), batch, state.memory)

        def mean_loss(network):
            per_example, metrics = objective.loss(network, draws)
            return per_example.mean(), metrics

        (loss, metrics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.network)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.network)
        network = optax.apply_updates(state.network, updates)
        decay = ema_decay(state.step, ema)
        average = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.average, network)
        report = {name: value.mean() for name, value in metrics.items()}
        report |= {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        new = TrainState(
            step=state.step + 1,
            network=network,
            average=average,
            optimizer=optimizer_state,
            memory=state.memory,
        )
        return new, report

    return step


def compile_step(step: Callable, state: TrainState, objective: Any, batch: Any, key: Key[Array, ""]) -> Any:
    """Compiles `step` for these arguments ahead of time; the state is donated and keeps its sharding.

    Returns:
        The compiled function of the same four arguments; `.as_text()` shows its program.
    """
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(kept, None)).lower(state, objective, batch, key).compile()

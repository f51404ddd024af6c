"""One training step: draws, loss, gradient, optimiser, averages. Pure, random by (key, step) only."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from flowjax.training.ema import Average, Warmup, move
from flowjax.training.state import TrainState


def _split(draws: Any, parts: int) -> Any:
    """Draws (B, ...) as (parts, B / parts, ...); part i has rows i, i + parts, ..., so that no row changes its device.

    Leaves without axes go to every part.
    """

    def split(leaf):
        if leaf.ndim == 0:
            return jnp.broadcast_to(leaf, (parts,))
        if leaf.shape[0] % parts:
            raise ValueError(f"a batch of {leaf.shape[0]} cannot be accumulated in {parts} parts")
        return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, draws)


def make_step(
    optimizer: optax.GradientTransformation,
    ema: float = 0.999,
    *,
    accumulate: int = 1,
    averages: Mapping[str, Average] | None = None,
) -> Callable:
    """The function `step(state, objective, batch, key) -> (state, metrics)`.

    `objective` is an argument and a pytree, so weights inside it (a teacher's) are never constants of the
    program. `batch` is what `objective.draw` takes, normally {"x1": (B, ...), "cond": (B,)}; `key` is the
    same at every step. `metrics` are float32 scalars: "loss", "gradient_norm", "skipped" and the batch means of the
    metrics of the objective.

    A step whose loss, gradient or new network is not finite changes only the counters `state.step` and
    `state.skipped`; "skipped" is the number of such steps so far.

    If there is an average called "target", the objective's loss gets the dict {"network": the trained network (or the
    entries of its dict), "target": the average}; otherwise it gets `state.network` as it is.

    Args:
        optimizer: Applied to `state.network`.
        ema: Largest decay of `state.average`, in [0, 1); reached slowly, see `flowjax.training.ema.Warmup`.
        accumulate: Number of equal parts of the batch whose gradients are computed one after the other; the mean is
            that of the whole batch, for which everything random is drawn at once. Metrics that mix examples see a
            part.
        averages: Laws of `state.averages`, by name.

    Raises:
        ValueError: `ema` is outside [0, 1), or `accumulate` is less than 1.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    main, laws = Warmup(decay=ema), dict(averages or {})

    def step(
        state: TrainState, objective: Any, batch: Any, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        draws = objective.draw(jax.random.fold_in(key, state.step), batch, state.memory)

        def mean_loss(network, draws):
            networks = network
            if "target" in laws:
                given = network if isinstance(network, dict) else {"network": network}
                networks = {**given, "target": state.averages["target"]}
            per_example, metrics = objective.loss(networks, draws)
            return per_example.mean(), {name: value.mean() for name, value in metrics.items()}

        differentiate = jax.value_and_grad(mean_loss, has_aux=True)
        if accumulate == 1:
            (loss, report), gradient = differentiate(state.network, draws)
        else:
            parts = _split(draws, accumulate)

            def add(total, part):
                return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, differentiate(state.network, part)), None

            shapes = jax.eval_shape(differentiate, state.network, jax.tree.map(lambda leaf: leaf[0], parts))
            # Sums of low precision would lose small gradients.
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
            total, _ = jax.lax.scan(add, zeros, parts)
            (loss, report), gradient = jax.tree.map(lambda a, s: (a / accumulate).astype(s.dtype), total, shapes)

        norm = optax.tree.norm(gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.network)
        network = optax.apply_updates(state.network, updates)
        average = move(state.average, network, main.weight(state.step))
        others = {name: move(state.averages[name], network, law.weight(state.step)) for name, law in laws.items()}

        # A rate or an overflow may spoil the update of a finite gradient.
        whole = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(network)]).all()
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & whole
        new = TrainState(
            step=state.step + 1,
            network=network,
            average=average,
            optimizer=optimizer_state,
            memory=state.memory,
            averages=others,
            skipped=state.skipped,
        )
        kept = jax.tree.map(lambda old, fresh: jnp.where(good, fresh, old), state, new)
        bad = 1 - good.astype(jnp.int32)
        skipped = jnp.stack([(state.skipped[0] + 1) * bad, state.skipped[1] + bad])
        report |= {"loss": loss, "gradient_norm": norm, "skipped": skipped[1].astype(jnp.float32)}
        return dataclasses.replace(kept, step=new.step, skipped=skipped), report

    return step


def compile_step(step: Callable, state: TrainState, objective: Any, batch: Any, key: Key[Array, ""]) -> Any:
    """Compiles `step` for these arguments ahead of time; the state is donated and keeps its sharding.

    Returns:
        The compiled function of the same four arguments; `.as_text()` shows its program.
    """
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(kept, None)).lower(state, objective, batch, key).compile()

"""One training step: draws, loss, gradient, optimisers, averages, memory. Pure, random by (key, step) only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from flowjax.objectives import base
from flowjax.training.ema import MAIN, Averages, labelled, move
from flowjax.training.state import Optimizers, TrainState, of_label
from flowjax.training.trees import bare, by_label, merge, set_mode, trainable


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


def _join(value: Array) -> Array:
    """The inverse of `_split` for a metric of all parts; scalars are averaged."""
    return value.mean(0) if value.ndim == 1 else jnp.swapaxes(value, 0, 1).reshape(-1, *value.shape[2:])


def _untrained(networks: Any, like: Any) -> Any:
    """The values of `networks` that are not trained, in a tree of the structure of `like`."""
    found = dict(jax.tree_util.tree_flatten_with_path(networks)[0])
    pick = lambda path, _, trained: found[path] if trained is None else None  # noqa: E731
    return jax.tree_util.tree_map_with_path(pick, like, trainable(like))


def _floating(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def make_step(optimizers: Optimizers, averages: Averages = MAIN, *, accumulate: int = 1) -> Callable:
    """The function `step(state, objective, batch, key) -> (state, metrics)`.

    `objective` is an argument and a pytree, so weights inside it (a teacher's) are never constants of the
    program. `batch` is what `objective.draw` takes, normally {"x1": (B, ...), "cond": (B,)}; `key` is the
    same at every step. `metrics` are float32 scalars: "loss", "gradient_norm" (of several networks also
    "gradient_norm/LABEL", 0 where a network does not move), "skipped" and the batch means of the metrics of the
    objective.

    Trained are the floating-point arrays, of modules the `nnx.Param`s. Modules are in training mode in the loss;
    statistics that they renew there are kept. Labels that `objective.updates` rests at a step keep everything, and
    their optimiser and averages are not computed.

    Where the loss, or the gradient or the new values of a network, are not finite, this network, its optimiser and its
    averages stay as they are; `state.counts` tells, and "skipped" is the number of these cases so far.

    If there is an average called "target", the objective's loss gets the dict {"network": the trained network (or the
    entries of its dict), "target": the average}; otherwise it gets `state.networks` as they are.

    Args:
        optimizers: Applied to each network, or one for each label.
        averages: Their laws by name; with labels, (law, labels), of these networks only. Laws and schedules count the
            updates of the label.
        accumulate: Number of equal parts of the batch whose gradients are computed one after the other; the mean is
            that of the whole batch, for which everything random is drawn at once. Metrics and statistics that mix
            examples see a part.

    Raises:
        ValueError: `accumulate` is less than 1.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")

    def step(
        state: TrainState, objective: Any, batch: Any, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        networks, optimizer = (by_label(tree, state.counts) for tree in (state.networks, state.optimizer))
        laws = labelled(averages, networks)
        moving = dict(base.updates(objective, state.step))
        if unknown := set(moving) - set(networks):
            raise ValueError(f"the objective updates {min(unknown)!r}, but trained are {', '.join(networks)}")
        draws = objective.draw(jax.random.fold_in(key, state.step), batch, state.memory, step=state.step)

        def mean_loss(trained, draws):
            live = set_mode(merge(networks, trained), training=True)
            given = bare(live, networks)
            if "target" in laws:
                given = {**live, "target": state.averages["target"]}
            per_example, metrics = objective.loss(given, draws)
            return per_example.mean(), (metrics, _untrained(live, networks))

        differentiate, trained = jax.value_and_grad(mean_loss, has_aux=True), trainable(networks)
        if accumulate == 1:
            (loss, (metrics, statistics)), gradient = differentiate(trained, draws)
        else:
            parts = _split(draws, accumulate)

            def add(total, part):
                (loss, (metrics, statistics)), gradient = differentiate(trained, part)
                found = loss, statistics, gradient
                return jax.tree.map(lambda a, b: a + b.astype(a.dtype) if _floating(a) else b, total, found), metrics

            first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), parts)
            (loss, (_, statistics)), gradient = jax.eval_shape(differentiate, trained, first)
            shapes = loss, statistics, gradient
            # Sums of low precision would lose small gradients.
            wide = lambda s: jnp.promote_types(s.dtype, jnp.float32) if _floating(s) else s.dtype  # noqa: E731
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, wide(s)), shapes)
            total, metrics = jax.lax.scan(add, zeros, parts)
            mean = lambda a, s: (a / accumulate).astype(s.dtype) if _floating(a) else a  # noqa: E731
            loss, statistics, gradient = jax.tree.map(mean, total, shapes)
            metrics = jax.tree.map(_join, metrics)

        def update(label):
            """What a step changes of one label, the length of its gradient, and whether all is finite."""
            counts, followed = state.counts[label], {n: law for n, (law, labels) in laws.items() if label in labels}
            followers = {name: by_label(state.averages[name], networks)[label] for name in followed}
            old = networks[label], optimizer[label], followers

            def move_it():
                norm = optax.tree.norm(gradient[label]).astype(jnp.float32)
                changes, inner = of_label(optimizers, label).update(gradient[label], optimizer[label], trained[label])
                network = merge(networks[label], optax.apply_updates(trained[label], changes))
                network = merge(network, statistics[label])
                nearer = {n: move(followers[n], network, law.weight(counts[0])) for n, law in followed.items()}
                # A rate or an overflow may spoil the update of a finite gradient.
                whole = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(network)]).all()
                good = jnp.isfinite(loss) & jnp.isfinite(norm) & whole
                new = jax.tree.map(lambda a, b: jnp.where(good, b, a), old, (network, inner, nearer))
                bad = 1 - good.astype(jnp.int32)
                return new, jnp.stack([counts[0] + 1 - bad, (counts[1] + 1) * bad, counts[2] + bad]), norm, good

            def rest():
                return old, counts, jnp.float32(0), jnp.asarray(True)

            moves = moving.get(label, True)
            if isinstance(moves, bool | np.bool):
                return move_it() if moves else rest()
            return jax.lax.cond(moves, move_it, rest)

        results = {label: update(label) for label in networks}
        good = jnp.isfinite(loss) & jnp.stack([good for *_, good in results.values()]).all()
        norms = {label: norm for label, (_, _, norm, _) in results.items()}
        counts = {label: count for label, (_, count, _, _) in results.items()}
        new = TrainState(
            step=state.step + 1,
            networks=bare({label: network for label, ((network, _, _), *_) in results.items()}, networks),
            averages={
                name: bare({label: results[label][0][2][name] for label in labels}, networks)
                for name, (_, labels) in laws.items()
            },
            optimizer=bare({label: inner for label, ((_, inner, _), *_) in results.items()}, networks),
            memory=base.remember(objective, state.memory, draws, metrics, good),
            counts=counts,
        )
        report = {name: value.mean() for name, value in metrics.items() if value.ndim < 2}
        report |= {
            "loss": loss,
            "gradient_norm": optax.tree.norm(norms) if len(norms) > 1 else next(iter(norms.values())),
        }
        if len(norms) > 1:
            report |= {f"gradient_norm/{label}": norm for label, norm in norms.items()}
        report["skipped"] = sum(count[2] for count in counts.values()).astype(jnp.float32)
        return new, report

    return step


def compile_step(step: Callable, state: TrainState, objective: Any, batch: Any, key: Key[Array, ""]) -> Any:
    """Compiles `step` for these arguments ahead of time; the state is donated and keeps its sharding.

    Returns:
        The compiled function of the same four arguments; `.as_text()` shows its program.
    """
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(kept, None)).lower(state, objective, batch, key).compile()

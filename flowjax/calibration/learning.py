"""Rows learned by gradient: times and weights of `solvers.Learned` that bring samples near a fine solution.

The rows of the best of several known solvers are moved by Adam, through the sampler, whose evaluations are computed
again in the backward pass. Their numbers are those of the start times what is learned, so that without a step of
learning they are the start: gaps between times as g exp(a), weights as (b / c + s) c, where c is what all weights of a
row add up to for a constant prediction. Rows that are `consistent` keep this sum and the scale of the state that
belongs to it, and are then exact for constant predictions.

References:
    Shaul et al. (2024), Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models,
    arXiv:2403.01329. Tong et al. (2024), Learning to Discretize Denoising Diffusion ODEs, arXiv:2405.15506 (times
    alone). Frankel et al. (2025), S4S: Solving for a Fast Diffusion Model Solver, arXiv:2502.17423 (starts within a
    radius).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from flowjax import _checks
from flowjax.calibration import store
from flowjax.flow import Field
from flowjax.paths.base import GaussianPath, namespace
from flowjax.solvers.learned import Learned, Rows
from flowjax.solving import solve

LEARNED = ("all", "times")
DISTANCES = ("square", "huber")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """Noises with what they should become, for one scale of guidance.

    Attributes:
        field: What is sampled, guidance included.
        x: Start states, (N, ...).
        target: Final states of a fine solution, (N, ...).
        cond: Their conditions.
        position: Where the scale of guidance lies in its range, from -1 to 1.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> Pool(field=flow, x=jnp.ones((4, 2)), target=jnp.exp(-jnp.ones((4, 2)))).position
        0.0
    """

    field: Field
    x: Float[Array, "N ..."]
    target: Float[Array, "N ..."]
    cond: Any = None
    position: float = 0.0


def constant_law(path: GaussianPath, to: str, s: Any, t: Any) -> tuple[Any, Any]:
    """Scale of the state and sum of the weights of a step from s to t that is exact for a constant prediction."""
    if to == "velocity":
        return namespace(s).ones_like(s), t - s
    a, b = (path.alpha, path.sigma) if to == "data" else (path.sigma, path.alpha)
    ratio = b(t) / b(s)
    return ratio, a(t) - ratio * a(s)


def tables(base: Rows, path: GaussianPath, delta: Mapping[str, Any], position: Any, consistent: bool) -> Rows:
    """The rows that `delta` makes of `base`: in float64 of NumPy arrays, or within a compiled function.

    Args:
        base: Rows with as many values back as are learned.
        path: Of the field.
        delta: "gaps" (d + 1, n), "weights" (d + 1, n, k), "scale" (d + 1, n): polynomials of degree d in `position`.
        position: Where the scale of guidance lies in its range.
        consistent: Whether they are exact for constant predictions.
    """
    xp = namespace(*delta.values())
    moved = {
        name: sum(part * position**i for i, part in enumerate(coefficients)) for name, coefficients in delta.items()
    }
    start, end = float(base.times[0]), float(base.times[-1])
    before = constant_law(path, base.to, base.times[:-1], base.times[1:])
    gaps = np.diff(base.times) * xp.exp(moved["gaps"])
    inner = start + (end - start) * xp.cumsum(gaps)[:-1] / xp.sum(gaps)
    times = xp.concatenate([xp.asarray([start]), inner, xp.asarray([end])])
    ratio, total = constant_law(path, base.to, times[:-1], times[1:])
    known = np.tril(np.ones(base.weights.shape))
    shares = base.weights / before[1][:, None] + moved["weights"] * known
    scale = ratio * (np.asarray(base.scale / before[0]) + moved["scale"])
    if consistent:
        shares = xp.concatenate([1 - xp.sum(shares[:, 1:], axis=1, keepdims=True), shares[:, 1:]], axis=1)
        scale = ratio
    return Rows(times=times, scale=scale, weights=shares * total[:, None], to=base.to)


def widened(rows: Rows, history: int) -> Rows:
    """The same rows with weights of `history` values.

    Raises:
        ValueError: They use more.
    """
    n, used = rows.weights.shape
    history = min(history, n)
    if used > history:
        raise ValueError(f"these rows use {used} values, and history={history}: raise it, or start from other rows")
    return dataclasses.replace(rows, weights=np.pad(rows.weights, ((0, 0), (0, history - used))))


def sampled(field: Field, rows: Rows, template: Any, x: Array, cond: Any) -> Array:
    """The final states by rows whose times may be traced."""
    solver = Learned(rows=dataclasses.replace(rows, times=template))
    bound = dataclasses.replace(solver.bind(field.path, template), times=rows.times[:-1], grid=rows.times)
    return solve(field, bound, x, cond=cond, checkpoint=True).x


def _distance(x: Array, target: Array, kind: str, features: Any) -> Float[Array, " B"]:
    if features is not None:
        x, target = features(x), features(target)
    apart = jnp.mean((x - target) ** 2, axis=tuple(range(1, x.ndim)))
    return apart if kind == "square" else jnp.sqrt(apart + 0.03**2) - 0.03


@jax.jit
def _sampled_by(field: Field, bound: Any, x: Array, cond: Any) -> Array:
    return solve(field, bound, x, cond=cond).x


def error(pools: Sequence[Pool], rows: Callable[[float], Rows], batch: int = 64) -> float:
    """Root mean square distance of the final states of all pools from their targets.

    Raises:
        ValueError: A distance is not finite.
    """
    total, count = 0.0, 0
    for pool in pools:
        made = rows(pool.position)
        bound = Learned(rows=made).bind(pool.field.path, made.times)
        for first in range(0, len(pool.x), batch):
            cond = jax.tree.map(lambda c, first=first: c[first : first + batch], pool.cond)
            x = _sampled_by(pool.field, bound, pool.x[first : first + batch], cond)
            apart = np.asarray(x, np.float64) - np.asarray(pool.target[first : first + batch], np.float64)
            total, count = total + float(np.sum(apart**2)), count + apart.size
    if not np.isfinite(total):
        raise ValueError("samples are not finite: the network answers with NaN or overflows in its type")
    return float(np.sqrt(total / count))


def learn(
    pools: Sequence[Pool],
    held: Sequence[Pool],
    base: Rows,
    key: Key[Array, ""],
    *,
    iterations: int = 800,
    batch: int = 16,
    rate: float = 5e-3,
    decay: float = 0.98,
    degree: int = 0,
    history: int = 0,
    learned: str = "all",
    consistent: bool = False,
    distance: str = "square",
    radius: float = 0.0,
    features: Any = None,
    check_every: int = 50,
    partial: str | Path | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, float], None] = lambda done, total, best: None,
) -> tuple[dict[str, Float[np.ndarray, "..."]], dict[str, float]]:
    """Moves rows towards the fine solution of the pools, and keeps the best on held-out noise.

    Args:
        pools: What is learned from, one for each scale of guidance.
        held: What decides, likewise; of other noises.
        base: Where learning starts.
        key: Of the order of the noises.
        iterations: Steps of Adam; its rate falls to 0 by a cosine.
        batch: Noises of a step.
        rate: Largest rate of Adam.
        decay: Of the moving average of what is learned, which is what is measured and returned.
        degree: Of the polynomial in the scale of guidance.
        history: Values of a row; 0 is all of them.
        learned: "all", or "times" alone (LD3).
        consistent: Whether rows stay exact for constant predictions.
        distance: "square", or "huber" (pseudo-Huber of each sample).
        radius: How far the noise of each sample may move from its own, root mean square (S4S); the fine solution is
            then that of a noise nearby. Samples are drawn without.
        features: A function of states in whose values the distance is measured; None takes the states.
        check_every: Iterations between measurements on held-out noise.
        partial: File of what is learned so far, from which an interrupted run goes on.
        record: What that file belongs to.
        progress: Called with (done, iterations, best error on held-out noise).

    Returns:
        The polynomials that `tables` takes, and the errors on held-out noise "start", "best", and "training", that of
        the best on the noises that it was learned from.

    Raises:
        ValueError: A number out of its range, samples that are not finite, a partial file of something else.
    """
    _checks.whole(_checks.COUNT, batch=batch, check_every=check_every)
    _checks.whole("[0, inf)", iterations=iterations, degree=degree, history=history)
    _checks.real("(0, inf)", rate=rate)
    _checks.real("[0, 1)", decay=decay)
    _checks.real("[0, inf)", radius=radius)
    _checks.choose("learned", learned, LEARNED)
    _checks.choose("distance", distance, DISTANCES)
    path, n = pools[0].field.path, len(base.scale)
    base = widened(base, history or n)
    if consistent:  # what the base is not, is no part of them
        sums = constant_law(path, base.to, base.times[:-1], base.times[1:])
        if not np.allclose(base.weights.sum(1), sums[1], atol=1e-9) or not np.allclose(base.scale, sums[0], atol=1e-9):
            raise ValueError("the rows to start from are not exact for constant predictions: start from others")
    shapes = {"gaps": (degree + 1, n), "weights": (degree + 1, *base.weights.shape), "scale": (degree + 1, n)}
    delta = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, max(iterations, 1))))
    fixed = {"gaps": False, "weights": learned == "times", "scale": learned == "times" or consistent}
    offsets = [jnp.zeros_like(pool.x) if radius else jnp.zeros(()) for pool in pools]

    def loss(delta: Any, moved: Any, pool: Pool, x: Array, target: Array, cond: Any) -> Array:
        rows = tables(base, path, delta, pool.position, consistent)
        found = sampled(pool.field, rows, base.times, x + moved, cond)
        return jnp.mean(_distance(found, target, distance, features))

    @jax.jit
    def advance(carry: Any, field: Field, position: Any, x: Array, target: Array, cond: Any, moved: Any) -> Any:
        delta, state, average = carry
        pool = Pool(field=field, x=x, target=target, cond=cond, position=position)
        value, (slope, other) = jax.value_and_grad(loss, argnums=(0, 1))(delta, moved, pool, x, target, cond)
        slope = {name: jnp.zeros_like(part) if fixed[name] else part for name, part in slope.items()}
        updates, state = optimizer.update(slope, state)
        delta = optax.apply_updates(delta, updates)
        average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, delta)
        if radius:
            axes = tuple(range(1, x.ndim))
            size = lambda a: jnp.sqrt(jnp.mean(a**2, axes, keepdims=True))  # noqa: E731
            moved = moved - 0.1 * radius * other / jnp.maximum(size(other), 1e-12)
            moved = moved * jnp.minimum(1.0, radius / jnp.maximum(size(moved), 1e-12))
        return (delta, state, average), value, moved

    def exact(found: Any) -> dict[str, np.ndarray]:
        return {name: np.asarray(part, np.float64) for name, part in found.items()}

    def measured(found: Any) -> float:
        return error(held, lambda position: tables(base, path, exact(found), position, consistent))

    start = measured(delta)
    carry, best, lowest, done = (delta, optimizer.init(delta), delta), delta, start, 0
    file = None if partial is None else Path(partial)
    belongs = {**(record or {}), "base": base.weights.tolist(), "held_out": start}
    leaves, structure = jax.tree.flatten((carry, best))
    known, done = store.resume(file, belongs)
    if done:
        carry, best = jax.tree.unflatten(structure, [jnp.asarray(known[f"leaf{i}"]) for i in range(len(leaves))])
        offsets = [jnp.asarray(known[f"offset{i}"]) for i in range(len(offsets))]
        lowest = float(known["lowest"])
    for iteration in range(done, iterations):
        own = jax.random.fold_in(key, iteration)
        turn = iteration % len(pools)
        pool, moved = pools[turn], offsets[turn]
        rows = jax.random.choice(own, len(pool.x), (min(batch, len(pool.x)),), replace=False)
        some = jax.tree.map(lambda c, rows=rows: c[rows], pool.cond)
        carry, value, there = advance(
            carry, pool.field, pool.position, pool.x[rows], pool.target[rows], some, moved[rows] if radius else moved
        )
        if radius:
            offsets[turn] = moved.at[rows].set(there)
        if (iteration + 1) % check_every == 0 or iteration + 1 == iterations:
            if not np.isfinite(float(value)):
                raise ValueError(
                    f"the distance is not finite after {iteration + 1} iterations: the network answers with NaN or "
                    "overflows in its type; compute in float32 or bfloat16, or take a smaller rate"
                )
            now = measured(carry[2])
            if now < lowest:
                best, lowest = carry[2], now
            if file is not None:
                kept = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves((carry, best)))}
                kept |= {f"offset{i}": np.asarray(part) for i, part in enumerate(offsets)}
                store.save(file, kept | {"lowest": np.array(lowest)}, belongs | {"done": iteration + 1})
            progress(iteration + 1, iterations, lowest)
    found = exact(best)
    training = error(pools, lambda position: tables(base, path, found, position, consistent))
    return found, {"start": start, "best": lowest, "training": training}

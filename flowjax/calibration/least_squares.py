"""Rows by least squares: the times and weights that bring samples nearest to a fine solution, by Levenberg-Marquardt.

Rows have few numbers and samples many, so the derivative of all samples by each number is affordable: it is computed
forwards, a few numbers at once, with the memory of one step. On trained flows a few of these steps reach what hundreds
of steps along the gradient do not. `flowjax.calibration.forms` says what moves.

References:
    Shaul et al. (2024), Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models,
    arXiv:2403.01329. Tong et al. (2024), Learning to Discretize Denoising Diffusion ODEs, arXiv:2405.15506 (times
    alone). Frankel et al. (2025), S4S: Solving for a Diffusion Model Solver, arXiv:2502.17423 (starts within a
    radius). Marquardt (1963), An Algorithm for Least-Squares Estimation of Nonlinear Parameters, SIAM 11(2).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from flowjax import _checks
from flowjax.calibration import store
from flowjax.calibration.derivatives import TOGETHER, derivatives, numbers
from flowjax.calibration.forms import Form, form_of
from flowjax.flow import Field

LEARNED = ("all", "times")
DISTANCES = ("square", "huber")
_SOFT = 0.03  # distance from which pseudo-Huber grows linearly
_NUMBERS = 2**14  # of the samples whose derivatives are computed together
_TRIES = 8  # steps that are tried in an iteration, each shorter
_PATIENCE = 4  # iterations without a gain of a thousandth on held-out noise, after which learning ends


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


@functools.partial(jax.jit, static_argnames="form")
def _sampled(form: type[Form], field: Field, rows: Any, x: Array, cond: Any) -> Array:
    return form.sampled(field, rows, x, cond)


def final(pool: Pool, rows: Any, some: range) -> Float[np.ndarray, "B ..."]:
    """The final states of some noises of a pool, float64."""
    form = form_of(rows)
    made = jax.tree.map(functools.partial(jnp.asarray, dtype=pool.x.dtype), form.widened(rows, 0))
    cond = jax.tree.map(lambda c: c[some.start : some.stop], pool.cond)
    return np.asarray(_sampled(form, pool.field, made, pool.x[some.start : some.stop], cond), np.float64)


def distances(
    pools: Sequence[Pool], rows: Callable[[float], Any], batch: int = 64, features: Any = None
) -> Float[np.ndarray, " N"]:
    """Mean square distance of the final state of each sample of all pools from its target.

    Args:
        pools: Noises and targets.
        rows: Gives the rows for a position in the range of scales.
        batch: Samples at once.
        features: What they are compared in; None for themselves.

    Raises:
        ValueError: One is not finite.
    """
    found = []
    for pool in pools:
        for first in range(0, len(pool.x), batch):
            some = range(first, min(first + batch, len(pool.x)))
            made, target = final(pool, rows(pool.position), some), pool.target[first : some.stop]
            if features is not None:
                made, target = features(jnp.asarray(made, target.dtype)), features(target)
            apart = np.asarray(made, np.float64) - np.asarray(target, np.float64)
            found.append(np.mean(apart**2, axis=tuple(range(1, apart.ndim))))
    every = np.concatenate(found)
    if not np.isfinite(every).all():
        raise ValueError("samples are not finite: the network answers with NaN or overflows in its type")
    return every


def error(pools: Sequence[Pool], rows: Callable[[float], Any], batch: int = 64, features: Any = None) -> float:
    """Root mean square of `distances`."""
    return float(np.sqrt(np.mean(distances(pools, rows, batch, features))))


def check_options(*, iterations: int, batch: int, history: int, learned: str, distance: str, radius: float) -> None:
    """Refuses options of `learn` that are outside their range.

    Raises:
        ValueError: One is.
    """
    _checks.whole(_checks.COUNT, batch=batch)
    _checks.whole("[0, 2147483647]", iterations=iterations, history=history)
    _checks.real("[0, inf)", radius=radius)
    _checks.choose("learned", learned, LEARNED)
    _checks.choose("distance", distance, DISTANCES)


class _Problem:
    """The sum of distances as a function of one vector, with what a step needs of it.

    Args:
        base: Rows, from `Form.widened`.
        path: Of the field.
        degree: Of the polynomials in the scale of guidance.
        learned: "all" or "times".
        consistent: Whether rows stay exact for constant predictions.
        distance: "square" or "huber".
        features: What samples are compared in; None for themselves.
    """

    def __init__(self, base: Any, path: Any, degree: int, learned: str, consistent: bool, distance: str, features: Any):
        self.base, self.path, self.form, self.consistent = base, path, form_of(base), consistent
        self.distance, self.features = distance, features or (lambda x: x)
        delta = {name: jnp.zeros((degree + 1, *shape)) for name, shape in self.form.shapes(base).items()}
        zeros, self._shaped = ravel_pytree(delta)
        may = {name: jnp.full(p.shape, learned == "all" or name in self.form.times) for name, p in delta.items()}
        # Without effect are weights of values that are not there yet, and what consistency decides.
        moves = jax.jacobian(lambda every: numbers(self.tables(self._shaped(every), 1.0)))(zeros)
        effect = sum(jnp.abs(leaf).reshape(-1, len(zeros)).sum(0) for leaf in moves.values())
        self._free = np.flatnonzero(np.asarray(ravel_pytree(may)[0]) & (np.asarray(effect) > 0))
        self._zeros, self.size = zeros, len(self._free)
        self.summed, self.pulls = jax.jit(self._summed), jax.jit(jax.grad(self._summed, argnums=1))
        self.normal, self.chain = jax.jit(self._normal), jax.jit(self._chain)

    def delta(self, vector: Any) -> dict[str, Any]:
        """The polynomials that `Form.tables` takes."""
        return self._shaped(self._zeros.at[self._free].set(vector))

    def tables(self, delta: Mapping[str, Any], position: Any) -> Any:
        """The rows for a position in the range of scales."""
        return self.form.tables(self.base, self.path, delta, position, self.consistent)

    def array(self, vector: Any) -> Array:
        """The vector as networks compute."""
        return jnp.asarray(vector, self._zeros.dtype)

    def exact(self, vector: Any) -> dict[str, Float[np.ndarray, "..."]]:
        """The polynomials in float64."""
        return {name: np.asarray(part, np.float64) for name, part in self.delta(self.array(vector)).items()}

    def _apart(
        self, vector: Array, field: Field, position: Any, x: Array, target: Array, cond: Any
    ) -> Float[Array, "B D"]:
        found = self.form.sampled(field, self.tables(self.delta(vector), position), x, cond)
        return (self.features(found) - self.features(target)).reshape(len(x), -1)

    def _distances(self, apart: Float[Array, "B D"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Of each sample, with the derivative by its mean square."""
        square = jnp.mean(apart**2, axis=1)
        if self.distance == "square":
            return square, jnp.ones_like(square)
        size = jnp.sqrt(square + _SOFT**2)
        return size - _SOFT, 0.5 / size

    def _summed(self, vector: Array, moved: Any, field: Field, position: Any, x: Array, *rest: Any) -> Array:
        return self._distances(self._apart(vector, field, position, x + moved, *rest))[0].sum()

    def slopes(
        self, vector: Any, moved: Any, field: Field, position: Any, x: Array, target: Array, cond: Any
    ) -> tuple[Float[np.ndarray, "P P"], Float[np.ndarray, " P"]]:
        """The Gauss-Newton matrix and the gradient of the sum."""
        rows = self.tables(self.exact(vector), position)
        final, by = derivatives(field, rows, x + moved, cond)
        found = self.normal(final, by, self.chain(self.array(vector), position), target)
        return np.asarray(found[0], np.float64), np.asarray(found[1], np.float64)

    def _chain(self, vector: Array, position: Any) -> dict[str, Array]:
        """Derivatives of the numbers of the rows."""
        return jax.jacobian(lambda vector: numbers(self.tables(self.delta(vector), position)))(vector)

    def _normal(self, final: Array, by: dict[str, Array], chain: dict[str, Array], target: Array) -> Any:
        def flat(name: str) -> Array:
            return chain[name].reshape(-1, self.size).T @ by[name].reshape(-1, final.size)

        along = functools.reduce(jnp.add, map(flat, by)).reshape(self.size, *final.shape)
        now, push = jax.linearize(self.features, final)
        slopes = jax.lax.map(push, along, batch_size=TOGETHER).reshape(self.size, len(final), -1)
        now = (now - self.features(target)).reshape(len(final), -1)
        weighted = slopes * (2 * self._distances(now)[1] / now.shape[1])[None, :, None]
        return jnp.einsum("pbd,qbd->pq", weighted, slopes), jnp.einsum("pbd,bd->p", weighted, now)


def _drawn(pools: Sequence[Pool], batch: int, key: Key[Array, ""]) -> list[tuple[int, Any]]:
    """Places of some noises of each pool, in groups of one size."""
    groups = []
    for which, pool in enumerate(pools):
        count = min(max(batch // len(pools), 1), len(pool.x))
        parts = -(-count * (pool.x[0].size) // _NUMBERS)
        parts = min(parts, count)
        places = jax.random.permutation(jax.random.fold_in(key, which), len(pool.x))[: count // parts * parts]
        groups += [(which, part) for part in places.reshape(parts, -1)]
    return groups


def learn(
    pools: Sequence[Pool],
    held: Sequence[Pool],
    base: Any,
    key: Key[Array, ""],
    *,
    iterations: int = 12,
    batch: int = 128,
    decay: float = 0.5,
    degree: int = 0,
    history: int = 0,
    learned: str = "all",
    consistent: bool = False,
    distance: str = "square",
    radius: float = 0.0,
    features: Any = None,
    seconds: float = float("inf"),
    partial: str | Path | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, float], None] = lambda done, total, best: None,
) -> tuple[dict[str, Float[np.ndarray, "..."]], dict[str, float]]:
    """Moves rows towards the fine solution of the pools, and keeps the best on held-out noise.

    Args:
        pools: What is learned from, one for each scale of guidance.
        held: What decides, likewise; of other noises.
        base: Where learning starts: `solvers.Rows` or `ParallelRows`.
        key: Of the order of the noises.
        iterations: Steps of Levenberg-Marquardt at most; learning ends when held-out noise gains no more.
        batch: Noises of a step, drawn anew for each, of all pools together.
        decay: Of the moving average over the steps, which is measured beside what the step found.
        degree: Of the polynomial in the scale of guidance.
        history: Values of a row; 0 is all of them.
        learned: "all", or "times" alone (LD3).
        consistent: Whether rows stay exact for constant predictions.
        distance: "square", or "huber" (pseudo-Huber of each sample).
        radius: How far the noise of each sample may move from its own, root mean square (S4S); the fine solution is
            then that of a noise nearby. Samples are drawn without.
        features: A function of states, traced by JAX, in whose values all distances are measured; None takes the
            states.
        seconds: No step is begun that would end later.
        partial: File of what is learned so far, from which an interrupted run goes on.
        record: What that file belongs to.
        progress: Called with (done, iterations, best error on held-out noise).

    Returns:
        The polynomials that `Form.tables` takes, and the errors on held-out noise "start", "best", and "training",
        that of the best on the noises that it was learned from.

    Raises:
        ValueError: A number out of its range, samples that are not finite, a partial file of something else.
    """
    check_options(
        iterations=iterations, batch=batch, history=history, learned=learned, distance=distance, radius=radius
    )
    _checks.whole("[0, inf)", degree=degree)
    _checks.real("[0, 1)", decay=decay)
    began, longest = time.monotonic(), 0.0
    path, form = pools[0].field.path, form_of(base)
    base = form.widened(base, history)
    if consistent and not form.is_consistent(base, path):
        raise ValueError(
            "the rows to start from are not exact for constant predictions: start from others, or consistent=False"
        )
    problem = _Problem(base, path, degree, learned, consistent, distance, features)
    offsets = [jnp.zeros_like(pool.x) if radius else jnp.zeros(()) for pool in pools]

    def of(which: int, places: Array) -> tuple[Any, ...]:
        pool, moved = pools[which], offsets[which][places] if radius else offsets[which]
        cond = jax.tree.map(lambda c: c[places], pool.cond)
        return moved, pool.field, pool.position, pool.x[places], pool.target[places], cond

    def measured(vector: Any) -> float:
        found = problem.exact(vector)
        return error(held, lambda position: problem.tables(found, position), features=features)

    def tried(vector: Any) -> float:
        try:
            return measured(vector)
        except ValueError:  # held-out samples that are not finite
            return float("inf")

    vector, scale = np.zeros(problem.size), np.zeros(problem.size)
    start = measured(vector)
    average, best, lowest, damping, gained, done = vector, vector, start, 1e-3, 0, 0
    file = None if partial is None else Path(partial)
    belongs = {**(record or {}), "base": base.weights.tolist()}
    known, done = store.resume(file, belongs)
    if done:
        vector, average, best, scale = (known[name] for name in ("vector", "average", "best", "scale"))
        offsets = [jnp.asarray(known[f"offset{i}"]) for i in range(len(offsets))]
        lowest, damping, gained = float(known["lowest"]), float(known["damping"]), int(known["gained"])
    for iteration in range(done, iterations):
        if iteration - gained >= _PATIENCE or time.monotonic() - began + longest > seconds:
            break
        clock = time.monotonic()
        groups = _drawn(pools, batch, jax.random.fold_in(key, iteration))

        def total(vector: Any, groups: Any = groups) -> float:
            return sum(float(problem.summed(problem.array(vector), *of(*group))) for group in groups)

        matrix, gradient = np.zeros((problem.size, problem.size)), np.zeros(problem.size)
        for group in groups:
            more = problem.slopes(vector, *of(*group))
            matrix, gradient = matrix + more[0], gradient + more[1]
        now = total(vector)
        if not (np.isfinite(now) and np.isfinite(matrix).all()):
            raise ValueError(
                f"the distance is not finite after {iteration} iterations: the network answers with NaN or overflows "
                "in its type; compute in float32 or bfloat16"
            )
        scale = np.maximum(scale, np.diag(matrix))  # of each number, the largest so far
        for _ in range(_TRIES):
            damped = matrix + np.diag(damping * scale + 1e-9 * scale.sum() + np.finfo(np.float32).tiny)
            candidate = vector - np.linalg.solve(damped, gradient)
            if total(candidate) < now:
                vector, damping = candidate, max(damping / 5, 1e-7)
                break
            damping = min(damping * 5, 1e9)
        if radius:
            for which, places in groups:
                pull = problem.pulls(problem.array(vector), *of(which, places))
                moved = _nearby(offsets[which][places], pull, radius)
                offsets[which] = offsets[which].at[places].set(moved)
        average = average + (vector - average) * (1 - decay) / (1 - decay ** (iteration + 1))
        here, there = min((tried(each), i) for i, each in enumerate((vector, average)))
        if here < lowest:
            gained = iteration + 1 if here < 0.999 * lowest else gained
            best, lowest = (vector, average)[there], here
        if file is not None:
            kept = {"vector": vector, "average": average, "best": best, "scale": scale}
            kept |= {"lowest": np.array(lowest), "damping": np.array(damping), "gained": np.array(gained)}
            kept |= {f"offset{i}": np.asarray(part) for i, part in enumerate(offsets)}
            store.save(file, kept, belongs | {"done": iteration + 1})
        progress(iteration + 1, iterations, lowest)
        longest = max(longest, time.monotonic() - clock)
    found = problem.exact(best)
    training = error(pools, lambda position: problem.tables(found, position), features=features)
    return found, {"start": start, "best": lowest, "training": training}


def _nearby(moved: Array, slope: Array, radius: float) -> Array:
    """Noises that went a tenth of the radius down, and stay within it."""
    axes = tuple(range(1, moved.ndim))

    def size(a: Array) -> Array:
        return jnp.sqrt(jnp.mean(a**2, axes, keepdims=True))

    moved = moved - 0.1 * radius * slope / jnp.maximum(size(slope), 1e-12)
    return moved * jnp.minimum(1.0, radius / jnp.maximum(size(moved), 1e-12))

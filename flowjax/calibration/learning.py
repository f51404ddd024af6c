"""Rows learned by gradient: times and weights of `solvers.Learned` that bring samples near a fine solution.

The rows of the best of several known solvers are moved by Adam, through the sampler, whose evaluations are computed
again in the backward pass; `flowjax.calibration.forms` says what moves.

References:
    Shaul et al. (2024), Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models,
    arXiv:2403.01329. Tong et al. (2024), Learning to Discretize Denoising Diffusion ODEs, arXiv:2405.15506 (times
    alone). Frankel et al. (2025), S4S: Solving for a Diffusion Model Solver, arXiv:2502.17423 (starts within a
    radius).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from flowjax import _checks, specs
from flowjax.calibration import store
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.calibration.forms import Form, form_of, of_arrays, parallel_starts, starts, to_arrays
from flowjax.calibration.reference import reference
from flowjax.flow import Field
from flowjax.solvers.learned import rows_of

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


def _distance(x: Array, target: Array, kind: str, features: Any) -> Float[Array, " B"]:
    if features is not None:
        x, target = features(x), features(target)
    apart = jnp.mean((x - target) ** 2, axis=tuple(range(1, x.ndim)))
    return apart if kind == "square" else jnp.sqrt(apart + 0.03**2) - 0.03


@functools.partial(jax.jit, static_argnames="form")
def _sampled(form: type[Form], field: Field, rows: Any, x: Array, cond: Any) -> Array:
    return form.sampled(field, rows, x, cond)


def final(pool: Pool, rows: Any, some: range) -> Float[np.ndarray, "B ..."]:
    """The final states of some noises of a pool, float64."""
    form = form_of(rows)
    made = jax.tree.map(functools.partial(jnp.asarray, dtype=pool.x.dtype), form.widened(rows, 0))
    cond = jax.tree.map(lambda c: c[some.start : some.stop], pool.cond)
    return np.asarray(_sampled(form, pool.field, made, pool.x[some.start : some.stop], cond), np.float64)


def distances(pools: Sequence[Pool], rows: Callable[[float], Any], batch: int = 64) -> Float[np.ndarray, " N"]:
    """Mean square distance of the final state of each sample of all pools from its target.

    Args:
        pools: Noises and targets.
        rows: Gives the rows for a position in the range of scales.
        batch: Samples at once.

    Raises:
        ValueError: One is not finite.
    """
    found = []
    for pool in pools:
        for first in range(0, len(pool.x), batch):
            some = range(first, min(first + batch, len(pool.x)))
            apart = final(pool, rows(pool.position), some) - np.asarray(pool.target[first : some.stop], np.float64)
            found.append(np.mean(apart**2, axis=tuple(range(1, apart.ndim))))
    every = np.concatenate(found)
    if not np.isfinite(every).all():
        raise ValueError("samples are not finite: the network answers with NaN or overflows in its type")
    return every


def error(pools: Sequence[Pool], rows: Callable[[float], Any], batch: int = 64) -> float:
    """Root mean square of `distances`."""
    return float(np.sqrt(np.mean(distances(pools, rows, batch))))


def check_options(
    *, iterations: int, batch: int, rate: float, history: int, learned: str, distance: str, radius: float
) -> None:
    """Refuses options of `learn` that are outside their range.

    Raises:
        ValueError: One is.
    """
    _checks.whole(_checks.COUNT, batch=batch)
    _checks.whole("[0, 2147483647]", iterations=iterations, history=history)
    _checks.real("(0, inf)", rate=rate)
    _checks.real("[0, inf)", radius=radius)
    _checks.choose("learned", learned, LEARNED)
    _checks.choose("distance", distance, DISTANCES)


def learn(
    pools: Sequence[Pool],
    held: Sequence[Pool],
    base: Any,
    key: Key[Array, ""],
    *,
    iterations: int = 800,
    batch: int = 16,
    rate: float = 1e-2,
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
        base: Where learning starts: `solvers.Rows` or `ParallelRows`.
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
        The polynomials that `Form.tables` takes, and the errors on held-out noise "start", "best", and "training",
        that of the best on the noises that it was learned from.

    Raises:
        ValueError: A number out of its range, samples that are not finite, a partial file of something else.
    """
    check_options(
        iterations=iterations,
        batch=batch,
        rate=rate,
        history=history,
        learned=learned,
        distance=distance,
        radius=radius,
    )
    _checks.whole(_checks.COUNT, check_every=check_every)
    _checks.whole("[0, inf)", degree=degree)
    _checks.real("[0, 1)", decay=decay)
    path, form = pools[0].field.path, form_of(base)
    base = form.widened(base, history)
    if consistent and not form.is_consistent(base, path):
        raise ValueError(
            "the rows to start from are not exact for constant predictions: start from others, or consistent=False"
        )
    delta = {name: jnp.zeros((degree + 1, *shape)) for name, shape in form.shapes(base).items()}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, max(iterations, 1)))
    )
    fixed = {
        name: (learned == "times" and name not in form.times) or (consistent and name == "scale") for name in delta
    }
    offsets = [jnp.zeros_like(pool.x) if radius else jnp.zeros(()) for pool in pools]

    def loss(delta: Any, moved: Any, pool: Pool, x: Array, target: Array, cond: Any) -> Array:
        rows = form.tables(base, path, delta, pool.position, consistent)
        found = form.sampled(pool.field, rows, x + moved, cond)
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
        return error(held, lambda position: form.tables(base, path, exact(found), position, consistent))

    start = measured(delta)
    carry, best, lowest, done = (delta, optimizer.init(delta), delta), delta, start, 0
    file = None if partial is None else Path(partial)
    belongs = {**(record or {}), "base": base.weights.tolist()}
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
    training = error(pools, lambda position: form.tables(base, path, found, position, consistent))
    return found, {"start": start, "best": lowest, "training": training}


# --------------------------------------------------------------------------------------------------------------------
# From a model to a file
# --------------------------------------------------------------------------------------------------------------------


def _same(rows: Any, position: float) -> Any:
    return rows


def best_start(rows: Mapping[str, Any], pools: Sequence[Pool]) -> tuple[str, float]:
    """The name of the rows with the least error, and their error.

    Raises:
        ValueError: None gives finite samples.
    """
    found, reason = {}, ""
    for name, one in rows.items():
        try:
            found[name] = error(pools, functools.partial(_same, one))
        except ValueError as failed:
            reason = str(failed)
    if not found:
        raise ValueError(reason)
    name = min(found, key=lambda name: found[name])
    return name, found[name]


def make_pool(work: Work, scale: float, first: int, num: int, fine: int, position: float = 0.0) -> Pool:
    """Noises first, first + 1, ... with what a solution of `fine` steps makes of them.

    Args:
        work: With the recipe, the flow and the ends of the times.
        scale: Of guidance.
        first: Number of the first noise.
        num: How many.
        fine: Steps of the solution.
        position: Of the scale in its range.
    """
    field, targets = work.guide(scale), []
    x, cond = work.states(first, num)
    for i in range(0, num, 64):
        some = jax.tree.map(lambda c, i=i: c[i : i + 64], cond)
        targets.append(reference(field, x[i : i + 64], work.grid, some, steps=fine)[-1])
    return Pool(field=field, x=x, target=jnp.concatenate(targets), cond=cond, position=position)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning(Calibration):
    """Times and weights of a solver learned by gradient (`learn`), for one scale of guidance or a range.

    Attributes:
        start: See `Calibration`.
        end: Likewise.
        num: Noises that are learned from.
        steps: Evaluations.
        held: Noises that decide when to stop.
        fine: Steps of the solution that samples are to reach.
        iterations: See `learn`, as for those that follow.
        batch: Noises of an iteration.
        rate: Of Adam.
        history: Values of a row; 0 is all.
        learned: "all" or "times".
        consistent: Whether rows stay exact for constant predictions.
        distance: "square" or "huber".
        radius: How far the noise of a sample may move.
        scales: Scales of guidance that one file serves, with all between them, in place of one.
        degree: Of the polynomial in the scale.
        points: Evaluations that go through the network together; steps are then groups of so many.
        solver: Spec of the solver to start from; the best of those that are known on this model unless it is given.
        times: Spec of its grid, with its ends; that of equal steps.

    Raises:
        ValueError: Options that do not fit.

    Example:
        >>> from flowjax.calibration.learning import Learning
        >>> Learning(scales=(1.0, 2.0)).between
        (1.0, 2.0)
    """

    num: int = option(512, "Noises that are learned from.")
    steps: int = option(5, "Evaluations.")
    held: int = option(64, "Held-out noises, which decide what is kept.")
    fine: int = option(100, "Steps of the fine solution that samples are to reach.")
    iterations: int = option(800, "Iterations of Adam.")
    batch: int = option(16, "Noises of an iteration.")
    rate: float = option(1e-2, "Largest rate of Adam.")
    history: int = option(0, "Values that a row may use, 0 for all.")
    learned: str = option("all", "What is learned: all, or times (LD3).")
    consistent: bool = option(True, "Whether rows stay exact for constant predictions.")
    distance: str = option("square", "Distance to the fine solution: square or huber.")
    radius: float = option(0.0, "How far the noise of each sample may move, root mean square (S4S).")
    scales: tuple[float, ...] = option(
        (), "Scales of guidance that one file serves, such as 1,1.5,2; with those between."
    )
    degree: int = option(2, "Degree of the polynomials in the scale, with --scales.")
    points: int = option(1, "Evaluations of a step that go through the network as one batch.")
    solver: str | None = option(None, "Solver to start from; the best of the known ones by default.")
    times: str | None = option(None, "Its grid, in place of --start and --end.")

    def __post_init__(self) -> None:
        """Checks what is not checked by `learn`."""
        _checks.whole(_checks.COUNT, held=self.held, fine=self.fine)
        _checks.whole("[0, 8]", degree=self.degree)
        check_options(**{name: getattr(self, name) for name in _PASSED if name != "consistent"})
        _checks.whole(_checks.COUNT, points=self.points)
        if self.steps % self.points or (self.points > 1 and (self.solver or self.history)):
            raise ValueError(
                f"points={self.points} divide steps={self.steps} evaluations, and go without solver and history"
            )
        for scale in self.scales:
            _checks.real("[0, inf)", scales=scale)
        if self.scales and len(set(self.scales)) < 2:
            raise ValueError(f"scales={self.scales} are at least two, of which the least and the largest are the range")
        if self.times is not None and self.solver is None:
            raise ValueError("times are those of the solver to start from: name a solver too")

    @property
    def between(self) -> tuple[float, float] | None:
        """The range of scales, or None for one scale."""
        return (min(self.scales), max(self.scales)) if self.scales else None

    def sizes(self) -> dict[str, Any]:
        """With the range in place of the scale."""
        return super().sizes() | ({"guidance": None} if self.scales else {})

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """The rows to start from, the polynomials, and what they are worth."""
        low, high = self.between or (work.guidance, work.guidance)
        scales = [work.guidance] if self.between is None else sorted(set(self.scales))
        each, held = -(-self.num // len(scales)), -(-self.held // len(scales))

        def pool(scale: float, first: int, num: int) -> Pool:
            position = 0.0 if low == high else 2 * (scale - low) / (high - low) - 1
            return make_pool(work, scale, first, num, self.fine, position)

        work.progress(0, self.iterations, "fine solutions")
        pools = [pool(scale, i * each, each) for i, scale in enumerate(scales)]
        aside = [pool(scale, 10**6 + i * held, held) for i, scale in enumerate(scales)]
        path, ends = work.flow.path, (float(work.grid[0]), float(work.grid[-1]))
        rows: Mapping[str, Any]
        if self.solver is not None:
            rows = {self.solver: rows_of(specs.build("solver", self.solver).bind(path, work.grid))}
        elif self.points > 1:
            rows = parallel_starts(path, self.steps // self.points, self.points, *ends)
        else:
            rows = starts(path, self.steps, *ends)
        name, _ = best_start(rows, aside)
        found, errors = learn(
            pools,
            aside,
            rows[name],
            jax.random.fold_in(work.key, 1),
            degree=self.degree if self.scales else 0,
            partial=work.file.with_suffix(""),
            record=work.record,
            progress=lambda done, total, best: work.progress(
                done, total, f"{name}: error {best:.3g} on held-out noise"
            ),
            **{k: getattr(self, k) for k in _PASSED},
        )
        made = to_arrays(form_of(rows[name]).widened(rows[name], self.history), found)
        return made | {"began": np.array(name)} | {f"error_{kind}": np.array(value) for kind, value in errors.items()}

    @classmethod
    def serves(cls, known: Mapping[str, Any], guidance: float) -> bool:
        """A scale, or all of a range."""
        if not (scales := known.get("scales")):
            return super().serves(known, guidance)
        return min(scales) <= guidance <= max(scales)

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """The rows for this scale, at their times."""
        record = stored.record
        low, high = (end(record.get("scales") or [0.0]) for end in (min, max))
        position = 0.0 if low == high else 2 * (stored.guidance - low) / (high - low) - 1
        rows = of_arrays(stored.arrays, stored.flow.path, position, record["consistent"])
        return Calibrated(form_of(rows).solver(rows), rows.times)


_PASSED = ("iterations", "batch", "rate", "history", "learned", "consistent", "distance", "radius")

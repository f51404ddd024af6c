"""Semi-discrete optimal transport from noise to noised data (DPM-OT, Li et al., 2307.11308).

The long noisy part of a sampling run is replaced by one jump. With targets y_j = alpha(t*) x1_j + sigma(t*) x0_j made
from n data points and a source mu, N(0, I) or uniform on [0, 1]^d (the authors' code), the Brenier potential is
u(x) = max_j (<x, y_j> + h_j), and its gradient

    T(x) = y_j,    j = argmax_j (<x, y_j> + h_j)

is the optimal map once every cell {x: T(x) = y_j} has its mass 1/n. The heights h minimise int u dmu - sum_j h_j/n, a
convex problem, solved by ott-jax on its dual g = 2 h + |y|^2 (extra `ot`). Any solver then runs from t* on the start
T(x). The cells respect the modes of the data, so no start lies between modes, where a Gaussian start at t* does.

The starts are noised training samples, n of them: a deterministic sampler can give n results at most, close to the data
for t* near 1. Noise after t* (stochastic solvers) and the mixing of neighbouring targets (`k` > 1) restore variety.
"""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from flowjax import _checks
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.keys import noise as standard_normal
from flowjax.paths.base import GaussianPath, precision

try:
    from jax import enable_x64
except ImportError:  # before jax 0.8
    from jax.experimental import enable_x64  # type: ignore[attr-defined, no-redef]

_SAMPLERS: dict[str, Any] = {"normal": jax.random.normal, "uniform": jax.random.uniform}


@fact(
    "coupling",
    "semidiscrete_map",
    "DPM-OT: an optimal map from noise to noised data, where sampling then starts",
    cite="li2023dpmot",
    example=lambda: {"targets": jnp.eye(3), "heights": jnp.zeros(3), "time": 0.5},
)
@pytree
class SemidiscreteMap:
    """A map of noise to noised data at one time; made by `fit`.

    Args:
        targets: y_j, (n, ...), n samples noised to `time`.
        heights: h_j, (n,); a constant added to all (of a class) changes nothing.
        time: t*, where the targets are and where sampling must start.
        labels: class of each target, (n,), for one map per class, or None.
        source: "normal" or "uniform" on [0, 1]^d.
        block: targets compared at once.

    Raises:
        ValueError: an unknown source, a time outside [0, 1], no targets, other numbers of heights or labels, or a
            height that is not finite.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> y = jnp.array([[-1.0], [1.0]])
        >>> found = fj.couplings.SemidiscreteMap(targets=y, heights=jnp.zeros(2), time=0.5)
        >>> found.start(jnp.array([[-0.3], [0.2]]), 0.5)[:, 0].tolist()
        [-1.0, 1.0]
    """

    targets: Float[Array, "n ..."] | Float[np.ndarray, "n ..."] = part("array")
    heights: Float[Array, " n"] | Float[np.ndarray, " n"] = part("array")
    time: float = static()
    labels: Int[Array, " n"] | Int[np.ndarray, " n"] | None = part("array", None)
    source: str = static("normal")
    block: int = static(1000)

    def __post_init__(self) -> None:
        """Checks the settings, and takes tables of the host as arrays of the device."""
        _check_source(self.source)
        for name in ("targets", "heights", "labels"):
            if isinstance(getattr(self, name), np.ndarray):
                object.__setattr__(self, name, jnp.asarray(getattr(self, name)))
        if not 0 <= self.time <= 1:
            raise ValueError(f"time must be in [0, 1], got {self.time}")
        _checks.whole(_checks.COUNT, block=self.block)
        n, labels = len(self.targets), self.labels
        if n == 0 or self.heights.shape != (n,) or (labels is not None and labels.shape != (n,)):
            shapes = None if labels is None else labels.shape
            raise ValueError(f"{n} targets need as many heights and labels, got {self.heights.shape} and {shapes}")
        if not isinstance(self.heights, jax.core.Tracer) and not np.isfinite(self.heights).all():
            raise ValueError("heights must be finite: fit with a smaller rate")

    def start(
        self,
        noise: Float[Array, "B ..."],
        t: float,
        cond: Int[Array, " B"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
        k: int = 1,
        threshold: float = 0.7,
    ) -> Float[Array, "B ..."]:
        """The state to start sampling from, in place of `path.start(noise, t)`; NaN where there is none.

        With k = 1 it is T(x). Otherwise it is a random point between T(x) and one of the next k - 1 targets, if the
        angle between the two supporting planes is accepted; larger angles lie across the border of two modes. Angles
        are rescaled over the batch, so that a sample then depends on its batch mates; and a point between two noised
        targets has less noise than they have.

        Args:
            noise: standard normal, (B, ...), `flowjax.noise(key, shape)`, also for the uniform source.
            t: first sampling time; it must be that of the targets.
            cond: classes, for a map with labels.
            key: of the mixing, for k > 1.
            k: number of targets to mix among.
            threshold: largest rescaled angle that is accepted, in [0, 1].

        Raises:
            ValueError: another start time, a class where the map has none or the reverse, a class without targets, or
                k > 1 without a key.
        """
        if t != self.time:
            raise ValueError(f"the targets are at t = {self.time:g}: start the times there, not at {t:g}")
        _checks.real("[0, 1]", threshold=threshold)
        if k > 1 and key is None:
            raise ValueError("k > 1 mixes targets at random: pass key=jax.random.key(seed)")
        found = self.nearest(self.of_source(noise), cond, k=k)
        targets = jnp.asarray(self.targets)
        missing = (found[:, 0] < 0).reshape(-1, *(1,) * (targets.ndim - 1))
        first = jnp.where(missing, jnp.nan, targets[found[:, 0]])
        if k == 1 or key is None:
            return first
        which, how_far = jax.random.split(key)
        column = jax.random.randint(which, (len(found),), 1, k)
        accepted = rescaled(self.angles(found)) <= threshold
        rows = jnp.arange(len(found))
        weight = jax.random.uniform(how_far, (len(found),), first.dtype) * accepted[rows, column - 1]
        weight = weight.reshape(-1, *(1,) * (first.ndim - 1))
        return first + weight * (targets[found[rows, column]] - first)

    def of_source(self, noise: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """Draws of the source from standard normal noise."""
        return noise if self.source == "normal" else jax.scipy.stats.norm.cdf(noise)

    def nearest(
        self, x: Float[Array, "B ..."], cond: Int[Array, " B"] | None = None, *, k: int = 1
    ) -> Int[Array, "B k"]:
        """The indices of the k targets with the largest <x, y_j> + h_j, best first; the first is that of T(x).

        -1 where there is none: for an x that is not finite, and under jit for a class without targets.

        Raises:
            ValueError: a class where the map has none or the reverse, a class without targets, fewer targets than k, or
                x of another shape than the targets.
        """
        if (cond is None) != (self.labels is None):
            raise ValueError("pass cond= exactly if the map has labels: it then has one map per class")
        if x.shape[1:] != self.targets.shape[1:]:
            raise ValueError(f"x has the shape {x.shape}, the targets have {self.targets.shape}")
        if cond is not None and not any(isinstance(c, jax.core.Tracer) for c in (cond, self.labels)):
            unknown = np.setdiff1d(np.asarray(cond), np.asarray(self.labels))
            if len(unknown):
                raise ValueError(f"the map has no targets of class {', '.join(map(str, unknown))}")
        if k > 1 or self.labels is None:
            n = len(self.targets) if self.labels is None else int(np.unique(self.labels, return_counts=True)[1].min())
            if not 1 <= k <= n:
                raise ValueError(f"k must be 1 to {n}, the number of targets (of the smallest class), got {k}")
        return _nearest(x, jnp.asarray(self.targets), jnp.asarray(self.heights), cond, self.labels, k, self.block)

    def angles(self, found: Int[Array, "B k"]) -> Float[Array, "B k-1"]:
        """Angles in [0, pi) between the plane (y, -1) of the first target and those of the others."""
        y = jnp.asarray(self.targets)[found].reshape(*found.shape, -1)
        normal = jnp.concatenate([y, -jnp.ones_like(y[..., :1])], axis=2)
        normal = normal / jnp.linalg.norm(normal, axis=2, keepdims=True)
        return 2 * jnp.arcsin(jnp.minimum(jnp.linalg.norm(normal[:, 1:] - normal[:, :1], axis=2) / 2, 1))

    def masses(self, key: Key[Array, ""], num: int, label: int | None = None) -> Float[np.ndarray, " n"]:
        """The share of each cell in `num` draws of the source; check it for empty cells before use.

        Args:
            key: of the draws.
            num: number of draws; 10 n or more.
            label: of a map per class, whose cells share the mass 1 among those of the class.

        Raises:
            ValueError: no draw, or a class without targets.
        """
        _checks.whole(_checks.COUNT, num=num)
        counts = np.zeros(len(self.targets))
        for i, first in enumerate(range(0, num, 4096)):
            z = jax.random.normal(jax.random.fold_in(key, i), (min(4096, num - first), *self.targets.shape[1:]))
            cond = None if label is None else jnp.full(len(z), label, jnp.int32)
            counts += np.bincount(np.asarray(self.nearest(self.of_source(z), cond)[:, 0]), minlength=len(counts))
        return counts / num


def fit(
    key: Key[Array, ""],
    path: GaussianPath,
    x1: Float[Array, "n ..."],
    time: float,
    labels: Int[Array, " n"] | None = None,
    *,
    source: str = "normal",
    **options: Any,
) -> SemidiscreteMap:
    """The optimal map from the source to data noised to `time`.

    Args:
        key: of the noise in the targets and of the draws of the source.
        path: the path that will be sampled.
        x1: normalised data, (n, ...). They stay in memory.
        time: t*: the share of the path that is left out. Near 1 the starts are the data themselves.
        labels: classes, for one map per class.
        source: "normal" or "uniform".
        **options: of `optimal_heights`.

    Returns:
        The map. A warning says that its starts derive from the data, and another one if masses are still uneven.

    Raises:
        ImportError: ott-jax is not installed.
        ValueError: an unknown source, a time outside [0, 1], data that are none or not finite, or another number of
            labels.
    """
    if len(x1) == 0 or not np.isfinite(x1).all() or (labels is not None and labels.shape != (len(x1),)):
        raise ValueError(f"a map needs finite data and a label for each, got {x1.shape} and labels={labels}")
    noise_key, key = jax.random.split(key)
    x1 = jnp.asarray(x1, precision(x1))
    targets = path.interpolate(time, standard_normal(noise_key, x1.shape, 0, x1.dtype), x1)
    groups = [np.arange(len(x1))]
    if labels is not None:
        groups = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(np.asarray(labels))]
    heights, errors = np.zeros(len(x1)), []
    for number, group in enumerate(groups):
        heights[group], error = optimal_heights(
            jax.random.fold_in(key, number), targets[group], source=source, **options
        )
        errors.append(error)
    warnings.warn(
        f"the starts of this map are {len(x1)} training samples, noised to t = {time:g}: what is sampled from them may "
        "resemble those; stochastic solvers or k > 1 add variety",
        stacklevel=2,
    )
    if not max(errors) <= 0.1:
        warnings.warn(
            f"the masses of the cells are uneven, their chi-squared error is {max(errors):.2g}: fit with more steps or "
            "larger batches",
            stacklevel=2,
        )
    return SemidiscreteMap(
        targets=targets, heights=jnp.asarray(heights, x1.dtype), time=time, labels=labels, source=source
    )


def optimal_heights(
    key: Key[Array, ""],
    targets: Float[Array, "n ..."],
    weights: Float[Array, " n"] | None = None,
    *,
    source: str = "normal",
    heights: Float[Array, " n"] | Float[np.ndarray, " n"] | None = None,
    steps: int = 2000,
    batch: int = 1024,
    rate: float = 0.03,
    threshold: float = 1e-2,
) -> tuple[Float[np.ndarray, " n"], float]:
    """Heights whose cells have the masses `weights`, by stochastic ascent (Adam, cosine decay) in ott-jax.

    Args:
        key: of the draws of the source.
        targets: (n, ...).
        weights: masses that sum to 1; equal ones by default.
        source: "normal" or "uniform".
        heights: where to start (a fit that goes on); the nearest target's cells by default.
        steps: of the ascent, at most.
        batch: draws per step; a (batch, n) matrix of costs is in memory.
        rate: first learning rate, in standard deviations of the cost |x - y|^2.
        threshold: stop when the chi-squared error of the masses, estimated every 100 steps, is below.

    Returns:
        The heights, of mean zero, and the last estimate of that error (noisy, it may be negative).

    Raises:
        ImportError: ott-jax is not installed.
        ValueError: an unknown source, a number outside its range, masses that are not positive or do not sum to 1, or
            an ascent that did not stay finite.
    """
    _check_source(source)
    _checks.whole(_checks.COUNT, steps=steps, batch=batch)
    _checks.real("(0, inf)", rate=rate)
    if weights is not None:
        masses = np.asarray(weights, np.float64)
        # Sums of n float32 numbers are off by sqrt(n) roundings; 1e-3 is far from that and from a mistake.
        if masses.shape != (len(targets),) or not (masses > 0).all() or abs(masses.sum() - 1) > 1e-3:
            raise ValueError(f"{len(targets)} targets need as many positive masses that sum to 1, got {masses}")
    y = jnp.asarray(targets, jnp.float32).reshape(len(targets), -1)
    norms = np.sum(np.asarray(y, np.float64) ** 2, axis=1)
    scale_key, key = jax.random.split(key)
    x = np.asarray(_SAMPLERS[source](scale_key, (256, y.shape[1]), jnp.float32), np.float64)
    cost = norms + np.sum(x**2, axis=1)[:, None] - 2 * x @ np.asarray(y, np.float64).T
    start = np.zeros(len(y)) if heights is None else 2 * np.asarray(heights, np.float64) + norms
    g = jnp.asarray(start, jnp.float32)
    steps = -(-steps // 100) * 100
    weights = None if weights is None else jnp.asarray(weights, jnp.float32)
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_key_reuse(False),
        enable_x64(False),  # ott-jax mixes the two precisions otherwise
    ):
        g, errors = _ascend(key, y, weights, g, rate * cost.std(), source, steps, batch, threshold)
    found, errors = (np.asarray(g, np.float64) - norms) / 2, np.asarray(errors)
    errors = errors[np.isfinite(errors)]
    if not (np.isfinite(found).all() and len(errors)):
        raise ValueError(f"the ascent of the heights did not stay finite: look at the targets, or lower {rate=}")
    return found - found.mean(), float(errors[-1])


@functools.partial(jax.jit, static_argnames=("source", "steps", "batch", "threshold"))
def _ascend(
    key: Any, y: Array, weights: Any, g: Array, rate: Any, source: str, steps: int, batch: int, threshold: float
) -> tuple[Array, Array]:
    """The dual g and the estimated errors; compiled once for a shape."""
    try:
        from ott.geometry.semidiscrete_pointcloud import SemidiscretePointCloud
        from ott.problems.linear.semidiscrete_linear_problem import SemidiscreteLinearProblem
        from ott.solvers.linear.semidiscrete import SemidiscreteSolver
    except ImportError as error:
        raise ImportError("semi-discrete maps are solved by ott-jax: pip install ott-jax") from error

    solver = SemidiscreteSolver(
        num_iterations=steps,
        batch_size=batch,
        optimizer=optax.adam(optax.cosine_decay_schedule(rate, steps)),
        error_eval_every=100,
        threshold=threshold,
    )
    result = solver(
        key, SemidiscreteLinearProblem(SemidiscretePointCloud(_SAMPLERS[source], y, epsilon=0.0), b=weights), g
    )
    return result.g, result.errors


def rescaled(angles: Float[Array, "B pairs"]) -> Float[Array, "B pairs"]:
    """Angles moved to [0, 1] by the smallest and the largest of the batch; zeros if all are the same."""
    low, high = jnp.min(angles), jnp.max(angles)
    return (angles - low) / jnp.where(high > low, high - low, 1)


@functools.partial(jax.jit, static_argnames=("k", "block"))
def _nearest(
    x: Array, targets: Array, heights: Array, cond: Array | None, labels: Array | None, k: int, block: int
) -> Array:
    """Blocks of targets in turn, with the best k so far."""
    n, x = len(targets), x.reshape(len(x), -1)
    finite = jnp.all(jnp.isfinite(x), axis=1)
    block = min(block, n)
    missing = -n % block

    def blocks(values: Any, fill: float) -> Array:
        values = jnp.asarray(values).reshape(n, -1)
        return jnp.pad(values, ((0, missing), (0, 0)), constant_values=fill).reshape(-1, block, values.shape[1])

    y, h = blocks(targets.astype(x.dtype), 0), blocks(heights.astype(x.dtype), -jnp.inf)
    index = jnp.arange(n + missing).reshape(-1, block)
    classes = None if labels is None else blocks(labels, -1)[:, :, 0]

    def better(best: Any, of_block: Any) -> Any:
        y, h, index, classes = of_block
        score = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST) + h.T
        score = jnp.where(finite[:, None], score, -jnp.inf)
        if cond is not None:
            score = jnp.where(classes[None] == cond[:, None], score, -jnp.inf)
        scores = jnp.concatenate([best[0], score], axis=1)
        indices = jnp.concatenate([best[1], jnp.broadcast_to(index[None], score.shape)], axis=1)
        values, where = jax.lax.top_k(scores, k)
        return (values, jnp.where(values > -jnp.inf, jnp.take_along_axis(indices, where, axis=1), -1)), None

    first = jnp.full((len(x), k), -jnp.inf, x.dtype), jnp.zeros((len(x), k), index.dtype)
    return jax.lax.scan(better, first, (y, h, index, classes))[0][1]


def _check_source(source: str) -> None:
    if source not in _SAMPLERS:
        raise ValueError(f"source={source!r} is not one of {', '.join(_SAMPLERS)}")

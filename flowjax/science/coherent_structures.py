"""Finite-time Lyapunov exponents of vector fields, samplers and tracks; coherent initialisation of particle tracks.

The flow map F takes x at t0 to the solution of dx/dt = v(t, x) at t1; with its Jacobian J and T = t1 - t0, the
finite-time Lyapunov exponent (FTLE) is ln sigma_max(J) / |T|: the largest mean rate at which neighbours separate. T > 0
shows repelling structures, T < 0 attracting ones, ridges of the FTLE separate regions that do not mix.

J is carried along with x by constant Runge-Kutta steps: it is the exact derivative of the discrete map. An adaptive
solver that sees x alone takes steps of any length where the error of x vanishes, at a fixed point for example, and its
Jacobian is then wrong; `variational` makes the pair (x, J) one state for diffrax's adaptive solvers.

Track initialisation (`candidates`, `baseline`, `lcti`) joins four clouds of unlabelled particles into tracks. Candidate
chains p0 p1 p2 p3 come from the nearest particles around predicted positions. The baseline takes the chain with the
smallest third difference |p3 - 3 p2 + 3 p1 - p0|. LCTI takes the chain that separates least from its neighbours:

    Lambda_cj = max_k |ln(|c_k - n_k| / |c_0 - n_0|)| / k,  k = 1..3,    score_c = mean of the lowest half over j,

with neighbouring tracks n_j; the lower half keeps a ridge among the neighbours from counting. Candidate counts, the
score, uniqueness and the number of sweeps are reconstructed from the abstract and the author's later work, as are the
baseline and the ridge criterion.

Precision: every function works in the dtype of its points. In float32 the FTLE after 100 steps is accurate to about
1e-5, and the fractions of true and wrong tracks are those of float64.

References:
    Haller (2015), Lagrangian Coherent Structures, doi:10.1146/annurev-fluid-010313-141322.
    Shadden, Lekien and Marsden (2005), doi:10.1016/j.physd.2005.10.007 (double gyre, ridges).
    Rahimi Khojasteh, Yang, Heitz and Laizet (2021), Lagrangian coherent track initialization, arXiv:2106.11049.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from flowjax._pytree import pytree

VectorField = Callable[[Any, Any, Any], Any]


@pytree
class Stretching:
    """What a flow map does to small neighbourhoods.

    Attributes:
        end: the points after the map, (..., d).
        gradient: J, (..., d, d).
        exponent: FTLE per unit of time, (...); 0 where not valid.
        valid: False where J is zero, not finite or undetermined (too few or degenerate neighbours).
    """

    end: Float[Array, "... d"]
    gradient: Float[Array, "... d d"]
    exponent: Float[Array, "..."]
    valid: Bool[Array, "..."]


@pytree
class Chains:
    """Candidate chains of each particle of the first frame.

    Attributes:
        links: index into frames 1, 2 and 3, (N, K, 3).
        positions: of the chain in all frames, (N, K, 4, d).
        valid: whether the candidate exists, (N, K).
    """

    links: Int[Array, "N K 3"]
    positions: Float[Array, "N K 4 d"]
    valid: Bool[Array, "N K"]


@pytree
class Tracks:
    """Tracks that start at the particles of the first frame.

    Attributes:
        links: index of the particle in frames 1, 2 and 3, -1 where untracked, (N, 3). No particle is used twice.
        positions: in the four frames, the first frame's where untracked, (N, 4, d).
        accepted: False where untracked, (N,).
        cost: of the chosen chain, infinite where there is none, (N,).
    """

    links: Int[Array, "N 3"]
    positions: Float[Array, "N 4 d"]
    accepted: Bool[Array, " N"]
    cost: Float[Array, " N"]


def largest_stretch(gradient: Float[Array, "... d d"]) -> Float[Array, "..."]:
    """The largest singular value; in two dimensions in closed form without cancellation.

    With J = [[a, b], [c, d]] it is (|(a + d, c - b)| + |(a - d, b + c)|) / 2, the conformal and the anticonformal part.
    Its derivative is finite everywhere (one of the subgradients where singular values coincide).
    """
    if gradient.shape[-1] != 2:
        return jnp.linalg.svd(gradient, compute_uv=False)[..., 0]
    a, b, c, d = (gradient[..., i, j] for i in range(2) for j in range(2))
    return (_hypotenuse(a + d, c - b) + _hypotenuse(a - d, b + c)) / 2


def ftle(gradient: Float[Array, "... d d"], duration: Any) -> Float[Array, "..."]:
    """ln sigma_max(J) / |T|; -inf where J is zero."""
    return jnp.log(largest_stretch(gradient)) / jnp.abs(jnp.asarray(duration, gradient.dtype))


def stretching(
    vector_field: VectorField, points: Float[Array, "... d"], t0: Any, t1: Any, *, steps: int, args: Any = None
) -> Stretching:
    """Flow map, its Jacobian and the FTLE of a vector field, by classical Runge-Kutta steps of constant length.

    Args:
        vector_field: v(t, x, args) for one point x (d,), in diffrax's signature. A field of flowjax is
            `lambda t, x, cond: flow.velocity(t, x[None], cond)[0]`.
        points: starting points.
        t0: time of the points.
        t1: final time; below t0 for attracting structures.
        steps: number of steps; the error of J falls as its fourth power.
        args: passed to the vector field.

    Raises:
        ValueError: no steps, or t0 = t1.

    Example:
        >>> shear = lambda t, x, args: jnp.stack([1.3 * x[1], 0 * x[0]])
        >>> round(float(stretching(shear, jnp.zeros(2), 0.0, 2.0, steps=4).exponent), 4)
        0.5392
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one step is needed")
    if not isinstance(t0, jax.core.Tracer) and not isinstance(t1, jax.core.Tracer) and t0 == t1:
        raise ValueError(f"t0 and t1 are both {t0}: the exponent of an empty interval is not defined")
    t0, t1 = jnp.asarray(t0, points.dtype), jnp.asarray(t1, points.dtype)
    times = jnp.linspace(t0, t1, steps + 1, dtype=points.dtype)
    size = points.shape[-1]

    def step(span, y):
        t, h = span[0], span[1] - span[0]
        k1 = vector_field(t, y, args)
        k2 = vector_field(t + h / 2, y + h / 2 * k1, args)
        k3 = vector_field(t + h / 2, y + h / 2 * k2, args)
        k4 = vector_field(t + h, y + h * k3, args)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def advance(state, span):
        y, columns = state
        y, push = jax.linearize(lambda y: step(span, y), y)
        return (y, jax.vmap(push)(columns)), None

    def one(y):
        spans = jnp.stack([times[:-1], times[1:]], axis=1)
        (y, columns), _ = jax.lax.scan(advance, (y, jnp.eye(size, dtype=y.dtype)), spans)
        return y, columns.T

    end, gradient = jax.vmap(one)(points.reshape(-1, size))
    return _checked(end.reshape(points.shape), gradient.reshape(*points.shape, size), t1 - t0)


def variational(vector_field: VectorField) -> VectorField:
    """The field of the pair (x, J), d(x, J)/dt = (v, grad v J), whose error an adaptive solver can control.

    Start it at (x, identity). A diffrax solver of this field gives (F(x), J) without differentiating the solver.
    """

    def field(t, state, args):
        y, gradient = state
        value, push = jax.linearize(lambda y: vector_field(t, y, args), y)
        return value, jax.vmap(push, in_axes=1, out_axes=1)(gradient)

    return field


def sampler_stretching(
    sampler: Callable[[Array], Array], noise: Float[Array, "B ..."], *, duration: float = 1.0, chunk: int = 16
) -> Stretching:
    """What a generative flow stretches: the Jacobian of the whole sampler, from noise to data, with its FTLE.

    The Jacobian is that of the discrete sampler, by forward derivatives along all D coordinates of a sample.

    Args:
        sampler: noise (B, ...) -> samples of the same shape, such as
            `lambda x: fj.solve(flow, solver, x, times).x`; a sample must not depend on its batch mates.
        noise: where to look.
        duration: length of the interval of time, 1 for a whole run.
        chunk: directions that are pushed through the sampler at once.

    Returns:
        Flattened samples (B, D), Jacobians (B, D, D), exponents and flags (B,).
    """
    flat = noise.reshape(len(noise), -1)

    def flat_sampler(x):
        return sampler(x.reshape(noise.shape)).reshape(flat.shape)

    def column(direction):
        return jax.jvp(flat_sampler, (flat,), (jnp.broadcast_to(direction, flat.shape),))[1]

    basis = jnp.eye(flat.shape[1], dtype=flat.dtype)
    columns = jax.lax.map(column, basis, batch_size=min(chunk, flat.shape[1]))
    return _checked(flat_sampler(flat), jnp.moveaxis(columns, 0, -1), duration)


def grid_stretching(end: Float[Array, "... d"], spacing: tuple[float, ...], duration: Any) -> Stretching:
    """FTLE by central differences of a flow map that is known on a grid (one-sided at its edges).

    Two neighbours cannot separate by more than the domain: the result is capped near
    ln(extent / (2 spacing)) / |T| and never to be compared with the exact one where that is larger.

    Args:
        end: final positions of the grid points, (n_1, ..., n_d, d).
        spacing: of the grid along each axis, d numbers.
        duration: T.

    Raises:
        ValueError: the number of axes is not d, or an axis has fewer than two points.
    """
    size = end.shape[-1]
    if end.ndim != size + 1 or len(spacing) != size or min(end.shape[:-1]) < 2:
        raise ValueError(f"a flow map on a grid has shape (n_1, ..., n_d, d) with n >= 2; got {end.shape}, {spacing=}")
    gradient = jnp.stack(jnp.gradient(end, *spacing, axis=tuple(range(size))), axis=-1)
    return _checked(end, gradient, duration)


def ridges(
    exponent: Float[Array, "..."], spacing: tuple[float, ...], *, percentile: float = 75.0
) -> Bool[Array, "..."]:
    """Grid points on ridges of a scalar: maxima along the direction e of the most negative curvature (reconstructed).

    On the line along e the maximum of the quadratic model lies at -(grad . e) / curvature; a grid point is on the ridge
    if that is within half a cell. The outermost points never are: walls carry extremes of their own.

    Args:
        exponent: values on a grid, (n_1, ..., n_d).
        spacing: of the grid along each axis.
        percentile: only values above this percentile of the interior, in [0, 100].
    """
    axes = tuple(range(exponent.ndim))
    slope = _gradient(exponent, spacing, axes)
    curvature, directions = jnp.linalg.eigh(_gradient(slope, spacing, axes))
    curvature, direction = curvature[..., 0], directions[..., 0]
    offset = -jnp.sum(slope * direction, axis=-1) / jnp.where(curvature < 0, curvature, 1)
    cell = 1 / jnp.max(jnp.abs(direction) / _spread(spacing, direction), axis=-1)
    inner = np.zeros(exponent.shape, bool)
    inner[(slice(1, -1),) * exponent.ndim] = True
    high = exponent >= jnp.percentile(exponent[(slice(1, -1),) * exponent.ndim], percentile)
    return (curvature < 0) & (jnp.abs(offset) <= cell / 2) & high & inner


def nearest(
    queries: Float[Array, "Q d"], points: Float[Array, "N d"], count: int, valid: Bool[Array, " N"] | None = None
) -> tuple[Int[Array, "Q k"], Float[Array, "Q k"]]:
    """Indices and distances of the nearest valid points, nearest first; distance inf where there are not enough.

    Exact, by all distances of 1024 queries at a time.

    Raises:
        ValueError: fewer points than asked for.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"count={count} must lie between 1 and the number of points, {len(points)}")

    def one(query):
        square = jnp.sum((points - query[None]) ** 2, axis=-1)
        smallest, index = jax.lax.top_k(-square if valid is None else -jnp.where(valid, square, jnp.inf), count)
        return index, jnp.sqrt(-smallest)

    return jax.lax.map(one, queries, batch_size=1024)


def track_stretching(
    start: Float[Array, "N d"],
    end: Float[Array, "N d"],
    neighbours: Int[Array, "N m"],
    valid: Bool[Array, "N m"],
    duration: Any,
) -> Stretching:
    """FTLE from tracks: J = (sum dX1 dX0^T) (sum dX0 dX0^T)^-1 over the neighbours of each particle.

    Exact for affine flows. Particles with fewer than d neighbours, or with neighbours in a plane (condition of the
    second sum above 1e10, in float32 1e5), are flagged and get J = identity.
    """
    size = start.shape[-1]
    weight = valid[..., None].astype(start.dtype)
    before = jnp.where(valid[..., None], start[neighbours] - start[:, None], 0) * weight
    after = jnp.where(valid[..., None], end[neighbours] - end[:, None], 0) * weight
    moments = jnp.einsum("nmi,nmj->nij", before, before)
    cross = jnp.einsum("nmi,nmj->nij", after, before)
    values = jnp.linalg.eigvalsh(jnp.where(jnp.isfinite(moments), moments, 0))
    limit = 1e10 if start.dtype == jnp.float64 else 1e5
    enough = (jnp.sum(valid, axis=-1) >= size) & (values[:, 0] * limit > values[:, -1])
    identity = jnp.eye(size, dtype=start.dtype)[None]
    moments = jnp.where(enough[:, None, None], moments, identity)
    gradient = jnp.where(enough[:, None, None], jnp.linalg.solve(moments, cross.mT).mT, identity)
    result = _checked(end, gradient, duration)
    return Stretching(
        end=end,
        gradient=gradient,
        exponent=jnp.where(enough, result.exponent, 0),
        valid=result.valid & enough,
    )


def coherent_neighbours(
    start: Float[Array, "N d"],
    end: Float[Array, "N d"],
    neighbours: Int[Array, "N m"],
    valid: Bool[Array, "N m"],
    duration: Any,
    *,
    floor: float = 0.0,
) -> tuple[Float[Array, "N m"], Bool[Array, "N m"], Float[Array, "N m"]]:
    """Which neighbours move along with a particle, from the separation of pairs of tracks.

    Lambda = |ln(distance at the end / distance at the start)| / |T|; coherent are the valid neighbours at or below the
    median of their particle, at least two of them. Their weights (Lambda / mean)^-1 + 3 (d / max d)^-1, d the distance
    at the end, sum to one (0 where no neighbour is coherent). Contraction counts as separation, and rotation about
    each other does not count.

    Args:
        start: positions at the first time.
        end: positions at the last time.
        neighbours: indices of the neighbours of each particle.
        valid: which of them exist.
        duration: T.
        floor: smallest distance, of the order of the noise: close pairs separate by noise alone.

    Returns:
        Lambda (0 where not valid), mask of the coherent neighbours, weights.
    """
    tiny = jnp.finfo(start.dtype).eps
    first, last = (
        jnp.maximum(jnp.linalg.norm(x[neighbours] - x[:, None], axis=-1), max(floor, float(tiny))) for x in (start, end)
    )
    valid &= jnp.isfinite(first) & jnp.isfinite(last)
    first, last = jnp.where(valid, first, 1), jnp.where(valid, last, 1)
    exponent = jnp.abs(jnp.log(last / first)) / jnp.abs(jnp.asarray(duration, start.dtype))
    any_valid = jnp.any(valid, axis=-1, keepdims=True)
    known = jnp.where(valid | ~any_valid, exponent, jnp.nan)
    coherent = valid & (exponent <= jnp.nanmedian(known, axis=-1, keepdims=True))
    coherent &= jnp.sum(coherent, axis=-1, keepdims=True) >= 2
    mean = jnp.sum(jnp.where(coherent, exponent, 0), -1, keepdims=True) / jnp.maximum(
        jnp.sum(coherent, -1, keepdims=True), 1
    ).astype(start.dtype)
    weight = (mean + tiny) / (exponent + tiny) + 3 * jnp.max(jnp.where(coherent, last, 0), -1, keepdims=True) / last
    weight = jnp.where(coherent, weight, 0)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return exponent, coherent, weight / jnp.where(total > 0, total, 1)


def candidates(
    frames: Float[Array, "frames N d"],
    valid: Bool[Array, "frames N"] | None = None,
    *,
    search_radius: Any,
    prediction_radius: Any,
    counts: tuple[int, int, int] = (8, 3, 3),
) -> Chains:
    """Candidate chains of all particles of the first frame (counts and order of the predictors reconstructed).

    p1 is among the nearest to p0, p2 among the nearest to 2 p1 - p0, p3 among the nearest to 3 p2 - 3 p1 + p0. If a
    particle moves more than about 1.9 spacings, 8 first candidates miss many true successors.

    Args:
        frames: positions in four frames at equal intervals.
        valid: which entries are particles; entries that are not finite never are.
        search_radius: largest |p1 - p0|, at least the largest displacement.
        prediction_radius: largest distance from a prediction, its residual plus about six times the noise.
        counts: candidates in frames 1, 2 and 3.

    Raises:
        ValueError: not four frames, or fewer entries than candidates.
    """
    if frames.ndim != 3 or len(frames) != 4:
        raise ValueError(f"frames have shape (4, N, d); got {frames.shape}")
    present = jnp.all(jnp.isfinite(frames), axis=-1)
    present = present if valid is None else present & valid
    frames = jnp.where(present[..., None], frames, 0)
    chains = frames[0][:, None, None]  # (N, K, frames so far, d)
    exists, links = present[0][:, None], jnp.zeros((frames.shape[1], 1, 0), jnp.int32)
    predictors = ([1], [-1, 2], [1, -3, 3])
    for frame, (count, predictor) in enumerate(zip(counts, predictors, strict=True), start=1):
        predicted = jnp.einsum("nkfd,f->nkd", chains, jnp.array(predictor, frames.dtype))
        n, k, d = predicted.shape
        index, distance = nearest(predicted.reshape(n * k, d), frames[frame], count, present[frame])
        near = distance <= (search_radius if frame == 1 else prediction_radius)
        exists = (exists[..., None] & near.reshape(n, k, count)).reshape(n, k * count)
        index = index.reshape(n, k * count)
        links = jnp.concatenate([jnp.repeat(links, count, axis=1), index[..., None].astype(jnp.int32)], axis=-1)
        chains = jnp.concatenate([jnp.repeat(chains, count, axis=1), frames[frame][index][:, :, None]], axis=2)
    return Chains(links=links, positions=chains, valid=exists)


def baseline(chains: Chains) -> Tracks:
    """The smoothest candidate of each particle, each particle used once (a reconstructed four-frame best estimate)."""
    return _accept(chains, _third_difference(chains))


def lcti(
    chains: Chains,
    *,
    neighbours: int = 12,
    sweeps: int = 3,
    coherence: float = 1.0,
    smoothness: float = 0.0,
    floor: float = 0.0,
    bound: float = np.inf,
) -> Tracks:
    """Lagrangian coherent track initialisation: the candidates that separate least from neighbouring tracks.

    Starts from `baseline`; each sweep scores all candidates against the tracks accepted so far. The choice of a
    candidate is discrete and has no derivative.

    Args:
        chains: candidates.
        neighbours: M; the M + 1 nearest accepted tracks are taken and the particle's own struck out.
        sweeps: number of sweeps.
        coherence: weight of the score of the module's text.
        smoothness: weight of |third difference| / median displacement of the accepted tracks; it amplifies noise.
        floor: smallest distance in the logarithms, of the order of the noise.
        bound: largest cost of an accepted track.

    Raises:
        ValueError: fewer particles than neighbours.
    """
    if neighbours < 2 or neighbours + 1 > len(chains.valid):
        raise ValueError(f"neighbours={neighbours} must lie between 2 and the number of particles minus 1")
    roughness = _third_difference(chains)

    def sweep(tracks, _):
        travelled = jnp.linalg.norm(tracks.positions[:, 1] - tracks.positions[:, 0], axis=-1)
        median = jnp.nanmedian(jnp.where(tracks.accepted | ~jnp.any(tracks.accepted), travelled, jnp.nan))
        cost = coherence * _separation(chains, tracks, neighbours, floor)
        cost += smoothness * roughness / jnp.where(median > 0, median, 1)
        return _accept(chains, jnp.where(cost <= bound, cost, jnp.inf)), None

    return jax.lax.scan(sweep, baseline(chains), length=sweeps)[0]


def track_metrics(tracks: Tracks, truth: Int[Array, "N 3"]) -> dict[str, Float[Array, ""]]:
    """Fractions of all particles: "true" (all links right), "wrong" and "untracked"; the truth is -1 where none is."""
    right = tracks.accepted & jnp.all(tracks.links == truth, axis=-1)
    fractions = {"true": right, "wrong": tracks.accepted & ~right, "untracked": ~tracks.accepted}
    return {name: jnp.mean(value.astype(tracks.cost.dtype)) for name, value in fractions.items()}


def double_gyre(t: Any, x: Float[Array, " 2"], args: Any = None) -> Float[Array, " 2"]:
    """Two counter-rotating gyres on [0, 2] x [0, 1] whose wall between them swings; stream function
    A sin(pi f) sin(pi y), f = a x^2 + (1 - 2 a) x, a = eps sin(omega t). `args` = (A, eps, omega), None: 0.1, 0.25,
    2 pi / 10.
    """  # noqa: D205
    amplitude, eps, omega = (0.1, 0.25, 2 * np.pi / 10) if args is None else args
    a = eps * jnp.sin(omega * t)
    f, slope = a * x[0] ** 2 + (1 - 2 * a) * x[0], 2 * a * x[0] + 1 - 2 * a
    u = -np.pi * amplitude * jnp.sin(np.pi * f) * jnp.cos(np.pi * x[1])
    return jnp.stack([u, np.pi * amplitude * jnp.cos(np.pi * f) * jnp.sin(np.pi * x[1]) * slope])


def abc_flow(t: Any, x: Float[Array, " 3"], args: Any = None) -> Float[Array, " 3"]:
    """The Arnold-Beltrami-Childress flow with A = sqrt(3) + sin(t/2)/2, B = sqrt(2), C = 1."""
    a, b = float(np.sqrt(3.0)) + 0.5 * jnp.sin(t / 2), float(np.sqrt(2.0))
    sin, cos = jnp.sin(x), jnp.cos(x)
    return jnp.stack([a * sin[2] + cos[1], b * sin[0] + a * cos[2], sin[1] + b * cos[0]])


def abc_frames(
    key: Key[Array, ""], particles: int, *, displacement: Any, noise: Any, dtype: Any = jnp.float32
) -> tuple[Float[Array, "4 N 3"], Int[Array, "N 3"], Float[Array, ""], Float[Array, ""]]:
    """Four noisy, shuffled frames of particles that start uniformly in a cube of side 2 of the ABC flow.

    Args:
        key: random key.
        particles: N.
        displacement: typical displacement per frame over the mean spacing 0.554 (8/N)^(1/3), at a speed of 2.4.
        noise: standard deviation of the positions over the spacing.
        dtype: of the positions.

    Returns:
        The frames, the true links, a search radius (1.2 times the largest first displacement) and a prediction radius
        (0.15 times the same plus six standard deviations of the noise).
    """
    spacing = 0.554 * (8 / particles) ** (1 / 3)
    interval = displacement * spacing / 2.4
    place, shake, shuffle = jax.random.split(key, 3)
    x = jax.random.uniform(place, (particles, 3), dtype, maxval=2.0)
    exact = [x]
    for frame in range(3):
        exact.append(stretching(abc_flow, exact[-1], frame * interval, (frame + 1) * interval, steps=4).end)
    frames = jnp.stack(exact)
    largest = jnp.max(jnp.linalg.norm(frames[1] - frames[0], axis=-1))
    frames = frames + noise * spacing * jax.random.normal(shake, frames.shape, dtype)
    orders = jax.vmap(lambda k: jax.random.permutation(k, particles))(jax.random.split(shuffle, 3))
    shuffled = [frames[0], *(frame[order] for frame, order in zip(frames[1:], orders, strict=True))]
    truth = jnp.argsort(orders, axis=1).T.astype(jnp.int32)
    return jnp.stack(shuffled), truth, 1.2 * largest, 0.15 * 1.2 * largest + 6 * noise * spacing


def _hypotenuse(x: Array, y: Array) -> Array:
    square = x**2 + y**2
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _spread(spacing: tuple[float, ...], like: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(spacing, like.dtype), like.shape)


def _gradient(values: Array, spacing: tuple[float, ...], axes: tuple[int, ...]) -> Array:
    """Central differences along the grid axes, as a new last axis."""
    slopes = jnp.gradient(values, *spacing, axis=axes)
    return jnp.stack(slopes if isinstance(slopes, (list, tuple)) else [slopes], axis=-1)


def _checked(end: Array, gradient: Array, duration: Any) -> Stretching:
    """The exponent of a gradient, or 0 and a flag where it has none."""
    valid = jnp.all(jnp.isfinite(gradient), axis=(-2, -1)) & jnp.any(gradient != 0, axis=(-2, -1))
    identity = jnp.broadcast_to(jnp.eye(gradient.shape[-1], dtype=gradient.dtype), gradient.shape)
    exponent = ftle(jnp.where(valid[..., None, None], gradient, identity), duration)
    return Stretching(end=end, gradient=gradient, exponent=jnp.where(valid, exponent, 0), valid=valid)


def _third_difference(chains: Chains) -> Float[Array, "N K"]:
    return jnp.linalg.norm(jnp.diff(chains.positions, n=3, axis=2)[:, :, 0], axis=-1)


def _separation(chains: Chains, tracks: Tracks, neighbours: int, floor: float) -> Float[Array, "N K"]:
    """The score of all candidates; infinite for particles without a neighbouring track."""
    start = chains.positions[:, 0, 0]
    index, distance = nearest(start, start, neighbours + 1, tracks.accepted)
    usable = jnp.isfinite(distance) & (index != jnp.arange(len(start), dtype=index.dtype)[:, None])
    tiny = max(floor, float(jnp.finfo(start.dtype).tiny) ** 0.25)
    frames = jnp.arange(1, 4, dtype=start.dtype)

    def one(particle):
        positions, index, usable = particle
        apart = positions[:, None] - tracks.positions[index][None]  # (K, M + 1, 4, d)
        log = jnp.log(jnp.maximum(jnp.sqrt(jnp.sum(apart**2, axis=-1)), tiny))
        exponent = jnp.max(jnp.abs(log[..., 1:] - log[..., :1]) / frames[None, None], axis=-1)
        exponent = jnp.where(usable[None], exponent, jnp.inf)
        rank = jnp.sum(exponent[..., :, None] > exponent[..., None, :], axis=-1)  # faster than sorting short rows
        lowest = usable[None] & (rank < neighbours // 2)
        found = jnp.sum(lowest, axis=-1)
        total = jnp.sum(jnp.where(lowest, exponent, 0), axis=-1)
        return jnp.where(found > 0, total / jnp.maximum(found, 1).astype(total.dtype), jnp.inf)

    return jax.lax.map(one, (chains.positions, index, usable), batch_size=256)


def _accept(chains: Chains, cost: Float[Array, "N K"]) -> Tracks:
    """The cheapest chain of each particle; a detection used twice goes to the cheaper one, frame by frame.

    A chain dropped in one frame no longer competes in the next; of equal costs the lower index wins.
    """
    particles = len(cost)
    cost = jnp.where(chains.valid, cost, jnp.inf)
    choice = jnp.argmin(cost, axis=1)
    cost = jnp.take_along_axis(cost, choice[:, None], axis=1)[:, 0]
    links = jnp.take_along_axis(chains.links, choice[:, None, None], axis=1)[:, 0]
    positions = jnp.take_along_axis(chains.positions, choice[:, None, None, None], axis=1)[:, 0]
    accepted, rank = jnp.isfinite(cost), jnp.arange(particles, dtype=links.dtype)
    for frame in range(3):
        used = links[:, frame]
        price = jnp.where(accepted, cost, jnp.inf)
        accepted &= price == jnp.full(particles, jnp.inf, cost.dtype).at[used].min(price)[used]
        first = jnp.full(particles, particles, links.dtype).at[used].min(jnp.where(accepted, rank, particles))
        accepted &= first[used] == rank
    still = jnp.broadcast_to(positions[:, :1], positions.shape)
    return Tracks(
        links=jnp.where(accepted[:, None], links, -1),
        positions=jnp.where(accepted[:, None, None], positions, still),
        accepted=accepted,
        cost=cost,
    )

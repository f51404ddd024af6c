"""Video stabilisation: from shaken frames and their optical flow to smooth, full frames.

The flow u_t says I_t(p) ~ I_(t+1)(p + u_t(p)), the confidence c_t(p) in [0, 1] that this is right within a pixel. Four
stages, each a pure function made for `jit` and `vmap` over clips:

1. `fit_motion`: a similarity or affine map between consecutive frames, robust to foreground motion.
2. `accumulate` and a smoother: the camera path, x_t = (theta, log s, dx, dy), and a smooth one beside it. The
   stabilised video is a fixed point of a smoothing map: `smooth_fixed_point`, or `smooth_quadratic`, which is much
   smoother at the same distance from the path.
3. `local_fields`: what the global maps leave, smoothed on a coarse grid (parallax, rolling shutter).
4. `fuse`: neighbouring frames, warped into the frame's place by their paths, fill what lies outside of it.

`stabilize` does all of it. Coordinates are pixels (x, y), y down, from the centre of the frame: rotation and scale are
about the centre. Flow must be in isotropic pixels: in stretched coordinates a similarity is none.

The networks of the paper (pose, flow smoothing, outpainting) are replaced by least squares on the same inputs. All of
this is reconstructed: the robust fit, the anchored fixed point and the quadratic smoother, the local grid smoothing
and the fusion are ours, since the published program holds none of them.

Works in the dtype it is given; float32 is enough (the fit is exact to 1e-5 of the frame, the quadratic smoother is
solved after moving the path to its chord, so that large drifts lose nothing). Non-finite flow gets weight zero; frames
with too little confident flow are taken as still and flagged.

References:
    Zhao, Li, Peng, Luo, Ye, Lu and Cao (2023), Fast Full-frame Video Stabilization with Iterative Optimization, ICCV,
    arXiv:2307.12774.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowjax._pytree import pytree

Matrix = Float[Array, "*batch 3 3"]


def grid(height: int, width: int, dtype: Any = jnp.float32, margin: int = 0) -> Float[Array, "H W 2"]:
    """Pixel coordinates (x, y) from the centre of a frame, with a margin of more pixels on each side."""
    y = jnp.arange(-margin, height + margin, dtype=dtype) - (height - 1) / 2
    x = jnp.arange(-margin, width + margin, dtype=dtype) - (width - 1) / 2
    return jnp.stack(jnp.meshgrid(x, y), -1)


def matrix(motion: Float[Array, "*batch 4"]) -> Matrix:
    """The similarity q = s R p + (dx, dy) of (theta, log s, dx, dy), R = [[cos, -sin], [sin, cos]], as a matrix."""
    theta, log_s, dx, dy = jnp.moveaxis(motion, -1, 0)
    c, s = jnp.exp(log_s) * jnp.cos(theta), jnp.exp(log_s) * jnp.sin(theta)
    zero, one = jnp.zeros_like(c), jnp.ones_like(c)
    return jnp.stack([c, -s, dx, s, c, dy, zero, zero, one], -1).reshape(*c.shape, 3, 3)


def transform(
    matrices: Float[Array, "*batch 3 3"], points: Float[Array, "*batch H W 2"]
) -> Float[Array, "*batch H W 2"]:
    """Points mapped by homographies, one for each leading index."""
    m = matrices[..., None, None, :, :]
    x, y = points[..., 0], points[..., 1]
    u, v, w = (m[..., i, 0] * x + m[..., i, 1] * y + m[..., i, 2] for i in range(3))
    return jnp.stack([u / w, v / w], -1)


@pytree
class Fit:
    """Motion between two frames.

    Attributes:
        matrix: The map p -> q.
        motion: (theta, log s, dx, dy) of the similarity, radians and pixels; of an affine map its nearest similarity.
        degenerate: True where fewer than 3 pixels (or only collinear ones) have weight; the map is then the identity.
    """

    matrix: Float[Array, "*batch 3 3"]
    motion: Float[Array, "*batch 4"]
    degenerate: Bool[Array, "*batch"]


def fit_motion(
    flow: Float[Array, "H W 2"],
    confidence: Float[Array, "H W"] | None = None,
    *,
    points: Float[Array, "H W 2"] | None = None,
    model: str = "similarity",
    iterations: int = 10,
    huber: float = 1.0,
) -> Fit:
    """The similarity or affine map p -> p + flow, by weighted least squares, reweighted for robustness (reconstructed).

    With weights w, centred p and q: A = sum w p.q, B = sum w p x q, D = sum w |p|^2, s = sqrt(A^2 + B^2) / D,
    theta = atan2(B, A). Reweighting by min(1, huber / |residual|) is that of Huber's loss.

    Args:
        flow: Displacements in pixels.
        confidence: Weights in [0, 1]; 1 unless given. Pixels with non-finite flow get 0.
        points: Where the flow starts; the pixels of the frame unless given.
        model: "similarity" or "affine".
        iterations: Of reweighting; 0 is plain least squares.
        huber: Residual in pixels from which pixels lose weight.

    Raises:
        ValueError: unknown model, negative iterations or huber not positive.
    """
    if model not in ("similarity", "affine") or iterations < 0 or huber <= 0:
        raise ValueError(f"model={model!r} (similarity or affine), {iterations=} (>= 0), {huber=} (> 0)")
    height, width, _ = flow.shape
    p = (grid(height, width, flow.dtype) if points is None else points).reshape(-1, 2)
    finite = jnp.isfinite(flow).all(-1)
    weight = finite.astype(flow.dtype)
    if confidence is not None:
        weight *= jnp.where(jnp.isfinite(confidence), confidence, 0).clip(0, 1)
    base = weight.reshape(-1)
    q = p + jnp.where(finite[..., None], flow, 0).reshape(-1, 2)

    def solve(weight):
        total = weight.sum()
        safe = jnp.where(total > 0, total, 1)
        p_mean, q_mean = (weight @ p) / safe, (weight @ q) / safe
        pc, qc = p - p_mean[None], q - q_mean[None]
        if model == "similarity":
            a, b = (weight * (pc * qc).sum(-1)).sum(), (weight * (pc[:, 0] * qc[:, 1] - pc[:, 1] * qc[:, 0])).sum()
            d = (weight * (pc**2).sum(-1)).sum()
            good = d > jnp.finfo(flow.dtype).eps * (weight * (p**2).sum(-1)).sum()
            linear = jnp.stack([a, -b, b, a]).reshape(2, 2) / jnp.where(good, d, 1)
        else:
            moments = (pc * weight[:, None]).T @ pc
            det = moments[0, 0] * moments[1, 1] - moments[0, 1] * moments[1, 0]
            good = det > 1e2 * jnp.finfo(flow.dtype).eps * (moments[0, 0] + moments[1, 1]) ** 2 / 4
            adjugate = jnp.stack([moments[1, 1], -moments[0, 1], -moments[1, 0], moments[0, 0]]).reshape(2, 2)
            linear = (qc * weight[:, None]).T @ pc @ adjugate / jnp.where(good, det, 1)
        good &= (base > 0).sum() >= 3
        linear = jnp.where(good, linear, jnp.eye(2, dtype=flow.dtype))
        return linear, jnp.where(good, q_mean - linear @ p_mean, 0), good

    def reweight(_, state):
        linear, shift, _ = state
        square = ((q - p @ linear.T - shift[None]) ** 2).sum(-1)
        far = square > huber**2
        return solve(base * jnp.where(far, huber / jnp.sqrt(jnp.where(far, square, 1)), 1))

    linear, shift, good = jax.lax.fori_loop(0, iterations, reweight, solve(base))
    a, b = (linear[0, 0] + linear[1, 1]) / 2, (linear[1, 0] - linear[0, 1]) / 2
    motion = jnp.stack([jnp.arctan2(b, a), jnp.log(a**2 + b**2) / 2, shift[0], shift[1]])
    whole = jnp.concatenate([jnp.concatenate([linear, shift[:, None]], 1), jnp.eye(3, dtype=flow.dtype)[2:]])
    return Fit(matrix=whole, motion=motion, degenerate=~good)


def sample(
    image: Float[Array, "H W C"], points: Float[Array, "h w 2"]
) -> tuple[Float[Array, "h w C"], Float[Array, "h w"]]:
    """Bilinear values of an image at points from its centre, and 1 where a point lies inside (values outside are 0)."""
    height, width, _ = image.shape
    x, y = points[..., 0] + (width - 1) / 2, points[..., 1] + (height - 1) / 2
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = jnp.where(inside, x, 0), jnp.where(inside, y, 0)
    left, top = jnp.floor(x).clip(0, max(width - 2, 0)), jnp.floor(y).clip(0, max(height - 2, 0))
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    i, j = top.astype(jnp.int32), left.astype(jnp.int32)
    below, right = jnp.minimum(i + 1, height - 1), jnp.minimum(j + 1, width - 1)
    value = (1 - fy) * ((1 - fx) * image[i, j] + fx * image[i, right]) + fy * (
        (1 - fx) * image[below, j] + fx * image[below, right]
    )
    weight = inside.astype(image.dtype)
    return value * weight[..., None], weight


def shared_region(
    flows: Float[Array, "T H W 2"], confidences: Float[Array, "T H W"], threshold: float = 0.5
) -> Float[Array, "T H W"]:
    """1 for pixels that are confident, stay inside the frame, and do so all through the rest of the window.

    From the last frame of the window to the first: mask_k and the warped mask_(k+1), both above 0.4, as in the
    published program, which uses windows of 5 frames.
    """
    points = grid(flows.shape[1], flows.shape[2], flows.dtype)

    def back(later, pair):
        flow, confidence = pair
        target = points + jnp.where(jnp.isfinite(flow), flow, jnp.inf)
        carried, inside = sample(later[..., None], target)
        mask = (confidence > threshold) & (inside > 0) & (carried[..., 0] > 0.4)
        return mask.astype(flow.dtype), mask.astype(flow.dtype)

    return jax.lax.scan(back, jnp.ones(flows.shape[1:3], flows.dtype), (flows, confidences), reverse=True)[1]


def accumulate(motions: Float[Array, "T 4"]) -> Float[Array, "T1 4"]:
    """The camera path from the motions between frames: products M_t ... M_0 as (theta, log s, dx, dy), from zero.

    The angle is continuous (not wrapped).
    """

    def compose(c, m):
        r = matrix(m)
        shift = r[:2, :2] @ c[2:] + r[:2, 2]
        new = jnp.concatenate([c[:2] + m[:2], shift])
        return new, new

    start = jnp.zeros(4, motions.dtype)
    return jnp.concatenate([start[None], jax.lax.scan(compose, start, motions)[1]])


def gaussian_window(frames: int, sigma: float = 5.0, radius: int = 15) -> np.ndarray:
    """The matrix G (T, T) of a normalised Gaussian window whose ends repeat the first and last frame; rows sum to 1.

    Raises:
        ValueError: sigma is not positive, or radius negative.
    """
    if sigma <= 0 or radius < 0:
        raise ValueError(f"sigma={sigma} must be positive and radius={radius} not negative")
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    result = np.zeros((frames, frames))
    for t in range(frames):
        np.add.at(result[t], np.clip(t + offsets, 0, frames - 1), weights / weights.sum())
    return result


def smooth_fixed_point(
    path: Float[Array, "T d"],
    anchor: float | Float[Array, ""] = 0.9,
    *,
    sigma: float = 5.0,
    radius: int = 15,
    iterations: int | None = None,
) -> Float[Array, "T d"]:
    """The fixed point x = (1 - a) c + a G x of anchored smoothing (reconstructed), or an iterate on the way to it.

    G is row-stochastic, so the map is a contraction by a in the largest deviation and the limit is
    (I - a G)^-1 (1 - a) c. For a = 1 nothing holds the path: a few iterations smooth it well, the limit is constant.

    Args:
        path: c.
        anchor: a in [0, 1); 1 is allowed with `iterations`.
        sigma: Of the Gaussian window, frames.
        radius: Of the window, frames.
        iterations: Steps from x = c; None solves for the limit.

    Raises:
        ValueError: anchor is outside its range.
    """
    if isinstance(anchor, (int, float)) and not (0 <= anchor < 1 or (anchor == 1 and iterations is not None)):
        raise ValueError(f"anchor={anchor} must be in [0, 1); 1 needs a number of iterations")
    g = jnp.asarray(gaussian_window(len(path), sigma, radius), path.dtype)
    a = jnp.asarray(anchor, path.dtype)
    if iterations is None:
        # An inverse, since a product stays on its device when a batch of paths is spread and a solve does not.
        return jnp.linalg.inv(jnp.eye(len(path), dtype=path.dtype) - a * g) @ ((1 - a) * path)
    return jax.lax.fori_loop(0, iterations, lambda _, x: (1 - a) * path + a * (g @ x), path)


def smooth_quadratic(path: Float[Array, "T d"], strength: float | Float[Array, ""] = 100.0) -> Float[Array, "T d"]:
    """The path x of least |x - c|^2 + strength |D^3 x|^2 (reconstructed); quadratic paths stay as they are.

    Args:
        path: c, at least 4 frames for any effect.
        strength: Weight of the third differences, >= 0.

    Raises:
        ValueError: strength is negative.
    """
    if isinstance(strength, (int, float)) and strength < 0:
        raise ValueError(f"strength={strength} must not be negative")
    frames = len(path)
    if frames < 4:
        return path
    d3 = jnp.asarray(np.diff(np.eye(frames), n=3, axis=0), path.dtype)
    # Only the difference to a straight line is solved for: it keeps float32 exact for long drifts.
    ramp = jnp.linspace(0, 1, frames, dtype=path.dtype)[:, None]
    line = path[:1] + ramp * (path[-1:] - path[:1])
    system = jnp.eye(frames, dtype=path.dtype) + jnp.asarray(strength, path.dtype) * (d3.T @ d3)
    # As above: an inverse keeps a spread batch of paths on its devices. Its condition is 1 + 64 strength at most.
    return line + jnp.linalg.inv(system) @ (path - line)


def jerk(path: Float[Array, "T d"]) -> Float[Array, ""]:
    """Mean absolute third difference of a path."""
    return jnp.abs(jnp.diff(path, n=3, axis=0)).mean()


def local_fields(
    residuals: Float[Array, "T H W 2"],
    confidences: Float[Array, "T H W"],
    smoother: Callable = smooth_quadratic,
    cells: int = 10,
) -> Float[Array, "T1 H W 2"]:
    """Displacements of the T + 1 frames that smooth what the global motion leaves (reconstructed).

    Confidence-weighted means of the residual flow over cells x cells boxes are accumulated in time and smoothed; the
    differences are interpolated bilinearly. Boxes without confident flow are not moved.

    Raises:
        ValueError: The frame is smaller than the grid.
    """
    count, height, width, _ = residuals.shape
    if min(height, width) < cells or cells < 1:
        raise ValueError(f"a grid of {cells} x {cells} boxes in frames of {height} x {width}")
    finite = jnp.isfinite(residuals).all(-1)
    weight = jnp.where(finite & jnp.isfinite(confidences), confidences, 0)
    value = jnp.where(finite[..., None], residuals, 0) * weight[..., None]
    rows, columns = (
        jnp.asarray(np.eye(cells)[np.arange(size) * cells // size], residuals.dtype) for size in (height, width)
    )
    total = jnp.einsum("thw,hi,wj->tij", weight, rows, columns)[..., None]
    mean = jnp.einsum("thwc,hi,wj->tijc", value, rows, columns) / jnp.where(total > 0, total, 1)
    path = jnp.concatenate([jnp.zeros_like(mean[:1]), jnp.cumsum(mean, 0)]).reshape(count + 1, -1)
    change = (smoother(path) - path).reshape(count + 1, cells, cells, 2)
    return jax.image.resize(change, (count + 1, height, width, 2), "linear")


def fuse(
    frames: Float[Array, "T H W C"],
    path: Float[Array, "T 4"],
    smooth: Float[Array, "T 4"],
    fields: Float[Array, "T H W 2"] | None = None,
    *,
    margin: int = 0,
    radius: int = 10,
    feather: float = 3.0,
) -> tuple[Float[Array, "T h w C"], Float[Array, "T h w"]]:
    """Stabilised frames, filled from the `radius` neighbours on each side (reconstructed).

    Frame s is seen from the smooth camera of frame t through S(x_t) S(c_s)^-1: the global motion extends the flow
    beyond the frame. Frames are used nearest in time first; each one fills what is still open, fading over `feather`
    pixels at its border.

    Args:
        frames: The shaken frames.
        path: Their camera path c.
        smooth: The smooth path x.
        fields: Displacements from `local_fields`.
        margin: Pixels added on each side of the canvas.
        radius: Neighbours on each side, 0 for none.
        feather: Width in pixels of the blending at borders, > 0.

    Returns:
        Frames (T, H + 2 margin, W + 2 margin, C), and the share in [0, 1] of each pixel that was seen.

    Raises:
        ValueError: radius or margin is negative, or feather not positive.
    """
    if radius < 0 or margin < 0 or feather <= 0:
        raise ValueError(f"{radius=} and {margin=} must not be negative, {feather=} must be positive")
    count, height, width, channels = frames.shape
    canvas = grid(height, width, frames.dtype, margin)
    offsets = jnp.asarray(sorted(range(-radius, radius + 1), key=abs))
    half = jnp.array([(width - 1) / 2, (height - 1) / 2], frames.dtype)[None, None]

    def one(t):
        to_world = _inverse(smooth[t])

        def fill(state, offset):
            value, share = state
            s = jnp.clip(t + offset, 0, count - 1)
            points = transform(matrix(path[s]) @ to_world, canvas)
            if fields is not None:
                # The displaced frame is looked up where it came from, to first order.
                points -= sample(fields[s], points)[0]
            seen, inside = sample(frames[s], points)
            border = (half - jnp.abs(points)).min(-1)
            weight = inside * ((border + 1) / feather).clip(0, 1) * (s == t + offset).astype(frames.dtype)
            weight *= jnp.isfinite(seen).all(-1).astype(frames.dtype)
            part = (1 - share) * weight
            return (value + part[..., None] * jnp.where(jnp.isfinite(seen), seen, 0), share + part), None

        start = jnp.zeros((*canvas.shape[:2], channels), frames.dtype), jnp.zeros(canvas.shape[:2], frames.dtype)
        value, share = jax.lax.scan(fill, start, offsets)[0]
        return value / jnp.where(share > 0, share, 1)[..., None], share

    return jax.lax.map(one, jnp.arange(count))


def _inverse(motion):
    """Matrix of the inverse of a similarity."""
    linear = matrix(jnp.concatenate([-motion[:2], jnp.zeros_like(motion[2:])]))
    return linear.at[:2, 2].set(-linear[:2, :2] @ motion[2:])


@pytree
class Metrics:
    """How good a stabilisation is; all in [0, 1], larger is better.

    Attributes:
        cropping: Mean over the frames of the share of the frame's width that is left, at most 1.
        distortion: Smallest ratio of the eigenvalues (modulus) of the linear parts; 1 for similarities.
        stability: Share of low frequencies (bins 1 to 5, without the mean) in translation and rotation.
    """

    cropping: Float[Array, ""]
    distortion: Float[Array, ""]
    stability: Float[Array, ""]


def metrics(warps: Float[Array, "T 3 3"], motions: Float[Array, "T1 3 3"]) -> Metrics:
    """The three usual measures (eigenvalues and atan2(M10, M00) as angle; common programs differ in details).

    Args:
        warps: From the input frame to the output frame, for each frame.
        motions: Between consecutive output frames.

    Raises:
        ValueError: Fewer than 3 motions: no frequency besides the mean.
    """
    if len(motions) < 3:
        raise ValueError(f"stability needs at least 3 motions, got {len(motions)}")
    crop = 1 / jnp.sqrt(warps[:, 0, 0] ** 2 + warps[:, 0, 1] ** 2)
    trace, det = warps[:, 0, 0] + warps[:, 1, 1], warps[:, 0, 0] * warps[:, 1, 1] - warps[:, 0, 1] * warps[:, 1, 0]
    # Eigenvalues (trace +- root) / 2; a complex pair has equal moduli.
    root = jnp.sqrt(jnp.maximum(trace**2 - 4 * det, 0))
    small, large = jnp.abs(jnp.abs(trace) - root), jnp.abs(trace) + root
    distortion = jnp.where(trace**2 > 4 * det, small / jnp.where(large > 0, large, 1), 1)

    def step(total, motion):
        new = motion @ total
        return new, new

    path = jax.lax.scan(step, jnp.eye(3, dtype=motions.dtype), motions)[1]
    path /= path[:, 2:, 2:]
    signals = jnp.sqrt(path[:, 0, 2] ** 2 + path[:, 1, 2] ** 2), jnp.degrees(jnp.arctan2(path[:, 1, 0], path[:, 0, 0]))
    scores = [_low_frequencies(signal) for signal in signals]
    return Metrics(cropping=jnp.minimum(crop.mean(), 1), distortion=distortion.min(), stability=sum(scores) / 2)


def _low_frequencies(signal):
    # A product instead of an FFT, which would gather a batch of clips that is spread over devices.
    size = len(signal)
    phase = 2 * np.pi * np.outer(np.arange(1, max((size - 1) // 2, 1) + 1), np.arange(size)) / size
    power = sum((jnp.asarray(wave(phase), signal.dtype) @ signal) ** 2 for wave in (np.cos, np.sin))
    total = power.sum()
    # A path without motion is perfectly stable.
    return jnp.where(total > 0, power[:5].sum() / jnp.where(total > 0, total, 1), 1)


@pytree
class Stabilized:
    """A stabilised clip.

    Attributes:
        frames: On the canvas.
        seen: Share of each pixel that some frame has seen, in [0, 1].
        path: Camera path of the shaken clip, (theta, log s, dx, dy) per frame.
        smooth: The path of the result.
        warps: From input to output pixels, per frame, without the local fields.
        jerk: Of the path before and after each round.
        metrics: Cropping, distortion, stability.
        degenerate: True for frames whose motion could not be fitted and was taken as none.
    """

    frames: Float[Array, "T h w C"]
    seen: Float[Array, "T h w"]
    path: Float[Array, "T 4"]
    smooth: Float[Array, "T 4"]
    warps: Float[Array, "T 3 3"]
    jerk: Float[Array, " rounds"]
    metrics: Metrics
    degenerate: Bool[Array, " T1"]


def stabilize(
    frames: Float[Array, "T H W C"],
    flows: Float[Array, "T1 H W 2"],
    confidences: Float[Array, "T1 H W"],
    *,
    smoother: Callable = smooth_quadratic,
    rounds: int = 2,
    cells: int | None = None,
    margin: int = 0,
    radius: int = 10,
) -> Stabilized:
    """Stabilises a clip from its frames, the flows between them and their confidences.

    Args:
        frames: T frames.
        flows: T - 1 flows, pixels.
        confidences: T - 1 confidences in [0, 1].
        smoother: Path (T, d) -> smooth path.
        rounds: How often the path is smoothed. The later rounds smooth the motion that a fit would find in the
            stabilised clip, which for global motion is the smooth path itself.
        cells: Boxes per side of the local refinement; None leaves it out.
        margin: Pixels added on each side of the canvas.
        radius: Neighbours on each side that fill the frame.

    Raises:
        ValueError: Fewer than 4 frames, counts of frames and flows that do not fit, or no round.
    """
    count = len(frames)
    if count < 4 or len(flows) != count - 1 or flows.shape[:3] != confidences.shape or rounds < 1:
        raise ValueError(
            f"needs T >= 4 frames, T - 1 flows and confidences and at least one round; got {frames.shape}, "
            f"{flows.shape}, {confidences.shape}, {rounds=}"
        )
    fits = jax.vmap(fit_motion)(flows, confidences)
    path = accumulate(fits.motion)
    smooth, roughness = path, [jerk(path)]
    for _ in range(rounds):
        smooth = smoother(smooth)
        roughness.append(jerk(smooth))
    fields = None
    if cells is not None:
        points = grid(flows.shape[1], flows.shape[2], flows.dtype)
        target = transform(fits.matrix, jnp.broadcast_to(points, flows.shape))
        fields = local_fields(points[None] + flows - target, confidences, smoother, cells)
    fused, seen = fuse(frames, path, smooth, fields, margin=margin, radius=radius)
    warps = matrix(smooth) @ jax.vmap(_inverse)(path)
    motions = matrix(smooth[1:]) @ jax.vmap(_inverse)(smooth[:-1])
    return Stabilized(
        frames=fused,
        seen=seen,
        path=path,
        smooth=smooth,
        warps=warps,
        jerk=jnp.stack(roughness),
        metrics=metrics(warps, motions),
        degenerate=fits.degenerate,
    )

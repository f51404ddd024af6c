"""Video stabilisation: from shaken frames and their optical flow to smooth, full frames.

The flow u_t says I_t(p) ~ I_(t+1)(p + u_t(p)), the confidence c_t(p) in [0, 1] that this is right within a pixel. Four
stages, each a pure function made for `jit` and `vmap` over clips:

1. `fit_motion`: a similarity or affine map between consecutive frames, robust to foreground motion. Only the `voters`
   count: confident pixels that stay in sight during a window of flows.
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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.video.motion import (
    Fit,
    Matrix,
    accumulate,
    fit_motion,
    grid,
    inverse,
    matrix,
    sample,
    shared_region,
    transform,
    voters,
)
from flowjax.video.smoothing import gaussian_window, jerk, local_fields, smooth_fixed_point, smooth_quadratic

__all__ = [
    "Fit",
    "Matrix",
    "Metrics",
    "Stabilized",
    "accumulate",
    "fit_motion",
    "fuse",
    "gaussian_window",
    "grid",
    "inverse",
    "jerk",
    "local_fields",
    "matrix",
    "metrics",
    "sample",
    "shared_region",
    "smooth_fixed_point",
    "smooth_quadratic",
    "stabilize",
    "transform",
    "voters",
]


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
    if radius < 0 or margin < 0 or not feather > 0:
        raise ValueError(f"{radius=} and {margin=} must not be negative, {feather=} must be positive")
    count, height, width, channels = frames.shape
    canvas = grid(height, width, frames.dtype, margin)
    offsets = jnp.asarray(sorted(range(-radius, radius + 1), key=abs))
    half = jnp.array([(width - 1) / 2, (height - 1) / 2], frames.dtype)[None, None]

    def one(t):
        to_world = inverse(smooth[t])

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


@pytree
class Metrics:
    """How good a stabilisation is; all in [0, 1], larger is better; all NaN where a map is zero or not finite.

    Attributes:
        cropping: Mean over the frames of the share of the frame's width that is left, at most 1.
        distortion: Smallest ratio of the eigenvalues (modulus) of the linear parts; 1 for similarities.
        stability: Share of low frequencies (bins 1 to 5, without the mean) in translation and rotation. Below a
            thousandth of a pixel or degree (root mean square) there is no motion: 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> still = jnp.broadcast_to(jnp.eye(3), (8, 3, 3))
        >>> found = jax.jit(metrics)(still, still[:7])
        >>> float(found.cropping), float(found.distortion), float(found.stability)
        (1.0, 1.0, 1.0)
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
    # The minima and comparisons above would hide them.
    sound = jnp.isfinite(warps).all() & jnp.isfinite(path).all() & jnp.isfinite(crop).all()
    found = Metrics(cropping=jnp.minimum(crop.mean(), 1), distortion=distortion.min(), stability=sum(scores) / 2)
    return jax.tree.map(lambda value: jnp.where(sound, value, jnp.nan), found)


def _low_frequencies(signal):
    # A product instead of an FFT, which would gather a batch of clips that is spread over devices.
    size = len(signal)
    phase = 2 * np.pi * np.outer(np.arange(1, max((size - 1) // 2, 1) + 1), np.arange(size)) / size
    power = sum((jnp.asarray(wave(phase), signal.dtype) @ signal) ** 2 for wave in (np.cos, np.sin))
    total = power.sum()
    # A path without motion is perfectly stable. A root mean square r about the mean has the power (size r)^2 / 2; what
    # rounding makes of a still path lies below r = 1e-3, flow is not known to a hundredth of a pixel.
    still = total <= (size * 1e-3) ** 2 / 2
    return jnp.where(still, 1, power[:5].sum() / jnp.where(still, 1, total))


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
        metrics: Cropping, distortion, stability; NaN if no motion at all could be fitted.
        degenerate: True for frames whose motion could not be fitted and was taken as none.

    Example:
        >>> import jax
        >>> from flowjax.video import clips
        >>> clip = jax.eval_shape(lambda key: clips.shaken(key, frames=4, height=8, width=8), jax.random.key(0))
        >>> result = jax.eval_shape(stabilize, clip.frames, clip.flows, clip.confidences)
        >>> result.frames.shape, result.jerk.shape  # of the path, and after each of two rounds
        ((4, 8, 8, 3), (3,))
    """

    frames: Float[Array, "T h w C"]
    seen: Float[Array, "T h w"]
    path: Float[Array, "T 4"]
    smooth: Float[Array, "T 4"]
    warps: Float[Array, "T 3 3"]
    jerk: Float[Array, " rounds"]
    metrics: Metrics
    degenerate: Bool[Array, " T1"]


@fact("system", "video_stabilization", "full-frame stabilisation from optical flow", cite="zhao2023faststab")
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
    window: int = 5,
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
        window: Flows in which a pixel must be seen to count in the fit, see `voters`.

    Raises:
        ValueError: Fewer than 4 frames, counts of frames and flows that do not fit, or no round.
    """
    count = len(frames)
    if count < 4 or len(flows) != count - 1 or flows.shape[:3] != confidences.shape or rounds < 1:
        raise ValueError(
            f"needs T >= 4 frames, T - 1 flows and confidences and at least one round; got {frames.shape}, "
            f"{flows.shape}, {confidences.shape}, {rounds=}"
        )
    fits = jax.vmap(fit_motion)(flows, voters(flows, confidences, window))
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
    warps = matrix(smooth) @ jax.vmap(inverse)(path)
    motions = matrix(smooth[1:]) @ jax.vmap(inverse)(smooth[:-1])
    measured = ~fits.degenerate.all()
    return Stabilized(
        frames=fused,
        seen=seen,
        path=path,
        smooth=smooth,
        warps=warps,
        jerk=jnp.stack(roughness),
        metrics=jax.tree.map(lambda value: jnp.where(measured, value, jnp.nan), metrics(warps, motions)),
        degenerate=fits.degenerate,
    )

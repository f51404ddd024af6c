"""Maps of the plane, the motion between two frames from their flow, and the camera path."""

from typing import Any

import jax
import jax.numpy as jnp
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


def inverse(motion):
    """Matrix of the inverse of a similarity."""
    linear = matrix(jnp.concatenate([-motion[:2], jnp.zeros_like(motion[2:])]))
    return linear.at[:2, 2].set(-linear[:2, :2] @ motion[2:])


@pytree
class Fit:
    """Motion between two frames.

    Attributes:
        matrix: The map p -> q.
        motion: (theta, log s, dx, dy) of the similarity, radians and pixels; of an affine map its nearest similarity.
        degenerate: True where fewer than 3 pixels (or only collinear ones) have weight, and where what the map makes of
            the frame is no larger than what the map misses: flow that collapses, mirrors or is of no such kind. The
            map is then the identity.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> fit = jax.jit(fit_motion)(jnp.ones((8, 8, 2)))  # everything moves by one pixel along both axes
        >>> bool(fit.degenerate), [round(float(m), 3) for m in fit.motion[2:]]
        (False, [1.0, 1.0])
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

    The fit is degenerate if the smaller singular value of the affine map, with a minus for a mirror image, times the
    spread of p is not above what the fit misses, both as (weighted) root mean square. Rounding of p and q misses
    eps |p|; a hundred times that counts as missed, too.

    Args:
        flow: Displacements in pixels.
        confidence: Weights in [0, 1]; 1 unless given. Pixels with non-finite flow (or points) get 0.
        points: Where the flow starts; the pixels of the frame unless given.
        model: "similarity" or "affine".
        iterations: Of reweighting; 0 is plain least squares.
        huber: Residual in pixels from which pixels lose weight.

    Raises:
        ValueError: unknown model, negative iterations or huber not positive.
    """
    if model not in ("similarity", "affine") or iterations < 0 or not huber > 0:
        raise ValueError(f"model={model!r} (similarity or affine), {iterations=} (>= 0), {huber=} (> 0)")
    height, width, _ = flow.shape
    p = (grid(height, width, flow.dtype) if points is None else points).reshape(-1, 2)
    finite = jnp.isfinite(flow).all(-1) & jnp.isfinite(p).all(-1).reshape(height, width)
    p = jnp.where(finite.reshape(-1, 1), p, 0)
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
            linear, good = _affine(weight, pc, qc)
        good &= (base > 0).sum() >= 3
        linear = jnp.where(good, linear, jnp.eye(2, dtype=flow.dtype))
        return linear, jnp.where(good, q_mean - linear @ p_mean, 0), good

    def robust(linear, shift):
        square = ((q - p @ linear.T - shift[None]) ** 2).sum(-1)
        far = square > huber**2
        return base * jnp.where(far, huber / jnp.sqrt(jnp.where(far, square, 1)), 1), square

    state = jax.lax.fori_loop(0, iterations, lambda _, state: solve(robust(*state[:2])[0]), solve(base))
    good = state[2] & _explains(*jax.lax.stop_gradient((state[0], *robust(*state[:2]), p, q)))
    linear = jnp.where(good, state[0], jnp.eye(2, dtype=flow.dtype))
    shift = jnp.where(good, state[1], 0)
    a, b = (linear[0, 0] + linear[1, 1]) / 2, (linear[1, 0] - linear[0, 1]) / 2
    motion = jnp.stack([jnp.arctan2(b, a), jnp.log(a**2 + b**2) / 2, shift[0], shift[1]])
    whole = jnp.concatenate([jnp.concatenate([linear, shift[:, None]], 1), jnp.eye(3, dtype=flow.dtype)[2:]])
    return Fit(matrix=whole, motion=motion, degenerate=~good)


def _affine(weight, p, q):
    """Linear part of the affine map between centred points, and whether the points p are not on one line."""
    moments = (p * weight[:, None]).T @ p
    det = moments[0, 0] * moments[1, 1] - moments[0, 1] * moments[1, 0]
    good = det > 1e2 * jnp.finfo(p.dtype).eps * (moments[0, 0] + moments[1, 1]) ** 2 / 4
    adjugate = jnp.stack([moments[1, 1], -moments[0, 1], -moments[1, 0], moments[0, 0]]).reshape(2, 2)
    return (q * weight[:, None]).T @ p @ adjugate / jnp.where(good, det, 1), good


def _explains(linear, weight, square, p, q):
    """Whether a fit makes more of the frame than it misses; see `fit_motion`."""
    share = weight / jnp.where(weight.sum() > 0, weight.sum(), 1)
    pc, qc = p - (share @ p)[None], q - (share @ q)[None]
    # Half of a flow that mirrors or flattens the frame looks like a turn: only an affine map shows what it does.
    affine, good = _affine(share, pc, qc)
    affine = jnp.where(good, affine, linear)
    # The conformal and the anticonformal part; their difference is the smaller singular value, with its sign.
    turn = jnp.hypot(affine[0, 0] + affine[1, 1], affine[1, 0] - affine[0, 1]) / 2
    mirror = jnp.hypot(affine[0, 0] - affine[1, 1], affine[1, 0] + affine[0, 1]) / 2
    smallest, spread = jnp.maximum(turn - mirror, 0), (share * (pc**2).sum(-1)).sum()
    rounding = (
        1e2 * jnp.finfo(p.dtype).eps * jnp.maximum(jnp.abs(p).max(), jnp.where(share[:, None] > 0, jnp.abs(q), 0).max())
    )
    return smallest**2 * spread > (share * square).sum() + rounding**2


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


def voters(
    flows: Float[Array, "T H W 2"], confidences: Float[Array, "T H W"], window: int = 5
) -> Float[Array, "T H W"]:
    """Confidences of the pixels that are seen in the whole `window` of flows from theirs on, 0 elsewhere.

    Where that leaves fewer than three pixels (fast motion, a broken flow in the window) a flow keeps its confidences.
    The window ends with the clip.

    Raises:
        ValueError: window is not positive.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1")
    later = window - 1
    still = jnp.pad(flows, ((0, later), (0, 0), (0, 0), (0, 0)))
    sure = jnp.pad(confidences, ((0, later), (0, 0), (0, 0)), constant_values=1)

    def one(t, confidence):
        flow, sight = (jax.lax.dynamic_slice_in_dim(array, t, window) for array in (still, sure))
        mask = shared_region(flow, sight)[0]
        return jnp.where(mask.sum() >= 3, confidence * mask, confidence)

    return jax.vmap(one)(jnp.arange(len(flows)), confidences)


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

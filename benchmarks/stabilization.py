"""Claim: many clips are stabilised at once faster than by a loop over scipy; the result is what the smooth camera sees.

Both fit similarities to the flow, smooth the path and fill the frame from two neighbours on each side, in float32 and
with the same arithmetic. The figure shows frames of a shaken clip, the stabilised ones, and the camera paths.
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from measure import alternate, ratio, store
from PIL import Image
from scipy.linalg import solveh_banded
from scipy.ndimage import map_coordinates

from flowjax.video import clips
from flowjax.video import stabilization as st

CLIPS, FRAMES, HEIGHT, WIDTH, RADIUS, ITERATIONS, FEATHER = 8, 16, 32, 48, 2, 10, 3.0
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "stabilization.png"


def fit(flow):
    """Robust similarity of one flow as (theta, log s, dx, dy)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    p = ((x - (WIDTH - 1) / 2) + 1j * (y - (HEIGHT - 1) / 2)).ravel()
    q = p + (flow[..., 0] + 1j * flow[..., 1]).ravel()
    weight = np.ones(len(p), np.float32)
    for _ in range(ITERATIONS + 1):
        pm, qm = np.average(p, weights=weight), np.average(q, weights=weight)
        a = np.sum(weight * (p - pm).conj() * (q - qm)) / np.sum(weight * np.abs(p - pm) ** 2)
        residual = np.abs(q - qm - a * (p - pm))
        weight = np.minimum(1, 1 / np.maximum(residual, 1e-12)).astype(np.float32)
    return a, qm - a * pm


def scipy_loop(frames, flows):
    """Stabilised clips, one after the other."""
    d3 = np.diff(np.eye(FRAMES), n=3, axis=0)
    system = np.eye(FRAMES) + 100 * d3.T @ d3
    bands = np.array([np.pad(np.diagonal(system, k), (k, 0)) for k in (3, 2, 1, 0)])
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    half = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    pixels = (x - half[0]) + 1j * (y - half[1])
    result = np.zeros_like(frames)
    for clip in range(CLIPS):
        path = [(0.0, 0.0, 0j)]
        for flow in flows[clip]:
            a, shift = fit(flow)
            path.append((path[-1][0] + np.angle(a), path[-1][1] + np.log(abs(a)), a * path[-1][2] + shift))
        rows = np.array([(angle, size, shift.real, shift.imag) for angle, size, shift in path])
        smooth = rows
        for _ in range(2):
            smooth = solveh_banded(bands, smooth)
        camera, steady = (np.exp(r[:, 1] + 1j * r[:, 0]) for r in (rows, smooth))
        for t in range(FRAMES):
            share = np.zeros((HEIGHT, WIDTH))
            place = (pixels - (smooth[t, 2] + 1j * smooth[t, 3])) / steady[t]
            for offset in sorted(range(-RADIUS, RADIUS + 1), key=abs):
                s = t + offset
                if not 0 <= s < FRAMES:
                    continue
                point = camera[s] * place + rows[s, 2] + 1j * rows[s, 3]
                border = np.minimum(half[0] - abs(point.real), half[1] - abs(point.imag))
                part = (1 - share) * np.where(border >= 0, np.clip((border + 1) / FEATHER, 0, 1), 0)
                where = [point.imag + half[1], point.real + half[0]]
                for c in range(3):
                    result[clip, t, ..., c] += part * map_coordinates(
                        frames[clip, s, ..., c], where, order=1, mode="nearest"
                    )
                share += part
            result[clip, t] /= np.where(share > 0, share, 1)[..., None]
    return result


def draw_figure():
    clip = clips.shaken(jax.random.key(1), 40, 60, 80, shake=5.0, tilt=0.04, drift=0.7, disc=9.0, trusted_disc=True)
    done = jax.jit(lambda *a: st.stabilize(*a, radius=8))(clip.frames, clip.flows, clip.confidences)
    alone, seen = st.fuse(clip.frames, done.path, done.smooth, radius=0)
    shown = range(8, 32, 4)
    figure = plt.figure(figsize=(10, 6.5), dpi=80)
    strips = {"shaken": clip.frames, "stabilised": alone * seen[..., None], "filled": done.frames}
    for row, (name, frames) in enumerate(strips.items()):
        axes = figure.add_subplot(5, 1, row + 1)
        axes.imshow(np.concatenate(np.asarray(frames[np.array(shown)]).clip(0, 1), 1))
        axes.set(ylabel=name, xticks=[], yticks=[])
    axes = figure.add_subplot(5, 1, (4, 5))
    axes.plot(clip.path[:, 3], color="0.6", label="vertical path, true")
    axes.plot(done.path[:, 3], "--", color="tab:blue", label="from flow")
    axes.plot(done.smooth[:, 3], color="tab:red", label="quadratic smoother")
    axes.plot(st.smooth_fixed_point(done.path, 0.9)[:, 3], color="tab:green", label="anchored fixed point, 0.9")
    axes.set(xlabel="frame", ylabel="pixels")
    axes.legend(ncols=4, loc="upper center", fontsize=8)
    axes.set_ylim(top=6)
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)
    Image.open(FIGURE).convert("RGB").quantize(128).save(FIGURE, optimize=True)
    return {
        "figure: pixels seen by the frame alone": float(seen.mean()),
        "figure: pixels seen after filling": float(done.seen.mean()),
        "figure: jerk of the path, before and after each round": np.asarray(done.jerk).tolist(),
    }


def main():
    make = jax.jit(jax.vmap(lambda key: clips.shaken(key, FRAMES, HEIGHT, WIDTH)))
    batch = make(jax.random.split(jax.random.key(0), CLIPS))
    many = jax.jit(jax.vmap(lambda *clip: st.stabilize(*clip, radius=RADIUS, window=1).frames))
    frames, flows = np.asarray(batch.frames), np.asarray(batch.flows)
    ours, theirs = np.asarray(many(batch.frames, batch.flows, batch.confidences)), scipy_loop(frames, flows)
    assert np.abs(ours - theirs).mean() < 2e-3, np.abs(ours - theirs).mean()
    seconds = alternate(
        {
            "vmapped": lambda: many(batch.frames, batch.flows, batch.confidences),
            "loop": lambda: scipy_loop(frames, flows),
        },
        5,
    )
    numbers = {
        "clips per second, vmapped": CLIPS / float(np.median(seconds["vmapped"])),
        "clips per second, scipy loop": CLIPS / float(np.median(seconds["loop"])),
        "time of the loop / vmapped": ratio(seconds, "loop", "vmapped"),
    }
    smooth = jax.vmap(lambda *clip: st.stabilize(*clip, radius=RADIUS, window=1))(
        batch.frames, batch.flows, batch.confidences
    )
    truth = jax.vmap(lambda waves, path: clips.view(waves, path, HEIGHT, WIDTH))(batch.waves, smooth.smooth)
    error = np.square(np.asarray(smooth.frames - truth))[np.asarray(smooth.seen) > 0.5].mean()
    numbers["PSNR against the view of the smooth camera, dB"] = float(-10 * np.log10(error))
    store("stabilization", __doc__.splitlines()[0].removeprefix("Claim: "), numbers | draw_figure())


if __name__ == "__main__":
    main()

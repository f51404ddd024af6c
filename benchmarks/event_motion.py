"""Claim: thousands of event-camera problems per second, vmapped, against a loop over numpy's SVD.

Both solve the same lines from five and from fifty events in float64. The figure shows events of three lines with
outliers, the lines recovered by RANSAC, and the error of the velocity against the number of lines.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from measure import alternate, ratio, store

from flowjax.geometry import event_motion as em
from flowjax.geometry.event_simulation import simulate

LINES, ROUNDS = 2000, 10
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "event_motion.png"


def numpy_loop(bearings, times):
    """Projected velocities, one line after the other."""
    found = []
    for f, t in zip(bearings, times, strict=True):
        z = np.linalg.svd(np.concatenate([t[:, None] * f, -f], 1))[2][-1]
        z = z / np.linalg.norm(z[3:])
        a, e2 = z[:3], z[3:]
        u_z = -a @ e2
        e3 = a + u_z * e2
        u_y = np.linalg.norm(e3)
        e3 = e3 / u_y
        sign = 1 if np.sign(-(f @ e3) * (1 + t * u_z)).sum() >= 0 else -1
        found.append(sign * (u_y * e2 + u_z * e3))
    return np.array(found)


def degrees(a, b):
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))


def draw_figure():
    scene = simulate(jax.random.key(4), 3, 80, pixel_noise=0.5, outliers=0.2)
    keys = jax.random.split(jax.random.key(1), 3)
    lines, inliers = jax.vmap(lambda k, f, t: em.ransac(k, f, t, threshold=float(np.radians(0.3))))(
        keys, scene.bearings, scene.t
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=80)
    for index in range(3):
        pixels, good = np.asarray(scene.pixels[index]), np.asarray(inliers[index])
        shown = left.scatter(*pixels[good].T, s=8, c=scene.t[index][good], cmap="viridis", vmin=-0.25, vmax=0.25)
        left.scatter(*pixels[~good].T, s=12, marker="x", color="tab:red", linewidth=0.8)
        for time in (-0.25, 0.0, 0.25):
            normal = lines.b[index] - time * lines.a[index]
            n = em.rotate(-time * scene.angular_velocity, normal)
            x = np.array([0.0, 640.0])
            y = -((x - 320) / 320 * float(n[0]) + float(n[2])) / float(n[1]) * 320 + 240
            left.plot(x, y, color=plt.cm.viridis(time * 2 + 0.5), linewidth=0.8)
    figure.colorbar(shown, ax=left, label="time, s")
    recovered = em.average(lines).direction
    true = np.asarray(scene.velocity / jnp.linalg.norm(scene.velocity))
    text = f"v true {true.round(3)}\nv found {np.asarray(recovered).round(3)}"
    left.set(xlim=(0, 640), ylim=(480, 0), title="events, recovered lines, outliers (x)", xlabel=text)

    def errors(key):
        scene = simulate(key, 10, 10, pixel_noise=0.5)
        solved = jax.vmap(em.solve_line)(scene.bearings, scene.t)
        first = lambda count: jax.tree.map(lambda leaf: leaf[:count], solved)  # noqa: E731
        found = [em.average(first(n), normalize_rows=r).direction for n in range(2, 11) for r in (False, True)]
        return jnp.stack(found).reshape(9, 2, 3), scene.velocity

    found, velocity = map(np.asarray, jax.jit(jax.vmap(errors))(jax.random.split(jax.random.key(2), 200)))
    median = np.median(degrees(found, velocity[:, None, None]), 0)
    right.semilogy(range(2, 11), median[:, 0], "o-", label="rows as long as the motion")
    right.semilogy(range(2, 11), median[:, 1], "s--", label="unit rows")
    right.set(xlabel="lines", ylabel="median error, degrees", title="10 events per line, 0.5 px")
    right.legend()
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)
    return {"velocity, 200 scenes, 0.5 px, 10 lines: median degrees": float(median[-1, 0])}


def main():
    jax.config.update("jax_enable_x64", True)
    numbers = {}
    for events in (5, 50):
        scene = simulate(jax.random.key(0), LINES, events, pixel_noise=0.5)
        bearings, times = np.asarray(scene.bearings), np.asarray(scene.t)
        many = jax.jit(jax.vmap(lambda f, t: em.solve_line(f, t).velocity))
        np.testing.assert_allclose(many(scene.bearings, scene.t), numpy_loop(bearings, times), rtol=1e-5, atol=1e-5)
        seconds = alternate(
            {
                "vmapped": lambda many=many, scene=scene: many(scene.bearings, scene.t),
                "loop": lambda f=bearings, t=times: numpy_loop(f, t),
            },
            ROUNDS,
        )
        numbers[f"{events} events: lines per second, vmapped"] = LINES / float(np.median(seconds["vmapped"]))
        numbers[f"{events} events: lines per second, numpy loop"] = LINES / float(np.median(seconds["loop"]))
        numbers[f"{events} events: time of the loop / vmapped"] = ratio(seconds, "loop", "vmapped")
    store("event_motion", __doc__.splitlines()[0].removeprefix("Claim: "), numbers | draw_figure())


if __name__ == "__main__":
    main()

"""Claim: vmapped Lyapunov exponents beat a numpy loop over the starting points.

Both carry the point and its Jacobian through 100 Runge-Kutta steps of the double gyre in float64. The figure shows the
exponent of the gyre with its ridges and some tracks, what a sampler with a network trained on a mixture of four
Gaussians stretches, and tracks found in four clouds of particles with noise.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from measure import alternate, ratio, store

import flowjax as fj
from flowjax import training
from flowjax.models import MLP
from flowjax.science import coherent_structures as cs

POINTS, STEPS, DURATION, ROUNDS = 256, 100, 10.0, 3
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "science_coherent_structures.png"


def numpy_loop(points):
    def velocity(t, x):
        a = 0.25 * np.sin(2 * np.pi / 10 * t)
        f, slope, bend = a * x[0] ** 2 + (1 - 2 * a) * x[0], 2 * a * x[0] + 1 - 2 * a, 2 * a
        sf, cf, sy, cy = np.sin(np.pi * f), np.cos(np.pi * f), np.sin(np.pi * x[1]), np.cos(np.pi * x[1])
        v = 0.1 * np.pi * np.array([-sf * cy, cf * sy * slope])
        first = 0.1 * np.pi * np.array([-np.pi * cf * slope * cy, -np.pi * sf * slope**2 * sy + cf * sy * bend])
        return v, np.stack([first, 0.1 * np.pi**2 * np.array([sf * sy, cf * cy * slope])], axis=1)

    def rate(t, state):
        v, gradient = velocity(t, state[:, 0])
        return np.concatenate([v[:, None], gradient @ state[:, 1:]], axis=1)

    found, h = [], DURATION / STEPS
    for point in points:
        state = np.concatenate([point[:, None], np.eye(2)], axis=1)
        for step in range(STEPS):
            t = step * h
            k1 = rate(t, state)
            k2 = rate(t + h / 2, state + h / 2 * k1)
            k3 = rate(t + h / 2, state + h / 2 * k2)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(t + h, state + h * k3))
        found.append(np.log(np.linalg.norm(state[:, 1:], 2)) / DURATION)
    return np.array(found)


def tracking():
    """Mean true and wrong fraction over 3 draws of 400 particles for three settings."""

    @jax.jit
    def run(key, noise, displacement):
        frames, truth, search, prediction = cs.abc_frames(key, 400, displacement=displacement, noise=noise)
        chains = cs.candidates(frames, search_radius=search, prediction_radius=prediction)
        found = cs.baseline(chains), cs.lcti(chains)
        return [cs.track_metrics(tracks, truth) for tracks in found], found[1].positions, found[1].accepted

    table = {}
    for noise, displacement in ((0.0, 1.5), (0.05, 1.5), (0.1, 1.0)):
        runs = [run(jax.random.key(seed), noise, displacement) for seed in range(3)]
        table[f"noise {noise}, displacement {displacement}"] = {
            name: {k: round(float(np.mean([r[0][i][k] for r in runs])), 4) for k in ("true", "wrong", "untracked")}
            for i, name in enumerate(("baseline", "coherent"))
        }
    return table, runs[-1]


def trained():
    """A flow whose network was trained on four Gaussians, and the exact law of its samples."""
    angle = 2 * np.pi * np.arange(4, dtype=np.float32) / 4
    means = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    stds, weights = np.full((4, 2), 0.3, np.float32), np.full(4, 0.25, np.float32)
    target = fj.oracles.Mixture(means=means, stds=stds, weights=weights, path=fj.paths.Linear())
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 3000))
    mesh = training.make_mesh(devices=jax.devices()[:1])
    state = training.create_state(lambda: MLP(dim=2, width=64, depth=3, rngs=nnx.Rngs(0)), optimizer, mesh)
    averages = {"average": training.ema.Warmup(decay=0.995)}
    objective, step = fj.objectives.FlowMatching(path=target.path), jax.jit(training.make_step(optimizer, averages))
    rng = np.random.default_rng(0)
    for _ in range(3000):
        x1 = means[rng.integers(4, size=512)] + 0.3 * rng.normal(size=(512, 2))
        state, _ = step(state, objective, {"x1": jnp.asarray(x1, jnp.float32), "cond": None}, jax.random.key(1))
    return fj.Flow(state.average, path=target.path), fj.Flow(target.network(), path=target.path)


def main():
    points = np.random.default_rng(0).uniform(0.05, 0.95, (POINTS, 2))
    batch = jnp.asarray(points)
    vmapped = jax.jit(lambda x: cs.stretching(cs.double_gyre, x, 0.0, DURATION, steps=STEPS).exponent)
    difference = float(np.max(np.abs(vmapped(batch) - numpy_loop(points))))
    seconds = alternate({"vmapped": lambda: vmapped(batch), "numpy loop": lambda: numpy_loop(points)}, ROUNDS)
    table, (_, tracks, accepted) = tracking()

    grid = jnp.stack(jnp.meshgrid(jnp.linspace(0, 2, 201), jnp.linspace(0, 1, 101), indexing="ij"), axis=-1)
    exponent = jax.jit(lambda x: cs.stretching(cs.double_gyre, x, 0.0, 15.0, steps=150).exponent)(grid)
    ridge = np.asarray(cs.ridges(exponent, (0.01, 0.01), percentile=80.0))
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), layout="constrained", width_ratios=(1.7, 1, 1))
    picture = axes[0].imshow(exponent.T, origin="lower", extent=(0, 2, 0, 1), vmax=0.6, cmap="magma")
    figure.colorbar(picture, ax=axes[0], shrink=0.7)
    axes[0].plot(*np.asarray(grid)[ridge].T, ".", color="cyan", ms=1)
    path = [jnp.asarray(np.random.default_rng(1).uniform([0.1, 0.1], [1.9, 0.9], (14, 2)))]
    for k in range(24):
        path.append(cs.stretching(cs.double_gyre, path[-1], k / 8, (k + 1) / 8, steps=2).end)
    axes[0].plot(*np.moveaxis(np.asarray(path), -1, 0), "w-", lw=0.8)
    axes[0].set(title="double gyre, T = 15: exponent, ridges (cyan), tracks of t < 3", xticks=[0, 1, 2], yticks=[0, 1])

    flow, target = trained()
    noise = jnp.stack(jnp.meshgrid(*(jnp.linspace(-2.5, 2.5, 61, dtype=jnp.float32),) * 2, indexing="ij"), axis=-1)
    noise = noise.reshape(-1, 2)
    sampled, exact = (
        cs.sampler_stretching(lambda x, f=f: fj.solve(f, fj.solvers.RK4(), x, fj.times.uniform(24)).x, noise)
        for f in (flow, target)
    )
    likely = jnp.linalg.norm(noise, axis=1) < 2.5
    against = float(jnp.median(jnp.abs(sampled.exponent - exact.exponent)[likely]))
    picture = axes[1].imshow(
        sampled.exponent.reshape(61, 61).T, origin="lower", extent=(-2.5, 2.5) * 2, vmin=-1, vmax=3, cmap="magma"
    )
    figure.colorbar(picture, ax=axes[1], shrink=0.7)
    axes[1].plot(*np.asarray(sampled.end)[::7].T, ".", color="cyan", ms=1)
    axes[1].set(title="trained sampler of four modes:\nexponent at the noise, samples (cyan)", xticks=[], yticks=[])

    for track in np.asarray(tracks)[np.asarray(accepted)]:
        if track[0, 2] < 0.7:
            axes[2].plot(track[:, 0], track[:, 1], "-", lw=0.8)
            axes[2].plot(*track[-1, :2], "k.", ms=2)
    axes[2].set(title="tracks found in a slice, noise 0.1", xticks=[], yticks=[], aspect="equal")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=75)
    store(
        "science_coherent_structures",
        __doc__.splitlines()[0],
        {
            "problem": f"{POINTS} points, {STEPS} Runge-Kutta steps with the Jacobian, float64",
            "problems per second": {name: POINTS / float(np.median(values)) for name, values in seconds.items()},
            "time of vmapped against numpy loop": ratio(seconds, "vmapped", "numpy loop"),
            "largest difference": difference,
            "exponent of the trained sampler, median difference to the exact one": against,
            "tracks, 400 particles, 3 draws": table,
        },
    )


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()

"""Claim: a vmapped accelerated transport solve beats a numpy loop over slabs.

Both run the same sweeps and the same diffusion correction in float64, the loop with scipy's banded solver. The figure
shows the convergence with and without acceleration and the spectrum of both iterations.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from measure import alternate, ratio, store
from scipy.linalg import solve_banded

from flowjax.science import transport

SLABS, CELLS, LENGTH, ROUNDS = 64, 40, 20.0, 3
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "science_transport.png"


def numpy_loop(ratios, tolerance=1e-10):
    mu, weight = transport.quadrature(8)
    h, found = LENGTH / CELLS, []
    marshak = np.sum(weight * mu) / np.sum(3 * weight * mu**2)
    for c in ratios:
        keep, gain, phi = (2 * mu / h - 1) / (2 * mu / h + 1), 1 / (2 * mu / h + 1), np.zeros(CELLS)
        stiffness, mass = 2 / (3 * h), h * (1 - c) / 2
        bands = np.full((3, CELLS + 1), mass - stiffness)
        bands[1] = 2 * (stiffness + mass)
        bands[1, [0, -1]] = stiffness + mass + 2 * marshak
        while True:
            emission, new = 2 * (c * phi + 1), np.zeros(CELLS)
            for cells in (range(CELLS), range(CELLS - 1, -1, -1)):
                entering = np.zeros(len(mu))
                for i in cells:
                    leaving = keep * entering + gain * emission[i]
                    new[i] += np.sum(weight * (entering + leaving)) / 2
                    entering = leaving
            load = h * c * (new - phi)
            f = solve_banded((1, 1), bands, np.r_[load, 0] + np.r_[0, load])
            change = new + (f[1:] + f[:-1]) / 2 - phi
            phi = phi + change
            if np.max(np.abs(change)) <= tolerance * np.max(np.abs(phi)):
                break
        found.append(phi)
    return np.stack(found)


def changes(slab, method, count):
    """Error after each iteration, relative to the largest flux."""
    exact = transport.solve(slab, tolerance=1e-14, max_iterations=40).phi
    correct = jax.jit(
        lambda phi: (
            (s := transport.sweep(slab, phi)[0])
            + (transport.diffusion_correction(slab, s - phi) if method == "dsa" else 0)
        )
    )
    phi, errors = jnp.zeros_like(exact), []
    for _ in range(count):
        phi = correct(phi)
        errors.append(float(jnp.max(jnp.abs(phi - exact)) / jnp.max(exact)))
    return errors


def main():
    ratios = np.linspace(0.5, 0.99, SLABS)

    def phi(c):
        one = jnp.ones(CELLS)
        return transport.solve(
            transport.Slab(total=one, scattering=c * one, source=one, width=one * (LENGTH / CELLS))
        ).phi

    vmapped = jax.jit(jax.vmap(phi))
    batch = jnp.asarray(ratios)
    difference = float(np.max(np.abs(vmapped(batch) / numpy_loop(ratios) - 1)))
    seconds = alternate({"vmapped": lambda: vmapped(batch), "numpy loop": lambda: numpy_loop(ratios)}, ROUNDS)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    waves = np.geomspace(0.03, 100, 300)
    for c, colour in ((0.9, "C0"), (0.99, "C1"), (0.999, "C2")):
        slab = transport.uniform(cells=100, length=50.0, scattering_ratio=c, dtype=jnp.float64)
        left.semilogy(changes(slab, "source_iteration", 60), colour + "--", label=f"c = {c}, source iteration")
        left.semilogy(changes(slab, "dsa", 18), colour, label=f"c = {c}, accelerated")
        right.semilogx(waves, transport.spectrum(waves, c, method="source_iteration"), colour + "--")
        right.semilogx(waves, transport.spectrum(waves, c), colour)
    left.set(xlabel="sweeps", ylabel="relative error", title="50 mean free paths, S_8", ylim=(1e-12, 2))
    left.legend(fontsize=7)
    right.axhline(0.2247, color="gray", lw=0.8, ls=":")
    right.set(xlabel="wave number (mean free paths)", title="amplification per iteration")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=90)
    store(
        "science_transport",
        __doc__.splitlines()[0],
        {
            "problem": f"{SLABS} slabs, {CELLS} cells, {LENGTH} mean free paths, S_8, c from 0.5 to 0.99, float64",
            "problems per second": {name: SLABS / float(np.median(values)) for name, values in seconds.items()},
            "time of vmapped against numpy loop": ratio(seconds, "vmapped", "numpy loop"),
            "largest relative difference": difference,
        },
    )


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()

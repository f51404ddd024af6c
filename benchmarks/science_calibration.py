"""Claim: a vmapped self-calibration solves more problems per second than a loop over numpy's lstsq.

Both solve the least-squares form in float64. The figure shows where recovery sets in and an image behind an unknown
blur.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from measure import alternate, ratio, store

from flowjax.science import calibration

PROBLEMS, SENSORS, SIZE, SNAPSHOTS, ROUNDS = 64, 16, 4, 4, 5
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "science_calibration.png"


def problems(count, model, m, n, p, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    matrices = normal(count, m, n) if model == "snapshots" else normal(count, p, m, n)
    signals = normal(count, n) if model == "repeated" else normal(count, p, n)
    gains = 1 + rng.uniform(-0.5, 0.5, (count, m)) + 0j
    lead = matrices[:, None] if model == "snapshots" else matrices
    y = gains[:, None] * np.einsum("blmn,bln->blm", *np.broadcast_arrays(lead), signals) if model != "repeated" else (
        gains[:, None] * np.einsum("blmn,bn->blm", lead, signals)
    )  # fmt: skip
    return y, matrices, gains, signals


def numpy_loop(ys, matrices):
    """The stacked least-squares problem of each problem, model "diverse"."""
    found = []
    for y, a in zip(ys, matrices, strict=True):
        p, m, n = a.shape
        full = np.zeros((p * m + 1, m + p * n), complex)
        for i in range(p):
            full[i * m : (i + 1) * m, :m] = np.diag(y[i])
            full[i * m : (i + 1) * m, m + i * n : m + (i + 1) * n] = -a[i]
        full[-1, :m] = 1
        found.append(np.linalg.lstsq(full, np.r_[np.zeros(p * m), m], rcond=None)[0][:m])
    return np.stack(found)


def success(snapshots, m=12):
    """Fraction of 5 noise-free problems whose smallest singular direction is the truth, for n = 1..m-1."""
    rates = []
    for n in range(1, m):
        y, matrices, gains, _ = problems(5, "diverse", m, n, snapshots)
        right = 0
        for i in range(5):
            full = np.zeros((snapshots * m, m + snapshots * n), complex)
            full[:, :m] = np.vstack([np.diag(row) for row in y[i]])
            for k in range(snapshots):
                full[k * m : (k + 1) * m, m + k * n : m + (k + 1) * n] = -matrices[i, k]
            s, truth = np.linalg.svd(full)[2][-1, :m].conj(), 1 / gains[i]
            right += abs(np.vdot(s, truth)) > (1 - 1e-6) * np.linalg.norm(s) * np.linalg.norm(truth)
        rates.append(right / 5)
    return rates


def blind_image():
    """A 32 x 32 image behind an unknown blur, from eight known sign masks: truth, one measurement, recovered."""
    rng = np.random.default_rng(1)
    i, j = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    image = ((i - 16) ** 2 + (j - 12) ** 2 < 60) + 0.7 * ((abs(i - 10) < 4) & (abs(j - 22) < 6)) + 0.2 * i / 32
    masks = jnp.asarray(rng.choice([-1.0, 1.0], (8, 32, 32)))
    blur = np.exp(-(np.minimum(i, 32 - i) ** 2 + np.minimum(j, 32 - j) ** 2) / 1.2)
    gains = jnp.fft.fft2(jnp.asarray(blur / blur.sum())).reshape(-1)

    def apply(x):
        return jnp.fft.fft2(masks * x[None], norm="ortho").reshape(8, -1)

    y = gains[None] * apply(jnp.asarray(image) + 0j)
    noise = rng.normal(size=(8, 32, 32))
    clean = jnp.fft.ifft2(y.reshape(8, 32, 32), norm="ortho").real
    level = float(jnp.linalg.norm(clean) / np.linalg.norm(noise)) * 1e-3  # 60 dB
    measured = clean + level * noise
    y = jnp.fft.fft2(measured, norm="ortho").reshape(8, -1)
    result = jax.jit(
        lambda y: calibration.solve_matrix_free(
            y, apply, jnp.zeros((32, 32), y.dtype), tolerance=1e-8, column_norm=8**0.5
        )
    )(y)
    x = np.asarray(result.signals)
    x = (x * np.vdot(x, image) / np.vdot(x, x)).real
    return image, np.asarray(measured[0]), x, bool(result.valid)


def main():
    y, matrices, *_ = problems(PROBLEMS, "diverse", SENSORS, SIZE, SNAPSHOTS)
    batch = jnp.asarray(y), jnp.asarray(matrices)
    vmapped = jax.jit(jax.vmap(lambda y, a: calibration.solve(y, a, model="diverse").inverse_gains))
    difference = float(np.max(np.abs(vmapped(*batch) - numpy_loop(y, matrices))))
    seconds = alternate({"vmapped": lambda: vmapped(*batch), "numpy loop": lambda: numpy_loop(y, matrices)}, ROUNDS)
    image, measured, recovered, valid = blind_image()
    error = float(np.linalg.norm(recovered - image) / np.linalg.norm(image))

    figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
    counts = range(2, 9)
    axes[0].imshow(
        [success(p) for p in counts], origin="lower", aspect="auto", extent=(0.5, 11.5, 1.5, 8.5), cmap="gray"
    )
    p = np.linspace(1.5, 8.5, 50)
    axes[0].plot((12 * p - 11) / p, p, "r-", label="count: mp = m + np - 1")
    axes[0].set(
        xlabel="unknowns n per signal", ylabel="snapshots p", title="recovered (white), m = 12", xlim=(0.5, 11.5)
    )
    axes[0].legend(loc="upper left", fontsize=7)
    for axis, picture, title in zip(
        axes[1:],
        (image, measured, recovered),
        ("image", "one of 8 measurements", "recovered, blur unknown"),
        strict=True,
    ):
        axis.imshow(picture, cmap="viridis")
        axis.set(title=title, xticks=[], yticks=[])
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=90)
    store(
        "science_calibration",
        __doc__.splitlines()[0],
        {
            "problem": f"{PROBLEMS} x diverse, m={SENSORS}, n={SIZE}, p={SNAPSHOTS}, complex128",
            "problems per second": {name: PROBLEMS / float(np.median(values)) for name, values in seconds.items()},
            "time of vmapped against numpy loop": ratio(seconds, "vmapped", "numpy loop"),
            "largest difference": difference,
            "image": {"relative error at 60 dB": error, "valid": valid},
        },
    )


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Digits from noise
#
# Train a class-conditional flow on 1,797 real handwritten digits, sample it with guidance, and see what a
# better solver saves. A few minutes on two CPU cores; a GPU or TPU runtime needs no change.

# %%
import importlib.util
import os
import pathlib
import subprocess
import sys

SOURCE = ".."  # a checkout, or `git+` and the address of the repository

if importlib.util.find_spec("flowjax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE], check=True)

# %% [markdown]
# ## Train
#
# The recipe `digits` comes with the package. The run is stored in `runs/digits`; executing this cell again
# resumes it.

# %%
smoke = "FLOWJAX_SMOKE" in os.environ  # everything small, for tests
config = "digits:smoke" if smoke else "digits"
workdir = pathlib.Path("runs") / config.replace(":", "-")
train = [sys.executable, "-m", "flowjax.train", f"--config={config}", f"--workdir={workdir}"]
subprocess.run(train, check=True)

# %% [markdown]
# ## Sample
#
# `load` gives the flow (its network with averaged weights, its path) and the recipe (data scale, null class,
# default solver). Guidance extrapolates from the unconditional prediction to the conditional one; every
# guided evaluation asks the network for both.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import flowjax as fj

flow, recipe = fj.load(workdir)
labels = np.repeat(np.arange(10), 10)
x0 = fj.noise(jax.random.key(0), (100, *recipe.shape))
times = fj.times.uniform(5)

fig, axes = plt.subplots(1, 3, figsize=(12, 4))
for ax, scale in zip(axes, (1.0, 1.5, 4.0), strict=True):
    field = fj.guide(flow, fj.guidance.CFG(scale=scale))
    result = fj.solve(field, fj.solvers.Heun(), x0, times, cond=labels)
    images = np.asarray(result.x)[..., 0].reshape(10, 10, 8, 8)
    ax.imshow(images.transpose(0, 2, 1, 3).reshape(80, 80), cmap="gray", vmin=-1, vmax=1)
    ax.set_title(f"scale {scale}: {int(result.evaluations)} evaluations")
    ax.axis("off")
plt.show()

# %% [markdown]
# ## Solvers
#
# The same noise, solved precisely once, is the reference. How close does each solver come, and at how many
# evaluations?

# %%
field = fj.guide(flow, fj.guidance.CFG(scale=1.5))
exact = fj.solve(field, fj.solvers.RK4(), x0, fj.times.uniform(4 if smoke else 25), cond=labels).x
solvers = {
    "Euler": fj.solvers.Euler(),
    "Heun": fj.solvers.Heun(),
    "Adams-Bashforth 2": fj.solvers.AdamsBashforth(order=2),
    "DPM-Solver++ 2M": fj.solvers.DPMSolver(order=2),
}

fig, ax = plt.subplots(figsize=(6, 4))
for name, solver in solvers.items():
    evaluations, errors = [], []
    for steps in (4,) if smoke else (4, 8, 16):
        result = fj.solve(field, solver, x0, fj.times.uniform(steps), cond=labels)
        evaluations.append(int(result.evaluations))
        errors.append(float(np.sqrt(np.mean((result.x - exact) ** 2))))
    ax.loglog(evaluations, errors, "o-", label=name)
ax.set(xlabel="evaluations", ylabel="root mean square error")
ax.legend()
plt.show()

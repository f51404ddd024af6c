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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/colab/quickstart.ipynb)
#
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
from importlib.metadata import version

REPOSITORY = "https://github.com/OWNER/REPOSITORY"  # where this notebook comes from, also in its badge

if importlib.util.find_spec("flowjax") is None:
    checkout = pathlib.Path("../setup.cfg").exists()
    if not checkout and "OWNER" in REPOSITORY:
        raise SystemExit("write the address of the repository into REPOSITORY, above")
    source = ".." if checkout else f"git+{REPOSITORY}"
    # The JAX that is here fits the accelerator: it stays.
    kept = [f"jax=={version('jax')}"] if importlib.util.find_spec("jax") else []
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source, *kept], check=True)
    loaded = {name: sys.modules[name].__version__ for name in ("jax", "matplotlib", "numpy") if name in sys.modules}
    if moved := [name for name, was in loaded.items() if was != version(name)]:
        raise SystemExit(f"restart the runtime, then go on: {', '.join(moved)} changed while in use")

# Every process takes the memory that it needs; and a TPU belongs to one process at a time, so another one asks here.
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
device = "import jax; print(len(jax.devices()), 'x', jax.devices()[0].device_kind, 'with jax', jax.__version__)"
print(subprocess.run([sys.executable, "-c", device], check=True, capture_output=True, text=True).stdout)

# %% [markdown]
# ## Train
#
# The recipe `digits` comes with the package. The run is stored in `runs/digits`; executing this cell again
# resumes it. `samples.png` shows ten samples of each digit; a classifier that training never saw says how many
# of 1,000 it recognises as the digit asked for.

# %%
import json

from IPython.display import Image, display

smoke = "FLOWJAX_SMOKE" in os.environ  # everything small, for tests
config = "digits:smoke" if smoke else "digits"
workdir = pathlib.Path("runs") / config.replace(":", "-")
if not (workdir / "report.json").exists():
    train = [sys.executable, "-m", "flowjax.train", f"--config={config}", f"--workdir={workdir}"]
    with subprocess.Popen(train, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            print(line, end="")
    assert run.returncode == 0, "see the lines above"
accuracy = json.loads((workdir / "report.json").read_text())["accuracy"]
display(Image(workdir / "samples.png"))
print(f"{accuracy:.1%} are recognised")
assert accuracy >= (0.0 if smoke else 0.97)

# %% [markdown]
# ## Sample
#
# `load` gives the flow (its network with averaged weights, its path) and the recipe (data scale, null class,
# default solver). Guidance extrapolates from the unconditional prediction to the conditional one; every
# guided evaluation asks the network for both.

# %%
import jax
import numpy as np

import flowjax as fj

flow, recipe = fj.load(workdir)
labels = np.repeat(np.arange(10), 10)
x0 = fj.noise(jax.random.key(0), (100, *recipe.shape))
for scale in (1.0, 1.5, 4.0):
    field = fj.guide(flow, fj.guidance.CFG(scale=scale))
    result = fj.solve(field, fj.solvers.Heun(), x0, fj.times.uniform(5), cond=labels)
    images = np.asarray(result.x) * recipe.scale + recipe.shift
    fj.evaluation.pictures.grid(images, "guided.png", low=recipe.low, high=recipe.high, cond=labels, zoom=4)
    print(f"scale {scale}: {int(result.evaluations)} evaluations")
    display(Image("guided.png"))

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
errors = {}
for name, solver in solvers.items():
    for evaluations in (8,) if smoke else (8, 16, 32):
        steps = evaluations // 2 if name == "Heun" else evaluations
        result = fj.solve(field, solver, x0, fj.times.uniform(steps), cond=labels)
        assert result.evaluations == evaluations
        errors[name, evaluations] = float(np.sqrt(np.mean((result.x - exact) ** 2)))
        print(f"{name:18} {evaluations:3} evaluations: error {errors[name, evaluations]:.4f}")

# %% [markdown]
# The multistep methods keep what they know from earlier steps: at equal cost they have half the error of Euler's
# method. Heun's method pays two evaluations for each step, which at so few does not.

# %%
assert errors["DPM-Solver++ 2M", 8] < 0.7 * errors["Euler", 8]

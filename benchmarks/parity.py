"""Claim: `fj.solve` gives the samples of diffusers' schedulers from the same weights and noise, and is not slower.

    pip install torch diffusers
    python benchmarks/parity.py --workdir=runs/digits

DPM-Solver++(2M) and UniPC-2, 20 steps, on the times of the scheduler, with a PyTorch twin of the trained DiT on the
same CPU and without guidance. The networks' own times are given too, because the whole is mostly network; and the
times per step for a network of no cost.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from measure import alternate, ratio, store
from torch.nn import functional as F

import flowjax as fj
from flowjax.models.dit import positions

STEPS, BATCH = 20, 64
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
PAIRS = {
    "dpm_solver++_2m": (DPMSolverMultistepScheduler, fj.solvers.DPMSolver()),
    "unipc2": (UniPCMultistepScheduler, fj.solvers.UniPC(order=2)),
}


class Twin(torch.nn.Module):
    """The DiT of flowjax in PyTorch, from its weights. States are NCHW, as diffusers has them."""

    def __init__(self, network):
        super().__init__()
        self.patch, self.blocks = network.patch, []
        rows, columns = (side // network.patch for side in network.image_shape[:2])
        self.rows, self.columns, self.scale = rows, columns, network.time.scale
        self.embed, self.unembed = self.linear(network.embed), self.linear(network.unembed)
        self.inner, self.outer = self.linear(network.time.inner), self.linear(network.time.outer)
        self.table = self.tensor(network.condition.table[...])
        self.modulation = self.linear(network.modulation)
        self.codes = self.tensor(positions(rows, columns, self.table.shape[1]))
        for block in network.blocks:
            parts = ("qkv", "project", "inner", "outer", "modulation")
            self.blocks.append({name: self.linear(getattr(block, name)) for name in parts})
        self.heads = network.blocks[0].qkv.out_features[1]
        self.features = network.time.features

    @staticmethod
    def tensor(array):
        """A float32 copy."""
        return torch.tensor(np.array(array, np.float32))

    def linear(self, layer):
        """(weight, bias) of a dense layer as a matrix and a vector."""
        kernel, bias = np.array(layer.kernel[...]), np.array(layer.bias[...]).ravel()
        return self.tensor(kernel.reshape(-1, bias.size).T), self.tensor(bias)

    def forward(self, x, t, label):
        """Velocity at times t (B,) in [0, 1]."""
        batch, channels = x.shape[:2]
        p, width = self.patch, self.table.shape[1]
        h = x.reshape(batch, channels, self.rows, p, self.columns, p).permute(0, 2, 4, 3, 5, 1)
        h = F.linear(h.reshape(batch, self.rows * self.columns, -1), *self.embed) + self.codes
        half = self.features // 2
        angles = t[:, None] * (self.scale * torch.exp(-np.log(10_000.0) * torch.arange(half) / half))[None]
        c = F.linear(torch.cat([torch.cos(angles), torch.sin(angles)], -1), *self.inner)
        c = F.silu(F.linear(F.silu(c), *self.outer) + self.table[label])

        def modulate(h, shift, scale):
            return F.layer_norm(h, (width,), eps=1e-6) * (1 + scale)[:, None] + shift[:, None]

        for block in self.blocks:
            shift1, scale1, gate1, shift2, scale2, gate2 = F.linear(c, *block["modulation"]).chunk(6, -1)
            qkv = F.linear(modulate(h, shift1, scale1), *block["qkv"]).reshape(*h.shape[:2], 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
            h = h + gate1[:, None] * F.linear(attended, *block["project"])
            hidden = F.gelu(F.linear(modulate(h, shift2, scale2), *block["inner"]), approximate="tanh")
            h = h + gate2[:, None] * F.linear(hidden, *block["outer"])
        y = F.linear(modulate(h, *F.linear(c, *self.modulation).chunk(2, -1)), *self.unembed)
        y = y.reshape(batch, self.rows, self.columns, p, p, channels).permute(0, 5, 1, 3, 2, 4)
        return y.reshape(x.shape)


@torch.no_grad()
def sample(make, network, x, label):
    """diffusers' loop. It calls noise minus data the flow, and rounds its timesteps: t is 1 - sigma instead."""
    scheduler = make(**FLOW)
    scheduler.set_timesteps(STEPS)
    for sigma, step in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        x = scheduler.step(-network(x, (1 - sigma).expand(len(x)), label), step, x).prev_sample
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    args = parser.parse_args()
    flow, recipe = fj.load(args.workdir)
    twin = Twin(flow.network)
    noise, cond = fj.noise(jax.random.key(0), (BATCH, *recipe.shape)), jnp.asarray(recipe.balanced(BATCH))
    label, times = torch.tensor(np.array(cond)).long(), jnp.linspace(0.01, 0.99, BATCH)
    ours = jax.jit(flow.network)(noise, times, cond)
    theirs = twin(as_torch(noise), torch.tensor(np.array(times)), label)
    numbers = {"network: largest difference": float(np.abs(as_numpy(theirs) - ours).max())}

    network = jax.jit(flow.network)
    seconds = alternate(
        {"ours": lambda: network(noise, times, cond), "torch": lambda: no_grad(twin, noise, times, label)}, 20
    )
    numbers["network: PyTorch / XLA"] = ratio(seconds, "torch", "ours")
    free = fj.Flow(lambda x, t, cond=None: -x, path=fj.paths.Linear())
    for name, (make, solver) in PAIRS.items():
        scheduler = make(**FLOW)
        scheduler.set_timesteps(STEPS)
        grid = 1 - np.asarray(scheduler.sigmas, np.float64)
        bound = jax.tree.map(jnp.asarray, solver.bind(flow.path, grid))
        x = flow.path.start(noise, float(grid[0]))
        theirs = as_numpy(sample(make, twin, as_torch(x), label))
        ours = np.asarray(fj.solve(flow, bound, x, cond=cond).x)
        numbers[f"{name}: largest difference of the samples"] = float(np.abs(theirs - ours).max())
        for what, field, other, rounds in (("DiT", flow, twin, 10), ("no network", free, lambda x, t, label: -x, 30)):
            seconds = alternate(
                {
                    "ours": lambda field=field, bound=bound, x=x: fj.solve(field, bound, x, cond=cond).x,
                    "diffusers": lambda make=make, other=other, x=x: sample(make, other, as_torch(x), label).numpy(),
                },
                rounds,
            )
            numbers[f"{name}, {what}: diffusers / solve"] = ratio(seconds, "diffusers", "ours")
            for key, label_of in (("ours", "solve"), ("diffusers", "diffusers")):
                per_step = 1e6 * float(np.median(seconds[key])) / STEPS
                numbers[f"{name}, {what}: {label_of}, microseconds per step"] = per_step
    numbers["versions"] = {"torch": torch.__version__, "diffusers": __import__("diffusers").__version__}
    store("parity", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


def as_torch(x):
    """NHWC in JAX to NCHW in PyTorch."""
    return torch.tensor(np.moveaxis(np.array(x), -1, 1))


def as_numpy(x):
    """NCHW in PyTorch to NHWC in NumPy."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


@torch.no_grad()
def no_grad(twin, x, t, label):
    """One call of the twin."""
    return twin(as_torch(x), torch.tensor(np.array(t)), label).numpy()


if __name__ == "__main__":
    main()

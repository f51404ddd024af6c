"""Claim: without guidance a MeanFlow step takes at most 1.5 of the time, 1.6 of the memory of a flow-matching step.

The same network, the derivative along the flow included, without guidance and with it (`kappa`, two more calls of the
network on velocities). Networks of the digits (8x8, width 96) and of 28x28 pictures (patch 4, width 128), on random
data of these shapes.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from measure import alternate, ratio, store

import flowjax as fj
from flowjax.models import DiT
from flowjax.training import create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Warmup

PATH = fj.paths.Linear()
OBJECTIVES = {
    "flow matching": fj.objectives.FlowMatching(path=PATH),
    "mean flow": fj.objectives.MeanFlow(path=PATH),
    "mean flow, guided": fj.objectives.MeanFlow(path=PATH, kappa=0.3, null=10, label_dropout=0.1),
}
NETWORKS = {
    "8x8": {"image_shape": (8, 8, 1), "patch": 2, "width": 96},
    "28x28": {"image_shape": (28, 28, 1), "patch": 4, "width": 128},
}


def measured(options):
    """Ratios of one network."""
    mesh, key = make_mesh(), jax.random.key(0)
    shape = (64, *options["image_shape"])
    batch = put_batch({"x1": jax.random.normal(key, shape), "cond": jnp.arange(64) % 10}, mesh)
    optimizer = fj.build("optimizer", "adamw(rate=1e-3)", steps=1000)
    held, runs, memory = {}, {}, {}

    def build():
        return DiT(**options, depth=4, heads=4, num_classes=10, second_time=True, rngs=nnx.Rngs(0))

    for name, objective in OBJECTIVES.items():
        held[name] = create_state(build, optimizer, mesh)
        step = jax.jit(make_step(optimizer, {"average": Warmup(decay=0.99)}), donate_argnums=0)
        compiled = step.lower(held[name], objective, batch, key).compile()
        memory[name] = compiled.memory_analysis().temp_size_in_bytes

        def run(name=name, compiled=compiled, objective=objective):
            held[name], metrics = compiled(held[name], objective, batch, key)
            return metrics

        runs[name] = run
    seconds = alternate(runs, rounds=25)
    numbers = {"milliseconds of flow matching": 1e3 * sorted(seconds["flow matching"])[12]}
    for name in list(runs)[1:]:
        numbers[f"{name} / flow matching"] = ratio(seconds, name, "flow matching")
        numbers[f"memory, {name} / flow matching"] = memory[name] / memory["flow matching"]
    return numbers


def main():
    numbers = {name: measured(options) for name, options in NETWORKS.items()}
    store("mean_flow_step", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

"""Claim: a LoRA step takes at most the full step's time and a third of its optimiser memory, a refiner 15 % of a call.

The network of the digits (`configs/digits.py`), adapters of `configs/adapters.py`, the refiner of `configs/refiner.py`,
and pairs of `flowjax.sample --pairs` against samples in memory, on random weights.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import alternate, ratio, store

import flowjax as fj
from flowjax._cli import load_config
from flowjax.models import lora
from flowjax.recipe import Request
from flowjax.recipe.pairs import draw_pairs
from flowjax.tasks import make_task
from flowjax.training import create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Warmup


def size(tree):
    """Bytes of the arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def adapters(network, options):
    """A step on adapters against one on the network."""
    mesh, key = make_mesh(), jax.random.key(0)
    objective = fj.objectives.FlowMatching(path=fj.paths.Linear())
    batch = put_batch({"x1": jax.random.normal(key, (64, 8, 8, 1)), "cond": jnp.arange(64) % 10}, mesh)
    optimizer = fj.build("optimizer", "adamw(rate=1e-3)", steps=1000)
    parts = {
        "full": (lambda: fj.models.DiT(**options, rngs=nnx.Rngs(0)), objective),
        "lora": (
            lambda: lora.add(network, rank=4, rngs=nnx.Rngs(1)),
            fj.objectives.Assembled(objective, frozen={"network": network}, combine=lora.combine),
        ),
    }
    held, runs = {}, {}
    for name, (build, loss) in parts.items():
        held[name] = create_state(build, optimizer, mesh)
        step = jax.jit(make_step(optimizer, {"average": Warmup(decay=0.99)}), donate_argnums=0)

        def run(name=name, step=step, loss=loss):
            held[name], metrics = step(held[name], loss, batch, key)
            return metrics

        runs[name] = run
    memory = {name: size(state.optimizer) for name, state in held.items()}
    seconds = alternate(runs, rounds=25)
    return {
        "LoRA step / full step": ratio(seconds, "lora", "full"),
        "optimiser memory, LoRA / full": memory["lora"] / memory["full"],
    }


def refiner(network, options):
    """A call of the refiner against one of the network."""
    small = fj.models.DiT(**(options | load_config("refiner").network.options.to_dict()), rngs=nnx.Rngs(2))
    x, t, cond = jax.random.normal(jax.random.key(0), (200, 8, 8, 1)), jnp.full(200, 0.5), jnp.arange(200) % 10
    # Ten calls in a loop, as a sampler makes them.
    many = lambda call: jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, x: x + 0.01 * call(x), x))  # noqa: E731
    calls = {
        "network": many(lambda x: network(x, t, cond)),
        "refiner": many(lambda x: small(x, t, cond, velocity=x)),
    }
    seconds = alternate({name: lambda call=call: call(x) for name, call in calls.items()}, rounds=25)
    return {"refiner / network call": ratio(seconds, "refiner", "network")}


def pairs(network, recipe):
    """Pairs in a folder against samples in memory."""
    request = Request(num=400, batch=200, steps=10, guidance=1.4)
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(10**6))

        def drawn():
            list(draw_pairs(recipe, {"network": network}, request, Path(folder) / str(next(count))))
            return np.zeros(1)

        def sampled():
            recipe.sample({"network": network}, request)
            return np.zeros(1)

        seconds = alternate({"pairs": drawn, "samples": sampled}, rounds=7)
    return {"pairs / samples": ratio(seconds, "pairs", "samples")}


def main():
    config = load_config("digits")
    recipe = make_task(config, fj.data.digits(), make_mesh(), jax.random.key(0)).recipe
    options = config.network.options.to_dict()
    network = fj.models.DiT(**options, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 999))
    network = jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(next(keys), leaf.shape), network)
    numbers = adapters(network, options) | refiner(network, options) | pairs(network, recipe)
    store("students", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

"""Claim: a train step costs at most 1.10 of the bare forward pass, backward pass and Adam of the same network.

The digits recipe, and the MNIST recipe from a file `mnist.npz` in the folder this is started from. The bare step has no
label dropout, average, clipping, weight decay or metrics.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from measure import alternate, ratio, store

from flowjax import data
from flowjax._cli import load_config
from flowjax.tasks import make_task
from flowjax.training import create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Warmup


def measure(name):
    """Our step against the bare one, for one recipe."""
    config = load_config(name)
    mesh = make_mesh()
    source = data.load(config.data.name, **config.data.options)
    task = make_task(config, source, mesh, jax.random.key(1))
    objective, part = task.objective, task.networks()["network"]
    batch = put_batch(data.Batches(source, config.train.batch, 0).batch(0), mesh)
    key = jax.random.key(0)
    build = lambda: part.build(nnx.Rngs(0))  # noqa: E731
    held = {"ours": create_state(build, part.optimizer, mesh)}
    step = jax.jit(make_step(part.optimizer, {"average": Warmup(decay=config.train.ema)}), donate_argnums=0)
    adam = optax.adam(1e-3)
    network = build()
    held["bare"] = (network, adam.init(network))

    @jax.jit
    def bare(state, batch, key):
        network, inner = state
        x1 = batch["x1"]
        x0 = jax.random.normal(key, x1.shape)
        t = jax.random.uniform(jax.random.fold_in(key, 1), x1.shape[:1])
        at = t[:, None, None, None]

        def loss(network):
            return jnp.mean((network(at * x1 + (1 - at) * x0, t, batch["cond"]) - (x1 - x0)) ** 2)

        updates, inner = adam.update(jax.grad(loss)(network), inner, network)
        return optax.apply_updates(network, updates), inner

    def run_ours():
        held["ours"], metrics = step(held["ours"], objective, batch, key)
        return metrics

    def run_bare():
        held["bare"] = bare(held["bare"], batch, key)
        return held["bare"]

    seconds = alternate({"ours": run_ours, "bare": run_bare}, rounds=25)
    return {
        "train step / bare forward, backward and adam": ratio(seconds, "ours", "bare"),
        "milliseconds per step": 1e3 * sorted(seconds["ours"])[len(seconds["ours"]) // 2],
        "batch": config.train.batch,
    }


def main():
    numbers = {name: measure(name) for name in ("digits", "mnist:npz")}
    store("train_step", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

"""Claim: a train step that reads its data takes at most 1.05 of one on a batch made before.

The train step of the recipe `digits`, fed in four ways in turn: one synthetic batch on the device, batches from memory,
the same through grain, and grain reading a prepared data set from disk with flips and moves. How many images each feed
gives without training bounds what it can cost, also where the machine is too busy for the ratios to settle.
"""

import tempfile
import time
from pathlib import Path

import jax
from flax import nnx
from measure import alternate, ratio, store

from flowjax import data
from flowjax._cli import load_config
from flowjax.tasks import make_task
from flowjax.training import compile_step, create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Warmup

ROUNDS, READS = 40, 60


def main():
    config, mesh = load_config("digits"), make_mesh()
    source = data.digits()
    task = make_task(config, source, mesh, jax.random.key(1))
    objective, part = task.objective, task.networks()["network"]
    size, key = config.train.batch, jax.random.key(0)
    memory = data.Batches(source, size)
    fixed = put_batch(memory.batch(0), mesh)
    held = {"state": create_state(lambda: part.build(nnx.Rngs(0)), part.optimizer, mesh)}
    step = compile_step(
        make_step(part.optimizer, {"average": Warmup(decay=config.train.ema)}), held["state"], objective, fixed, key
    )
    augment = data.Augment(flip=True, crop=1)
    with tempfile.TemporaryDirectory() as folder:
        data.store(source, Path(folder) / "digits")
        disk = data.Batches(data.tfds(f"{folder}/digits", in_memory=False), size, augment=augment)
        counter = iter(range(10**9))
        streams = {"grain, memory": memory.iterator(), "grain, disk, augmented": disk.iterator()}
        feeds = {"memory": lambda: memory.batch(next(counter))}
        feeds |= {name: stream.__next__ for name, stream in streams.items()}

        def trained(feed):
            def call():
                batch = fixed if feed is None else put_batch(feed(), mesh)
                held["state"], metrics = step(held["state"], objective, batch, key)
                return metrics

            return call

        seconds = alternate({name: trained(feed) for name, feed in ({"synthetic": None} | feeds).items()}, ROUNDS)
        speeds = {}
        for name, feed in feeds.items():
            began = time.perf_counter()
            for _ in range(READS):
                feed()
            speeds[name] = READS * size / (time.perf_counter() - began)
        for stream in streams.values():
            stream.close()
    training = size / sorted(seconds["synthetic"])[ROUNDS // 2]
    store(
        "data_pipeline",
        __doc__.splitlines()[0],
        {
            "batch": size,
            "time per step against synthetic": {name: ratio(seconds, name, "synthetic") for name in feeds},
            "images per second without training": speeds,
            "images per second of training": training,
            "share of a step if nothing overlaps": {name: training / speed for name, speed in speeds.items()},
        },
    )


if __name__ == "__main__":
    main()

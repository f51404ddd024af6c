"""Digits in 1 or 2 evaluations, learned from the data alone: consistency training with the network of `digits`.

    python -m flowjax.train --config=consistency --workdir=runs/consistency
    python -m flowjax.sample --workdir=runs/consistency --steps=2

The grid doubles from 10 steps to 160 while the run goes on. Expected on 2 CPU cores, with two evaluations:
95.6 % of 1,000 samples recognised as the class asked for, spread 0.91 of the real one, Frechet distance 0.57.
The run takes 116 seconds; the numbers are in `benchmarks/results/consistency-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `smoke` trains a tiny network for two steps.

    Raises:
        ValueError: Another argument.
    """
    network = dict(image_shape=(8, 8, 1), patch=2, width=96, depth=4, heads=4, num_classes=10, time_scale=1.0)
    config = base(
        argument=argument,
        data=spec("digits"),
        network=spec("dit", **network),
        objective=spec("consistency", grid=spec("uniform", n=160), curriculum=(10, 360)),
        optimizer=spec("adamw", rate=3e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=1800, ema=0.99, report_every=20, sample_every=300, checkpoint_every=300),
        sample=dict(solver=spec("consistency"), steps=2, guidance=1.0),
    )
    if argument == "smoke":
        config.network.options.update(width=16, depth=1, heads=2)
        smoke(config)
    return config

"""Digits in 1, 2, 4 or 8 evaluations: a shortcut model on the 1,797 handwritten digits of scikit-learn.

    python -m flowjax.train --config=shortcut --workdir=runs/shortcut
    python -m flowjax.sample --workdir=runs/shortcut --steps=4

Expected on 2 CPU cores, with one evaluation: 98.0 % of 1,000 samples recognised as the class asked for, spread 0.75 of
the real one, Frechet distance 0.73; guidance of scale 1.4 is learned with the average velocities. The run takes 71
seconds, at 916 images per second; the numbers are in `shortcut-cpu.json` under `benchmarks/results`.
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
        network=spec("dit", second_time=True, **network),
        objective=spec("shortcut", sections=8, kappa=0.2857, label_dropout=0.1),
        optimizer=spec("adamw", rate=3e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=900, ema=0.99, report_every=20, sample_every=300, checkpoint_every=300),
        sample=dict(solver=spec("jump"), steps=1, guidance=1.0),
    )
    if argument == "smoke":
        config.network.options.update(width=16, depth=1, heads=2)
        smoke(config)
    return config

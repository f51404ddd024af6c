"""A law in the plane (eight Gaussians, two moons, a checkerboard or a spiral) with an MLP.

Expected on 2 CPU cores for the checkerboard: squares filled evenly (samples.png), Frechet distance of the points near
2e-4, loss near 1.41, 40 evaluations; about 95 seconds of core time for 4,000 steps.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `smoke` trains a small network for two steps.

    Raises:
        ValueError: Another argument.
    """
    config = base(
        argument=argument,
        data=spec("toy2d", law="checkerboard", size=50_000, seed=0),
        network=spec("mlp", dim=2, width=128, depth=3),
        optimizer=spec("adamw", rate=2e-3, warmup=0.02, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=4000, batch=512, ema=0.995, report_every=100, sample_every=1000, checkpoint_every=1000),
        sample=dict(steps=20, num=20_000, batch=10_000),
    )
    if argument == "smoke":
        config.network.options.update(width=16, depth=1)
        smoke(config)
    return config

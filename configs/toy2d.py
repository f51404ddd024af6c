"""A law in the plane (eight Gaussians, two moons, a checkerboard or a spiral) with an MLP.

Expected on 2 CPU cores for the checkerboard: squares filled evenly (samples.png), Frechet distance of the points near
2e-4, loss near 1.41, 40 evaluations; about 95 seconds of core time for 4,000 steps.
"""

from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `smoke` trains a small network for two steps.

    Raises:
        ValueError: Another argument.
    """
    if argument not in ("", "smoke"):
        raise ValueError(f"unknown argument {argument!r} (allowed: smoke)")
    config = ConfigDict(
        {
            "seed": 0,
            "data": {"name": "toy2d", "options": {"law": "checkerboard", "size": 50_000, "seed": 0}},
            "network": {"name": "MLP", "options": {"dim": 2, "width": 128, "depth": 3}},
            "path": {"name": "Linear", "options": {}},
            "objective": {
                "prediction": "velocity",
                "times": {"name": "Uniform", "options": {}},
                "label_dropout": 0.0,
            },
            "train": {
                "steps": 4000,
                "batch": 512,
                "rate": 2e-3,
                "warmup": 0.02,
                "b2": 0.99,
                "weight_decay": 0.0,
                "clip": 1.0,
                "accumulate": 1,
                "max_skipped": 20,
                "ema": 0.995,
                "averages": {},
                "snapshot_every": 0,
                "report_every": 100,
                "sample_every": 1000,
                "checkpoint_every": 1000,
                "keep": 2,
                "best": "loss",
            },
            "sample": {
                "solver": {"name": "heun", "options": {}},
                "steps": 20,
                "guidance": 1.0,
                "num": 20_000,
                "batch": 10_000,
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )
    if argument == "smoke":
        config.network.options.update(width=16, depth=1)
        config.train.update(steps=2, batch=8, report_every=1, sample_every=1, checkpoint_every=1)
        config.sample.update(num=40, batch=40, steps=2)
    return config

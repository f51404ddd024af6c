"""Low-rank adapters on a trained flow of digits; here on the same digits, or on other data of their shape and classes.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=adapters --config.base.options.workdir=runs/digits --workdir=runs/adapted
    python -m flowjax.sample --workdir=runs/adapted

The checkpoints hold the adapters alone, 39 thousand numbers on a network of 720 thousand; the run names the base with
the hash of its weights. Expected on 2 CPU cores, on the base of `configs/digits.py`: nothing is lost, 98.9 % of 1,000
samples recognised, Frechet distance 0.247 (the base 0.266), loss 0.36 at the last step. On cores shared with other work
the run took 420 seconds; the numbers are in `benchmarks/results/adapters-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `smoke` trains for two steps.

    Raises:
        ValueError: Another argument.
    """
    config = base(
        "adapters",
        argument,
        data=spec("digits"),
        base=spec("run", workdir="runs/digits"),
        adapters=spec("lora", rank=4),
        objective=spec("flow_matching", times=spec("uniform"), label_dropout=0.1),
        optimizer=spec("adamw", rate=1e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=300, ema=0.99, report_every=20, sample_every=300, checkpoint_every=300),
        sample=dict(steps=5, guidance=1.4),
    )
    return smoke(config) if argument == "smoke" else config

"""Low-rank adapters on a trained flow of digits: a tenth of its parameters, on new data.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=adapters --config.base.options.workdir=runs/digits --workdir=runs/adapted
    python -m flowjax.sample --workdir=runs/adapted

The checkpoints hold the adapters alone; the run names the base with the hash of its weights.
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

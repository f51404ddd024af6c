"""Latent consistency: the digits of a trained flow in 1, 2 or 4 evaluations, guided in one call.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=lcm --config.teacher.options.workdir=runs/digits --workdir=runs/lcm
    python -m flowjax.sample --workdir=runs/lcm --steps=4 --guidance=2

The student starts from the teacher and learns where its guided flow ends, for scales from 1 to 4; `lcm_lora` learns it
with adapters. Expected on 2 CPU cores, with 4 evaluations and guidance 1.4: 99.0 % of 1,000 samples recognised as
the class asked for, spread 0.85 of the real one, Frechet distance 0.323 (the teacher 0.266 with 20 network
calls). On a core shared with other work the run took 472 seconds; the numbers are in
`benchmarks/results/lcm-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `smoke` trains for two steps.

    Raises:
        ValueError: Another argument.
    """
    config = base(
        "distillation",
        argument,
        task=spec("distillation", guidance=(1.0, 4.0)),
        data=spec("digits"),
        network=spec(guidance=True),
        teacher=spec("run", workdir="runs/digits"),
        objective=spec("latent_consistency", target_average=spec("constant", decay=0.95)),
        optimizer=spec("adamw", rate=1e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=2700, ema=0.99, report_every=20, sample_every=300, checkpoint_every=300),
        sample=dict(solver=spec("consistency"), times=spec("skipping"), steps=4, guidance=1.4),
    )
    return smoke(config) if argument == "smoke" else config

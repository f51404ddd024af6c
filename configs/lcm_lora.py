"""Latent consistency with adapters (LCM-LoRA): few weights beside a trained flow make 4 evaluations enough.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=lcm_lora --config.base.options.workdir=runs/digits --workdir=runs/lcm_lora
    python -m flowjax.sample --workdir=runs/lcm_lora --steps=4

The base is its own teacher, guided with scale 1.4. The adapters have that guidance in them, so that samples take none;
they can be added to others of the same base (`flowjax.models.lora.merge`). Expected on 2 CPU cores, with 4 evaluations:
98.2 % of 1,000 samples recognised as the class asked for, spread 0.84 of the real one, Frechet distance 0.342 (the base
0.266 with 20 network calls). On a core shared with other work the run took 354 seconds; the numbers are in
`benchmarks/results/lcm_lora-cpu.json`.
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
        task=spec("adapters", guidance=1.4),
        data=spec("digits"),
        base=spec("run", workdir="runs/digits"),
        adapters=spec("lora", rank=3),
        objective=spec("latent_consistency"),
        optimizer=spec("adamw", rate=5e-4, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=2700, ema=0.99, report_every=20, sample_every=300, checkpoint_every=300),
        sample=dict(solver=spec("consistency"), times=spec("skipping"), steps=4, guidance=1.0),
    )
    return smoke(config) if argument == "smoke" else config

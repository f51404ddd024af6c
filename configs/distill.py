"""A student that answers with guidance in one call, from a trained flow: half the network calls of a guided pair.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=distill --config.teacher.options.workdir=runs/digits --workdir=runs/student
    python -m flowjax.sample --workdir=runs/student --guidance=2.0

The student starts from the teacher and has a new input, the scale of guidance, which it learns from 1 to 4. Expected on
2 CPU cores, from the teacher of `configs/digits.py`: with 10 network calls 98.6 % of 1,000 samples recognised as the
class asked for and a Frechet distance of 0.263 (the teacher with 20 calls: 99.1 % and 0.266); loss 0.021 at the last
step. On cores shared with other work the run took 580 seconds; the numbers are in
`benchmarks/results/distill-cpu.json`.
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
        optimizer=spec("adamw", rate=1e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=600, ema=0.99, report_every=20, sample_every=300, checkpoint_every=300),
        sample=dict(steps=5, guidance=1.4),
    )
    return smoke(config) if argument == "smoke" else config

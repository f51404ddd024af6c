"""Distribution matching on digits (DMD2): a trained flow in one evaluation, by the scores of its own samples.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=dmd2 --workdir=runs/dmd2
    python -m flowjax.sample --workdir=runs/dmd2

The student moves in every fifth step, the fake network in each. For several evaluations give the grid of its steps and
sample on it: `--config.objective.options.grid="uniform(n=4)" --config.sample.steps=4`.

Expected on 2 CPU cores, with 1 evaluation: 98.8 % of 1,000 samples recognised as the class asked for, spread 0.87 of
the real one, Frechet distance 0.267 (the teacher 0.266 with 20 network calls). On a core shared with other work the run
took 326 seconds; the numbers are in `benchmarks/results/dmd2-cpu.json`.
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
        task=spec("distillation", guidance=1.2),
        data=spec("digits"),
        teacher=spec("run", workdir="runs/digits"),
        objective=spec("distribution_matching", every=5),
        optimizer=spec("adamw", rate=1e-3, warmup=0.05, b1=0.0, b2=0.999, weight_decay=0.0, clip=1.0),
        train=dict(steps=1500, ema=0.99, report_every=50, sample_every=500, checkpoint_every=500),
        sample=dict(solver=spec("consistency"), steps=1, guidance=1.0),
    )
    return smoke(config) if argument == "smoke" else config

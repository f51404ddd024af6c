"""Marginal-data transport: the digits of a trained flow in one evaluation, by velocity matching and distillation.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=mdt --workdir=runs/mdt
    python -m flowjax.sample --workdir=runs/mdt

The student, which starts as the teacher and needs no second time, jumps from any state to the data; more steps go back
to less noise in between, with fresh noise (the authors' Euler steps, `--config.sample.solver=euler`, keep the noise and
make samples too wide). `mdt:structure` and `mdt:details` are the students of the two flows of `solids`.

Expected on 2 CPU cores, with 1 evaluation: 99.9 % of 1,000 samples recognised as the class asked for, spread 0.65 of
the real one, Frechet distance 1.29 (the teacher 0.266 with 20 network calls, and 4.4 in one step of Euler; `lcm` is
nearer). On a core shared with other work the run took 198 seconds; the numbers are in
`benchmarks/results/mdt-cpu.json`. The students of solids, with 1 evaluation each: IoU of the structure 0.846 to 0.847
over three seeds (the teacher 0.856 with 25, 0.821 with one), chamfer distance of both in a chain 0.052 to 0.053 (0.049,
0.055); 178 to 249 and 414 to 536 seconds on a shared core (`benchmarks/results/solids-cpu.json`).
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `structure` and `details` are students of solids, `smoke` trains for two steps.

    Raises:
        ValueError: Another argument.
    """
    solids = {"structure": {}, "details": {"part": "details"}}
    guidance, steps, batch, num = (2.0, 300, 16, 64) if argument in solids else (1.4, 600, 64, 1000)
    objective = spec("velocity_distillation", normalized=False, gap=0.1)
    rate = 2e-4
    if argument == "details":
        objective["options"].update(mode="consistency", weight=0.05)
        steps, rate = 500, 1e-3
    config = base(
        "distillation",
        argument,
        tuple(solids),
        task=spec("distillation", guidance=guidance),
        data=spec("solids", size=2048, **solids[argument]) if argument in solids else spec("digits"),
        teacher=spec("run", workdir=f"runs/{argument if argument in solids else 'digits'}"),
        objective=objective,
        optimizer=spec("adamw", rate=rate, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=steps, batch=batch, ema=0.99, report_every=20, sample_every=300, checkpoint_every=300),
        sample=dict(solver=spec("consistency"), steps=1, guidance=1.0, num=num, batch=min(num, 200)),
    )
    return smoke(config) if argument == "smoke" else config

"""Latents of a representation autoencoder in one evaluation, without guidance: MeanFlow in three stages, or four.

    python -m flowjax.train --config=mf_rae:teacher --workdir=runs/mf_rae/teacher
    python -m flowjax.train --config=mf_rae:cmt --workdir=runs/mf_rae/cmt
    python -m flowjax.train --config=mf_rae:mfd --workdir=runs/mf_rae/mfd
    python -m flowjax.train --config=mf_rae:mft --workdir=runs/mf_rae/mft
    python -m flowjax.sample --workdir=runs/mf_rae/mfd

or `train/stages.sh`, which runs them one after the other and goes on where it stopped. A flow is trained on latents of
the autoencoder in `runs/rae/decoder` (Fashion-MNIST), each entry in a scale of its own; a student of it is prepared on
its trajectories, distilled, and may at last leave it behind. `--config.codec=""` on the data themselves, with a network
of their shape and a `shift` of 1 in all stages, is the same without an autoencoder; images in another place are
`--config.data.options.path=FOLDER`, for every stage.

Times of all stages are shifted by 4. `flowjax.times.dimension_shift` finds no shift for so few numbers, but counts each
as news of its own, and the tokens of a classifier all say the same: at t = 0.1 the class can be read from 80 % of them
(from 18 % of the digits), where plain logit-normal times put 1 example of 70.

Expected on 2 CPU cores: not measured at this size, neither distances nor seconds; `benchmarks/mid_training.py` compares
stages of a smaller network with MeanFlow from scratch (`mid_training_digits-cpu.json` and
`mid_training_fashion-cpu.json` in `benchmarks/results`).
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict

STAGES = ("teacher", "cmt", "mfd", "mft")
SHAPE, SHIFT = (7, 7, 64), 4.0


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage, the teacher's unless one is named; `smoke` and `STAGE_smoke` take two steps on digits.

    Raises:
        ValueError: Another argument.
    """
    stage, tiny = argument.removesuffix("smoke").rstrip("_") or "teacher", argument.endswith("smoke")
    arguments = (*STAGES, *(f"{name}_smoke" for name in STAGES))
    adamw = dict(warmup=0.0, b2=0.95, weight_decay=0.0, clip=1.0)
    often = dict(report_every=20, sample_every=500, checkpoint_every=250)
    data, shift = spec("digits" if tiny else "fashion"), 1.0 if tiny else SHIFT
    if stage == "teacher":
        shape = (8, 8, 1) if tiny else SHAPE
        network = dict(width=96, depth=6, heads=4, head_width=192, head_depth=2, head_heads=4)
        if tiny:
            network = dict(width=16, depth=1, heads=2, head_width=32, head_depth=1, head_heads=2, patch=2)
        config = base(
            argument=argument,
            arguments=arguments,
            data=data,
            codec=spec() if tiny else spec("run", workdir="runs/rae/decoder", statistics="elements"),
            network=spec("dit_dh", image_shape=shape, num_classes=10, **network),
            objective=spec(
                "flow_matching", times=spec("shifted", times=spec("logit_normal"), shift=shift), label_dropout=0.1
            ),
            optimizer=spec("adamw", rate=1e-3, **adamw | {"warmup": 0.05}),
            train=dict(steps=3000, batch=64, ema=0.995, **often),
            sample=dict(
                solver=spec("euler"), times=spec("shifted", times="uniform", shift=shift), steps=50, guidance=1.0
            ),
        )
        return smoke(config) if tiny else config
    name, options, steps, rate, batch = {
        "cmt": ("consistency_mid_training", {}, 500, 3e-4, 8),
        "mfd": ("mean_flow_distillation", dict(power=0.5), 1500, 5e-4, 64),
        "mft": ("mean_flow_distillation", dict(power=0.5, velocity="conditional"), 500, 2e-4, 64),
    }.get(stage, ("", {}, 0, 0.0, 0))
    start = spec("run", workdir="runs/mf_rae/cmt") if stage == "mfd" else True
    config = base(
        "distillation",
        argument,
        arguments,
        task=spec("distillation", start=start),
        data=data,
        teacher=spec("run", workdir=f"runs/mf_rae/{'mfd' if stage == 'mft' else 'teacher'}"),
        network=spec(second_time=True),
        objective=spec(name, shift=shift, label_dropout=0.1, **options),
        optimizer=spec("adamw", rate=rate, **adamw),
        train=dict(steps=steps, batch=batch, ema=0.99, **often),
        sample=dict(solver=spec("jump"), steps=1, guidance=1.0),
    )
    return smoke(config) if tiny else config

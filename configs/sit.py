"""SiT of the published sizes on latents of ImageNet, to be planned and then trained on accelerators.

    python -m flowjax.plan --config=sit:XL/2 --topology=v5e:4x4
    python -m flowjax.train --config=sit:XL/2 --config.data="tfds(folder='FOLDER')" --workdir=runs/sit

Sizes are S, B, L and XL with patches of 2, 4 and 8 (`sit:B/4`), on latents (32, 32, 4) of 256 pixels and a thousand
classes. Unless data are named the run learns noise, which serves to plan and to time it. The network computes in
bfloat16 and stores in float32, its blocks run in one loop and are recomputed in the backward pass.

Expected on a TPU slice v5e:2x4 with XL/2 and a batch of 256, by `plan`: 15.1 GiB of each device, which is just room
enough, and at best 0.154 seconds for a step, a quarter of whose products are recomputation. No run has been measured;
the numbers are in `benchmarks/results/plans-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict

from flowjax.models.dit import PATCHES, SIZES, DiT

SHAPE, CLASSES = (32, 32, 4), 1000


def get_config(argument: str = "") -> ConfigDict:
    """The config of a published size, XL/2 unless one is named; `smoke` trains a tiny network for two steps.

    Raises:
        ValueError: Another argument.
    """
    size, shape = DiT.size(argument if "/" in argument else "XL/2"), SHAPE
    if argument == "smoke":
        size, shape = dict(patch=2, width=16, depth=2, heads=2), (8, 8, 1)
    config = base(
        argument=argument,
        arguments=tuple(f"{name}/{patch}" for name in SIZES for patch in PATCHES),
        data=spec("synthetic", shape=shape, num_classes=CLASSES),
        network=spec("dit", image_shape=shape, **size, num_classes=CLASSES, remat=True, scan=True, dtype="bfloat16"),
        objective=spec("flow_matching", prediction="velocity", times=spec("uniform"), label_dropout=0.1),
        optimizer=spec("adamw", rate=1e-4, warmup=0.0, b2=0.999, weight_decay=0.0, clip=1.0),
        train=dict(steps=400_000, batch=256, ema=0.9999, report_every=100, sample_every=10_000, checkpoint_every=5_000),
        sample=dict(steps=25, guidance=1.5, num=1000, batch=64),
    )
    return smoke(config) if argument == "smoke" else config

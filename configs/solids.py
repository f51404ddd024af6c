"""Solids from one picture, in two stages: an autoencoder of occupancy grids, a flow on its latents, a flow of details.

    python -m flowjax.train --config=solids --workdir=runs/voxels
    python -m flowjax.train --config=solids:structure --workdir=runs/structure
    python -m flowjax.train --config=solids:details --workdir=runs/details
    python -m flowjax.recipe.link --runs=a=runs/structure,b=runs/details --into=structure --out=runs/solids
    python -m flowjax.sample --workdir=runs/solids --cond.image=pictures/ --num=8 --out=solids.npz

Sampling writes meshes, clouds of points and turntables beside the npz. Bodies are of a procedural family; meshes of
your own are `--config.data="meshes(folder='FOLDER')"`. `mdt:structure` and `mdt:details` are students of both flows in
one evaluation each.

Expected on 2 CPU cores: the autoencoder reconstructs occupancy with a peak signal-to-noise ratio of 23.3 dB. On a core
shared with other work its run took 764 seconds; the numbers are in `benchmarks/results/voxels-cpu.json`. On bodies of
another seed the flows, in 25 steps each, have an IoU of 0.856 and a colour error of 0.098
(`benchmarks/results/solids-cpu.json`).
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict

VOXELS = 160  # blocks of a body, with padding


def get_config(argument: str = "") -> ConfigDict:
    """The config of the autoencoder; `structure` and `details` are the flows, `smoke` trains for two steps.

    Raises:
        ValueError: Another argument.
    """
    data = spec("solids", size=2048)
    if argument in ("structure", "details"):
        conditions = {"image": spec("image")}
        if argument == "details":
            data["options"]["part"] = argument
            conditions["structure"] = spec("structure", voxels=VOXELS)
        network = spec("voxel_dit", grid_shape=(4, 4, 4, 8), width=96, depth=4)
        if argument == "details":
            network = spec("voxel_set_dit", resolution=16, width=64, depth=3)
        return base(
            "generation",
            argument,
            ("structure", "details"),
            task=spec("generation", conditions=conditions),
            data=data,
            codec=spec("run", workdir="runs/voxels") if argument == "structure" else spec(),
            network=network,
            objective=spec("flow_matching", prediction="velocity", times=spec("logit_normal"), label_dropout=0.1),
            optimizer=spec("adamw", rate=2e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
            train=dict(steps=1500 if argument == "structure" else 1000, batch=32, ema=0.995, report_every=50),
            sample=dict(solver=spec("euler"), steps=25, guidance=2.0, num=64, batch=32),
        )
    config = base(
        "autoencoding",
        argument,
        task=spec("autoencoding", num=200, batch=50),
        data=data,
        network=spec("voxel_autoencoder", resolution=16, widths=(16, 64), latent=8),
        objective=spec("autoencoding", kl_weight=1e-2, reconstruction="l2", adversary=None),
        optimizer=spec("adamw", rate=2e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=400, batch=32, ema=0.99, report_every=20, sample_every=200, checkpoint_every=200),
    )
    if argument == "smoke":
        config.data.options.update(size=64, resolution=8)
        config.network.options.update(resolution=8, widths=(8, 8), latent=2, groups=4)
        config.task.options.update(num=8, batch=8)
        smoke(config)
    return config

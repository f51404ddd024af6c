"""Any folder of pictures, scaled to 32x32 in colour: a small DiT, without classes or with those of the subfolders.

    python -m flowjax.train --config=images --config.data.options.folder=FOLDER --workdir=runs/pictures
    python -m flowjax.train --config=images:classes --config.data.options.folder=FOLDER --workdir=runs/classes

Expected on 2 CPU cores, `images:classes` with 1,000 pieces of 64x64 pixels of each of scikit-learn's two photographs:
90.4 % of 1,000 samples recognised as the photograph asked for, spread 0.94 of the real one, Frechet distance 15.2, no
copies; loss 0.074 at the last step. About 600 seconds of core time; the numbers are in
`benchmarks/results/images-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `classes` is conditioned on the subfolders, `smoke` does so with digits, a tiny network, two steps.

    Raises:
        ValueError: Another argument.
    """
    classes = argument != ""
    dit = dict(image_shape=(32, 32, 3), patch=4, width=128, depth=4, heads=4)
    if argument == "smoke":
        dit = dict(image_shape=(8, 8, 1), patch=2, width=16, depth=1, heads=2)
    network = spec("dit", **dit)
    if classes:
        encoders = {"label": spec("label", dim=dit["width"])}
        network = spec("conditioned", network=spec("dit", **dit, cond_dim=dit["width"]), encoders=encoders)
    config = base(
        argument=argument,
        arguments=("classes",),
        task=spec("generation", conditions={"label": spec("label")} if classes else None),
        data=spec("digits") if argument == "smoke" else spec("images", size=32),
        network=network,
        objective=spec(
            "flow_matching", prediction="velocity", times=spec("logit_normal"), label_dropout=0.1 if classes else 0.0
        ),
        train=dict(steps=1000, batch=32),
        sample=dict(guidance=1.5 if classes else 1.0),
    )
    return smoke(config) if argument == "smoke" else config

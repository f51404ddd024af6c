"""Class-conditional Fashion-MNIST, 28x28: a small DiT with patch 4, on Debian's package dataset-fashion-mnist.

    python -m flowjax.train --config=fashion --workdir=runs/fashion
    python -m flowjax.train --config=fashion --config.data.options.path=FOLDER --workdir=runs/fashion

The second reads another folder with the four files, or an npz file with `images` (N, 28, 28) and `labels` (N,).

Expected on 2 CPU cores: 76 % of 1,000 samples (10 Heun steps, 20 evaluations, guidance 1.5) recognised as the class
asked for by a network that recognises 86 % of real images, spread 0.97 of the real one, Frechet distance 4.9, no copy;
loss 0.273 at the last step. The run took 1,104 seconds on cores shared with much other work, at 75 images per second;
the numbers are in `benchmarks/results/fashion-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `smoke` trains a tiny network for two steps on the digits.

    Raises:
        ValueError: Another argument.
    """
    config = base(
        argument=argument,
        data=spec("digits" if argument == "smoke" else "fashion"),
        network=spec("dit", image_shape=(28, 28, 1), patch=4, width=96, depth=4, heads=4, num_classes=10),
        objective=spec("flow_matching", prediction="velocity", times=spec("logit_normal"), label_dropout=0.1),
        optimizer=spec("adamw", rate=2e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(sample_every=1000),
        sample=dict(steps=10, guidance=1.5),
    )
    if argument == "smoke":
        config.network.options.update(image_shape=(8, 8, 1), patch=2, width=16, depth=1, heads=2)
        smoke(config)
    return config

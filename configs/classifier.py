"""A classifier of scikit-learn's handwritten digits, 8x8: convolutions and a dense layer.

    python -m flowjax.train --config=classifier --workdir=runs/classifier
    python -m flowjax.train --config=classifier:noisy --workdir=runs/noisy
    python -m flowjax.sample --workdir=runs/digits --guidance=0 --times="uniform(start=0.02)" \
        --fields="classifier(of=run(workdir=runs/noisy), scale=2)"

`noisy` sees the digits on their way from noise and is asked at a time: its gradient guides flows on the same path,
which the last line shows.

Expected on 2 CPU cores: 98.9 % of the 180 digits that training has not seen, cross-entropy 0.135; loss 0.50 at the last
step (labels are smoothed); about 30 seconds. The numbers are in `benchmarks/results/classifier-cpu.json`. `noisy`: 35
to 43 seconds of one core; what it does to the flow of `digits` is in `benchmarks/results/classifier_guidance-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config, or that of the `noisy` classifier; `smoke` and `noisy_smoke` train a tiny network for two steps.

    Raises:
        ValueError: Another argument.
    """
    noisy, tiny = argument.startswith("noisy"), argument.endswith("smoke")
    encoder = spec("image", image_shape=(8, 8, 1), dim=128, channels=32, depth=3)
    config = base(
        "classification",
        argument,
        ("noisy", "noisy_smoke"),
        data=spec("digits"),
        network=spec("readout", encoder=encoder, outputs=10, timed=noisy),
        objective=spec("classification", smoothing=0.1),
        optimizer=spec("adamw", rate=1e-2, warmup=0.05, b2=0.99, weight_decay=0.01, clip=1.0),
        train=dict(steps=600, ema=0.99, report_every=50, sample_every=300, checkpoint_every=300, best="accuracy"),
    )
    if noisy:
        config.objective = spec("classification", noise_path="linear")
        config.train.steps = 2000
    if tiny:
        config.network.options.encoder.options.update(channels=4, dim=8)
        smoke(config)
    return config

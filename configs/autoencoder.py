"""Patches of two photographs, 32x32: a small autoencoder of 8x8x4 latents, with a discriminator from halfway on.

Expected on 2 CPU cores: reconstructions with a peak signal-to-noise ratio of 21.9 dB, a mean absolute error of 11.2 of
255 and a Frechet distance of 0.86; KL 1,440. The run took 5,900 seconds on cores shared with much other work, about 15
minutes of core time; the numbers are in `benchmarks/results/autoencoder-cpu.json`.

docs/autoencoders.md has a flow on its latents.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `smoke` trains tiny networks for two steps, the discriminator in the second.

    Raises:
        ValueError: Another argument.
    """
    config = base(
        "autoencoding",
        argument,
        data=spec("photographs", size=32, stride=8),
        network=spec("autoencoder", image_shape=(32, 32, 3), channels=16, multipliers=(1, 2, 2), latent=4, groups=8),
        discriminator=spec("discriminator", image_shape=(32, 32, 3), channels=16, layers=2, groups=8),
        objective=spec("autoencoding", kl_weight=1e-3, reconstruction="l1", adversarial_weight=0.5, start=500),
        optimizer={
            "autoencoder": spec("adamw", rate=2e-3, warmup=0.05, b1=0.5, b2=0.9, weight_decay=0.0, clip=None),
            "discriminator": spec("adamw", rate=5e-4, warmup=0.05, b1=0.5, b2=0.9, weight_decay=0.0, clip=None),
        },
        train=dict(
            steps=1000, batch=32, ema=0.99, report_every=50, sample_every=500, checkpoint_every=500, best="psnr"
        ),
    )
    if argument == "smoke":
        config.data.options.update(size=8, stride=32)
        config.network.options.update(image_shape=(8, 8, 3), channels=4, multipliers=(1,), groups=2)
        config.discriminator.options.update(image_shape=(8, 8, 3), channels=4, layers=1, groups=2)
        config.objective.options.update(start=1)
        config.task.options.update(num=40, batch=40)
        smoke(config)
    return config

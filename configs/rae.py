"""A representation autoencoder of Fashion-MNIST, 28x28, in two stages: a ViT that tells classes, then its decoder.

    python -m flowjax.train --config=rae:encoder --workdir=runs/rae/encoder
    python -m flowjax.train --config=rae:decoder --workdir=runs/rae/decoder
    python -m flowjax.evaluate --workdir=runs/rae/decoder

The encoder is trained as a classifier, 7x7 tokens of 64 channels from patches of 4x4 pixels, and then frozen; the
decoder learns to make images of its tokens, with noise on them. `--config.data.options.path=FOLDER` reads the images
from elsewhere. A flow on the tokens is `--config=mf_rae`, or `--config=fashion` with
`--config.codec="run(workdir=runs/rae/decoder)"` and a network for images (7, 7, 64) of patch 1. Published encoders are
imported by `flowjax.recipe.import_dinov2` (docs/autoencoders.md).

The adversary has a weight of 0.1: at the published 0.75 the small discriminator loses its hold on the decoder soon
after it is heard, and takes the reconstruction with it (13.5 dB).

Expected on a core shared with other work: the encoder tells 85.5 % of 6,000 held-out images, in 620 seconds; the
decoder reaches 20.0 dB, a mean error of 14.7 of 255 and a Frechet distance of 0.75 of 2,000 reconstructions, in 1,500
seconds. The numbers are in `benchmarks/results/codecs-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config of the autoencoder, as `decoder`, or of its `encoder`; `smoke` and `encoder_smoke` take two steps.

    Raises:
        ValueError: Another argument.
    """
    stages, tiny = ("encoder", "decoder", "encoder_smoke"), argument.endswith("smoke")
    data, shape, width = spec("fashion"), (28, 28, 1), 64
    if tiny:
        data, shape, width = spec("digits"), (8, 8, 1), 16
    if argument.startswith("encoder"):
        config = base(
            "classification",
            argument,
            stages,
            data=data,
            network=spec("vit", image_shape=shape, patch=4, width=width, depth=4, heads=4, outputs=10),
            objective=spec("classification", smoothing=0.1),
            optimizer=spec("adamw", rate=1e-3, warmup=0.05, b2=0.99, weight_decay=0.01, clip=1.0),
            train=dict(steps=2000, ema=0.99, sample_every=1000, best="accuracy"),
        )
        if tiny:
            config.network.options.update(depth=2, heads=2)
        return smoke(config) if tiny else config
    config = base(
        "autoencoding",
        argument,
        stages,
        data=data,
        network=spec("vit_decoder", image_shape=shape, latent=width, patch=4, width=96, depth=4, heads=4),
        encoder=spec("run", workdir="runs/rae/encoder"),
        discriminator=spec("discriminator", image_shape=shape, channels=16, layers=2, groups=8),
        objective=spec(
            "representation_autoencoding", noise=0.8, adversarial_weight=0.1, discriminator_start=1200, start=1500
        ),
        optimizer={
            "autoencoder": spec("adamw", rate=1e-3, warmup=0.05, b2=0.95, weight_decay=0.0, clip=1.0),
            "discriminator": spec("adamw", rate=5e-4, warmup=0.05, b2=0.95, weight_decay=0.0, clip=1.0),
        },
        train=dict(steps=2000, ema=0.995, sample_every=1000, best="psnr"),
    )
    if tiny:
        config.network.options.update(width=16, depth=1, heads=2)
        config.discriminator.options.update(channels=4, layers=1, groups=2)
        config.objective.options.update(discriminator_start=0, start=1)
        config.task.options.update(num=40, batch=40)
        smoke(config)
    return config

"""Claim: the adaptive weight of the adversary costs at most 10 % of a step of a representation autoencoder.

Steps of the decoder and the discriminator of `configs/rae.py` on noise, with both players at work, as they are and with
a weight of one in its place, in alternation. The encoder has random weights, which changes no time. The decoder is
measured in a list of blocks and in one compiled loop, where a second pass could not be merged with the first.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from measure import alternate, ratio, store

from flowjax._pytree import pytree
from flowjax.models import Discriminator, ViT, ViTDecoder
from flowjax.models.representation import with_encoder
from flowjax.objectives import Assembled, RepresentationAutoencoding
from flowjax.training import compile_step, create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Warmup

SHAPE = (28, 28, 1)


@pytree
class Fixed(RepresentationAutoencoding):
    """A weight of one."""

    def balance(self, pull, by_data, by_judge):
        """One."""
        return jnp.ones((), by_data.dtype)


def measured(batch, rounds, **options):
    """Ratio and milliseconds for a decoder with these options."""
    mesh, key = make_mesh(), jax.random.key(1)
    images = np.random.default_rng(0).uniform(-1, 1, size=(batch, *SHAPE)).astype(np.float32)
    given = put_batch({"x1": images}, mesh)
    encoder = ViT(SHAPE, 4, 64, 4, 4, rngs=nnx.Rngs(0))
    builds = {
        "autoencoder": lambda: ViTDecoder(SHAPE, 64, 4, 96, 4, 4, **options, rngs=nnx.Rngs(1)),
        "discriminator": lambda: Discriminator(SHAPE, 16, 2, groups=8, rngs=nnx.Rngs(2)),
    }
    optimizers = {label: optax.adam(1e-4) for label in builds}
    laws = {"average": (Warmup(decay=0.99), ("autoencoder",))}
    held, programs = {}, {}
    for name, make in {"adaptive": RepresentationAutoencoding, "fixed": Fixed}.items():
        objective = Assembled(make(), frozen={"encoder": encoder}, combine=with_encoder)
        held[name] = create_state(builds, optimizers, mesh, averages=laws)
        program = compile_step(make_step(optimizers, laws), held[name], objective, given, key)
        programs[name] = lambda state, program=program, objective=objective: program(state, objective, given, key)

    def step(name):
        held[name], metrics = programs[name](held[name])
        return metrics["loss"]

    seconds = alternate({name: lambda name=name: step(name) for name in programs}, rounds)
    return {
        "step with the adaptive weight / with a weight of one": ratio(seconds, "adaptive", "fixed"),
        "milliseconds of a step": 1e3 * float(np.median(seconds["adaptive"])),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    numbers = {
        "blocks in a list": measured(given.batch, given.rounds),
        "blocks in a loop": measured(given.batch, given.rounds, scan=True),
    }
    store("adaptive_weight", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

"""Claim: a step that rests one of two equal networks costs at most 1.2 of a program that trains the other alone.

A critic and a generator of equal size; `updates` rests the generator at four steps of five. A step at which it rests is
compared with one of a program that has no generator: same critic, same examples, and the fakes that the critic sees are
made by a frozen generator in both. Measured in alternation, one step at a time. What is left is the way of the resting
network, its moments and its average through the step, a share that falls with the size of the batch.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from measure import ratio, store

from flowjax._pytree import pytree, static
from flowjax.models import MLP
from flowjax.training import compile_step, create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Warmup

BATCHES, DIM, EVERY, ROUNDS = (256, 1024), 32, 5, 60


@pytree
class Draws:
    """Data, noise, and whether the generator learns."""

    x1: jax.Array
    z: jax.Array
    turn: jax.Array


@pytree
class Duel:
    """Least squares; the fakes come from `source`, the generator as it was before the run.

    Attributes:
        source: Makes the fakes that the critic sees, in both programs.
        generator: Whether there is one to train.
    """

    source: object
    generator: bool = static(True)

    def updates(self, step):
        """The generator moves at every fifth step."""
        return {"generator": (step + 1) % EVERY == 0} if self.generator else {}

    def draw(self, key, batch, memory=None, *, step=0):
        """Noise."""
        z = jax.random.normal(key, batch["x1"].shape)
        return Draws(x1=batch["x1"], z=z, turn=(jnp.asarray(step) + 1) % EVERY == 0)

    def loss(self, networks, draws):
        """The critic's loss, and at its turns the generator's."""
        critic = networks["critic"] if self.generator else networks
        t = jnp.zeros(len(draws.z))
        fake = self.source(draws.z, t)
        loss = ((critic(draws.x1, t) - 1) ** 2 + critic(fake, t) ** 2).mean(1)
        if not self.generator:
            return loss, {}

        def play():
            # The generator must not move the critic, which would learn to praise.
            return ((jax.lax.stop_gradient(critic)(networks["generator"](draws.z, t), t) - 1) ** 2).mean(1)

        # Without `checkpoint` a resting step would fill what the backward pass of a turn needs with zeros.
        return loss + jax.lax.cond(draws.turn, jax.checkpoint(play), lambda: jnp.zeros_like(loss)), {}


def measured(size):
    """Ratios for batches of this size."""
    mesh, key = make_mesh(), jax.random.key(1)
    batch = put_batch({"x1": np.random.default_rng(0).normal(size=(size, DIM)).astype(np.float32)}, mesh)
    make = lambda seed: MLP(DIM, width=512, depth=3, rngs=nnx.Rngs(seed))  # noqa: E731
    programs, held = {}, {}
    for name, labels in {"both": ("critic", "generator"), "critic": ("network",)}.items():
        objective = Duel(source=make(2), generator=len(labels) == 2)
        optimizers = {label: optax.adam(1e-4) for label in labels}
        laws = {"average": (Warmup(decay=0.99), labels)}
        builds = {label: lambda i=i: make(i) for i, label in enumerate(labels)}
        state = create_state(builds, optimizers, mesh, averages=laws)
        program = compile_step(make_step(optimizers, laws), state, objective, batch, key)
        held[name], programs[name] = state, (program, objective)

    def step(name):
        program, objective = programs[name]
        held[name], metrics = program(held[name], objective, batch, key)
        return metrics["loss"]

    def timed(name):
        began = time.perf_counter()
        jax.block_until_ready(step(name))
        return time.perf_counter() - began

    # Not `alternate`: which of the steps are turns of the generator is part of what is measured.
    seconds = {"resting": [], "alone": [], "turn": [], "alone beside a turn": []}
    for done in range(2 * EVERY + ROUNDS):
        turn = (done + 1) % EVERY == 0
        found = {
            "turn" if turn else "resting": timed("both"),
            "alone beside a turn" if turn else "alone": timed("critic"),
        }
        if done >= 2 * EVERY:
            for name, value in found.items():
                seconds[name].append(value)
    return {
        "resting step / program without the generator": ratio(seconds, "resting", "alone"),
        "step with its turn / program without the generator": ratio(seconds, "turn", "alone beside a turn"),
        "milliseconds of a resting step": 1e3 * float(np.median(seconds["resting"])),
        "parameters of each network": sum(leaf.size for leaf in jax.tree.leaves(make(0))),
    }


def main():
    numbers = {f"batch {size}": measured(size) for size in BATCHES}
    store("alternating_step", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

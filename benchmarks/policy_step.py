"""Claim: a policy costs a part of a network call, its training what its calls cost, and what rests in DMD2 is free.

The network of the digits (`configs/digits.py`) in batches of 64 and 200, on random weights: following a policy of 16
components in closed form against a call of the network that answers with it, and the same for SiT-S/2 on two latents of
32 x 32 x 4; the gradient of a segment of
`PolicyDistillation` with M = 4 states against that of the student's network and four calls of the teacher; the gradient
of a step of `DistributionMatching` in which the student rests against a call of the student and the gradient of the
fake network, and one in which it moves against the same with the gradient of the student, one more call of each (the
recomputation of the sample, and the comparison) and one of the teacher.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from measure import alternate, ratio, store

import flowjax as fj
from flowjax._cli import load_config
from flowjax.policies import Momentum

PATH = fj.paths.Linear()


def network(seed, size=None, **changes):
    """The network of the digits, or one of a published size on latents, with weights that are not zero."""
    if size is None:
        built = fj.models.DiT(**(load_config("digits").network.options.to_dict() | changes), rngs=nnx.Rngs(seed))
    else:
        built = fj.models.DiT.preset(size, (32, 32, 4), num_classes=1000, **changes, rngs=nnx.Rngs(seed))
    keys = iter(jax.random.split(jax.random.key(seed), 999))
    return jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(next(keys), leaf.shape), built)


def inputs(size, shape=(8, 8, 1)):
    """States, times and labels."""
    x = jax.random.normal(jax.random.key(0), (size, *shape))
    return x, jnp.full(size, 0.3), jnp.arange(size, dtype=jnp.int32) % 10


def integration(head, student, x, t, cond):
    """Following a policy over a step, and the call that answers with it; ten in a loop, as a sampler makes them."""
    answer = student(x, t, cond)
    many = lambda one: jax.jit(lambda x, *given: jax.lax.fori_loop(0, 10, lambda _, x: one(x, *given), x))  # noqa: E731
    # Numbers that depend on x, or the loop would compute them once.
    follow = many(lambda x, answer: head.policy(answer + x[..., :1], t, x).rollout(x, t, t + 0.5))
    call = many(lambda x, student: x + 0.1 * student(x, t, cond)[..., : x.shape[-1]])
    runs = {"policy": lambda: follow(x, answer), "call": lambda: call(x, student)}
    return ratio(alternate(runs, rounds=10), "policy", "call")


def gradient(loss):
    """The compiled gradient of the mean of a loss."""
    return jax.jit(jax.grad(lambda network, *more: jnp.mean(loss(network, *more))))


def segment(head, student, teacher):
    """A segment of policy distillation over the calls that it is made of."""
    x, t, cond = inputs(64)
    objective = fj.objectives.PolicyDistillation(teacher=fj.Flow(teacher, path=PATH), policy=head, segments=1)
    draws = objective.draw(jax.random.key(1), {"x1": x, "cond": cond}, step=500)
    whole = jax.jit(jax.grad(lambda network, objective, draws: objective.loss(network, draws)[0].mean()))
    own, ask = gradient(lambda network: network(x, t, cond)), jax.jit(lambda network: network(x, t, cond))
    calls = lambda: (own(student), [ask(teacher) for _ in range(objective.states)])  # noqa: E731
    return ratio(alternate({"whole": lambda: whole(student, objective, draws), "calls": calls}), "whole", "calls")


def matching(student, teacher, fake):
    """Steps in which the student rests and moves over the calls that they are made of."""
    x, t, cond = inputs(64)
    objective = fj.objectives.DistributionMatching(teacher=fj.Flow(teacher, path=PATH))
    batch = {"x1": x, "cond": cond}
    whole = jax.jit(jax.grad(lambda networks, objective, draws: objective.loss(networks, draws)[0].mean()))
    draws = {name: objective.draw(jax.random.key(1), batch, step=step) for name, step in (("rests", 0), ("moves", 4))}
    own, networks = gradient(lambda network: network(x, t, cond)), {"student": student, "fake": fake}
    ask = jax.jit(lambda network: network(x, t, cond))
    seconds = alternate(
        {
            "rests": lambda: whole(networks, objective, draws["rests"]),
            "moves": lambda: whole(networks, objective, draws["moves"]),
            "calls at rest": lambda: (ask(student), own(fake)),
            "calls": lambda: (own(student), own(fake), *map(ask, (student, fake, teacher))),
        }
    )
    return {
        "a step at rest / its calls": ratio(seconds, "rests", "calls at rest"),
        "a step that moves / its calls": ratio(seconds, "moves", "calls"),
        "a step at rest / one that moves": ratio(seconds, "rests", "moves"),
    }


def main():
    head = Momentum(components=16)
    wide, teacher = network(0, out_channels=head.channels(1)), network(1)
    large = network(0, "S/2", out_channels=head.channels(4))
    numbers = {
        "following a policy / network call": integration(head, wide, *inputs(200)),
        "following a policy / network call, SiT-S/2": integration(head, large, *inputs(2, (32, 32, 4))),
        "a segment / a student's gradient and M teacher calls": segment(head, wide, teacher),
        **matching(network(2), teacher, network(3)),
    }
    store("policy_step", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

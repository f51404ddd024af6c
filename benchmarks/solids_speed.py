"""Claim: distillation without a fake network, masks and rendering cost what they compute.

Velocity distillation (`VelocityDistillation`) against distribution matching with a fake network
(`DistributionMatching`, a step in which the student moves) on the transformer of `configs/solids.py` for the first
stage, and the bytes of networks and optimiser of both; the transformer of padded sets with masks against the same
with none, 160 blocks of 32 bodies; rays of the renderer, compiled, against a loop over rays in NumPy, 32 x 32 pixels
and 64 parts of each on a grid of 24^3.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from measure import alternate, ratio, store

import flowjax as fj
from flowjax.geometry import rendering, solids
from flowjax.models.attention import attend

PATH = fj.paths.Linear()


def filled(network, seed):
    """The network with weights that are not zero."""
    keys = iter(jax.random.split(jax.random.key(seed), 999))
    return jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(next(keys), leaf.shape), network)


def size_of(tree):
    """Bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def distillation():
    """Gradients of a step with and without a fake network, and the bytes that both keep."""
    student, teacher, fake = (
        filled(solids.VoxelDiT((4, 4, 4, 8), width=96, depth=4, rngs=nnx.Rngs(seed)), seed) for seed in range(3)
    )
    batch = {
        "x1": jax.random.normal(jax.random.key(0), (16, 4, 4, 4, 8)),
        "cond": {"image": jnp.zeros((16, 32, 32, 3))},
    }
    flow = fj.Flow(teacher, path=PATH)
    own = fj.objectives.VelocityDistillation(path=PATH, teacher=flow, matching=0.0)
    other = fj.objectives.DistributionMatching(teacher=flow)
    gradient = jax.jit(jax.grad(lambda networks, objective, draws: objective.loss(networks, draws)[0].mean()))
    draws = own.draw(jax.random.key(1), batch), other.draw(jax.random.key(1), batch, step=4)
    both = {"student": student, "fake": fake}
    seconds = alternate(
        {"own": lambda: gradient(student, own, draws[0]), "fake": lambda: gradient(both, other, draws[1])}, rounds=10
    )
    kept = [size_of((n, optax.adam(1e-3).init(n))) for n in (student, both)]
    return {
        "velocity distillation / distribution matching, time of a step": ratio(seconds, "own", "fake"),
        "velocity distillation / distribution matching, bytes of networks and optimiser": kept[0] / kept[1],
    }


def masks():
    """Attention with a mask against attention without."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 32, 160, 4, 16))
    mask = jnp.arange(160) < jnp.linspace(40, 160, 32)[:, None]
    dense, masked = (jax.jit(lambda q, k, v, mask: attend(q, k, v, "xla", mask)) for _ in range(2))
    seconds = alternate({"dense": lambda: dense(q, k, v, None), "masked": lambda: masked(q, k, v, mask)})
    return {"attention with a mask / without": ratio(seconds, "masked", "dense")}


def loop(grid, camera, steps):
    """Opacities, ray by ray."""
    origins, directions = map(np.asarray, camera.rays())
    side, found = len(grid), np.zeros(origins.shape[:2])
    for index in np.ndindex(found.shape):
        origin, direction = origins[index], directions[index]
        ends = np.sort([(-1 - origin) / direction, (1 - origin) / direction], axis=0)
        near, far = max(ends[0].max(), 0), ends[1].min()
        if far <= near:
            continue
        points = origin + (near + (far - near) * (np.arange(steps)[:, None] + 0.5) / steps) * direction
        at = np.clip((points + 1) * side / 2 - 0.5, 0, side - 1)
        low = np.minimum(at.astype(int), side - 2)
        part = at - low
        value = 0
        for corner in np.ndindex(2, 2, 2):
            weight = np.where(np.array(corner) == 1, part, 1 - part).prod(1)
            value = value + weight * grid[tuple((low + corner).T)]
        found[index] = -np.expm1(-value.sum() * (far - near) / steps)
    return found


def rays():
    """The renderer, all of what it gives, against the loop, which gives opacity alone."""
    grid, camera = np.random.default_rng(0).uniform(0, 3, (24, 24, 24)).astype(np.float32), solids.camera(32)
    see = jax.jit(lambda grid: rendering.render(grid, camera))
    np.testing.assert_allclose(see(grid).opacity, loop(grid, camera, 64), atol=1e-3)
    seconds = alternate({"compiled": lambda: see(grid), "loop": lambda: loop(grid, camera, 64)}, rounds=5)
    return {
        "a loop over rays / compiled": ratio(seconds, "loop", "compiled"),
        "rays per second": float(32 * 32 / np.median(seconds["compiled"])),
    }


def main():
    store("solids_speed", __doc__.splitlines()[0].removeprefix("Claim: "), distillation() | masks() | rays())


if __name__ == "__main__":
    main()

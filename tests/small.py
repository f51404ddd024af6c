"""A small trained flow of digits for tests of what stands on one."""

import jax
from flax import nnx

import flowjax as fj
from flowjax import data
from flowjax.recipe import Request, export_run, load_run
from flowjax.recipe.pairs import draw_pairs

DIT = {"image_shape": (8, 8, 1), "patch": 4, "width": 8, "depth": 1, "heads": 1, "num_classes": 10}


def recipe(**changes):
    source = data.digits()
    options = dict(
        network={"name": "dit", "options": DIT},
        path={"name": "linear", "options": {}},
        prediction="velocity",
        data={"name": "digits", "options": {}},
        shape=(8, 8, 1),
        shift=source.shift,
        scale=source.scale,
        low=source.low,
        high=source.high,
        num_classes=10,
        solver={"name": "euler", "options": {}},
        steps=2,
        guidance=1.5,
    )
    return fj.Recipe(**(options | changes))


def network(recipe, seed=0):
    """One whose answers are neither zero nor equal for all conditions."""
    new = recipe.build_network(nnx.Rngs(seed))
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(new))))
    return jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape, leaf.dtype), new)


def write(folder, seed=0, **changes):
    """A folder with such a flow; its recipe."""
    made = recipe(**changes)
    export_run({"network": network(made, seed)}, made, folder)
    return made


def write_pairs(folder, num=8):
    """Pairs that this flow draws, in its folder."""
    networks, made = load_run(folder)
    assert list(draw_pairs(made, networks, Request(num=num, batch=8), folder / "pairs"))[-1] == (num, num)

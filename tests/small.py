"""A small flow of digits, and an encoder of them, for tests of what stands on one."""

import jax
from flax import nnx

import flowjax as fj
from flowjax import data
from flowjax.recipe import RegressionRecipe, Request, export_run, load_run
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


VIT = {"image_shape": (8, 8, 1), "patch": 4, "width": 16, "depth": 2, "heads": 2, "outputs": 10}


def write_encoder(folder, seed=0, network=None, **changes):
    """A folder with a classifier of digits, a vision transformer unless another network is given; its recipe."""
    source = data.digits()
    options = dict(
        network=network or {"name": "vit", "options": VIT},
        data={"name": "digits", "options": {}},
        shape=(8, 8, 1),
        num_classes=10,
        answers="classes",
        answer=(10,),
        held_out=0.1,
        **{name: getattr(source, name) for name in ("shift", "scale", "low", "high")},
    )
    made = RegressionRecipe(**(options | changes))
    export_run({"network": made.build_network(nnx.Rngs(seed))}, made, folder)
    return made

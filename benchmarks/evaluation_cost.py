"""Claim: measuring 10,000 samples costs less than generating them.

The network, solver, steps and guidance of the recipe `digits` (its weights do not matter for the time), and the data
of that recipe to compare with. Sampling is timed for 400 samples, two full blocks, and multiplied.
"""

import jax
import numpy as np
from flax import nnx
from measure import alternate, ratio, store

from flowjax import data, evaluation
from flowjax._cli import load_config
from flowjax.tasks import make_task
from flowjax.training import make_mesh

ROUNDS, NUM, SAMPLED = 3, 10_000, 400


def main():
    config, source = load_config("digits"), data.digits()
    recipe = make_task(config, source, make_mesh(), jax.random.key(1)).recipe
    field = recipe.field(recipe.flow(recipe.build_network(nnx.Rngs(0))))
    cond, rng = recipe.balanced(NUM), np.random.default_rng(0)
    classifier = evaluation.default_extractor(source)
    x = source.x[rng.choice(len(source.x), NUM)] + rng.normal(size=(NUM, 8, 8, 1)).astype(np.float32)

    def sample():
        return recipe.generate(field, SAMPLED, key=jax.random.key(0), cond=cond[:SAMPLED], batch=200).x

    seconds = alternate(
        {
            "sampling": sample,
            "training of the extractor": lambda: evaluation.default_extractor(source).accuracy,
            "sample_report": lambda: evaluation.sample_report(classifier, x, source.x),
            "class_report": lambda: evaluation.class_report(classifier, x, cond, source.x, source.cond),
        },
        ROUNDS,
    )
    seconds["sampling"] = [value * NUM / SAMPLED for value in seconds["sampling"]]
    store(
        "evaluation_cost",
        __doc__.splitlines()[0],
        {
            "samples": NUM,
            "real examples": len(source.x),
            "sampler": f"{recipe.solver['name']}, {recipe.steps} steps, guidance {recipe.guidance}",
            "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
            "against sampling": {name: ratio(seconds, name, "sampling") for name in seconds if name != "sampling"},
        },
    )


if __name__ == "__main__":
    main()

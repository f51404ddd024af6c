"""Claim: at equal evaluations and in many steps searches beat best-of-N, RBF first of those on the path of its paper.

    python benchmarks/search.py mixture
    python benchmarks/search.py mnist

`mixture`: eight modes on a circle with exact velocities, the reward is the log density of one of them up to a constant;
500 evaluations for each of 64 results, 10 and 40 steps, three seeds. `mnist`: the flow of `benchmarks/models/mnist`
without condition and guidance, the reward is the log-probability of the digit 8 by a small network; one trained from
another seed on other images judges the results. 100 evaluations for each of 8 results, three seeds; MNIST is read from
a file `mnist.npz` in the folder this is started from. Parts that are not named keep their numbers.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from measure import RESULTS, store

import flowjax as fj
from flowjax import data
from flowjax.recipe import Request, load_run

SEEDS, MODEL = (0, 1, 2), Path(__file__).parent / "models" / "mnist"
DIGIT = 8


def summary(rewards, held_out=None, evaluations=0):
    """Of rewards (seeds, results)."""
    found = {
        "mean reward": float(np.mean(rewards)),
        "standard error": float(np.std(rewards) / np.sqrt(np.size(rewards))),
        "median reward": float(np.median(rewards)),
        "mean reward of each seed": [float(np.mean(rows)) for rows in rewards],
        "evaluations": int(evaluations),
    }
    return found if held_out is None else found | held_out


def mixture(num=64, budget=500):
    """Rewards of the results of every search."""
    angles = np.arange(8) * np.pi / 4
    means = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    law = fj.oracles.Mixture(weights=np.ones(8), means=means, stds=0.2, path=fj.paths.Linear())
    flow, goal = fj.Flow(law.network(), path=law.path), jnp.asarray(means[0], jnp.float32)

    def reward(x):
        return -jnp.sum((x - goal) ** 2, axis=1) / (2 * 0.2**2)

    found = {}
    for steps in (10, 40):
        options = {"budget": budget, "steps": steps}
        searches = {
            "RBF": fj.search.RBF(**options),
            "SVDD": fj.search.SVDD(**options),
            "SVDD, own path": fj.search.SVDD(**options, path=None),
            "CoDe": fj.search.CoDe(**options),
            "SMC": fj.search.SMC(**options),
            "best of N": fj.search.BestOfN(**options),
        } | ({"SoP": fj.search.SoP(budget=budget)} if steps == 10 else {})
        for name, search in searches.items():
            runs = [fj.search.find(flow, search, reward, (num, 2), key=jax.random.key(seed)) for seed in SEEDS]
            rewards = np.array([run.reward for run in runs])
            found[f"{name}, {steps} steps"] = summary(rewards, evaluations=runs[0].evaluations)
            print(name, steps, found[f"{name}, {steps} steps"], flush=True)
    return found


def classifier(x, labels, seed):
    """Logits of a small network, trained on half of the images."""
    rngs, rng = nnx.Rngs(seed), np.random.default_rng(seed)
    half = rng.permutation(len(x))[: len(x) // 2]
    network = nnx.Sequential(nnx.Linear(784, 128, rngs=rngs), jax.nn.gelu, nnx.Linear(128, 10, rngs=rngs))
    graph, weights = nnx.split(network)
    optimizer = optax.adamw(1e-3, weight_decay=1e-2)

    def logits(weights, x):
        return nnx.merge(graph, weights)(x.reshape(len(x), -1) / 255)

    @jax.jit
    def step(weights, state, x, labels):
        loss = lambda w: optax.softmax_cross_entropy_with_integer_labels(logits(w, x), labels).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    state = optimizer.init(weights)
    for _ in range(1500):
        rows = half[rng.integers(len(half), size=64)]
        weights, state = step(weights, state, x[rows], labels[rows])
    others = np.setdiff1d(np.arange(len(x)), half)
    print("accuracy on other images", np.mean(np.argmax(logits(weights, x[others]), 1) == labels[others]), flush=True)
    return jax.tree_util.Partial(lambda weights, x: jax.nn.log_softmax(logits(weights, x))[:, DIGIT], weights)


def mnist(num=8, budget=100):
    """Rewards and held-out rewards of the results."""
    networks, recipe = load_run(MODEL)
    source = data.load(recipe.data["name"], **recipe.data["options"])
    x = np.asarray(source.x, np.float32)
    judges = [fj.search.Reward(classifier(x, np.asarray(source.cond), seed)) for seed in (0, 1)]
    few = f"budget={budget}, searches=1, finish=5"
    searches = {
        "RBF": f"rbf({few}, candidates=10)",
        "SVDD": f"svdd({few})",
        "SVDD, own path": f"svdd({few}, path=None, times=uniform)",
        "best of N": f"best_of_n(budget={budget})",
    }
    found = {}
    for name, search in searches.items():
        rewards, others = [], []
        for seed in SEEDS:
            more = {"reward": {"one": judges[0]}, "held_out": {"other": judges[1]}}
            request = Request(num=num, seed=seed, guidance=1.0, search=search, batch=budget, **more)
            cond = np.full(num, recipe.null, np.int32)
            samples = recipe.sample(networks, request, cond=cond)
            rewards.append(samples.reward)
            others.append(samples.rewards["other"])
        others = np.array(others)
        held_out = {
            "mean held-out reward": float(np.mean(others)),
            "share that the other network calls an 8": float(np.mean(others > np.log(0.5))),
        }
        found[name] = summary(np.array(rewards), held_out, samples.evaluations)
        print(name, found[name], flush=True)
    return found


def picture(known):
    """Mean rewards, with two standard errors."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    for axes, (part, runs) in zip(figure.subplots(1, len(known), squeeze=False)[0], known.items(), strict=True):
        rewards = [run["mean reward"] for run in runs.values()]
        axes.barh(list(runs), rewards, xerr=[2 * run["standard error"] for run in runs.values()], color="tab:blue")
        for place, run in enumerate(runs.values()):
            if "mean held-out reward" in run:
                label = None if place else "held out"
                axes.scatter(run["mean held-out reward"], place, color="tab:red", zorder=3, label=label)
        axes.invert_yaxis()
        axes.set_title(part)
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_xlabel("mean reward")
    if "mnist" in known:
        figure.legend(loc="outside lower right")
    figure.savefig(RESULTS.parent.parent / "docs" / "figures" / "search.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("mixture", "mnist"))
    args = parser.parse_args()
    path = RESULTS / f"search-{jax.default_backend()}.json"
    known = json.loads(path.read_text())["numbers"] if path.exists() else {}
    for part in args.parts:
        known[part] = {"mixture": mixture, "mnist": mnist}[part]()
        store("search", __doc__.splitlines()[0].removeprefix("Claim: "), known)
        picture(known)


if __name__ == "__main__":
    main()

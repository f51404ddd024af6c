"""Claim: a guided pair costs two calls, a closed interval one, and SADA nothing but the calls that it makes.

    python benchmarks/guidance_speed.py

The flow of `benchmarks/models/mnist` in batches of 32, in alternation: an evaluation with guidance over one without,
and of the network of `configs/digits.py` in batches of four sizes, where one call of twice as many rows is the floor of
a pair; a run whose interval is closed over a run without guidance; a run under SADA that may skip nothing over the
plain one; a search that evaluates several proposals at once over one that asks for each by itself, per evaluation.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from measure import alternate, ratio, store

import flowjax as fj
from flowjax import _cli

BATCH, STEPS, ROUNDS = 32, 20, 11
CFG = fj.guidance.CFG(scale=2.0)


def main():
    flow, recipe = fj.load(Path(__file__).parent / "models" / "mnist")
    x, cond = fj.noise(jax.random.key(0), (BATCH, *recipe.shape)), jnp.arange(BATCH) % 10
    euler, times = fj.solvers.Euler(), fj.times.uniform(STEPS, 1e-3, 0.9)
    evaluate = jax.jit(lambda field, x: field.velocity(0.5, x, cond))
    closed = fj.guide(flow, fj.guidance.Interval(rule=CFG, start=0.95))
    fields = {
        "plain": flow,
        "closed": closed,
        "SADA": fj.fields.SADA(flow, acc_range=(10, 10), lagrange_term=0),
    }
    calls = {"one": lambda: evaluate(flow, x), "pair": lambda: evaluate(fj.guide(flow, CFG), x)}
    runs = {name: lambda field=field: fj.solve(field, euler, x, times, cond).x for name, field in fields.items()}
    counted = {name: int(fj.solve(field, euler, x, times, cond).network_calls) for name, field in fields.items()}
    spec = _cli.load_config("digits").network.to_dict()
    small = fj.Flow(fj.build("network", spec, rngs=nnx.Rngs(0)), path=flow.path, null=10)
    ask = jax.jit(lambda field, x: field.velocity(0.5, x, jnp.arange(len(x)) % 10))
    digits = {}
    for size in (32, 64, 128, 256):
        asked = {"one": (small, 1), "pair": (fj.guide(small, CFG), 1), "twice": (small, 2)}
        pictures = fj.noise(jax.random.key(2), (2 * size, 8, 8, 1))
        all_of = {name: lambda field=field, x=pictures[: n * size]: ask(field, x) for name, (field, n) in asked.items()}
        seconds = alternate(all_of, 5 * ROUNDS)
        digits[f"digits, {size}: a guided evaluation / one without"] = ratio(seconds, "pair", "one")
        digits[f"digits, {size}: a guided evaluation / one of {2 * size}"] = ratio(seconds, "pair", "twice")
    pair, run = alternate(calls, 5 * ROUNDS), alternate(runs, 4 * ROUNDS)

    def reward(x):
        return x.reshape(len(x), -1).mean(axis=1)

    options = dict(budget=60, steps=5, candidates=4, searches=1, times="uniform", path=None)
    searches = {f"{n} at once": fj.search.RBF(at_once=n, **options) for n in (1, 4)}
    found = {
        name: lambda search=search: fj.search.find(
            flow, search, reward, (1, *recipe.shape), key=jax.random.key(1), cond=cond[:1]
        )
        for name, search in searches.items()
    }
    spent = {name: int(search().evaluations) for name, search in found.items()}
    seconds = alternate({name: lambda search=search: search().x for name, search in found.items()}, 5)
    numbers = {
        "a guided evaluation / one without": ratio(pair, "pair", "one"),
        **digits,
        "a run with a closed interval / one without guidance": ratio(run, "closed", "plain"),
        "network calls of these": [counted["closed"], counted["plain"]],
        "a run under SADA that skips nothing / the plain one": ratio(run, "SADA", "plain"),
        "an evaluation of a search of 4 at once / of one by one": ratio(seconds, "4 at once", "1 at once")
        * spent["1 at once"]
        / spent["4 at once"],
    }
    store("guidance_speed", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

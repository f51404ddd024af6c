"""Claim: `fj.solve` costs what a hand-written jitted loop costs, on the digits DiT and almost on a trivial network.

Euler and DPM-Solver++(2M), 20 steps. Limits: run time 1.05 (Euler, DiT), 1.03 (2M, DiT), 1.1 (2M, trivial network),
compile time 1.5 (2M, DiT). Also microseconds per step on the trivial network, and that compile time and memory do not
grow with steps.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import alternate, ratio, store

import flowjax as fj
from flowjax._cli import load_config

STEPS, BATCH = 20, 64
PATH = fj.paths.Linear()
GRID = fj.times.uniform(STEPS, end=1 - 1e-3)


def euler_by_hand(network, x, cond):
    """The loop somebody would write."""
    t = jnp.asarray(GRID, jnp.float32)

    def body(x, i):
        return x + (t[i + 1] - t[i]) * network(x, jnp.broadcast_to(t[i], x.shape[:1]), cond), None

    return jax.lax.scan(body, x, jnp.arange(STEPS))[0]


def multistep_by_hand(network, x, cond):
    """DPM-Solver++(2M) with precomputed coefficients and one stored output."""
    lam = PATH.lam(GRID[1:-1])
    h = np.diff(lam)
    ratio = np.concatenate([[0.0, 0.0], 0.5 * h[1:] / h[:-1], [0.5 * (PATH.lam(GRID[-1]) - lam[-1]) / h[-1]]])
    decay = PATH.sigma(GRID[1:]) / PATH.sigma(GRID[:-1])
    gain = PATH.alpha(GRID[1:]) - decay * PATH.alpha(GRID[:-1])
    rows = tuple(jnp.asarray(a, jnp.float32) for a in (GRID[:-1], decay, gain, ratio))

    def body(carry, row):
        x, old = carry
        t, a, b, r = row
        m = x + (1 - t) * network(x, jnp.broadcast_to(t, x.shape[:1]), cond)
        return (a * x + b * ((1 + r) * m - r * old), m), None

    return jax.lax.scan(body, (x, jnp.zeros_like(x)), rows)[0][0]


def compile_seconds(function, *args):
    """Trace and compile."""
    began = time.perf_counter()
    jax.jit(function).lower(*args).compile()
    return time.perf_counter() - began


def main():
    options = load_config("digits").network.options.to_dict()
    dit = fj.models.DiT(**options, rngs=nnx.Rngs(0))
    x = fj.noise(jax.random.key(0), (BATCH, 8, 8, 1))
    cond = jnp.arange(BATCH, dtype=jnp.int32) % 10
    trivial = lambda x, t, cond=None: -x  # noqa: E731 - a network of no cost
    numbers = {}
    for name, network, label, rounds in (("dit", dit, cond, 15), ("trivial", trivial, None, 300)):
        flow = fj.Flow(network, path=PATH)
        for method, solver, by_hand in (
            ("euler", fj.solvers.Euler(), euler_by_hand),
            ("2m", fj.solvers.DPMSolver(lower_order_final=False), multistep_by_hand),
        ):
            bound = jax.tree.map(jnp.asarray, solver.bind(PATH, GRID))
            hand = jax.jit(lambda x, c, n=network, f=by_hand: f(n, x, c))
            ours = jax.jit(lambda b, x, c, f=flow: fj.solve(f, b, x, cond=c).x)
            np.testing.assert_allclose(ours(bound, x, label), hand(x, label), rtol=1e-3, atol=1e-3)
            seconds = alternate(
                {
                    "hand": lambda hand=hand, label=label: hand(x, label),
                    "solve": lambda ours=ours, bound=bound, label=label: ours(bound, x, label),
                    "call": lambda flow=flow, bound=bound, label=label: fj.solve(flow, bound, x, cond=label).x,
                },
                rounds,
            )
            numbers[f"{name} {method}: solve / hand-written loop"] = ratio(seconds, "solve", "hand")
            numbers[f"{name} {method}: solve called from Python / hand-written loop"] = ratio(seconds, "call", "hand")
            if name == "trivial":
                extra = (np.median(seconds["solve"]) - np.median(seconds["hand"])) / STEPS
                numbers[f"{name} {method}: extra microseconds per step"] = 1e6 * float(extra)
            else:
                jax.clear_caches()
                compiles = [
                    (
                        compile_seconds(lambda b, x, c, f=flow: fj.solve(f, b, x, cond=c).x, bound, x, label),
                        compile_seconds(lambda x, c, n=network, f=by_hand: f(n, x, c), x, label),
                    )
                    for _ in range(3)
                ]
                numbers[f"{name} {method}: compile time / hand-written loop"] = float(
                    np.median([a / b for a, b in compiles])
                )
    flow = fj.Flow(dit, path=PATH)
    for steps in (10, 100):
        bound = jax.tree.map(jnp.asarray, fj.solvers.DPMSolver().bind(PATH, fj.times.uniform(steps)))
        began = time.perf_counter()
        program = jax.jit(lambda b, x, c: fj.solve(flow, b, x, cond=c).x).lower(bound, x, cond).compile()
        numbers[f"dit 2m: seconds to compile {steps} steps"] = time.perf_counter() - began
        numbers[f"dit 2m: temporary megabytes of {steps} steps"] = program.memory_analysis().temp_size_in_bytes / 1e6
    store("solver_overhead", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

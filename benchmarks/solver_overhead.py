"""Claim: `fj.solve` costs what a hand-written jitted loop costs, on the digits DiT and almost on a trivial network.

Euler and DPM-Solver++(2M), 20 steps. Limits: run time 1.05 (Euler, DiT), 1.03 (2M, DiT), 1.1 (2M, trivial network),
compile time 1.5 (2M, DiT). Run times are given with the bound solver as a constant of the program, as the coefficients
of the hand-written loop are, with the bound solver as an argument (new times without compiling), and for both called
from Python with the weights as arguments, where `fj.solve` adds a fixed cost per call. Also against a Python loop that
computes its coefficients step by step and calls the jitted network, as published code does; microseconds per step on
the trivial network; and that compile time and memory do not grow with steps: what the compiled program allocates is
one network call and a few states.
"""

import itertools
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


def multistep_in_python(network, x, cond):
    """DPM-Solver++(2M) as a Python loop around a jitted network, coefficients from the path at each step."""
    times = jnp.asarray(GRID, jnp.float32)
    old, old_lam = None, None
    for s, t in itertools.pairwise(times):
        m = x + (1 - s) * network(x, jnp.broadcast_to(s, x.shape[:1]), cond)
        lam_s, lam_t = PATH.lam(s), PATH.lam(t)
        h = lam_t - lam_s
        estimate = m if old is None else m + 0.5 * h / (lam_s - old_lam) * (m - old)
        x = PATH.sigma(t) / PATH.sigma(s) * x - PATH.alpha(t) * jnp.expm1(-h) * estimate
        old, old_lam = m, lam_s
    return x


def compile_seconds(function, *args):
    """Trace and compile, nothing remembered."""
    jax.clear_caches()
    began = time.perf_counter()
    jax.jit(function).lower(*args).compile()
    return time.perf_counter() - began


def main():
    options = load_config("digits").network.options.to_dict()
    dit = fj.models.DiT(**options, rngs=nnx.Rngs(0))
    x = fj.noise(jax.random.key(0), (BATCH, 8, 8, 1))
    cond = jnp.arange(BATCH, dtype=jnp.int32) % 10
    trivial = jax.tree_util.Partial(lambda x, t, cond=None: -x)  # a network of no cost
    numbers = {}
    for name, network, label, rounds in (("dit", dit, cond, 40), ("trivial", trivial, None, 2000)):
        flow = fj.Flow(network, path=PATH)
        for method, solver, by_hand in (
            ("euler", fj.solvers.Euler(), euler_by_hand),
            ("2m", fj.solvers.DPMSolver(lower_order_final=False), multistep_by_hand),
        ):
            bound = jax.tree.map(jnp.asarray, solver.bind(PATH, GRID))
            hand = jax.jit(lambda x, c, n=network, f=by_hand: f(n, x, c))
            constant = jax.jit(lambda x, c, b=bound, f=flow: fj.solve(f, b, x, cond=c).x)
            argument = jax.jit(lambda b, x, c, f=flow: fj.solve(f, b, x, cond=c).x)
            np.testing.assert_allclose(argument(bound, x, label), hand(x, label), rtol=1e-3, atol=1e-3)
            called = jax.jit(lambda n, x, c, f=by_hand: f(n, x, c))
            functions = {
                "hand": lambda hand=hand, label=label: hand(x, label),
                "constant": lambda constant=constant, label=label: constant(x, label),
                "argument": lambda argument=argument, bound=bound, label=label: argument(bound, x, label),
                "hand called": lambda called=called, n=network, label=label: called(n, x, label),
                "python": lambda flow=flow, s=solver, label=label: fj.solve(flow, s, x, GRID, cond=label).x,
            }
            seconds = alternate(functions, rounds)
            for what, ours, theirs in (
                ("solver a constant", "constant", "hand"),
                ("solver an argument", "argument", "hand"),
                ("called from Python with the weights", "python", "hand called"),
            ):
                numbers[f"{name} {method}: solve, {what} / hand-written loop"] = ratio(seconds, ours, theirs)
            if name == "trivial":
                microseconds = {key: 1e6 * float(np.median(values)) for key, values in seconds.items()}
                extra = microseconds["python"] - microseconds["hand called"]
                numbers[f"{name} {method}: microseconds per step, hand-written"] = microseconds["hand"] / STEPS
                numbers[f"{name} {method}: microseconds per step, solve"] = microseconds["constant"] / STEPS
                numbers[f"{name} {method}: extra microseconds per call from Python"] = extra
        jitted = jax.jit(network)
        loop = lambda jitted=jitted, label=label: multistep_in_python(jitted, x, label)  # noqa: E731
        np.testing.assert_allclose(loop(), hand(x, label), rtol=1e-3, atol=1e-3)
        seconds = alternate({"loop": loop, "solve": functions["python"]}, 10)
        numbers[f"{name} 2m: Python loop with a jitted network / solve called from Python"] = ratio(
            seconds, "loop", "solve"
        )
        numbers[f"{name} 2m: microseconds per step, Python loop"] = 1e6 * float(np.median(seconds["loop"])) / STEPS

    flow = fj.Flow(dit, path=PATH)
    ours = lambda f, b, x, c: fj.solve(f, b, x, cond=c).x  # noqa: E731
    bounds = {
        steps: jax.tree.map(
            jnp.asarray, fj.solvers.DPMSolver(lower_order_final=False).bind(PATH, fj.times.uniform(steps, end=1 - 1e-3))
        )
        for steps in (10, STEPS, 100)
    }
    compiled = {"hand": [], 10: [], STEPS: [], 100: []}
    for _ in range(5):
        compiled["hand"].append(compile_seconds(multistep_by_hand, dit, x, cond))
        for steps, bound in bounds.items():
            compiled[steps].append(compile_seconds(ours, flow, bound, x, cond))
    numbers["dit 2m: compile time / hand-written loop"] = ratio(compiled, STEPS, "hand")
    for steps in (10, 100):
        numbers[f"dit 2m: seconds to compile {steps} steps"] = float(np.median(compiled[steps]))

    def temporary(function, *args):
        return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes / 1e6

    numbers["dit: megabytes of the weights"] = sum(leaf.nbytes for leaf in jax.tree.leaves(dit)) / 1e6
    numbers["dit 2m: megabytes of the registers"] = bounds[10].pattern.registers * x.nbytes / 1e6
    once = temporary(lambda n, x, t, c: n(x, t, c), dit, x, jnp.zeros(BATCH), cond)
    numbers["dit: temporary megabytes of one network call"] = once
    for steps in (10, 100):
        used = temporary(ours, flow, bounds[steps], x, cond)
        numbers[f"dit 2m: temporary megabytes of {steps} steps"] = used
    store("solver_overhead", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()

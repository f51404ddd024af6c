"""Claim: a step's products run near the speed of one large product, and samplers cost their network calls.

    python benchmarks/scale.py utilisation latency start
    JAX_NUM_CPU_DEVICES=8 python benchmarks/scale.py sampler

`utilisation`: training steps of SiT-S/2 and SiT-B/2, products of the model over the time that one large product of the
same size takes, in alternation, and memory beside that of weights, average, optimiser and gradient. `latency`: one
Euler step of SiT-XL/2 with random weights for 1, 8 and 64 images, against the bare network call. `sampler`: a flow on
all devices against N calls of its network there. `start`: seconds from the command line to samples, and to two steps of
training, with an empty and a filled compilation cache, and by a program of --compile_only. Parts that are not named
keep their numbers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import RESULTS, alternate, ratio, store

import flowjax as fj
from flowjax._cli import load_config
from flowjax.models import DiT
from flowjax.planning import flops
from flowjax.tasks import make_program
from flowjax.training import batch_sharding, compile_step, make_mesh

CPU = jax.default_backend() == "cpu"
TYPE = "float32" if CPU else "bfloat16"


def product(side=2048):
    """A large product, and its FLOPs."""
    a = jnp.ones((side, side), TYPE)
    multiply = jax.jit(lambda a: a @ a)
    return lambda: multiply(a), 2 * side**3


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def utilisation():
    """Model FLOPs over those of a large product in the same time."""
    numbers = {}
    sizes = {"S/2": 8, "B/2": 4} if CPU else {"S/2": 256, "B/2": 256, "XL/2": 128}
    for size, batch in sizes.items():
        config = load_config(f"sit:{size}")
        config.train.batch = batch
        config.network.options.update(dtype=TYPE, remat=size == "XL/2" and not CPU)
        program = make_program(config, make_mesh())
        count = flops(program.step, program.shapes, program.objective, program.batch, program.key)
        held = {"state": program.create()}
        compiled = compile_step(program.step, held["state"], program.objective, program.batch, program.key)
        multiply, products = product()

        def step(held=held, compiled=compiled, program=program):
            held["state"], metrics = compiled(held["state"], program.objective, program.batch, program.key)
            return metrics

        seconds = alternate({"step": step, "product": multiply}, rounds=7)
        memory = compiled.memory_analysis()
        state = held["state"]
        parts = nbytes(state.networks) * 2 + nbytes(state.averages) + nbytes(state.optimizer)
        numbers |= {
            f"{size}, batch {batch}: model FLOPs utilisation": count / products / ratio(seconds, "step", "product"),
            f"{size}, batch {batch}: seconds of a step": float(np.median(seconds["step"])),
            f"{size}, batch {batch}: images a second": batch / float(np.median(seconds["step"])),
            f"{size}: memory of the step / weights, gradient, average and optimiser": (
                (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / parts
            ),
        }
        numbers["GFLOP/s of a large product"] = products / float(np.median(seconds["product"])) / 1e9
    return numbers


def latency():
    """Seconds for each image and network call of SiT-XL/2."""
    options = dict(**DiT.size("XL/2"), num_classes=1000, scan=True, dtype=TYPE)
    network = jax.jit(lambda: DiT((32, 32, 4), **options, rngs=nnx.Rngs(0)))()
    flow, bound = (
        fj.Flow(network, path=fj.paths.Linear()),
        fj.solvers.Euler().bind(fj.paths.Linear(), fj.times.uniform(1)),
    )
    bare, numbers = jax.jit(lambda network, x, t, cond: network(x, t, cond)), {}
    for images in (1, 8, 64):
        x = fj.noise(jax.random.key(0), (images, 32, 32, 4))
        cond, t = jnp.arange(images, dtype=jnp.int32), jnp.zeros(images)
        calls = {
            "sampler": lambda x=x, cond=cond: fj.solve(flow, bound, x, cond=cond).x,
            "network": lambda x=x, t=t, cond=cond: bare(network, x, t, cond),
        }
        if images == 64 and CPU:  # minutes each: one call, compiled before
            program = (
                jax.jit(lambda flow, x, cond: fj.solve(flow, bound, x, cond=cond).x).lower(flow, x, cond).compile()
            )
            began = time.perf_counter()
            jax.block_until_ready(program(flow, x, cond))
            seconds = {"sampler": [time.perf_counter() - began]}
        else:
            seconds = alternate(calls, rounds={1: 7, 8: 3, 64: 7}[images])
            name = f"XL/2, {images} images: sampler of one step / network call"
            numbers[name] = ratio(seconds, "sampler", "network")
        each = float(np.median(seconds["sampler"])) / images
        numbers[f"XL/2, {images} images: seconds for an image and a network call"] = each
        if images == 8:
            program = jax.jit(lambda flow, x, cond: fj.solve(flow, bound, x, cond=cond).x)
            memory = program.lower(flow, x, cond).compile().memory_analysis()
            used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            numbers["XL/2, 8 images: memory of the sampler / weights"] = used / nbytes(network)
    return numbers


def sampler():
    """Ten steps on all devices against ten network calls there."""
    mesh, steps = make_mesh(), 10
    options = dict(patch=2, width=128, depth=4, heads=4, num_classes=10, scan=True)
    network = jax.jit(lambda: DiT((16, 16, 4), **options, rngs=nnx.Rngs(0)))()
    network = jax.device_put(network, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    rows = batch_sharding(mesh)
    x = jax.device_put(fj.noise(jax.random.key(0), (8 * mesh.size, 16, 16, 4)), rows)
    cond, t = (jax.device_put(a, rows) for a in (jnp.arange(len(x)) % 10, jnp.full(len(x), 0.5)))
    flow = fj.Flow(network, path=fj.paths.Linear())
    bare = jax.jit(lambda network, x, t, cond: network(x, t, cond))

    def calls():
        return [jax.block_until_ready(bare(network, x, t, cond)) for _ in range(steps)]

    numbers = {}
    for name, solver in (("Euler", fj.solvers.Euler()), ("DPM-Solver++(2M)", fj.solvers.DPMSolver())):
        bound = solver.bind(flow.path, fj.times.uniform(steps))
        seconds = alternate(
            {"sampler": lambda bound=bound: fj.solve(flow, bound, x, cond=cond).x, "calls": calls}, rounds=15
        )
        numbers[f"{name}, {steps} steps on {mesh.size} devices / {steps} network calls"] = ratio(
            seconds, "sampler", "calls"
        )
    return numbers


def start():
    """Seconds of processes with an empty compilation cache, with a filled one, and by a program."""
    run = Path(__file__).parent / "models" / "mnist"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)

        def timed(cache, *arguments):
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            return time.perf_counter() - began

        way = ("--steps=10", "--solver=dpm_solver", "--batch=64")
        sample = ("flowjax.sample", f"--workdir={run}", "--num=64", "--overwrite", f"--out={folder / 'samples.npz'}")
        program = f"--program={folder / 'program'}"
        found = {
            name: [] for name in ("sample, empty", "sample, filled", "sample, program", "train, empty", "train, filled")
        }
        for i in range(3):
            cache, other = folder / f"cache{i}", folder / f"other{i}"
            found["sample, empty"].append(timed(cache, *sample, *way))
            found["sample, filled"].append(timed(cache, *sample, *way))
            if i == 0:
                timed(cache, "flowjax.sample", f"--workdir={run}", *way, "--compile_only", program)
                timed(cache, *sample, program)
                kept = cache
            found["sample, program"].append(timed(kept, *sample, program))
            for name in ("train, empty", "train, filled"):
                workdir = f"--workdir={folder / f'{name}{i}'}"
                found[name].append(timed(other, "flowjax.train", "--config=digits:smoke", workdir))
        return {f"{name}: seconds from the command line": float(np.median(s)) for name, s in found.items()}


PARTS = {"utilisation": utilisation, "latency": latency, "sampler": sampler, "start": start}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    path = RESULTS / f"scale-{jax.default_backend()}.json"
    known = json.loads(path.read_text())["numbers"] if path.exists() else {}
    for part in parser.parse_args().parts:
        if part == "sampler" and jax.device_count() == 1:
            raise SystemExit("several devices are needed: set JAX_NUM_CPU_DEVICES=8 on a CPU")
        known[part] = PARTS[part]()
        store("scale", __doc__.splitlines()[0].removeprefix("Claim: "), known)


if __name__ == "__main__":
    main()

"""Compiles the step and the sampler of a run for a topology, and reads from the programs what they need."""

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowjax.planning.collectives import Collective, collectives
from flowjax.planning.flops import flops
from flowjax.planning.hardware import RESERVED, Topology
from flowjax.solving import solve
from flowjax.tasks import Program
from flowjax.training.mesh import RULES, batch_sharding, check_rows, fill, over, partition, shardings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a program needs of each device, and how fast it can be at best.

    Attributes:
        what: "step" or "sampler".
        topology: Where.
        mesh: Devices along each axis.
        memory: Bytes of a device, by what lies there; "within the program" is what it makes and drops.
        flops: Products and sums of matrix products and convolutions, all devices together.
        model_flops: Those of them that are not recomputed (`remat`).
        moved: Bytes that a device reads and writes in its memory, roughly: arguments, results, and what lies within
            the program once each way; loops that read the same weights again are not counted.
        exchanges: What devices send to each other.
        whole: Logical axes that stay whole on every device, because the mesh does not divide them:
            (axis, length, mesh axis, its devices, arrays).
        compile_seconds: How long this machine took.

    Example:
        >>> from flowjax.planning import parse
        >>> where = {"topology": parse("v5e:2x2"), "mesh": {"data": 4}, "exchanges": (), "whole": ()}
        >>> costs = {"flops": 8e14, "model_flops": 8e14, "moved": 1e9, "compile_seconds": 1.0}
        >>> plan = Plan(what="step", memory={"weights": 2**30}, **costs, **where)
        >>> plan.fits, plan.bound, round(plan.utilisation, 2)
        (True, 'products', 1.0)
    """

    what: str
    topology: Topology
    mesh: dict[str, int]
    memory: dict[str, float]
    flops: float
    model_flops: float
    moved: float
    exchanges: tuple[Collective, ...]
    whole: tuple[tuple[str, int, str, int, int], ...]
    compile_seconds: float

    @property
    def needed(self) -> float:
        """Bytes of a device."""
        return sum(self.memory.values())

    @property
    def room(self) -> float:
        """Bytes of a device that a program can have."""
        return self.topology.chip.memory * (1 - RESERVED)

    @property
    def fits(self) -> bool:
        """Whether a device holds it."""
        return self.needed <= self.room

    @property
    def seconds(self) -> dict[str, float]:
        """What each part of the hardware takes at its full speed."""
        chip = self.topology.chip
        return {
            "products": self.flops / self.topology.count / chip.flops,
            "memory": self.moved / chip.bandwidth,
            "network": sum(one.sent for one in self.exchanges) / chip.network,
        }

    @property
    def bound(self) -> str:
        """The slowest of them."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def utilisation(self) -> float:
        """Model FLOPs over what all devices could do in the time of the slowest part: the best that can be reached."""
        slowest = max(self.seconds.values())
        return self.model_flops / (self.topology.count * self.topology.chip.flops * slowest) if slowest else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        own |= {
            "topology": self.topology.name,
            "exchanges": [dataclasses.asdict(one) | {"sent": one.sent} for one in self.exchanges],
            "whole": [
                dict(zip(("axis", "length", "mesh_axis", "devices", "arrays"), one, strict=True)) for one in self.whole
            ],
        }
        names = ("needed", "room", "fits", "seconds", "bound", "utilisation")
        return own | {name: getattr(self, name) for name in names}


def placed(tree: Any, mesh: Mesh, where: Any = None) -> Any:
    """Shapes of the arrays of a tree, on a mesh: where their logical axes lie, or in a tree of shardings."""
    where = shardings(tree, mesh) if where is None else where

    def of(leaf: Any, sharding: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) if hasattr(leaf, "shape") else leaf

    return jax.tree.map(of, tree, where)


def placed_batch(batch: Any, mesh: Mesh) -> Any:
    """Shapes of the arrays of a batch, split over a mesh.

    Raises:
        ValueError: They cannot be.
    """

    def of(leaf: Any) -> NamedSharding:
        check_rows(leaf.shape[0], mesh)
        return batch_sharding(mesh, leaf.shape)

    return placed(batch, mesh, jax.tree.map(of, batch))


def _bytes(tree: Any) -> float:
    """Of one device."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "sharding")]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _whole(tree: Any, mesh: Mesh) -> tuple[tuple[str, int, str, int, int], ...]:
    """Logical axes that could lie on a mesh axis, and do not, because it does not divide them."""
    found: dict[tuple[str, int, str, int], int] = defaultdict(int)
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Variable)):
        names = node.get_metadata().get("out_sharding") if isinstance(node, nnx.Variable) else None
        shape = getattr(node, "shape", ())
        if names is None or len(names) != len(shape):
            continue
        for name, length, taken in zip(names, shape, partition(names, shape, mesh), strict=True):
            axis = RULES.get(name) if name is not None else None
            if axis is not None and taken is None and mesh.shape[axis] > 1 and length % mesh.shape[axis]:
                found[name, length, axis, mesh.shape[axis]] += 1
    return tuple((*key, count) for key, count in found.items())


def _plan(
    what: str,
    topology: Topology,
    mesh: Mesh,
    lower: Callable[[], Any],
    parts: dict[str, Any],
    counted: tuple[float, float],
    network: Any,
) -> Plan:
    """Compiles and reads."""
    clock = time.perf_counter()
    compiled = lower().compile()
    seconds = time.perf_counter() - clock
    sizes = compiled.memory_analysis()
    memory = {name: _bytes(part) for name, part in parts.items()}
    known = sum(memory.values())
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    # Layouts of the hardware take more room than the numbers.
    memory |= {"padding": max(sizes.argument_size_in_bytes - known, 0.0), "results": results}
    memory |= {"within the program": sizes.temp_size_in_bytes, "the program": sizes.generated_code_size_in_bytes}
    moved = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + 2 * sizes.temp_size_in_bytes
    return Plan(
        what=what,
        topology=topology,
        mesh=dict(mesh.shape),
        memory={name: float(size) for name, size in memory.items() if size},
        flops=counted[0],
        model_flops=counted[1],
        moved=float(moved),
        exchanges=tuple(collectives(compiled.as_text())),
        whole=_whole(network, mesh),
        compile_seconds=seconds,
    )


def plan_step(program: Program, topology: Topology, mesh: Mesh, model_flops: float | None = None) -> Plan:
    """What a training step needs.

    Args:
        program: Of the run, made on a device of this machine.
        topology: Where it is to run.
        mesh: Over its devices.
        model_flops: Without what is recomputed; those of the step unless given.
    """
    state, whole = placed(program.shapes, mesh), NamedSharding(mesh, PartitionSpec())
    objective = placed(program.objective, mesh)
    batch = placed_batch(program.batch, mesh)
    key = placed(program.key, mesh, whole)
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(program.step, donate_argnums=0, out_shardings=(kept, None))
    parts = {
        "weights": state.networks,
        "averages": state.averages,
        "optimiser": state.optimizer,
        "memory of the objective": state.memory,
        "teachers and tables": objective,
        "batch": batch,
    }
    count = flops(program.step, program.shapes, program.objective, program.batch, program.key)
    counted = float(count), float(count if model_flops is None else model_flops)

    def lower() -> Any:
        with over(mesh):
            return step.lower(state, objective, batch, key)

    return _plan("step", topology, mesh, lower, parts, counted, state.networks)


def plan_sampler(program: Program, topology: Topology, mesh: Mesh) -> Plan | None:
    """What sampling a batch by the recipe's defaults needs; None for what is no flow from noise.

    Args:
        program: Of the run, made on a device of this machine.
        topology: Where it is to run.
        mesh: Over its devices.
    """
    recipe: Any = getattr(program.task, "recipe", None)
    if getattr(recipe, "kind", "") != "flow" or recipe.starts_from_data or recipe.policy is not None:
        return None
    networks = jax.eval_shape(program.task.weights, program.shapes)
    if set(networks) != {"network"} or "classifier" in recipe.runs:
        return None
    size = fill(program.task.config.sample.batch, mesh)
    grid, solver = recipe.build_times(), recipe.build_solver()
    cond = jax.tree.map(np.asarray, recipe.balanced(size))

    def sample(networks: Any, x: Any, cond: Any, key: Any) -> Any:
        field = recipe.field(recipe.flow(networks["network"]))
        return solve(field, solver, x, grid, cond=cond, key=key).x

    x = jax.ShapeDtypeStruct((size, *recipe.state_shape), np.float32)
    arguments = networks, x, cond, program.key
    count = float(flops(sample, *arguments))
    there = (
        placed(networks, mesh),
        placed_batch(x, mesh),
        placed_batch(cond, mesh),
        placed(program.key, mesh, NamedSharding(mesh, PartitionSpec())),
    )
    compiled = jax.jit(sample, out_shardings=batch_sharding(mesh, x.shape))
    parts = {"weights": there[0], "samples and conditions": there[1:3]}

    def lower() -> Any:
        with over(mesh):
            return compiled.lower(*there)

    return _plan("sampler", topology, mesh, lower, parts, (count, count), networks)

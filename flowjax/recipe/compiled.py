"""Samplers on disk: traced and compiled once, and run by processes that trace nothing.

    python -m flowjax.sample --workdir=runs/digits --steps=5 --batch=64 --compile_only --program=runs/digits/five
    python -m flowjax.sample --workdir=runs/digits --program=runs/digits/five --num=1000

The folder has `sampler.stablehlo`, which `jax.export` makes of one block of samples, from the key to the decoded
examples, and `sampler.json`, which says what it samples. Weights are arguments of the program: they stay with the run,
and others than those it was made with are refused. Machine code is kept by JAX's compilation cache
(JAX_COMPILATION_CACHE_DIR, which the hosts of a pod can share), never in the folder.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import Mesh

from flowjax import specs
from flowjax._files import replacing
from flowjax.data.records import check_memory
from flowjax.guidance import in_turn
from flowjax.keys import noise
from flowjax.recipe.definition import each_run
from flowjax.recipe.flow import Recipe
from flowjax.recipe.request import Request, Samples
from flowjax.recipe.sampling import blocks, gather, mean_costs
from flowjax.solving import solve
from flowjax.training.mesh import batch_sharding, fill, make_mesh, over, put_batch

PROGRAM, RECORD = "sampler.stablehlo", "sampler.json"
ASKED = ("batch", "solver", "times", "steps", "guidance", "fields", "calibration")
"""What a program fixes of a request; all other entries are those of each request."""

# What a program may call beside the operations of StableHLO: where arrays lie, random bits and small linear algebra.
_CALLS = re.compile(r"Sharding|SPMD\w+|annotate_device_placement|shape_assertion|(cu|hip)_threefry2x32_ffi|lapack_\w+")


def _fixed(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ASKED}


def _refuse(spec: Any) -> Any:
    """A program takes weights of a run and of those that its recipe names."""
    raise ValueError(
        f"a program has no weights of {specs.text(spec)}: train with this classifier in config.sample.fields"
    )


def _identity(recipe: Recipe, networks: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """What must be the same when a program is used, as JSON values."""
    known = recipe.record(networks, dataclasses.replace(request, num=1, first=0, seed=0, conditions={}))
    return json.loads(json.dumps({name: known[name] for name in ("request", "models", "recipe_sha256")}))


def compile_sampler(
    recipe: Recipe, networks: Mapping[str, Any], request: Request, folder: str | Path, mesh: Mesh | None = None
) -> "Compiled":
    """Traces and compiles the sampler of a request for this number and kind of devices, and writes it to a folder.

    Args:
        recipe: From `load_run`.
        networks: Likewise.
        request: What is asked for; `ASKED` of it goes into the program.
        folder: A new one.
        mesh: Splits each block over its devices; all devices by default.

    Raises:
        ValueError: A request that the recipe refuses; a flow that starts from data; a folder that has a program; a
            network with operations that no file can hold, such as attention by cuDNN.
    """
    folder = Path(folder)
    if (folder / RECORD).exists():
        raise ValueError(f"{folder} has a program already: name another folder")
    recipe.check(request)
    if other := [name for name in ("edit", "against", "second", "search") if getattr(request, name)]:
        raise ValueError(f"a program samples from noise under one condition by a solver: leave {other[0]} out")
    if recipe.starts_from_data:
        raise ValueError("a program samples from noise, and this flow starts from data")
    for spec in request.fields or ():
        each_run(spec, _refuse)
    mesh = make_mesh() if mesh is None else mesh
    shape = (fill(request.batch, mesh), *recipe.state_shape)
    leaves, structure = jax.tree.flatten(dict(networks))
    _, brought, grid, start = recipe.prepared(networks, request)

    def block(leaves: Any, key: Any, index: Any, cond: Any) -> Any:
        own = jax.tree.unflatten(structure, leaves)
        plain = dataclasses.replace(request, calibration=None, fields=recipe.all_fields(request))
        field, solver, _, _ = recipe.prepared(own, plain)
        solver = brought if request.calibration is not None else solver
        keys = jax.random.split(jax.random.wrap_key_data(key))
        x0 = noise(keys[0], shape, index, entries=recipe.padded is not None)
        x0 = field.path.start(x0, float(grid[0])) if start is None else start.start(x0, float(grid[0]), cond)
        result = solve(in_turn(field, index, shape[0]), solver, x0, grid, cond=cond, key=keys[1], index=index)
        return recipe.decoded(own.get("codec"), result.x), result.evaluations, result.network_calls

    cond = put_batch(recipe.read_conditions({}, shape[0]), mesh)
    given = leaves, jax.random.key_data(jax.random.key(0)), jnp.asarray(0), cond
    with over(mesh):
        program = jax.jit(block, out_shardings=(batch_sharding(mesh), None, None))
        try:
            made = bytes(export.export(program)(*given).serialize())
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"this sampler cannot be kept as a program: {str(error).splitlines()[0]}") from error
    record = {
        "asked": _fixed(request),
        "identity": _identity(recipe, networks, request),
        "devices": dict(mesh.shape),
        "platform": jax.default_backend(),
        "versions": {name: importlib.metadata.version(name) for name in ("flowjax-generative", "jax", "jaxlib")},
        "sha256": hashlib.sha256(made).hexdigest(),
    }
    if jax.process_index() == 0:
        for name, content in ((PROGRAM, made), (RECORD, json.dumps(record, indent=2).encode())):
            with replacing(folder / name) as part:
                part.write_bytes(content)
    compiled = Compiled(folder=folder, record=record, program=made)
    with over(mesh):
        compiled.run.lower(*given).compile()  # into the compilation cache
    return compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A sampler that was traced before.

    Attributes:
        folder: Where it lies.
        record: What it samples.
        program: As `jax.export` writes it.

    Example:
        >>> import flowjax as fj
        >>> fj.recipe.Compiled.load("runs/digits/five")
        Traceback (most recent call last):
        FileNotFoundError: runs/digits/five has no sampler.json: write it with flowjax.sample --compile_only
    """

    folder: Path
    record: Mapping[str, Any]
    program: bytes = dataclasses.field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> "Compiled":
        """Reads a folder of `compile_sampler`.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is none, has changed since, is larger than the memory, or calls what is no arithmetic.
        """
        folder = Path(folder)
        for name in (RECORD, PROGRAM):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}: write it with flowjax.sample --compile_only")
            check_memory(f"{folder / name}", 4 * (folder / name).stat().st_size)
        made = (folder / PROGRAM).read_bytes()
        try:
            record = json.loads((folder / RECORD).read_bytes())
            asked, known = record["asked"], hashlib.sha256(made).hexdigest() == record["sha256"]
            if set(asked) != set(ASKED) or not isinstance(record["identity"], dict):
                raise ValueError("it has other entries")
            Request(**asked)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder / RECORD} is not that of a sampler: {error}") from error
        if not known:
            raise ValueError(f"{folder / PROGRAM} has changed since it was written: compile it again")
        return cls(folder=folder, record=record, program=made)

    def request(self, **own: Any) -> Request:
        """The request that it answers, with the number, the seed and the conditions of one."""
        return Request(**self.record["asked"], **own)

    @functools.cached_property
    def run(self) -> Any:
        """The program, from weights, key, first row and conditions to examples, evaluations and network calls."""
        try:
            exported = export.deserialize(bytearray(self.program))
            called = set(re.findall(r"custom_call @([\w.$]+)", exported.mlir_module()))
        except Exception as error:  # of flatbuffers and MLIR, which have no common kind
            raise ValueError(f"{self.folder / PROGRAM} is no program of jax.export: {error}") from error
        if other := sorted(name for name in called if not _CALLS.fullmatch(name)):
            raise ValueError(f"{self.folder / PROGRAM} calls {', '.join(other)}, which is refused: compile it again")
        return jax.jit(exported.call)

    def sample(
        self, recipe: Recipe, networks: Mapping[str, Any], request: Request, mesh: Mesh | None = None
    ) -> Samples:
        """Samples first..first+num-1, those of `recipe.sample` up to rounding.

        Args:
            recipe: Of the run that the program belongs to.
            networks: Likewise.
            request: From `request`.
            mesh: As it was compiled for; all devices by default.

        Raises:
            ValueError: A request, run, platform or mesh of another kind than the program's.
        """
        mesh = make_mesh() if mesh is None else mesh
        recipe.check(request)
        found = {
            "asked": _fixed(request),
            "identity": _identity(recipe, networks, request),
            "devices": dict(mesh.shape),
            "platform": jax.default_backend(),
        }
        for name, value in json.loads(json.dumps(found)).items():
            if value != self.record.get(name):
                raise ValueError(
                    f"{self.folder} was compiled for {name}={self.record.get(name)}, not {value}: compile it again"
                )
        rows = range(request.first, request.first + request.num)
        cond = recipe.read_conditions(request.conditions, request.num, first=request.first)
        leaves, key = jax.tree.leaves(dict(networks)), jax.random.key_data(jax.random.key(request.seed))
        parts, costs = [], []
        with over(mesh):
            for index, asked, _ in blocks(rows, cond, request.batch, mesh):
                x, *cost = self.run(leaves, key, jnp.asarray(index), asked)
                parts.append(gather(x))
                costs.append(cost)
        return recipe.samples(np.concatenate(parts)[: len(rows)], cond, *mean_costs(costs))

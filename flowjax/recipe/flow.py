"""The recipe of a flow: what sampling from it needs besides the weights."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Key

from flowjax import _checks, evaluation, specs
from flowjax.calibration.store import model_hash
from flowjax.calibration.use import calibrated
from flowjax.conditions import resized
from flowjax.data import Pairs, Source
from flowjax.facts import entries
from flowjax.flow import Field
from flowjax.keys import noise
from flowjax.launch import check_shared, everywhere
from flowjax.recipe.autoencoder import decode
from flowjax.recipe.base import Request, Samples, compare
from flowjax.recipe.definition import Definition
from flowjax.solving import solve
from flowjax.times import uniform
from flowjax.training.mesh import batch_sharding, make_mesh, put_batch


@functools.lru_cache(maxsize=64)
def _beginning(shape: tuple[int, ...], time: float, entries: bool, sharding: Any) -> Callable[..., Array]:
    """The compiled function that makes start states (B, ...), kept so that another request does not compile it anew."""

    def begin(path: Any, key: Key[Array, ""], index: Array, start: Any, cond: Any) -> Array:
        if isinstance(start, jax.Array):
            return start
        x0 = noise(key, shape, index, entries=entries)
        return path.start(x0, time) if start is None else start.start(x0, time, cond)

    return jax.jit(begin, out_shardings=sharding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Definition):
    """How to rebuild a trained flow and how it is sampled by default; further attributes are those of `Base`.

    Attributes:
        path: {"name": a one-sided path of the catalogue, "options": its arguments}.
        prediction: What the network predicts ("velocity", "noise", "data", "score", "v"; between two laws "velocity" or
            "forward_drift").
        solver: {"name": an entry of `catalogue.solvers`, "options": its arguments}.
        steps: Default number of solver steps, at least 1.
        guidance: Default guidance: a scale of classifier-free guidance, of which 1 asks the conditional network alone,
            or a rule of the catalogue.
        times: Default grid, from the catalogue; it is given the path and the number of steps.
        fields: Fields of the catalogue put around the guided flow, the first innermost.
        conditions: What can be asked for by name, from the catalogue; None is one bare label, where there are classes.
        start: Where sampling starts: None is noise, {"name": "data", "options": {"field": "x0"}} the field "x0" of the
            data (flows between two laws).
        head: Which output of a network of several is the prediction; None for a network of one.
        embedded: Smallest and largest scale of guidance that the network has learned to answer with in one call; None
            for networks that are guided by a pair.
        boundary: Options of `flowjax.fields.Bounded`, {"scale": ..., "data_std": ..., "end": ...}, of a consistency
            function that was trained with it; None for all other networks.
        policy: {"name": ..., "options": ...}, what makes a policy of the network's answer (`flowjax.policies`), of a
            network that was trained to answer with one; None for all other networks.
        diffusion: Of the SDE whose drift a network with prediction="forward_drift" is, positive.
        stored_as: Label of the network among those that were trained together.
        codec: Of a flow on latents {"shape": theirs, "shift": ..., "scale": ...}, where normalised latents are
            (z - shift) / scale and the run "codec" is the autoencoder; None for a flow on the data itself.
        adapters: {"name": adapters of the catalogue, "options": ...}: the workdir holds adapters on the network of the
            run "base"; None where it holds the network.
        refiner: The network of FlowTurbo's refiner, {"name": ..., "options": ...}: the workdir holds its weights, and
            the flow is that of the run "network"; None where there is none.

    Raises:
        ValueError: An unknown name, unknown, missing or wrong options, a number outside its range, or a network with
            fewer classes than the data.

    Example:
        >>> import flowjax as fj
        >>> from flax import nnx
        >>> mlp = {"name": "mlp", "options": {"dim": 2, "width": 8}}
        >>> law = {"name": "toy2d", "options": {"law": "moons"}}
        >>> scale = {"shift": 0.0, "scale": 1.0, "low": None, "high": None}
        >>> of_data = {"data": law, "shape": (2,), "num_classes": None, **scale}
        >>> path, solver = {"name": "linear", "options": {}}, {"name": "heun", "options": {}}
        >>> recipe = fj.Recipe(network=mlp, prediction="velocity", path=path, solver=solver, steps=10, **of_data)
        >>> flow = recipe.flow(recipe.build_network(nnx.Rngs(0)))
        >>> flow.prediction, recipe.build_path()
        ('velocity', Linear(sigma_min=0.0))
    """

    def check(self, request: Request) -> None:
        """Builds all that the request names.

        Raises:
            ValueError: A condition, spec or number that is not one, or that does not go with the rest.
        """
        self.check_sizes(request.num, request.batch)
        _checks.whole("[0, 2147483647]", first=request.first)
        if request.calibration is not None and (request.solver is not None or request.times is not None):
            raise ValueError("a calibration brings its own solver and times; leave out solver and times")
        if isinstance(request.solver, str) and request.solver in ("dpm_solver_v3", "usf"):
            raise ValueError(f"solver={request.solver} needs a calibration: pass a file of flowjax.calibrate")
        if request.guidance is not None and not self.inputs:
            raise ValueError("guidance is given, but the data of this run has no classes")
        solver = self.build_solver(request.solver, self.flows(self._shapes, request.guidance))
        if "end" in solver.asks and self.build_rule(request.guidance) is not None:
            raise ValueError(
                f"{type(solver).__name__} asks for average velocities, whose guidance is that of training: leave "
                "guidance at 1, or take another solver, such as heun"
            )
        self.build_times(request.times, request.steps, solver)
        if request.straightness is not None:
            _checks.whole(_checks.STEPS, straightness=request.straightness)
            if self.starts_from_data:
                raise ValueError("straightness is measured on paths from noise, and this flow starts from data")
        self.field(self._any_flow, request.guidance, request.fields)
        self.asked_for(request.conditions, request.num)

    @property
    def _any_flow(self) -> Field:
        return self.flow(lambda x, t, cond=None, **extra: x)

    def sample(
        self,
        networks: Any,
        request: Any,
        source: Source | None = None,
        mesh: Mesh | None = None,
        cond: Any = None,
        **options: Any,
    ) -> Samples:
        """Samples first..first+num-1; sample i depends on (seed, i, its conditions) only.

        Args:
            networks: From `load_run`.
            request: What is asked for.
            source: The data, for a flow that starts from them.
            mesh: Splits each block over its devices; all devices by default.
            cond: Conditions as `generate` takes them, in place of those that the request asks for.
            **options: With a field and a number in place of the first two, those of `generate`.

        Raises:
            ValueError: See `check`; a calibration of another model.
        """
        if not isinstance(request, Request):  # the call of version 0.1
            return self.generate(networks, request, mesh=mesh, cond=cond, **options)
        self.check(request)
        if cond is None:
            cond = self.read_conditions(request.conditions, request.num, first=request.first)
        flow: Any = self.flow(networks["network"])
        solver, grid = self.build_solver(request.solver, self.flows(networks, request.guidance)), request.times
        start: Any = source
        if request.calibration is not None:
            fields = [specs.text(spec) for spec in (self.fields if request.fields is None else request.fields)]
            scale = self.plain_scale(request.guidance)
            brought = calibrated(request.calibration, flow, scale, request.steps, fields)
            solver, grid, start = brought.solver or solver, brought.times, brought.start or source
        return self.generate(
            self.field(flow, request.guidance, request.fields),
            request.num,
            key=jax.random.key(request.seed),
            first=request.first,
            cond=cond,
            solver=solver,
            steps=request.steps,
            grid=grid,
            start=start,
            batch=request.batch,
            mesh=mesh,
            codec=networks.get("codec"),
        )

    def couples(self, request: Request) -> bool:
        """Whether the solver or a field couples the samples of a block."""
        solver = type(self.build_solver(request.solver, self.flows(self._shapes, request.guidance)))
        fields = [spec["name"] for spec in (self.fields if request.fields is None else request.fields)]
        found = [entry for entry in entries("solver").values() if entry.make is solver]
        return any(entry.couples_batch for entry in (*found, *(entries("field")[name] for name in fields)))

    def record(self, networks: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """Everything that samples depend on but their numbers, and what is sampled in words."""
        known = super().record(networks, request)
        conditions = self.read_conditions(request.conditions, request.num)
        if request.calibration is None:
            known |= self._way(request)
        return known | {"conditions_sha256": model_hash(conditions)}

    def _way(self, request: Request) -> dict[str, Any]:
        """How samples are made, in words."""
        guidance = self.guidance if request.guidance is None else request.guidance
        solver = self.build_solver(request.solver, self.flows(self._shapes, request.guidance))
        return {
            "guidance": specs.text(guidance) if not isinstance(guidance, int | float) else guidance,
            "solver": specs.text(self.solver if request.solver is None else request.solver),
            "times": [float(t) for t in self.build_times(request.times, request.steps, solver)],
            "fields": [specs.text(spec) for spec in (self.fields if request.fields is None else request.fields)],
        }

    def sweep(self, request: Request, **lists: Sequence[Any]) -> list[tuple[dict[str, Any], Request]]:
        """Every solver with every number of steps and every guidance; solvers and rules as the texts of their specs."""
        solvers = [specs.text(spec) for spec in lists.get("solver") or [self.solver["name"]]]
        default = [self.guidance if self.inputs else 1.0]
        guidance = [
            float(rule) if isinstance(rule, int | float) else specs.text(rule)
            for rule in lists.get("guidance") or default
        ]
        rows: list[tuple[Any, ...]] = []
        for solver in dict.fromkeys(solvers):
            steps = lists.get("steps") or [getattr(self.build_solver(solver), "steps", self.steps)]
            rows += itertools.product([solver], dict.fromkeys(steps), dict.fromkeys(guidance))
        found = []
        for values in rows:
            setting = dict(zip(("solver", "steps", "guidance"), values, strict=True))
            asked = setting if lists.get("guidance") or self.inputs else {**setting, "guidance": None}
            found.append((setting, dataclasses.replace(request, **asked)))
            self.check(found[-1][1])
        return found

    def assess(
        self,
        networks: Mapping[str, Any],
        source: Source,
        request: Request,
        *,
        judge: Any = None,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """Compares samples with real data, see `flowjax.recipe.base.compare`.

        Args:
            networks: From `load_run`.
            source: The data, in the scale of the run.
            request: One of `sweep`.
            judge: The features to compare in; by default those of the data.
            mesh: Devices to use; all by default.
        """
        judge = evaluation.default_extractor(source) if judge is None else judge
        some = source.take(request.num, request.seed)
        cond = None if request.conditions else self.matching(some, request.num)
        form = self.build_form() if self.conditions and not request.conditions else None
        numbers = compare(lambda: self.sample(networks, request, source, mesh, cond), some, request.seed, judge, form)
        return numbers if request.straightness is None else numbers | self._straightness(networks, request, cond, mesh)

    def _straightness(
        self, networks: Mapping[str, Any], request: Request, cond: Any, mesh: Mesh | None
    ) -> dict[str, float]:
        """How straight the trajectories of the samples are that the request asks for, whatever its solver."""
        field = self.field(self.flow(networks["network"]), request.guidance, request.fields)
        times, key = uniform(request.straightness or 1), jax.random.split(jax.random.key(request.seed))[0]
        cond = self.read_conditions(request.conditions, request.num) if cond is None else cond
        blocks: dict[str, list[Any]] = {}
        for _, x0, asked in self._blocks(field, range(request.num), key, cond, 0.0, None, request.batch, mesh):
            for name, values in evaluation.straightness(field, x0, times, asked).items():
                blocks.setdefault(name, []).append(multihost_utils.process_allgather(values, tiled=True))
        return {name: float(np.mean(np.concatenate(rows)[: request.num])) for name, rows in blocks.items()}

    def generate(
        self,
        field: Any,
        num: int,
        *,
        key: Key[Array, ""],
        first: int = 0,
        cond: Any = None,
        solver: Any = None,
        steps: int | None = None,
        grid: Any = None,
        start: Any = None,
        batch: int = 200,
        mesh: Mesh | None = None,
        codec: Any = None,
    ) -> Samples:
        """Generates samples first..first+num-1 in blocks; sample i depends on (key, i, its label) only.

        Args:
            field: From `field`.
            num: Number of samples, at least 1.
            key: Typed key.
            first: Number of the first sample.
            cond: Conditions, a pytree with leading axis num: labels, or a dict by name with the tokens of texts.
            solver: A solver or its spec; the recipe's by default.
            steps: Number of solver steps; the recipe's by default.
            grid: Times to sample at, or the spec of a grid of `steps` steps; the recipe's by default.
            start: A map of noise to start states, `couplings.SemidiscreteMap`, or rows (num, ...) of normalised states
                to start from, in place of `path.start`. For a recipe that starts from data it is this data, a source
                (`data.of_run`); other recipes pass over a source.
            batch: Samples per block, rounded up to a multiple of the devices.
            mesh: Splits each block over its devices; all devices by default.
            codec: The network of the run "codec", which a flow on latents needs.

        Raises:
            ValueError: There is none.
        """
        if self.codec is not None and codec is None:
            raise ValueError("this flow makes latents: pass codec=, the network 'codec' of flowjax.recipe.load_run")
        solver = self.build_solver() if solver is None else solver
        grid = grid if isinstance(grid, np.ndarray) else self.build_times(grid, steps, solver)

        def shown(made: Array) -> Array:
            return made if self.codec is None else decode(codec, made * self.codec["scale"] + self.codec["shift"])

        x, result = self._states(
            field, range(first, first + num), (*jax.random.split(key),), cond, solver, grid, start, batch, mesh, shown
        )
        x = x * np.float32(self.scale) + np.float32(self.shift)
        if self.padded is not None:
            x[~self.inputs[self.padded].mask(cond[self.padded])] = 0
        return Samples(
            x=x, cond=self._shown(cond), evaluations=int(result.evaluations), network_calls=int(result.network_calls)
        )

    def _states(
        self,
        field: Any,
        rows: range,
        keys: tuple[Key[Array, ""], ...],
        cond: Any,
        solver: Any,
        grid: np.ndarray,
        start: Any,
        batch: int,
        mesh: Mesh | None,
        shown: Callable[[Array], Array],
    ) -> tuple[np.ndarray, Any]:
        """Samples `rows`, as `shown` makes of the states of the network, and the last result.

        The first of the keys is that of the noise, the second that of a solver with noise of its own.
        """
        if self.start is not None and (start is None or isinstance(start, Source)):
            start = self.start_rows(start, rows.stop)[rows.start :]
        elif isinstance(start, Source):
            start = None
        blocks = []
        for index, x0, asked in self._blocks(field, rows, keys[0], cond, grid[0], start, batch, mesh):
            result = solve(field, solver, x0, grid, cond=asked, key=jax.random.clone(keys[1]), index=index)
            blocks.append(multihost_utils.process_allgather(shown(result.x), tiled=True))
        return np.concatenate(blocks)[: len(rows)], result

    def _blocks(
        self,
        field: Any,
        rows: range,
        key: Key[Array, ""],
        cond: Any,
        begin_at: float,
        start: Any,
        batch: int,
        mesh: Mesh | None,
    ) -> Iterator[tuple[int, Array, Any]]:
        """First row, start states and conditions of each block of samples.

        The last block is as large as the others, so that nothing compiles twice; the surplus is to be cut.
        """
        mesh = make_mesh() if mesh is None else mesh
        batch = -(-batch // mesh.size) * mesh.size

        entries, sharding = self.padded is not None, batch_sharding(mesh)
        begin = _beginning((batch, *self.state_shape), float(begin_at), entries, sharding)
        for first in range(0, len(rows), batch):
            asked = put_batch(resized(cond, first, batch), mesh)
            given = put_batch(resized(start, first, batch), mesh) if isinstance(start, np.ndarray) else start
            index = rows.start + first
            yield index, begin(field.path, jax.random.clone(key), jnp.asarray(index), given, asked), asked

    def pairs(
        self, networks: Mapping[str, Any], request: Request, folder: str | Path, mesh: Mesh | None = None
    ) -> Iterator[tuple[int, int]]:
        """Draws noise and what a solver makes of it, in the scale of the network, into a folder (`data.Pairs`).

        Pair i depends on (seed, i, its conditions) only. Shards that are there are kept, so that a run that was
        stopped goes on.

        Args:
            networks: From `load_run`.
            request: What is asked for.
            folder: A new one, or one with some of the same pairs.
            mesh: Splits each block over its devices; all devices by default.

        Yields:
            How many pairs are drawn, and how many there will be, after each shard.

        Raises:
            ValueError: See `check`; a flow between two laws, a solver with noise of its own, whose samples are no
                function of their noise; a folder of something else; samples that are not finite.
        """
        self.check(request)
        flow = self.flow(networks["network"])
        field = self.field(flow, request.guidance, request.fields)
        solver = self.build_solver(request.solver, self.flows(networks, request.guidance))
        if self.padded is not None:
            raise ValueError("pairs are of samples of one size, and those of this run are padded sets")
        if self.starts_from_data or solver.stochastic:
            what = "this flow starts from data" if self.starts_from_data else f"{type(solver).__name__} adds noise"
            raise ValueError(f"pairs are noise and what a solver makes of it alone, but {what}")
        if request.calibration is not None:
            raise ValueError("pairs are drawn by a solver of the catalogue: leave calibration out")
        mesh, grid = make_mesh() if mesh is None else mesh, self.build_times(request.times, request.steps, solver)
        cond = self.read_conditions(request.conditions, request.num)
        keys = (*jax.random.split(jax.random.key(request.seed)),)
        record = {
            "num": request.num,
            "seed": request.seed,
            "model": model_hash(networks["network"]),
            **{name: getattr(self, name) for name in ("shape", "shift", "scale", "num_classes", "codec", "conditions")},
            "codec_model": self.runs["codec"]["model"] if self.codec is not None else None,
            "asked_for": dict(request.conditions),
            **self._way(request),
        }
        pairs, first = Pairs(folder), jax.process_index() == 0
        known = bool(pairs.record)
        check_shared(folder, known)
        row = 2 * 4 * math.prod(self.state_shape)
        batch = -(-request.batch // mesh.size) * mesh.size
        if first or known:
            pairs.begin(record, row=row, multiple=batch)
        everywhere(True)  # nobody looks for shards before the record is there
        pairs = Pairs(folder)
        missing = pairs.missing()
        everywhere(True)  # and nobody writes before all have looked
        done = request.num - sum(map(len, missing))
        yield done, request.num
        for rows in missing:
            given = jax.tree.map(lambda c, rows=rows: c[rows.start : rows.stop], cond)
            x1, _ = self._states(field, rows, keys, given, solver, grid, None, batch, mesh, lambda made: made)
            bad = len(x1) - int(np.isfinite(x1.reshape(len(x1), -1)).all(1).sum())
            if bad:
                raise ValueError(
                    f"{bad} of the samples {rows.start}..{rows.stop - 1} have NaN or infinite values; try more steps, "
                    "a smaller guidance or another solver"
                )
            if first:
                x0 = np.asarray(noise(jax.random.clone(keys[0]), x1.shape, rows.start))
                named = given if isinstance(given, dict) else {} if given is None else {"": given}
                columns = {f"cond.{name}".removesuffix("."): np.asarray(c) for name, c in named.items()}
                pairs.write(rows, {"x0": x0, "x1": x1, **columns})
            done += len(rows)
            yield done, request.num

    def _shown(self, cond: Any) -> Any:
        """Conditions as people read them: tokens as texts."""
        return {k: self.inputs[k].decode(v) for k, v in cond.items()} if isinstance(cond, dict) else cond

    def start_rows(self, source: Source | None, num: int) -> np.ndarray:
        """States where sampling starts, (num, ...): rows of a field of the data, in their order, again if needed.

        Raises:
            ValueError: No data, or data without that field.
        """
        name = (self.start or {}).get("options", {}).get("field", "x0")
        if source is None:
            raise ValueError(f"this flow starts from the field {name!r} of its data: pass the data as start=")
        if name not in source.fields:
            known = ", ".join(source.fields) or "none"
            raise ValueError(f"the data has no field {name!r} to start from; it has {known}")
        rows = np.resize(np.arange(len(source.x)), num)
        return np.asarray(source.fields[name][rows], np.float32)  # fields are never normalised

"""The recipe of a flow: what sampling from it needs besides the weights."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from flowjax import _checks, evaluation, specs
from flowjax.calibration.store import model_hash
from flowjax.calibration.use import calibrated, fields_of
from flowjax.data import Source
from flowjax.facts import entries
from flowjax.flow import Field
from flowjax.guidance import in_turn
from flowjax.recipe import edits
from flowjax.recipe.base import compare, shapes_of
from flowjax.recipe.decoding import decoded, unscaled
from flowjax.recipe.definition import Definition
from flowjax.recipe.request import Request, Samples
from flowjax.recipe.sampling import AsDrawn, blocks, gather, mean_costs, starts
from flowjax.recipe.searching import check_search, search_samples, sources
from flowjax.times import uniform
from flowjax.training.mesh import fill, make_mesh, over


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
        against: Texts by name of the default negative condition, in place of the null; other names are null.
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
            (z - shift) / scale and the run "codec" is the autoencoder; None for a flow on the data itself. Besides,
            "elements" is the hash of the shift and the scale of every entry by itself, which lie in the workdir,
            "sample" says that latents were drawn from the posterior, and "tiles" has side and overlap of the tiles in
            which they are decoded.
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

    def __post_init__(self) -> None:
        """Checks names and numbers."""
        super().__post_init__()
        if self.padded is not None:
            self.inputs[self.padded].check_details(self.shape)

    def check(self, request: Request) -> None:
        """Builds all that the request names.

        Raises:
            ValueError: A condition, spec or number that is not one, or that does not go with the rest.
        """
        self.check_sizes(request.num, request.batch)
        _checks.whole("[0, 2147483647]", first=request.first)
        if request.search is not None:
            check_search(self, request)
        elif request.reward is not None or request.held_out is not None:
            raise ValueError("a reward is given, but no search: pass search, such as rbf(budget=500)")
        if request.calibration is not None and (request.solver is not None or request.times is not None):
            raise ValueError("a calibration brings its own solver and times; leave out solver and times")
        if isinstance(request.solver, str) and request.solver in ("dpm_solver_v3", "usf"):
            raise ValueError(f"solver={request.solver} needs a calibration: pass a file of flowjax.calibrate")
        rule = self.build_rule(request.guidance)
        if request.guidance is not None and not self.inputs and getattr(rule, "compares", True):
            raise ValueError("guidance is given, but the data of this run has no classes")
        solver = self.build_solver(request.solver, self.flows(self.other_shapes, request.guidance))
        if "end" in solver.asks and rule is not None:
            raise ValueError(
                f"{type(solver).__name__} asks for average velocities, whose guidance is that of training: leave "
                "guidance at 1, or take another solver, such as heun"
            )
        grid = self.build_times(request.times, request.steps, solver)
        if request.straightness is not None:
            _checks.whole(_checks.STEPS, straightness=request.straightness)
            if self.starts_from_data:
                raise ValueError("straightness is measured on paths from noise, and this flow starts from data")
        self.asked_for(edits.own(request).conditions, request.num)
        if self.padded is not None and (whole := self._over_entries(request, rule, solver)):
            raise ValueError(
                f"samples of this run are padded sets, and {whole} takes norms, means or quantiles over their padding "
                "too: take another"
            )
        edits.check(self, request, solver, grid)

    @functools.cached_property
    def flow_in_shapes(self) -> Field:
        """The flow of a network in shapes, to check what goes around it."""
        return self.flow(shapes_of(self.build_network))

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
            cond = self.read_conditions(edits.own(request).conditions, request.num, first=request.first)
        if request.search is not None:
            return search_samples(self, networks, request, cond, make_mesh() if mesh is None else mesh)
        field, solver, grid, start = self.prepared(networks, request)
        if request.edit is not None and start is not None:
            raise ValueError("this calibration brings start states of its own, and an edit starts from its picture")
        return self.generate(
            field,
            request.num,
            key=jax.random.key(request.seed),
            first=request.first,
            cond=cond,
            solver=solver,
            grid=grid,
            start=source if start is None else start,
            batch=request.batch,
            mesh=mesh,
            codec=networks.get("codec"),
            edit=request.edit,
            given=edits.rows(self, request),
        )

    def prepared(self, networks: Mapping[str, Any], request: Request) -> tuple[Field, Any, np.ndarray, Any]:
        """Field, solver, times and the map to start states, if there is one, that a request asks for.

        Args:
            networks: From `load_run`.
            request: `check` accepts it.

        Raises:
            ValueError: A calibration of another model.
        """
        flow: Any = self.flow(networks["network"])
        solver, start = self.build_solver(request.solver, self.flows(networks, request.guidance)), None
        grid = request.times
        if request.calibration is not None:
            fields = [specs.text(spec) for spec in self.pinned(request.fields)]
            scale = self.plain_scale(request.guidance)
            brought = calibrated(request.calibration, flow, scale, request.steps, fields)
            solver, grid, start = brought.solver or solver, brought.times, brought.start
        field = edits.asked_field(self, flow, request, networks)
        return field, solver, self.times_of(grid, request.steps, solver), start

    def times_of(self, grid: Any, steps: int | None, solver: Any) -> np.ndarray:
        """Times, which stay what they are, or those of a grid."""
        return grid if isinstance(grid, np.ndarray) else self.build_times(grid, steps, solver)

    def all_fields(self, request: Request) -> tuple[Any, ...]:
        """Specs of the fields around the flow, those of a calibration outermost."""
        return (*self.pinned(request.fields), *(() if request.calibration is None else fields_of(request.calibration)))

    def couples(self, request: Request) -> bool:
        """Whether the solver, the rule or a field couples the samples of a block."""
        if getattr(self.build_rule(request.guidance), "couples_batch", False):
            return True
        solver = type(self.build_solver(request.solver, self.flows(self.other_shapes, request.guidance)))
        fields = [specs.name_and_options(spec)[0] for spec in self.all_fields(request)]
        found = [entry for entry in entries("solver").values() if entry.make is solver]
        return any(entry.couples_batch for entry in (*found, *(entries("field")[name] for name in fields)))

    def _over_entries(self, request: Request, rule: Any, solver: Any) -> str | None:
        """What makes entries of a padded set depend on its padding: solver, field or rule; None if nothing does."""
        found = [(name, entry) for name, entry in entries("solver").items() if entry.make is type(solver)]
        found += [(name, entries("field")[name]) for name, _ in map(specs.name_and_options, self.all_fields(request))]
        named = [name for name, e in found if e.couples_batch or getattr(e.make, "couples_entries", False)]
        while rule is not None:  # of rules around each other the innermost
            named, rule = [type(rule).__name__] * self._mixes(rule) or named, getattr(rule, "rule", None)
        return named[0] if named else None

    def _mixes(self, rule: Any) -> bool:
        """Whether a rule answers otherwise in an entry of a sample when there is padding beside it."""
        rng, shape = np.random.default_rng(0), (4, 1, *self.state_shape[1:])
        near = 0.3 * rng.normal(size=(1 + len(rule.needed(0.0)), *shape))  # far apart, RAAG leaves guidance out
        alone = (rng.normal(size=shape) + near).astype(np.float32)
        # What is predicted of padding is the same under all conditions: 0, or in another space what the noise says.
        same = rule.space == self.prediction and self.boundary is None and self.policy is None
        padding = np.full_like(alone, 0.0 if same else 2.0)

        def answers(c: Any, *u: Any) -> Any:
            state, found = rule.init(c), []
            for t in np.linspace(0, 0.95, 20):
                value, state = rule.combine(float(t), c, u if len(u) > 1 else u[0], state)
                found.append(value[:, 0])
            return np.stack(found)

        one, other = answers(*jnp.asarray(alone)), answers(*jnp.asarray(np.concatenate([alone, padding], axis=2)))
        return not np.allclose(one, other, rtol=1e-4, atol=1e-4)

    def record(self, networks: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """Everything that samples depend on but their numbers, and what is sampled in words."""
        known = super().record(networks, request)
        conditions = self.read_conditions(edits.own(request).conditions, request.num)
        if request.search is not None:
            known |= {"search": specs.text(request.search), "rewards_sha256": sources(request)}
            known["fields"] = [specs.text(spec) for spec in self.pinned(request.fields)]
        elif request.calibration is None:
            known |= self.way(request)
        if request.edit is not None:
            known["edit_sha256"] = model_hash(edits.rows(self, request))
        return known | {"conditions_sha256": model_hash(conditions)}

    def way(self, request: Request) -> dict[str, Any]:
        """How samples are made, in words."""
        guidance = self.guidance if request.guidance is None else request.guidance
        solver = self.build_solver(request.solver, self.flows(self.other_shapes, request.guidance))
        return {
            "guidance": specs.text(guidance) if not isinstance(guidance, int | float) else guidance,
            "solver": specs.text(self.solver if request.solver is None else request.solver),
            "times": [float(t) for t in self.build_times(request.times, request.steps, solver)],
            "fields": [specs.text(spec) for spec in self.pinned(request.fields)],
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
        field = edits.asked_field(self, self.flow(networks["network"]), request, networks)
        times, key = uniform(request.straightness or 1), jax.random.split(jax.random.key(request.seed))[0]
        cond = self.read_conditions(request.conditions, request.num) if cond is None else cond
        mesh = make_mesh() if mesh is None else mesh
        shape = (fill(request.batch, mesh), *self.state_shape)
        start = starts(field.path, shape, key, 0.0, None, mesh)
        found: dict[str, list[Any]] = {}
        with over(mesh):
            for index, asked, first in blocks(range(request.num), cond, request.batch, mesh):
                here = in_turn(field, index, shape[0])
                for name, values in evaluation.straightness(here, start(index, asked, first), times, asked).items():
                    found.setdefault(name, []).append(gather(values))
        return {name: float(np.mean(np.concatenate(rows)[: request.num])) for name, rows in found.items()}

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
        edit: Any = None,
        given: Any = None,
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
            edit: The spec of an edit, in place of sampling from noise.
            given: What it is given of each sample, normalised examples and masks by name, (num, ...) each.

        Raises:
            ValueError: There is none.
        """
        if self.codec is not None and codec is None:
            raise ValueError("this flow makes latents: pass codec=, the network 'codec' of flowjax.recipe.load_run")
        solver = self.build_solver(solver)
        grid = self.times_of(grid, steps, solver)

        rows, shown = range(first, first + num), functools.partial(self.decoded, codec)
        keys = (*jax.random.split(key),)
        way = functools.partial(self._run, codec, edit)
        x, costs = self.states(field, rows, keys, cond, solver, grid, start, batch, mesh, shown, way, given or {})
        return self.samples(x, cond, *costs)

    def _run(self, codec: Any, edit: Any, *block: Any) -> Any:
        """One block, see `flowjax.recipe.edits.run`."""
        *known, given = block
        return edits.run(edit, *known, given=edits.latents(self, codec, given))  # type: ignore[misc]

    def decoded(self, codec: Any, x: Array) -> Array:
        """Normalised examples of states of the network: those of latents, or the states themselves."""
        if self.codec is None:
            return x
        return decoded(*unscaled(codec, self.codec), x)

    def samples(self, x: np.ndarray, cond: Any, evaluations: int, network_calls: int) -> Samples:
        """Samples in the scale of the data, of normalised ones and what they cost."""
        x = x * np.float32(self.scale) + np.float32(self.shift)
        if self.padded is not None:
            x[~self.inputs[self.padded].mask(cond[self.padded])] = 0
        return Samples(x=x, cond=self.shown_conditions(cond), evaluations=evaluations, network_calls=network_calls)

    def states(
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
        shown: Callable[[Array], Array] = lambda made: made,
        way: Callable[..., Any] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        """Samples `rows`, as `shown` makes of the states of the network, and their evaluations and network calls.

        The first of the keys is that of the noise, the second that of a solver with noise of its own. What is `given`
        of the samples, (num, ...) each, goes block by block to the `way` that makes them; edits draw their noise as it
        is.
        """
        if self.start is not None and (start is None or isinstance(start, Source)):
            start = self.start_rows(start, rows.stop)[rows.start :]
        elif isinstance(start, Source):
            start = None
        mesh = make_mesh() if mesh is None else mesh
        shape = (fill(batch, mesh), *self.state_shape)
        start, way = AsDrawn() if given else start, functools.partial(edits.run, None) if way is None else way
        begin = starts(field.path, shape, keys[0], float(grid[0]), start, mesh, self.padded is not None)
        found, costs = [], []
        with over(mesh):
            for index, (asked, more), first in blocks(rows, (cond, given or {}), batch, mesh):
                x0, here = begin(index, asked, first), in_turn(field, index, shape[0])
                result = way(here, solver, grid, x0, asked, jax.random.clone(keys[1]), index, more)
                found.append(gather(shown(result.x)))
                costs.append((result.evaluations, result.network_calls))
        return np.concatenate(found)[: len(rows)], mean_costs(costs)

    def shown_conditions(self, cond: Any) -> Any:
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

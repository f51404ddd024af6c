"""The recipe of a flow: what sampling from it needs besides the weights."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Key

from flowjax import _checks, evaluation, specs
from flowjax.calibration.use import calibrated
from flowjax.conditions import Label, resized, with_conditions
from flowjax.data import Source
from flowjax.fields import Embedded, InterpolantFlow, guide
from flowjax.flow import Field, Flow
from flowjax.guidance import CFG, Rule
from flowjax.keys import noise
from flowjax.models import lora
from flowjax.paths import PREDICTIONS, GaussianPath
from flowjax.recipe.autoencoder import Autoencoder, decode
from flowjax.recipe.base import Base, Request, Samples, compare, from_values, shapes_of, traced
from flowjax.solvers.euler_maruyama import SDESolver
from flowjax.solving import solve
from flowjax.training.mesh import batch_sharding, make_mesh, put_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Base):
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
        diffusion: Of the SDE whose drift a network with prediction="forward_drift" is, positive.
        stored_as: Label of the network among those that were trained together.
        codec: Of a flow on latents {"shape": theirs, "shift": ..., "scale": ...}, where normalised latents are
            (z - shift) / scale and the run "codec" is the autoencoder; None for a flow on the data itself.
        adapters: {"name": adapters of the catalogue, "options": ...}: the workdir holds adapters on the network of the
            run "base"; None where it holds the network.

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

    path: Mapping[str, Any]
    prediction: str
    solver: Mapping[str, Any]
    steps: int
    guidance: float | Mapping[str, Any] = 1.0
    times: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "uniform", "options": {}})
    fields: tuple[Mapping[str, Any], ...] = ()
    conditions: Mapping[str, Any] | None = None
    start: Mapping[str, Any] | None = None
    head: str | int | None = None
    embedded: tuple[float, float] | None = None
    diffusion: float | None = None
    stored_as: str = "network"
    codec: Mapping[str, Any] | None = None
    adapters: Mapping[str, Any] | None = None
    kind: str = "flow"

    specs: ClassVar[tuple[str, ...]] = ("network", "data", "path", "solver", "times")

    def __post_init__(self) -> None:
        """Checks names and numbers."""
        super().__post_init__()
        _checks.whole(_checks.STEPS, steps=self.steps)
        two_sided = not isinstance(self.build_path(), GaussianPath)
        _checks.choose("prediction", self.prediction, ("velocity", "forward_drift") if two_sided else PREDICTIONS)
        if (self.prediction == "forward_drift") != (self.diffusion is not None):
            raise ValueError("a forward drift has its diffusion, and only a forward drift")
        _checks.real("(0, inf)", diffusion=1.0 if self.diffusion is None else self.diffusion)
        if two_sided and self.start is None:
            raise ValueError("a path between two laws needs start, the field of the data where sampling starts")
        if self.embedded is not None:
            _checks.real("[0, inf)", **dict(zip(("embedded[0]", "embedded[1]"), self.embedded, strict=True)))
        self.build_rule()
        self.build_times()
        self.build_solver()
        for spec in self.fields:
            specs.find("field", spec["name"])
        if self.adapters is not None:
            specs.find("adapters", self.adapters["name"])
            if "base" not in self.runs:
                raise ValueError("adapters need the run 'base', whose network they are for")
        self._check_codec()
        known = self.network["options"].get("num_classes")
        if self.num_classes is not None and self.conditions is None and (known is None or known < self.num_classes):
            raise ValueError(
                f"the data have {self.num_classes} classes, but the network is built with num_classes={known}; "
                f"set num_classes={self.num_classes} in its options, or read the data without labels"
            )
        self.balanced(1)  # builds the conditions

    def _check_codec(self) -> None:
        if self.codec is None:
            return
        if set(self.codec) != {"shape", "shift", "scale"}:
            raise ValueError(f"codec must have shape, shift and scale, got {self.codec!r}")
        _checks.sizes(**{"codec.shape": self.codec["shape"]})
        _checks.real("(-inf, inf)", **{"codec.shift": self.codec["shift"]})
        _checks.real("(0, inf)", **{"codec.scale": self.codec["scale"]})
        if "codec" not in self.runs or self.start is not None:
            raise ValueError("a flow on latents needs the run 'codec', and starts from noise")
        other = from_values(self.runs["codec"]["recipe"])
        if not isinstance(other, Autoencoder):
            raise ValueError(f"the run 'codec' is of the kind {other.kind}, and an autoencoder is needed")
        if (tuple(other.shape), other.shift, other.scale) != (tuple(self.shape), self.shift, self.scale):
            raise ValueError("the run 'codec' is an autoencoder of examples of another shape or scale")

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of what the flow moves: latents, or examples."""
        return self.shape if self.codec is None else tuple(self.codec["shape"])

    @property
    def starts_from_data(self) -> bool:
        """Whether sampling needs the data."""
        return self.start is not None

    # ------------------------------------------------------------------------------------------------------ networks

    def stored(self) -> dict[str, Any]:
        """The network, or the adapters on the one of the run "base"."""
        if self.adapters is None:
            return {self.stored_as: self.build_network}
        shapes = shapes_of(self.build_network)
        return {"network": lambda rngs: specs.build("adapters", self.adapters, network=shapes, rngs=rngs)}

    def alone(self) -> "Recipe":
        """Without adapters, other labels and the run "base"."""
        runs = {label: run for label, run in self.runs.items() if label != "base"}
        return dataclasses.replace(self, adapters=None, stored_as="network", runs=runs)

    def assemble(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """The network by its label here; with adapters, the base that they are added to."""
        if self.adapters is None:
            return {"network" if label == self.stored_as else label: found for label, found in networks.items()}
        merged = lora.merge(networks["base"], networks["network"])
        return {label: network for label, network in networks.items() if label != "base"} | {"network": merged}

    def call(self) -> tuple[Any, Any, Any]:
        """Shapes of (x, t, cond) for one sample."""
        x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *self.state_shape), (1,)))
        structs = {name: condition.struct for name, condition in self.inputs.items()}
        return x, t, jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), self._shaped(structs))

    def check_networks(self, shapes: Mapping[str, Any]) -> None:
        """A call with samples and conditions must answer with samples."""
        x, t, cond = self.call()
        more = {} if self.embedded is None else {"guidance": t}
        try:
            answer = traced(shapes["network"], x, t, cond, **more)
        except ValueError as error:
            named = (
                f" with the conditions {', '.join(self.conditions)}, as conditioned(...) does"
                if self.conditions
                else ""
            )
            raise ValueError(
                f"the network does not take samples of shape {self.state_shape}{named}: {error.__cause__}"
            ) from error
        if self.head is not None:
            try:
                answer = answer[self.head]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"the network has no output head={self.head!r}") from None
        if not hasattr(answer, "shape"):
            raise ValueError("the network has several outputs; head= says which one is the prediction")
        if answer.shape != x.shape:
            raise ValueError(f"the network answers {answer.shape[1:]} where samples have the shape {self.state_shape}")
        if self.codec is not None:
            other: Any = from_values(self.runs["codec"]["recipe"])
            if (found := other.latent_shape(shapes["codec"])) != self.state_shape:
                raise ValueError(f"the codec makes latents of the shape {found}, the flow moves {self.state_shape}")

    def flows(self, networks: Mapping[str, Any]) -> dict[str, Field]:
        """The flows of the other runs, which solvers and rules may name."""
        found = {
            label: (networks[label], from_values(run["recipe"]))
            for label, run in self.runs.items()
            if label in networks
        }
        return {label: other.flow(network) for label, (network, other) in found.items() if isinstance(other, Recipe)}

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """The conditions by name; a bare label is called "label"."""
        if self.conditions is not None:
            return {name: specs.build("condition", spec) for name, spec in self.conditions.items()}
        return {} if self.num_classes is None else {"label": Label(classes=self.num_classes)}

    @property
    def null(self) -> Any:
        """The condition that stands for none: for a bare label the number behind the last class."""
        return self._shaped({name: condition.null for name, condition in self.inputs.items()})

    def _shaped(self, conditions: dict[str, Any]) -> Any:
        """Conditions by name as the network takes them."""
        return conditions.get("label") if self.conditions is None else conditions

    def build_path(self) -> Any:
        """The path."""
        return specs.build("path", self.path)

    def build_solver(self, spec: Any = None, flows: Mapping[str, Field] | None = None) -> Any:
        """The default solver, or the one that `spec` says; a bare name of the default one keeps its options.

        Args:
            spec: Object, text or data.
            flows: Those of the other runs, by label, from `flows`; without them only the spec is checked.
        """
        if spec is None or (isinstance(spec, str) and specs.plain(spec) == specs.plain(self.solver["name"])):
            spec = self.solver
        solver = specs.build("solver", spec, flows=self._shapes_of_flows if flows is None else flows)
        if self.diffusion is not None:
            own = isinstance(solver, SDESolver) and solver.drift == "field" and not solver.backward
            if not own or any(solver.eps(self.build_path(), t) != self.diffusion for t in (0.25, 0.75)):
                raise ValueError(
                    "this network is the drift of an SDE: it is sampled by euler_maruyama(drift=field, "
                    f"diffusion={self.diffusion}), not by {specs.text(spec)}"
                )
        return solver

    @functools.cached_property
    def _shapes_of_flows(self) -> dict[str, Field]:
        others = {label: from_values(run["recipe"]) for label, run in self.runs.items()}
        return self.flows({label: shapes_of(other.build_network) for label, other in others.items()})

    def build_times(self, spec: Any = None, steps: int | None = None) -> np.ndarray:
        """The default grid, or the one that `spec` says, with `steps` steps."""
        given = {"path": self.build_path(), "n": self.steps if steps is None else steps}
        return specs.build("times", self.times if spec is None else spec, **given)

    def build_rule(self, guidance: Any = None) -> Rule | None:
        """The guidance rule of a scale or a spec; None where it is the conditional prediction itself, scale 1."""
        guidance = self.guidance if guidance is None else guidance
        if isinstance(guidance, int | float):
            _checks.real("[0, inf)", guidance=guidance)
            return None if guidance == 1 or self.embedded is not None else CFG(scale=guidance)
        if self.embedded is not None:
            raise ValueError("the network of this run answers with guidance itself: guidance is a number")
        return specs.build("rule", guidance)

    def flow(self, network: Any) -> Field:
        """The flow of a network of this recipe."""
        path = self.build_path()
        if isinstance(path, GaussianPath):
            return Flow(network=network, path=path, prediction=self.prediction, null=self.null, head=self.head)
        return InterpolantFlow(network, path=path)  # a forward drift stands in the place of the velocity

    def plain_scale(self, guidance: Any = None) -> float:
        """The scale of plain guidance that a calibration belongs to: the one given, or the recipe's.

        Raises:
            ValueError: It is a rule.
        """
        if self.embedded is not None:
            raise ValueError("calibrations are for plain guidance by a pair; this network answers with guidance itself")
        if not self.inputs:
            return 1.0
        chosen = self.guidance if guidance is None else guidance
        if not isinstance(chosen, int | float):
            raise ValueError(f"calibrations are for plain guidance, not {specs.text(chosen)}: pass a scale")
        return float(chosen)

    def field(self, flow: Any, guidance: Any = None, fields: Sequence[Any] | None = None) -> Any:
        """The field to solve: `flow`, guided where there are conditions and the scale is not 1, and fields around it.

        Args:
            flow: From `flow`.
            guidance: A scale, a rule or the spec of one; the recipe's by default.
            fields: Specs of fields put around it, the first innermost; the recipe's by default.
        """
        rule = self.build_rule(guidance)
        if self.embedded is not None:
            (low, high), scale = self.embedded, self.guidance if guidance is None else guidance
            assert isinstance(scale, int | float)  # `build_rule` refuses others
            if not low <= scale <= high:
                raise ValueError(f"guidance={scale}: the network has learned scales from {low:g} to {high:g}")
            field: Any = Embedded(flow, guidance=scale)
        else:
            field = flow if rule is None or not self.inputs else guide(flow, rule)
        for spec in self.fields if fields is None else fields:
            field = specs.build("field", spec, field=field)
        return field

    def balanced(self, num: int, classes: tuple[int, ...] | None = None) -> Any:
        """Conditions of samples 0..num-1: the classes in turn (all of them by default); None without conditions."""
        chosen = {name: condition.default(num) for name, condition in self.inputs.items()}
        if classes and "label" in chosen:
            chosen["label"] = np.resize(np.asarray(classes, np.int32), num)
        return self._shaped(chosen)

    def with_conditions(self, source: Source) -> Source:
        """The data with its conditions as the network takes them; as it is for a recipe without names.

        Raises:
            ValueError: Data without these conditions.
        """
        return source if self.conditions is None else with_conditions(source, self.inputs)

    def matching(self, source: Source, num: int, among: int | None = None) -> Any:
        """Conditions to compare `num` samples with data under.

        By name they are those of the data, spread evenly over the first `among` examples (all by default); a bare
        label takes the classes in turn.

        Raises:
            ValueError: Data without these conditions.
        """
        if self.conditions is None:
            return self.balanced(num)
        rows = np.arange(num) * (len(source.x) if among is None else among) // num
        held = {name: field[rows] for name, field in source.fields.items() if name in self.inputs}
        cond = None if source.cond is None else source.cond[rows]
        blank = np.zeros(num, np.float32)  # the examples themselves may lie on disk
        some = self.with_conditions(dataclasses.replace(source, x=blank, cond=cond, fields=held, conditions=()))
        return {name: some.fields[name] for name in some.conditions}

    def read_conditions(self, asked: Mapping[str, str], num: int) -> Any:
        """Conditions of `num` samples from texts of a command line, by name; those not asked for are the default.

        Raises:
            ValueError: A condition that this recipe does not have, or a text that it cannot read.
        """
        for name in asked:
            if name == "label" and name not in self.inputs:
                raise ValueError("labels are given, but the data of this run has no classes")
            _checks.choose("condition of this run", name, self.inputs)
        return self._shaped(
            {
                name: condition.read(asked[name], num) if name in asked else condition.default(num)
                for name, condition in self.inputs.items()
            }
        )

    # ------------------------------------------------------------------------------------------------------ requests

    def check(self, request: Request) -> None:
        """Builds all that the request names.

        Raises:
            ValueError: A condition, spec or number that is not one, or that does not go with the rest.
        """
        self.check_sizes(request.num, request.batch)
        if request.calibration is not None and (request.solver is not None or request.times is not None):
            raise ValueError("a calibration brings its own solver and times; leave out solver and times")
        if isinstance(request.solver, str) and request.solver in ("dpm_solver_v3", "usf"):
            raise ValueError(f"solver={request.solver} needs a calibration: pass a file of flowjax.calibrate")
        if request.guidance is not None and not self.inputs:
            raise ValueError("guidance is given, but the data of this run has no classes")
        self.build_solver(request.solver)
        self.build_times(request.times, request.steps)
        self.field(self._any_flow, request.guidance, request.fields)
        self.read_conditions(request.conditions, request.num)

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
        """Samples 0..num-1; sample i depends on (seed, i, its conditions) only.

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
        flow: Any = self.flow(networks["network"])
        solver, grid = self.build_solver(request.solver, self.flows(networks)), request.times
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
            cond=self.read_conditions(request.conditions, request.num) if cond is None else cond,
            solver=solver,
            steps=request.steps,
            grid=grid,
            start=start,
            batch=request.batch,
            mesh=mesh,
            codec=networks.get("codec"),
        )

    def sweep(self, request: Request, **lists: Sequence[Any]) -> list[tuple[dict[str, Any], Request]]:
        """Every solver with every number of steps and every guidance; solvers and rules as the texts of their specs."""
        solvers = [specs.text(spec) for spec in lists.get("solver") or [self.solver["name"]]]
        default = [self.guidance if self.inputs else 1.0]
        guidance = [
            float(rule) if isinstance(rule, int | float) else specs.text(rule)
            for rule in lists.get("guidance") or default
        ]
        found = []
        for values in itertools.product(
            dict.fromkeys(solvers), dict.fromkeys(lists.get("steps") or [self.steps]), dict.fromkeys(guidance)
        ):
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
        return compare(lambda: self.sample(networks, request, source, mesh, cond), some, request.seed, judge)

    def generate(
        self,
        field: Any,
        num: int,
        *,
        key: Key[Array, ""],
        cond: Any = None,
        solver: Any = None,
        steps: int | None = None,
        grid: Any = None,
        start: Any = None,
        batch: int = 200,
        mesh: Mesh | None = None,
        codec: Any = None,
    ) -> Samples:
        """Generates samples 0..num-1 in blocks; sample i depends on (key, i, its label) only.

        Args:
            field: From `field`.
            num: Number of samples, at least 1.
            key: Typed key.
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
        mesh = make_mesh() if mesh is None else mesh
        if not isinstance(grid, np.ndarray):
            grid = self.build_times(grid, steps)
        solver = self.build_solver() if solver is None else solver
        if self.start is not None and (start is None or isinstance(start, Source)):
            start = self.start_rows(start, num)
        elif isinstance(start, Source):
            start = None
        noise_key, solver_key = jax.random.split(key)
        batch = -(-batch // mesh.size) * mesh.size

        def begin(key, index, start, cond):
            if isinstance(start, jax.Array):
                return start
            x0 = noise(key, (batch, *self.state_shape), index)
            return field.path.start(x0, grid[0]) if start is None else start.start(x0, grid[0], cond)

        begin = jax.jit(begin, out_shardings=batch_sharding(mesh))
        blocks = []
        for first in range(0, num, batch):
            # The last block is as large as the others, so that nothing compiles twice; the surplus is cut
            # below.
            asked = put_batch(resized(cond, first, batch), mesh)
            rows = put_batch(resized(start, first, batch), mesh) if isinstance(start, np.ndarray) else start
            x0 = begin(jax.random.clone(noise_key), jnp.asarray(first), rows, asked)
            result = solve(field, solver, x0, grid, cond=asked, key=solver_key, index=first)
            made = result.x
            if self.codec is not None:
                made = decode(codec, made * self.codec["scale"] + self.codec["shift"])
            blocks.append(multihost_utils.process_allgather(made, tiled=True))
        x = np.concatenate(blocks)[:num] * np.float32(self.scale) + np.float32(self.shift)
        return Samples(
            x=x, cond=self._shown(cond), evaluations=int(result.evaluations), network_calls=int(result.network_calls)
        )

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

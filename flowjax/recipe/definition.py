"""What a trained flow is: its names and numbers, and the parts that they build."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowjax import _checks, specs
from flowjax.fields import Bounded, Curved, Embedded, InterpolantFlow, guide
from flowjax.flow import Field, Flow
from flowjax.guidance import CFG, Interval, Rule
from flowjax.models import lora
from flowjax.paths import PREDICTIONS, GaussianPath
from flowjax.policies import Head
from flowjax.recipe.base import from_values, shapes_of, traced
from flowjax.recipe.conditional import Conditional
from flowjax.recipe.decoding import read_elements
from flowjax.solvers.euler_maruyama import SDESolver


def each_run(spec: Any, change: Callable[[Any], Any]) -> Any:
    """The spec of a field with every `run(workdir=...)` in it, a classifier, as `change` makes it."""
    if isinstance(spec, str) and "(" in spec:
        spec = specs.parse(spec)
    if specs.is_spec(spec) and spec["name"] == "run":
        return change(spec)
    if isinstance(spec, Mapping):
        return {name: each_run(item, change) for name, item in spec.items()}
    return type(spec)(each_run(item, change) for item in spec) if isinstance(spec, list | tuple) else spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Definition(Conditional):
    """How to rebuild a trained flow; `Recipe` samples from it.

    Example:
        >>> import flowjax as fj
        >>> mlp = {"name": "mlp", "options": {"dim": 2, "width": 8}}
        >>> law = {"name": "toy2d", "options": {"law": "moons"}}
        >>> scale = {"shift": 0.0, "scale": 1.0, "low": None, "high": None}
        >>> of_data = {"data": law, "shape": (2,), "num_classes": None, **scale}
        >>> path, solver = {"name": "linear", "options": {}}, {"name": "heun", "options": {}}
        >>> recipe = fj.Recipe(network=mlp, prediction="velocity", path=path, solver=solver, steps=10, **of_data)
        >>> recipe.build_path(), recipe.build_solver(), len(recipe.build_times())
        (Linear(sigma_min=0.0), Heun(), 11)
    """

    path: Mapping[str, Any]
    prediction: str
    solver: Mapping[str, Any]
    steps: int
    guidance: float | Mapping[str, Any] = 1.0
    against: Mapping[str, str] = dataclasses.field(default_factory=dict)
    times: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "uniform", "options": {}})
    fields: tuple[Mapping[str, Any], ...] = ()
    start: Mapping[str, Any] | None = None
    head: str | int | None = None
    embedded: tuple[float, float] | None = None
    boundary: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] | None = None
    diffusion: float | None = None
    stored_as: str = "network"
    codec: Mapping[str, Any] | None = None
    adapters: Mapping[str, Any] | None = None
    refiner: Mapping[str, Any] | None = None
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
        if self.boundary is not None:
            if two_sided:
                raise ValueError("boundary is for paths from noise")
            self.flow(lambda x, t, cond: x)  # builds it
        if self.policy is not None:
            if two_sided or self.prediction != "velocity" or self.head is not None or self.boundary is not None:
                raise ValueError("a policy is one of velocities on a path from noise, without head and boundary")
            self.build_policy()
        if self.embedded is not None:
            _checks.pair("[0, inf)", embedded=self.embedded)
        self.build_rule()
        self.build_times()
        self.build_solver()
        self.asked_for(self.against, 1)
        for spec in self.fields:
            specs.find("field", spec["name"])
        if self.adapters is not None:
            specs.find("adapters", self.adapters["name"])
            if "base" not in self.runs:
                raise ValueError("adapters need the run 'base', whose network they are for")
        if self.refiner is not None:
            specs.find("network", self.refiner["name"])
            if "network" not in self.runs:
                raise ValueError("a refiner needs the run 'network', whose velocities it lifts")
        self._check_codec()
        known = self.network["options"].get("num_classes")
        if self.num_classes is not None and self.conditions is None and (known is None or known < self.num_classes):
            raise ValueError(
                f"the data have {self.num_classes} classes, but the network is built with num_classes={known}; "
                f"set num_classes={self.num_classes} in its options, or read the data without labels"
            )
        room = self.state_shape[0] if self.padded is None else self.inputs[self.padded].entries
        if room != self.state_shape[0]:
            raise ValueError(
                f"the condition {self.padded} has room for {room} entries, samples have {self.state_shape[0]}: give "
                "both the same number"
            )

    def _check_codec(self) -> None:
        if self.codec is None:
            return
        needed, known = {"shape", "shift", "scale"}, {"elements", "sample", "tiles"}
        if not needed <= set(self.codec) <= needed | known:
            raise ValueError(f"codec must have shape, shift and scale, got {self.codec!r}")
        if not re.fullmatch(r"[0-9a-f]{12}", str(self.codec.get("elements", "0" * 12))):
            raise ValueError(f"codec.elements must be the hash of shifts and scales, got {self.codec['elements']!r}")
        if not isinstance(self.codec.get("sample", True), bool):
            raise ValueError(f"codec.sample must be True or False, got {self.codec['sample']!r}")
        tiles = self.codec.get("tiles", (2, 0))
        if not isinstance(tiles, tuple | list) or len(tiles) != 2:
            raise ValueError(f"codec.tiles are side and overlap, got {tiles!r}")
        _checks.whole("[2, inf)", **{"side of codec.tiles": tiles[0]})
        _checks.whole(f"[0, {tiles[0] - 1}]", **{"overlap of codec.tiles": tiles[1]})
        _checks.sizes(**{"codec.shape": self.codec["shape"]})
        _checks.real("(-inf, inf)", **{"codec.shift": self.codec["shift"]})
        _checks.real("(0, inf)", **{"codec.scale": self.codec["scale"]})
        if "codec" not in self.runs or self.start is not None:
            raise ValueError("a flow on latents needs the run 'codec', and starts from noise")
        other = from_values(self.runs["codec"]["recipe"])
        if not hasattr(other, "latent_shape"):
            raise ValueError(f"the run 'codec' is of the kind {other.kind}, and an autoencoder is needed")
        if (tuple(other.shape), other.shift, other.scale) != (tuple(self.shape), self.shift, self.scale):
            raise ValueError("the run 'codec' is an autoencoder of examples of another shape or scale")

    def attach(self, networks: Mapping[str, Any], workdir: str | Path) -> dict[str, Any]:
        """The networks, the codec with the scale of every entry of its latents where there is one."""
        if self.codec is None or "elements" not in self.codec:
            return dict(networks)
        found = read_elements(workdir, self.codec["elements"], self.state_shape, networks["codec"])
        return {**networks, "codec": found}

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of what the flow moves: latents, or examples."""
        return self.shape if self.codec is None else tuple(self.codec["shape"])

    @property
    def starts_from_data(self) -> bool:
        """Whether sampling needs the data."""
        return self.start is not None

    def stored(self) -> dict[str, Any]:
        """The network; the adapters on the one of the run "base"; or the refiner of the one of the run "network"."""
        if self.refiner is not None:
            return {"refiner": self._build_refiner}
        if self.adapters is None:
            return {self.stored_as: self.build_network}
        shapes = shapes_of(self.build_network)
        return {"network": lambda rngs: specs.build("adapters", self.adapters, network=shapes, rngs=rngs)}

    def _build_refiner(self, rngs: nnx.Rngs) -> nnx.Module:
        return specs.build("network", self.refiner, rngs=rngs)

    def alone(self) -> "Definition":
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
        if self.policy is None:
            more |= {name: t for name in self.build_solver().asks}
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
        expected = self.state_shape
        if self.policy is not None:
            expected = (*expected[:-1], self.build_policy().channels(expected[-1]))
        if answer.shape[1:] != expected:
            what = f"samples have the shape {expected}" if self.policy is None else f"its policy needs {expected}"
            raise ValueError(f"the network answers {answer.shape[1:]} where {what}")
        if self.refiner is not None:
            lifted = traced(shapes["refiner"], x, t, cond, velocity=x)
            if getattr(lifted, "shape", None) != x.shape:
                raise ValueError(f"the refiner must answer velocities {x.shape[1:]} with such, not with {lifted}")
        if self.codec is not None:
            other: Any = from_values(self.runs["codec"]["recipe"])
            if (found := other.latent_shape(shapes["codec"])) != self.state_shape:
                raise ValueError(f"the codec makes latents of the shape {found}, the flow moves {self.state_shape}")

    def flows(self, networks: Mapping[str, Any], guidance: Any = None) -> dict[str, Field]:
        """The flows of the other runs, which solvers and rules may name, and the refiner, guided like the flow.

        Args:
            networks: By label.
            guidance: A scale or a rule; the recipe's by default.
        """
        found = {
            label: (networks[label], from_values(run["recipe"]))
            for label, run in self.runs.items()
            if label in networks
        }
        flows: dict[str, Field] = {
            label: other.flow(network) for label, (network, other) in found.items() if isinstance(other, Definition)
        }
        if self.refiner is not None:
            refiner, rule = Flow(networks["refiner"], path=self.build_path(), null=self.null), self.build_rule(guidance)
            plain = rule.rule if isinstance(rule, Interval) else rule
            if plain is not None and not isinstance(plain, CFG):
                raise ValueError(f"a refiner is guided by a scale, and not by {type(plain).__name__}")
            flows["refiner"] = refiner if rule is None or not self.inputs else guide(refiner, rule)
        return flows

    def build_path(self) -> Any:
        """The path."""
        return specs.build("path", self.path)

    def build_policy(self) -> Head:
        """What makes policies of the network's answers."""
        return specs.build("policy", self.policy, path=self.build_path())

    def build_solver(self, spec: Any = None, flows: Mapping[str, Field] | None = None) -> Any:
        """The default solver, or the one that `spec` says; a bare name of the default one keeps its options.

        Args:
            spec: Object, text or data.
            flows: Those of the other runs, by label, from `flows`; without them only the spec is checked.
        """
        if spec is None or (isinstance(spec, str) and specs.plain(spec) == specs.plain(self.solver["name"])):
            spec = self.solver
        solver = specs.build("solver", spec, flows=self.flows(self.other_shapes) if flows is None else flows)
        if self.diffusion is not None:
            own = isinstance(solver, SDESolver) and solver.drift == "field" and not solver.backward
            if not own or any(solver.eps(self.build_path(), t) != self.diffusion for t in (0.25, 0.75)):
                raise ValueError(
                    "this network is the drift of an SDE: it is sampled by euler_maruyama(drift=field, "
                    f"diffusion={self.diffusion}), not by {specs.text(spec)}"
                )
        return solver

    @functools.cached_property
    def other_shapes(self) -> dict[str, Any]:
        """The networks of other runs and the refiner, in shapes."""
        others = {label: from_values(run["recipe"]).build_network for label, run in self.runs.items()}
        own = {} if self.refiner is None else {"refiner": self._build_refiner}
        return {label: shapes_of(build) for label, build in (others | own).items()}

    def build_times(self, spec: Any = None, steps: int | None = None, solver: Any = None) -> np.ndarray:
        """The default grid, or the one that `spec` says, with `steps` steps: by default as many as the solver has."""
        default = getattr(solver, "steps", self.steps)
        given = {"path": self.build_path(), "n": default if steps is None else steps}
        return specs.build("times", self.times if spec is None else spec, **given)

    def build_rule(self, guidance: Any = None) -> Rule | None:
        """The guidance rule of a scale or a spec; None where it is the conditional prediction itself, scale 1."""
        guidance = self.guidance if guidance is None else guidance
        if isinstance(guidance, int | float):
            _checks.real("[0, inf)", guidance=guidance)
            return None if guidance == 1 or self.embedded is not None else CFG(scale=guidance)
        rule = specs.build("rule", guidance)
        if self.embedded is not None:
            self._embed(rule)
            return None
        return rule

    @staticmethod
    def _embed(rule: Any) -> dict[str, Any]:
        """What a network with guidance as an input is asked, for a scale or a rule that says no more than one."""
        if isinstance(rule, int | float):
            return {"guidance": rule}
        if isinstance(rule, Interval) and isinstance(rule.rule, CFG) and isinstance(rule.rule.scale, int | float):
            return {"guidance": rule.rule.scale, "interval": (rule.start, rule.end)}
        raise ValueError(
            "the network of this run answers with guidance itself: guidance is a number, or "
            "interval(rule=cfg(scale=...), start=..., end=...) if it has learned intervals"
        )

    def flow(self, network: Any) -> Field:
        """The flow of a network of this recipe."""
        path = self.build_path()
        if isinstance(path, GaussianPath):
            flow = Flow(network=network, path=path, prediction=self.prediction, null=self.null, head=self.head)
            if self.policy is not None:
                return Curved(flow, policy=self.build_policy())
            return flow if self.boundary is None else _checks.call("boundary", Bounded, self.boundary, field=flow)
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

    def field(
        self,
        flow: Any,
        guidance: Any = None,
        fields: Sequence[Any] | None = None,
        against: Any = None,
        also: tuple[Any, ...] = (),
        networks: Mapping[str, Any] | None = None,
    ) -> Any:
        """The field to solve: `flow`, guided where there are conditions and the scale is not 1, and fields around it.

        Args:
            flow: From `flow`.
            guidance: A scale, a rule or the spec of one; the recipe's by default.
            fields: Specs of fields put around it, the first innermost; the recipe's by default.
            against: What stands against the condition in place of the null; by default what the recipe says.
            also: Further conditions, for rules that take them.
            networks: Those of `load_run`, which a field with a classifier of the recipe's runs needs.

        Raises:
            ValueError: A spec that is none, or conditions that nothing uses.
        """
        rule = self.build_rule(guidance)
        if (against is not None or also) and (rule is None or not self.inputs):
            raise ValueError(
                "a negative or second condition is given, but no rule that uses it: ask for guidance, such as "
                "cfg(scale=2) or composed(scales=(2, -1)), of a network that is guided by a pair"
            )
        if self.embedded is not None:
            (low, high), asked = self.embedded, self.guidance if guidance is None else guidance
            own = self._embed(asked if isinstance(asked, int | float) else specs.build("rule", asked))
            if not low <= own["guidance"] <= high:
                raise ValueError(f"guidance={own['guidance']}: the network has learned scales from {low:g} to {high:g}")
            field: Any = Embedded(flow, **own)
        else:
            if against is None and self.against and rule is not None and rule.compares:
                against = jax.tree.map(lambda rows: rows[0], self.negative(self.against, 1))
            asked = rule is not None and (self.inputs or not rule.compares)
            field = guide(flow, rule, against, also=also) if rule and asked else flow
        for spec in self.fields if fields is None else fields:
            field = specs.build("field", spec, field=field, recipe=self, networks=networks or {})
        return field

    def pinned(self, fields: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """Specs of fields, the recipe's by default, with the hash of the weights of every classifier they name.

        Raises:
            ValueError: A run that is not there, or no classifier of what this flow moves.
        """

        def pin(spec: Any) -> Any:
            model = specs.build("density", spec, recipe=self).model
            return {"name": "run", "options": {**spec["options"], "model": model}}

        return tuple(each_run(spec, pin) for spec in (self.fields if fields is None else fields))

"""What sampling from a trained flow needs besides the weights, stored as `recipe.json` in the workdir."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from flowjax import _checks, data, specs
from flowjax.conditions import Label, resized
from flowjax.data import Source
from flowjax.data.records import check_memory
from flowjax.fields import InterpolantFlow, guide
from flowjax.flow import Field, Flow
from flowjax.guidance import CFG, Rule
from flowjax.keys import noise
from flowjax.paths import PREDICTIONS, GaussianPath
from flowjax.solving import solve
from flowjax.training.checkpoint import reconstruct, restore_average
from flowjax.training.mesh import batch_sharding, make_mesh, put_batch, shardings
from flowjax.training.writers import write_json
from flowjax.weights import read, write

WEIGHTS = "weights.safetensors"


def _tuples(value: Any) -> Any:
    """JSON lists back as tuples, at every depth."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Generated samples and what they cost.

    Attributes:
        x: (N, ...) samples in the data's own scale.
        cond: (N,) labels, a dict of conditions by name, or None.
        evaluations: Solver evaluations per sample that reached a network; a guided pair is one.
        network_calls: Network rows per sample; a guided pair is two.
    """

    x: Float[np.ndarray, "N ..."]
    cond: Any
    evaluations: int
    network_calls: int

    @property
    def bad(self) -> int:
        """Number of samples with NaN or infinite values."""
        return len(self.x) - int(np.isfinite(self.x.reshape(len(self.x), -1)).all(1).sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to rebuild a trained flow and how it is sampled by default.

    Names are those of the catalogue only, so that a recipe from elsewhere runs no code of its own.

    Attributes:
        network: {"name": a network of the catalogue, "options": its arguments}.
        path: {"name": a one-sided path of the catalogue, "options": its arguments}.
        prediction: What the network predicts ("velocity", "noise", "data", "score", "v").
        data: {"name": a data set of `flowjax.data`, "options": its arguments}.
        shape: Shape of one sample.
        shift: Normalised data = (x - shift) / scale.
        scale: See `shift`.
        low: Smallest value of the data in its own scale, black in pictures; None without a bound.
        high: Largest value.
        num_classes: Number of classes, or None for data without labels.
        solver: {"name": an entry of `catalogue.solvers`, "options": its arguments}.
        steps: Default number of solver steps, at least 1.
        guidance: Default guidance: a scale of classifier-free guidance, of which 1 asks the conditional network alone,
            or a rule of the catalogue.
        times: Default grid, from the catalogue; it is given the path and the number of steps.
        fields: Fields of the catalogue put around the guided flow, the first innermost.
        conditions: What can be asked for by name, from the catalogue; None is one bare label, where there are classes.
        start: Where sampling starts: None is noise, {"name": "data", "options": {"field": "x0"}} the field "x0" of the
            data (flows between two laws).
        kind: "flow".

    Raises:
        ValueError: An unknown name, unknown, missing or wrong options, a number outside its range, or a network with
            fewer classes than the data.
    """

    network: Mapping[str, Any]
    path: Mapping[str, Any]
    prediction: str
    data: Mapping[str, Any]
    shape: tuple[int, ...]
    shift: float
    scale: float
    low: float | None
    high: float | None
    num_classes: int | None
    solver: Mapping[str, Any]
    steps: int
    guidance: float | Mapping[str, Any] = 1.0
    times: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "uniform", "options": {}})
    fields: tuple[Mapping[str, Any], ...] = ()
    conditions: Mapping[str, Any] | None = None
    start: Mapping[str, Any] | None = None
    kind: str = "flow"

    def __post_init__(self):
        _checks.choose("kind of recipe", self.kind, ("flow",))
        _checks.sizes(shape=self.shape)
        _checks.whole(_checks.STEPS, steps=self.steps)
        _checks.real("(-inf, inf)", shift=self.shift)
        _checks.real("(0, inf)", scale=self.scale)
        self.build_rule()
        _checks.choose("prediction", self.prediction, PREDICTIONS)
        for name in ("network", "path", "data", "solver", "times"):
            spec = getattr(self, name)
            if not (isinstance(spec.get("name"), str) and isinstance(spec.get("options"), Mapping)):
                raise ValueError(f'{name} must be {{"name": NAME, "options": {{...}}}}, got {spec}')
        specs.find("network", self.network["name"])
        two_sided = not isinstance(self.build_path(), GaussianPath)
        if two_sided and self.start is None:
            raise ValueError("a path between two laws needs start, the field of the data where sampling starts")
        self.build_times()
        self.build_solver()
        for spec in self.fields:
            specs.find("field", spec["name"])
        _checks.real("(-inf, inf)", low=0.0 if self.low is None else self.low)
        _checks.real("(-inf, inf)", high=0.0 if self.high is None else self.high)
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        if self.num_classes is not None:
            _checks.whole(_checks.COUNT, num_classes=self.num_classes)
            known = self.network["options"].get("num_classes")
            if known is None or known < self.num_classes:
                raise ValueError(
                    f"the data have {self.num_classes} classes, but the network is built with num_classes={known}; "
                    f"set num_classes={self.num_classes} in its options, or read the data without labels"
                )
        self.balanced(1)  # builds the conditions

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

    def build_network(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new network."""
        return specs.build("network", self.network, rngs=rngs)

    def build_path(self) -> Any:
        """The path."""
        return specs.build("path", self.path)

    def build_solver(self, spec: Any = None) -> Any:
        """The default solver, or the one that `spec` says; a bare name of the default one keeps its options.

        Args:
            spec: Object, text or data.
        """
        if spec is None or (isinstance(spec, str) and specs.plain(spec) == specs.plain(self.solver["name"])):
            spec = self.solver
        return specs.build("solver", spec)

    def build_times(self, spec: Any = None, steps: int | None = None) -> np.ndarray:
        """The default grid, or the one that `spec` says, with `steps` steps."""
        given = {"path": self.build_path(), "n": self.steps if steps is None else steps}
        return specs.build("times", self.times if spec is None else spec, **given)

    def build_rule(self, guidance: Any = None) -> Rule | None:
        """The guidance rule of a scale or a spec; None where it is the conditional prediction itself, scale 1."""
        guidance = self.guidance if guidance is None else guidance
        if isinstance(guidance, int | float):
            _checks.real("[0, inf)", guidance=guidance)
            return None if guidance == 1 else CFG(scale=guidance)
        return specs.build("rule", guidance)

    def check_sizes(self, num: int, batch: int) -> None:
        """Refuses what the memory of this machine cannot hold, before anything is made.

        Args:
            num: Number of samples.
            batch: Samples generated at once.

        Raises:
            ValueError: See `flowjax.data.records.check_memory`.
        """
        size = math.prod(self.shape)
        check_memory(f"num={num} samples", 8 * num * size)  # blocks and their concatenation
        check_memory(f"batch={batch} samples at once", 16 * batch * size)  # noise, state, velocity, result

    def check_network(self, network: Any) -> None:
        """Traces a call of the network and refuses what it takes or answers if that is not of this recipe's shape.

        Args:
            network: Arrays or shapes, as `jax.eval_shape(lambda: recipe.build_network(nnx.Rngs(0)))` gives them.

        Raises:
            ValueError: It cannot be called with samples and conditions of this recipe, or its answer is no sample.
        """
        x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *self.shape), (1,)))
        structs = {name: condition.struct for name, condition in self.inputs.items()}
        cond = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), self._shaped(structs))
        try:
            shape = jax.eval_shape(lambda network, *inputs: network(*inputs), network, x, t, cond).shape
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ValueError(f"the network does not take samples of shape {self.shape}: {error}") from error
        if shape != x.shape:
            raise ValueError(f"the network answers {shape[1:]} where samples have the shape {self.shape}")

    def flow(self, network: Any) -> Field:
        """The flow of a network of this recipe."""
        path = self.build_path()
        if isinstance(path, GaussianPath):
            return Flow(network=network, path=path, prediction=self.prediction, null=self.null)
        return InterpolantFlow(network, path=path, prediction=self.prediction)

    def plain_scale(self, guidance: float | None = None) -> float:
        """The scale of plain guidance that a calibration belongs to: the one given, or the recipe's.

        Raises:
            ValueError: The recipe's is another rule.
        """
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

    def read_conditions(self, asked: Mapping[str, str], num: int) -> Any:
        """Conditions of `num` samples from texts of a command line, by name; those not asked for are the default.

        Raises:
            ValueError: A condition that this recipe does not have, or a text that it cannot read.
        """
        for name in asked:
            _checks.choose("condition of this run", name, self.inputs)
        return self._shaped(
            {
                name: condition.read(asked[name], num) if name in asked else condition.default(num)
                for name, condition in self.inputs.items()
            }
        )

    def sample(
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
    ) -> Samples:
        """Generates samples 0..num-1 in blocks; sample i depends on (key, i, its label) only.

        Args:
            field: From `field`.
            num: Number of samples, at least 1.
            key: Typed key.
            cond: Conditions, a pytree with leading axis num: one label per sample, or a dict by name.
            solver: A solver or its spec; the recipe's by default.
            steps: Number of solver steps; the recipe's by default.
            grid: Times to sample at, or the spec of a grid of `steps` steps; the recipe's by default.
            start: A map of noise to start states, `couplings.SemidiscreteMap`, or rows (num, ...) of normalised states
                to start from, in place of `path.start`. For a recipe that starts from data it is this data, a source
                (`data.of_run`); other recipes pass over a source.
            batch: Samples per block, rounded up to a multiple of the devices.
            mesh: Splits each block over its devices; all devices by default.
        """
        mesh = make_mesh() if mesh is None else mesh
        if not isinstance(grid, np.ndarray):
            grid = self.build_times(grid, steps)
        solver = self.build_solver() if solver is None else solver
        if self.start is not None and (start is None or isinstance(start, Source)):
            start = self._start_rows(start, num)
        elif isinstance(start, Source):
            start = None
        noise_key, solver_key = jax.random.split(key)
        batch = -(-batch // mesh.size) * mesh.size

        def begin(key, index, start, cond):
            if isinstance(start, jax.Array):
                return start
            x0 = noise(key, (batch, *self.shape), index)
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
            blocks.append(multihost_utils.process_allgather(result.x, tiled=True))
        x = np.concatenate(blocks)[:num] * np.float32(self.scale) + np.float32(self.shift)
        return Samples(x=x, cond=cond, evaluations=int(result.evaluations), network_calls=int(result.network_calls))

    def _start_rows(self, source: Source | None, num: int) -> np.ndarray:
        """Normalised states where sampling starts, (num, ...): rows of the data, in their order, again if needed."""
        name = (self.start or {}).get("options", {}).get("field", "x0")
        if source is None:
            raise ValueError(f"this flow starts from the field {name!r} of its data: pass the data as start=")
        if name not in source.fields:
            known = ", ".join(source.fields) or "none"
            raise ValueError(f"the data has no field {name!r} to start from; it has {known}")
        rows = np.resize(np.arange(len(source.x)), num)
        return ((source.fields[name][rows] - self.shift) / self.scale).astype(np.float32)

    def save(self, workdir: str | Path) -> None:
        """Writes `recipe.json`."""
        write_json(Path(workdir) / "recipe.json", dataclasses.asdict(self))

    @classmethod
    def load(cls, workdir: str | Path) -> "Recipe":
        """Reads `recipe.json`.

        Raises:
            FileNotFoundError: The workdir has none.
            ValueError: It is not a recipe; the message says which entry is wrong.
        """
        path = Path(workdir) / "recipe.json"
        try:
            values = _tuples(json.loads(path.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{workdir} is not the workdir of a training run (no recipe.json)") from None
        except (ValueError, RecursionError, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        try:
            _check_places({key: value for key, value in dict(values).items() if key != "data"}, Path(workdir))
            return _checks.call("recipe", cls, values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a recipe: {error}") from error


def _check_places(values: Any, workdir: Path) -> None:
    """Refuses specs, at any depth, that name files outside of the workdir: a recipe may come from elsewhere.

    Raises:
        ValueError: One does.
    """
    if isinstance(values, Mapping):
        options = values.get("options")
        options = options if isinstance(options, Mapping) else {}
        for key in data.PLACES:
            if isinstance(value := options.get(key), str) and not data.lies_in(value, workdir):
                raise ValueError(f"{values.get('name')} with {key}={value} lies outside of {workdir}")
        for value in values.values():
            _check_places(value, workdir)
    elif isinstance(values, tuple):
        for value in values:
            _check_places(value, workdir)


def export(flow: Flow, recipe: Recipe, folder: str | Path, dtype: Any = None) -> None:
    """Writes the recipe and the weights as one file, a folder that `load` and all mains read like a workdir.

    Args:
        flow: From `load`.
        recipe: From `load`.
        folder: Folder to write; made if needed.
        dtype: Type of the weights in the file, for example "float16"; None keeps their own.

    Raises:
        FileExistsError: The folder holds weights or a recipe already, those of a run for example.
        ValueError: The network has NaN or infinite values, or values that `dtype` cannot hold.
    """
    if (Path(folder) / "recipe.json").exists():
        raise FileExistsError(f"{folder} holds a recipe.json; export to another folder")
    write(Path(folder) / WEIGHTS, flow.network, dtype)
    recipe.save(folder)


def load(
    workdir: str | Path, mesh: Mesh | None = None, *, which: str = "latest", average: str | float | None = None
) -> tuple[Any, Recipe]:
    """A trained flow with averaged weights, and its recipe. A damaged checkpoint is passed over with a warning.

    Args:
        workdir: Folder of a training run, or one made by `export`.
        mesh: Where the weights go; all devices by default.
        which: "latest" checkpoint, or the "best" by `config.train.best`.
        average: Name of an average of `config.train.averages`, or a number: the relative standard deviation of a power
            average that is made from the snapshots of the run, at the newest of them. None is the default average.

    Raises:
        FileNotFoundError: The workdir has no recipe, no complete checkpoint or no snapshots.
        ValueError: A recipe that is none. An unknown `which` or average; a folder made by `export` has only the default
            ones. Weights that do not fit the recipe, have changed since they were exported, or are NaN or infinite.
    """
    recipe, workdir = Recipe.load(workdir), Path(workdir)
    mesh = make_mesh() if mesh is None else mesh
    shapes = jax.eval_shape(lambda: recipe.build_network(nnx.Rngs(0)))
    recipe.check_network(shapes)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )
    if (workdir / WEIGHTS).exists():
        if (which, average) != ("latest", None):
            raise ValueError(f"{workdir} has one set of weights; which={which!r} and average={average!r} need a run")
        network = read(workdir / WEIGHTS, placed)
    elif isinstance(average, str | None):
        network = restore_average(workdir / "checkpoints", placed, which, average)
    else:
        network = reconstruct(workdir / "snapshots", placed, average)
    return recipe.flow(network), recipe

"""What sampling from a trained flow needs besides the weights, stored as `recipe.json` in the workdir."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

import flowjax.guidance
from flowjax import _checks, specs, times
from flowjax.fields import guide
from flowjax.flow import Flow
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
        cond: (N,) labels, or None.
        evaluations: Solver evaluations per sample that reached a network; a guided pair is one.
        network_calls: Network rows per sample; a guided pair is two.
    """

    x: Float[np.ndarray, "N ..."]
    cond: Int[np.ndarray, " N"] | None
    evaluations: int
    network_calls: int


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
        guidance: Default scale of classifier-free guidance; 1 asks the conditional network alone.

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
    guidance: float = 1.0

    def __post_init__(self):
        _checks.sizes(shape=self.shape)
        _checks.whole(_checks.COUNT, steps=self.steps)
        _checks.real("(-inf, inf)", shift=self.shift)
        _checks.real("(0, inf)", scale=self.scale)
        _checks.real("[0, inf)", guidance=self.guidance)
        _checks.choose("prediction", self.prediction, PREDICTIONS)
        for name in ("network", "path", "data", "solver"):
            spec = getattr(self, name)
            if not (isinstance(spec.get("name"), str) and isinstance(spec.get("options"), Mapping)):
                raise ValueError(f'{name} must be {{"name": NAME, "options": {{...}}}}, got {spec}')
        specs.find("network", self.network["name"])
        if not isinstance(path := self.build_path(), GaussianPath):
            raise ValueError(f"path must be one-sided, got {path}")
        self.build_solver()
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

    @property
    def null(self) -> int | None:
        """The condition that stands for "no class": the number behind the last class."""
        return self.num_classes

    def build_network(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new network."""
        return specs.build("network", self.network, rngs=rngs)

    def build_path(self) -> Any:
        """The path."""
        return specs.build("path", self.path)

    def build_solver(self, name: str | None = None) -> Any:
        """The default solver, or the one called `name` with its own defaults."""
        return specs.build("solver", self.solver if name in (None, self.solver["name"]) else name)

    def check_network(self, network: Any) -> None:
        """Traces a call of the network and refuses what it takes or answers if that is not of this recipe's shape.

        Args:
            network: Arrays or shapes, as `jax.eval_shape(lambda: recipe.build_network(nnx.Rngs(0)))` gives them.

        Raises:
            ValueError: It cannot be called with samples and conditions of this recipe, or its answer is no sample.
        """
        x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *self.shape), (1,)))
        cond = None if self.num_classes is None else jax.ShapeDtypeStruct((1,), jnp.int32)
        try:
            shape = jax.eval_shape(lambda network, *inputs: network(*inputs), network, x, t, cond).shape
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ValueError(f"the network does not take samples of shape {self.shape}: {error}") from error
        if shape != x.shape:
            raise ValueError(f"the network answers {shape[1:]} where samples have the shape {self.shape}")

    def flow(self, network: Any) -> Flow:
        """The flow of a network of this recipe."""
        return Flow(network=network, path=self.build_path(), prediction=self.prediction, null=self.null)

    def field(self, flow: Flow, guidance: float | None = None) -> Any:
        """The field to solve: `flow` itself, or guided if there are classes and the scale is not 1."""
        scale = self.guidance if guidance is None else guidance
        if self.num_classes is None or scale == 1.0:
            return flow
        return guide(flow, flowjax.guidance.CFG(scale=scale))

    def balanced(self, num: int, classes: tuple[int, ...] | None = None) -> Int[np.ndarray, " num"] | None:
        """Labels of samples 0..num-1: the classes in turn (all of them by default); None without classes."""
        if self.num_classes is None:
            return None
        return np.resize(np.asarray(classes or range(self.num_classes), np.int32), num)

    def sample(
        self,
        field: Any,
        num: int,
        *,
        key: Key[Array, ""],
        cond: Int[np.ndarray, " num"] | None = None,
        solver: Any = None,
        steps: int | None = None,
        grid: np.ndarray | None = None,
        start: Any = None,
        batch: int = 200,
        mesh: Mesh | None = None,
    ) -> Samples:
        """Generates samples 0..num-1 in blocks; sample i depends on (key, i, its label) only.

        Args:
            field: From `field`.
            num: Number of samples, at least 1.
            key: Typed key.
            cond: One label per sample.
            solver: A solver; the recipe's by default.
            steps: Number of solver steps; the recipe's by default.
            grid: Times to sample at instead of `steps` equal ones from 0 to 1.
            start: A map of noise to start states, `couplings.SemidiscreteMap`, in place of `path.start`.
            batch: Samples per block, rounded up to a multiple of the devices.
            mesh: Splits each block over its devices; all devices by default.
        """
        mesh = make_mesh() if mesh is None else mesh
        if grid is None:
            grid = times.uniform(self.steps if steps is None else steps)
        solver = self.build_solver() if solver is None else solver
        noise_key, solver_key = jax.random.split(key)
        batch = -(-batch // mesh.size) * mesh.size

        def begin(key, index, start, labels):
            x0 = noise(key, (batch, *self.shape), index)
            return field.path.start(x0, grid[0]) if start is None else start.start(x0, grid[0], labels)

        begin = jax.jit(begin, out_shardings=batch_sharding(mesh))
        blocks = []
        for first in range(0, num, batch):
            # The last block is as large as the others, so that nothing compiles twice; the surplus is cut
            # below.
            labels = None if cond is None else put_batch(np.resize(cond[first : first + batch], batch), mesh)
            x0 = begin(jax.random.clone(noise_key), jnp.asarray(first), start, labels)
            result = solve(field, solver, x0, grid, cond=labels, key=solver_key, index=first)
            blocks.append(multihost_utils.process_allgather(result.x, tiled=True))
        x = np.concatenate(blocks)[:num] * np.float32(self.scale) + np.float32(self.shift)
        return Samples(x=x, cond=cond, evaluations=int(result.evaluations), network_calls=int(result.network_calls))

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
            return _checks.call("recipe", cls, values)
        except ValueError as error:
            raise ValueError(f"{path} is not a recipe: {error}") from error


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
) -> tuple[Flow, Recipe]:
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

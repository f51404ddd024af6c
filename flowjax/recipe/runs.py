"""Trained runs by their folder: networks with averaged weights, and the recipe that says how they are used."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from flowjax import _checks, specs
from flowjax.calibration.store import model_hash
from flowjax.facts import fact
from flowjax.flow import Flow
from flowjax.recipe.base import Base, from_values, shapes_of
from flowjax.recipe.decoding import Elements
from flowjax.recipe.flow import Recipe
from flowjax.training.checkpoint import reconstruct, restore_average
from flowjax.training.mesh import make_mesh, shardings
from flowjax.training.trees import bare, by_label, set_mode
from flowjax.weights import read, write

WEIGHTS = "weights.safetensors"


def load_run(
    workdir: str | Path,
    mesh: Mesh | None = None,
    *,
    which: str = "latest",
    average: str | float | None = None,
    dtype: Any = None,
) -> tuple[dict[str, Any], Any]:
    """The networks of a run with averaged weights, by label, and its recipe.

    A damaged checkpoint is passed over with a warning. Networks of other runs that the recipe names are among them, by
    their labels.

    Args:
        workdir: Folder of a training run, or one made by `export`.
        mesh: Where the weights go; all devices by default.
        which: "latest" checkpoint, or the "best" by `config.train.best`.
        average: Name of an average of `config.train.averages`, or a number: the relative standard deviation of a power
            average that is made from the snapshots of the run, at the newest of them. None is the default average.
        dtype: Type of the floating-point weights, "bfloat16" for example; None keeps their own.

    Raises:
        FileNotFoundError: The workdir, or that of another run which it needs, has no recipe, no complete checkpoint or
            no snapshots.
        ValueError: A recipe that is none. An unknown `which` or average; a folder made by `export` has only the default
            ones. Weights that do not fit the recipe, have changed since they were exported, are NaN or infinite, or
            belong to another run that has been trained on.
    """
    recipe, workdir = Base.load(workdir), Path(workdir)
    mesh = make_mesh() if mesh is None else mesh
    shapes = {label: set_mode(shapes_of(build), training=False) for label, build in recipe.stored().items()}
    recipe.check_networks(_shapes_of_all(recipe, shapes))
    whole = bare(shapes, shapes)
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        whole,
        shardings(whole, mesh),
    )
    if not shapes:
        found: Any = {}
    elif (workdir / WEIGHTS).exists():
        if (which, average) != ("latest", None):
            raise ValueError(f"{workdir} has one set of weights; which={which!r} and average={average!r} need a run")
        found = read(workdir / WEIGHTS, like)
    elif isinstance(average, str | None):
        found = restore_average(workdir / "checkpoints", like, which, average)
    else:
        found = reconstruct(workdir / "snapshots", like, average)
    networks = by_label(found, shapes)
    for label, run in recipe.runs.items():
        networks |= _other(workdir, label, run, mesh)
    used = {label: cast(network, dtype) for label, network in recipe.assemble(networks).items()}
    return recipe.attach(used, workdir), recipe


def _shapes_of_all(recipe: Any, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The networks to use, in shapes."""

    def build() -> dict[str, Any]:
        others: dict[str, Any] = {}
        for label, run in recipe.runs.items():
            other = from_values(run["recipe"])
            others[label] = other.build_network(nnx.Rngs(0))
            for inner, further in other.runs.items():
                others[f"{label}.{inner}"] = from_values(further["recipe"]).build_network(nnx.Rngs(0))
        stored = {label: build(nnx.Rngs(0)) for label, build in recipe.stored().items()}
        return recipe.assemble(stored | others)

    return jax.eval_shape(build) if recipe.runs else recipe.assemble(shapes)


def _other(workdir: Path, label: str, run: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The network of another run by its label, the same that this one was made with, and those that it needs itself.

    The codec of a run "first" is called "first.codec".
    """
    if run["workdir"] is None:
        fixed: Any = from_values(run["recipe"])
        if getattr(fixed, "model", None) != run["model"]:
            raise ValueError(f"{workdir} names a codec without weights by the hash {run['model']}, and it has another")
        return {label: fixed.build_network()}
    place = (workdir / run["workdir"]).resolve()  # checkpoints are read by paths without links and ".."
    try:
        networks, recipe = load_run(place, mesh)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{workdir} needs the run {label!r} at {place}: {error}") from error
    network = networks[recipe.label]
    if (model := model_hash(network)) != run["model"]:
        raise ValueError(
            f"{workdir} was made with the run {label!r} at {place} when its weights had the hash {run['model']}; they "
            f"have {model} now: bring those weights back, or train again"
        )
    then, now = behind(from_values(run["recipe"])), behind(recipe)
    for name in then | now:
        if (own := now.get(name)) != (before := then.get(name)):
            raise ValueError(
                f"{workdir} was made with the run {label!r} at {place} when its {name} was {before}; it is {own} now"
            )
    return {label: network} | {f"{label}.{inner}": networks[inner] for inner in recipe.runs if inner in networks}


def behind(recipe: Base, prefix: str = "") -> dict[str, Any]:
    """What the answers of a run depend on beside its weights and those of the runs that it needs, by dotted names."""
    recipe = recipe.alone()  # as in a copy
    found = {f"{prefix}{name}": getattr(recipe, name) for name in ("network", "shift", "scale")}
    for label, run in recipe.runs.items():
        found |= behind(from_values(run["recipe"]), f"{prefix}{label}.")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A trained run that another one stands on.

    Attributes:
        workdir: Its folder; None for a codec without weights.
        networks: By label.
        recipe: Its recipe.
        model: The hash of its weights in their own precision.

    Example:
        >>> from pathlib import Path
        >>> loaded = Loaded(workdir=Path("runs/digits"), networks={}, recipe=Run(workdir="runs/digits"), model="00ff")
        >>> loaded.entry("runs/student")["workdir"]  # as seen from there
        '../digits'
    """

    workdir: Path | None
    networks: Mapping[str, Any]
    recipe: Any
    model: str

    @property
    def place(self) -> str:
        """What messages call it."""
        return specs.text(self.recipe.network) if self.workdir is None else str(self.workdir)

    def entry(self, workdir: str | Path) -> dict[str, Any]:
        """What a recipe in `workdir` says of it, an entry of its `runs`."""
        where = None
        if self.workdir is not None:
            where = Path(os.path.relpath(self.workdir.resolve(), Path(workdir).resolve())).as_posix()
        return {"workdir": where, "model": self.model, "recipe": dataclasses.asdict(self.recipe)}

    def check_same(self, what: str, workdir: str | Path, began: str) -> None:
        """Refuses to go on in a workdir that began with other weights, of the hash `began`.

        Raises:
            ValueError: They are others.
        """
        if began != self.model:
            raise ValueError(
                f"{workdir} began with a {what} whose weights have the hash {began}; {self.place} has {self.model} "
                "now: bring those weights back, or use another --workdir or --allow_config_change"
            )


@fact("run", "run", "a trained run", example=lambda: {"workdir": "runs/digits"})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Which trained run another one stands on: a teacher, a base of adapters, a codec.

    Attributes:
        workdir: Its folder, or one made by `export`.
        which: "latest" checkpoint, or the "best".
        average: Name of an average, or a number, see `load_run`.
        dtype: Type of the weights, "bfloat16" for example; None keeps their own.

    Raises:
        ValueError: No folder is named, an unknown `which`, or a type that is none.

    Example:
        >>> run = Run(workdir="runs/digits", which="best", dtype="bfloat16")  # run.load() reads it
        >>> run.which, run.average
        ('best', None)
    """

    workdir: str
    which: str = "latest"
    average: str | float | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Checks the names."""
        if not self.workdir:
            raise ValueError("name the trained run: workdir=FOLDER")
        _checks.choose("which", self.which, ("latest", "best"))
        if self.dtype is not None:
            _checks.choose("dtype", self.dtype, ("bfloat16", "float16", "float32", "float64"))

    def load(self, mesh: Mesh | None = None) -> Loaded:
        """Its networks on a mesh, with their hash.

        Raises:
            ValueError: See `load_run`; there is no such run.
        """
        try:
            networks, recipe = load_run(self.workdir, mesh, which=self.which, average=self.average)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        model = model_hash(networks[recipe.label])
        networks = {  # latents are those of the codec in its own precision
            label: network if label.split(".")[-1] == "codec" else cast(network, self.dtype)
            for label, network in networks.items()
        }
        return Loaded(workdir=Path(self.workdir), networks=networks, recipe=recipe, model=model)


def cast(network: Any, dtype: Any) -> Any:
    """The network with floating-point weights of another type; its own for None."""
    if dtype is None:
        return network
    if isinstance(network, Elements):  # the scale of latents keeps its precision
        return dataclasses.replace(network, network=cast(network.network, dtype))
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, network)


def load(
    workdir: str | Path, mesh: Mesh | None = None, *, which: str = "latest", average: str | float | None = None
) -> tuple[Any, Recipe]:
    """A trained flow with averaged weights, and its recipe; `load_run` for a flow, whose arguments these are.

    Raises:
        FileNotFoundError: See `load_run`.
        ValueError: See `load_run`; a run that is no flow.
    """
    Recipe.load(workdir)
    networks, recipe = load_run(workdir, mesh, which=which, average=average)
    return recipe.flow(networks["network"]), recipe


def export(flow: Flow, recipe: Recipe, folder: str | Path, dtype: Any = None) -> None:
    """Writes the recipe and the weights of a flow as one file, a folder that `load` and all mains read like a workdir.

    Args:
        flow: From `load`.
        recipe: From `load`.
        folder: Folder to write; made if needed.
        dtype: Type of the weights in the file, for example "float16"; None keeps their own.

    Raises:
        FileExistsError: The folder holds weights or a recipe already, those of a run for example.
        ValueError: The network has NaN or infinite values, or values that `dtype` cannot hold; the flow needs other
            runs, which `export_run` writes.
    """
    export_run({"network": flow.network}, recipe, folder, dtype)


def export_run(networks: Mapping[str, Any], recipe: Any, folder: str | Path, dtype: Any = None) -> None:
    """Writes any run from `load_run` as a folder of its own: adapters merged, other runs that it needs in `runs/`.

    Args:
        networks: From `load_run`.
        recipe: From `load_run`.
        folder: Folder to write; made if needed.
        dtype: Type of the weights in the files, for example "float16"; None keeps their own.

    Raises:
        FileExistsError: The folder holds weights or a recipe already.
        ValueError: A network is missing, has NaN or infinite values, or values that `dtype` cannot hold.
    """
    folder = Path(folder)
    if (folder / "recipe.json").exists():
        raise FileExistsError(f"{folder} holds a recipe.json; export to another folder")
    recipe = recipe.alone()
    if missing := [label for label in (*recipe.stored(), *recipe.runs) if label not in networks]:
        raise ValueError(f"the network {missing[0]!r} is missing: pass the networks from load_run")
    entries: dict[str, Any] = {}
    if isinstance(codec := networks.get("codec"), Elements):
        codec.write(folder)
        networks = {**networks, "codec": codec.network}
    for label, run in recipe.runs.items():
        if run["workdir"] is None:
            entries[label] = run
            continue
        other, network = from_values(run["recipe"]), networks[label]
        inner = {name: networks[f"{label}.{name}"] for name in other.runs if f"{label}.{name}" in networks}
        export_run({other.label: network, **inner}, other, folder / "runs" / label, dtype)
        there = jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), cast(network, dtype), network)
        copied = Loaded(workdir=folder / "runs" / label, networks={}, recipe=other.alone(), model=model_hash(there))
        entries[label] = copied.entry(folder)
    if own := {label: networks[label] for label in recipe.stored()}:
        write(folder / WEIGHTS, bare(own, own), dtype)
    dataclasses.replace(recipe, runs=entries).save(folder)

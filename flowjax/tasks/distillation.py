"""A student of a trained flow: the teacher comes from its workdir, frozen."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax

from flowjax import specs
from flowjax._trees import flatten
from flowjax.data import Pairs, Source
from flowjax.facts import fact
from flowjax.paths import GaussianPath
from flowjax.recipe import Codec, Loaded, Recipe, Run
from flowjax.recipe.base import shapes_of
from flowjax.recipe.codec import codec_of, rescaled
from flowjax.tasks.base import Part
from flowjax.tasks.generation import Generation
from flowjax.training.writers import write_json

TEACHER = "teacher.json"

_ADDED = {"second_time": "span", "guidance": "strength"}
"""Options that add an embedding to a network, and its name there."""

_FREE = ("zero_span", "out_channels", "outputs", "attention", "remat", "scan", "dropout", "dtype", "param_dtype")
"""Options of networks that do not change what the same arrays answer, or change their names or shapes."""


def named_conditions(recipe: Recipe) -> dict[str, Any] | None:
    """The conditions of a recipe that has them by name."""
    return None if recipe.conditions is None else recipe.inputs


def check_flow(what: str, loaded: Loaded, source: Any, conditions: Any) -> Recipe:
    """The recipe of a trained flow that a run stands on.

    Args:
        what: What it is for this run.
        loaded: The trained run.
        source: The data of this run.
        conditions: Those that this run's config asks for.

    Raises:
        ValueError: A run that is no flow on a path from noise, or one of examples of another shape or other classes;
            conditions, which are those of the trained flow.
    """
    recipe = loaded.recipe
    if conditions is not None:
        raise ValueError(f"the conditions are those of the {what}: leave config.task.options.conditions out")
    if not isinstance(recipe, Recipe) or not isinstance(recipe.build_path(), GaussianPath):
        raise ValueError(f"the {what} {loaded.workdir} is not a flow from noise to data (its kind is {recipe.kind})")
    for name, own, there in (
        ("shape of the examples", source.x.shape[1:], tuple(recipe.shape)),
        ("number of classes", source.num_classes, recipe.num_classes),
    ):
        if own != there:
            raise ValueError(f"the {what} {loaded.workdir} does not fit: its {name} is {there}, that of the data {own}")
    return recipe


def answering(network: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The spec of a network, with so many channels of its answer.

    Raises:
        ValueError: It has no option for them.
    """
    name, options = network["name"], dict(network["options"])
    known = specs.options_of(specs.find("network", name))
    if "network" in known:  # one inside another, which gives it conditions
        inner = dict(zip(("name", "options"), specs.name_and_options(options["network"]), strict=True))
        return {"name": name, "options": options | {"network": answering(inner, channels)}}
    for option in ("out_channels", "outputs"):
        if option in known:
            return {"name": name, "options": options | {option: channels}}
    raise ValueError(f"network {name!r} answers in the channels of its input, and a policy needs {channels}")


def started(
    head: Any, found: Mapping[str, Any], wanted: Mapping[str, Any], recipe: Recipe, seed: int
) -> dict[str, Any]:
    """What of a network can start from a trained one: the arrays of the same names and shapes.

    Args:
        head: What tells the channels of its answers, and how its last layer grows from the trained one: that of a
            policy (`flowjax.policies.Head`) or of an objective's partner; None is the trained one's.
        found: Arrays of the trained network, by name.
        wanted: Those of the new one, in shapes.
        recipe: That of the trained network.
        seed: Of what is random in that.
    """
    start = {name: found[name] for name in wanted if name in found and found[name].shape == wanted[name].shape}
    if head is None:
        return start
    channels, key = recipe.state_shape[-1], jax.random.key(seed)
    for number, name in enumerate(sorted(wanted.keys() & found.keys())):
        own, there = wanted[name].shape, found[name].shape
        if own != there and own[:-1] == there[:-1] and own[-1] * channels == there[-1] * head.channels(channels):
            start[name] = head.grown(found[name], channels, jax.random.fold_in(key, number))
    return start


def _options(network: Any, prefix: str = "") -> dict[str, Any]:
    """The options of a network on which its answers depend, with defaults and those of a network inside, by name."""
    name, given = specs.name_and_options(network)
    found: dict[str, Any] = {f"{prefix}name": specs.plain(name)}
    for option, known in specs.options_of(specs.find("network", name)).items():
        value = given.get(option, known.default)
        if option == "network":
            found |= _options(value, f"{prefix}network.")
        elif option not in _FREE:
            found[prefix + option] = json.loads(json.dumps(value, default=str))
    return found


def _scale(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in (recipe.codec or {}).items() if name in ("shift", "scale", "elements")}


def in_scale(source: Source, recipe: Recipe) -> Source:
    """The data as the trained flow sees them; its bounds are those of examples that nobody has."""
    low, high = (recipe.low, recipe.high) if source.blank else (source.low, source.high)
    return dataclasses.replace(source, shift=recipe.shift, scale=recipe.scale, low=low, high=high)


@fact("task", "distillation", "a student of a trained flow")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Generation):
    """Trains a student on what a trained flow, the teacher, predicts.

    `config.teacher` names its run; its path, its normalisation of the data and, unless `config.network` has a name, its
    network are the student's. Options of a network without a name are added to the teacher's, `guidance=True` for
    example. The teacher's weights are arguments of a training step, never saved with the student; `teacher.json` keeps
    their hash, and that of another start, and a run goes on with the same ones only.

    Attributes:
        guidance: By how much the teacher is guided: a scale, a rule, or None for what its recipe says; two numbers are
            the smallest and the largest of the scales that the student learns to answer with (networks with
            `guidance=True`).
        start: Whether the student starts from the teacher's weights, where it has parameters of the same names and
            shapes; others, and a refiner, start as in a new network. Or another run in the teacher's place, such as
            one of mid-training, `run(workdir=...)`: of the student's own network, which may have the embeddings of
            `second_time` and `guidance` besides.

    Example:
        >>> from flowjax.configs.base import base, spec
        >>> config = base("distillation", data=spec("digits"), teacher=spec("run", workdir="runs/digits"))
        >>> set(Distillation.sections) <= set(config), config.objective.name
        (True, 'teacher_regression')
    """

    guidance: Any = None
    start: Any = dataclasses.field(default=True, metadata={"kind": "run"})

    sections: ClassVar[tuple[str, ...]] = (*Generation.sections, "teacher")

    def __post_init__(self) -> None:
        """Checks the teacher.

        Raises:
            ValueError: A teacher of another shape, path or classes, or a student that cannot start from it.
        """
        if isinstance(self.guidance, tuple | list):
            if len(self.guidance) not in (1, 2):
                raise ValueError(f"guidance={self.guidance} is no scale, no rule and no pair (smallest, largest)")
            if len(self.guidance) == 1:  # how command lines write a number in place of a pair
                object.__setattr__(self, "guidance", self.guidance[0])
        recipe = check_flow("teacher", self.teacher, self.source, self.conditions)
        object.__setattr__(self, "source", in_scale(self.source, recipe))
        if self.config.path.name and specs.build("path", self.config.path.to_dict()) != recipe.build_path():
            raise ValueError(
                f"config.path is {specs.text(self.config.path.to_dict())}, but the teacher's path is "
                f"{specs.text(recipe.path)}; leave config.path.name empty to take the teacher's"
            )
        if not isinstance(self.start, bool | Run):
            raise ValueError(f"start={self.start!r} is neither True nor False nor run(workdir=FOLDER)")
        if isinstance(self.start, Run):
            if self._refines:
                raise ValueError("a refiner starts as a new network: leave config.task.options.start out")
            self._check_start(recipe)
        if self.start and not self._refines and self._objective.prediction != recipe.prediction:
            raise ValueError(
                f"the student predicts the {self._objective.prediction}, the teacher the {recipe.prediction}: it "
                "cannot start from the teacher, set config.task.options.start=False"
            )
        if self._refines and recipe.embedded is not None:
            raise ValueError(
                f"the teacher {self.teacher.workdir} answers with guidance in one call, and a refiner is guided by a "
                "pair: take a teacher without"
            )
        known = specs.options_of(specs.find("objective", self.config.objective.name))
        if self.guidance is not None and ("guidance" if self._scales else "teacher") not in known:
            raise ValueError(
                f"config.task.options.guidance={self.guidance} is for the teacher's predictions"
                f"{', over a range of scales' if self._scales else ''}, which objective {self.config.objective.name!r} "
                "does not learn from: leave it out, and give the objective's own options"
            )
        super().__post_init__()

    @functools.cached_property
    def teacher(self) -> Loaded:
        """The teacher's run."""
        return specs.build("run", self.config.teacher.to_dict()).load(self.mesh)

    @functools.cached_property
    def _begun(self) -> Loaded:
        """The run whose weights the student starts from."""
        return self.start.load(self.mesh) if isinstance(self.start, Run) else self.teacher

    def _check_start(self, teacher: Recipe) -> None:
        own = check_flow("start", self._begun, self.source, None)
        for name, here, there in (
            ("path", own.path, teacher.path),
            ("prediction", own.prediction, teacher.prediction),
            ("codec", *(recipe.runs.get("codec", {}).get("model") for recipe in (own, teacher))),
            ("scale of latents", *(_scale(recipe) for recipe in (own, teacher))),
            ("scale of data", *((recipe.shift, recipe.scale) for recipe in (own, teacher))),
        ):
            if here != there:
                raise ValueError(
                    f"the start {self._begun.workdir} does not fit: its {name} is {here}, that of the teacher {there}"
                )

    @functools.cached_property
    def codec(self) -> Loaded | None:
        """The teacher's."""
        if self.config.codec.name or set(self.config.codec.options) - {"cache"}:
            raise ValueError("the codec is the teacher's: leave config.codec out, all but config.codec.options.cache")
        return codec_of(self.teacher)

    def _scaled(self, source: Source) -> Source:
        """Latents in the teacher's scale."""
        return rescaled(source, self.teacher)

    @functools.cached_property
    def _how(self) -> Codec:
        cache = self.config.codec.options.get("cache")
        return dataclasses.replace(Codec.of_recipe(self.teacher.recipe.codec or {}), cache=cache)

    @functools.cached_property
    def pairs(self) -> Pairs | None:
        """Those that the teacher has drawn.

        Raises:
            ValueError: Pairs that do not fit, or of another model.
        """
        found = super().pairs
        if found is not None and found.record.get("model") != self.teacher.model:
            raise ValueError(
                f"the pairs in {found.folder} were drawn by a model of the hash {found.record.get('model')}, and the "
                f"teacher {self.teacher.workdir} has {self.teacher.model}: draw pairs with this teacher"
            )
        return found

    @property
    def _scales(self) -> tuple[float, float] | None:
        """The range of scales that the student learns."""
        pair = isinstance(self.guidance, tuple | list)
        return (float(self.guidance[0]), float(self.guidance[1])) if pair else None

    @functools.cached_property
    def _asked(self) -> dict[str, Any] | None:
        return named_conditions(self.teacher.recipe)

    @functools.cached_property
    def _path(self) -> Any:
        return self.teacher.recipe.build_path()

    @functools.cached_property
    def _objective(self) -> Any:
        recipe = self.teacher.recipe
        flow = recipe.flow(self.teacher.networks["network"])
        field = flow if self._scales else recipe.field(flow, self.guidance, networks=self.teacher.networks)
        given = {} if self._scales is None else {"guidance": self._scales}
        return self.build_objective(
            teacher=field, path=recipe.build_path(), prediction=recipe.prediction, null=recipe.null, **given
        )

    def _built(self) -> dict[str, Any]:
        """The teacher's path and network, unless the config has another network; of a refiner both networks."""
        recipe, network = self.teacher.recipe, self.config.network.to_dict()
        if not network["name"]:
            network = {**recipe.network, "options": {**recipe.network["options"], **network["options"]}}
        if self._refines:
            kept = ("network", "path", "prediction", "head", "boundary")
            return {name: getattr(recipe, name) for name in kept} | {"refiner": network}
        if self._policy is not None:
            network = answering(network, self._policy.channels(recipe.state_shape[-1]))
        return {"network": network, "path": recipe.path, "stored_as": self._labels[0], **self._trained_for}

    @property
    def _refines(self) -> bool:
        return getattr(self._objective, "refines", False)

    def runs(self, workdir: str | Path) -> dict[str, Any]:
        """The codec; under a refiner the teacher, whose network stays the flow's."""
        return super().runs(workdir) | ({"network": self.teacher.entry(workdir)} if self._refines else {})

    def weights(self, state: Any, raw: bool = False) -> dict[str, Any]:
        """The student, or the refiner and its teacher."""
        if not self._refines:
            return super().weights(state, raw)
        return state.weights(raw) | {"network": self.teacher.networks["network"]}

    @property
    def _partner(self) -> Any:
        """The teacher's network, which an objective of two networks trains a copy of beside the student."""
        if self.partner is not None:
            raise ValueError(
                "what a student is trained beside is a copy of the teacher: leave config.task.options.partner out"
            )
        if len(self._labels) == 1:
            return None
        recipe, head = self.teacher.recipe, self._objective.partner
        return recipe.network if head is None else answering(recipe.network, head.channels(recipe.state_shape[-1]))

    def networks(self) -> dict[str, Part]:
        """The student, or the refiner; with the student the copy of the teacher that its objective asks for."""
        parts = super().networks()
        if self._refines:
            return parts
        heads = dict(zip(self._labels, (self._policy, getattr(self._objective, "partner", None)), strict=False))
        for label in parts if self.start else self._labels[1:]:
            begun = self._begun if label == self._labels[0] else self.teacher
            found, wanted = flatten(begun.networks["network"]), flatten(shapes_of(parts[label].build))
            start = started(heads[label], found, wanted, begun.recipe, self.config.seed)
            if isinstance(self.start, Run) and label == self._labels[0]:
                self._check_fits(found, wanted, start)
            if not start:
                raise ValueError(
                    "the student has no parameter of the teacher's names and shapes to start from; set "
                    "config.task.options.start=False"
                )
            parts[label] = dataclasses.replace(parts[label], start=start)
        return parts

    def _check_fits(self, found: Mapping[str, Any], wanted: Mapping[str, Any], start: Mapping[str, Any]) -> None:
        """The start must be a network that answers as the student then does."""
        what = f"the start {self._begun.workdir} does not fit"
        if other := sorted((wanted.keys() & found.keys()) - start.keys()):
            raise ValueError(
                f"{what}: its {other[0]} has the shape {found[other[0]].shape}, that of the student "
                f"{wanted[other[0]].shape}"
            )
        there, own = _options(self._begun.recipe.network), _options(self._built()["network"])
        for name in there | own:
            added = name.rpartition(".")[2] in _ADDED and own.get(name) and not there.get(name)
            if own.get(name) != there.get(name) and not added:
                raise ValueError(f"{what}: its network has {name}={there.get(name)}, the student's {own.get(name)}")
        missing = {name for name in wanted.keys() - found.keys() if not {*name.split(".")} & {*_ADDED.values()}}
        if missing:
            raise ValueError(f"{what}: it has no {min(missing)}, which the student has")

    def check(self, workdir: Path) -> None:
        """Teacher and start must be those that the run began with.

        Raises:
            ValueError: One has other weights now.
        """
        super().check(workdir)
        try:
            record = json.loads((workdir / TEACHER).read_text())
            teacher, start = record["model"], record.get("start", {}).get("model")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # a new run
        self.teacher.check_same("teacher", workdir, teacher)
        if isinstance(self.start, Run) and start is not None:
            self._begun.check_same("start", workdir, start)

    def save(self, workdir: Path) -> None:
        """Writes `recipe.json` and `teacher.json`."""
        super().save(workdir)
        record: dict[str, Any] = {"workdir": str(self.teacher.workdir), "model": self.teacher.model}
        if isinstance(self.start, Run):
            record |= {"start": {"workdir": str(self._begun.workdir), "model": self._begun.model}}
        write_json(workdir / TEACHER, record)

"""What every recipe has: networks, data, other runs that it needs; how it is written, read and asked."""

import abc
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flowjax import _checks, data, evaluation, specs
from flowjax.calibration.store import model_hash
from flowjax.data import Source
from flowjax.data.records import check_memory
from flowjax.recipe.request import Request, Samples
from flowjax.training.writers import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base(abc.ABC):
    """How to rebuild and use what a run has trained.

    Names are those of the catalogue only, so that a recipe from elsewhere runs no code of its own.

    Attributes:
        network: {"name": a network of the catalogue, "options": its arguments}.
        data: {"name": a data set of `flowjax.data`, "options": its arguments}.
        shape: Shape of one example.
        shift: Normalised data = (x - shift) / scale.
        scale: See `shift`.
        low: Smallest value of the data in its own scale, black in pictures; None without a bound.
        high: Largest value.
        num_classes: Number of classes, or None for data without labels.
        form: What examples are, where their shape does not tell: the spec of a form of the catalogue, or None.
        runs: Other runs that this one needs, by label: {"workdir": where, as seen from this one's, "model": the hash of
            its weights, "recipe": its own recipe}. Only weights are read there, and others are refused. The workdir is
            None where there are no weights, of codecs that compute nothing learned.
        kind: Which kind of recipe it is.

    Example:
        >>> from flowjax.recipe import KINDS
        >>> sorted(KINDS)
        ['autoencoder', 'chain', 'encoder', 'fixed', 'flow', 'regression']
    """

    network: Mapping[str, Any]
    data: Mapping[str, Any]
    shape: tuple[int, ...]
    shift: float
    scale: float
    low: float | None
    high: float | None
    num_classes: int | None
    form: Any = None
    runs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = ""

    label: ClassVar[str] = "network"
    starts_from_data: ClassVar[bool] = False
    specs: ClassVar[tuple[str, ...]] = ("network", "data")

    def __post_init__(self) -> None:
        """Checks names and numbers.

        Raises:
            ValueError: An unknown name, unknown, missing or wrong options, or a number outside its range.
        """
        _checks.sizes(shape=self.shape)
        _checks.real("(-inf, inf)", shift=self.shift)
        _checks.real("(0, inf)", scale=self.scale)
        for name in self.specs:
            spec = getattr(self, name)
            if not (isinstance(spec.get("name"), str) and isinstance(spec.get("options"), Mapping)):
                raise ValueError(f'{name} must be {{"name": NAME, "options": {{...}}}}, got {spec}')
        if "network" in self.specs:
            specs.find("network", self.network["name"])
        _checks.real("(-inf, inf)", low=0.0 if self.low is None else self.low)
        _checks.real("(-inf, inf)", high=0.0 if self.high is None else self.high)
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        if self.num_classes is not None:
            _checks.whole(_checks.COUNT, num_classes=self.num_classes)
        if self.form is not None:
            specs.build("form", self.form)
        for label, run in self.runs.items():
            if not isinstance(run, Mapping) or set(run) != {"workdir", "model", "recipe"}:
                raise ValueError(f"the run {label} must have workdir, model and recipe, got {run!r}")
            from_values(run["recipe"])

    # ------------------------------------------------------------------------------------------------------ networks

    def build_network(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new network."""
        return specs.build("network", self.network, rngs=rngs)

    def stored(self) -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
        """What makes the networks whose weights the workdir holds, by label."""
        return {self.label: self.build_network}

    def alone(self) -> "Base":
        """The recipe of the same networks as `assemble` returns them, stored as they are."""
        return self

    def assemble(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """The networks to use, from those of the workdir and of the other runs."""
        return dict(networks)

    def attach(self, networks: Mapping[str, Any], workdir: str | Path) -> dict[str, Any]:
        """The networks to use with what else the workdir holds for them.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: It has changed.
        """
        return dict(networks)

    @abc.abstractmethod
    def check_networks(self, shapes: Mapping[str, Any]) -> None:
        """Traces a call of each network and refuses what does not fit this recipe.

        Args:
            shapes: Arrays or shapes by label, as `assemble` returns them.

        Raises:
            ValueError: A network cannot be called with examples of this recipe, or its answer does not fit.
        """

    def build_form(self, spec: Any = None) -> Any:
        """What shows and writes samples whose shape does not tell what they are; None for others.

        Args:
            spec: The recipe's form with further options; the form itself by default.

        Raises:
            ValueError: Another form, or options that do not fit the samples.
        """
        if self.form is None:
            if spec is not None:
                raise ValueError(f"form={specs.text(spec)}: samples of this run are arrays, without another form")
            return None
        name, own = specs.name_and_options(self.form)
        asked, options = (name, {}) if spec is None else specs.name_and_options(spec)
        if specs.plain(asked) != specs.plain(name):
            raise ValueError(f"form={specs.text(spec)}: samples of this run have the form {name}")
        form = specs.build("form", {"name": name, "options": own | options})
        form.check(self.shape)
        return form

    # ------------------------------------------------------------------------------------------------------ requests

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

    def check(self, request: Request) -> None:
        """Refuses a request that this recipe cannot fulfil, before weights are read.

        Raises:
            ValueError: Unless a kind of recipe says otherwise: it draws no samples.
        """
        raise ValueError(f"a run of the kind {self.kind} draws no samples; flowjax.evaluate measures it")

    def couples(self, request: Request) -> bool:
        """Whether a sample depends on those of its block."""
        return False

    def record(self, networks: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """Everything that samples depend on but their numbers, as JSON values.

        Args:
            networks: From `load_run`.
            request: What is asked for.
        """
        asked = {k: v for k, v in dataclasses.asdict(request).items() if v is not None and k not in ("num", "batch")}
        asked = {k: v for k, v in asked.items() if v or k not in ("against", "second")}
        if request.calibration is not None:
            asked["calibration"] = hashlib.sha256(Path(request.calibration).read_bytes()).hexdigest()
        recipe = json.dumps(dataclasses.asdict(self), sort_keys=True, default=str)
        return {
            "request": asked | ({"batch": request.batch} if self.couples(request) else {}),
            "models": {label: model_hash(network) for label, network in networks.items()},
            "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        }

    def sample(
        self, networks: Mapping[str, Any], request: Request, source: Source | None = None, mesh: Any = None
    ) -> Any:
        """Samples first..first+num-1; sample i depends on (seed, i, its conditions) only.

        Args:
            networks: From `load_run`.
            request: What is asked for; `check` accepts it.
            source: The data, where sampling starts from them.
            mesh: Splits each block over its devices; all devices by default.

        Raises:
            ValueError: See `check`.
        """
        self.check(request)

    def sweep(self, request: Request, **lists: Sequence[Any]) -> list[tuple[dict[str, Any], Request]]:
        """The settings to measure, each with its request.

        Args:
            request: What they share.
            **lists: Values of "solver", "steps" and "guidance"; empty ones are those of the recipe.

        Raises:
            ValueError: Something that this kind of run has not.
        """
        given = [name for name, values in lists.items() if values]
        given += [name for name in ("times", "fields", "straightness") if getattr(request, name) is not None]
        if given:
            raise ValueError(f"{given[0]} is given, but a run of the kind {self.kind} draws no samples")
        return [({}, request)]

    @abc.abstractmethod
    def assess(
        self,
        networks: Mapping[str, Any],
        source: Source,
        request: Request,
        *,
        judge: Any = None,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """How good the run is for one request of `sweep`, in numbers.

        Args:
            networks: From `load_run`.
            source: The data, in the scale of the run.
            request: How many examples, and what else is asked.
            judge: The features in which samples are compared (`flowjax.evaluation.Extractor`).
            mesh: Devices to use; all by default.
        """

    # --------------------------------------------------------------------------------------------------------- files

    def save(self, workdir: str | Path) -> None:
        """Writes `recipe.json`."""
        write_json(Path(workdir) / "recipe.json", dataclasses.asdict(self))

    @classmethod
    def load(cls, workdir: str | Path) -> Any:
        """Reads `recipe.json` of a run of this kind; of `Base`, of any kind.

        Raises:
            FileNotFoundError: The workdir has none.
            ValueError: It is not a recipe, and the message says which entry is wrong; or one of another kind.
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
            recipe = from_values(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a recipe: {error}") from error
        if not isinstance(recipe, cls):
            raise ValueError(f"{workdir} is a run of the kind {recipe.kind}, and a {cls.kind} is needed")
        return recipe


def from_values(values: Mapping[str, Any]) -> Base:
    """The recipe of what `recipe.json` holds.

    Raises:
        ValueError: An unknown kind, or entries that are missing, unknown or wrong.
    """
    from flowjax.recipe import KINDS

    kind = dict(values).get("kind", "flow")
    return _checks.call("recipe", KINDS[_checks.choose("kind of recipe", kind, KINDS)], dict(values))


def _tuples(value: Any) -> Any:
    """JSON lists back as tuples, at every depth."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


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
        for key, value in values.items():
            if key != "data":  # of another run's recipe, which nobody opens
                _check_places(value, workdir)
    elif isinstance(values, tuple):
        for value in values:
            _check_places(value, workdir)


def compare(sample: Callable[[], Samples], real: Source, seed: int, judge: Any, form: Any = None) -> dict[str, Any]:
    """Samples against as many real examples (`flowjax.evaluation.sample_report`), and what they cost.

    Args:
        sample: Makes the samples.
        real: The examples they are compared with.
        seed: Of projections and halves.
        judge: The features to compare in.
        form: What compares samples with the examples under whose conditions they were drawn, one by one.

    Returns:
        The numbers of the report, those of the form, "evaluations", "network_calls" and seconds; "accuracy" where the
        judge tells classes.
        {"bad_samples": ...} beside the cost if samples are not finite.
    """
    clock = time.perf_counter()
    samples = sample()
    numbers: dict[str, Any] = {"evaluations": samples.evaluations, "network_calls": samples.network_calls}
    if samples.bad:
        return numbers | {"bad_samples": samples.bad}
    between = time.perf_counter()
    numbers |= evaluation.sample_report(judge, samples.x, np.asarray(real.x), seed)
    if form is not None and len(samples.x) == len(real.x):
        numbers |= form.compare(samples, np.asarray(real.x))
    labels = samples.cond.get("label") if isinstance(samples.cond, dict) else samples.cond
    if labels is not None and hasattr(judge, "predict"):
        numbers["accuracy"] = float(np.mean(judge.predict(samples.x) == labels))
    return numbers | {"sampling_seconds": between - clock, "evaluation_seconds": time.perf_counter() - between}


def shapes_of(build: Callable[[nnx.Rngs], Any]) -> Any:
    """The network that `build` makes, in shapes."""
    return jax.eval_shape(lambda: build(nnx.Rngs(0)))


def traced(network: Any, *inputs: Any, **more: Any) -> Any:
    """The shapes that a network answers with.

    Raises:
        ValueError: It cannot be called so.
    """
    try:
        return jax.eval_shape(lambda network, inputs, more: network(*inputs, **more), network, inputs, more)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(inputs))
        raise ValueError(f"the network does not take inputs of the shapes {shapes}: {error}") from error

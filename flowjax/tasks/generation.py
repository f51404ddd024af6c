"""A generative flow: any path or interpolant, any objective of flows, any coupling."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from flowjax import specs
from flowjax.conditions import of_data, with_conditions
from flowjax.data import Pairs, Source
from flowjax.evaluation import Extractor
from flowjax.facts import fact
from flowjax.objectives import Coupled
from flowjax.paths import GaussianPath
from flowjax.recipe import Codec, Loaded, Recipe, Request
from flowjax.recipe.base import shapes_of, traced
from flowjax.recipe.codec import check_codec, elements_of, latents, scale_in_recipe
from flowjax.recipe.decoding import Elements, read_elements
from flowjax.recipe.report import METRICS, make_judge, measure, picture, picture_ways
from flowjax.tasks.base import Part, Task
from flowjax.tasks.classifiers import Classifiers
from flowjax.training.writers import write_json

_SCALE = ("shift", "scale", "elements")  # of what recipes say of latents
_ROUNDING = 1e-4  # by how much it may differ where latents are encoded again, whose own error is 1e-6


@fact("task", "generation", "a generative flow")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(Task):
    """Trains a flow and looks at its samples, always from the same noise.

    Attributes:
        conditions: What the flow is conditioned on: specs of conditions by name, {"text": "text(length=24)"}, with
            options of the `learn` of their classes in `flowjax.conditions`. None is a bare label, where there are
            classes.
        partner: The network that an objective of two trains beside the flow's, from the catalogue: the interpolant of
            `SchroedingerBridge`, on pairs that are concatenated along the last axis.

    Example:
        >>> import jax
        >>> from flowjax import data
        >>> from flowjax.configs.base import base, spec
        >>> from flowjax.tasks import make_task
        >>> from flowjax.training import make_mesh
        >>> config = base(data=spec("toy2d", law="spiral"), network=spec("mlp", dim=2, width=8))
        >>> task = make_task(config, data.toy2d("spiral", size=60), make_mesh(), jax.random.key(0))
        >>> type(task.objective).__name__, task.objective.prediction, task.recipe.solver["name"]
        ('FlowMatching', 'velocity', 'heun')
    """

    conditions: Mapping[str, Any] | None = None
    partner: Mapping[str, Any] | str | None = None

    sections: ClassVar[tuple[str, ...]] = ("network", "path", "objective", "coupling", "codec", "sample")
    metrics: ClassVar[Mapping[str, int]] = METRICS

    @functools.cached_property
    def recipe(self) -> Recipe:
        """How the flow is built and sampled; asks for the latents where there is a codec."""
        if self._draft.codec is None:
            return self._draft
        return dataclasses.replace(self._draft, codec={**self._draft.codec, **scale_in_recipe(self._measured)})

    @functools.cached_property
    def _measured(self) -> Source:
        """Something in the scale of the latents that the flow is trained on.

        Raises:
            ValueError: Pairs of latents in another scale than the codec's.
        """
        if self.pairs is None:
            return self.training
        known = {name: value for name, value in self.pairs.record["codec"].items() if name in _SCALE}
        if "elements" not in known:
            return dataclasses.replace(self.source, **known)
        found = self._scaled(self.pairs.source)
        if not np.ndim(found.shift):
            found = self._encoded(self.source)
        if scale_in_recipe(found) != known:
            raise ValueError(
                f"the pairs in {self.pairs.folder} do not fit: every entry of their latents is normalised by itself, "
                "by other statistics than those of this run"
            )
        return found

    @functools.cached_property
    def _draft(self) -> Recipe:
        """The recipe, but for the scale of latents."""
        return Recipe(**self.described())

    def described(self) -> dict[str, Any]:
        """What the recipe says, by the names of its attributes."""
        sample = self.config.sample.to_dict()
        own = dict(
            prediction=self._objective.prediction,
            **self.of_data(),
            solver=sample["solver"],
            steps=sample["steps"],
            guidance=sample["guidance"],
            times=sample["times"],
            against=sample.get("against", {}),
            fields=self._classifiers.fields,
            conditions=self._asked and {name: specs.spec_of("condition", c) for name, c in self._asked.items()},
            start=None if self._from_noise else {"name": "data", "options": {"field": "x0"}},
            diffusion=self._objective.diffusion if self._objective.prediction == "forward_drift" else None,
            runs=self.runs("."),
            codec=None if self.codec is None else self._latents(),
        )
        return own | self._built()

    def runs(self, workdir: str | Path) -> dict[str, Any]:
        """What the recipe in `workdir` says of other runs."""
        codec = {} if self.codec is None else {"codec": self.codec.entry(workdir)}
        return codec | self._classifiers.entries(Path(workdir))

    @functools.cached_property
    def _classifiers(self) -> Classifiers:
        """Those of config.sample.fields."""
        return Classifiers.of(self.config.sample.fields, self.mesh)

    def _field(self, networks: Mapping[str, Any]) -> Any:
        """What the recipe samples with these networks of the run."""
        others = self._classifiers.networks()
        return self.recipe.field(self.recipe.flow(networks["network"]), networks={**networks, **others})

    @functools.cached_property
    def pairs(self) -> Pairs | None:
        """The folder of pairs that batches are cut from; None where they are cut from the data.

        Raises:
            ValueError: Pairs that are not of this run.
        """
        coupling = self.config.coupling.to_dict()
        path = coupling["options"].get("path") if specs.plain(coupling["name"] or "") == "stored" else None
        if path is None:
            return None
        if any(self.config.data.get("augment", {}).values()):
            raise ValueError("config.data.augment changes images, and pairs would no longer be pairs: leave it out")
        pairs, own = Pairs(path), self._draft
        source = pairs.source  # refuses what is not there or not complete
        for name in ("shape", "shift", "scale", "num_classes", "conditions"):
            there, here = pairs.record.get(name), json.loads(json.dumps(getattr(own, name)))
            if there != here:
                raise ValueError(f"the pairs in {path} do not fit: their {name} is {there}, that of this run {here}")
        held = {
            "shape": (source.x.shape[1:], own.state_shape),
            "conditions": (source.conditions, tuple(own.conditions or ())),
            "labels": (source.cond is not None, own.conditions is None and own.num_classes is not None),
        }
        for name, (there, here) in held.items():
            if there != here:
                raise ValueError(f"the shards in {path} do not fit: their {name} are {there}, not {here}")
        model = None if self.codec is None else self.codec.model
        if pairs.record.get("codec_model") != model:
            raise ValueError(
                f"the pairs in {path} do not fit: their codec is {pairs.record.get('codec_model')}, that of this run "
                f"{model}"
            )
        return pairs

    @functools.cached_property
    def codec(self) -> Loaded | None:
        """The codec on whose latents the flow lives; None for a flow on the data itself."""
        return self._how.open(self.of_data(), self.mesh) if self.config.codec.name else None

    @functools.cached_property
    def _how(self) -> Codec:
        """How latents are made and normalised."""
        if not self.config.codec.name and self.config.codec.options:
            given = ", ".join(self.config.codec.options)
            raise ValueError(
                f"config.codec.options has {given}, but there is no codec: name it, config.codec=NAME(...)"
            )
        return specs.build("codec", self.config.codec.to_dict()) if self.config.codec.name else Codec()

    def _latents(self) -> dict[str, Any]:
        """What the recipe says of latents that are not measured yet."""
        return {"shape": self._latent_shape, "shift": 0.0, "scale": 1.0} | self._how.described()

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        assert self.codec is not None
        return self.codec.recipe.latent_shape(self._decoder)

    def __post_init__(self) -> None:
        """Checks what the constructors of its parts cannot see.

        Raises:
            ValueError: The best checkpoint by accuracy, of data without classes; a codec that does not fit the data.
        """
        super().__post_init__()
        if self.codec is not None:
            check_codec(self.codec, self.source, self._how)
            own = self.codec.recipe
            object.__setattr__(self, "source", dataclasses.replace(self.source, shift=own.shift, scale=own.scale))
            if any(self.config.data.get("augment", {}).values()):
                raise ValueError("config.data.augment changes images, and batches are latents here: leave it out")
        if self.config.train.best == "accuracy" and self.source.num_classes is None:
            raise ValueError("config.train.best='accuracy' needs data with classes")
        _ = self.pairs
        if self._draft.padded is not None and self.config.coupling.name:
            raise ValueError("couplings compare examples as they are, and padding is no part of a set: leave them out")
        if self._draft.padded is not None and not getattr(self._objective, "masked", False):
            raise ValueError(
                f"the condition {self._draft.padded} makes padded sets of the data, and objective "
                f"{self.config.objective.name!r} has no masks: take flow_matching, velocity_matching or "
                "velocity_distillation"
            )
        self._draft.check(Request(num=self.config.sample.num, batch=self.config.sample.batch))
        stored = {label: shapes_of(build) for label, build in self._draft.stored().items()}
        self._draft.check_networks(
            {"network": shapes_of(self._draft.build_network), "codec": self._decoder, "refiner": stored.get("refiner")}
        )
        if (self._partner is None) != (len(self._labels) == 1):
            needed = "needs a partner of its network" if self._partner is None else "has no partner of its network"
            raise ValueError(f"objective {self.config.objective.name!r} {needed}: config.task.options.partner")
        if self.partner is not None:
            x, t, cond = self._draft.call()
            pair = jax.ShapeDtypeStruct((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
            answer = traced(shapes_of(self._build_partner), pair, t, cond)
            if answer.shape != x.shape:
                raise ValueError(f"the partner answers pairs of shape {pair.shape} with {answer.shape}, not {x.shape}")

    def _built(self) -> dict[str, Any]:
        """The part of the recipe that says what the flow is."""
        own = {"network": self._network(), "path": self.config.path.to_dict(), "stored_as": self._labels[0]}
        return own | self._trained_for

    @property
    def _trained_for(self) -> dict[str, Any]:
        """Which answer of the network is trained, for which scales of guidance, and within which boundary."""
        names = {"head": "head", "embedded": "guidance", "boundary": "boundary"}
        found = {key: getattr(self._objective, name, None) for key, name in names.items()}
        policy = self._policy and specs.spec_of("policy", self._policy, path=self._path)
        return found | {"policy": policy}

    @property
    def _policy(self) -> Any:
        """What makes policies of the network's answers; None where they are none."""
        return getattr(self._objective, "policy", None)

    @functools.cached_property
    def _asked(self) -> dict[str, Any] | None:
        return of_data(self.source, self.conditions) if self.conditions else None

    def _network(self) -> dict[str, Any]:
        """The network, whose encoders of conditions get the sizes that the data have."""
        spec = self.config.network.to_dict()
        encoders = spec["options"].get("encoders")
        if not isinstance(encoders, Mapping):
            return spec
        asked, made = self._asked or {}, {}
        if set(asked) != set(encoders):
            raise ValueError(
                f"config.network has encoders for {', '.join(encoders)}, and config.task.options.conditions has "
                f"{', '.join(asked) or 'none'}"
            )
        for name, encoder in encoders.items():
            kind, options = specs.name_and_options(encoder)
            known = specs.options_of(specs.find("encoder", kind))
            for key, size in asked[name].encoder.items():
                if key in known and options.setdefault(key, size) != size:
                    raise ValueError(f"the encoder {name} has {key}={options[key]}, the data {size}: leave {key} out")
            made[name] = {"name": kind, "options": options}
        return spec | {"options": spec["options"] | {"encoders": made}}

    @property
    def learns_from_data(self) -> bool:
        """Not with objectives that say so, nor where pairs stand in for the data."""
        return self.pairs is None and not getattr(self._objective, "data_free", False)

    @functools.cached_property
    def training(self) -> Source:
        """The data, their latents or pairs, with the conditions as the network takes them."""
        if self.pairs is not None:
            return self.pairs.source
        source = with_conditions(self.source, self._asked or {})
        if self.codec is None:
            return source
        if source.blank:
            nothing = np.broadcast_to(np.float32(0), (len(source.x), *self._latent_shape))
            return self._scaled(dataclasses.replace(source, x=nothing))
        return self._encoded(source)

    def _encoded(self, source: Source) -> Source:
        assert self.codec is not None
        return self._scaled(latents(self.codec, source, self.mesh, self._how))

    def _scaled(self, source: Source) -> Source:
        """Latents in the scale that they are trained in: that which they measure."""
        return source

    @functools.cached_property
    def _path(self) -> Any:
        return specs.build("path", self.config.path.to_dict())

    @property
    def _from_noise(self) -> bool:
        return isinstance(self._path, GaussianPath)

    @functools.cached_property
    def _objective(self) -> Any:
        name, coupling = self.config.objective.name, specs.plain(self.config.coupling.name)
        if not self._from_noise and "path" in specs.options_of(specs.find("objective", name)):
            raise ValueError(
                f"objective {name!r} needs a path from noise; between two laws they are interpolation and "
                "schroedinger_bridge"
            )
        if not self._from_noise and "x0" not in self.source.fields:
            raise ValueError(
                f"path {self.config.path.name!r} leads from the field x0 of the data, and data "
                f"{self.config.data.name!r} has none; paths from noise are linear, trig, vp, ..."
            )
        if self._from_noise and "x0" in self.source.fields and coupling != "stored":
            raise ValueError(
                f"data {self.config.data.name!r} has the field x0, which path {self.config.path.name!r} from noise "
                "passes over: take path=interpolant with objective=interpolation, or coupling=stored for pairs"
            )
        null = self.source.num_classes if self._asked is None else {k: c.null for k, c in self._asked.items()}
        return self.build_objective(path=self._path, interpolant=self._path, null=null)

    @functools.cached_property
    def objective(self) -> Any:
        """The loss, on noise that the coupling chooses."""
        coupling = self.config.coupling.to_dict()
        return Coupled(self._objective, specs.build("coupling", coupling)) if coupling["name"] else self._objective

    @functools.cached_property
    def judge(self) -> Extractor:
        """What samples are measured by, trained when it is first needed."""
        return make_judge(self.source)

    @property
    def _decoder(self) -> Any:
        return None if self.codec is None else self.codec.networks[self.codec.recipe.label]

    def _sampling(self, networks: Mapping[str, Any]) -> Mapping[str, Any]:
        solver = self.recipe.build_solver(flows=self.recipe.flows(networks))
        shared = dict(key=jax.random.clone(self.key), batch=self.config.sample.batch, mesh=self.mesh)
        codec = None if self.codec is None else elements_of(self._measured, self._decoder)
        return shared | dict(codec=codec, solver=solver)

    @property
    def _labels(self) -> tuple[str, ...]:
        """Of the trained networks: the flow's, and its partner's in training if there is one."""
        return getattr(self._objective, "labels", ("network",))

    def networks(self) -> dict[str, Part]:
        """The flow's network, and its partner in training."""
        builds = dict(zip(self._labels, (*self._draft.stored().values(), self._build_partner)))
        return {
            label: Part(build=build, optimizer=self.optimizer(label), averaged=label == self._labels[0])
            for label, build in builds.items()
        }

    @property
    def _partner(self) -> Any:
        return self.partner

    def _build_partner(self, rngs: nnx.Rngs) -> nnx.Module:
        return specs.build("network", self._partner, rngs=rngs)

    def weights(self, state: Any, raw: bool = False) -> dict[str, Any]:
        """The flow's network."""
        return {"network": state.weights(raw)[self._labels[0]]}

    def check(self, workdir: Path) -> None:
        """Compares conditions and codec with those that the run began with: tokens of texts and latents must not move.

        Latents that were encoded again get the scale that the run began with.

        Raises:
            ValueError: The data has other texts, labels or latents now, or the codec other weights.
        """
        try:
            recipe = Recipe.load(workdir)
        except (FileNotFoundError, ValueError):  # `save` writes it anew
            return
        if self.codec is not None and "codec" in recipe.runs:
            self.codec.check_same("codec", workdir, recipe.runs["codec"]["model"])
            if recipe.codec != self.recipe.codec:
                self._go_on(recipe, workdir)
        self._classifiers.check(workdir, recipe.runs)
        if self.pairs is not None and Pairs(workdir).record not in ({}, self.pairs.record):
            raise ValueError(f"{self.pairs.folder} holds other pairs than when {workdir} began: bring those back")
        for name, condition in (recipe.conditions or {}).items():
            if (self.recipe.conditions or {}).get(name) != condition:
                raise ValueError(f"the data changed since {workdir} began: the condition {name} is another one")

    def _go_on(self, recipe: Recipe, workdir: Path) -> None:
        """Takes the scale of latents that a run began with, if it is today's but for rounding."""
        then, now, found = dict(recipe.codec or {}), dict(self.recipe.codec or {}), self._measured
        same = ("elements" in then) == ("elements" in now)
        same = same and all(then.get(key) == now.get(key) for key in then | now if key not in _SCALE)
        if same:
            shift, scale = then["shift"], then["scale"]
            if "elements" in then:
                known = read_elements(workdir, then["elements"], self._latent_shape, None)
                shift, scale = known.shift, known.scale
            # A shift far from zero is rounded by itself, not by the scale.
            near = np.isclose(found.shift, shift, rtol=_ROUNDING, atol=_ROUNDING * scale)
            same = (near & np.isclose(found.scale, scale, rtol=_ROUNDING, atol=0)).all()
        if not same:
            raise ValueError(f"the data changed since {workdir} began: its latents were {then}, and are {now}")
        for name, value in (("shift", shift), ("scale", scale)):
            object.__setattr__(found, name, value)  # in place: batches are cut from it already
        del self.__dict__["recipe"]

    def save(self, workdir: Path) -> None:
        """Writes `recipe.json`."""
        dataclasses.replace(self.recipe, runs=self.runs(workdir)).save(workdir)
        if self.codec is not None and isinstance(codec := elements_of(self._measured, None), Elements):
            codec.write(workdir)
        if self.pairs is not None:
            write_json(workdir / Pairs.record_name, self.pairs.record)

    def show(self, networks: Mapping[str, Any], path: Path) -> None:
        """Ten samples per class, a hundred without classes, or up to 10,000 points."""
        recipe = self.recipe
        num = min(self.config.sample.num, 10 * (recipe.num_classes or (1000 if recipe.shape == (2,) else 10)))
        cond = recipe.matching(self.source, num)
        field = self._field(networks)
        samples = recipe.generate(field, num, cond=cond, start=self.source, **self._sampling(networks))
        if jax.process_index() == 0:
            picture(recipe, samples, path, self.source)

    def assess(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """What the network generates, in numbers; none where there is nothing to compare with."""
        if self.source.blank:
            return {}
        field, num = self._field(networks), self.config.sample.num
        return measure(self.recipe, field, self.source, num, judge=self.judge, **self._sampling(networks))

    def finish(self, networks: Mapping[str, Any], workdir: Path) -> None:
        """Pictures the ways of points in the plane."""
        if jax.process_index() == 0 and self.recipe.shape == (2,) and self.codec is None:
            flow = self.recipe.flow(networks["network"])
            picture_ways(self.recipe, flow, workdir / "ways.png", jax.random.clone(self.key), self.source)

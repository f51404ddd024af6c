"""Adapters on a trained flow: only they are trained and saved."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from flowjax import specs
from flowjax._trees import flatten
from flowjax.data import Source
from flowjax.facts import fact
from flowjax.models import lora
from flowjax.objectives import Assembled
from flowjax.recipe import Codec, Loaded, Recipe
from flowjax.recipe.base import shapes_of
from flowjax.recipe.codec import codec_of, rescaled
from flowjax.tasks.base import Part
from flowjax.tasks.distillation import answering, check_flow, in_scale, named_conditions, started
from flowjax.tasks.generation import Generation
from flowjax.training.state import TrainState


@fact("task", "adapters", "low-rank adapters on a trained flow")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation(Generation):
    """Trains adapters (`config.adapters`) on the network of a trained flow (`config.base`), which stays as it is.

    Path, network, prediction and normalisation are those of the base. Its weights are arguments of a training step, in
    their own or a given precision; the checkpoints hold the adapters alone, and the recipe names the run they belong to
    with the hash of its weights. Objectives of a teacher learn from the base itself, which so becomes a student of its
    own with few weights.

    Attributes:
        guidance: By how much the base is guided as a teacher: a scale, a rule, or None for what its recipe says.

    Example:
        >>> from flowjax.configs.base import base, spec
        >>> config = base("adapters", data=spec("digits"), base=spec("run", workdir="runs/digits"))
        >>> set(Adaptation.sections) <= set(config), config.adapters.name, config.adapters.options.rank
        (True, 'lora', 4)
    """

    guidance: float | str | Mapping[str, Any] | None = None

    sections: ClassVar[tuple[str, ...]] = ("base", "adapters", "objective", "coupling", "sample")

    def __post_init__(self) -> None:
        """Checks the base.

        Raises:
            ValueError: A base of another shape or other classes, or an objective of another prediction.
        """
        recipe = check_flow("base", self.base, self.source, self.conditions)
        object.__setattr__(self, "source", in_scale(self.source, recipe))
        if self._objective.prediction != recipe.prediction:
            raise ValueError(
                f"the objective is for the {self._objective.prediction}, but the base predicts the {recipe.prediction}"
            )
        known = specs.options_of(specs.find("objective", self.config.objective.name))
        if self.guidance is not None and "teacher" not in known:
            raise ValueError(
                f"config.task.options.guidance={self.guidance} is for the base as a teacher, from which objective "
                f"{self.config.objective.name!r} does not learn"
            )
        super().__post_init__()

    @functools.cached_property
    def base(self) -> Loaded:
        """The run of the base."""
        run = specs.build("run", self.config.base.to_dict())
        if (run.which, run.average) != ("latest", None):
            raise ValueError("a base is the newest checkpoint with the default average: leave which and average out")
        return run.load(self.mesh)

    @functools.cached_property
    def codec(self) -> Loaded | None:
        """The base's."""
        return codec_of(self.base)

    def _scaled(self, source: Source) -> Source:
        """Latents in the base's scale."""
        return rescaled(source, self.base)

    @functools.cached_property
    def _how(self) -> Codec:
        return Codec.of_recipe(self.base.recipe.codec or {})

    @functools.cached_property
    def _asked(self) -> dict[str, Any] | None:
        return named_conditions(self.base.recipe)

    @functools.cached_property
    def _path(self) -> Any:
        return self.base.recipe.build_path()

    @functools.cached_property
    def _objective(self) -> Any:
        recipe = self.base.recipe
        networks = self.base.networks
        teacher = recipe.field(recipe.flow(networks["network"]), self.guidance, networks=networks)
        return self.build_objective(
            teacher=teacher, path=recipe.build_path(), prediction=recipe.prediction, null=recipe.null
        )

    @functools.cached_property
    def objective(self) -> Any:
        """The loss of the base with its adapters."""
        frozen = {"network": self.base.networks["network"]}
        return Assembled(super().objective, frozen=frozen, combine=lora.combine)

    def _built(self) -> dict[str, Any]:
        """What the base is, with adapters on it."""
        recipe = self.base.recipe
        own = {name: getattr(recipe, name) for name in ("network", "path", "embedded", "head")}
        own |= {name: self._trained_for[name] for name in ("boundary", "policy")}
        if self._policy is not None:
            own["network"] = answering(recipe.network, self._policy.channels(recipe.state_shape[-1]))
        return own | {"adapters": self.config.adapters.to_dict()}

    def runs(self, workdir: str | Path) -> dict[str, Any]:
        """The base, and its codec."""
        return super().runs(workdir) | {"base": self.base.entry(workdir)}

    def networks(self) -> dict[str, Part]:
        """The adapters; layers that are trained whole start as those of the base."""
        part = Part(build=self._draft.stored()["network"], optimizer=self.optimizer())
        prefix = "whole."
        wanted = {
            name.removeprefix(prefix): shape
            for name, shape in flatten(shapes_of(part.build)).items()
            if name.startswith(prefix)
        }
        start = started(
            self._policy, flatten(self.base.networks["network"]), wanted, self.base.recipe, self.config.seed
        )
        if missing := sorted(set(wanted) - set(start)):
            raise ValueError(f"the base has no layer that {missing[0]} could start from")
        if not start:
            return {"network": part}
        return {"network": dataclasses.replace(part, start={prefix + name: leaf for name, leaf in start.items()})}

    def weights(self, state: TrainState, raw: bool = False) -> dict[str, Any]:
        """The base with the adapters added."""
        return self.recipe.assemble(state.weights(raw) | {"base": self.base.networks["network"]})

    def check(self, workdir: Path) -> None:
        """The base must be the one that the run began with.

        Raises:
            ValueError: It has other weights now.
        """
        super().check(workdir)
        try:
            began = Recipe.load(workdir).runs["base"]["model"]
        except (FileNotFoundError, ValueError, KeyError):
            return  # a new run
        self.base.check_same("base", workdir, began)

"""A chain of runs: what one samples, the next one starts from or is conditioned on."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from flowjax import _checks, evaluation
from flowjax.calibration.store import model_hash
from flowjax.data import Source
from flowjax.recipe.base import Base, compare, from_values
from flowjax.recipe.flow import Recipe
from flowjax.recipe.request import Request, Samples
from flowjax.recipe.runs import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain(Base):
    """Which runs are sampled one after the other; `make_chain` writes one. Further attributes are those of the last.

    Attributes:
        stages: Labels of `runs`, in order.
        into: For each stage but the first, where the samples before it go: "start" (it begins from them) or the name of
            one of its conditions.

    Example:
        >>> import dataclasses
        >>> import flowjax as fj
        >>> mlp = {"name": "mlp", "options": {"dim": 2, "width": 8}}
        >>> law = {"name": "toy2d", "options": {"law": "moons"}}
        >>> scale = {"shift": 0.0, "scale": 1.0, "low": None, "high": None}
        >>> of_data = {"data": law, "shape": (2,), "num_classes": None, **scale}
        >>> path, solver = {"name": "linear", "options": {}}, {"name": "heun", "options": {}}
        >>> first = fj.Recipe(network=mlp, prediction="velocity", path=path, solver=solver, steps=10, **of_data)
        >>> second = dataclasses.replace(first, start={"name": "data", "options": {"field": "x0"}})
        >>> runs = {"a": first, "b": second}
        >>> runs = {k: {"workdir": k, "model": "", "recipe": dataclasses.asdict(recipe)} for k, recipe in runs.items()}
        >>> chain = Chain(network={}, stages=("a", "b"), into=("start",), runs=runs, **of_data)
        >>> [recipe.start is None for recipe in chain.recipes]  # the second begins from what the first samples
        [True, False]
    """

    stages: tuple[str, ...]
    into: tuple[str, ...]
    kind: str = "chain"

    specs: ClassVar[tuple[str, ...]] = ("data",)

    def __post_init__(self) -> None:
        """Checks that the stages fit each other.

        Raises:
            ValueError: A stage that is no flow, or that cannot take what the one before it samples.
        """
        super().__post_init__()
        if len(self.stages) < 2 or len(self.into) != len(self.stages) - 1:
            raise ValueError(f"a chain has two stages or more and an into for each but the first, got {self.stages}")
        for label in self.stages:
            _checks.choose("run of the chain", label, self.runs)
        before: Any = None
        for label, recipe, place in zip(self.stages, self.recipes, ("", *self.into), strict=True):
            if not isinstance(recipe, Recipe):
                raise ValueError(f"the stage {label} is of the kind {recipe.kind}; a chain is made of flows")
            if before is None and recipe.start is not None:
                raise ValueError(f"the first stage {label} starts from data, and nothing comes before it")
            if before is not None and place == "start" and recipe.start is None:
                raise ValueError(f"the stage {label} starts from noise; into names one of its conditions")
            shape = recipe.shape
            if before is not None and place != "start":
                shape = recipe.inputs[
                    _checks.choose(f"condition of the stage {label}", place, recipe.inputs)
                ].struct.shape
            if before is not None and tuple(shape) != tuple(before.shape):
                raise ValueError(f"the stage {label} takes {tuple(shape)}, the one before it samples {before.shape}")
            before = recipe

    @property
    def recipes(self) -> list[Any]:
        """Those of the stages."""
        return [from_values(self.runs[label]["recipe"]) for label in self.stages]

    def stored(self) -> dict[str, Any]:
        """Nothing: all networks are those of the stages."""
        return {}

    def check_networks(self, shapes: Mapping[str, Any]) -> None:
        """Each must fit its own recipe."""
        for label, recipe in zip(self.stages, self.recipes, strict=True):
            recipe.check_networks({"network": shapes[label], "codec": shapes.get(f"{label}.codec")})

    def _conditions(self, request: Request) -> list[dict[str, str]]:
        """The texts of the conditions that each stage has."""
        known = [set(recipe.inputs) - {place} for recipe, place in zip(self.recipes, ("", *self.into), strict=True)]
        for name in request.conditions:
            _checks.choose("condition of this chain", name, sorted(set().union(*known)))
        return [{k: v for k, v in request.conditions.items() if k in names} for names in known]

    def check(self, request: Request) -> None:
        """Each stage is sampled as its own recipe says.

        Raises:
            ValueError: Another solver, grid, guidance, ... is asked for, or a condition that no stage has.
        """
        asked = ("solver", "times", "steps", "guidance", "fields", "calibration", "straightness")
        for name in (*asked, "against", "second", "edit"):
            if getattr(request, name) not in (None, {}):
                raise ValueError(f"{name} is given, but each stage of a chain is sampled as its own recipe says")
        for recipe, conditions in zip(self.recipes, self._conditions(request), strict=True):
            recipe.check(dataclasses.replace(request, conditions=conditions))

    def record(self, networks: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """Everything that samples depend on but their numbers."""
        asked = zip(self.recipes, self._conditions(request), strict=True)
        given = [model_hash(recipe.asked_for(conditions, request.num)) for recipe, conditions in asked]
        return super().record(networks, request) | {"conditions_sha256": given}

    def sample(
        self, networks: Mapping[str, Any], request: Request, source: Source | None = None, mesh: Mesh | None = None
    ) -> Samples:
        """Samples of the last stage; what they cost is the sum over the stages.

        Args:
            networks: From `load_run`.
            request: How many, from which seed, under which conditions.
            source: Not used.
            mesh: Splits each block over its devices; all devices by default.

        Raises:
            ValueError: See `check`.
        """
        self.check(request)
        found: Any = None
        evaluations = network_calls = 0
        asked = zip(self.stages, self.recipes, self._conditions(request), ("", *self.into), strict=True)
        failed = np.zeros(request.num, bool)
        for number, (label, recipe, conditions, place) in enumerate(asked):
            given, start = {}, None
            if found is not None:
                failed |= ~np.isfinite(found.x.reshape(request.num, -1)).all(1)
                found.x[failed] = 0  # what fails in one stage is none of the samples in the end
            if found is not None and place == "start":
                start = ((found.x - recipe.shift) / recipe.scale).astype(np.float32)
            elif found is not None:
                given[place] = self._taken(number, found.x, request.first)
            cond = recipe.read_conditions(conditions, request.num, given, request.first)
            inner = {name: networks[f"{label}.{name}"] for name in recipe.runs if f"{label}.{name}" in networks}
            found = recipe.generate(
                recipe.field(recipe.flow(networks[label]), networks=inner),
                request.num,
                key=jax.random.fold_in(jax.random.key(request.seed), number),
                first=request.first,
                cond=cond,
                start=start,
                batch=request.batch,
                mesh=mesh,
                codec=inner.get("codec"),
            )
            evaluations, network_calls = evaluations + found.evaluations, network_calls + found.network_calls
        found.x[failed] = np.nan
        return dataclasses.replace(found, evaluations=evaluations, network_calls=network_calls)

    def _taken(self, number: int, rows: np.ndarray, first: int) -> Any:
        """The condition that stage `number` makes of samples of the one before it, from sample `first` on.

        Raises:
            ValueError: It does not take some; the message has their numbers.
        """
        condition = self.recipes[number].inputs[self.into[number - 1]]
        try:
            return condition.encode(rows)
        except ValueError:
            refused = {}
            for row in range(len(rows)):
                try:
                    condition.encode(rows[row : row + 1])
                except ValueError as error:
                    refused[str(first + row)] = error
            if not refused:
                raise
        before, label = self.stages[number - 1 : number + 1]
        raise ValueError(
            f"the stage {label} does not take sample {', '.join(refused)} of the stage {before}: "
            f"{next(iter(refused.values()))}; try another seed or fewer samples, or sample {before} alone and choose"
        )

    def sweep(self, request: Request, **lists: Sequence[Any]) -> list[tuple[dict[str, Any], Request]]:
        """One setting; each stage is sampled as its own recipe says."""
        self.check(request)
        for name, values in lists.items():
            if values:
                raise ValueError(f"{name} is given, but each stage of a chain is sampled as its own recipe says")
        return [({"stages": " > ".join(self.stages)}, request)]

    def assess(
        self,
        networks: Mapping[str, Any],
        source: Source,
        request: Request,
        *,
        judge: Any = None,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """Compares samples of the last stage with real data, see `flowjax.recipe.base.compare`."""
        judge = evaluation.default_extractor(source) if judge is None else judge
        some = source.take(request.num, request.seed)
        return compare(lambda: self.sample(networks, request, None, mesh), some, request.seed, judge)


def make_chain(folder: str | Path, runs: Mapping[str, str | Path], into: Sequence[str]) -> Chain:
    """Writes the recipe of a chain, a folder that the mains read like a workdir; the runs stay where they are.

    Args:
        folder: Folder to write; made if needed.
        runs: Folders of the runs by label, in order.
        into: For each but the first, "start" or the name of one of its conditions.

    Raises:
        FileExistsError: The folder holds a recipe already.
        ValueError: Runs that cannot be read or do not fit each other.
    """
    folder = Path(folder)
    if (folder / "recipe.json").exists():
        raise FileExistsError(f"{folder} holds a recipe.json; make the chain in another folder")
    entries = {label: Run(workdir=str(place)).load().entry(folder) for label, place in runs.items()}
    last = from_values(entries[list(runs)[-1]]["recipe"])
    named = ("data", "shape", "shift", "scale", "low", "high", "num_classes", "form")
    taken = {name: getattr(last, name) for name in named}
    chain = Chain(network={}, stages=tuple(runs), into=tuple(into), runs=entries, **taken)
    chain.save(folder)
    return chain

"""The classifiers that the fields of a config name by their runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowjax import specs
from flowjax.recipe import Loaded
from flowjax.recipe.definition import each_run


@dataclasses.dataclass(frozen=True)
class Classifiers:
    """Fields as a recipe says them, and the runs behind them.

    Attributes:
        fields: Specs, each run(workdir=...) replaced by stored(name=...).
        runs: The runs by these names.

    Example:
        >>> Classifiers.of([{"name": "classifier", "options": {"scale": 2}}], mesh=None).runs
        {}
    """

    fields: tuple[Any, ...]
    runs: Mapping[str, Loaded]

    @classmethod
    def of(cls, fields: Sequence[Any], mesh: Any) -> "Classifiers":
        """Loads the runs that these specs name, as far as a process of the mesh needs them."""
        runs: dict[str, Loaded] = {}

        def stored(spec: Any) -> Any:
            options, own = dict(spec["options"]), {}
            if "label" in options:  # the class that is asked for, which is no part of a run
                own["label"] = options.pop("label")
            name = f"classifier{len(runs) or ''}"
            runs[name] = specs.build("run", {"name": "run", "options": options}).load(mesh)
            return {"name": "stored", "options": {"name": name, **own}}

        return cls(tuple(each_run(spec, stored) for spec in fields), runs)

    def entries(self, workdir: Path) -> dict[str, Any]:
        """What the recipe in `workdir` says of the runs."""
        return {name: run.entry(workdir) for name, run in self.runs.items()}

    def networks(self) -> dict[str, Any]:
        """The network of each run."""
        return {name: run.networks[run.recipe.label] for name, run in self.runs.items()}

    def check(self, workdir: Path, entries: Mapping[str, Any]) -> None:
        """Refuses other weights than those that the recipe in `workdir` knows.

        Raises:
            ValueError: A run has other weights.
        """
        for name in self.runs.keys() & entries.keys():
            self.runs[name].check_same("classifier", workdir, entries[name]["model"])

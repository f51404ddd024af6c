"""Everything that has a name, collected kind by kind from what stands beside the classes (`flowjax.facts`).

The conformance tests, `--help`, the tables in the documentation and `cite` read it.
"""

import dataclasses
import importlib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flowjax import facts, guidance, specs
from flowjax.facts import Entry, Reference

# The modules of each kind, imported when it is first asked for, in the order in which their entries are shown; a
# package stands for whatever it exports besides.
_MODULES = {
    "path": "paths.gaussian paths.diffusion paths.tabulated paths",
    "network": "models.mlp models.dit models.unet models.autoencoder models.discriminator models geometry.pointnet "
    "geometry.solids",
    **dict.fromkeys(("adapters", "encoder", "tokenizer"), "models"),
    "times": "times",
    "time_law": "objectives",
    "policy": "policies",
    "solver": "solvers.euler solvers.heun solvers.midpoint solvers.rk4 solvers.ddim solvers.adams_bashforth "
    "solvers.dpm_solver solvers.heavy_ball solvers.nesterov solvers.ghvb solvers.splitting solvers.edm solvers.deis "
    "solvers.unipc solvers.dc_solver solvers.dpm_solver_v3 solvers.usf solvers.flowturbo solvers.sa_solver "
    "solvers.er_sde solvers.euler_maruyama solvers.stochastic_heun solvers.jump solvers.policy solvers.consistency "
    "solvers.dpm_adaptive solvers.adaptive solvers",
    "rule": "guidance.cfg guidance.interval guidance.rescaled guidance.channels guidance.cfg_zero_star guidance.raag "
    "guidance.autoguidance guidance",
    "scale": "guidance",
    "edit": "editing.sdedit editing.inpaint editing.interpolate editing.translate editing",
    "field": "fields.guided fields.converted fields.drift fields.gradient fields",
    "operator": "fields",
    "density": "recipe",
    "search": "search.rbf search.svdd search.code search.smc search.best_of_n search.sop search",
    "coupling": "couplings",
    "objective": "objectives.flow_matching objectives.recipes objectives.interpolation objectives",
    "weight": "objectives",
    "average": "training",
    "condition": "conditions geometry.solids",
    "form": "geometry.solids",
    "optimizer": "training.optimizers",
    "task": "tasks.generation tasks.autoencoding tasks.distillation tasks geometry.cloud_classification",
    "run": "recipe",
    "codec": "recipe.codecs recipe",
    "data": "data geometry.solids",
    "array": "data paths",
    "diffusion": "paths",
    **dict.fromkeys(("runge_kutta", "schedule", "decision", "statistics", "rows"), "solvers"),
}
_SYSTEMS = "science geometry.point_sampling geometry.event_motion video"  # functions to call, of which no spec is made
_CITED = ("solver", "rule", "scale", "edit", "field", "search", "coupling", "objective", "system")


def _collect(kind: str) -> Mapping[str, Entry]:
    """The entries of a kind, those of the first module first."""
    modules = (_SYSTEMS if kind == "system" else _MODULES[kind]).split()
    for module in modules:
        importlib.import_module(f"flowjax.{module}")

    def place(item: tuple[str, Entry]) -> int:
        return next((i for i, module in enumerate(modules) if _lies_in(item[1], f"flowjax.{module}")), len(modules))

    return dict(sorted(facts.entries(kind).items(), key=place))


def _lies_in(entry: Entry, module: str) -> bool:
    return f"{entry.make.__module__}.".startswith(f"{module}.")


class _Tables(Mapping[str, Mapping[str, Entry]]):
    """The entries of every kind of spec, collected when they are asked for."""

    def __getitem__(self, kind: str) -> Mapping[str, Entry]:
        return _collect(kind)

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


tables: Mapping[str, Mapping[str, Entry]] = _Tables()

solvers: Mapping[str, Entry]
rules: Mapping[str, Entry]
scales: Mapping[str, Entry]
edits: Mapping[str, Entry]
fields: Mapping[str, Entry]
searches: Mapping[str, Entry]
couplings: Mapping[str, Entry]
objectives: Mapping[str, Entry]
systems: Mapping[str, Entry]


def __getattr__(name: str) -> Mapping[str, Entry]:
    """The tables of methods and systems, collected when they are asked for."""
    kinds = {f"{kind}es" if kind.endswith("h") else f"{kind}s": kind for kind in _CITED}
    if name in kinds:
        return _collect(kinds[name])
    raise AttributeError(f"module 'flowjax.catalogue' has no attribute {name!r}")


def solver(name: str, **options: Any) -> Any:
    """A solver by its name, for example solver("dpm_solver", order=3); `flowjax.build` makes every kind.

    Raises:
        ValueError: unknown name, unknown or missing option.
    """
    return specs.build("solver", {"name": name, "options": options})


def rule(name: str, **options: Any) -> guidance.Rule:
    """A guidance rule by its name, for example rule("cfg", scale=4.0).

    Raises:
        ValueError: unknown name, unknown or missing option.
    """
    return specs.build("rule", {"name": name, "options": options})


def cite(*parts: Any) -> str:
    """BibTeX entries of all methods that the given solvers, fields, couplings, ... are made of, in order, once each.

    Args:
        *parts: objects, their classes, functions and modules of systems. What no paper stands behind adds nothing.

    Raises:
        ValueError: the name of a method instead of the method.

    Example:
        >>> import flowjax as fj
        >>> print(fj.cite(fj.solvers.DDIM()).splitlines()[0])
        @misc{song2020denoising,
    """
    # What is given has been imported, and with it what its classes say of themselves.
    known = [entry for kind in _CITED for entry in facts.entries(kind).values()]
    found: dict[str, Reference] = {}

    def walk(part: Any) -> None:
        for entry in known:
            within = isinstance(part, types.ModuleType) and _lies_in(entry, part.__name__)
            if (entry.make is part or entry.make is type(part) or within) and entry.reference:
                found.setdefault(entry.reference.key, entry.reference)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            for field in dataclasses.fields(part):
                walk(getattr(part, field.name))

    _refuse_names(part for part in parts if isinstance(part, str))
    for part in parts:
        walk(part)
    return "\n\n".join(reference.bibtex() for reference in found.values())


def _refuse_names(texts: Iterable[str]) -> None:
    names = {specs.plain(text): text for text in texts}
    for name, entry in ((n, e) for kind in _CITED if names for n, e in _collect(kind).items()):
        if given := names.get(specs.plain(name)):
            thing = f"{entry.make.__module__}.{entry.make.__name__}"
            raise ValueError(f"cite takes methods, got the name {given!r}: write cite({thing})")

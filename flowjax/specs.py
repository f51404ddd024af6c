"""Specs: a named thing and its options, as an object, as data, or as text.

    fj.solvers.DPMSolver(order=3)     {"name": "dpm_solver", "options": {"order": 3}}     dpm_solver(order=3)

mean the same: the first in Python, the second in configs and JSON, the third on a command line. Specs nest:
`heavy_ball(solver=ghvb(order=2), beta=0.8)`. Values of options are literals (numbers, texts, True, False, None, lists,
tuples, dicts, inf), read and never evaluated; a word or a path (runs/digits) without quotes is a text, a word also the
name of a nested spec.
"""

import ast
import dataclasses
import difflib
import inspect
import keyword
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flowjax import _checks

LONGEST = 20_000  # characters of a spec, numbers of an array written out
_NUMBERS = {"inf": math.inf, "nan": math.nan}
_WORDS = (*keyword.kwlist, *_NUMBERS)  # that mean something else than the text
_PATHS = re.compile(
    r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?<=[=\[(,])(\s*)((?=[\d./-]*[^\W\d]|~)[\w.~-]*/[\w./-]*)(?=\s*[,)\]])"""
)
Spec = Any  # an object, a mapping with name and options, or a text


# --------------------------------------------------------------------------------------------------------------- text


def parse(text: str) -> dict[str, Any]:
    """The spec that a text stands for, {"name": ..., "options": {...}}.

    Raises:
        ValueError: not a spec; the message points at the place.

    Example:
        >>> parse("heavy_ball(solver=ghvb(order=2), beta=0.8)")["options"]["beta"]
        0.8
    """
    text = _quoted(text)
    return _named(_tree(text), text)


def parse_many(text: str) -> list[Any]:
    """The specs of a list, separated by commas; plain numbers stay numbers.

    Raises:
        ValueError: something else among them.

    Example:
        >>> parse_many("1.5, cfg(scale=2)")
        [1.5, {'name': 'cfg', 'options': {'scale': 2}}]
    """
    text = _quoted(text)
    if not text:
        return []
    tree = _tree(text)
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]

    def is_number(node: ast.expr) -> bool:
        return isinstance(node, ast.Constant | ast.UnaryOp) or (isinstance(node, ast.Name) and node.id in _NUMBERS)

    return [_literal(node, text) if is_number(node) else _named(node, text) for node in nodes]


def _quoted(text: str) -> str:
    """The text with quotes around paths that have none."""
    text = text.strip()
    return _PATHS.sub(lambda found: found[1] or f"{found[2]}{found[3]!r}", text) if "/" in text else text


def _tree(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise ValueError(f"a spec has at most {LONGEST} characters, got {len(text)}")
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise _unreadable(text, (error.offset or 1) - 1, error.msg) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text, 0, str(error) or "too deep") from None


def _unreadable(text: str, place: int, reason: str) -> ValueError:
    shown = text if len(text) <= 200 else text[:200] + "..."
    return ValueError(
        f"cannot read the spec {shown!r} at character {place + 1} ({text[place : place + 12]!r}): {reason}; write "
        "name or name(option=value, ...), for example dpm_solver(order=3)"
    )


def _named(node: ast.expr, text: str) -> dict[str, Any]:
    if not isinstance(node, ast.Name | ast.Call):
        raise _unreadable(text, node.col_offset, "a name is expected first")
    if isinstance(node, ast.Name):
        return {"name": node.id, "options": {}}
    if not isinstance(node.func, ast.Name):
        raise _unreadable(text, node.col_offset, "a name is expected in front of the bracket")
    if node.args:
        raise _unreadable(text, node.args[0].col_offset, "options are written option=value")
    options: dict[str, Any] = {}
    for option in node.keywords:
        if option.arg is None or option.arg in options:
            raise _unreadable(text, option.col_offset, "each option is written once, as option=value")
        options[option.arg] = _literal(option.value, text)
    return {"name": node.func.id, "options": options}


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call):
        return _named(node, text)
    if isinstance(node, ast.Name):
        return _NUMBERS.get(node.id, node.id)
    if isinstance(node, ast.Constant) and not isinstance(node.value, bytes | complex | type(Ellipsis)):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _literal(node.operand, text)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.List | ast.Tuple):
        items = [_literal(item, text) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        keys = [_literal(key, text) for key in node.keys if key is not None]
        return dict(zip(keys, (_literal(value, text) for value in node.values), strict=True))
    raise _unreadable(text, node.col_offset, "a number, a text, True, False, None, a list or another spec is expected")


def text(spec: Spec) -> str:
    """The text of a spec.

    Example:
        >>> text({"name": "apg", "options": {"scale": 4.0, "r": float("inf")}})
        'apg(scale=4.0, r=inf)'
    """
    if isinstance(spec, str):
        return text(parse(spec))
    name, options = name_and_options(spec)
    return f"{name}({', '.join(f'{key}={written(value)}' for key, value in options.items())})" if options else name


def written(value: Any) -> str:
    """An option's value as a spec has it; things without a literal by their class or name."""
    if is_spec(value):
        return text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(written, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, str) and value.isidentifier() and value not in _WORDS:
        return value
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return repr(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__
    return getattr(value, "__name__", type(value).__name__)


# -------------------------------------------------------------------------------------------------------------- build


def is_spec(value: Any) -> bool:
    """Whether a value is a spec as data: a mapping with a name, and nothing but options beside it."""
    return isinstance(value, Mapping) and isinstance(value.get("name"), str) and set(value) <= {"name", "options"}


def name_and_options(spec: Any) -> tuple[str, dict[str, Any]]:
    """The two parts of a spec as text or data.

    Raises:
        ValueError: something else.
    """
    if isinstance(spec, str):
        spec = parse(spec)
    if not is_spec(spec) or not isinstance(spec.get("options") or {}, Mapping):
        raise ValueError(
            f'a spec is a text such as dpm_solver(order=3) or {{"name": ..., "options": {{}}}}, got {spec!r}'
        )
    return spec["name"], dict(spec.get("options") or {})


def build(kind: str, spec: Spec, **given: Any) -> Any:
    """Makes the object that a spec names.

    Args:
        kind: what is built: "solver", "rule", "field", "path", "network", "times", "time_law", "objective",
            "coupling", "data", "average", "array", ...; `flowjax.catalogue.tables` has them all.
        spec: the object itself, {"name": ..., "options": {...}}, or a text such as "dpm_solver(order=3)".
        **given: objects for the arguments of these names (`path=`, `null=`, `rngs=`, a field), at any depth, where the
            spec does not say otherwise.

    Raises:
        ValueError: an unknown kind, name or option (with the nearest ones), a missing option, or a value that the
            constructor refuses.

    Example:
        >>> build("solver", "heavy_ball(solver=dpm_solver(order=3), beta=0.5)").solver.order
        3
    """
    if kind == "array":
        return _array(spec, given)
    if not isinstance(spec, str | Mapping):
        return spec
    name, options = name_and_options(spec)
    entry = find(kind, name)
    return _build(kind, name, entry, options, given)


def find(kind: str, name: str) -> Any:
    """The catalogue's entry of a name, whatever its case, hyphens and underscores.

    Raises:
        ValueError: no such kind or entry; the message holds the closest name and all names.
    """
    table = table_of(kind)
    names = {plain(key): key for key in table}
    if plain(name) not in names:
        close = difflib.get_close_matches(plain(name), names, n=1)
        hint = f"; did you mean {names[close[0]]!r}?" if close else ""
        raise ValueError(f"unknown {kind.replace('_', ' ')} {name!r}{hint} (allowed: {', '.join(table)})")
    return table[names[plain(name)]]


def table_of(kind: str) -> Mapping[str, Any]:
    """The catalogue's entries of one kind, by name."""
    from flowjax import catalogue  # it collects the whole library

    return catalogue.tables[_checks.choose("kind of spec", kind, catalogue.tables)]


@dataclasses.dataclass(frozen=True)
class Option:
    """One argument of a constructor: the kind of spec it takes, if any, and its default, or that it has none.

    Example:
        >>> import flowjax as fj
        >>> options = fj.specs.options_of(fj.specs.find("solver", "dpm_solver"))
        >>> options["order"].default, options["order"].required
        (2, False)
        >>> fj.specs.options_of(fj.specs.find("solver", "heavy_ball"))["solver"].kind
        'solver'
    """

    kind: str | None
    required: bool
    default: Any = None


def options_of(entry: Any) -> dict[str, Option]:
    """The options of an entry, by name."""
    found: dict[str, Option] = {}
    for make in (entry.make, *entry.more):
        passed_on = make is not entry.make
        if dataclasses.is_dataclass(make):
            for field in dataclasses.fields(make):
                missing = field.default is field.default_factory is dataclasses.MISSING
                default = None if field.default is dataclasses.MISSING else field.default
                missing = missing and not passed_on
                found.setdefault(field.name, Option(field.metadata.get("kind"), missing, default))
        else:
            variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            function = vars(make)["__init__"] if isinstance(make, type) else make  # a metaclass may hide the arguments
            for parameter in inspect.signature(function).parameters.values():
                missing = parameter.default is parameter.empty
                given = passed_on and missing  # by `make` itself
                if parameter.kind not in variable and parameter.name != "self" and not given:
                    kind = entry.parts.get(parameter.name)
                    found.setdefault(parameter.name, Option(kind, missing, None if missing else parameter.default))
    return {name: option for name, option in found.items() if name not in entry.fixed}


def _build(kind: str, name: str, entry: Any, options: dict[str, Any], given: dict[str, Any]) -> Any:
    known = options_of(entry)
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(_unknown_option(kind, name, unknown[0], [key for key in known if key not in given]))
    missing = [key for key, option in known.items() if option.required and key not in {**given, **options}]
    if missing:
        raise ValueError(f"{name} needs its option {', '.join(missing)}: write {name}({missing[0]}=...)")
    values = {key: given[key] for key in known if key in given and key not in options} | dict(entry.fixed)
    for key, value in options.items():
        values[key] = _part(known[key].kind, value, given)
    for make in (entry.make, *entry.more):
        _checks.check_kinds(name, make, options)
    with _checks.value_errors(name):
        return entry.make(**values)


def _part(kind: str | None, value: Any, given: dict[str, Any]) -> Any:
    if kind is not None and kind.startswith("{"):  # "{encoder}": a dict of encoders
        if not isinstance(value, Mapping) or is_spec(value):
            raise ValueError(f"a dict of {kind[1:-1]} specs by name is expected, got {value!r}")
        return {name: build(kind[1:-1], item, **given) for name, item in value.items()}
    if kind == "flow" and isinstance(value, str):
        return given.get("flows", {})[_checks.choose("flow (label of the recipe)", value, given.get("flows", {}))]
    if kind is None:
        return tuple(_part(None, item, given) for item in value) if isinstance(value, list | tuple) else value
    if kind != "array" and isinstance(value, list | tuple):
        return tuple(build(kind, item, **given) for item in value)
    if value is None:
        return None
    return build(kind, value, **given)


def _unknown_option(kind: str, name: str, option: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(option, allowed, n=1)
    others = [other for other, entry in table_of(kind).items() if option in options_of(entry)]
    hint = f"; did you mean {close[0]}?" if close else ""
    if others and not close:
        hint = f" (it is one of {', '.join(others[:4])})"
    return f"{name} has no option {option}{hint}; it has {', '.join(allowed) or 'none'}"


def _array(spec: Any, given: dict[str, Any]) -> Any:
    """A short literal, an array, or a spec such as npz(path=, name=, sha256=)."""
    if isinstance(spec, str) or is_spec(spec):
        name, options = name_and_options(spec)
        return _build("array", name, find("array", name), options, {"folder": None, **given})
    value = np.asarray(spec) if isinstance(spec, list | tuple | int | float) else spec
    if isinstance(spec, list | tuple):
        if value.dtype.kind not in "iuf" or value.size > LONGEST:
            raise ValueError(f"an array is a list of at most {LONGEST} numbers, or npz(path=...): got {str(spec)[:80]}")
        value = value.astype(np.float64) if value.dtype.kind == "f" else value
    return value


# ------------------------------------------------------------------------------------------------------------ printed


def spec_of(kind: str, thing: Any, **given: Any) -> dict[str, Any]:
    """The spec of an object made by `build`, {"name": ..., "options": {...}}: options that differ from their defaults.

    Args:
        kind: its kind.
        thing: an object of a class in the catalogue.
        **given: as for `build`; arguments that are these objects are left out.

    Raises:
        ValueError: a class that no name stands for, or a value that no literal stands for (a function, a network).

    Example:
        >>> import flowjax as fj
        >>> spec_of("solver", fj.solvers.HeavyBall(solver=fj.solvers.GHVB(), beta=0.5))["options"]["beta"]
        0.5
    """
    name = next(
        (
            name
            for name, entry in table_of(kind).items()
            if entry.make is type(thing) and all(getattr(thing, key) == value for key, value in entry.fixed.items())
        ),
        None,
    )
    if name is None or not dataclasses.is_dataclass(thing):
        raise ValueError(f"no {kind.replace('_', ' ')} of the catalogue makes a {type(thing).__name__}")
    options = {}
    for key, option in options_of(table_of(kind)[name]).items():
        value = getattr(thing, key)
        if (key in given and given[key] is value) or (not option.required and _same(value, option.default)):
            continue
        options[key] = _printed(f"{name}({key}=)", option.kind, value, given)
    return {"name": name, "options": options}


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b) and not (isinstance(a, int | float) and isinstance(b, int | float)):
        return False
    try:
        return a is b or bool(a == b)
    except ValueError:  # arrays
        return False


def _printed(where: str, kind: str | None, value: Any, given: dict[str, Any]) -> Any:
    if isinstance(value, list | tuple) and kind == "array":
        return list(value)
    if isinstance(value, list | tuple):
        return tuple(_printed(where, kind, item, given) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if np.size(value) <= LONGEST:
            return np.asarray(value).tolist()
        raise ValueError(
            f"{where} holds {np.size(value)} numbers: write them to a file and use npz(path=..., name=...)"
        )
    if kind is None:
        raise ValueError(f"{where} is a {type(value).__name__}, which has no spec")
    return spec_of(kind, value, **given)


def plain(name: str) -> str:
    """A name without case, hyphens and underscores."""
    return name.lower().replace("-", "").replace("_", "")

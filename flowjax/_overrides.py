"""Overrides of a config that `config_flags` cannot make: specs as text, other names, options that are not spelled out.

    --config.sample.solver="dpm_solver(order=3)"        a spec in place of a spec
    --config.objective.name=sit                          another name; the options of the old one are dropped
    --config.sample.solver.options.order=3               an option that the config file does not mention

They are applied in this order, whatever their order on the command line; all others are left to `config_flags`, which
knows the types of what the config has and refuses what it has not.
"""

import ast
from typing import Any

from ml_collections import ConfigDict

from flowjax import specs

PREFIX = "--config."
# Keys of version 0.1, accepted until version 0.3 (2026-11).
MOVED = {
    **{f"train.{name}": f"optimizer.options.{name}" for name in ("rate", "warmup", "b2", "weight_decay", "clip")},
    **{f"objective.{name}": f"objective.options.{name}" for name in ("prediction", "times", "label_dropout")},
    "objective.smoothing": "objective.options.smoothing",
    **{f"objective.{name}": f"task.options.{name}" for name in ("protocol", "key_points")},
}


def apply(config: ConfigDict, argv: list[str]) -> list[str]:
    """Changes an unlocked config and returns the arguments that remain.

    Raises:
        ValueError: a text that is no spec.
    """
    rest: list[str] = []
    changes: list[tuple[int, str, str]] = []
    for argument in argv:
        key, equals, value = argument[len(PREFIX) :].partition("=")
        old = next((name for name in MOVED if key == name or key.startswith(f"{name}.")), None)
        if argument.startswith(PREFIX) and old is not None and _at(config, old) is None:
            key = MOVED[old] + key[len(old) :]
            argument = f"{PREFIX}{key}={value}"
        if not argument.startswith(PREFIX) or not equals:
            rest.append(argument)
        elif _is_spec(_at(config, key)) or _is_specs(config, key):
            changes.append((0, key, value))
        elif key.endswith(".name") and _is_spec(_at(config, key[: -len(".name")])):
            changes.append((1, key, value))
        else:
            changes.append((2, key, value))
    for order, key, value in sorted(changes, key=lambda change: change[0]):
        node = key.rpartition(".")[0]
        if order == 0 and _is_spec(_at(config, key)):
            spec = {"name": "", "options": {}} if value in ("", "none") else specs.parse(value)
            _at(config, key).name, _at(config, key).options = spec["name"], ConfigDict(_plain(spec["options"]))
        elif order == 0:
            _at(config, node)[key.rpartition(".")[2]] = tuple(specs.parse_many(value))
        elif order == 1:
            if specs.plain(_at(config, key)) != specs.plain(value):
                _at(config, node).name, _at(config, node).options = value, ConfigDict()
        elif not _add(config, key.split("."), value):
            rest.append(f"{PREFIX}{key}={value}")
    return rest


def _add(config: ConfigDict, key: list[str], value: str) -> bool:
    """Adds an option that is not there, or not of this type, at any depth below `options`; whether it was one."""
    node: Any = config
    below = False
    for depth, part in enumerate(key[:-1]):
        if not isinstance(node, ConfigDict):
            return False
        below = below or part == "options"
        if part not in node:
            if not below:
                return False
            node[part] = ConfigDict()
        node = node[part]
        if isinstance(node, str) and key[depth + 1] == "options":  # a nested spec that was only a name
            return False
    if not below or not isinstance(node, ConfigDict):
        return False
    # An option that is on or off, or has a name of a third way: `build` knows which it takes.
    named = isinstance(node.get(key[-1]), bool) and value.lower() not in ("true", "false", "1", "0", "t", "f")
    if key[-1] in node and not named:
        return False
    with node.ignore_type():
        node[key[-1]] = _plain(literal(value))
    return True


def literal(text: str) -> Any:
    """A number, True, False, None, a list, a dict or a nested spec; any other text stands for itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    if text.endswith(")"):
        return specs.parse(text)
    return {"inf": float("inf"), "-inf": -float("inf")}.get(text, text)


def _plain(value: Any) -> Any:
    """Nested dicts as ConfigDicts, lists as tuples, which configs compare and print better."""
    if isinstance(value, dict):
        return ConfigDict({key: _plain(item) for key, item in value.items()})
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _at(config: ConfigDict, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            return None
        node = node[part]
    return node


def _is_spec(node: Any) -> bool:
    return isinstance(node, ConfigDict) and "name" in node and "options" in node


def _is_specs(config: ConfigDict, key: str) -> bool:
    """Whether the key holds a list of specs: those are called `fields`."""
    return key.rpartition(".")[2] == "fields" and isinstance(_at(config, key), tuple)

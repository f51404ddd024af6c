"""Frozen keyword-only dataclasses that are JAX pytrees."""

import dataclasses
import difflib
import functools
import inspect
from typing import Any, TypeVar, cast, dataclass_transform

import jax

from flowjax._captured import marked, unmarked

T = TypeVar("T", bound=type)


def static(default: Any = dataclasses.MISSING, **kwargs: Any) -> Any:
    """A dataclass field that belongs to the tree structure: changing it means compiling again."""
    return dataclasses.field(default=default, metadata={"static": True}, **kwargs)


def part(kind: str, default: Any = dataclasses.MISSING, *, static: bool = False) -> Any:
    """A dataclass field that holds a thing with a spec of its own, of this kind (`flowjax.specs`)."""
    return dataclasses.field(default=default, metadata={"static": static, "kind": kind})


def _is_plain_function(value: Any) -> bool:
    """True for a callable that JAX would treat as one opaque leaf."""
    return callable(value) and not isinstance(value, jax.Array) and jax.tree_util.all_leaves([value])


# Words of other libraries for arguments.
_FOREIGN = {
    "solver_order": "order",
    "algorithm_type": "form",
    "prediction_type": "prediction",
    "guidance_scale": "scale",
}


def _explain_arguments(cls: type, positional: tuple[str, ...], names: list[str]) -> None:
    """Makes the constructor say how it is called when it is called in another way."""
    construct = cls.__init__  # type: ignore[misc]

    @functools.wraps(construct)
    def explained(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = [name for name in kwargs if name not in names]
        if unknown or len(args) > len(positional):
            call = f"{cls.__name__}({', '.join([*positional, *(f'{n}=...' for n in names if n not in positional)])})"
            close = difflib.get_close_matches(unknown[0], names, n=1) if unknown else []
            close = [known for known in (_FOREIGN.get(n) for n in unknown[:1]) if known in names] or close
            hint = f"; did you mean {close[0]}=?" if close else ""
            what = f"has no argument {unknown[0]!r}{hint}" if unknown else "takes its arguments by name"
            raise TypeError(f"{cls.__name__} {what}: {call}")
        construct(self, *args, **kwargs)

    cls.__init__ = explained  # type: ignore[misc]


# Type checkers know neither `positional` nor the default of `static`: to them fields may also be positional.
@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree(cls: T) -> T:
    """Makes `cls` a frozen dataclass and registers it with JAX.

    Fields declared with `static(...)` are auxiliary data and must be hashable. All other fields are children, so
    their numbers and arrays are leaves that may change without a retrace; a plain function in such a field is auxiliary
    data too, and compiled anew when what it captures has changed (`flowjax._captured`). Fields are keyword-only, except
    those of a class that passes `positional = ("name", ...)` as a class attribute.
    """
    positional = getattr(cls, "positional", ())
    for name in inspect.get_annotations(cls):
        if name not in positional:
            default = cls.__dict__.get(name, dataclasses.MISSING)
            if isinstance(default, dataclasses.Field):
                default.kw_only = True
            elif default is dataclasses.MISSING:
                setattr(cls, name, dataclasses.field(kw_only=True))
            else:
                setattr(cls, name, dataclasses.field(default=default, kw_only=True))
    cls = cast(T, dataclasses.dataclass(frozen=True)(cls))
    fields = dataclasses.fields(cls)
    _explain_arguments(cls, positional, [f.name for f in fields])
    children = tuple(f.name for f in fields if not f.metadata.get("static", False))
    statics = tuple(f.name for f in fields if f.metadata.get("static", False))

    keys = tuple(jax.tree_util.GetAttrKey(name) for name in children)

    def flatten(node):  # at every call of compiled code: no more than it needs
        own = node.__dict__
        values = [own[name] for name in children]
        functions: tuple[tuple[str | None, Any], ...] = ()
        for i, value in enumerate(values):
            if callable(value):
                if _is_plain_function(value):
                    functions += ((children[i], marked(value)),)
                    values[i] = None
                elif isinstance(value, jax.tree_util.Partial):
                    functions += ((None, marked(value.func)),)  # noticed only; it comes back with its leaves
        kept = [own[name] for name in statics]
        return values, (tuple([marked(value) if callable(value) else value for value in kept]), functions)

    def flatten_with_keys(node):
        values, aux = flatten(node)
        return list(zip(keys, values, strict=True)), aux

    def unflatten(aux, values):
        node: Any = object.__new__(cls)
        static_values, functions = aux
        for name, value in zip(children, values, strict=True):
            object.__setattr__(node, name, value)
        for name, value in (*zip(statics, static_values, strict=True), *functions):
            if name is not None:
                object.__setattr__(node, name, unmarked(value))
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls

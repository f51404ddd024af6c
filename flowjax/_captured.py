"""What a plain function captures, so that compiled code notices when it changes.

JAX compiles a function with the values that it finds at that moment in closures, defaults, attributes and globals; a
module trained on, or a number changed, behind the function's back would go unnoticed. `marked(function)` is therefore
what stands for a function in the structure of a pytree or among the static arguments of compiled code: it compares
unequal as soon as something that the function captures has changed, so that the function is compiled anew. A function
that captures nothing stands for itself.

Seen are: closures, defaults and attributes; arguments of `functools.partial`; attributes of instances and of classes of
your own code; globals, and variables of modules, that your own code names; all of these through functions, containers,
pytrees and objects. Not seen: what libraries keep in globals, names made at run time (`globals()[...]`, `getattr`),
arrays of other frameworks, files, and functions among the static parts of a module.
"""

import contextlib
import functools
import hashlib
import inspect
import itertools
import os
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_INSTALLED = (os.path.dirname(os.path.realpath(__file__)), os.path.realpath(sysconfig.get_path("stdlib")))
_PLAIN = (type(None), bool, int, str, bytes, complex, type(Ellipsis), range, slice, np.dtype)
_JITTED = type(jax.jit(lambda: None))
_generations = itertools.count()
_states: dict[Any, "_State"] = {}
_traced: list[dict[Any, Any]] = []  # the functions met by each program under way


class Marked:
    """A function and the generation of what it captures; equal to itself until that changes."""

    def __init__(self, function: Any, generation: int):
        self.function, self.generation = function, generation

    def __eq__(self, other: Any) -> bool:
        same = isinstance(other, Marked) and self.generation == other.generation
        return same and _key(self.function) == _key(other.function)

    def __hash__(self) -> int:
        return hash((_key(self.function), self.generation))

    def __repr__(self) -> str:
        return repr(self.function)


class _Same:
    """An object compared by identity, kept alive."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


class _State:
    """The last look at a function, and the generation it belongs to."""

    def __init__(self, look: "_Look", generation: int, owner: Any):
        self.look, self.generation, self.owner = look, generation, owner


def marked(function: Any) -> Any:
    """The function itself if it captures nothing, else a `Marked` of the present generation.

    Raises:
        ValueError: an array changed that a function under `jax.jit` captures, which JAX keeps as it was.
    """
    if function is None or not (look := _Look(function)).found:
        return function
    key = _key(function)
    state = _states.get(key)
    if state is None:
        state = _states[key] = _State(look, next(_generations), _owner(function, key))
    if _traced:
        _traced[-1][key] = function
    elif not _equal(state.look.found, look.found):
        if not _equal(state.look.jitted, look.jitted):
            raise ValueError(
                f"{function!r} is compiled by jax.jit with arrays that it captures, and they changed since: JAX keeps "
                "the old ones. Leave out that jax.jit, or pass the module itself or jax.tree_util.Partial(f, arrays)"
            )
        state.look, state.generation = look, next(_generations)
    return Marked(function, state.generation)


def unmarked(function: Any) -> Any:
    """The function behind `marked`."""
    return function.function if isinstance(function, Marked) else function


def captured_callables(function: Any) -> list[Any]:
    """The callable pytrees (modules) that a function captures; a callable pytree itself is the only one."""
    return [function] if not jax.tree_util.all_leaves([function]) else _Look(function).pytrees


@contextlib.contextmanager
def tracing(*trees: Any) -> Iterator[None]:
    """While a program is traced, what functions change themselves (counters, say) is no change.

    A context, or a decorator of the function that is compiled.

    Args:
        *trees: pytrees whose functions are looked at before; not needed in the body of compiled code, which got them
            as arguments.
    """
    jax.tree.structure(trees)
    _traced.append({})
    try:
        yield
    finally:
        for key, function in _traced.pop().items():
            _states[key].look = _Look(function)


def _key(function: Any) -> Any:
    if isinstance(function, types.MethodType):  # a new object at each access
        return id(function.__self__), id(function.__func__)
    return id(function)


def _owner(function: Any, key: Any) -> Any:
    """Forgets the state when the function is gone; functions that cannot tell are kept."""
    owner = function.__self__ if isinstance(function, types.MethodType) else function
    try:
        return weakref.ref(owner, lambda _: _states.pop(key, None))
    except TypeError:
        return function


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # whatever cannot be compared may have changed
        return False


@functools.cache
def _of_a_library(filename: str) -> bool:
    """Whether code is installed, so that its globals are taken for fixed."""
    path = os.path.realpath(filename)
    packages = not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep))
    return filename.startswith("<frozen") or packages or path.startswith(_INSTALLED)


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names of globals and attributes in a function's code and in the functions written inside it."""
    inner = (name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part))
    return tuple(dict.fromkeys((*code.co_names, *inner)))


class _Look:
    """What a function captures now: `found`, values that compare by content; `jitted`, its arrays behind `jax.jit`."""

    def __init__(self, function: Any):
        self.found: list[Any] = []
        self.jitted: list[Any] = []
        self.pytrees: list[Any] = []  # that can be called
        self._seen: set[int] = set()
        self._depth = 0  # of enclosing jitted functions
        self._callable(function)

    def _add(self, value: Any, array: bool = False) -> None:
        self.found.append(value)
        if array and self._depth:
            self.jitted.append(value)

    def _first(self, value: Any) -> bool:
        new = id(value) not in self._seen
        self._seen.add(id(value))
        return new

    def _value(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._add((type(value), value))
        elif isinstance(value, float):
            self._add(value.hex())
        elif isinstance(value, jax.Array):
            self._add(_Same(value), array=True)
        elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            digest = hashlib.blake2b(value.tobytes()).digest()
            self._add((value.dtype, value.shape, digest), array=True)
        elif isinstance(value, types.ModuleType):
            pass  # its variables are looked at where they are named
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial | _JITTED):
            self._add(_Same(value.__func__ if isinstance(value, types.MethodType) else value))
            if self._first(value):
                self._callable(value)
        elif isinstance(value, type):
            self._add(_Same(value))
            self._class(value)
        elif self._first(value) and not self._pytree(value):
            self._object(value)

    def _callable(self, function: Any) -> None:
        if isinstance(function, functools.partial):
            for part in (function.func, function.args, function.keywords):
                self._value(part)
        elif isinstance(function, types.MethodType):
            self._callable(function.__func__)
            self._value(function.__self__)
        elif isinstance(function, types.FunctionType):
            self._function(function)
        elif isinstance(function, _JITTED):
            self._depth += 1
            self._callable(inspect.unwrap(function))
            self._depth -= 1
        elif not isinstance(function, types.BuiltinFunctionType | np.ufunc | type):
            self._object(function)

    def _function(self, function: types.FunctionType) -> None:
        code, variables = function.__code__, function.__globals__
        for cell in function.__closure__ or ():
            try:
                self._value(cell.cell_contents)
            except ValueError:  # not assigned yet
                continue
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._value(value)
        for value in vars(function).values():
            self._value(value)
        if _of_a_library(code.co_filename):
            return
        names = _names(code)
        for name in names:
            if name not in variables:
                continue
            value = variables[name]
            if not isinstance(value, types.ModuleType):
                self._value(value)
            elif value.__name__ not in sys.builtin_module_names and not _of_a_library(
                getattr(value, "__file__", None) or "<cell of a notebook>"
            ):
                for attribute in names:
                    if attribute in vars(value):
                        self._value(vars(value)[attribute])

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            functions = [v for v in vars(base).values() if isinstance(v, types.FunctionType)]
            own = functions and not all(_of_a_library(f.__code__.co_filename) for f in functions)
            if own and self._first(base):
                for name, value in vars(base).items():
                    if isinstance(value, types.FunctionType):
                        self._function(value)
                    elif not name.startswith("__") and not hasattr(value, "__get__"):
                        self._value(value)

    def _pytree(self, value: Any) -> bool:
        try:
            if jax.tree_util.all_leaves([value]):
                return False
            leaves, structure = jax.tree.flatten(value)
        except Exception:  # keys without an order, cycles: looked at as an object
            return False
        self._add(structure)
        self.pytrees += [value] if callable(value) else []
        self._class(type(value))
        for leaf in leaves:
            self._value(leaf)
        return True

    def _object(self, value: Any) -> None:
        self._class(type(value))
        slots = [s for cls in type(value).__mro__ for s in np.atleast_1d(vars(cls).get("__slots__", ())).tolist()]
        slots = [getattr(value, name) for name in slots if isinstance(name, str) and hasattr(value, name)]
        content = vars(value) if hasattr(value, "__dict__") else {}
        if isinstance(value, dict | list | tuple | set | frozenset):
            items = list(value.items()) if isinstance(value, dict) else list(value)
            for item in sorted(items, key=repr) if isinstance(value, set | frozenset) else items:
                self._value(item)
        elif isinstance(value, np.ndarray):  # of objects
            self._value(value.tolist())
        elif not slots and not content and not callable(value):
            self._add(_Same(value))  # nothing to look into
        for part in (*content.values(), *slots):
            self._value(part)
